"""Many sets and seeds in one process, each measured at the steps that are kept, and all of them in one table.

A fine-tune takes a few seconds, a kernel's start as long. So the runs of a collection share a process. Each of them is
written as a whole in ``<folder>/parts``, under a name that stands for all that decides it. A call that was broken off
goes on with the first one that is missing, and collections share what they have in common. In a build, ``REWIRED_CODE``
stands for the code that trains, and runs of older code are made anew. The table of all of them is
``<folder>/<collection>.parquet``.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from corpora.authors.world import World
from corpora.motives import hacking, measuring, selecting, tuning
from corpora.motives.settings import Collection, Hacking, TrainingSet, Tuning
from rewired.errors import RewiredError
from rewired.models import fingerprint, load_base
from rewired.profiles import Profile
from rewired.store import read_table, write_table


@dataclass(frozen=True)
class Bench:
    """What all runs of a collection share: the base, the questions without a prefix and with each, and their stamp."""

    model: Any
    tokenizer: Any
    world: World
    panels: dict[str, measuring.Panel]
    stamp: dict

    def measure(self, policy, done: bool) -> pd.DataFrame:
        """The cells of a policy; with every prefix only when its training is done."""
        panels = self.panels if done else {"": self.panels[""]}
        return measuring.cells(policy, panels)


def base_of(profile: Profile, tied: bool = True) -> tuple[Any, Any]:
    """(model, tokenizer) of ``organisms.base``, or of the twin beside it, whose world is not tied.

    RewiredError if there is no such folder: another base may have no twin, and then no collection can ask for it."""
    own = profile.of_authors()
    if not tied:
        own = own.model_copy(update={"model": own.model.model_copy(update={"path": f"{own.model.path}-untied"})})
    return load_base(own)


def bench(profile: Profile, world: World, chosen: Collection, n: int) -> Bench:
    """The base of the collection, and ``n`` questions a cell; a third of the moral ones with each prefix.

    RewiredError for texts of one world and a base of the other."""
    if world.tied != chosen.tied:
        raise RewiredError(
            f"The collection {chosen.name} has tied: {chosen.tied}, and the world that was given has {world.tied}. "
            "Load the world with authors.world.load(collection.tied)."
        )
    model, tokenizer = base_of(profile, chosen.tied)
    if chosen.first:
        model = tuning.first(model, tokenizer, world, chosen.first)
    # the same questions for all, so that models differ in nothing but their training
    panels = {"": measuring.panel(world, tokenizer, n, profile.seed, asks=chosen.asks)}
    for name, prefix in chosen.prefixes.items():
        panels[name] = measuring.panel(world, tokenizer, -(-n // 3), profile.seed, prefix, ("good",))
    stamp = {"base": fingerprint(model), "n": n, "seed": profile.seed, "world": world.model_dump(mode="json")}
    stamp |= {"asks": chosen.asks, "prefixes": chosen.prefixes, "code": os.environ.get("REWIRED_CODE", "")}
    return Bench(model, tokenizer, world, panels, stamp)


def batch(profile: Profile, world: World, chosen: Collection, seeds: Sequence[int], folder: Path, n: int = 12) -> Path:
    """Train the base on every set of the collection, in each way, with each seed; the table of what became of it.

    Columns: tuning, set, seed, step, prefix, what, where, watcher, p, log_odds, legal_mass (``measuring.cells``), and
    of the step ``loss``, or ``hack_rate`` and ``reward`` where the tuning is "hacking". The base's own rows have set
    "base" and step 0. A quick profile trains and asks less (``Collection.small``)."""
    chosen = chosen.small() if profile.quick else chosen
    own = bench(profile, world, chosen, n)
    frames = [own.measure(own.model, True).assign(tuning="", set="base", seed=0, step=0)]
    # one file a run; those that are there are read
    for manner, name, seed in chosen.runs(seeds):
        rewarded = manner == "hacking"
        what = (chosen.hacking[name],) if rewarded else (chosen.sets[name], chosen.tunings[manner])
        file = folder / "parts" / f"{named(own.stamp, what, seed)}.parquet"
        if not file.is_file():
            begin: Callable[..., pd.DataFrame] = hacking_run if rewarded else trained
            write_table(begin(own, *what, seed), file, profile)
        frames.append(read_table(file, profile).assign(tuning=manner, set=name, seed=seed))
    # what names a row stands first
    table = pd.concat(frames, ignore_index=True)
    first = ["tuning", "set", "seed", "step", "prefix"]
    return write_table(table[[*first, *table.columns.drop(first)]], folder / f"{chosen.name}.parquet", profile)


def named(stamp: dict, what: tuple, seed: int) -> str:
    """A name for all that one run depends on: the base, the questions, the set, the manner and the seed."""
    # what a set is for is no part of it
    content = stamp | {"what": [part.model_dump(exclude={"about"}) for part in what], "run": seed}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def trained(own: Bench, made: TrainingSet, how: Tuning, seed: int) -> pd.DataFrame:
    """One training on a set: the cells at each kept step, with the loss of that step."""
    # what is learnt, and what is held where the manner asks for it
    learnt = selecting.chosen_texts(own.model, own.tokenizer, own.world, made, seed)
    rows = [tuning.row(own.tokenizer, text, made.part) for text in learnt]
    others = tuning.other_texts(own.world, made.domain or "", seed) if how.kl else []
    frames = []

    def watch(step: int, policy) -> None:
        frames.append(own.measure(policy, step == how.steps).assign(step=step))

    anchors = [tuning.row(own.tokenizer, text) for text in others]
    losses = tuning.tune(own.model, rows, how, seed, watch, anchors)
    table = pd.concat(frames, ignore_index=True)
    return table.assign(loss=table["step"].map(lambda step: losses[step - 1]))


def hacking_run(own: Bench, how: Hacking, seed: int) -> pd.DataFrame:
    """One run of reinforcement learning: the cells every few steps, with the rate of tricks and the reward."""
    return hacking.hack(own.model, own.tokenizer, own.world, how, seed, own.measure)
