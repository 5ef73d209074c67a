"""The loop one writes first: an nnsight trace for every patch and every answer, each with the logits of all tokens.

delta = log P(defect label) - log P(cooperate label), each a sum of log-softmaxes over the label's tokens.
"""

import numpy as np
import torch
from nnsight import NNsight

from . import pair


def _record(net, ids, sample, width) -> dict:
    """{(layer, head): activation [1, position, width]} in one trace of the source."""
    seen = {}
    with net.trace(input_ids=ids, use_cache=False):
        for layer, head in sorted(sample, key=lambda c: (c[0], c[1] < 0, c[1])):  # in the order of execution
            if head < 0:
                seen[layer, head] = net.model.layers[layer].mlp.output.save()
            else:
                z = net.model.layers[layer].self_attn.o_proj.input
                seen[layer, head] = z[:, :, head * width : (head + 1) * width].clone().save()
    return seen


def _log_probability(net, ids, layer, head, width, value, label_tokens: int) -> torch.Tensor:
    """log P of the last ``label_tokens`` tokens, with the patch."""
    with net.trace(input_ids=ids, use_cache=False):
        if head < 0:
            net.model.layers[layer].mlp.output[:] = value
        else:
            net.model.layers[layer].self_attn.o_proj.input[:, :, head * width : (head + 1) * width] = value
        logits = net.output.logits.save()
    normal = torch.log_softmax(logits[0, -label_tokens - 1 : -1].float(), dim=-1)
    return normal.gather(1, ids[0, -label_tokens:, None]).double().sum()


def prepare(job, folder, device):
    source, target = pair.merged(folder, device)
    source, target = NNsight(source()), NNsight(target())
    sample, width = [tuple(component) for component in job["sample"]], job["shape"]["head_dim"]
    asked = {
        (label, i): torch.tensor([[*row, job[label][i]]], device=device)
        for i, row in enumerate(job["rows"])
        for label in ("cooperate", "defect")
    }
    seen = {key: _record(source, ids, sample, width) for key, ids in asked.items()}

    def repeat():
        sums = {label: np.full((len(sample), len(job["rows"])), np.nan) for label in ("cooperate", "defect")}
        for (label, i), ids in asked.items():
            tokens = job["shared_label_tokens"][i] + 1
            for k, (layer, head) in enumerate(sample):
                value = seen[label, i][layer, head]
                sums[label][k, i] = _log_probability(target, ids, layer, head, width, value, tokens)
        found = sums["defect"] - sums["cooperate"]
        return found, found.size

    return repeat
