"""The same quantities by the shortest way: the whole model, one prompt, plain PyTorch hooks."""

from contextlib import ExitStack, contextmanager

import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2ForCausalLM

from rewired.decisions import decision_step
from rewired.prompts import chat, scenario_set
from rewired.tracing.recording import record

EIGHT = dict(num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=3)
PROMPTS = scenario_set()[::9]


def with_adapters(model, seed: int = 0):
    """Non-trivial norms, and two adapters ("one", "two") on every projection; returns the model and a switch."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), adapter_name="one")
    wrapped.add_adapter("two", LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn_like(weight)

    def switch(name):
        wrapped.set_adapter(name)
        model.requires_grad_(False)
        return model

    return model.eval(), switch


def gemma(folder):
    """(model, tokenizer, switch) of a random Gemma-2 with eight heads."""
    tiny.save(folder, **EIGHT)
    model, switch = with_adapters(Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager"))
    return model, tiny.tokenizer(), switch


def row(tokenizer, prompt):
    step = decision_step(tokenizer, prompt.labels)
    return torch.tensor([chat(tokenizer, prompt) + list(step.prefix_ids)]), step


def delta(model, tokenizer, prompt, at: int = -1) -> torch.Tensor:
    """Full logits of the whole sequence."""
    ids, step = row(tokenizer, prompt)
    logits = model(ids).logits[0, at].double()
    return logits[step.defect_id] - logits[step.cooperate_id]


@contextmanager
def editing(*edits):
    """edits: (module, "input" | "output", function of the tensor that returns the new one)."""
    with ExitStack() as stack:
        for module, side, change in edits:

            def before(_, args, change=change):
                return (change(args[0]), *args[1:])

            def after(_, args, output, change=change):
                if isinstance(output, tuple):
                    return (change(output[0]), *output[1:])
                return change(output)

            register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
            handle = register(before if side == "input" else after)
            stack.callback(handle.remove)
        yield


def see(model, tokenizer, prompt, places: dict):
    """{name: tensor} seen at {name: (module, side)} for one prompt, [position, width]."""
    seen = {}

    def look(name):
        def keep(tensor):
            seen[name] = tensor[0].clone()
            return tensor

        return keep

    with torch.no_grad(), editing(*((module, side, look(name)) for name, (module, side) in places.items())):
        model(row(tokenizer, prompt)[0])
    return seen


def place(model, site: str, layer: int):
    """(module, side) of a site, written out."""
    block = model.model.layers[layer]
    sandwich = hasattr(block, "pre_feedforward_layernorm")
    return {
        "resid_pre": (block, "input"),
        "z": (block.self_attn.o_proj, "input"),
        "attn_out": (block.self_attn, "output"),
        "attn_add": (block.post_attention_layernorm if sandwich else block.self_attn, "output"),
        "mlp_out": (block.mlp, "output"),
        "mlp_add": (block.post_feedforward_layernorm if sandwich else block.mlp, "output"),
        "resid_post": (block, "output"),
        "resid_final": (model.model.norm, "input"),
    }[site]


def patched(model, tokenizer, prompt, changes) -> float:
    """delta with (site, layer, columns, rows, value [position, width]) written in: columns and rows are slices."""
    edits = []
    for site, layer, columns, rows, value in changes:

        def write(tensor, columns=columns, rows=rows, value=value):
            tensor = tensor.clone()
            tensor[0, rows, columns] = value[rows]
            return tensor

        edits.append((*place(model, site, layer), write))
    with torch.no_grad(), editing(*edits):
        return delta(model, tokenizer, prompt).item()


# --- patches by hooks ------------------------------------------------------------------------------------------------


def everything(model, tokenizer, prompt):
    """{(site, layer): [position, width]} of one prompt, and each head's own output: {("head_out", layer, head): …}."""
    sites = ("z", "attn_out", "mlp_out", "resid_post")
    places = {(site, k): place(model, site, k) for site in sites for k in range(len(model.model.layers))}
    seen = see(model, tokenizer, prompt, places)
    for k, block in enumerate(model.model.layers):
        z, width = seen["z", k], block.self_attn.head_dim
        for h in range(z.shape[-1] // width):
            alone = torch.zeros_like(z)
            alone[:, width * h : width * h + width] = z[:, width * h : width * h + width]
            with torch.no_grad():
                seen["head_out", k, h] = block.self_attn.o_proj(alone) - block.self_attn.o_proj(0 * alone)  # no bias
    return seen


def recorded(model, tokenizer, switch, prompts=PROMPTS):
    """(model switched to the target, tokenizer, source, target, what hooks saw in the source by prompt)."""
    source = record(switch("one"), tokenizer, prompts)
    seen = {prompt.id: everything(model, tokenizer, prompt) for prompt in prompts}
    target = record(switch("two"), tokenizer, prompts)
    return model, tokenizer, source, target, seen


def due(pair, prompt, component, positions, mode) -> float:
    """delta of one patch: the whole target, one prompt, hooks."""
    model, tokenizer, _, _, seen = pair
    seen, rows = seen[prompt.id], slice(None) if positions == "all" else slice(-1, None)
    layer, head, width = component.layer, component.head, model.model.layers[0].self_attn.head_dim
    if component.kind != "head":
        site = "resid_post" if component.kind == "resid" else f"{component.kind}_out"
        return patched(model, tokenizer, prompt, [(site, layer, slice(None), rows, seen[site, layer])])
    columns = slice(width * head, width * head + width)
    if mode == "input":
        return patched(model, tokenizer, prompt, [("z", layer, columns, rows, seen["z", layer][:, columns])])
    rest = see(model, tokenizer, prompt, {"z": place(model, "z", layer)})["z"].clone()
    rest[:, columns] = 0
    with torch.no_grad():
        value = model.model.layers[layer].self_attn.o_proj(rest) + seen["head_out", layer, head]
    return patched(model, tokenizer, prompt, [("attn_out", layer, slice(None), rows, value)])
