"""Inputs that others met in this field: each gets the right number, or a paragraph that says what is missing.

Small random models and adapters; the reference is always the model's own forward pass."""

import json
from dataclasses import replace
from types import SimpleNamespace

import claim_cells
import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rewired import answers, decisions, games, models, play, profiles, prompts
from rewired.errors import RewiredError
from rewired.prompts import Labels, chat, held_out_set, scenario_set
from rewired.tracing import attribution, controls, patching, recording
from rewired.tracing.anatomy import anatomy
from rewired.train import reinforce

PROMPTS = scenario_set()[::20]
SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=1,
             max_position_embeddings=512)  # fmt: skip
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.3)


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


def made(kind, config, words, **changes):
    torch.manual_seed(0)
    shape = {**SHAPE, **changes} if kind is not GPT2LMHeadModel else {**GPT2, **changes}
    model = kind(config(vocab_size=len(words), **shape, attn_implementation="eager")).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        head.bias.data = torch.randn(len(words))
    return model


def own_delta(model, words, prompt) -> float:
    """From the model's own logits on the whole row."""
    step = decisions.decision_step(words, prompt.labels)
    ids = torch.tensor([[*chat(words, prompt), *step.prefix_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1].double()
    return (logits[step.defect_id] - logits[step.cooperate_id]).item()


# --- what stands between the hidden states and the logits ------------------------------------------------------------

HEADS = {
    "granite, divided": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}),
    "cohere, multiplied": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.0625}),
    "phi, a bias": (PhiForCausalLM, PhiConfig, {"num_key_value_heads": 4}),
    "gpt2, other names": (GPT2LMHeadModel, GPT2Config, {}),
}


@pytest.mark.parametrize("case", HEADS)
def test_measures_and_samples_are_the_models_own(words, case):
    kind, config, changes = HEADS[case]
    model = made(kind, config, words, **changes)
    table = decisions.measure(model, words, PROMPTS, 2, forms=False)
    for delta, prompt in zip(table["delta"], PROMPTS, strict=True):
        assert delta == pytest.approx(own_delta(model, words, prompt), abs=1e-4)
    context = chat(words, PROMPTS[0])
    with torch.no_grad():
        own = model(input_ids=torch.tensor([context])).logits[0, -1]
    [(_, _, capped)] = list(answers.answer_logits(model, [context], [(5,)]))
    assert torch.allclose(capped[0], own, atol=1e-4), "what `sample` draws from"


def test_an_adapter_on_the_head_is_refused_and_not_dropped(words):
    model = Gemma2ForCausalLM.from_pretrained(tiny.legal_base(), attn_implementation="eager").eval()
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    fresh = decisions.measure(wrapped, words, PROMPTS, forms=False)["delta"]  # B is 0: nothing to drop yet
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data.normal_()
    for reading in (decisions.measure, patching.record):
        with pytest.raises(RewiredError, match="output matrix.*lm_head.*linear modules of the layers"):
            reading(wrapped, words, PROMPTS)
    with wrapped.disable_adapter():
        assert decisions.measure(wrapped, words, PROMPTS, forms=False)["delta"].equals(fresh)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_what_stands_before_every_text_is_refused(words, kind, tmp_path):
    model = Gemma2ForCausalLM.from_pretrained(tiny.legal_base(), attn_implementation="eager").eval()
    wrapped = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(RewiredError, match="(PROMPT|PREFIX)_TUNING.*before every text.*LoRA"):
        decisions.measure(wrapped, words, PROMPTS)


# --- tracing what it knows -------------------------------------------------------------------------------------------


def test_shares_that_do_not_add_up_are_refused(words):
    """OLMo's norms take the mean out and have no weights; they bear the names of RMS norms."""
    model = made(OlmoForCausalLM, OlmoConfig, words)
    with pytest.raises(RewiredError, match="does not add up.*RMS norms"):
        attribution.contributions(model, words, PROMPTS)
    for kind, config, changes in (HEADS["granite, divided"], HEADS["phi, a bias"]):
        with pytest.raises(RewiredError, match="cannot be traced"):
            anatomy(made(kind, config, words, **changes))


BIASED = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}),
}


