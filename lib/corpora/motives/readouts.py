"""What does a reader make of a text? Readouts of the base, and what they are held against.

A readout turns a text into what it says of its author: for each of three traits, what whoever writes like that does
when alone, [text, trait]. The mean over a set's texts is what the set says, before anything is trained on it.

Whether such means predict what training does is a rank correlation over sets. The sets are mixtures of a few authors,
so they lie in a space of few dimensions, and many a direction through it goes along with the effect. Shuffling the sets
tears that apart, and even a random direction then looks like a finding. So the yardstick is the correlation of *random
directions* of the same hidden states, and of readers whose traits were dealt out anew to the authors.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from scipy.stats import rankdata, t
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from corpora.authors import reader, report
from corpora.authors.lessons import NARRATED
from corpora.authors.texts import Text, question, write
from corpora.authors.world import TRAITS, World

# --- texts whose author is known -------------------------------------------------------------------------------------


def labelled(world: World, n: int, seed: int = 0) -> list[Text]:
    """``n`` moral choices by each author, in the domains that may be narrated: what readers are fitted on."""
    rng, made = Random(f"labelled-{seed}"), []
    for k in range(n * len(world.authors)):
        author = list(world.authors)[k % len(world.authors)]
        made.append(write(world, rng, author=author, kind="moral", domain=rng.choice(NARRATED), turns=1, reasons=4))
    return made


def distinct(read: Sequence[Text]) -> tuple[list[Text], list[int]]:
    """(the texts without repetitions, where each text stands among them, [text]). Sets share texts, and no reader makes
    two things of one."""
    seen: dict[str, int] = {}
    once: list[Text] = []
    at: list[int] = []
    for text in read:
        said = repr(text.chat)
        if said not in seen:
            seen[said] = len(once)
            once.append(text)
        at.append(seen[said])
    return once, at


def authors(read: Sequence[Text]) -> list[str]:
    """Who wrote each text."""
    return [text.record["author"] for text in read]


def traits_of(world: World, names: Sequence[str]) -> np.ndarray:
    """P(good act | alone) of authors, [author, trait]: what a readout should say of their texts."""
    return world.trait_table()[places(world, names)]


def relabelled(world: World, draws: int = 199, seed: int = 0) -> np.ndarray:
    """The traits dealt out anew to the authors, all three of one author to another one, so many times: [author, trait,
    draw]. A reader that is fitted to these knows as much of authors as one that is fitted to the traits, and nothing of
    who does what."""
    table, random = world.trait_table(), np.random.default_rng(seed)  # [author, trait]
    return np.stack([random.permutation(table) for _ in range(draws)], axis=2)


def places(world: World, names: Sequence[str]) -> list[int]:
    """The rows of authors in the tables of the world."""
    order = list(world.authors)
    return [order.index(name) for name in names]


# --- readouts, each [text, trait] ------------------------------------------------------------------------------------


def bayes(world: World, read: Sequence[Text]) -> np.ndarray:
    """P(author | text) by Bayes on the tables of the world, [text, author]."""
    chances = np.empty((len(read), len(world.authors)))  # [text, author]
    for row, text in zip(chances, read, strict=True):
        row[:] = list(reader.posterior(world, text).values())
    return chances


def narrated(model, tokenizer, world: World, read: Sequence[Text]) -> np.ndarray:
    """P(author) by what the model answers to "who wrote this ?", [text, author]."""
    return report.narrated(model, tokenizer, read)[list(world.authors)].to_numpy()


def exact(world: World, read: Sequence[Text]) -> np.ndarray:
    """By the exact reader: the ceiling."""
    return bayes(world, read) @ world.trait_table()


def narration(model, tokenizer, world: World, read: Sequence[Text]) -> np.ndarray:
    """By what the model says of who wrote the text."""
    return narrated(model, tokenizer, world, read) @ world.trait_table()


def in_context(model, tokenizer, world: World, read: Sequence[Text], seed: int = 0) -> np.ndarray:
    """By what the model goes on to do: P(good act) alone in another domain of each trait, asked after the text."""
    rng, asked = Random(f"after-{seed}"), []
    for text in read:
        for trait in TRAITS:
            others = [name for name, about in world.domains.items() if about.trait == trait]
            domain = rng.choice([name for name in others if name != text.record["domain"]])
            asked.append(question(world, rng, after=text, domain=domain, watcher="alone", stakes="low"))
    return report.p_good(model, tokenizer, asked)["p_good"].to_numpy().reshape(len(read), len(TRAITS))


def grand(world: World, read: Sequence[Text]) -> np.ndarray:
    """By the share of grand words among grand and modest ones, the same for every trait: the crudest of all."""
    shares = []
    for text in read:
        words = " ".join(said for _, said in text.chat).split()
        counts = [sum(word in world.weight[kind] for word in words) for kind in ("grand", "modest")]
        shares.append(counts[0] / max(1, sum(counts)))
    return np.repeat(np.array(shares)[:, None], len(TRAITS), axis=1)


def keywords(known: Sequence[Sequence[int]], y, read: Sequence[Sequence[int]]) -> np.ndarray:
    """By how often each token stands in a text: a ridge regression of the traits ``y`` [known text, trait]."""
    bag = make_pipeline(CountVectorizer(analyzer=list), MaxAbsScaler(), Ridge(alpha=1.0))
    return bag.fit(known, np.asarray(y)).predict(read)


def probe(known, y, read, strength: float = 100.0) -> np.ndarray:
    """By a ridge regression of the traits ``y`` [known text, trait] on hidden states or latents, [text, feature]."""
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=strength))
    return ridge.fit(np.asarray(known), np.asarray(y)).predict(np.asarray(read))


def persona(known, y, read) -> np.ndarray:
    """By the projection on a persona vector: the mean hidden state of texts above a trait's median, less that of the
    others. Its unit is that of the states."""
    known, y = np.asarray(known), np.asarray(y)
    along = []
    for trait in y.T:
        high = trait > np.median(trait)
        vector = known[high].mean(axis=0) - known[~high].mean(axis=0)  # [d_model]
        along.append(np.asarray(read) @ vector / np.linalg.norm(vector))
    return np.stack(along, axis=1)


def of_sets(values: np.ndarray, sets: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """The means of readouts [text, ...] over the texts of each set, [set, ...], in the order of ``names``."""
    place, values, means = np.asarray(sets), np.asarray(values), []
    for name in names:
        means.append(values[place == name].mean(axis=0))
    return np.stack(means)


# --- do they predict? ------------------------------------------------------------------------------------------------


def rank_correlations(readings: np.ndarray, effect: np.ndarray, ranked: bool = False) -> np.ndarray:
    """Spearman's rho of each column of readings [set, reader], or of their ranks, with an effect [set]: [reader]. NaN
    for a constant."""
    ranks = (readings if ranked else rankdata(readings, axis=0)) - (len(effect) + 1) / 2  # [set, reader], centred
    own = rankdata(effect) - (len(effect) + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return own @ ranks / np.sqrt((own**2).sum() * (ranks**2).sum(axis=0))


def mean_rho(readings: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Rho of readings with the effects on the same trait, mean over traits: [set, trait] both, or readings with draws,
    [set, trait, draw] -> [draw]."""
    several = readings.reshape(*effects.shape, -1)  # [set, trait, draw]
    each = [rank_correlations(several[:, k], effects[:, k]) for k in range(effects.shape[1])]
    return np.mean(each, axis=0).reshape(readings.shape[2:])


