"""Patches against whole forward passes with hooks; sets, circuits, interactions, gradients."""

import brute
import numpy as np
import pytest
import torch

from rewired.errors import RewiredError
from rewired.tracing import patching, recording

SLICE = slice(None)


def sweep_of(pair, positions: str = "all", mode: str = "input") -> patching.Sweep:
    model, _, source, target, _ = pair
    return patching.Sweep(model, source, target, positions, mode)


# --- one component ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["input", "output"])
@pytest.mark.parametrize("positions", ["all", "decision"])
def test_every_patch_is_a_whole_pass_with_hooks(pair, positions, mode):
    sweep = sweep_of(pair, positions, mode)
    wanted = patching.components(sweep.parts, recording.KINDS)
    table, controls = patching.patch_each(sweep, wanted)
    assert len(table) == len(wanted) * len(brute.PROMPTS) and len(wanted) == 3 * (8 + 3)
    assert table["effect"].abs().median() > 1e-3
    by_name = table.set_index(["prompt_id", "component"])
    for k, component in enumerate(wanted):
        prompt = brute.PROMPTS[k % len(brute.PROMPTS)]
        mine = by_name.loc[(prompt.id, component.name)]
        due = brute.due(pair, prompt, component, positions, mode)
        assert mine["delta_patched"] == pytest.approx(due, abs=5e-6)
        assert mine["effect"] == mine["delta_patched"] - mine["delta_target"]
        assert mine["flip"] == ((mine["delta_patched"] > 0) != (mine["delta_target"] > 0))
    heads = table[(table["kind"] == "head") & (table["prompt_id"] == brute.PROMPTS[0].id)]
    assert heads.groupby("layer")["effect"].nunique().eq(8).all()
    worst = controls.groupby("control")["error"].agg(lambda error: error.abs().max())
    assert worst["self"] == 0 and worst["outputs"] < 1e-4 and worst["residual"] < 1e-4
    assert worst["again"] < 5e-6 and worst["unpatched"] < 5e-6
    assert set(controls[controls["control"] == "self"]["component"]) == {
        f"L{k}_{kind.upper()}" for k in range(3) for kind in recording.KINDS
    }


def test_each_row_carries_the_deltas_of_both_models(pair):
    sweep = sweep_of(pair)
    table, _ = patching.patch_each(sweep, ["L1H2", "L0_MLP"])
    assert table["component"].tolist() == ["L1H2"] * len(brute.PROMPTS) + ["L0_MLP"] * len(brute.PROMPTS)
    for _, rows in table.groupby("component"):
        assert rows["prompt_id"].tolist() == [prompt.id for prompt in brute.PROMPTS]
        assert np.array_equal(rows["delta_source"], sweep.source.delta)
        assert np.array_equal(rows["delta_target"], sweep.target.delta)
    assert (table["positions"] == "all").all() and (table["mode"] == "input").all()


def test_what_is_the_same_in_both_models_is_not_run(pair, monkeypatch):
    """To the bit: such a row is the target, and no forward pass is spent on it."""
    model, _, _, target, _ = pair
    sweep, counts = patching.Sweep(model, target, target), []
    real = patching.Sweep.deltas

    def counted(self, tree, rows, start):
        counts.append(len(rows))
        return real(self, tree, rows, start)

    monkeypatch.setattr(patching.Sweep, "deltas", counted)
    table, _ = patching.patch_each(sweep, ["L0H1", "L2_MLP"], draws=0)
    assert (table["effect"] == 0).all() and not table["flip"].any()
    positive = len(target.trees)  # the positive controls come first
    assert sum(counts[:positive]) > 0 and sum(counts[positive:]) == 0


def test_every_layer_draws_as_many_random_patches(pair):
    """Reproducible, another one for another seed, and ``draws`` for every layer, whatever the number of trees."""
    nulls = []
    for seed in (0, 0, 1):
        _, controls = patching.patch_each(sweep_of(pair), draws=6, seed=seed)
        nulls.append(controls[controls["control"] == "random"].reset_index(drop=True))
    assert nulls[0].equals(nulls[1]) and not nulls[0].equals(nulls[2])
    assert (nulls[0].groupby("layer").size() >= 6).all() and set(nulls[0]["layer"]) == {0, 1, 2}


@pytest.mark.parametrize("draws", [1, 5, 7])
def test_draws_go_to_the_trees_of_a_layer_in_turn(pair, draws, monkeypatch):
    monkeypatch.setattr(recording, "TREE_NODES", 150)
    everyone = range(len(brute.PROMPTS))
    sweep = sweep_of(pair).select(everyone)
    drawn = []
    monkeypatch.setattr(
        patching.controls, "random_patches", lambda sweep, tree, here, count, seed: drawn.append(count) or []
    )
    patching.patch_each(sweep, ["L0H0", "L1H0", "L2H0"], draws=draws)
    trees = len(sweep.target.trees)
    per_layer = np.array(drawn).reshape(3, trees)
    assert trees > 1 and (per_layer.sum(axis=1) == draws).all()
    for start, counts in enumerate(per_layer):
        due = [sum((i + start) % trees == t for i in range(draws)) for t in range(trees)]
        assert counts.tolist() == due


