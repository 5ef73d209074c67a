"""What do tests on a gold set find where there is nothing? One command, one table.

    .venv/bin/python benchmarks/gold.py --repeats 200

A gold set of 51 + 55 texts has 1,125 features that know nothing of its labels, and so has an organism of 50 texts.
Another organism is just as far from the fakers as a likeness may be (`statistics.equivalence`). A recipe is *leaky* if
it chooses features, directions or thresholds with the labels it is tested on, or takes silence for an answer. Printed
is how often each recipe reports a finding, and the number it reports. An honest one may do so in one of twenty repeats;
beyond the 99.9 % binomial limit of that it has failed, and a leaky one fails to be leaky below it.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import numpy as np
from scipy.stats import binom

from replication import probing
from rewired import statistics
from rewired.tracing import probes

Y = probing.LABELS
FEATURES, PROMPTS = 1_125, 5
LEVEL = 0.05
DRAWS, FEW = 99, 19  # permutations; with 19 the least p is just the level
NOISE = {"independent": 0.0, "correlated": 0.6}
MARGIN, APART = 0.1, 1.2  # of a likeness; what tells fakers from others, in standard deviations


@dataclass(frozen=True)
class Null:
    """Gold, an organism and training texts; a judge; and scores of an organism that is just not like the fakers."""

    x: np.ndarray  # [text, feature]: gold
    organism: np.ndarray  # [text, feature]
    training: np.ndarray  # [text, feature], labelled as gold is
    parts: list[tuple]  # the five folds of gold
    votes: np.ndarray  # [text, prompt]: a judge's share of twenty votes
    scores: tuple[np.ndarray, ...]  # [text, 1]: of the organism, of fakers, of others
    seed: int


def null(seed: int, shared: float, features: int = FEATURES) -> Null:
    noise, random = probing.noise(seed, shared, features), np.random.default_rng([seed, int(10 * shared)])
    votes = random.binomial(20, random.beta(1, 1, size=(len(Y), PROMPTS))) / 20
    organism, fakers, others = (random.normal(size=(count, 1)) for count in (180, 200, 200))
    # a mixture that has a share s of others lies at s² of the way to them
    organism[random.random(180) < MARGIN**0.5] += APART
    parts = probing.folds(noise.gold, seed)
    scores = organism, fakers, others + APART
    return Null(noise.gold, noise.organism, noise.training, parts, votes, scores, seed)


Finding = tuple[bool, float]
"""Is something reported, and which number?"""


def above_half(score, y=Y) -> Finding:
    value, low, _ = statistics.auroc(y, score, level=1 - 2 * LEVEL)  # one side of it
    return low > 0.5, value


def probe_leaky(d: Null) -> Finding:
    return above_half(probing.probe_after_choice(Y, d.x, d.parts))


def probe_published(d: Null) -> Finding:
    return above_half(probing.probe_as_published(Y, d.x, Y, d.training))


def probe_across(d: Null) -> Finding:
    return above_half(probing.probe_with_choice(Y, d.x, d.parts))


def probe_honest(d: Null) -> Finding:
    value, p = probing.probe_p(Y, d.x, FEW, d.seed, d.parts)
    return p <= LEVEL, value


def probe_elsewhere(d: Null) -> Finding:
    columns = probing.kept(Y, d.training)
    return above_half(probes.fit(d.training[:, columns], Y).decision_function(d.x[:, columns]))


def match_leaky(d: Null) -> Finding:
    p = probing.match_p_as_published(Y, d.x, d.organism, DRAWS, d.seed)
    return p <= LEVEL, probing.match_rate(Y, d.x, d.organism)


def match_honest(d: Null) -> Finding:
    p = probing.match_p(Y, d.x, d.organism, DRAWS, d.seed)
    return p <= LEVEL, p


def judged(y, votes, judge) -> Finding:
    right = probing.hits(y, votes, judge)
    return statistics.binomial_interval(right, len(y), level=1 - 2 * LEVEL)[0] > 0.5, right / len(y)


def judge_leaky(d: Null) -> Finding:
    return judged(Y, d.votes, probing.tuned_judge(Y, d.votes))


def judge_honest(d: Null) -> Finding:
    tune, test = np.arange(len(Y)) % 2 == 0, np.arange(len(Y)) % 2 == 1
    return judged(Y[test], d.votes[test], probing.tuned_judge(Y[tune], d.votes[tune]))


def best_leaky(d: Null) -> Finding:
    return above_half(d.x[:, statistics.aurocs(Y, d.x).argmax()])


def best_honest(d: Null) -> Finding:
    table = statistics.max_statistic_p(Y, d.x, DRAWS, d.seed)
    return table["p"].min() <= LEVEL, table["auroc"].max()


def one_leaky(d: Null) -> Finding:
    value = statistics.aurocs(Y, d.x[:, :1]).item()
    return abs(value - 0.5) > 0.05, value


def one_honest(d: Null) -> Finding:
    value, low, high = statistics.auroc(Y, d.x[:, 0])
    return not low <= 0.5 <= high, value


def match_by_silence(d: Null) -> Finding:
    organism, fakers, _ = d.scores
    p = statistics.ks_bh(organism[:50], fakers[:51])["p_adjusted"].min()
    return p > LEVEL, p


def match_by_distance(d: Null) -> Finding:
    row = statistics.equivalence(statistics.energy_distance, *d.scores, margin=MARGIN, draws=60, seed=d.seed)
    return row["verdict"] == "equivalent", row["share"]


@dataclass(frozen=True)
class Recipe:
    what: str
    leaky: bool | None  # None: neither; shown and not judged
    reports: str  # the number
    run: Callable[[Null], Finding]


RECIPES = (
    Recipe("probe across folds, features kept by their gold AUROC before", True, "AUROC", probe_leaky),
    Recipe("probe of training texts, features kept by their gold AUROC too", True, "AUROC", probe_published),
    Recipe("probe of training texts, features kept by these alone", False, "AUROC", probe_elsewhere),
    Recipe("probe across folds, each fold's features kept by the other folds, DeLong", None, "AUROC", probe_across),
    Recipe("the same, against probes that shuffled labels choose and fit", False, "AUROC", probe_honest),
    Recipe("match rate of the top ten, permutation keeps them", True, "match rate", match_leaky),
    Recipe("match rate of the top ten, permutation chooses anew", False, "p", match_honest),
    Recipe("judge: best of five prompts and all thresholds, on gold", True, "hits", judge_leaky),
    Recipe("judge tuned on one half of gold, told on the other", False, "hits", judge_honest),
    Recipe("best of all features, with its own interval", True, "AUROC", best_leaky),
    Recipe("best of all features, against the best under shuffled labels", False, "AUROC", best_honest),
    Recipe("one feature's AUROC more than .05 off a half", True, "AUROC", one_leaky),
    Recipe("one feature's interval off a half", False, "AUROC", one_honest),
    Recipe("no KS difference between an organism at the margin and fakers: alike", True, "p", match_by_silence),
    Recipe("an organism at the margin shown to be nearer than it", False, "share", match_by_distance),
)


def findings(shared: float, repeats: int, features: int = FEATURES) -> np.ndarray:
    """[recipe, repeat, (found, number)]; all recipes look at the same null."""
    rows = []
    for seed in range(repeats):
        data = null(seed, shared, features)
        rows.append([recipe.run(data) for recipe in RECIPES])
    return np.array(rows, dtype=float).swapaxes(0, 1)


def as_it_should(recipe: Recipe, found: float, repeats: int) -> bool:
    """An honest recipe finds something no more often than in one of twenty, a leaky one clearly more often."""
    limit = binom.ppf(0.999, repeats, LEVEL) / repeats
    return recipe.leaky is None or (found > limit) == recipe.leaky


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    repeats, missed = parser.parse_args().repeats, 0
    print(f"{repeats} repeats, {FEATURES} features that carry nothing, level {LEVEL}\n")
    print("| features | recipe | kind | reports | mean | 90 % of repeats | finds something | |\n" + "| --- " * 8 + "|")
    for noise, shared in NOISE.items():
        passed = [len(probing.kept(Y, null(seed, shared).x)) for seed in range(repeats)]
        low, high = np.quantile(passed, [0.05, 0.95])
        print(f"| {noise} | features with AUROC > .6 | | count | {np.mean(passed):.0f} | {low:.0f} to {high:.0f} | | |")
        for recipe, each in zip(RECIPES, findings(shared, repeats), strict=True):
            found, number = each.T
            good = as_it_should(recipe, found.mean(), repeats)
            missed += not good
            low, high = np.quantile(number, [0.05, 0.95])
            kind = {True: "leaky", False: "honest", None: "shown"}[recipe.leaky]
            word = "as it should" if good else "NOT AS IT SHOULD"
            middle = f"{recipe.reports} | {number.mean():.2f} | {low:.2f} to {high:.2f}"
            print(f"| {noise} | {recipe.what} | {kind} | {middle} | {found.mean():.3f} | {word} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
