"""How fast the real size is: patches and episodes a second, and by arithmetic the hours of a whole study. `gpu.sh`.

Adapters of rank 64 with random numbers stand for trained ones: a sweep and an update take the same time. Training is
measured on a slice, its log entries included, without loading and the measurements at its end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "lib")]

from rehearsal import grow  # noqa: E402
from rewired import decisions, models, profiles, prompts  # noqa: E402
from rewired.execute import start  # noqa: E402
from rewired.tracing import patching  # noqa: E402
from rewired.train import lora, reinforce  # noqa: E402

RUNS, EPISODES = 12, 1000
"""What a whole study trains: four variants, three seeds each."""


def now() -> float:
    """Seconds, when all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> float:
    """GiB in tensors at the most since the last call."""
    if not torch.cuda.is_available():
        return float("nan")
    highest = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return highest


def randomize(policy, seed: int) -> None:
    """Give the adapter's B, zero when new, random numbers that change decisions."""
    random = torch.Generator().manual_seed(seed)
    for name, value in policy.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(value.shape, generator=random, device="cpu")
            value.data.copy_(1e-3 * noise)


def sweep(profile: profiles.Profile, repeats: int) -> dict:
    """Seconds of the two recordings and of a full sweep with its controls, medians of ``repeats`` after a first one."""
    model, tokenizer = models.load_base(profile)
    policy = lora.add_adapter(model, profile.training).requires_grad_(False)
    lora.cast_adapter(policy, model.dtype)
    asked = prompts.scenario_set(profile.prompts.labels, profile.patching.per_scenario)
    recorded, swept = [], []
    peak()
    for _ in range(repeats + 1):
        began = now()
        recordings = []
        for seed in (1, 2):
            randomize(policy, seed)
            recordings.append(patching.record(model, tokenizer, asked))
        between = now()
        patches, controls = patching.patch_each(patching.Sweep(model, *recordings))
        recorded.append(between - began)
        swept.append(now() - between)
    worst = controls.loc[controls["control"] == "again", "error"].abs().max()
    seconds = statistics.median(swept[1:])
    table = {"patches": len(patches), "recordings (s)": statistics.median(recorded[1:]), "sweep (s)": seconds}
    table |= {"ms a patch": 1e3 * seconds / len(patches), "largest error of a recomputed patch (logits)": worst}
    began = now()
    decisions.measure(model, tokenizer, prompts.scenario_set(profile.prompts.labels), profile.decisions.batch_size)
    return table | {"the 60 prompts measured (s)": now() - began, "peak (GiB)": peak()}


def training(profile: profiles.Profile, episodes: int) -> dict:
    """Episodes a second of PPO with the profile's settings, from a slice of ``episodes``."""
    t = profile.training.model_copy(update={"episodes": episodes})
    labels = prompts.Labels(*profile.prompts.labels)
    began = now()
    model, tokenizer = models.load_base(profile)
    policy = lora.add_adapter(model, t)
    games = reinforce.LiveGames(t, labels, profile.training.variants[0], 1)
    recorder = reinforce.Recorder(
        games,
        probe=lambda: reinforce.probe(policy, tokenizer, labels, profile.decisions.batch_size),
        save=lambda name: None,
    )
    peak()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = reinforce.ppo(policy, tokenizer, games, recorder, 1, Path(scratch))
        between = now()
        reinforce.learn(trainer, policy.device, t.bf16)
    seconds = now() - between
    rate = games.episode / seconds
    table = {"decisions an update": len(games.games), "episodes": games.episode, "seconds": seconds}
    return table | {"episodes a second": rate, "loading (s)": between - began, "peak (GiB)": peak()}


def together(base: Path, count: int, options: list[str]) -> dict:
    """Episodes a second of ``count`` trainings with the study's settings that share the card."""
    words = [sys.executable, __file__, "--base", str(base), "--slice", *options]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    seconds = max(one["seconds"] for one in told)
    rate = sum(one["episodes"] for one in told) / seconds
    peaks = sum(one["peak (GiB)"] for one in told)
    return {"runs": count, "seconds": seconds, "episodes a second, all": rate, "peaks, summed (GiB)": peaks}


def show(title: str, table: dict) -> None:
    print(f"\n{title}")
    for name, value in table.items():
        print(f"  {name:46s} {value if isinstance(value, int) else round(value, 4)}", flush=True)


def hours(swept: dict, study: dict, pocket: dict, shared: dict, rehearsal: Path | None) -> dict:
    """GPU-hours of twelve runs and the book, from the measured parts."""
    table = {}
    for name, measured in (("the study's settings", study), ("the batch of pocket", pocket)):
        once = measured["loading (s)"] + 3 * swept["the 60 prompts measured (s)"]
        table[f"twelve runs, {name} (h)"] = RUNS * (EPISODES / measured["episodes a second"] + once) / 3600
    once = study["loading (s)"] + 3 * swept["the 60 prompts measured (s)"]
    table[f"twelve runs, the study's settings, {shared['runs']} at a time (h)"] = (
        RUNS * (EPISODES / shared["episodes a second, all"] + once) / 3600
    )
    summary = rehearsal / "summary.json" if rehearsal else None
    if summary and summary.is_file():
        steps = json.loads(summary.read_text())
        book = sum(step["took"] for step in steps["steps"] if step["kind"] in ("pair", "chapter"))
        table["pairs and chapters of the rehearsal, one after the other (h)"] = book / 3600
        table["the same side by side (h)"] = steps["pairs_and_chapters"] / 3600
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="folder of a grown base; made when it is not given")
    parser.add_argument("--rehearsal", type=Path, help="folder of a finished rehearsal (--out)")
    parser.add_argument("--together", type=int, default=4, help="trainings that share the card")
    parser.add_argument("--slice", action="store_true", help="only a slice of the study's training, told as JSON")
    parser.add_argument("--tiny", action="store_true", help="a small growth: on a CPU")
    parser.add_argument("--episodes", type=int, default=40, help="of the training slices")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, like, sizes = chosen.base or Path(folder) / "base", "gemma-2-2b", {}
        if chosen.tiny:
            like, sizes = None, {"num_hidden_layers": 9, "hidden_size": 144, "dtype": "float32"}
        if not base.is_dir():
            grow.grow(ROOT / "models" / "pocket", base, like, **sizes)
        small = {"model.device": "cpu", "model.dtype": "float32", "patching.per_scenario": 1, "training.ppo_epochs": 1}
        given = {"model.path": str(base.resolve()), "training.lora_rank": 64, **(small if chosen.tiny else {})}
        rehearsal = start("rehearsal", given)
        study = profiles.load("gemma-2-2b-it", given)
        episodes = 4 if chosen.tiny else chosen.episodes
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        if chosen.slice:
            print(json.dumps(training(study, episodes)))
            return 0
        print(f"{device}, torch {torch.__version__}")
        swept = sweep(rehearsal, repeats=1 if chosen.tiny else 3)
        show("Patching: a sweep of every head and MLP, with controls", swept)
        slow = training(study, episodes)
        show("Training with the study's settings (batch 5, accumulated 4 times)", slow)
        options = ["--tiny"] if chosen.tiny else ["--episodes", str(episodes)]
        shared = together(base, 1 if chosen.tiny else chosen.together, options)
        show("The same, several runs on the card at once", shared)
        fast = training(rehearsal, 2 * episodes)
        show("Training with the batch of pocket (40 decisions, 2 minibatches)", fast)
        show("By arithmetic", hours(swept, slow, fast, shared, chosen.rehearsal))
    return 0


if __name__ == "__main__":
    sys.exit(main())
