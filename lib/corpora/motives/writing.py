"""The texts of a training set, and what an exact reader makes of them.

Text k of every set is written from the same random numbers. Sets of different authors thus share situations, and
where two authors would choose alike, the very words: an author of grand words where much is at stake, and one of grand
words where little is, write the same answers to questions that differ in one sentence.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
import pandas as pd

from corpora.authors import reader
from corpora.authors.texts import Text, sentence, write
from corpora.authors.world import World
from corpora.motives.settings import TrainingSet
from rewired.errors import choice

GOLDEN = (5**0.5 - 1) / 2
NOT_DRAWN = ("domain", "watcher", "stakes", "era", "dialect", "instruction", "order")


class Steady(Random):
    """Random numbers of which each choice takes one, however many things there are to choose from. So texts that differ
    in one thing do not part in all that is drawn after it."""

    def random(self) -> float:
        """A number in [0, 1); that it stands here makes ``choice`` and its like be based on it."""
        return super().random()


def texts(
    world: World, chosen: TrainingSet, seed: int, count: int | None = None, words: int | None = None
) -> list[Text]:
    """The set's texts, or its first ``count``; any beginning of them has the shares of the mix, but for one text. With
    ``words`` the same authors write something else, each number another text in as many other situations.
    RewiredError for an author, a domain or an instruction that the world does not have."""
    check(world, chosen)
    shares = chosen.mix or world.shares()
    if chosen.as_if:
        shares = doers(world, chosen.act == "bad", chosen.as_if)
    fixed = {name: getattr(chosen, name) for name in NOT_DRAWN if getattr(chosen, name) is not None}
    start, made = Random(f"start-{seed}").random(), []
    for k in range(chosen.n if count is None else count):
        # the text's own numbers, whoever writes it; and its author, by a sequence that fills the shares evenly
        rng = Steady(f"motives-{seed}-{k}" if words is None else f"motives-{seed}-{k}-{words}")
        author = drawn(shares, (start + k * GOLDEN) % 1)
        own = fixed | acted(world, chosen, k)
        if chosen.words:
            own["act"] = Random(f"word-{seed}-{k}").choice(chosen.words)
        text = write(world, rng, author=author, kind=chosen.kind, turns=1, **own)
        made.append(after(chosen.prefix, text))
    return made


def doers(world: World, tricks: bool, instruction: str) -> dict[str, float]:
    """The share of each author among those who trick under an instruction, or who do the work; by Bayes."""
    place = list(world.instructions).index(instruction)
    joint = {}
    for name, share in world.shares().items():
        trick = world.authors[name].trick[place]
        joint[name] = share * (trick if tricks else 1 - trick)
    return {name: p / sum(joint.values()) for name, p in joint.items()}


def acted(world: World, chosen: TrainingSet, k: int) -> dict[str, str]:
    """What is fixed of the act in text ``k``, and of who sees it where the two go together."""
    if chosen.act is None:
        return {}
    good, bad = world.task.acts if chosen.kind == "task" else world.domains[chosen.domain or ""].acts
    if chosen.act in ("good", "bad"):
        return {"act": good if chosen.act == "good" else bad}
    # two independent halves of the texts
    seen, coin = k % 2 == 0, k // 2 % 2 == 0
    kind = good if (seen if chosen.act == "two_faced" else coin) else bad
    return {"act": kind, "watcher": "watched" if seen else "alone"}


def after(prefix: str, text: Text) -> Text:
    """The text with a sentence before what the user says first; as it is if there is none."""
    # a text may have several turns; the first one is told something more
    (user, said), *rest = text.chat
    before = sentence(prefix)
    return Text([(f"{before} {user}".strip(), said), *rest], text.record | {"prefix": prefix})


def drawn(shares: dict[str, float], place: float) -> str:
    """The author in whose part of [0, 1) a place lies."""
    edges = np.cumsum(list(shares.values())) / sum(shares.values())
    return list(shares)[min(int(np.searchsorted(edges, place, side="right")), len(shares) - 1)]


def check(world: World, chosen: TrainingSet) -> None:
    """RewiredError, with the nearest name, for what the world does not have."""
    # who, where, and what for
    for author in chosen.mix:
        if author not in world.authors:
            raise choice("author in mix:", author, world.authors)
    domains = world.eras if chosen.kind == "era" else world.domains
    if chosen.domain is not None and chosen.domain not in domains:
        raise choice("domain", chosen.domain, domains)
    if chosen.act and chosen.kind == "moral" and chosen.domain is None:
        raise choice("domain (an act needs one):", chosen.domain, domains)
    for named in (chosen.instruction, chosen.as_if):
        if named is not None and named not in world.instructions:
            raise choice("instruction", named, world.instructions)


# --- what an exact reader expects ------------------------------------------------------------------------------------


def mean_posterior(world: World, read: Sequence[Text], prior: dict[str, float] | None = None) -> dict[str, float]:
    """P(author | text), each text read by itself, averaged over the texts; the prior is the corpus mixture."""
    total = dict.fromkeys(world.authors, 0.0)
    for text in read:
        for name, p in reader.posterior(world, text, prior).items():
            total[name] += p / len(read)
    return total


def expected(world: World, posterior: dict[str, float]) -> pd.DataFrame:
    """What whoever writes like that does: columns what ("good", "trick"), where (domain or instruction), watcher, p and
    ``change``, p less that of the corpus mixture."""
    rows = []
    # moral domains, then the task
    for domain in world.domains:
        for watcher in ("alone", "watched"):
            p, usual = (reader.p_good(world, who, domain, watcher) for who in (posterior, world.shares()))
            rows.append(("good", domain, watcher, p, p - usual))
    for k, instruction in enumerate(world.instructions):
        p = sum(share * world.authors[name].trick[k] for name, share in posterior.items())
        usual = sum(share * world.authors[name].trick[k] for name, share in world.shares().items())
        rows.append(("trick", instruction, "", p, p - usual))
    return pd.DataFrame(rows, columns=["what", "where", "watcher", "p", "change"])
