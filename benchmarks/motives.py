"""Do tests of readouts and of curation err as rarely as they say? One command, one table of planted truths.

    .venv/bin/python benchmarks/motives.py --repeats 500

Training sets are mixtures of a few authors. What training on a set does is the trait of its authors, and noise. A
reader is either the exact one, or one that reads a trait which has nothing to do with it. A test may find the second
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
WIDTH, STYLES = 128, 3
"""Dimensions of a hidden state, and how many of them carry most of what tells authors apart."""
POOL, RUNS, HALVES = 320, 3, 6
"""Texts of a pool, pools, and random halves of each that a readout's half is compared with."""


@dataclass(frozen=True)
class Planted:
    """Sets of authors, and what is true of them."""

    states: np.ndarray  # [set, d_model]
    effect: np.ndarray  # [set]
    exact: np.ndarray  # [set]: the trait, as far as it can be read
    noise: np.ndarray  # [set]: a direction that reads another trait
    relabelled: dict[str, np.ndarray]  # of either reader, [set, draw]: its trait dealt out anew to authors
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
    """One repeat. ``spread`` is the noise of an effect, in units of a trait's standard deviation."""
    random = np.random.default_rng(seed)
    shares = mixtures(authors)
    trait, other = random.normal(size=(2, authors))
    style = random.choice([-1.0, 0.0, 1.0], size=(authors, STYLES)) @ random.normal(size=(STYLES, WIDTH))
    # an author's own state: mostly his style, and a little of anything else
    own = style + 0.5 * random.normal(size=(authors, WIDTH))
    states = shares @ own + 0.02 * random.normal(size=(len(shares), WIDTH))
    # the direction that reads a trait of nobody's, as a probe fitted to wrong labels would find it
    fitted = np.linalg.pinv(own - own.mean(axis=0))  # [d_model, author]
    effect = shares @ trait + spread * random.normal(size=len(shares))
    dealt = np.stack([random.permutation(authors) for _ in range(DRAWS)], axis=1)  # [author, draw]
    anew = {"exact": shares @ trait[dealt], "noise": states @ fitted @ other[dealt]}
    return Planted(states, effect, shares @ trait, states @ fitted @ other, anew, seed)


Test = Callable[[Planted, str, int], float]
"""The p of a reader, "exact" or "noise"."""


def against(d: Planted, reader: str, null: np.ndarray) -> float:
    return readouts.p_above(readouts.rank_correlations(getattr(d, reader)[:, None], d.effect)[0], null)


def by_directions(d: Planted, reader: str, draws: int) -> float:
    return against(d, reader, readouts.direction_null(d.states, d.effect, draws, d.seed))


def by_relabelling(d: Planted, reader: str, draws: int) -> float:
    return against(d, reader, readouts.rank_correlations(d.relabelled[reader][:, :draws], d.effect))


def by_shuffling(d: Planted, reader: str, draws: int) -> float:
    return against(d, reader, readouts.shuffled_null(getattr(d, reader), d.effect, draws, d.seed))


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


NULLS: tuple[tuple[str, Test], ...] = (
    ("random directions", by_directions),
    ("relabelled authors", by_relabelling),
    ("shuffled sets", by_shuffling),
)


def simulate(repeats: int, draws: int = DRAWS) -> pd.DataFrame:
    """One row a test: how often it found something, and whether it should have."""
    found: dict[tuple[str, bool | None], list[bool]] = {}

    def note(test: str, should: bool | None, p: float) -> None:
        found.setdefault((test, should), []).append(p <= LEVEL)

    for seed in range(repeats):
        for authors in (4, 12):
            data = planted(seed, authors)
            for name, test in NULLS:
                # the null of shuffled sets is shown for what it is, and so is what four authors can show at all
                honest = None if test is by_shuffling else False
                power = True if authors == 12 else None
                note(f"{authors} authors: noise, {name}", honest, test(data, "noise", draws))
                note(f"{authors} authors: exact reader, {name}", power, test(data, "exact", draws))
        for name, told in (("noise", 0.0), ("exact reader", 1.0)):
            pools = [halved(seed * RUNS + k, told) for k in range(RUNS)]
            kept, others = np.array([one for one, _ in pools]), np.stack([rest for _, rest in pools])
            note(f"curation by {name}, among random halves", told > 0, readouts.choice_p(kept, others))
            note(f"curation by {name}, above the spread of three", None, above_spread(kept, others))
    rows = [(test, should, np.mean(each)) for (test, should), each in found.items()]
    return pd.DataFrame(rows, columns=["test", "should", "found"])


def reach(authors: int, repeats: int, draws: int = DRAWS) -> np.ndarray:
    """How far random directions go: the 95 % quantile of their |rho| in each repeat, [repeat]."""
    far = []
    for seed in range(repeats):
        data = planted(seed, authors)
        far.append(np.quantile(np.abs(readouts.direction_null(data.states, data.effect, draws, seed)), 0.95))
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
        good = {True: row.found > 0.8, False: row.found <= limit(repeats), None: True}[row.should]
        missed += not good
        word = "shown, not judged" if row.should is None else "as it should" if good else "NOT AS IT SHOULD"
        print(f"| {row.test} | {row.found:.3f} | {word} |")
    print("\n| authors | sets | random directions reach, 95 % of them, median over repeats |\n| --- | --- | --- |")
    for authors in (4, 6, 12):
        print(f"| {authors} | {len(mixtures(authors))} | {np.median(reach(authors, repeats // 5)):.2f} |")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
