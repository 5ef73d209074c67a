"""Intervals and tests: what is simultaneous, what is paired, and over what family. Thin on statsmodels and scipy."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist, pdist
from scipy.stats import ks_2samp, norm, rankdata, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from rewired.errors import RewiredError


def binomial_interval(successes, trials, level: float = 0.95, family: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Exact (Clopper-Pearson) bounds for shares, simultaneous over ``family`` of them (Bonferroni). No trials: 0, 1."""
    successes, trials = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        lower, upper = proportion_confint(successes, trials, alpha=(1 - level) / family, method="beta")
    return np.nan_to_num(lower, nan=0.0), np.nan_to_num(upper, nan=1.0)


def mean_interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of values that are drawn apart from each other, such as one a run, and Student's interval of it: (mean,
    low, high). Missing ones are left out; of fewer than two there is no interval: NaN."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return values.mean() if len(values) else np.nan, np.nan, np.nan
    reach = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - reach, values.mean() + reach


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

    def rho(places: np.ndarray) -> float:
        if np.ptp(x[places]) == 0 or np.ptp(y[places]) == 0:
            return float("nan")
        return float(np.corrcoef(rankdata(x[places]), rankdata(y[places]))[0, 1])

    return _bootstrap(rho, clusters, level, draws, seed)


def auroc(y, score, level=0.95) -> tuple[float, float, float]:
    """(value, low, high): P(a positive's score is above a negative's), a tie counting half, ``y`` [text] true for the
    positive. The interval is that of DeLong et al. 1988, on the scale of log-odds. Where the classes do not overlap it
    would have no width; there the bound is the exact one of a share of n out of n, n the size of the smaller class.
    RewiredError for a missing score, and for a class of fewer than two."""
    y, score = _scores(y, score)
    count, others = y.sum(), (~y).sum()
    ranks = rankdata(score)  # [text]
    above = (ranks[y] - rankdata(score[y])) / others  # [positive]: the share of negatives below it
    below = 1 - (ranks[~y] - rankdata(score[~y])) / count  # [negative]: the share of positives above it
    value, error = above.mean(), np.sqrt(above.var(ddof=1) / count + below.var(ddof=1) / others)
    if value in (0, 1):
        low = ((1 - level) / 2) ** (1 / min(count, others))
        return (1.0, float(low), 1.0) if value else (0.0, 0.0, float(1 - low))
    step = norm.ppf((1 + level) / 2) * error / (value * (1 - value))  # in log-odds
    low, high = 1 / (1 + (1 - value) / value * np.exp([step, -step]))
    return float(value), float(low), float(high)


def auroc_clustered(y, score, clusters: Sequence, level=0.95, draws=1_000, seed=0) -> tuple[float, float, float]:
    """`auroc` where texts of one cluster (a wording, say) are alike: the interval draws whole clusters anew. It has no
    width where no negative reaches a positive. NaN bounds for fewer than two clusters. Errors as in `auroc`."""
    y, score = _scores(y, score)

    def value(places: np.ndarray) -> float:
        if y[places].all() or not y[places].any():
            return float("nan")
        return aurocs(y[places], score[places, None]).item()

    return _bootstrap(value, clusters, level, draws, seed)


def aurocs(y, x, ranked: bool = False) -> np.ndarray:
    """The AUROC of every feature, [..., feature], for labels [..., text] and features x [text, feature] (``ranked``:
    their ranks, so that many labels cost one sorting). No intervals."""
    y, ranks = np.asarray(y, dtype=float), x if ranked else rankdata(x, axis=0)  # ranks [text, feature]
    count = y.sum(axis=-1, keepdims=True)
    return (y @ ranks / count - (count + 1) / 2) / (y.shape[-1] - count)


def permutation_p(statistic: Callable, y, draws=999, seed=0) -> tuple[float, float]:
    """(statistic of the labels, p): how often the statistic of shuffled labels is as large. ``statistic`` takes labels
    [text], and has to do with them all that was done with the true ones: choosing features, directions, a threshold,
    the best layer. What is chosen with the true labels before keeps them in the null, and p means nothing."""
    y, random = np.asarray(y), np.random.default_rng(seed)
    observed = statistic(y)
    null = np.array([statistic(random.permutation(y)) for _ in range(draws)])
    return float(observed), float((1 + (null >= observed - 1e-12).sum()) / (draws + 1))


