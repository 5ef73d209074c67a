"""Intervals and tests: what is simultaneous, what is paired, and over what family. Thin on statsmodels and scipy."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from statsmodels.stats.proportion import proportion_confint

from rewired.errors import RewiredError


def binomial_interval(successes, trials, level: float = 0.95, family: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Exact (Clopper-Pearson) bounds for shares, simultaneous over ``family`` of them (Bonferroni). No trials: 0, 1."""
    successes, trials = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        lower, upper = proportion_confint(successes, trials, alpha=(1 - level) / family, method="beta")
    return np.nan_to_num(lower, nan=0.0), np.nan_to_num(upper, nan=1.0)


def paired_permutation(
    a, b, draws=20_000, seed=0, clusters: Sequence | None = None, groups: Sequence | None = None
) -> tuple[float, float]:
    """(mean difference a - b, two-sided p): pair by pair, swap which model a value came from.

    The null: *these two models* are alike on each prompt. A difference that a group of prompts shares breaks it, for
    each model reads a wording in its own way. The question whether the models differ *on average over wordings* needs
    ``clusters``: whole clusters are swapped. Opposite differences cancel in a mean. With ``groups`` (the states, say)
    the number compared, and returned, is the mean |mean difference of a group|, and nothing cancels between groups.
    The observed assignment counts as one, so p is never 0: see `p_text`. Raises RewiredError for missing values."""
    sums, sizes = _by_cluster(a, b, clusters, groups)  # [cluster, group] and [cluster]
    null = np.abs(swaps(len(sums), draws, seed) @ sums).sum(axis=1)  # [swap], the first one as observed
    rounding = 1e-12 * np.abs(sums).sum()  # rounding must not break ties, at any scale
    total = sums.sum() if groups is None else null[0]
    return float(total / sizes.sum()), float(np.mean(null >= null[0] - rounding))


def p_text(p: float, count: int, draws: int = 20_000) -> str:
    """A p of `paired_permutation` for ``count`` pairs or clusters, as a page prints it: two digits, or its floor. It is
    "< 1/2001" with 2,000 draws; where all swaps were tried, p is exact, and the least one is "≤ 1/256", say."""
    exact = count < 31 and 2**count <= draws + 1  # as in `swaps`
    least = 2 ** (count - 1) if exact else draws + 1
    return f"{'≤' if exact else '<'} 1/{least}" if p * least < 1 + 1e-9 else f"{p:.2g}"


def cluster_interval(values, clusters: Sequence, level=0.95, draws=5_000, seed=0) -> tuple[float, float]:
    """Interval of a mean over clustered values: all means that `paired_permutation` with these clusters keeps. Its
    ends are order statistics of the means of subsets of clusters (Hartigan 1969, "Using subsample values as typical
    values"). It covers for clusters of any sizes whose deviations are symmetric. NaN, NaN where there are too few
    clusters: at 0.95 fewer than six. Raises RewiredError for missing values."""
    sums, sizes = _by_cluster(values, 0.0, clusters, None)
    subsets = (swaps(len(sums), draws, seed) + 1) // 2  # [subset, cluster] of 0 and 1; the first one holds all
    subsets = subsets[subsets.any(axis=1)]
    rank = int((1 - level) / 2 * (len(subsets) + 1) + 1e-9)
    if rank == 0:
        return float("nan"), float("nan")
    means = np.sort((subsets @ sums[:, 0]) / (subsets @ sizes))
    return float(means[rank - 1]), float(means[-rank])


def rank_correlation(x, y, clusters: Sequence, level=0.95, draws=1_000, seed=0) -> tuple[float, float, float]:
    """(rho, low, high): Spearman's rank correlation with a bootstrap interval that draws whole clusters (the heads of
    a layer, say). With few clusters it is a little too narrow: with eight, up to nine of a hundred intervals at the
    level 0.95 miss. NaN where x or y is constant, and for the bounds with fewer than two clusters."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    codes, names = pd.factorize(np.asarray(list(clusters)), sort=True)
    members = [np.flatnonzero(codes == k) for k in range(len(names))]  # per cluster, its places in x and y

    def rho(places: np.ndarray) -> float:
        if np.ptp(x[places]) == 0 or np.ptp(y[places]) == 0:
            return float("nan")
        return float(np.corrcoef(rankdata(x[places]), rankdata(y[places]))[0, 1])

    observed = rho(np.arange(len(x)))
    if len(members) < 2 or np.isnan(observed):
        return observed, float("nan"), float("nan")
    random, drawn = np.random.default_rng(seed), np.empty(draws)
    for k in range(draws):
        chosen = random.integers(len(members), size=len(members))
        drawn[k] = rho(np.concatenate([members[c] for c in chosen]))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return observed, float(low), float(high)


def swaps(count: int, draws: int, seed: int) -> np.ndarray:
    """[swap, count] of +1 (as observed) and -1 (swapped), the first row all +1: all 2^count rows if these are no more
    than ``draws``, otherwise as many random ones."""
    if count < 31 and 2**count <= draws + 1:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1  # [swap, count]
        return 1 - 2 * bits
    random = np.random.default_rng(seed).choice(np.array([1, -1], dtype=np.int8), (draws, count))
    return np.concatenate([np.ones((1, count), dtype=np.int8), random])


def _by_cluster(a, b, clusters: Sequence | None, groups: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """(sums of a - b [cluster, group], sizes [cluster]); without clusters each value is one of its own, without groups
    all are one. RewiredError for gaps."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    missing = int(np.isnan(difference).sum())
    if missing or not difference.size:
        raise RewiredError(
            f"{missing} of {difference.size} pairs of values lack a number, and a test needs one in each and at least "
            "one pair. Drop the prompts that were not answered, and say how many there are."
        )
    nothing = np.arange(len(difference))
    rows = nothing if clusters is None else pd.factorize(np.asarray(clusters))[0]
    columns = 0 * nothing if groups is None else pd.factorize(np.asarray(groups))[0]
    sums = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(sums, (rows, columns), difference)
    return sums, np.bincount(rows).astype(float)
