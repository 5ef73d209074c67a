"""Intervals and tests, thin on statsmodels and scipy: what is simultaneous, what is paired, and over what family."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint


def binomial_interval(successes, trials, level: float = 0.95, family: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Exact (Clopper-Pearson) bounds for shares, simultaneous over ``family`` of them (Bonferroni). No trials: 0, 1."""
    successes, trials = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        lower, upper = proportion_confint(successes, trials, alpha=(1 - level) / family, method="beta")
    empty = trials == 0
    return np.where(empty, 0.0, lower), np.where(empty, 1.0, upper)


def agreement(samples: pd.DataFrame, measured: pd.DataFrame, by: Sequence[str] = ("scenario",), level: float = 0.99):
    """Does sampling say what the metric says? One row per cell: ``n`` answers, ``legal`` ones, the ``sampled`` share of
    defection among these, the ``expected`` share (the prompts' p_defect, each weighted by its legal answers), a
    ``lower`` and ``upper`` bound for the true share (exact binomial, all cells together at ``level``), ``inside``, and
    ``majority_agrees`` (NA within 0.1 of one half, where no majority is to be expected)."""
    by = list(by)
    extra = [column for column in by if column not in samples]
    known = measured[["prompt_id", "p_defect", *extra]].drop_duplicates("prompt_id")
    joined = samples.merge(known, on="prompt_id", validate="many_to_one")
    joined = joined.assign(legal=joined["move"].notna(), defected=joined["move"] == "D")
    joined["expected"] = joined["p_defect"].where(joined["legal"])
    cells = joined.groupby(by, sort=True).agg(
        n=("legal", "size"), legal=("legal", "sum"), defections=("defected", "sum"), expected=("expected", "mean")
    )
    cells = cells.reset_index()
    cells["sampled"] = cells["defections"] / cells["legal"].where(cells["legal"] > 0)
    cells["lower"], cells["upper"] = binomial_interval(cells["defections"], cells["legal"], level, family=len(cells))
    cells["inside"] = cells["expected"].between(cells["lower"], cells["upper"])
    agrees = (cells["sampled"] > 0.5) == (cells["expected"] > 0.5)
    cells["majority_agrees"] = agrees.astype("boolean").where((cells["expected"] - 0.5).abs() > 0.1)
    return cells


def paired_permutation(a, b, draws: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """(mean difference a - b, two-sided p): pair by pair, swap which model a value came from.

    The observed labelling counts as one draw, so p is never 0: its floor is 1 / (draws + 1)."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    random = np.random.default_rng(seed)
    observed = difference.mean()
    null = np.empty(draws)
    for start in range(0, draws, 2_000):
        size = min(2_000, draws - start)
        null[start : start + size] = (random.choice((-1.0, 1.0), (size, len(difference))) * difference).mean(axis=1)
    extreme = np.count_nonzero(np.abs(null) >= abs(observed) - 1e-12)
    return float(observed), (extreme + 1) / (draws + 1)


def cluster_interval(
    values, clusters: Sequence, level: float = 0.95, draws: int = 5_000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a mean, drawing whole clusters (say, wording and matrix) with replacement."""
    frame = pd.DataFrame({"value": np.asarray(values, dtype=float), "cluster": list(clusters)})
    groups = frame.groupby("cluster", sort=True)["value"].agg(["sum", "size"]).to_numpy()  # [cluster, (sum, size)]
    random = np.random.default_rng(seed)
    drawn = groups[random.integers(len(groups), size=(draws, len(groups)))].sum(axis=1)  # [draw, (sum, size)]
    means = drawn[:, 0] / drawn[:, 1]
    tail = (1 - level) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def between_and_within(table: pd.DataFrame, value: str, variant_a: str, variant_b: str) -> dict[str, float | bool]:
    """Rule 7 of the book. ``table`` has columns variant, seed, prompt_id and ``value``; two runs differ by the
    mean absolute difference over prompts. Returns the mean ``between`` the two variants (seeds i != j), the largest
    ``within`` either of them, and ``differ``: between > within. NaN and False with fewer than two seeds."""
    wide = table.pivot_table(index="prompt_id", columns=["variant", "seed"], values=value)

    def distances(first: str, second: str) -> list[float]:
        return [
            float((wide[first, i] - wide[second, j]).abs().mean())
            for i in wide[first].columns
            for j in wide[second].columns
            if (i < j if first == second else i != j)
        ]

    between = distances(variant_a, variant_b)
    within = distances(variant_a, variant_a) + distances(variant_b, variant_b)
    if not between or not within:
        return {"between": float("nan"), "within": float("nan"), "differ": False}
    return {"between": float(np.mean(between)), "within": max(within), "differ": float(np.mean(between)) > max(within)}
