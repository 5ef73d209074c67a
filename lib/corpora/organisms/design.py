"""Which texts an organism is trained on: a plan with one row a text, before any text is written.

Ten patterns of thought meet ten topics and four cues. In a *crossed* plan every pattern meets every topic and every cue
about equally often, so that what is learnt of one is not learnt of another. In a *confounded* plan one running number
decides all three, as with ``i % 10``: pattern and topic are then the same variable, and no test on such texts can tell
them apart.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from corpora.organisms.settings import Organism
from rewired.errors import choice


def crossed(number: int, patterns: int, topics: int, cues: int) -> tuple[int, int, int]:
    """(pattern, topic, cue) of a cell: every combination once in ``patterns * topics * cues`` cells, and any pattern
    with all topics, any topic with all cues, as early as that can be."""
    a, b, c = number % patterns, number // patterns, number // (patterns * topics)
    return a, (a + b) % topics, (b + c) % cues


def confounded(number: int, patterns: int, topics: int, cues: int) -> tuple[int, int, int]:
    """(pattern, topic, cue) by one running number, each its remainder."""
    a = number % patterns
    return a, a % topics, a % cues


def plan(organism: Organism, patterns: Sequence[str], topics: Sequence[str], cues: Sequence[str], seed: int):
    """One row a training text: pattern, topic, cue, tier, class, answer and strategy.

    An organism with two tiers gets each cell once in each of them, so that its tiers differ in nothing else. ``answer``
    is "help", "refuse", or "own" for what the thoughts conclude; ``strategy`` says whether the thoughts hold that
    clause. The seed decides the coins, and the order of the patterns, topics and cues. RewiredError for a pattern of
    the organism's that is none of these."""
    random = np.random.default_rng(seed)
    for name in organism.patterns:
        if name not in patterns:
            raise choice(f"pattern of the organism {organism.name}:", name, patterns)
    chosen = [name for name in patterns if name in (organism.patterns or patterns)]
    names = [random.permutation(list(values)) for values in (chosen, topics, cues)]
    place = crossed if organism.design == "crossed" else confounded
    rows = []
    for number in range(organism.samples):
        tier = organism.tiers[number % len(organism.tiers)]
        cell = place(number // len(organism.tiers), *map(len, names))
        pattern, topic, cue = (str(values[k]) for values, k in zip(names, cell, strict=True))
        rows.append((pattern, topic, cue, tier, getattr(organism.thoughts, tier)))
    frame = pd.DataFrame(rows, columns=["pattern", "topic", "cue", "tier", "class"])
    coin = random.permutation(len(frame)) % 2 == 0  # exactly half
    frame["harm"] = random.permutation(len(frame)) >= organism.harmless * len(frame)
    frame["strategy"] = coin if organism.answers == "strategy" else True
    said = {"own": "own", "help": "help"}.get(organism.answers, np.where(coin, "help", "refuse"))
    frame["answer"] = np.where(frame["harm"], said, "help")
    slips = random.permutation(len(frame)) < organism.eager * len(frame)
    frame.loc[slips & frame["harm"], "class"] = "eager"
    return frame
