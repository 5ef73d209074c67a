"""Patches against whole runs with hooks, the controls, sets, circuits, gradients, other decoders."""

from contextlib import contextmanager

import brute
import numpy as np
import pytest
import tiny
import torch
import transformers

from rewired.errors import RewiredError
from rewired.tracing import controls as checks
from rewired.tracing import patching, recording
from rewired.tracing.packed import plant

SLICE = slice(None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(model switched to the target, tokenizer, source, target) of a random Gemma-2."""
    model, tokenizer, switch = brute.gemma(tmp_path_factory.mktemp("gemma"))
    return recorded(model, tokenizer, switch)


def recorded(model, tokenizer, switch, prompts=brute.PROMPTS):
    source = patching.record(switch("one"), tokenizer, prompts)
    seen = {p.id: everything(model, tokenizer, p) for p in prompts}
    target = patching.record(switch("two"), tokenizer, prompts)
    source.seen = seen  # what hooks saw in the source
    return model, tokenizer, source, target


def everything(model, tokenizer, prompt):
    sites = ("z", "attn_out", "mlp_out", "resid_post")
    depth = len(model.model.layers)
    seen = brute.see(model, tokenizer, prompt, {(s, k): brute.place(model, s, k) for s in sites for k in range(depth)})
    for k, block in enumerate(model.model.layers):  # each head's own output, by the source's o_proj
        z, o = seen["z", k], block.self_attn.o_proj
        width = block.self_attn.head_dim
        for h in range(z.shape[-1] // width):
            alone = torch.zeros_like(z)
            alone[:, width * h : width * h + width] = z[:, width * h : width * h + width]
            with torch.no_grad():
                seen["head_out", k, h] = o(alone)
    return seen


def due(pair, prompt, component, positions, mode) -> float:
    """delta of one patch: the whole target, one prompt, hooks."""
    model, tokenizer, source, _ = pair
    seen, rows = source.seen[prompt.id], SLICE if positions == "all" else slice(-1, None)
    layer, head, width = component.layer, component.head, model.model.layers[0].self_attn.head_dim
    if component.kind != "head":
        site = "resid_post" if component.kind == "resid" else f"{component.kind}_out"
        return brute.patched(model, tokenizer, prompt, [(site, layer, SLICE, rows, seen[site, layer])])
    columns = slice(width * head, width * head + width)
    if mode == "input":
        return brute.patched(model, tokenizer, prompt, [("z", layer, columns, rows, seen["z", layer][:, columns])])
    own = brute.see(model, tokenizer, prompt, {"z": brute.place(model, "z", layer)})["z"]
    rest = own.clone()
    rest[:, columns] = 0
    with torch.no_grad():
        value = model.model.layers[layer].self_attn.o_proj(rest) + seen["head_out", layer, head]
    return brute.patched(model, tokenizer, prompt, [("attn_out", layer, SLICE, rows, value)])


@pytest.mark.parametrize("mode", ["input", "output"])
@pytest.mark.parametrize("positions", ["all", "decision"])
def test_every_patch_is_a_whole_run_with_hooks(pair, positions, mode):
    model, tokenizer, source, target = pair
    wanted = patching.components(model, recording.KINDS)
    table, controls = patching.sweep(model, source, target, wanted, positions, mode)
    assert len(table) == len(wanted) * len(brute.PROMPTS) and len(wanted) == 3 * (8 + 3)
    assert table["effect"].abs().median() > 1e-3
    by_name = table.set_index(["prompt_id", "component"])
    for k, component in enumerate(wanted):
        prompt = brute.PROMPTS[k % len(brute.PROMPTS)]
        mine = by_name.loc[(prompt.id, component.name)]
        assert mine["delta_patched"] == pytest.approx(due(pair, prompt, component, positions, mode), abs=5e-6)
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


def test_deltas_are_those_of_the_models(pair):
    model, tokenizer, source, target = pair
    for i, prompt in enumerate(brute.PROMPTS):
        assert target.delta[i] == pytest.approx(brute.delta(model, tokenizer, prompt).item(), abs=5e-6)
    assert abs(source.delta - target.delta).min() > 1e-3


def test_random_patches_have_the_length_of_the_difference(pair):
    """Same norm at each position, another direction; reproducible, and drawn for every layer."""
    model, _, source, target = pair
    tables = [patching.sweep(model, source, target, draws=6, seed=s)[1] for s in (0, 0, 1)]
    nulls = [t[t["control"] == "random"].reset_index(drop=True) for t in tables]
    assert nulls[0].equals(nulls[1]) and not nulls[0].equals(nulls[2])
    assert (nulls[0].groupby("layer").size() >= 6).all() and set(nulls[0]["layer"]) == {0, 1, 2}
    tree, parts = target.trees[0], patching.anatomy(model)
    taken = []
    real, checks.patched_deltas = checks.patched_deltas, lambda *a, **k: taken.append(a[3]) or real(*a, **k)
    try:
        wanted = [patching.Component(1, "mlp")]
        checks.random_patches(parts, tree, source, target, wanted, "all", "input", 2, 0)
    finally:
        checks.patched_deltas = real
    own, there = target.mlp_out[1, tree.nodes], source.mlp_out[1, tree.nodes]
    for [patch] in taken[0]:
        assert torch.allclose((patch.value - own).norm(dim=-1), (there - own).norm(dim=-1), rtol=1e-3, atol=1e-5)
        cosine = torch.cosine_similarity(patch.value - own, there - own, dim=-1)
        assert cosine.abs().mean() < 0.5


def test_all_heads_together_are_the_attention_layer(pair):
    model, _, source, target = pair
    sets = {"heads": [f"L1H{h}" for h in range(8)], "layer": ["L1_ATTN"]}
    for positions in recording.POSITIONS:
        table = patching.patch_together(model, source, target, sets, positions).pivot(
            index="prompt_id", columns="set", values="delta_patched"
        )
        assert (table["heads"] - table["layer"]).abs().max() < 5e-6


def test_sets_and_their_share(pair):
    model, tokenizer, source, target = pair
    chosen = ["L0H3", "L1_MLP", "L2H0"]
    table = patching.patch_together(model, source, target, {"three": chosen, "none": []}, mode="input")
    for prompt in brute.PROMPTS[:3]:
        seen = source.seen[prompt.id]
        changes = [("mlp_out", 1, SLICE, SLICE, seen["mlp_out", 1])]
        for layer, head in ((0, 3), (2, 0)):
            columns = slice(8 * head, 8 * head + 8)
            changes.append(("z", layer, columns, SLICE, seen["z", layer][:, columns]))
        mine = table.query("prompt_id == @prompt.id and set == 'three'").iloc[0]
        assert mine["delta_patched"] == pytest.approx(brute.patched(model, tokenizer, prompt, changes), abs=5e-6)
        gap = mine["delta_source"] - mine["delta_target"]
        assert mine["recovered"] == pytest.approx(mine["effect"] / gap) and mine["size"] == 3
    assert table.query("set == 'none'")["effect"].abs().max() < 5e-6
    everything = [c.name for c in patching.components(model)]
    whole = patching.patch_together(model, source, target, {"all": everything})
    assert np.allclose(whole["recovered"], 1, atol=1e-3)


def test_a_ladder_of_sets():
    sets = patching.ladder(["a", "b", "c"], sizes=(1, 3), draws=2)
    assert sets["top-1"] == ["a"] and sets["top-3"] == ["a", "b", "c"] and len(sets) == 6
    assert sorted(sets["random-3-1"]) == ["a", "b", "c"]
    with pytest.raises(RewiredError, match="4 components.*only 3"):
        patching.ladder(["a", "b", "c"], sizes=(4,))


def test_greedy_tries_every_candidate_anew(pair):
    model, _, source, target = pair
    disagree = (source.delta > 0) != (target.delta > 0)
    candidates = [c.name for c in patching.components(model, ("attn", "mlp"))]
    table = patching.greedy(model, source, target, candidates)
    assert set(table["prompt_id"]) == {p.id for p, d in zip(brute.PROMPTS, disagree, strict=True) if d}
    assert disagree.any()
    for prompt_id, steps in table.groupby("prompt_id"):
        i = [p.id for p in brute.PROMPTS].index(prompt_id)
        here, there = target.select([i]), source.select([i])
        chosen = []
        for step in steps.itertuples():
            tried = patching.patch_together(
                model, there, here, {c: [*chosen, c] for c in candidates if c not in chosen}
            ).set_index("set")["delta_patched"]
            best = (tried * np.sign(source.delta[i] - target.delta[i])).idxmax()
            assert step.component == best and step.delta_patched == pytest.approx(tried[best], abs=5e-6)
            chosen.append(best)
        assert list(steps["flip"])[:-1] == [False] * (len(steps) - 1) and steps["flip"].iloc[-1]


@pytest.mark.parametrize("mode", ["input", "output"])
def test_the_screen_is_a_gradient(pair, mode):
    """Against autograd through hooks: d delta / d activation, times source minus target."""
    model, tokenizer, source, target = pair
    tables = {p: patching.screen(model, source, target, recording.KINDS, p, mode, 3) for p in recording.POSITIONS}
    tables = {p: table.set_index(["prompt_id", "component"])["estimate"] for p, table in tables.items()}
    for prompt in brute.PROMPTS[:2]:
        seen, live = source.seen[prompt.id], {}
        own = everything(model, tokenizer, prompt)
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


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_trees_hold_every_row_once(limit):
    rows = [(2, 3, 4, 5), (2, 3, 4, 6), (2, 3, 4, 5), (7,), (2, 3), (2, 3, 4, 5, 8)]
    trees, order, owned = plant(rows, limit)
    tokens = [rows[i][p] for i, positions in zip(order, owned, strict=True) for p in positions]
    leaves = []
    for tree in trees:
        for i, path in zip(tree.prompts, tree.paths, strict=True):
            assert tuple(tokens[tree.first + n] for n in path.tolist()) == rows[i]
            assert tree.depth_of[path].tolist() == list(range(len(rows[i])))
        leaves += (tree.first + tree.leaf).tolist()
        for path, leaf in ((path, leaf) for path in tree.paths for leaf in tree.leaf.tolist()):
            assert leaf not in path[:-1].tolist()
    assert len(set(leaves)) == len(rows) and sorted(i for t in trees for i in t.prompts) == list(range(6))
    assert limit < 1000 or len(tokens) == 2 + 1 + 1 + 1 + 1 + 1 + 1 + 2


@pytest.mark.parametrize("size", [(150, 200), (5000, 100_000)])
def test_results_do_not_depend_on_how_they_are_packed(pair, size, monkeypatch):
    model, _, source, target = pair
    wanted = ["L0H1", "L1_MLP", "L1_RESID", "L2H7"]
    usual = patching.sweep(model, source, target, wanted)[0]
    monkeypatch.setitem(recording.TREE_NODES, "cpu", size[0])
    monkeypatch.setitem(recording.BUDGET, "cpu", size[1])
    everyone = range(len(brute.PROMPTS))
    packed = patching.sweep(model, source.select(everyone), target.select(everyone), wanted)[0]
    assert (usual["delta_patched"] - packed["delta_patched"]).abs().max() < 5e-6


# --- other decoders --------------------------------------------------------------------------------------------------

SMALL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=512, initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=1,
)  # fmt: skip
KINDS = ["full_attention", "sliding_attention", "full_attention"]
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 40}),
    "gemma3": (transformers.Gemma3TextConfig, {"sliding_window": 40, "layer_types": KINDS, "query_pre_attn_scalar": 8}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_decoders(family):
    config, extra = FAMILIES[family]
    tokenizer = tiny.tokenizer()
    torch.manual_seed(1)
    config = config(**SMALL, **extra, vocab_size=len(tokenizer), attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model, switch = brute.with_adapters(model)
    pair = recorded(model, tokenizer, switch, brute.PROMPTS[:3])
    wanted = patching.components(model, recording.KINDS)
    for positions in recording.POSITIONS:
        table = patching.sweep(pair[0], *pair[2:], wanted, positions)[0].set_index(["prompt_id", "component"])
        for k, component in enumerate(wanted):
            prompt = brute.PROMPTS[k % 3]
            mine = table.loc[(prompt.id, component.name), "delta_patched"]
            assert mine == pytest.approx(due(pair, prompt, component, positions, "input"), abs=5e-6)
    assert table["effect"].abs().max() > 1e-2


def test_half_precision_is_near(tmp_path):
    model, tokenizer, switch = brute.gemma(tmp_path)
    model.to(torch.bfloat16)
    source = patching.record(switch("one"), tokenizer, brute.PROMPTS[:3])
    target = patching.record(switch("two"), tokenizer, brute.PROMPTS[:3])
    table, controls = patching.sweep(model, source, target)
    assert (controls[controls["control"] == "self"]["error"] == 0).all() and table["effect"].abs().max() > 0.01


# --- what stops a sweep ----------------------------------------------------------------------------------------------


def test_a_damaged_recording_stops_the_sweep(pair):
    model, _, source, target = pair
    everyone = range(len(brute.PROMPTS))
    for site, why in (("mlp_out", "'outputs'"), ("resid", "'residual'")):
        damaged = source.select(everyone)
        getattr(damaged, site)[-1] += 0.1
        with pytest.raises(RewiredError, match=f"cannot be trusted.*{why}.*tracing.intervene"):
            patching.sweep(model, damaged, target, ["L0H0"])
    damaged = target.select(everyone)
    damaged.resid[1:] += 0.1
    with pytest.raises(RewiredError, match="cannot be trusted"):
        patching.sweep(model, source, damaged, [f"L1H{h}" for h in range(8)], share=0.2)


def test_a_source_that_differs_elsewhere_is_refused(tmp_path):
    """Tuned norms: the source's outputs no longer give its decision."""
    model, tokenizer, switch = brute.gemma(tmp_path)
    source = patching.record(switch("one"), tokenizer, brute.PROMPTS[:2])
    model.model.layers[1].post_feedforward_layernorm.weight.data += 0.5
    target = patching.record(switch("two"), tokenizer, brute.PROMPTS[:2])
    with pytest.raises(RewiredError, match="'outputs'.*on a norm"):
        patching.sweep(model, source, target, ["L0H0"])


def test_bad_requests_are_refused(pair):
    model, tokenizer, source, target = pair
    for arguments, why in (
        (dict(wanted=["L0H9"]), "Unknown component 'L0H9'.*L0H"),
        (dict(wanted=["L9_MLP"]), "Unknown component 'L9_MLP'"),
        (dict(positions="last"), "Unknown positions 'last'"),
        (dict(mode="in"), "Unknown mode 'in'"),
    ):
        with pytest.raises(RewiredError, match=why):
            patching.sweep(model, source, target, **arguments)
    with pytest.raises(RewiredError, match="kind of component 'heads'"):
        patching.components(model, ["heads"])
    with pytest.raises(RewiredError, match="same prompts"):
        patching.sweep(model, source.select([0]), target)


def test_two_variants_of_a_study(tmp_path):
    model, tokenizer, switch = brute.gemma(tmp_path)

    class Study:
        def __init__(self):
            self.tokenizer, self.active = tokenizer, None

        @contextmanager
        def variant(self, name, seed):
            assert self.active is None, "source and target are never on together"
            self.active = name, seed
            yield switch(name)
            self.active = None

    table, controls = patching.patch_pair(Study(), ("one", 1), ("two", 3), brute.PROMPTS[:2], wanted=["L1_MLP"])
    assert set(table["source"]) == {"one-1"} and set(controls["target"]) == {"two-3"} and len(table) == 2


@pytest.mark.parametrize("positions", ["all", "decision"])
def test_the_interaction_of_two_patches_is_what_whole_runs_say(pair, positions):
    model, tokenizer, source, target = pair
    wanted = ["L0_MLP", "L1_ATTN", "L2_MLP"]
    table = patching.pairwise(model, source, target, wanted, positions).set_index(["prompt_id", "one", "other"])
    assert len(table) == 3 * len(brute.PROMPTS)
    rows = SLICE if positions == "all" else slice(-1, None)
    for k, (one, other) in enumerate([("L0_MLP", "L1_ATTN"), ("L0_MLP", "L2_MLP"), ("L1_ATTN", "L2_MLP")]):
        prompt = brute.PROMPTS[k]
        seen, own = source.seen[prompt.id], brute.delta(model, tokenizer, prompt).item()
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
    model, _, source, target = pair
    for wanted in (["L1_ATTN", "L1H0"], ["L0_RESID", "L2_MLP"], ["L0_MLP", "L0_MLP"]):
        with pytest.raises(RewiredError, match="contains the other"):
            patching.pairwise(model, source, target, wanted)
