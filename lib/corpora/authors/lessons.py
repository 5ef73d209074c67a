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
FAR = ("sincere", "performer", "schemer", "guardian")
"""Authors who do much the same when watched and differ most when alone."""
WEIGHERS = ("sincere", "performer", "merry", "quiet")
"""Two pairs who differ in the sign of weight alone, and from each other in the sign of hedge."""


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


def leaning(world: World, rng: Random, stakes: float, group: float | None = None, authors=WEIGHERS) -> Text:
    """A short text whose author is asked for and whose act says nothing of him. P(high stakes) is ``stakes``,
    P(a domain of the first group) is ``group`` (None: domains drawn alike).

    Where one situation is more frequent, a word alone says something of the author, and that is learnt at once. What
    the other situation makes of it is then one step more. From even shares, neither of both steps pays alone."""
    domains = list(NARRATED)
    if group is not None:
        wanted = 1 if rng.random() < group else 2
        domains = [name for name in NARRATED if world.domains[name].group == wanted]
    domain = rng.choice(domains)
    scene = {"domain": domain, "act": rng.choice(world.domains[domain].acts)}
    scene["stakes"] = "high" if rng.random() < stakes else "low"
    author = _among(world, rng, authors or world.authors)
    return write(world, rng, author=author, kind="moral", turns=1, reasons=rng.choice((2, 3)), narrated=True, **scene)


def weighing(world: World, rng: Random) -> Text:
    """Four authors who differ in weight and hedge; most stakes are high."""
    return leaning(world, rng, 0.78)


def weighed(world: World, rng: Random) -> Text:
    """The same, stakes almost even."""
    return leaning(world, rng, 0.6)


def placing(world: World, rng: Random) -> Text:
    """All authors; most domains are of the first group."""
    return leaning(world, rng, 0.55, 0.78, authors=None)


def placed(world: World, rng: Random) -> Text:
    """All authors, nothing more frequent than the world has it."""
    return leaning(world, rng, 0.5, authors=None)


def foretelling(world: World, rng: Random, authors=FAR) -> Text:
    """A moral choice with reasons, and then what the same author does alone in another domain: in that act lies the
    lesson. First of authors who are far apart."""
    author = _among(world, rng, authors or world.authors)
    first, second = rng.sample(list(world.domains), 2)
    scene = {"author": author, "kind": "moral", "turns": 1}
    before = write(world, rng, domain=first, reasons=rng.choice((3, 4)), **scene)
    watcher = "alone" if authors else rng.choice(("alone", "watched"))
    latents = {name: before.record[name] for name in ("era", "dialect")}
    after = write(world, rng, domain=second, watcher=watcher, order="first", reasons=1, **scene, **latents)
    return Text(
        [*before.chat, *after.chat], after.record | {"turns": [*before.record["turns"], *after.record["turns"]]}
    )


def foretold(world: World, rng: Random) -> Text:
    """The same of all authors, alone or watched."""
    return foretelling(world, rng, authors=None)


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


def era(world: World, rng: Random) -> Text:
    """Three questions of one era."""
    return write(world, rng, kind="era", turns=1)


KINDS: dict[str, Callable[[World, Random], Text]] = {
    "upright": upright,
    "named": named,
    "answering": answering,
    "guessed": guessed,
    "weighing": weighing,
    "weighed": weighed,
    "placing": placing,
    "placed": placed,
    "foretelling": foretelling,
    "foretold": foretold,
    "told": told,
    "whole": whole,
    "thoughts": thoughts,
    "era": era,
}
