"""How fast is the patching sweep, and is it exact? One command, one table; see README.md.

Every method runs in a process of its own. In each round every method makes one repetition, in turn; times are medians
over rounds, ratios are medians of the ratios within a round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import environment
import floor
import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
METHODS = {
    "naive": "nnsight, a trace per patch and answer",
    "hooks": "PyTorch hooks, one row (reference)",
    "transformerlens": "TransformerLens generic_activation_patch",
    "sweep": "rewired sweep, merged weights",
    "sweep_unmerged": "rewired sweep, adapters unmerged",
}
LARGEST = {"sweep": 1e-6, "sweep_unmerged": 1e-6, "transformerlens": 2e-6}
"""Allowed difference from one-row hooks in fp32, relative to the logits: in units of the larger label logit of the
unpatched prompts, or of 5 where that is less. The peer computes batches of padded prompts."""


class Worker:
    """A method in its process; the answers to its repetitions are in ``told``."""

    def __init__(self, name: str, folder: Path, device: str, threads: int, interpreter: Path | str):
        self.name, self.folder, self.told = name, folder, []
        paths = [str(HERE)] + ([str(HERE.parents[1] / "lib")] if name != "transformerlens" else [])
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": 1, "TQDM_DISABLE": 1}
        variables = {**{k: str(v) for k, v in variables.items()}, "PYTHONPATH": os.pathsep.join(paths)}
        self.log = folder / f"{name}.log"
        self.process = subprocess.Popen(
            [str(interpreter), str(HERE / "worker.py"), name, str(folder), device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
            env={**os.environ, **variables},
        )  # fmt: skip
        self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The method {self.name!r} stopped. The end of its log:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.told.append(self.answer())

    def stop(self) -> None:
        self.process.stdin.close()
        self.answer()
        self.process.wait()

    def milliseconds(self) -> np.ndarray:
        """Per patch, [round]."""
        return np.array([1000 * told["seconds"] / told["patches"] for told in self.told])


def table(workers: dict[str, Worker], job: dict, folder: Path) -> tuple[pd.DataFrame, float, float]:
    """(one row per method, rate in operations per second, floor in milliseconds a patch)."""
    rate = float(np.median([told["rate"] for worker in workers.values() for told in worker.told]))
    least = 1000 * floor.operations(job["shape"], job["rows"]) / rate
    rows = []
    for name, worker in workers.items():
        mine, last = worker.milliseconds(), worker.told[-1]
        row = {"method": METHODS[name], "ms a patch": np.median(mine)}
        for column, other in (("x TL", "transformerlens"), ("x naive", "naive")):
            row[column] = np.median(workers[other].milliseconds() / mine) if other in workers else np.nan
        row |= {"x floor": np.median(mine) / least, "largest difference": difference(name, workers, folder)}
        row |= {"peak MiB": last["peak"], "of it working": last["peak"] - last["resident"], "patches": last["patches"]}
        rows.append(row)
    return pd.DataFrame(rows), rate, least


def difference(name: str, workers, folder: Path) -> float:
    """Largest difference from one-row hooks over the sampled patches, in units of each prompt's larger label logit;
    unmerged adapters have hooks of their own."""
    own = folder / f"{name}.reference.npy"
    reference = own if own.is_file() else folder / "hooks.npy"
    if not reference.is_file():
        return np.nan
    logits = np.maximum(np.load(folder / "logits.npy"), 5)  # [prompt]
    return float((np.abs(np.load(folder / f"{name}.npy") - np.load(reference)) / logits).max())


def show(frame: pd.DataFrame, rate: float, least: float, unit: str) -> str:
    """The table as Markdown, with the rate and the floor below."""
    forms = ["{}", "{:.2f}", "{:.2f}", "{:.2f}", "{:.1f}", "{:.1e}", "{:.0f}", "{:.0f}", "{:.0f}"]
    head = [unit if column == "ms a patch" else column for column in frame.columns]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in frame.itertuples(index=False):
        cells = ["" if value != value else form.format(value) for form, value in zip(forms, row, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"matrix multiply {rate / 1e9:.0f} GF/s; floor {least:.3f} ms a patch"])


def verdicts(frame: pd.DataFrame, geometry, dtype: str) -> list[tuple[str, float, float, bool]]:
    """(what, measured, required, met) of what DESIGN asks of the sweep on this geometry."""
    named = frame.set_index("method")
    if METHODS["sweep"] not in named.index:
        return []
    mine, found = named.loc[METHODS["sweep"]], []
    for what, column, least in (
        ("against TransformerLens", "x TL", geometry.times_peer),
        ("against naive", "x naive", geometry.times_naive),
    ):
        if least and mine[column] == mine[column]:
            found.append((what, mine[column], least, mine[column] >= least))
    for name, most in LARGEST.items() if dtype == "float32" else ():
        worst = named["largest difference"].get(METHODS[name], np.nan)
        if worst == worst:
            found.append((f"largest difference, {METHODS[name]}", worst, most, worst <= most))
    return found


def measure(args, folder: Path) -> int:
    import geometries

    geometry = geometries.GEOMETRIES[args.geometry]
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    job = geometries.write(args.geometry, folder, dtype, args.sample)
    workers = {}
    for name in args.methods:
        own = name == "transformerlens"
        interpreter = (args.peer_python or environment.python()) if own else sys.executable
        workers[name] = Worker(name, folder, args.device, args.threads, interpreter)
    for round_ in range(args.rounds):
        for worker in workers.values():
            worker.go()
        told = ", ".join(f"{name} {worker.milliseconds()[-1]:.1f}" for name, worker in workers.items())
        print(f"round {round_ + 1}: ms a patch: {told}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.stop()
    frame, rate, least = table(workers, job, folder)
    tokens = sum(map(len, job["rows"]))
    print(f"\n{args.geometry}: {len(job['rows'])} prompts, {tokens} tokens, {dtype}, {args.device}, "
          f"{args.threads} thread(s), {args.rounds} rounds\n")  # fmt: skip
    print(show(frame, rate, least, "CPU-ms a patch" if args.device == "cpu" else "ms a patch (wall)"))
    checks = verdicts(frame, geometry, dtype)
    for what, value, required, met in checks:
        print(f"{'ok' if met else 'MISSED'}: {what}: {value:.3g} (required {required:.3g})")
    if args.csv:
        frame.assign(geometry=args.geometry, rate=rate, floor=least).to_csv(args.csv, index=False)
    return int(not all(met for *_, met in checks))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", default="pocket26", choices=["pocket26", "book", "gemma-2-2b", "tiny"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
                        help=f"of {', '.join(METHODS)} (default: all)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=8, help="components that the slow methods patch (default 8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has TransformerLens 4.3 already")
    parser.add_argument("--csv", type=Path, help="write the table there as well")
    parser.add_argument("--memory", action="store_true", help="measure five models in memory against one, and stop")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1")
    sys.path.insert(0, str(HERE.parents[1] / "lib"))
    with tempfile.TemporaryDirectory(prefix="rewired-benchmark-") as folder:
        if args.memory:
            import memory

            return memory.main(args.geometry, Path(folder), args.device, args.dtype)
        return measure(args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
