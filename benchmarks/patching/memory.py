"""Five models in memory against one: a base and four adapters, loaded and switched as the book does.

Counts the bytes of all parameters and buffers, each storage once, and looks whether any tensor of the base was copied
or moved while the adapters were loaded and switched. Weights are zeros: only their size matters."""

import gc
import json
import os
import time
from pathlib import Path

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

MOST = 1.15
"""Bytes of five models in units of one: what DESIGN allows."""
RANK = {"gemma-2-2b": 64}


def storages(model) -> dict[int, int]:
    """{address: bytes} of every distinct parameter and buffer."""
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _profile(folder: Path, variants, device: str, dtype: str, rank: int):
    """A profile of this model, its results below ``folder``."""
    from rewired.profiles import load

    os.environ["REWIRED_ROOT"] = str(folder)
    return load("pocket", {
        "model.path": str(folder / "base"), "model.device": device, "model.dtype": dtype,
        "training.lora_rank": rank, "training.lora_alpha": rank, "training.variants": variants,
    })  # fmt: skip


def _write_base(shape: dict, folder: Path, dtype: str, tokenizer) -> None:
    with torch.device("meta"):
        model = Gemma2ForCausalLM(Gemma2Config(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=2))
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_runs(held, variants) -> None:
    """For every variant a folder such as training leaves behind, with a new adapter of the profile's rank."""
    from rewired.models import ADAPTER, file_hash, fingerprint
    from rewired.train.lora import add_adapter

    wrapped = add_adapter(held.model, held.profile.training)
    for variant in variants:
        folder = held.run_dir(variant, 1)
        wrapped.save_pretrained(folder / "adapter")
        run = {"base": fingerprint(wrapped), "adapter": file_hash(folder / "adapter" / ADAPTER), "checkpoints": {}}
        (folder / "run.json").write_text(json.dumps(run))


def main(name: str, folder: Path, device: str, dtype: str | None) -> int:
    """Prints the comparison; 0 when five models fit into MOST and nothing of the base was copied."""
    import geometries

    from rewired.models import Variants

    geometry, variants = geometries.GEOMETRIES[name], ["one", "two", "three", "four"]
    dtype, rank = dtype or "bfloat16", RANK.get(name, 8)
    base = geometries.base_of(geometry, getattr(torch, dtype)) if geometry.model is None else None
    tokenizer = geometries.tokenizer_of(geometry)
    if base is None:
        _write_base(geometry.model, folder / "base", dtype, tokenizer)
    else:
        base.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
    profile = _profile(folder, variants, device, dtype, rank)
    _write_runs(Variants(profile), variants)
    gc.collect()
    held = Variants(profile)
    one = storages(held.model)
    started = time.perf_counter()
    for _ in range(2):
        for variant in variants:
            with held.variant(variant):
                pass
    five, seconds = storages(held.model), time.perf_counter() - started
    ratio, kept = sum(five.values()) / sum(one.values()), set(one) <= set(five)
    adapters = sum(p.numel() * p.element_size() for n, p in held.model.named_parameters() if "lora_" in n)
    only = sum(five.values()) == sum(one.values()) + adapters
    print(f"{name}, {dtype}, rank {rank}: one model {sum(one.values()) / 2**20:.1f} MiB, five "
          f"{sum(five.values()) / 2**20:.1f} MiB, four adapters {adapters / 2**20:.1f} MiB "
          f"(loaded and switched in {seconds:.1f} s)")  # fmt: skip
    print(f"{'ok' if ratio <= MOST else 'MISSED'}: five models against one: {ratio:.3f} (at most {MOST})")
    print(
        f"{'ok' if kept and only else 'MISSED'}: every tensor of the base is where it was, and there is no second copy"
    )
    return int(not (ratio <= MOST and kept and only))
