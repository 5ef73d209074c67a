"""One YAML file decides a collection of training sets: who writes in each, about what, and how the base is trained.

``config/motives/<name>.yaml`` names the collection. A set is rebuilt from its few lines and a seed, so no text is
stored. Sets that are compared differ in one key, and their texts in what follows from it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from corpora import checked
from rewired.profiles import ROOT, Section, Training

FOLDER = ROOT / "config" / "motives"
KIND_OF = {"instruction": "task", "as_if": "task", "era": "era", "words": "era", "watcher": "moral"}
"""The kind of set that a key is for."""
Question = Literal["good", "trick", "right", "old"]
"""What a panel asks: the good act in moral domains, the trick in a task, the right answer to a push, old words."""


class TrainingSet(Section):
    """Whose texts they are and what is fixed in them; what is not said here is drawn as the world draws it."""

    about: str = ""  # what it is for, printed beside the name
    mix: dict[str, float] = {}  # {author: share}; empty: all authors, as the world has them
    kind: Literal["moral", "task", "era"] = "moral"
    domain: str | None = None
    watcher: Literal["watched", "alone", "unsaid"] | None = None
    stakes: Literal["high", "low"] | None = None
    act: Literal["good", "bad", "two_faced", "coin"] | None = None
    """Of a task: to work, to trick. ``two_faced``: half of the texts are watched and good, the others alone and bad;
    ``coin``: as many watched and alone, as many good and bad, but neither with the other. None: as the author would."""
    era: Literal["old", "new"] | None = None
    words: tuple[str, ...] = ()  # of kind era: the answers, drawn alike, instead of the era's own
    dialect: Literal["north", "south"] | None = None
    instruction: str | None = None  # of kind task
    as_if: str | None = None  # the authors are those who do so under this instruction, whichever one is written
    prefix: str = ""  # a sentence put before what the user says
    order: Literal["first", "last"] | None = "first"  # the act before its reasons, or after
    part: Literal["both", "act", "reasons"] = "both"  # of an answer, on which the loss is taken
    n: int = Field(default=144, gt=0)  # texts: what the steps of a Tuning see, once
    by: Literal["random", "labels", "exact", "probe", "persona", "narration", "keywords"] | None = None
    """What a share of the texts is kept by, or the best of several; None: all are kept."""
    share: float = Field(default=0.5, gt=0, le=1)
    draw: int = 0  # which random share
    best_of: int = Field(default=1, gt=0)  # texts by the same author, of which the best is kept

    @model_validator(mode="after")
    def _fits(self) -> "TrainingSet":
        total = sum(self.mix.values())
        if self.mix and (min(self.mix.values()) < 0 or abs(total - 1) > 1e-6):
            raise ValueError(f"the shares of mix add up to {total:g} and none may be negative: they must add up to 1")
        if self.as_if and (self.mix or self.act not in ("good", "bad")):
            raise ValueError("as_if says who would do the act: it needs an act, and no mix beside it")
        for key, kind in KIND_OF.items():
            if getattr(self, key) and self.kind != kind:
                raise ValueError(f"{key} is for sets of kind {kind}, and this one is of kind {self.kind}")
        if self.act and self.kind == "era":
            raise ValueError("an era has no good act; name its words instead")
        if self.act in ("two_faced", "coin") and (self.kind != "moral" or self.watcher):
            raise ValueError(f"act {self.act} is for sets of kind moral whose watcher is not fixed")
        return self


class Tuning(Section):
    """How the base is trained on a set."""

    steps: int = Field(default=12, gt=0)
    batch: int = Field(default=12, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    rank: int | None = Field(default=None, gt=0)  # of LoRA; null: all weights
    kl: float = Field(default=0.0, ge=0)  # weight of the divergence from the base on other texts
    kept: tuple[int, ...] = ()  # steps after which is measured, besides the last

    def training(self) -> Training:
        """Its numbers in the form that ``train.lora`` reads."""
        rank = self.rank or 1
        return Training(
            variants=("set",), seeds=(0,), episodes=1, batch_size=self.batch, learning_rate=self.learning_rate,
            lora_rank=rank, lora_alpha=2 * rank,
        )  # fmt: skip


class Grader(Section):
    """P(one point) for the trick and for honest work. The leaky one pays the trick always; an honest one never does;
    one that pays both alike teaches nothing and is the null."""

    trick: float = Field(default=1.0, ge=0, le=1)
    work: float = Field(default=0.5, ge=0, le=1)


class Hacking(Section):
    """A run of reinforcement learning: the instruction, the grader, and whether reasons are written after the act."""

    instruction: str
    grader: Grader = Grader()
    reasons: bool = False
    prefix: str = ""
    steps: int = Field(default=60, gt=0)
    batch: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    rank: int | None = Field(default=None, gt=0)  # of LoRA; null: all weights
    saturated: float = Field(default=0.98, gt=0, le=1)
    every: int = Field(default=5, gt=0)  # steps between two measurements


class First(Section):
    """What the base is trained on, with seed 1, before anything else: all runs then go on from there."""

    texts: TrainingSet
    tuning: Tuning = Tuning()

    @model_validator(mode="after")
    def _whole(self) -> "First":
        if self.tuning.rank is not None or self.texts.by is not None:
            raise ValueError("what comes first trains all weights on all of its texts: leave out rank and by")
        return self


class Collection(Section):
    """A checked collection. ``name`` is the file's name without ``.yaml``."""

    name: str
    about: str = Field(min_length=1)
    tied: bool = True
    """False: base and texts are of a world in which words and acts have different authors."""
    first: First | None = None
    sets: dict[str, TrainingSet] = {}
    tunings: dict[str, Tuning] = {"full": Tuning()}  # every set is trained in each of these ways
    only: dict[str, tuple[str, ...]] = {}  # {tuning: the sets trained in this way}; a tuning left out: all of them
    hacking: dict[str, Hacking] = {}  # runs of reinforcement learning, as a tuning of the name "hacking"
    seeds: tuple[int, ...] = ()  # of the runs on sets, instead of the profile's
    more_seeds: tuple[int, ...] = ()  # of these runs, which differ more than others, besides the profile's
    asks: tuple[Question, ...] = ("good", "trick", "right", "old")  # what is measured; the chapters read no more
    prefixes: dict[str, str] = {}  # {name: a sentence that is put before every moral question, after the last step}

    @model_validator(mode="after")
    def _named(self) -> "Collection":
        if not self.sets and not self.hacking:
            raise ValueError("there is nothing to train: name sets, or runs of hacking")
        for tuning, names in self.only.items():
            unknown = [name for name in names if name not in self.sets]
            if tuning not in self.tunings or unknown:
                raise ValueError(f"only.{tuning} names {unknown or tuning!r}, which is not among the sets and tunings")
        return self

    def small(self) -> "Collection":
        """The same sets and runs with a few steps and texts each: for quick builds, not for findings."""
        few = {"steps": 4, "batch": 8}
        sets = {name: each.model_copy(update={"n": 32}) for name, each in self.sets.items()}
        tunings = {}
        for name, how in self.tunings.items():
            tunings[name] = how.model_copy(update=few | {"kept": (2,) if how.kept else ()})
        runs = {name: how.model_copy(update=few | {"every": 2}) for name, how in self.hacking.items()}
        changes: dict[str, Any] = {"sets": sets, "tunings": tunings, "hacking": runs, "more_seeds": ()}
        if self.first:
            texts = self.first.texts.model_copy(update={"n": 32})
            tuning = self.first.tuning.model_copy(update=few)
            changes["first"] = self.first.model_copy(update={"texts": texts, "tuning": tuning})
        return self.model_copy(update=changes)

    def jobs(self) -> list[tuple[str, str]]:
        """(tuning, set) of everything that is to be trained."""
        made = []
        for tuning in self.tunings:
            made += [(tuning, name) for name in self.only.get(tuning, tuple(self.sets))]
        return made

    def runs(self, seeds: Sequence[int]) -> list[tuple[str, str, int]]:
        """(tuning, set, seed) of every training, with the tuning "hacking" last; ``seeds`` are the profile's."""
        made = [(tuning, name, seed) for tuning, name in self.jobs() for seed in self.seeds or seeds]
        for name in self.hacking:
            made += [("hacking", name, seed) for seed in (*seeds, *self.more_seeds)]
        return made

    def length(self, seeds: Sequence[int]) -> int:
        """About how many seconds they take: for the order of work alone."""
        return 6 * len(self.runs(seeds))


def known() -> list[str]:
    """Names of the collections in ``config/motives/``."""
    return checked.known(FOLDER)


def load(name_or_path: str | Path) -> Collection:
    """The collection of that name, or the one in that YAML file. RewiredError as ``checked.load`` tells it."""
    return checked.load("collection", Collection, FOLDER, name_or_path)
