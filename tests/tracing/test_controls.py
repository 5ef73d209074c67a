"""What stops a sweep, and the null that it carries along."""

import importlib
import re

import brute
import pytest
import torch

from rewired.errors import RewiredError
from rewired.tracing import controls, patching
from rewired.tracing.recording import Component, Sweep


def test_the_positive_controls_give_what_is_due(pair):
    model, _, source, target, _ = pair
    for positions in ("all", "decision"):
        table = controls.positive_controls(Sweep(model, source, target, positions))
        patched = table.set_index(["control", "prompt_id"])["delta_patched"]
        for i, prompt in enumerate(brute.PROMPTS):
            assert patched["unpatched", prompt.id] == pytest.approx(target.delta[i], abs=5e-6)
            for control in ("outputs", "residual"):
                assert patched[control, prompt.id] == pytest.approx(source.delta[i], abs=1e-4)
        assert len(table) == 3 * len(brute.PROMPTS)


def test_a_self_patch_changes_nothing_at_all(pair):
    model, _, source, target, _ = pair
    for layer in range(3):
        for positions in ("all", "decision"):
            table = controls.self_patch(
                Sweep(model, source, target, positions), ["attn", "head", "mlp", "resid"], layer
            )
            assert (table["error"] == 0).all() and (table["prompt_id"] == brute.PROMPTS[layer].id).all()
            assert list(table["component"]) == [f"L{layer}_{kind}" for kind in ("ATTN", "HEAD", "MLP", "RESID")]


def test_random_patches_have_the_length_of_the_difference(pair):
    """Same norm at each position, another direction; reproducible, and drawn for every layer."""
    model, _, source, target, _ = pair
    sweep = Sweep(model, source, target)
    tables = [patching.patch_each(sweep, draws=6, seed=seed)[1] for seed in (0, 0, 1)]
    nulls = [table[table["control"] == "random"].reset_index(drop=True) for table in tables]
    assert nulls[0].equals(nulls[1]) and not nulls[0].equals(nulls[2])
    assert (nulls[0].groupby("layer").size() >= 6).all() and set(nulls[0]["layer"]) == {0, 1, 2}
    tree = target.trees[0]
    drawn = controls.random_patches(sweep, tree, [Component(1, "mlp")], 2, 0)
    own, there = target.mlp_out[1, tree.nodes], source.mlp_out[1, tree.nodes]
    assert len(drawn) == 2
    for _, [patch] in drawn:
        assert torch.allclose((patch.value - own).norm(dim=-1), (there - own).norm(dim=-1), rtol=1e-3, atol=1e-5)
        cosine = torch.cosine_similarity(patch.value - own, there - own, dim=-1)
        assert cosine.abs().mean() < 0.5


@pytest.mark.parametrize("mode", ["input", "output"])
@pytest.mark.parametrize("positions", ["all", "decision"])
def test_every_patch_is_recomputed_by_a_whole_pass(pair, positions, mode):
    model, _, source, target, _ = pair
    sweep = Sweep(model, source, target, positions, mode)
    chosen = [Component(0, "head", 3), Component(1, "mlp"), Component(2, "attn"), Component(1, "resid")]
    patches = patching.patch_each(sweep, chosen, share=0)[0]
    table = controls.recomputed(sweep, patches, chosen, 1.0, 0)
    assert len(table) == len(patches) and table["error"].abs().max() < 5e-6
    assert (patches["effect"].abs() > 1e-5).mean() > 0.9


def test_a_damaged_recording_stops_the_sweep(pair):
    model, _, source, target, _ = pair
    everyone = range(len(brute.PROMPTS))
    for site, why in (("mlp_out", "'outputs'"), ("resid", "'residual'")):
        damaged = source.select(everyone)
        getattr(damaged, site)[-1] += 0.1
        with pytest.raises(RewiredError, match=f"cannot be trusted.*{why}"):
            patching.patch_each(Sweep(model, damaged, target), ["L0H0"])
    damaged = target.select(everyone)
    damaged.resid[1:] += 0.1
    with pytest.raises(RewiredError, match="cannot be trusted"):
        patching.patch_each(Sweep(model, source, damaged), [f"L1H{h}" for h in range(8)], share=0.2)


def test_the_error_names_what_exists(pair):
    """Every dotted name in the advice can be imported."""
    model, _, source, target, _ = pair
    sweep = Sweep(model, source, target)
    table = controls.positive_controls(sweep)
    table.loc[table["control"] == "outputs", "error"] = 1.0
    with pytest.raises(RewiredError) as caught:
        controls.require(table, sweep)
    names = re.findall(r"`(rewired[\w.]+)`", str(caught.value))
    assert names == ["rewired.tracing.packed", "rewired.tracing.edit.intervene"]
    importlib.import_module(names[0])
    module, _, function = names[1].rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


def test_what_is_allowed_grows_with_the_logits(pair):
    """The same error passes at large logits and not at small ones; NaN never passes."""
    model, _, source, target, _ = pair
    sweep = Sweep(model, source, target).select([0])
    table = controls.positive_controls(sweep)
    table.loc[table["control"] == "unpatched", "error"] = 2e-5
    with pytest.raises(RewiredError, match="'unpatched' is off by 2e-05"):
        controls.require(table, sweep)
    sweep.target.logit[:] = 25.0
    assert controls.require(table, sweep) is table
    table["error"] = float("nan")
    with pytest.raises(RewiredError, match="off by nan"):
        controls.require(table, sweep)


def test_a_source_that_differs_elsewhere_is_refused(tmp_path):
    """Tuned norms: the source's outputs no longer give its decision."""
    model, tokenizer, switch = brute.gemma(tmp_path)
    source = patching.record(switch("one"), tokenizer, brute.PROMPTS[:2])
    model.model.layers[1].post_feedforward_layernorm.weight.data += 0.5
    target = patching.record(switch("two"), tokenizer, brute.PROMPTS[:2])
    with pytest.raises(RewiredError, match="'outputs'.*on a norm"):
        patching.patch_each(Sweep(model, source, target), ["L0H0"])
