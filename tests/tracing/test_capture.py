"""Sites, what is read there, and models that are refused."""

import brute
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from rewired.errors import RewiredError
from rewired.tracing import capture
from rewired.tracing.anatomy import SITES, anatomy, chosen_layers


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return brute.gemma(tmp_path_factory.mktemp("gemma"))


def test_every_site_is_what_a_hook_sees(gemma, monkeypatch):
    monkeypatch.setattr(capture, "BATCH_SIZE", 3)
    model, tokenizer, switch = gemma
    switch("one")
    rows = [brute.row(tokenizer, prompt)[0][0].tolist() for prompt in brute.PROMPTS]
    positions = [[3, 40, len(row) - 1] for row in rows]
    found = capture.capture(model, rows, SITES, positions)
    assert found["z"].shape == (3, 3 * len(rows), 8, 8) and found["resid_final"].shape == (1, 3 * len(rows), 32)
    for i, prompt in enumerate(brute.PROMPTS):
        for layer in range(3):
            seen = brute.see(model, tokenizer, prompt, {s: brute.place(model, s, layer) for s in SITES})
            for site, value in seen.items():
                mine = found[site][0 if site == "resid_final" else layer, 3 * i : 3 * i + 3].flatten(1)
                assert (mine - value[positions[i]]).abs().max() < 1e-5, site


def test_nothing_is_computed_after_the_last_chosen_layer(gemma):
    model, tokenizer, switch = gemma
    switch("one")
    rows = [brute.row(tokenizer, prompt)[0][0].tolist() for prompt in brute.PROMPTS[:3]]
    whole, passed = capture.capture(model, rows, ("resid_pre", "z", "resid_final")), []
    hooks = []
    for k, layer in enumerate(anatomy(model).decoder.layers):
        hooks.append(layer.mlp.register_forward_hook(lambda *_, k=k: passed.append(k)))
    some = capture.capture(model, rows, ("resid_pre", "z"), layers=[1, 0])
    assert set(passed) == {0}, "the second layer's MLP stands after all that is asked for"
    final = capture.capture(model, rows, ("resid_pre", "resid_final"), layers=[])
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(some[site], whole[site][[1, 0]]) for site in some)
    assert final["resid_pre"].shape[0] == 0 and torch.equal(final["resid_final"], whole["resid_final"])


def test_read_out_is_the_models_decision(gemma):
    model, tokenizer, switch = gemma
    switch("two")
    parts, encoded = anatomy(model), capture.encode(tokenizer, brute.PROMPTS)
    steps = [[len(row) - 1] for row in encoded.rows]
    hidden = capture.capture(model, encoded.rows, ("resid_final",), steps)["resid_final"][0]
    delta, raw = capture.read_out(parts, hidden, encoded)
    cap = model.config.final_logit_softcapping
    for i, prompt in enumerate(brute.PROMPTS):
        assert delta[i].item() == pytest.approx(brute.delta(model, tokenizer, prompt).item(), abs=1e-5)
        ids, step = brute.row(tokenizer, prompt)
        logits = cap * torch.atanh(model(ids).logits[0, -1].double() / cap)
        assert raw[i].item() == pytest.approx((logits[step.defect_id] - logits[step.cooperate_id]).item(), abs=1e-4)


def test_what_cannot_be_traced_is_refused(gemma):
    model, tokenizer, _ = gemma
    small = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    mixture = MixtralForCausalLM(MixtralConfig(**small, num_key_value_heads=2, num_local_experts=2))
    for odd, why in ((gpt2, "GPT2LMHeadModel.*no decoder"), (mixture, "MixtralForCausalLM.*lacks")):
        with pytest.raises(RewiredError, match=why):
            anatomy(odd)
    with pytest.raises(RewiredError, match="Unknown site 'resid_per'.*resid_pre"):
        capture.capture(model, [[1, 2]], ("resid_per",))
    with pytest.raises(RewiredError, match="no layer 7.*0 to 2"):
        chosen_layers(anatomy(model), [7])
    with pytest.raises(RewiredError, match="positions 0 to 1"):
        capture.capture(model, [[1, 2]], ("z",), [[2]])
    with pytest.raises(RewiredError, match="no prompts"):
        capture.encode(tokenizer, [])
    with pytest.raises(RewiredError, match="no single decision step"):
        capture.encode(tokenizer, brute.PROMPTS, ("red", "green"))
