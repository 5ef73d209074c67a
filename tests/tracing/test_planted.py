"""A planted truth in the pocket model: an adapter on one component is found where it was put, and nowhere before."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rewired import models, profiles
from rewired.prompts import scenario_set
from rewired.tracing import attribution, capture, patching, recording

PROMPTS = [p for p in scenario_set() if p.wording in ("story", "named")][:6:2]


def plant(layer: int | None, modules: list[str]):
    """The pocket base (target) and the same with an adapter that moves delta by more than one logit (source); layer
    None is the last. Returns (model, tokenizer, layer, switch)."""
    model, tokenizer = models.load_base(profiles.load("pocket"))
    layer = model.config.num_hidden_layers - 1 if layer is None else layer
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=modules, layers_to_transform=[layer])
    wrapped = get_peft_model(model, config, adapter_name="planted")
    encoded = capture.encode(tokenizer, PROMPTS)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    order, ids = capture.batches(encoded.rows, len(PROMPTS), "cpu")[0]
    last = torch.tensor([len(encoded.rows[i]) - 1 for i in order])
    before = None
    for _ in range(60):
        stream = model.model(input_ids=ids, output_hidden_states=True, use_cache=False)
        delta = logits_gap(model, stream.last_hidden_state[range(len(ids)), last], encoded.pick(order))
        before = delta.detach() if before is None else before
        if (delta - before).min() > 1.5:
            break
        (-delta.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)

    def switch(on: bool):
        (wrapped.base_model.enable_adapter_layers if on else wrapped.base_model.disable_adapter_layers)()
        return model

    return model, tokenizer, layer, switch


def logits_gap(model, hidden, encoded):
    weight, cap = model.lm_head.weight, model.config.final_logit_softcapping
    ids = (list(encoded.defect), list(encoded.cooperate))
    defect, cooperate = (cap * torch.tanh((hidden * weight[i]).sum(-1) / cap) for i in ids)
    return defect - cooperate


KINDS = {
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "attn": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_component_carries_the_whole_difference(kind):
    model, tokenizer, layer, switch = plant(4, KINDS[kind])
    source = patching.record(switch(True), tokenizer, PROMPTS)
    target = patching.record(switch(False), tokenizer, PROMPTS)
    assert (source.delta - target.delta > 1).all()
    chosen = recording.components(model, ("head", "mlp", "attn"))
    table, _ = patching.patch_each(patching.Sweep(model, source, target, mode="output"), chosen)
    name = f"L{layer}_{kind.upper()}"
    found = table[table["component"] == name]
    assert np.allclose(found["delta_patched"], source.delta, atol=1e-4)
    earlier = (table["layer"] < layer) | ((table["layer"] == layer) & (kind == "mlp") & (table["kind"] != "mlp"))
    assert table[earlier]["effect"].abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_planted_in_the_last_layer_it_ranks_first_in_attribution(kind):
    model, tokenizer, layer, switch = plant(None, KINDS[kind])
    shares = []
    for on in (True, False):
        table, closure = attribution.contributions(switch(on), tokenizer, PROMPTS)
        table = table.merge(closure[["prompt_id", "scale"]], on="prompt_id")
        layers = "L" + table["layer"].astype(str) + "_ATTN"
        table["part"] = layers.where(table["kind"] == "head", table["component"])
        table["unscaled"] = table["raw"] / table["scale"]
        shares.append(table.groupby("part")["unscaled"].sum())
    change = (shares[0] - shares[1]).abs()
    assert change.idxmax() == f"L{layer}_{kind.upper()}"