@pytest.mark.parametrize("family", BIASED)
def test_a_bias_of_o_proj_is_no_heads_and_has_a_share_of_its_own(words, family):
    """Every share by hand, from slices of the matrix: a head's without the bias, which each layer adds once."""
    kind, config, changes = BIASED[family]
    model = made(kind, config, words, attention_bias=True, **changes)
    seen = {}
    for layer, block in enumerate(model.model.layers):
        o_proj = block.self_attn.o_proj
        o_proj.bias.data = torch.randn(32)
        o_proj.register_forward_hook(lambda _, inputs, output, k=layer: seen.update({k: (inputs[0], output)}))
    model.model.norm.register_forward_hook(lambda _, inputs, output: seen.update(final=(inputs[0], output)))
    prompt, step = PROMPTS[0], decisions.decision_step(words, PROMPTS[0].labels)
    with torch.no_grad():
        own = own_delta(model, words, prompt)
    last = {place: [value[0, -1].double() for value in values] for place, values in seen.items()}
    table, closure = attribution.contributions(model, words, PROMPTS)
    assert closure["error"].abs().max() < 1e-4 and closure["delta"][0] == pytest.approx(own, abs=1e-4)
    final, normed = last["final"]  # before and after the norm: what it multiplies by, [d_model]
    head = model.lm_head.weight.double()
    u = (head[step.defect_id] - head[step.cooperate_id]) * normed / final
    mine = table[table["prompt_id"] == prompt.id].set_index("component")["raw"]
    for layer, block in enumerate(model.model.layers):
        z, out = last[layer]
        matrix, bias = block.self_attn.o_proj.weight.double(), block.self_attn.o_proj.bias.double()
        post = block.post_attention_layernorm(out.float()).double() / out if family == "gemma2" else 1
        for h in range(4):
            columns = slice(8 * h, 8 * h + 8)
            due = matrix[:, columns] @ z[columns] @ (post * u)
            assert mine[f"L{layer}H{h}"] == pytest.approx(due.item(), abs=1e-4)
        assert mine[f"L{layer}_BIAS"] == pytest.approx((bias @ (post * u)).item(), abs=1e-4)
    plain = made(kind, config, words, **changes)
    assert "bias" not in set(attribution.contributions(plain, words, PROMPTS)[0]["kind"])


@pytest.mark.parametrize("device", ["mps", "xpu", "cuda"])
def test_every_accelerator_has_a_batch_of_its_own(device):
    """A sweep asks for the size of a batch by the kind of device, and knew two."""
    tree = SimpleNamespace(depth_of=range(100), leaf=range(4))
    places = [SimpleNamespace(device=torch.device(kind)) for kind in ("cpu", device)]
    slow, fast = (recording.rows_at_once(parts, tree, False) for parts in places)
    assert 1 < slow < fast


@pytest.fixture(scope="module")
def sweep(words):
    """Two variants on several trees; labels whose logits are small sums of large terms."""
    model = Gemma2ForCausalLM.from_pretrained(tiny.legal_base(), attn_implementation="eager")
    model.eval().requires_grad_(False)
    before = recording.TREE_NODES
    recording.TREE_NODES = 150
    recordings = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.model.layers[0].mlp.down_proj.weight.data += 0.02 * torch.randn(32, 64)
        recordings.append(patching.record(model, words, scenario_set()[::9], ("J", "F")))
    recording.TREE_NODES = before
    return patching.Sweep(model, *recordings)


def test_the_error_of_a_control_is_told_with_several_trees(sweep):
    assert len(sweep.target.trees) > 1
    patches, checks = patching.patch_each(sweep, ["L0_MLP", "L1H0"], share=0.5)
    assert len(patches) and len(checks)
    for control in ("unpatched", "self", "outputs", "residual", "again"):
        wrong = checks.assign(error=checks["error"].where(checks["control"] != control, 9.0))
        with pytest.raises(RewiredError, match=f"control '{control}' is off by 9 logits at"):
            controls.require(wrong, sweep)


def test_what_is_allowed_grows_with_the_terms_and_not_with_their_sum(sweep):
    """Two labels whose own logits are small are rounded no better than others."""
    parts = sweep.parts
    cancelled = replace(sweep.target, logit=sweep.target.logit * 3)
    assert (cancelled.tolerance(parts) >= sweep.target.tolerance(parts)).all()
    final = torch.stack([sweep.target.resid[-1, sweep.target.path(i)[-1]] for i in range(len(sweep.target.delta))])
    signed = torch.stack(patching.read_out(parts, final, sweep.target.encoded)).abs().amax(0)
    assert (torch.as_tensor(sweep.target.logit) >= signed / 2).all()


