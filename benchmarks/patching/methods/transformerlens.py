"""TransformerLens 4.3: `generic_activation_patch`, a batch of prompts at a time. Runs in an environment of its own.

Both models are bridges; the source's cache is patched into the target, ``hook_z`` by head and the MLP's output before
the post-norm (``mlp.hook_out``)."""

import os

import numpy as np
import pandas as pd
import torch
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

BATCH = int(os.environ.get("BENCH_PEER_BATCH", "5"))
"""Prompts a forward, of similar length."""


def _head(activation, index, clean):
    activation[:, :, index[1]] = clean[:, :, index[1]]
    return activation


def _mlp(activation, index, clean):
    activation[:] = clean
    return activation


def _plan(sample) -> list[tuple]:
    """(activation name, setter, index_df, which of the sample). The name of an activation is made of the first column
    and ``activation_name``: "3.mlp" and "out" give blocks.3.mlp.hook_out, the MLP before its post-norm."""
    heads = [k for k, (_, head) in enumerate(sample) if head >= 0]
    mlps = [k for k, (_, head) in enumerate(sample) if head < 0]
    by_head = pd.DataFrame([sample[k] for k in heads], columns=["layer", "head"])
    by_mlp = pd.DataFrame({"layer": [f"{sample[k][0]}.mlp" for k in mlps]})
    return [("z", _head, by_head, heads), ("out", _mlp, by_mlp, mlps)]


def _metric(job, chunk, end: dict, model, device):
    """delta of each prompt of a batch; normaliser and shared label tokens cancel.

    Read in fp64 from the final norm's output, which ``end`` holds, like the reference: the logits that the metric is
    handed are capped in fp32, and near the cap rounding alone costs more than the difference that is allowed."""
    row = torch.arange(len(chunk), device=device)
    last = torch.tensor([len(job["rows"][i]) - 1 for i in chunk], device=device)
    tokens = torch.tensor([[job[label][i] for i in chunk] for label in ("cooperate", "defect")], device=device)
    unembedding = model.original_model.get_output_embeddings().weight[tokens].double()  # label, prompt, width
    cap = model.original_model.config.final_logit_softcapping

    def delta(_logits):
        cooperate, defect = cap * torch.tanh((unembedding * end["output"][row, last].double()).sum(-1) / cap)
        return defect - cooperate

    return delta


def prepare(job, folder, device):
    dtype = getattr(torch, job["dtype"])
    source, target = (
        TransformerBridge.boot_transformers(str(folder / name), device=device, dtype=dtype).eval()
        for name in ("source", "target")
    )
    sample = [tuple(component) for component in job["sample"]]
    rows, size = job["rows"], BATCH if device == "cpu" else len(job["rows"])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    names = {f"blocks.{layer}." + ("attn.hook_z" if head >= 0 else "mlp.hook_out") for layer, head in sample}

    end = {}  # the final norm's latest output
    target.original_model.model.norm.register_forward_hook(lambda _, args, output: end.update(output=output))
    batches = []  # (prompts, their tokens, the source's cache, metric)
    for chunk in (order[a : a + size] for a in range(0, len(order), size)):
        ids = torch.zeros(len(chunk), len(rows[chunk[-1]]), dtype=torch.long, device=device)
        for r, i in enumerate(chunk):
            ids[r, : len(rows[i])] = torch.tensor(rows[i])  # padded on the right: causality hides it
        cache = source.run_with_cache(ids, names_filter=lambda name: name in names)[1]
        batches.append((chunk, ids, cache, _metric(job, chunk, end, target, device)))

    def repeat():
        found = np.full((len(sample), len(rows)), np.nan)
        for chunk, ids, cache, metric in batches:
            for name, setter, index, which in _plan(sample):
                result = patching.generic_activation_patch(
                    target, ids, cache, metric, setter, name, index_df=index, reduce="none"
                )
                found[np.ix_(which, chunk)] = result.values.float().cpu().numpy()
        return found, found.size

    return repeat