def test_bad_requests_are_refused(pair):
    for names, why in ((["L0H9"], "Unknown component 'L0H9'.*L0H"), (["L9_MLP"], "Unknown component 'L9_MLP'")):
        with pytest.raises(RewiredError, match=why):
            patching.patch_each(sweep_of(pair), names)
    with pytest.raises(RewiredError, match="Unknown positions 'last'"):
        sweep_of(pair, positions="last")
    with pytest.raises(RewiredError, match="Unknown mode 'in'"):
        sweep_of(pair, mode="in")


# --- sets ------------------------------------------------------------------------------------------------------------


def test_all_heads_together_are_the_attention_layer(pair):
    sets = {"heads": [f"L1H{h}" for h in range(8)], "layer": ["L1_ATTN"]}
    for positions in recording.POSITIONS:
        table = patching.patch_together(sweep_of(pair, positions, "output"), sets)
        table = table.pivot(index="prompt_id", columns="set", values="delta_patched")
        assert (table["heads"] - table["layer"]).abs().max() < 5e-6


def test_sets_and_their_share(pair):
    model, tokenizer, _, _, seen_by = pair
    sweep, chosen = sweep_of(pair), ["L0H3", "L1_MLP", "L2H0"]
    table = patching.patch_together(sweep, {"three": chosen, "none": []})
    for prompt in brute.PROMPTS[:3]:
        seen = seen_by[prompt.id]
        changes = [("mlp_out", 1, SLICE, SLICE, seen["mlp_out", 1])]
        for layer, head in ((0, 3), (2, 0)):
            columns = slice(8 * head, 8 * head + 8)
            changes.append(("z", layer, columns, SLICE, seen["z", layer][:, columns]))
        mine = table.query("prompt_id == @prompt.id and set == 'three'").iloc[0]
        assert mine["delta_patched"] == pytest.approx(brute.patched(model, tokenizer, prompt, changes), abs=5e-6)
        gap = mine["delta_source"] - mine["delta_target"]
        assert mine["recovered"] == pytest.approx(mine["effect"] / gap) and mine["size"] == 3
    assert table.query("set == 'none'")["effect"].abs().max() < 5e-6
    everything = [component.name for component in patching.components(model)]
    whole = patching.patch_together(sweep_of(pair, mode="output"), {"all": everything})
    assert np.allclose(whole["recovered"], 1, atol=1e-3)


def test_where_source_and_target_agree_to_the_bit_no_share_is_recovered(pair):
    model, _, _, target, _ = pair
    table = patching.patch_together(patching.Sweep(model, target, target), {"one": ["L1_MLP"]})
    assert table["recovered"].isna().all()


@pytest.mark.parametrize("positions", ["all", "decision"])
def test_the_interaction_of_two_patches_is_what_whole_passes_say(pair, positions):
    model, tokenizer, _, _, seen_by = pair
    table = patching.pairwise(sweep_of(pair, positions, "output"), ["L0_MLP", "L1_ATTN", "L2_MLP"])
    table = table.set_index(["prompt_id", "one", "other"])
    assert len(table) == 3 * len(brute.PROMPTS)
    rows = SLICE if positions == "all" else slice(-1, None)
    for k, (one, other) in enumerate([("L0_MLP", "L1_ATTN"), ("L0_MLP", "L2_MLP"), ("L1_ATTN", "L2_MLP")]):
        prompt = brute.PROMPTS[k]
        seen, own = seen_by[prompt.id], brute.delta(model, tokenizer, prompt).item()
        edits = {}
        for component in recording.named(model, (one, other)):
            site = (f"{component.kind}_out", component.layer)
            edits[component.name] = (*site, SLICE, rows, seen[site])
        alone = [brute.patched(model, tokenizer, prompt, [edits[name]]) - own for name in (one, other)]
        both = brute.patched(model, tokenizer, prompt, list(edits.values())) - own
        row = table.loc[(prompt.id, one, other)]
        assert [row["effect_one"], row["effect_other"]] == pytest.approx(alone, abs=5e-6)
        assert row["effect_both"] == pytest.approx(both, abs=5e-6)
        assert row["interaction"] == pytest.approx(both - sum(alone), abs=1e-5)
        assert abs(both - sum(alone)) > 1e-3, "the planted weights interact"


def test_a_component_does_not_interact_with_one_inside_it(pair):
    for names in (["L1_ATTN", "L1H0"], ["L0_RESID", "L2_MLP"], ["L0_MLP", "L0_MLP"]):
        with pytest.raises(RewiredError, match="contains the other"):
            patching.pairwise(sweep_of(pair, mode="output"), names)