def max_statistic_p(y, x, draws=999, seed=0) -> pd.DataFrame:
    """One row per feature of x [text, feature]: ``auroc`` and ``p``, how often the largest |AUROC - .5| of *all*
    features, under shuffled labels, is as large as this one's (Westfall and Young 1993): the chance of one false
    finding among all is p. Features of several layers that were looked at stand side by side in ``x``."""
    ranks, random, largest = rankdata(x, axis=0), np.random.default_rng(seed), np.empty(draws)
    value = aurocs(y, ranks, ranked=True)  # [feature]
    for k in range(draws):
        largest[k] = np.abs(aurocs(random.permutation(y), ranks, ranked=True) - 0.5).max()
    reached = largest[:, None] >= np.abs(value - 0.5) - 1e-12  # [draw, feature]
    return pd.DataFrame({"auroc": value, "p": (1 + reached.sum(axis=0)) / (draws + 1)})


def ks_bh(a, b) -> pd.DataFrame:
    """One row per feature: do two sets of texts, [text, feature] each, differ in it? The Kolmogorov-Smirnov distance
    ``ks``, its ``p``, and ``p_adjusted`` over all features (Benjamini and Hochberg 1995). A large p is no likeness."""
    ks, p = ks_2samp(a, b, axis=0)
    return pd.DataFrame({"ks": ks, "p": p, "p_adjusted": multipletests(p, method="fdr_bh")[1]})


def energy_distance(a, b) -> float:
    """2 E|A - B| - E|A - A'| - E|B - B'| of two sets [text, feature] (Székely and Rizzo 2013), without bias: around 0,
    also below it, where both are of one distribution, whatever their sizes; in units of the features."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    within = sum(pdist(x).mean() for x in (a, b))
    return float(2 * cdist(a, b).mean() - within)


def equivalence(distance: Callable, tested, gold, other, margin=0.1, draws=200, seed=0) -> dict:
    """Is a set shown to be near to gold? ``distance`` takes two sets [text, feature], as `energy_distance`.

    The unit is the ``contrast``, the distance from gold to ``other``, a set known to differ (gold's negatives, say).
    ``share`` is that from gold to the tested set; 95 % of it lie between ``low`` and ``high``, by random halves of all
    three sets, which spread as estimates from whole sets do (the jackknife of Shao and Wu 1989), on the scale of the
    root: a mixture with a share s of others lies at s². The ``verdict`` is "equivalent" if even ``high`` is below the
    ``margin``, which is fixed before, "different" if ``low`` is above it, else "open": too few texts. Where the
    contrast's own bound reaches zero, the yardstick is blind: "cannot tell"."""
    sets, random = [np.asarray(x) for x in (gold, tested, other)], np.random.default_rng(seed)
    apart = np.empty((draws, 2))  # [draw, tested | other], from a half of gold
    for k in range(draws):
        half, *others = [random.permutation(x)[: len(x) // 2] for x in sets]
        apart[k] = [distance(half, x) for x in others]
    near, far = apart.T
    if np.quantile(far, 0.025) <= 0:
        nothing = dict.fromkeys(("share", "low", "high"), float("nan"))
        return nothing | {"contrast": float(far.mean()), "verdict": "cannot tell"}
    root = np.sqrt(np.maximum(near / far, 0))  # [draw]
    low, high = (end * abs(end) for end in root.mean() + np.array([-1.96, 1.96]) * root.std())
    verdict = "equivalent" if high < margin else "different" if low > margin else "open"
    share = float(near.mean() / far.mean())
    return {"share": share, "low": low, "high": high, "contrast": float(far.mean()), "verdict": verdict}


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


def _bootstrap(number: Callable, clusters: Sequence, level, draws, seed) -> tuple[float, float, float]:
    """(number, low, high) with percentile bounds when whole clusters are drawn anew; ``number`` takes the places of the
    values, and is NaN where it does not exist."""
    codes, names = pd.factorize(np.asarray(list(clusters)), sort=True)
    members = [np.flatnonzero(codes == k) for k in range(len(names))]  # per cluster, the places of its values
    observed = number(np.arange(len(codes)))
    if len(members) < 2 or np.isnan(observed):
        return observed, float("nan"), float("nan")
    random, drawn = np.random.default_rng(seed), np.empty(draws)
    for k in range(draws):
        chosen = random.integers(len(members), size=len(members))
        drawn[k] = number(np.concatenate([members[c] for c in chosen]))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return observed, float(low), float(high)


def _scores(y, score) -> tuple[np.ndarray, np.ndarray]:
    """Labels as booleans and scores as numbers, both [text]. RewiredError for gaps and for a class of one or none."""
    y, score = np.asarray(y).astype(bool), np.asarray(score, dtype=float)
    if np.isnan(score).any() or min(y.sum(), (~y).sum()) < 2:
        raise RewiredError(
            f"An AUROC needs a score of every text and two texts of each class at least; {int(np.isnan(score).sum())} "
            f"scores are missing, {int(y.sum())} texts are positive and {int((~y).sum())} negative."
        )
    return y, score
