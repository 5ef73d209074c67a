"""Peak memory of every step: a training update, a pair, and what the chapters ask of a model.

    python benchmarks/memory.py                   on a CPU: small growths of the shipped base, about six minutes
    python benchmarks/memory.py --device cuda     on a GPU, at the real size: in grown weights, or in --model FOLDER
    python benchmarks/memory.py --device cuda --rehearsal FOLDER    and each job of a finished rehearsal

On a GPU the peaks are torch's own. On a CPU every tensor that torch makes is counted (`Tracker`), in bf16 and in the
batches of a GPU, but for recordings, whose size is told apart. Growths keep
Gemma-2's proportions (feed-forward 4, heads 8/9, vocabulary 111 times the width), so what is computed is a constant
plus something proportional to the width: two widths at 26 layers give the real one. Weights are counted exactly.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT / "benchmarks")]

from rehearsal import grow  # noqa: E402
from rewired import decisions, models, profiles, prompts  # noqa: E402
from rewired.tracing import attention, attribution, capture, patching, recording  # noqa: E402
from rewired.train import lora, reinforce  # noqa: E402

REAL, DEPTH, RANK = 2304, 26, 64
GIB = 2**30
PEAK = re.compile(r"([\d.]+) GiB in tensors, ([\d.]+) GiB taken")


class Tracker(TorchDispatchMode):
    """Counts the bytes of all storages that operations return, as long as they live; ``peak`` is the most at once.

    ``ignored`` tensors and their views do not count, nor does what is made on ``device="cpu"`` by that name, which a
    GPU would not hold. Memory that an operation takes and gives back inside itself is not seen."""

    def __init__(self, ignored=()):
        super().__init__()
        storages = [tensor.untyped_storage() for tensor in ignored]
        self.ignored = {storage._cdata: StorageWeakRef(storage) for storage in storages}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        away = str((kwargs or {}).get("device")) == "cpu"
        if function is torch.ops.aten.cat.default:
            away = all(tensor.untyped_storage()._cdata in self.ignored for tensor in args[0])
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if away:
                    self.ignored[storage._cdata] = StorageWeakRef(storage)
                self.count(storage)
        return result

    def count(self, storage) -> None:
        key = storage._cdata
        if key in self.live or key in self.ignored:
            return
        self.live[key] = (StorageWeakRef(storage), storage.nbytes())
        self.total += storage.nbytes()
        if self.total > self.peak:  # perhaps: forget what has died before it is called a peak
            self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
            self.total = sum(size for _, size in self.live.values())
            self.peak = max(self.peak, self.total)


def weights(model) -> list[torch.Tensor]:
    """Parameters and buffers, adapters included."""
    return [*model.parameters(), *model.buffers()]


def size(tensors) -> int:
    """Bytes, each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def two_variants(profile):
    """(model, tokenizer, switch): the profile's base with two different random adapters, as chapters hold them."""
    model, tokenizer = models.load_base(profile)
    wrapped = lora.add_adapter(model, profile.training)
    wrapped.add_adapter("second", wrapped.peft_config["default"])
    torch.manual_seed(0)
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            value.data = value.data.to(model.dtype)
            value.data.normal_(std=0.02)

    def switch(name: str):
        wrapped.set_adapter(name, inference_mode=True)
        return wrapped.requires_grad_(False).eval().get_base_model()

    return model, tokenizer, switch