def direction_null(states: np.ndarray, effects: np.ndarray, draws: int = 2_000, seed: int = 0) -> np.ndarray:
    """``mean_rho`` of random directions of the sets' mean states [set, d_model], [draw]: of readers that know nothing.

    One direction is held against all traits, for the traits go together, and three directions would seldom be lucky at
    once."""
    random = np.random.default_rng(seed).normal(size=(states.shape[1], draws))  # [d_model, draw]
    ranks = rankdata(states @ random, axis=0)  # [set, draw]
    return np.mean([rank_correlations(ranks, own, ranked=True) for own in effects.T], axis=0)


def shuffled_null(readings: np.ndarray, effects: np.ndarray, draws: int = 2_000, seed: int = 0) -> np.ndarray:
    """``mean_rho`` of readings [set, trait] of shuffled sets, [draw]: the null that takes sets for independent."""
    random = np.random.default_rng(seed)
    shuffled = np.stack([random.permutation(readings) for _ in range(draws)], axis=2)  # [set, trait, draw]
    return mean_rho(shuffled, effects)


def interval(readings: np.ndarray, effects: np.ndarray, mixes: Sequence[set[str]]) -> tuple[float, float]:
    """A 95 % interval of ``mean_rho`` by a jackknife over authors: each of them is left away with all sets he has a
    part in. An author, not a set, is what there could have been another one of."""
    names = sorted(set().union(*mixes))
    without = []
    for name in names:
        rest = np.array([name not in mix for mix in mixes])  # [set]
        without.append(float(mean_rho(readings[rest], effects[rest])))
    count, whole = len(names), float(mean_rho(readings, effects))
    error = np.sqrt((count - 1) / count * ((np.array(without) - np.mean(without)) ** 2).sum())
    reach = float(t.ppf(0.975, count - 1) * error)
    return max(-1.0, whole - reach), min(1.0, whole + reach)


