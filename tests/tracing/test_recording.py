"""Recordings, components, and what two recordings must share."""

from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

from rewired.errors import RewiredError
from rewired.tracing import recording
from rewired.tracing.anatomy import anatomy
from rewired.tracing.recording import Component, Sweep


def test_deltas_and_logits_are_those_of_the_model(pair):
    model, tokenizer, source, target, _ = pair
    for i, prompt in enumerate(brute.PROMPTS):
        assert target.delta[i] == pytest.approx(brute.delta(model, tokenizer, prompt).item(), abs=5e-6)
        ids, step = brute.row(tokenizer, prompt)
        with torch.no_grad():
            hidden = model.model(ids)[0][0, -1].double()  # after the final norm
        terms = (hidden * model.lm_head.weight[[step.cooperate_id, step.defect_id]].double()).abs().sum(-1)
        assert target.logit[i] == pytest.approx(terms.max().item(), abs=1e-4)
    assert abs(source.delta - target.delta).min() > 1e-3


def test_a_recording_of_some_prompts_holds_their_activations(pair):
    *_, source, _, seen = pair
    some = source.select([4, 1])
    assert some.encoded.prompts == (brute.PROMPTS[4], brute.PROMPTS[1])
    assert np.array_equal(some.delta, source.delta[[4, 1]]) and np.array_equal(some.logit, source.logit[[4, 1]])
    for i, prompt in enumerate((brute.PROMPTS[4], brute.PROMPTS[1])):
        values = some.at(some.path(i))
        for layer in range(3):
            for site in ("z", "attn_out", "mlp_out"):
                assert torch.allclose(values[site][layer].flatten(1), seen[prompt.id][site, layer], atol=1e-5)
            assert torch.allclose(values["resid"][layer + 1], seen[prompt.id]["resid_post", layer], atol=1e-5)


def test_a_heads_output_is_z_times_w_o(pair):
    *_, source, _, seen = pair
    prompt = brute.PROMPTS[2]
    values = source.at(source.path(2))
    for layer, head in ((0, 7), (2, 3)):
        output = values["z"][layer][:, head] @ source.w_o[layer, head]
        assert torch.allclose(output, seen[prompt.id]["head_out", layer, head], atol=1e-5)


def test_components_by_name(pair):
    model = pair[0]
    everything = recording.components(model, recording.KINDS)
    assert len(everything) == 3 * (8 + 3) and everything[0] == Component(0, "head", 0)
    assert recording.named(model, ["L2H7", Component(1, "mlp")]) == [Component(2, "head", 7), Component(1, "mlp")]
    assert [c.name for c in everything[8:11]] == ["L0_MLP", "L0_ATTN", "L0_RESID"]
    for names, why in ((["L0H9"], "Unknown component 'L0H9'.*L0H"), (["L9_MLP"], "Unknown component 'L9_MLP'")):
        with pytest.raises(RewiredError, match=why):
            recording.named(model, names)
    with pytest.raises(RewiredError, match="kind of component 'heads'"):
        recording.components(model, ["heads"])


def test_bad_sweeps_are_refused(pair):
    model, tokenizer, source, target, _ = pair
    with pytest.raises(RewiredError, match="Unknown positions 'last'"):
        Sweep(model, source, target, "last")
    with pytest.raises(RewiredError, match="Unknown mode 'in'"):
        Sweep(model, source, target, mode="in")
    with pytest.raises(RewiredError, match="same prompts"):
        Sweep(model, source.select([0]), target)


def test_the_tolerance_grows_with_the_logits(pair):
    model, _, _, target, _ = pair
    parts, some = anatomy(model), target.select([0, 1])
    some.logit[:] = [0.2, 30.0]
    assert some.tolerance(parts) == pytest.approx([5e-6, 3e-5])
    half = replace(parts, unembedding=parts.unembedding.bfloat16())
    assert some.tolerance(half) == pytest.approx([0.05, 0.3])
