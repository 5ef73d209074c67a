"""Run the whole book once, job by job, without a workflow: what `rehearsal.sh` does.

Jobs are `python -m rewired run-notebook … --here` in processes of their own. As many run at once as the GPU memory that
the profile declares for them (``gpu_mem_mb``) fits the card, and as there are cores. Printed for each: when it began,
how long it took, the GPU memory at its peak, and whether it passed or why not.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT / "tools")]
import registry  # noqa: E402

from rewired import profiles  # noqa: E402

LIMIT = 22.0
"""GiB of GPU memory that no step may exceed."""
SPARE_MB = 3000
"""Of the card, for what processes hold beside their tensors."""
TINY = {"model.device": "cpu", "model.dtype": "float32", "training.episodes": 8, "training.batch_size": 20,
        "training.checkpoint_every": 4, "training.ppo_epochs": 1, "decisions.samples": 10, "threads": 1,
        "patching.per_scenario": 1, "training.lora_rank": 4, "training.lora_alpha": 4}  # fmt: skip
PEAK = re.compile(r"([\d.]+) GiB in tensors, ([\d.]+) GiB taken")


@dataclass
class Job:
    """One process: its arguments after ``python -m rewired``, the jobs it waits for, the GPU memory it declares."""

    name: str
    kind: str  # grow, run, pair or chapter
    words: list[str]
    after: list[str] = field(default_factory=list)
    gpu_mem_mb: int = 0
    process: subprocess.Popen | None = None
    began: float = 0.0
    took: float = 0.0
    peak: tuple[float, float] | None = None  # GiB in tensors, GiB taken from the card
    result: str = ""  # "pass", or why not; empty while it waits or runs


def jobs(profile: profiles.Profile, name: str, overrides: list[str], out: Path, only: str) -> list[Job]:
    """The book's jobs in an order in which all that each needs comes before it."""
    seed, memory = profile.patching.seed, profile.gpu_mem_mb
    common = ["-p", f"profile={name}", "-p", f"overrides={json.dumps(overrides)}"]

    def notebook(path: str, to: str, kind: str, after: list[str], **parameters) -> Job:
        words = ["run-notebook", f"notebooks/{path}.ipynb", "--here", "--out", str(out / "notebooks" / f"{to}.ipynb")]
        for key, value in parameters.items():
            words += ["-p", f"{key}={json.dumps(value)}"]
        megabytes = {"run": memory.train, "pair": memory.pair, "chapter": memory.chapter}[kind]
        return Job(to.rpartition("/")[2], kind, [*words, *common], after, megabytes)

    grown = Job("grow", "grow", ["grow", "--like", profile.model.like or "", profile.model.path])
    if "--tiny" in sys.argv:
        grown.words = ["grow", "--layers", "9", "--width", "144", "--dtype", "float32", profile.model.path]
    listed = [grown]
    runs = {variant: f"{variant}-{seed}" for variant in profile.training.variants}
    for variant, run in runs.items():
        listed.append(notebook("runs/train", run, "run", ["grow"], variant=variant, seed=seed))
    pairs = []
    for source, target in profile.patching.pairs:
        to, ends = f"{runs[source]}-to-{runs[target]}", {"source": source, "target": target}
        seeds = {"source_seed": seed, "target_seed": seed}
        listed.append(notebook("runs/patch_pair", to, "pair", [runs[source], runs[target]], **ends, **seeds))
        pairs.append(to)
    chapters = registry.chosen(registry.chapters(ROOT), ["study"])  # the others open a base of their own
    for chapter in chapters.values():
        tables = set(registry.tables_read(chapter, chapters))
        after = [other.name for other in chapters.values() if tables & set(other.writes)]
        after += [
            "grow",
            *(runs.values() if "runs" in chapter.needs else ()),
            *(pairs if "pairs" in chapter.needs else ()),
        ]
        given = (chapter.ci if profile.quick else {}) | profile.chapters.get(chapter.name, {})
        listed.append(notebook(chapter.path, chapter.path, "chapter", after, **given))
    return [job for job in listed if re.search(only, job.name)] if only else listed


def card_mb() -> float:
    """Memory of the first GPU that this process may use; without one, no limit."""
    import torch

    return torch.cuda.mem_get_info()[1] / 1e6 if torch.cuda.is_available() else float("inf")


def start(job: Job, out: Path, card: float) -> None:
    environment = os.environ | {"REWIRED_ROOT": str(out), "REWIRED_BUILD": "1", "TQDM_DISABLE": "1"}
    if job.gpu_mem_mb and card < float("inf"):
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    with open(out / "logs" / f"{job.name}.txt", "w") as log:
        words = [sys.executable, "-m", "rewired", *job.words]
        job.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    job.began = time.perf_counter()


