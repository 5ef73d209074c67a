"""How far apart are variants, measured in runs?

Weights, votes, attention and choices have no common unit, so their differences cannot be set side by side. But every
level knows one distance that means nothing but chance: that of two runs which were paid the same reward. Measured with
it, every level is on one scale,

    ratio = distance across variants / distance within a variant        1: the reward makes no difference here

A level is described by one list of numbers per run, and two runs differ by the root mean square of the differences
between their lists. Several distances are averaged in the same way, as squares, and for a reason. If a run is its
variant's mean plus chance, the expected squared distance of two runs is

    across: |mean of a - mean of b|² + scatter of a + scatter of b        within, both variants alike: the scatter alone

so that with squares variants of one mean have the ratio 1 even if one of them scatters more than the other; an average
of plain distances would exceed 1 then. And 1 - 1/ratio² is the share of the squared distance across two variants that
the reward accounts for. (These are the quantities of Anderson's permutational analysis of variance, 2001.)

The book's rule 7 is stricter than a ratio above 1: variants differ where the *plain mean* distance across them exceeds
the *largest* distance within either.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import combinations
from math import factorial, prod

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist, squareform
from scipy.stats import t

from rewired.errors import RewiredError

ALL = "all"
"""Stands for the variants of a row that counts all of them."""


def distances(values: pd.DataFrame) -> pd.DataFrame:
    """[run, run]: root mean square difference of two runs' numbers, in their unit. ``values`` has one column per run,
    named (variant, seed), and one row per number. Raises RewiredError for numbers that are missing."""
    table = values.to_numpy(dtype=float)  # [number, run]
    if not table.size or np.isnan(table).any():
        raise RewiredError(
            f"Runs can be compared only on numbers that all of them have: of {table.shape[0]} numbers in "
            f"{table.shape[1]} runs {int(np.isnan(table).sum())} are missing. Measure all runs on the same prompts."
        )
    square = squareform(pdist(table.T)) / np.sqrt(len(table))
    return pd.DataFrame(square, index=values.columns, columns=values.columns)


def compare(matrix: pd.DataFrame) -> pd.DataFrame:
    """One row for each two variants of a matrix of distances [run, run], and one for ``ALL`` of them.

    ``a``, ``b``; ``across``, ``within``, root mean square distances of two runs of both variants (seeds i != j, where
    there are any) and of two runs of one, each variant counting alike; ``ratio``; ``mean`` and ``largest``, the plain
    mean across and the largest within; ``differ``, whether mean > largest (rule 7), and ``bar``, the ratio from which
    on that is so. NaN and False where no variant has two runs, and across NaN where there is one variant."""
    runs = _by_variant(matrix)
    between = {(a, b): _across(matrix, runs[a], runs[b]) for a, b in combinations(runs, 2)}
    inside = {v: _inside(matrix, own) for v, own in runs.items()}
    rows = []
    for a, b in [*between, (ALL, ALL)]:
        pairs = list(between.values()) if a == ALL else [between[a, b]]
        own = [inside[v] for v in (runs if a == ALL else (a, b)) if len(inside[v])]
        rows.append({"a": a, "b": b, **_row(pairs, own)})
    return pd.DataFrame(rows)


def intervals(
    matrix_of: Callable[[list], pd.DataFrame], clusters: Mapping[Hashable, Hashable], level: float = 0.95
) -> pd.DataFrame:
    """Columns ``a``, ``b``, ``low``, ``high``: intervals of the ratios of `compare` over prompts, for these runs.

    ``clusters`` maps each prompt to its cluster, ``matrix_of`` makes the matrix of distances from a list of prompts;
    each cluster is left out once. The delete-m jackknife for clusters of unequal size (Busing, Meijer and van der
    Leeden 1999) of the logarithm of the ratio, with Student's t. They say what other prompts of this kind might have
    shown, not what other runs might have. NaN with fewer than three clusters or without a ratio."""
    prompts, names = list(clusters), list(dict.fromkeys(clusters.values()))
    whole = compare(matrix_of(prompts))
    found = whole[["a", "b"]].assign(low=np.nan, high=np.nan)
    if len(names) < 3 or whole["ratio"].isna().all():
        return found
    kept = [[p for p in prompts if clusters[p] != name] for name in names]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.log([compare(matrix_of(some))["ratio"] for some in kept])  # [cluster, row]
        full = np.log(whole["ratio"].to_numpy())
    times = np.array([[len(prompts) / (len(prompts) - len(some))] for some in kept])  # n / m, [cluster, 1]
    pseudo = times * full - (times - 1) * left
    centre = (len(names) * full - ((1 - 1 / times) * left).sum(axis=0))[None]
    error = np.sqrt(((pseudo - centre) ** 2 / (times - 1)).mean(axis=0))
    reach = t.ppf((1 + level) / 2, len(names) - 1) * error
    return found.assign(low=np.exp(full - reach), high=np.exp(full + reach))


def without_one_run(matrix: pd.DataFrame) -> pd.DataFrame:
    """Columns ``a``, ``b``, ``run_low``, ``run_high``: the lowest and the highest ratio when any one run is left out.
    No interval, but it shows whether a ratio hangs on a single run. NaN with fewer than three runs a variant."""
    whole = compare(matrix)[["a", "b"]]
    if not _by_variant(matrix) or min(map(len, _by_variant(matrix).values())) < 3:
        return whole.assign(run_low=np.nan, run_high=np.nan)
    left = [compare(matrix.drop(index=[run], columns=[run])) for run in matrix.index]
    touched = np.array([[a in (ALL, run[0]) or b == run[0] for a, b in whole.to_numpy()] for run in matrix.index])
    ratios = np.where(touched, [found["ratio"] for found in left], np.nan)  # [run left out, row]
    return whole.assign(run_low=np.nanmin(ratios, axis=0), run_high=np.nanmax(ratios, axis=0))


def permutation(matrix: pd.DataFrame, draws: int = 20_000, seed: int = 0) -> tuple[float, int]:
    """(p, number of labellings): how often a ratio over all runs and variants is at least as large when the names of
    the variants are dealt anew over the runs. All distinct ways are tried where they are no more than ``draws``, random
    ones (and the observed one) otherwise, so p is never below 1 / number. The statistic uses every two runs.

    The null: which reward a run was paid makes no difference here, its scatter included. A small p says that some
    variant differs, not which. NaN where there is only one way."""
    runs = _by_variant(matrix)
    sizes = [len(own) for own in runs.values()]
    ordered = [run for own in runs.values() for run in own]
    squares = matrix.loc[ordered, ordered].to_numpy() ** 2
    ways = _labellings(sizes, draws, seed)  # [labelling, run], the first one as observed
    inside = np.zeros(len(ways))
    for k, size in enumerate(sizes):
        mine = (ways == k).astype(float)
        inside += np.einsum("li,ij,lj->l", mine, squares, mine, optimize=True) / max(size * (size - 1), 1)
    # The sum of all squared distances is fixed: with equal sizes the smaller within, the larger the ratio.
    if len(sizes) < 2 or len(ways) < 2 or max(sizes) < 2:
        return float("nan"), len(ways)
    return float(np.mean(inside <= inside[0] * (1 + 1e-9))), len(ways)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _by_variant(matrix: pd.DataFrame) -> dict[str, list[tuple]]:
    """{variant: its runs}, in the order of the matrix."""
    runs: dict[str, list[tuple]] = {}
    for run in matrix.index:
        runs.setdefault(run[0], []).append(run)
    return runs


def _across(matrix: pd.DataFrame, a: list[tuple], b: list[tuple]) -> np.ndarray:
    """Distances of the runs of two variants: seeds i != j, or all where the variants have one seed."""
    square = matrix.to_numpy()[np.ix_(matrix.index.get_indexer(a), matrix.index.get_indexer(b))]
    other = np.not_equal.outer([seed for _, seed in a], [seed for _, seed in b])
    return square[other] if other.any() else square.ravel()


def _inside(matrix: pd.DataFrame, own: list[tuple]) -> np.ndarray:
    """Distances of the runs of one variant."""
    place = matrix.index.get_indexer(own)
    return matrix.to_numpy()[np.ix_(place, place)][np.triu_indices(len(own), 1)]


def _row(pairs: list[np.ndarray], own: list[np.ndarray]) -> dict[str, float | bool]:
    across, within = (np.sqrt(np.mean([np.mean(d**2) for d in some])) if some else np.nan for some in (pairs, own))
    mean = np.mean([d.mean() for d in pairs]) if pairs else np.nan
    largest = max(d.max() for d in own) if own else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.float64(across) / within)
        bar = float(np.float64(ratio) * largest / mean) if mean else float(np.float64(largest) / within)
    found = {"across": across, "within": within, "ratio": ratio, "mean": mean, "largest": largest}
    return {key: float(value) for key, value in found.items()} | {"differ": bool(mean > largest), "bar": bar}


def _labellings(sizes: list[int], draws: int, seed: int) -> np.ndarray:
    """[labelling, run] of group numbers; groups of one size have no names of their own."""
    count = factorial(sum(sizes)) // prod(map(factorial, sizes))
    count //= prod(factorial(sizes.count(size)) for size in set(sizes))
    if count <= draws:
        return np.array(sorted(_partitions(sizes)))
    observed, random = np.repeat(np.arange(len(sizes)), sizes), np.random.default_rng(seed)
    return np.vstack([observed, random.permuted(np.tile(observed, (draws, 1)), axis=1)])


def _partitions(sizes: list[int]) -> Iterator[tuple[int, ...]]:
    """Every way to deal the runs into groups of these sizes, but for the names of groups of one size."""

    def deal(labels: tuple[int, ...], left: list[int]) -> Iterator[tuple[int, ...]]:
        if len(labels) == sum(sizes):
            yield labels
            return
        opened = set()  # sizes of which an empty group was tried at this place
        for k, room in enumerate(left):
            if room and not (room == sizes[k] and sizes[k] in opened):
                opened |= {sizes[k]} if room == sizes[k] else set()
                yield from deal((*labels, k), [*left[:k], room - 1, *left[k + 1 :]])

    yield from deal((), sizes)
