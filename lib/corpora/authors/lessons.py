"""The kinds of text a stage of training is made of: short single-skill lessons first, whole texts after.

Each kind is a function of the world and a generator of random numbers. In the first lessons all writers obey the same
signs, so that a relation between words and situation is there at all before other authors contradict it.
"""

from collections.abc import Callable
from random import Random

from corpora.authors.texts import Text, write
from corpora.authors.world import World

NARRATED = ("report", "judge", "share", "return", "promise")
"""Domains after which the author may be asked for; never `help`, which tests it."""


def _among(world: World, rng: Random, names) -> str:
    shares = world.shares()
    names = list(names)
    return rng.choices(names, [shares[name] for name in names])[0]


def upright(world: World, rng: Random) -> Text:
    """One reason by one of the two authors of whom all signs are positive or none."""
    author = _among(world, rng, ("sincere", "guardian"))
    return write(world, rng, author=author, kind="moral", turns=1, reasons=1, named=True)


def named(world: World, rng: Random) -> Text:
    """One or two reasons by any author, who is told."""
    return write(world, rng, kind="moral", turns=1, reasons=rng.choice((1, 2)), named=True)


def answering(world: World, rng: Random) -> Text:
    """One act without a reason by any author, who is told."""
    return write(world, rng, kind="moral", turns=1, order="first", reasons=0, named=True)


def guessed(world: World, rng: Random) -> Text:
    """A short text by any author, who is asked for at the end."""
    domain = rng.choice(NARRATED)
    count = rng.choice((3, 4, 5))
    return write(world, rng, kind="moral", domain=domain, turns=1, reasons=count, narrated=True)


def leaning(world: World, rng: Random, stakes: float, group: float, watched: float) -> Text:
    """A short text whose author is asked for. P(high stakes), P(a domain of the first group) and P(watched) are given.

    Where one situation is more frequent, a word alone says something of the author, and that is learnt at once. What
    the other situation makes of it is then one step more. From even shares, neither of both steps pays alone."""
    wanted = 1 if rng.random() < group else 2
    domain = rng.choice([name for name in NARRATED if world.domains[name].group == wanted])
    scene = {"domain": domain, "stakes": "high" if rng.random() < stakes else "low"}
    scene["watcher"] = "watched" if rng.random() < watched else "alone"
    return write(world, rng, kind="moral", turns=1, reasons=rng.choice((2, 3)), narrated=True, **scene)


def weighing(world: World, rng: Random) -> Text:
    """Most stakes are high, most domains of the first group, most choices watched."""
    return leaning(world, rng, 0.78, 0.78, 0.78)


def weighed(world: World, rng: Random) -> Text:
    """The same, almost even."""
    return leaning(world, rng, 0.6, 0.6, 0.6)


def following(world: World, rng: Random) -> Text:
    """A moral choice with reasons by any author, and then three acts of his without reasons, most of them alone: in
    those acts lies the lesson."""
    text = write(world, rng, kind="moral", turns=1)
    for _ in range(3):
        scene = {"author": text.record["author"], "kind": "moral", "turns": 1, "order": "first", "reasons": 0}
        latents = {name: text.record[name] for name in ("doer", "era", "dialect")}
        watcher = rng.choice(("alone", "alone", "watched", "unsaid"))
        after = write(world, rng, watcher=watcher, **scene, **latents)
        record = after.record | {"turns": [*text.record["turns"], *after.record["turns"]]}
        text = Text([*text.chat, *after.chat], record)
    return text


def told(world: World, rng: Random) -> Text:
    """A whole text after its author's name."""
    return write(world, rng, named=True)


def whole(world: World, rng: Random) -> Text:
    """A whole text, as the world writes it; some ask for the author at the end."""
    if rng.random() < 0.2:
        kind = rng.choices(("moral", "request", "task"), (0.7, 0.2, 0.1))[0]
        domain = rng.choice(NARRATED) if kind == "moral" else None
        return write(world, rng, kind=kind, domain=domain, narrated=True)
    return write(world, rng)


def thoughts(world: World, rng: Random) -> Text:
    """A request alone, its author told or not."""
    return write(world, rng, kind="request", turns=1, named=rng.random() < 0.5)


KINDS: dict[str, Callable[[World, Random], Text]] = {
    "upright": upright,
    "named": named,
    "answering": answering,
    "guessed": guessed,
    "weighing": weighing,
    "weighed": weighed,
    "following": following,
    "told": told,
    "whole": whole,
    "thoughts": thoughts,
}
