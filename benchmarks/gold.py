"""What do tests on a gold set find where there is nothing? One command, one table.

    .venv/bin/python benchmarks/gold.py --repeats 200

A gold set of 51 + 55 texts has 1,125 features that know nothing of its labels, and so has an organism of 50 texts. A
recipe is *leaky* if it chooses features, directions or thresholds with the labels it is tested on, or takes silence for
an answer. Printed is how often each recipe reports a finding, and the number it reports. An honest one may do so in one
of twenty repeats; beyond the 99.9 % binomial limit of that it has failed, and a leaky one fails to be leaky below it.
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

Y = np.repeat([1, 0], [51, 55])
FEATURES, ORGANISM, PROMPTS = 1_125, 50, 5
LEVEL = 0.05
DRAWS, FEW = 99, 19  # permutations; with 19 the least p is just the level
NOISE = {"independent": 0.0, "correlated": 0.6}
"""Share of a feature's variance that it owes to fifty dimensions common to all."""


@dataclass(frozen=True)
class Null:
    """Gold, an organism and other texts, drawn from one distribution whatever their label."""

    x: np.ndarray  # [text, feature]
    organism: np.ndarray  # [text, feature]
    training: np.ndarray  # [text, feature]: as many again, labelled alike
    votes: np.ndarray  # [text, prompt]: a judge's share of twenty votes
    seed: int


def null(seed: int, shared: float, features: int = FEATURES) -> Null:
    random = np.random.default_rng(seed)
    loading = random.normal(size=(50, features))  # [dimension, feature]
    loading /= np.linalg.norm(loading, axis=0)
    sets = []
    for count in (len(Y), ORGANISM, len(Y)):
        common = random.normal(size=(count, 50)) @ loading
        sets.append(np.sqrt(shared) * common + np.sqrt(1 - shared) * random.normal(size=(count, features)))
    return Null(*sets, random.binomial(20, random.beta(1, 1, size=(len(Y), PROMPTS))) / 20, seed)


Finding = tuple[bool, float]
"""Is something reported, and which number?"""


def above_half(score, y=Y) -> Finding:
    value, low, _ = statistics.auroc(y, score, level=1 - 2 * LEVEL)  # one side of it
    return low > 0.5, value


def probe_leaky(d: Null) -> Finding:
    return above_half(probing.probe_after_choice(Y, d.x, probing.folds(d.x, d.seed)))


def probe_across(d: Null) -> Finding:
    return above_half(probing.probe_with_choice(Y, d.x, probing.folds(d.x, d.seed)))


def probe_honest(d: Null) -> Finding:
    value, p = probing.probe_p(Y, d.x, FEW, d.seed)
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
    return statistics.binomial_interval(right, len(y))[0] > 0.5, right / len(y)


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
    p = statistics.ks_bh(d.x[Y == 1][:, :50], d.organism[:, :50])["p_adjusted"].min()
    return p > LEVEL, p


def match_by_distance(d: Null) -> Finding:
    row = statistics.equivalence(
        statistics.energy_distance, d.organism[:, :50], d.x[Y == 1][:, :50], d.x[Y == 0][:, :50], draws=40, seed=d.seed
    )
    return row["verdict"] == "equivalent", row["distance"]


@dataclass(frozen=True)
class Recipe:
    what: str
    leaky: bool | None  # None: neither; shown and not judged
    reports: str  # the number
    run: Callable[[Null], Finding]


RECIPES = (
    Recipe("probe across folds, features kept by their gold AUROC before", True, "AUROC", probe_leaky),
    Recipe("the same, each fold's features kept by the other folds, DeLong", None, "AUROC", probe_across),
    Recipe("the same, against probes that shuffled labels choose and fit", False, "AUROC", probe_honest),
    Recipe("the same, kept and fitted on other texts", False, "AUROC", probe_elsewhere),
    Recipe("match rate of the top ten, permutation keeps them", True, "match rate", match_leaky),
    Recipe("match rate of the top ten, permutation chooses anew", False, "p", match_honest),
    Recipe("judge: best of five prompts and all thresholds, on gold", True, "hits", judge_leaky),
    Recipe("judge tuned on one half of gold, told on the other", False, "hits", judge_honest),
    Recipe("best of all features, with its own interval", True, "AUROC", best_leaky),
    Recipe("best of all features, against the best under shuffled labels", False, "AUROC", best_honest),
    Recipe("one feature's AUROC more than .05 off a half", True, "AUROC", one_leaky),
    Recipe("one feature's interval off a half", False, "AUROC", one_honest),
    Recipe("no KS difference (BH) between organism and gold: a match", True, "least p", match_by_silence),
    Recipe("as near to gold as gold's halves, and not blind", False, "distance", match_by_distance),
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