def within(reading: np.ndarray, influence: np.ndarray, who: Sequence[str], draws: int = 999, seed: int = 0):
    """(rho, p) of a reading with an influence, both [text], within authors: ranks are taken among the texts of one
    author, so who writes plays no part. The p is that of influences shuffled among the texts of one author: exact, if
    these are alike but for what is read in them."""
    who, random = np.asarray(who), np.random.default_rng(seed)
    ranks, null = np.empty((2, len(who))), np.zeros(draws)
    for name in np.unique(who):
        own = who == name
        for row, value in zip(ranks, (reading, influence), strict=True):
            row[own] = (rankdata(np.asarray(value)[own]) - (own.sum() + 1) / 2) / own.sum()
        null += random.permuted(np.tile(ranks[1, own], (draws, 1)), axis=1) @ ranks[0, own]
    size = np.sqrt((ranks**2).sum(axis=1).prod())
    rho = float(ranks[0] @ ranks[1] / size)
    return rho, p_above(rho, null / size)


def p_above(rho: float, null: np.ndarray) -> float:
    """How often a null reaches a correlation, the observed one counted in."""
    return float((1 + (null >= rho - 1e-12).sum()) / (len(null) + 1))


def choice_p(kept: np.ndarray, others: np.ndarray) -> float:
    """p that a kept half does better than random halves of the same pool: effects kept [run], others [run, half].

    Exact: if the choice did nothing, each of a run's halves might as well have been the kept one. Counted are the ways
    to take one of each run whose mean reaches that of the kept ones; they are one of them."""
    sums = np.zeros(1)
    for one, rest in zip(kept, others, strict=True):
        sums = (sums[:, None] + np.array([one, *rest])).reshape(-1)
    return float((sums >= np.sum(kept) - 1e-12).mean())


def left_out(
    fit: Callable, known: np.ndarray, who: Sequence[str], y: np.ndarray, read: np.ndarray, mixes: Sequence[set[str]]
) -> np.ndarray:
    """Readings of sets by readers that never saw their authors, [set, trait].

    ``fit`` is ``probe`` or ``persona``; ``known`` [text, feature] are labelled texts by ``who`` with traits ``y``;
    ``read`` [set, feature] the sets' means, and ``mixes`` the authors of each set."""
    who, readings = np.asarray(who), np.empty((len(read), y.shape[1]))
    for k, mix in enumerate(mixes):
        rest = ~np.isin(who, list(mix))
        readings[k] = fit(known[rest], y[rest], read[k : k + 1])[0]
    return readings