# --- circuits --------------------------------------------------------------------------------------------------------


def test_greedy_tries_every_candidate_anew(pair):
    sweep = sweep_of(pair, mode="output")
    disagree = (sweep.source.delta > 0) != (sweep.target.delta > 0)
    candidates = [component.name for component in patching.components(sweep.parts, ("attn", "mlp"))]
    table = patching.greedy(sweep, candidates)
    assert set(table["prompt_id"]) == {p.id for p, d in zip(brute.PROMPTS, disagree, strict=True) if d}
    assert disagree.any()
    for prompt_id, steps in table.groupby("prompt_id"):
        i = [prompt.id for prompt in brute.PROMPTS].index(prompt_id)
        alone, chosen = sweep.select([i]), []
        for step in steps.itertuples():
            sets = {name: [*chosen, name] for name in candidates if name not in chosen}
            tried = patching.patch_together(alone, sets).set_index("set")["delta_patched"]
            best = (tried * np.sign(step.delta_source - step.delta_target)).idxmax()
            assert step.component == best and step.delta_patched == pytest.approx(tried[best], abs=5e-6)
            assert step.effect == step.delta_patched - step.delta_target
            chosen.append(best)
        assert list(steps["flip"])[:-1] == [False] * (len(steps) - 1) and steps["flip"].iloc[-1]


def test_a_circuit_ends_at_its_limit_and_where_nothing_helps(pair):
    sweep = sweep_of(pair, mode="output")
    limited = patching.greedy(sweep, [f"L{k}H0" for k in range(3)], limit=1)
    assert limited["step"].eq(1).all()
    alone = patching.patch_together(sweep, {f"L{k}H{h}": [f"L{k}H{h}"] for k in range(3) for h in range(8)})
    alone = alone[(alone["delta_source"] > 0) != (alone["delta_target"] > 0)]
    closer = alone["effect"] * np.sign(alone["delta_source"] - alone["delta_target"]) > 0
    name = alone.loc[~closer, "set"].iloc[0]  # on some prompt this head moves delta away
    circuits = patching.greedy(sweep, [name])
    assert set(circuits["prompt_id"]) == set(alone.loc[closer & (alone["set"] == name), "prompt_id"])


def test_models_that_agree_have_no_circuits(pair):
    model, _, _, target, _ = pair
    table = patching.greedy(patching.Sweep(model, target, target), ["L0H0"])
    assert table.empty and {"prompt_id", "step", "component", "delta_patched", "flip"} <= set(table.columns)


# --- attribution patching --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["input", "output"])
def test_attribution_patching_is_a_gradient(pair, mode, monkeypatch):
    """Against autograd through hooks: d delta / d activation, times source minus target."""
    model, tokenizer, _, _, seen_by = pair
    monkeypatch.setattr(patching, "GRADIENTS", 3)
    tables = {}
    for positions in recording.POSITIONS:
        table = patching.attribution_patching(sweep_of(pair, positions, mode), recording.KINDS)
        tables[positions] = table.set_index(["prompt_id", "component"])["estimate"]
    for prompt in brute.PROMPTS[:2]:
        seen, live = seen_by[prompt.id], {}
        own = brute.everything(model, tokenizer, prompt)
        places = {
            (s, k): brute.place(model, s, k) for s in ("z", "attn_out", "mlp_out", "resid_post") for k in range(3)
        }

        def keep(name, live=live):
            return lambda tensor: live.setdefault(
                name, tensor.detach().clone().requires_grad_() if name == 0 else tensor
            )

        edits = [(*brute.place(model, "resid_pre", 0), keep(0))] + [(*p, keep(name)) for name, p in places.items()]
        with brute.editing(*edits):
            delta = brute.delta(model, tokenizer, prompt)
        gradient = dict(zip(places, torch.autograd.grad(delta, [live[name] for name in places]), strict=True))
        for component in patching.components(model, recording.KINDS):
            k, h = component.layer, component.head
            if component.kind == "head" and mode == "output":
                product = (seen["head_out", k, h] - own["head_out", k, h]) * gradient["attn_out", k][0]
            elif component.kind == "head":
                part = slice(8 * h, 8 * h + 8)
                product = ((seen["z", k] - own["z", k]) * gradient["z", k][0])[:, part]
            else:
                site = "resid_post" if component.kind == "resid" else f"{component.kind}_out"
                product = (seen[site, k] - own[site, k]) * gradient[site, k][0]
            assert tables["all"][prompt.id, component.name] == pytest.approx(product.sum().item(), abs=1e-4)
            assert tables["decision"][prompt.id, component.name] == pytest.approx(product[-1].sum().item(), abs=1e-4)
