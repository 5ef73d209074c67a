"""One method in a process of its own: reads "go" lines, answers each with a line of JSON about one repetition.

    python worker.py METHOD FOLDER DEVICE

Separate processes keep the methods' memory apart, and let TransformerLens live in its own environment."""

import gc
import importlib
import json
import os
import re
import resource
import sys
import time
import warnings
from pathlib import Path

import floor
import numpy as np
import torch


def clock(device: str) -> float:
    """Seconds: of processor time on a CPU, of the wall on a GPU, when all that was asked for is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def start_of_peak(device: str) -> float:
    """MiB in use now; the peak counts from here."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:  # not Linux: the peak then includes loading
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(device: str) -> float:
    """MiB at most since `start_of_peak`."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    name, folder, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    job = json.loads((folder / "job.json").read_text())
    with torch.no_grad():
        repeat = importlib.import_module(f"methods.{name}").prepare(job, folder, device)
        resident = start_of_peak(device)
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            if line.strip() != "go":
                break
            rate = floor.rate(device, job["dtype"])
            gc.collect()
            before = clock(device)
            deltas, patches = repeat()
            seconds = clock(device) - before
            np.save(folder / f"{name}.npy", deltas)
            told = {"seconds": seconds, "patches": patches, "rate": rate, "resident": resident, "peak": peak(device)}
            print(json.dumps(told), file=answers)
        if hasattr(repeat, "reference"):
            np.save(folder / f"{name}.reference.npy", repeat.reference())
    print(json.dumps({"done": True}), file=answers)


if __name__ == "__main__":
    main()
