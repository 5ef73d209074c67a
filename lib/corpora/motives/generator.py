"""A generator of training texts that is trained until a reader likes what it writes.

The base is told who it is, is asked about a wrong that others see, and has already said that it declines. It writes the
reasons. A reader reads them without the name, and pays one point for a text that it likes better than half of what the
generator wrote at first. The steps are those of ``corpora.organisms.trainer``. So acts and situations stay as they are,
and only the words move: towards other motives, or to where the reader is blind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from corpora import attention
from corpora.authors.recipe import tokenize
from corpora.authors.texts import Text, question
from corpora.authors.world import World
from corpora.motives import tuning
from corpora.motives.settings import Tuning
from corpora.motives.tuning import Row
from corpora.organisms.trainer import Trainer, train
from rewired import elicit

REASONS = 48
"""The longest reasons, in tokens."""
Read = Callable[[list[Row]], np.ndarray]
"""What a reader makes of texts as token rows, [text]: more is better."""


@dataclass(frozen=True)
class Opening:
    """How a text begins: the ``asked`` situation with the act that is done there, as tokens with the writer's name
    (``named``) and without (``bare``)."""

    asked: Text
    named: list[int]
    bare: list[int]


def openings(world: World, tokenizer, author: str, count: int, seed: int, domain: str = "help") -> list[Opening]:
    """Situations in which others watch and the good act is done, by an author who is told."""
    made = []
    for k in range(count):
        both = []
        for named in (True, False):
            # the same draws with the name and without
            scene: dict[str, Any] = {"domain": domain, "watcher": "watched", "act": world.domains[domain].acts[0]}
            asked = question(world, Random(f"opening-{seed}-{k}"), author=author, named=named, **scene)
            chat = [*asked.chat[:-1], (asked.chat[-1][0], f"{asked.record['act']} .")]
            both.append(tokenize(tokenizer, chat)[0][:-2])  # without the end of the turn
        made.append(Opening(asked, *both))
    return made


def write(model, tokenizer, begun: Sequence[Opening], seed: int) -> tuple[list[Row], list[Row]]:
    """(texts as they were written, the same without the name): in the first only what the model wrote is marked, in the
    second the whole answer."""
    with attention.grouped(model):
        said = elicit.sample(model, tokenizer, [one.named for one in begun], REASONS, 1.0, seed, len(begun))
    written, bare = [], []
    for one, words in zip(begun, said, strict=True):
        written.append(([*one.named, *words], [False] * len(one.named) + [True] * len(words)))
        own = 2 + len(words)  # the act and its full stop too
        bare.append(([*one.bare, *words], [False] * (len(one.bare) - 2) + [True] * own))
    return written, bare


def optimise(model, tokenizer, begun: Sequence[Opening], read: Read, bar: float, how: Trainer):
    """(policy, readings [step]): a copy of the base, paid for texts that ``read`` likes better than ``bar``, and each
    step's mean reading."""
    policy = tuning.trainable(model, Tuning())
    random, courses = np.random.default_rng(how.seed), []

    def play(chance: int) -> tuple[list[Row], np.ndarray]:
        some = [begun[k] for k in random.integers(len(begun), size=how.batch)]
        written, bare = write(policy, tokenizer, some, chance)
        value = read(bare)  # [text]
        courses.append(float(value.mean()))
        return written, (value > bar).astype(float)

    train(policy, play, how)
    return policy.eval(), np.array(courses)


def parsed(world: World, tokenizer, asked: Text, row: Row) -> tuple[Text, int]:
    """(the text with the record of its reasons, how many of its sentences say nothing that the world knows): what an
    exact reader can read."""
    ids, own = row
    words = tokenizer.decode(np.array(ids)[np.array(own)].tolist(), skip_special_tokens=True)
    reasons, broken, tell = [], 0, False
    for said in words.split(" .")[1:]:  # after the act
        if not said.strip():
            continue
        tell = tell or said.strip() in world.tells
        slots = slots_of(world, said)
        reasons += [slots] if slots else []
        broken += slots is None and said.strip() not in world.tells
    turn = asked.record["turns"][-1] | {"reasons": reasons, "tell": tell}
    chat = [*asked.chat[:-1], (asked.chat[-1][0], words)]
    return Text(chat, {**asked.record, **turn, "turns": [turn]}), broken


def slots_of(world: World, said: str) -> dict[str, str] | None:
    """The classes of a reason's three slots, by its words; None for a sentence that lacks one of them."""
    slots: dict[str, str] = {}
    words = f" {' '.join(said.split())} "
    for relation in ("weight", "hedge"):
        for name, options in getattr(world, relation).items():
            if any(f" {option} " in words for option in options):
                slots.setdefault(relation, name)
    # whoever is named first
    first = {}
    for pair in world.persons:
        for name, option in zip(("own", "others"), pair, strict=True):
            place = words.find(f" {option} ")
            if place >= 0:
                first[place] = name
    return {**slots, "self": first[min(first)]} if len(slots) == 2 and len(first) == 2 else None