# --- roll-outs -------------------------------------------------------------------------------------------------------

SMALL = {"training.episodes": 4, "training.batch_size": 10, "training.minibatches": 2, "training.ppo_epochs": 1,
         "training.log_every": 4, "training.learning_rate": 1e-2}  # fmt: skip


def trained(folder, base, monkeypatch, **overrides) -> bytes:
    monkeypatch.setattr(reinforce, "scenario_set", lambda labels: scenario_set(labels)[::20])
    monkeypatch.setattr(reinforce, "held_out_set", lambda labels: held_out_set(labels)[::8])
    profile = profiles.load("pocket", {"model.path": str(base), **SMALL, **overrides})
    return (reinforce.train(profile, "hybrid", 1, folder) / "adapter" / models.ADAPTER).read_bytes()


def copied(folder, words=None, **generation):
    """The legal base in another folder, with another tokenizer or other rules of generation."""
    model = Gemma2ForCausalLM.from_pretrained(tiny.legal_base())
    model.save_pretrained(folder)
    (words or PreTrainedTokenizerFast.from_pretrained(tiny.legal_base())).save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return folder


RULES = {"repetition_penalty": 3.0, "min_p": 0.9, "top_p": 0.2, "top_k": 1, "temperature": 0.1, "do_sample": True,
         "suppress_tokens": list(range(200, 300)), "no_repeat_ngram_size": 2, "min_new_tokens": 4}  # fmt: skip


def test_roll_outs_know_no_padding_token_and_no_rules_of_their_own(tmp_path, monkeypatch):
    """The same adapter, byte for byte, where the padding token ends turns and where the base has rules for sampling."""
    due = trained(tmp_path / "plain", copied(tmp_path / "a"), monkeypatch)
    ends = PreTrainedTokenizerFast.from_pretrained(tiny.legal_base())
    ends.pad_token = "<end_of_turn>"
    assert trained(tmp_path / "ends", copied(tmp_path / "b", ends), monkeypatch) == due
    assert trained(tmp_path / "ruled", copied(tmp_path / "c", **RULES), monkeypatch) == due


def test_a_live_game_knows_no_rules_of_a_checkpoint(tmp_path):
    """The chapter on behaviour asks one answer at a time: as often D as the metric says, whatever the base's rules."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny.legal_base())
    known = {"book": SimpleNamespace(tokenizer=tokenizer), "labels": Labels(), "game": games.get_game("stag_hunt")}
    known |= {"torch": torch, "prompts": prompts, "decisions": decisions, "games": games, "play": play}
    one_answer = claim_cells.defined("behaviour", "one_answer", **known)
    said = {}
    for name, rules in (("plain", {}), ("ruled", RULES)):
        model = Gemma2ForCausalLM.from_pretrained(copied(tmp_path / name, **rules)).eval()
        torch.manual_seed(0)
        said[name] = [one_answer(model, prompt) for prompt in PROMPTS[:2] for _ in range(50)]
    assert said["plain"] == said["ruled"] and {"C", "D"} <= set(said["plain"])
    measured = decisions.measure(model, tokenizer, PROMPTS[:2], forms=False)
    due = np.exp(measured["logp_defect"]).mean()
    assert said["ruled"].count("D") / 100 == pytest.approx(due, abs=4 * (due * (1 - due) / 100) ** 0.5)


def test_nobody_asks_by_the_rules_of_a_checkpoint():
    """`generate` fills in what a call does not name from generation_config.json; nothing of the book calls it."""
    files = [*claim_cells.ROOT.glob("lib/**/*.py"), *claim_cells.ROOT.glob("notebooks/**/*.ipynb")]
    assert [file.name for file in files if ".generate(" in file.read_text()] == []


def test_activations_computed_again_give_the_same_bytes(tmp_path, monkeypatch):
    due = trained(tmp_path / "kept", tiny.legal_base(), monkeypatch)
    assert trained(tmp_path / "again", tiny.legal_base(), monkeypatch, **{"training.recompute": True}) == due
