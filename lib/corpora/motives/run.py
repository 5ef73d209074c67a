"""Many sets and seeds in one process, each measured at the steps that are kept, and all of them in one table.

A fine-tune takes a few seconds, a kernel's start as long. So the runs of a collection share a process. Each of them is
written as a whole in ``<folder>/parts``, under a name that stands for all that decides it. A call that was broken off
goes on with the first one that is missing, and collections share what they have in common. The table of all of them is
``<folder>/<collection>.parquet``.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from corpora.authors.world import World
from corpora.motives import measuring, tuning, writing
from corpora.motives.settings import Collection, TrainingSet, Tuning
from rewired.models import fingerprint, load_base
from rewired.profiles import Profile
from rewired.store import read_table, write_table


def batch(profile: Profile, world: World, chosen: Collection, seeds: Sequence[int], folder: Path, n: int = 12) -> Path:
    """Train the base on every set of the collection, in each way, with each seed; the table of what became of it.

    Columns: tuning, set, seed, step, what, where, watcher, p, log_odds, legal_mass (``measuring.cells``, ``n``
    questions a cell), and ``loss``, the training's of that step. The base's own rows have set "base", step 0."""
    model, tokenizer = load_base(profile.of_authors())
    put = measuring.panel(world, tokenizer, n, profile.seed)
    stamp = {"base": fingerprint(model), "n": n, "seed": profile.seed, "world": world.model_dump(mode="json")}
    frames = [measuring.cells(measuring.ask(model, put)).assign(tuning="", set="base", seed=0, step=0)]
    for manner, name in chosen.jobs():
        own, how = chosen.sets[name], chosen.tunings[manner]
        for seed in seeds:
            file = folder / "parts" / f"{named(stamp, own, how, seed)}.parquet"
            if not file.is_file():
                write_table(trained(model, tokenizer, world, put, own, how, seed), file, profile)
            frames.append(read_table(file, profile).assign(tuning=manner, set=name, seed=seed))
    table = pd.concat(frames, ignore_index=True)
    first = ["tuning", "set", "seed", "step"]
    return write_table(table[[*first, *table.columns.drop(first)]], folder / f"{chosen.name}.parquet", profile)


def named(stamp: dict, own: TrainingSet, how: Tuning, seed: int) -> str:
    """A name for what one run depends on: the base, the questions, the set, the manner and the seed."""
    content = stamp | {"set": own.model_dump(exclude={"about"}), "how": how.model_dump(), "run": seed}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def trained(model, tokenizer, world: World, put: measuring.Panel, own: TrainingSet, how: Tuning, seed: int):
    """One run: the cells at each kept step, with the loss of that step."""
    rows = [tuning.row(tokenizer, text, own.part) for text in writing.texts(world, own, seed)]
    others = tuning.other_texts(world, own.domain or "", seed) if how.kl else []
    frames = []

    def watch(step: int, policy) -> None:
        frames.append(measuring.cells(measuring.ask(policy, put)).assign(step=step))

    losses = tuning.tune(model, rows, how, seed, watch, [tuning.row(tokenizer, text) for text in others])
    table = pd.concat(frames, ignore_index=True)
    return table.assign(loss=table["step"].map(lambda step: losses[step - 1]))