def steps(model, tokenizer, switch, asked, batch_size: int, few: bool, held: dict) -> Iterator[tuple[str, Callable]]:
    """(name, what to run) of a pair and of the chapters' requests; ``few`` patches the first two layers alone, which
    take as much memory as all. ``held`` receives the recordings."""
    switch("default")

    def record():
        held["source"] = patching.record(model, tokenizer, asked)

    yield "measure (guard)", lambda: decisions.measure(model, tokenizer, asked, batch_size)
    yield "sample", lambda: decisions.sample(model, tokenizer, asked[:8], 20)
    yield "record", record
    switch("second")
    held["target"] = patching.record(model, tokenizer, asked)
    sweep = patching.Sweep(model, held["source"], held["target"])
    outputs = patching.Sweep(model, held["source"], held["target"], mode="output")
    names = [component.name for component in patching.components(model)]
    random, sets = np.random.default_rng(0), {"all": names}
    for count in (len(names) // 8, len(names) // 2, len(names) // 2, len(names)):
        sets[f"{count}-{len(sets)}"] = list(random.permutation(names)[:count])
    chosen = [c for c in patching.components(model) if c.layer < 2] if few else None
    yield "patches and controls", lambda: patching.patch_each(sweep, chosen, share=0.002)
    yield "sets", lambda: patching.patch_together(outputs, sets)
    yield "circuits", lambda: patching.greedy(outputs.select(range(2)), names[:4], limit=2)
    yield "attribution patching", lambda: patching.attribution_patching(sweep)
    yield "attribution", lambda: attribution.contributions(model, tokenizer, asked)
    yield "attention patterns", lambda: attention.pattern(model, tokenizer, asked)
    known = sorted({role for prompt in asked for role, _, _ in prompt.spans})
    plan = attention.blocks(tokenizer, asked, {role: [role] for role in known[:4]}, draws=5)
    yield "knockout", lambda: attention.knockout(model, tokenizer, asked, plan)
    rows = capture.encode(tokenizer, asked).rows
    yield "capture, all positions", lambda: capture.capture(model, rows[:16], ("attn_out", "mlp_out"))


def peak_of(run: Callable, device: str, ours, away=()) -> float:
    """Bytes at the peak of ``run`` beside the tensors ``ours``; those ``away`` are in the processor's memory."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - size(ours)
    with Tracker([*ours, *away]) as tracker:
        run()
    return tracker.peak


def of_steps(profile, asked, few: bool) -> tuple[dict[str, float], int]:
    """({step: bytes beside the weights}, bytes of the weights)."""
    model, tokenizer, switch = two_variants(profile)
    ours, found, held = weights(model), {}, {}
    for name, run in steps(model, tokenizer, switch, asked, profile.decisions.batch_size, few, held):
        kept = [getattr(one, site) for one in held.values() for site in (*recording.SITES, "w_o")]
        found[name] = peak_of(run, model.device.type, ours, kept)
    return found, size(ours)


def of_training(profile, few: bool) -> tuple[float, int]:
    """(bytes beside the base's weights, bytes of these) at the peak of one update, from loading to the last table."""
    t, real = profile.training, (reinforce.scenario_set, reinforce.held_out_set)
    count = max(1, t.batch_size * t.gradient_accumulation // t.steps_per_episode)
    short = {"episodes": count, "ppo_epochs": 1 if few else t.ppo_epochs}  # every epoch takes the same memory
    update = profile.model_copy(update={"training": t.model_copy(update=short)})
    if few:
        reinforce.scenario_set = lambda labels: real[0](labels)[:8]
        reinforce.held_out_set = lambda labels: real[1](labels)[::16]
    model, _ = models.load_base(profile)
    base = size(weights(model))
    del model
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = lambda: reinforce.train(update, t.variants[0], 1, Path(folder) / "run")  # noqa: E731
            peak = peak_of(run, "cuda" if profile.model.device != "cpu" and torch.cuda.is_available() else "cpu", ())
    finally:
        reinforce.scenario_set, reinforce.held_out_set = real
    return peak - base, base


def report(title: str, columns: list[str], rows: dict[str, list[float]]) -> None:
    print(f"\n{title}\n{'step':26s}" + "".join(f"{column:>20s}" for column in columns))
    for name, values in rows.items():
        print(f"{name:26s}" + "".join(f"{value:20.2f}" for value in values))


def grown(folder: Path, width: int, depth: int) -> Path:
    """The shipped base in Gemma-2-2b's proportions at another width."""
    out = folder / f"{width}x{depth}"
    shape = {"hidden_size": width, "head_dim": width // 9, "intermediate_size": 4 * width,
             "vocab_size": 256_000 * width // REAL, "num_hidden_layers": depth}  # fmt: skip
    return out if out.is_dir() else grow.grow(ROOT / "models" / "pocket", out, **shape)


def on_cpu(widths: tuple[int, int], few_prompts: int) -> None:
    """Measure small growths, print how the peaks grow, and what that makes of the real size."""
    recording.BUDGET["cpu"] = recording.BUDGET["cuda"]
    torch.set_num_threads(1)

    def profile(folder: Path):
        settings = {"model.path": str(folder), "model.device": "cpu", "threads": 1}
        return profiles.load("rehearsal", settings)

    with tempfile.TemporaryDirectory() as name:
        folder, peaks = Path(name), {}
        small, large = widths
        cases = {(small, DEPTH, few_prompts), (small, DEPTH // 2, few_prompts), (small, DEPTH, 4 * few_prompts),
                 (large, DEPTH, few_prompts)}  # fmt: skip
        for width, depth, count in sorted(cases):
            p = profile(grown(folder, width, depth))
            found, _ = of_steps(p, prompts.scenario_set(p.prompts.labels, count // 5), few=True)
            if count == few_prompts:
                found = {"training update": of_training(p, few=True)[0]} | found
            peaks[width, depth, count] = found
            print(f"{width} wide, {depth} layers, {count} prompts: {time.process_time():.0f} CPU-s so far", flush=True)
    first = peaks[small, DEPTH, few_prompts]
    half, more = peaks[small, DEPTH // 2, few_prompts], peaks[small, DEPTH, 4 * few_prompts]
    rows = {}
    for step, bytes_ in first.items():
        rows[step] = [bytes_ / 2**20, bytes_ / half[step], bytes_ and more.get(step, np.nan) / bytes_]
    columns = ["MiB", f"{DEPTH // 2} → {DEPTH} layers: ×", f"{few_prompts} → {4 * few_prompts} prompts: ×"]
    report(f"{small} wide, {DEPTH} layers, {few_prompts} prompts: peak beside the weights", columns, rows)
    base, adapter = real_weights(RANK)
    rows = {}
    for step, bytes_ in first.items():
        slope = (peaks[large, DEPTH, few_prompts][step] - bytes_) / (large - small)
        rest = (bytes_ + slope * (REAL - small)) / GIB
        held = base if step == "training update" else base + 5 * adapter  # adapters in bf16: four variants and one more
        rows[step] = [held, rest, held + rest]
    report(f"extrapolated to {REAL} × {DEPTH}, GiB", ["weights", "beside them", "peak"], rows)
    tokenizer = models.load_base(profiles.load("pocket"))[1]
    for count in (few_prompts, 4 * few_prompts):
        rows_ = capture.encode(tokenizer, prompts.scenario_set(per_scenario=count // 5)).rows
        nodes = sum(len(tree.depth_of) for tree in recording.plant(rows_, recording.TREE_NODES)[0])
        held = nodes * 2 * (DEPTH * (3 * REAL + 2048) + REAL) / GIB
        there = "on the card" if held * GIB <= recording.ON_CARD else "in the processor's memory"
        print(f"each recording of {count} prompts ({nodes} nodes) takes {held:.2f} GiB {there}, its W_O 0.23 GiB")


def real_weights(rank: int) -> tuple[float, float]:
    """GiB of Gemma-2-2b's weights and of one adapter of this rank, both in bf16: arithmetic."""
    d, ff, q, kv, words = REAL, 9216, 2048, 1024, 256_000
    shapes = [(d, q), (d, kv), (d, kv), (q, d), (d, ff), (d, ff), (ff, d)]
    layer = sum(a * b for a, b in shapes) + 4 * d
    adapter = sum(rank * (a + b) for a, b in shapes)
    return 2 * (words * d + DEPTH * layer + d) / GIB, 2 * DEPTH * adapter / GIB


def on_gpu(folder: Path | None, rehearsal: Path | None) -> None:
    """Print torch's own peaks at the size of the model in ``folder``, and those of a rehearsal's jobs."""
    with tempfile.TemporaryDirectory() as name:
        folder = folder or grow.grow(ROOT / "models" / "pocket", Path(name) / "grown", "gemma-2-2b")
        p = profiles.load("rehearsal", {"model.path": str(folder), "model.device": "cuda"})
        rows = {}
        for t in (p.training, profiles.load("gemma-2-2b-it").training):
            update = t.model_copy(update={"log_every": 1000, "checkpoint_every": 1000})
            beside, base = of_training(p.model_copy(update={"training": update}), few=False)
            rows[f"training, batch {t.batch_size} × {t.gradient_accumulation}"] = [base / GIB, (base + beside) / GIB]
        for count in (3, 12):
            found, base = of_steps(p, prompts.scenario_set(p.prompts.labels, count), few=False)
            rows |= {f"{step}, {5 * count}": [base / GIB, (base + bytes_) / GIB] for step, bytes_ in found.items()}
            torch.cuda.empty_cache()
    report(f"{torch.cuda.get_device_name()}, GiB in tensors", ["weights", "peak"], rows)
    if rehearsal:
        jobs = {}
        for log in sorted((rehearsal / "logs").glob("*.txt")):
            if found := PEAK.search(log.read_text()):
                jobs[log.stem] = [float(found[1]), float(found[2])]
        report("jobs of the rehearsal, GiB", ["in tensors", "taken from the card"], jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", type=Path, help="GPU: the folder of the model (default: grown for the purpose)")
    parser.add_argument("--rehearsal", type=Path, help="GPU: the --out folder of benchmarks/rehearsal.sh")
    parser.add_argument("--widths", type=int, nargs=2, default=(144, 288), help="CPU: two multiples of 144")
    parser.add_argument("--prompts", type=int, default=15, help="CPU: a multiple of 5, at most 15")
    chosen = parser.parse_args()
    if chosen.device == "cuda":
        on_gpu(chosen.model, chosen.rehearsal)
    else:
        on_cpu(tuple(chosen.widths), chosen.prompts)


if __name__ == "__main__":
    main()
