"""The reference: plain PyTorch hooks, the whole model, one prompt and one patch at a time.

The logits of all positions are computed, as by anyone who patches this way, but delta is read in fp64 from the final
norm's output: near Gemma's cap of 30 two fp32 logits are spaced by 2e-6, and rounding them costs up to 7e-6 of delta.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from . import pair


@contextmanager
def hooked(module, before=None, after=None):
    """``before`` edits the module's input in place, ``after`` its output; both return nothing."""
    handles = []
    if before is not None:
        handles.append(module.register_forward_pre_hook(lambda _, args: before(args[0])))
    if after is not None:
        handles.append(module.register_forward_hook(lambda _, args, output: after(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def see(model, ids, sample) -> dict:
    """{(layer, head): activation [position, width]} of the sampled components, head -1 for the MLP."""
    seen, handles, width = {}, [], model.model.layers[0].self_attn.head_dim
    for layer, head in sample:
        block = model.model.layers[layer]
        if head < 0:

            def keep(_, args, output, layer=layer):
                seen[layer, -1] = output[0].clone()

            handles.append(block.mlp.register_forward_hook(keep))
        else:

            def keep(_, args, layer=layer, head=head):
                seen[layer, head] = args[0][0, :, head * width : (head + 1) * width].clone()

            handles.append(block.self_attn.o_proj.register_forward_pre_hook(keep))
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def label_logits(model, normed: torch.Tensor, labels) -> torch.Tensor:
    """Raw logits of the tokens ``labels`` (cooperate, defect), [label], fp64, from the final norm's output."""
    return model.get_output_embeddings().weight[list(labels)].double() @ normed


def patched_delta(model, ids, layer: int, head: int, value: torch.Tensor, labels) -> float:
    """delta at the last position with one component's activation replaced at all positions; ``labels`` are the
    tokens (cooperate, defect)."""
    block, width, kept = model.model.layers[layer], model.model.layers[0].self_attn.head_dim, []

    def write(tensor):
        tensor[0, :, max(head, 0) * width : (head + 1) * width if head >= 0 else None] = value

    at = hooked(block.mlp, after=write) if head < 0 else hooked(block.self_attn.o_proj, before=write)
    with at, hooked(model.model.norm, after=lambda output: kept.append(output[0, -1].double())):
        model(ids, use_cache=False)
    cap = model.config.final_logit_softcapping
    cooperate, defect = (cap * torch.tanh(label_logits(model, kept[0], labels) / cap)).tolist()
    return defect - cooperate


def record(source, job, device) -> list[dict]:
    """What `see` sees of each prompt in the source."""
    model = source()
    sample = [tuple(component) for component in job["sample"]]
    return [see(model, torch.tensor([row], device=device), sample) for row in job["rows"]]


def sizes(target, job, device) -> np.ndarray:
    """[prompt]: the larger of the two label logits of the target, unpatched."""
    model, largest, kept = target(), [], []
    with hooked(model.model.norm, after=lambda output: kept.append(output[0, -1].double())):
        for row, *labels in zip(job["rows"], job["cooperate"], job["defect"], strict=True):
            model(torch.tensor([row], device=device), use_cache=False)
            largest.append(label_logits(model, kept[-1], labels).abs().max().item())
    return np.array(largest)


def sweep(target, seen, job, device) -> np.ndarray:
    """[component, prompt]: delta of each sampled patch."""
    model, found = target(), np.full((len(job["sample"]), len(job["rows"])), np.nan)
    for i, row in enumerate(job["rows"]):
        ids = torch.tensor([row], device=device)
        for k, (layer, head) in enumerate(job["sample"]):
            labels = job["cooperate"][i], job["defect"][i]
            found[k, i] = patched_delta(model, ids, layer, head, seen[i][layer, head], labels)
    return found


def prepare(job, folder, device):
    source, target = pair.merged(folder, device)
    seen = record(source, job, device)
    np.save(Path(folder) / "logits.npy", sizes(target, job, device))

    def repeat():
        found = sweep(target, seen, job, device)
        return found, found.size

    return repeat
