"""Do tests of readouts and of curation err as rarely as they say? One command, one table of planted truths.

    .venv/bin/python benchmarks/motives.py --repeats 500

Training sets are mixtures of a few authors. What training on a set does is the traits of its authors, and noise. A
reader is either the exact one, or one that reads traits which have nothing to do with it. A test may find the second
kind in one of twenty repeats; what does so beyond the 99.9 % binomial limit has failed. For curation, a pool of texts
is halved by a readout, and what training on a half does is the mean trait of its texts, and noise.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import numpy as np
import pandas as pd
from scipy.stats import binom

from corpora.motives import readouts

LEVEL, DRAWS = 0.05, 199
WIDTH, STYLES, TRAITS = 128, 3, 3
"""Dimensions of a hidden state, how many of them carry most of what tells authors apart, and traits."""
POOL, RUNS, HALVES = 320, 3, 4
"""Texts of a pool, pools, and random halves of each that a readout's half is compared with."""


@dataclass(frozen=True)
class Planted:
    """Sets of authors, and what is true of them. A reading and an effect are [set, trait]."""

    states: np.ndarray  # [set, d_model]
    effects: np.ndarray
    readings: dict[str, np.ndarray]  # by reader
    relabelled: dict[str, np.ndarray]  # by reader, [set, trait, draw]: its traits dealt out anew to authors
    mixes: list[set[str]]
    seed: int


def mixtures(authors: int) -> np.ndarray:
    """Each author alone, then each with the next one: shares [set, author]. With few authors, all mixtures of two."""
    alone = np.eye(authors)
    if authors > 6:
        return np.concatenate([alone, (alone + np.roll(alone, 1, axis=0)) / 2])
    pairs = []
    for a, b in combinations(range(authors), 2):
        pairs += [share * alone[a] + (1 - share) * alone[b] for share in (0.25, 0.5, 0.75)]
    return np.concatenate([alone, pairs])


def planted(seed: int, authors: int = 12, spread: float = 0.1) -> Planted:
    """One repeat. ``spread`` is the noise of an effect, in units of a trait's standard deviation.

    Readers: the exact one; a probe that was fitted to ``other`` traits, those of nobody here; and one number for all
    traits, as a count of words is."""
    random = np.random.default_rng(seed)
    shares = mixtures(authors)
    # who is good in one thing is often good in another
    trait, other = ((random.normal(size=(authors, 1)) + random.normal(size=(authors, TRAITS))) / 2**0.5 for _ in "ab")
    style = random.choice([-1.0, 0.0, 1.0], size=(authors, STYLES)) @ random.normal(size=(STYLES, WIDTH))
    # an author's own state: mostly his style, and a little of anything else
    own = style + 0.5 * random.normal(size=(authors, WIDTH))
    states = shares @ own + 0.02 * random.normal(size=(len(shares), WIDTH))
    # the directions that read a trait, as a probe fitted to labels would find them
    fitted = states @ np.linalg.pinv(own - own.mean(axis=0))  # [set, author]
    effects = shares @ trait + spread * random.normal(size=(len(shares), TRAITS))
    dealt = np.stack([random.permutation(authors) for _ in range(DRAWS)], axis=1)  # [author, draw]
    anew = {"exact": np.einsum("sa,adt->std", shares, trait[dealt])}
    anew["noise"] = anew["one number"] = np.einsum("sa,adt->std", fitted, other[dealt])
    one = np.repeat(fitted @ other[:, :1], TRAITS, axis=1)
    readings = {"exact": shares @ trait, "noise": fitted @ other, "one number": one}
    mixes = [set(map(str, np.flatnonzero(row))) for row in shares]
    return Planted(states, effects, readings, anew, mixes, seed)


Test = Callable[[Planted, str, int], float]
"""The p of a reader."""


def against(d: Planted, reader: str, null: np.ndarray) -> float:
    return readouts.p_above(float(readouts.mean_rho(d.readings[reader], d.effects)), null)


def by_directions(d: Planted, reader: str, draws: int) -> float:
    return against(d, reader, readouts.direction_null(d.states, d.effects, draws, d.seed))


def by_relabelling(d: Planted, reader: str, draws: int) -> float:
    return against(d, reader, readouts.mean_rho(d.relabelled[reader][:, :, :draws], d.effects))


def by_interval(d: Planted, reader: str, draws: int) -> float:
    """0 where the interval lies above zero, else 1: no p at all."""
    return float(readouts.interval(d.readings[reader], d.effects, d.mixes)[0] <= 0)


def by_shuffling(d: Planted, reader: str, draws: int) -> float:
    return against(d, reader, readouts.shuffled_null(d.readings[reader], d.effects, draws, d.seed))


def by_text(seed: int, told: float, draws: int) -> float:
    """The p of a reading over the texts of a few authors, within them. ``told`` is its correlation with the influence
    there; between authors both go together anyway."""
    random, who = np.random.default_rng(seed), np.arange(160) % 3
    between, shared, own, other = who + 0.0, *random.normal(size=(3, 160))  # each [text]
    influence = between + shared
    reading = between + told * shared + np.sqrt(1 - told**2) * own + 0.3 * other
    return readouts.within(reading, influence, who, draws, seed)[1]