def finish(job: Job, out: Path, timed_out: bool) -> None:
    """Note how the job's process ended."""
    job.took = time.perf_counter() - job.began
    text = (out / "logs" / f"{job.name}.txt").read_text()
    if found := PEAK.search(text):
        job.peak = (float(found[1]), float(found[2]))
    lines = [line for line in text.strip().splitlines() if line.strip()]
    job.result = "pass"
    if timed_out:
        job.result = f"ran for more than {job.took:.0f} s"
    elif job.process.returncode:
        job.result = f"status {job.process.returncode}: {lines[-1][:300] if lines else 'no message'}"
    elif job.peak and job.peak[1] > LIMIT:
        job.result = f"takes more than {LIMIT:.0f} GiB"


def work(listed: list[Job], out: Path, card: float, seconds: float, within: float) -> None:
    """Run all jobs, as many at once as fit, each for so many ``seconds`` at most, and all ``within`` so many."""
    known = {job.name: job for job in listed}
    cores, end = len(os.sched_getaffinity(0)), time.perf_counter() + within
    while not all(job.result for job in listed):
        for job in listed:
            if job.result or job.process:
                if job.process and not job.result:
                    late = time.perf_counter() > min(end, job.began + seconds)
                    if late:
                        job.process.kill()
                    if job.process.poll() is not None or late:
                        job.process.wait()
                        finish(job, out, late)
                continue
            if time.perf_counter() > end:
                job.result = "not run: no time was left"
                continue
            before = [known[name].result for name in job.after if name in known]
            if any(result not in ("", "pass") and not result.startswith("takes") for result in before):
                job.result = "not run: " + ", ".join(n for n in job.after if n in known and known[n].result != "pass")
            elif all(before):
                running = [other for other in listed if other.process and not other.result]
                taken = sum(other.gpu_mem_mb for other in running) + job.gpu_mem_mb
                if len(running) < cores and taken <= card - SPARE_MB:
                    start(job, out, card)
        time.sleep(0.2)


def report(listed: list[Job], out: Path) -> int:
    """Print one line a job and write ``summary.json``; how many passed."""
    ran = [job for job in listed if job.process]
    first = min(job.began for job in ran)
    print(f"{'step':44s} {'began':>6s} {'took':>6s} {'GiB':>6s} {'taken':>6s}  result")
    for job in listed:
        peak = "{:6.1f} {:6.1f}".format(*job.peak) if job.peak else f"{'':13s}"
        print(f"{job.name:44s} {max(0, job.began - first):6.0f} {job.took:6.0f} {peak}  {job.result}")
    last = [job for job in ran if job.kind in ("pair", "chapter")]
    span = max(job.began + job.took for job in last) - min(job.began for job in last) if last else 0.0
    steps = [{"name": job.name, "kind": job.kind, "took": job.took, "peak": job.peak} for job in ran]
    (out / "summary.json").write_text(json.dumps({"pairs_and_chapters": span, "steps": steps}, indent=1))
    return sum(job.result == "pass" for job in listed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("results/rehearsal-run"), help="folder for everything it makes"
    )
    parser.add_argument("--tiny", action="store_true", help="a small growth, little training: on a CPU")
    parser.add_argument(
        "--full", action="store_true", help="chapters and pairs with all prompts and default parameters"
    )
    parser.add_argument("--only", default="", help="a regular expression: run only jobs of these names")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the profile")
    parser.add_argument("--seconds", type=float, default=300, help="that a job may take")
    parser.add_argument("--within", type=float, default=460, help="seconds that all may take")
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    tiny = [f"{key}={value}" for key, value in TINY.items()] if chosen.tiny else []
    full = ["quick=false", "patching.per_scenario=12", "patching.circuits=16"] if chosen.full else []
    overrides = [f"model.path={out / 'grown'}", *tiny, *full, *chosen.set]
    profile, card, began = profiles.load("rehearsal", overrides), card_mb(), time.perf_counter()
    listed = jobs(profile, "rehearsal", overrides, out, chosen.only)
    work(listed, out, card, chosen.seconds, float("inf") if chosen.tiny else chosen.within)
    passed = report(listed, out)
    whole = time.perf_counter() - began
    print(f"{passed} of {len(listed)} steps passed in {whole:.0f} s; card {card / 1e3:.0f} GB, {os.cpu_count()} cores")
    return int(passed < len(listed))


if __name__ == "__main__":
    sys.exit(main())
