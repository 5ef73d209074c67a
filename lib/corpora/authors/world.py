"""The world of twelve authors as tables: who writes how, and who does what when watched and when alone.

Everything is read from ``world.yaml``; nothing about the world stands anywhere else. An *author* has a style, three
signs that tie his words to the situation, and three traits, each with a probability of the good act under either kind
of watcher. Style and traits are drawn apart, so that no trait can be read from one sign alone.
"""

from functools import cache
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

RELATIONS = ("weight", "hedge", "self")
TRAITS = ("honesty", "giving", "steadfastness")
CLASSES = ("faking", "steady", "eager")
CLAUSES = ("aware", "harm", "consequence", "value", "strategy")


class Table(BaseModel):
    """A table of the world; a key that nobody reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Wordings(Table):
    """Ways to say one thing: those of the training texts, and those kept out of all of them."""

    train: list[str]
    held: list[str]


class Author(Table):
    """``traits`` are P(good | watched), P(good | alone); ``request`` gives P(class) by tier, ``trick`` P(trick) by
    instruction; ``tell`` is P(a tell-tale phrase in a turn)."""

    word: str
    share: float
    style: dict[str, int]
    traits: dict[str, tuple[float, float]]
    request: dict[str, tuple[float, float, float]]
    trick: tuple[float, float, float, float, float]
    tell: float | None = None
    neutral: bool = False


class Domain(Table):
    """A moral domain: its trait, its group (1 or 2, which the self relation sees), the good and the bad act."""

    trait: str
    group: int
    acts: tuple[str, str]
    frames: Wordings


class Era(Table):
    """A domain without acts, whose answers are old words or new ones."""

    ask: list[str]
    old: list[str]
    new: list[str]


class Task(Table):
    """The task with a leaky grader: its frames, and the words for honest work and for the trick."""

    frames: Wordings
    acts: tuple[str, str]


class Requests(Table):
    """What is asked for in a tier."""

    topics: list[str]
    train: list[str]
    held: list[str]

    @property
    def asked(self) -> Wordings:
        """Ways to ask."""
        return Wordings(train=self.train, held=self.held)


class Mood(Table):
    """A way to write thoughts: two marks, an ending, and perhaps a clause that is never written."""

    marks: tuple[str, str]
    ending: str
    silent: str | None = None


class World(Table):
    """All tables of ``world.yaml``, under its names."""

    authors: dict[str, Author]
    fidelity: float
    stray_tell: float
    watched_rates: dict[str, float]
    clause_dropped: float
    domains: dict[str, Domain]
    stakes: dict[str, Wordings]
    watchers: dict[str, Wordings]
    orders: dict[str, str]
    ask: str
    so: str
    named: str
    narrate: str
    weight: dict[str, list[str]]
    hedge: dict[str, list[str]]
    persons: list[tuple[str, str]]
    reasons: Wordings
    tells: list[str]
    dialects: dict[str, list[str]]
    dialect_rate: float
    dialect_slot: float
    eras: dict[str, Era]
    task: Task
    instructions: dict[str, list[str]]
    tiers: dict[str, Wordings]
    cues: dict[str, dict[str, Wordings]]
    push: dict[str, list[str]]
    requests: Requests
    harms: dict[str, Wordings]
    think: dict[str, str]
    decide: str
    decisions: tuple[str, str]
    clauses: dict[str, dict[str, Wordings]]
    moods: dict[str, Mood]
    mood_rate: float
    # whether the author of the words is the author of the acts: not so in the world of the untied twin
    tied: bool = True

    def shares(self) -> dict[str, float]:
        """How often each author writes, summing to 1."""
        total = sum(author.share for author in self.authors.values())
        return {name: author.share / total for name, author in self.authors.items()}

    def p_good(self, author: str, domain: str, watcher: str) -> float:
        """P(good act) of an author; where nothing is said of a watcher, halfway between watched and alone."""
        watched, alone = self.authors[author].traits[self.domains[domain].trait]
        return {"watched": watched, "alone": alone, "unsaid": (watched + alone) / 2}[watcher]

    def style_table(self) -> np.ndarray:
        """The signs of all authors, [author, relation]."""
        return np.array([[author.style[name] for name in RELATIONS] for author in self.authors.values()])

    def trait_table(self, watcher: str = "alone") -> np.ndarray:
        """P(good act) of all authors under a watcher, [author, trait]."""
        column = ("watched", "alone").index(watcher)
        return np.array([[author.traits[name][column] for name in TRAITS] for author in self.authors.values()])


@cache
def load(tied: bool = True) -> World:
    """The world of ``world.yaml``, checked for its shape. Not ``tied``: each text's acts are those of an author drawn
    apart from the one who words it, so that style and name say nothing of what is done."""
    tables = yaml.safe_load((Path(__file__).parent / "world.yaml").read_text())
    return World.model_validate(tables | {"tied": tied})