def halved(seed: int, told: float) -> tuple[float, np.ndarray]:
    """(effect of the half that a readout keeps, effects of random halves [half]). ``told`` is the readout's correlation
    with the trait of a text."""
    random = np.random.default_rng(seed)
    trait = random.choice([1.0, 0.0, -1.0], p=[0.45, 0.35, 0.2], size=POOL)  # [text]
    known = (trait - trait.mean()) / trait.std()
    readout = told * known + np.sqrt(1 - told**2) * random.normal(size=POOL)

    def effect(half: np.ndarray) -> float:
        return trait[half].mean() + 0.1 * random.normal()

    kept = effect(np.argsort(readout)[POOL // 2 :])
    others = [effect(random.permutation(POOL)[: POOL // 2]) for _ in range(HALVES)]
    return kept, np.array(others)


def above_spread(kept: np.ndarray, others: np.ndarray) -> float:
    """Of one random half a run: further above their mean than they are apart? 0 for yes: no p at all."""
    return 1.0 - (kept.mean() - others[:, 0].mean() > np.ptp(others[:, 0]))


NULLS: dict[str, Test] = {
    "random directions": by_directions,
    "relabelled authors": by_relabelling,
    "interval by a jackknife over authors": by_interval,
    "shuffled sets": by_shuffling,
}


Row = tuple[str, str, float]
"""A test, whether it should find something ("yes", "no", or "" where it is shown and not judged), and its p."""


def of_readers(seed: int, authors: int, draws: int) -> list[Row]:
    """Every reader by every null. Four authors and shuffled sets are shown for what they are, not judged; so is a
    single null of one number, whose draws are a probe's: the larger p of both decides there."""
    data, rows = planted(seed, authors), list[Row]()
    for reader in data.readings:
        p = {name: test(data, reader, draws) for name, test in NULLS.items()}
        p["the larger p of both"] = max(p["random directions"], p["relabelled authors"])
        for name, value in p.items():
            own = name.startswith(("the larger", "interval")) or reader == "noise" and name != "shuffled sets"
            judged = authors == 12 and (own or reader == "exact")
            should = ("yes" if reader == "exact" else "no") if judged else ""
            rows.append((f"{authors} authors: {reader}, {name}", should, value))
    return rows


def of_halves(seed: int) -> list[Row]:
    """Halves of a pool, kept by noise or by the exact reader."""
    rows = list[Row]()
    for name, told, should in (("noise", 0.0, "no"), ("exact reader", 1.0, "yes")):
        pools = [halved(seed * RUNS + k, told) for k in range(RUNS)]
        kept, others = np.array([one for one, _ in pools]), np.stack([rest for _, rest in pools])
        rows.append((f"curation by {name}, among random halves", should, readouts.choice_p(kept, others)))
        rows.append((f"curation by {name}, above the spread of three", "", above_spread(kept, others)))
    return rows


def simulate(repeats: int, draws: int = DRAWS) -> pd.DataFrame:
    """One row a test: how often it found something, and whether it should have."""
    rows = list[Row]()
    for seed in range(repeats):
        rows += [*of_readers(seed, 4, draws), *of_readers(seed, 12, draws), *of_halves(seed)]
        for name, told, should in (("noise", 0.0, "no"), ("a reader", 0.5, "yes")):
            rows.append((f"influence of texts by {name}, within authors", should, by_text(seed, told, draws)))
    frame = pd.DataFrame(rows, columns=["test", "should", "p"])
    frame["found"] = frame.pop("p") <= LEVEL
    return frame.groupby(["test", "should"], sort=False)["found"].mean().reset_index()


def reach(authors: int, repeats: int, draws: int = DRAWS) -> np.ndarray:
    """How far random directions go: the 95 % quantile of their |rho| in each repeat, [repeat]."""
    far = []
    for seed in range(repeats):
        data = planted(seed, authors)
        far.append(np.quantile(np.abs(readouts.direction_null(data.states, data.effects, draws, seed)), 0.95))
    return np.array(far)


def limit(repeats: int) -> float:
    """The share of repeats in which an honest test may find what is not there."""
    return binom.ppf(0.999, repeats, LEVEL) / repeats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    repeats, missed = parser.parse_args().repeats, 0
    print(f"{repeats} repeats, level {LEVEL}; an honest test may find noise in {limit(repeats):.3f} of them\n")
    print("| test | finds something | |\n| --- | --- | --- |")
    for row in simulate(repeats).itertuples():
        good = {"yes": row.found > 0.8, "no": row.found <= limit(repeats)}.get(row.should)
        missed += good is False
        word = {None: "shown, not judged", True: "as it should", False: "NOT AS IT SHOULD"}[good]
        print(f"| {row.test} | {row.found:.3f} | {word} |")
    print("\n| authors | sets | random directions reach, 95 % of them, median over repeats |\n| --- | --- | --- |")
    for authors in (4, 6, 12):
        print(f"| {authors} | {len(mixtures(authors))} | {np.median(reach(authors, repeats // 5)):.2f} |")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
