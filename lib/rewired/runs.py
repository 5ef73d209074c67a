"""Do variants differ by more than their runs do? The only place that knows rule 7 of the book.

A *run* is one training run, (variant, seed). Two runs of the same variant differ as well: they started from other
random numbers and played other games. So a difference between two variants means something only beside the
differences between runs of one variant. Rule 7 says:

    two variants differ  if  mean distance between their runs  >  largest distance between two runs of either of the two

Every chapter takes the same three steps. What a *distance* is, the chapter decides; the rule is the same for all.

>>> import pandas as pd
>>> columns = pd.MultiIndex.from_product([["x", "y"], [1, 2]], names=["model", "seed"])
>>> values = pd.DataFrame([[0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 4.0, 2.0]], columns=columns)  # [number, run]
>>> matrix = distances(values)                                                            # [run, run]
>>> table = pairs(matrix)                                                     # one row for every two comparable runs
>>> differ(table)[["pair", "between", "within", "verdict"]]                   # one row for every two variants
    pair  between  within verdict
0  x – y     3.25     1.0  differ

The rule is no test. If the variant made no difference, all ways to split the runs in two would be alike, and hardly
more than one could look like this. Three runs a variant err in less than one case of ten, two in up to one of three
(measured by benchmarks/calibration). A smaller level takes more runs.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist, squareform

from rewired.errors import RewiredError, choice

WITHIN, BETWEEN = "within a variant", "between variants"
"""The two values of the column ``kind`` of `pairs`."""


def distances(values: pd.DataFrame, measure: str | Callable = "mean") -> pd.DataFrame:
    """Distance of every two runs, a symmetric matrix [run, run] in the order of the columns.

    ``values`` has one row per number and one column per run, named (variant, seed). ``measure`` is ``mean`` (mean
    |difference|) or ``root mean square`` (both in the unit of the values), ``cosine`` (1 - cosine, without unit), or
    a function of two runs' numbers. Raises RewiredError for another measure and where numbers are missing."""
    table = values.to_numpy(dtype=float).T  # [run, number]
    missing = int(np.isnan(table).sum())
    if missing or not table.size:
        raise RewiredError(
            f"Runs can be compared only on numbers that all of them have: of {table.shape[1]} numbers in "
            f"{table.shape[0]} runs {missing} are missing. Measure all runs on the same prompts."
        )
    count = table.shape[1]
    units = {"mean": ("cityblock", count), "root mean square": ("euclidean", np.sqrt(count)), "cosine": ("cosine", 1)}
    if not callable(measure) and measure not in units:
        raise choice("distance measure", measure, units)
    metric, unit = (measure, 1) if callable(measure) else units[measure]
    apart = pdist(table, metric) / unit  # the upper triangle, one number for every two runs
    return pd.DataFrame(squareform(apart), index=values.columns, columns=values.columns)


def pairs(distance: pd.DataFrame, **others: pd.DataFrame) -> pd.DataFrame:
    """One row for every two runs that may be compared, runs of one variant first.

    ``distance`` is a matrix [run, run], however it was made; its index holds (variant, seed), the variants in the
    order in which they shall be named. ``others`` are more matrices of the same runs, a column each.
    Columns: ``a``, ``seed_a``, ``b``, ``seed_b`` (the two runs), ``pair`` ("a – b", or "a" for two runs of a),
    ``kind`` (`WITHIN` or `BETWEEN`), ``distance`` and the names of ``others``.

    Runs of two variants are compared at different seeds, as runs of one variant must be. Where each of the two
    variants has the same single seed, that pair is taken."""
    listed = list(distance.index)
    tables = {"distance": distance} | others
    tables = {name: matrix.loc[listed, listed].to_numpy() for name, matrix in tables.items()}  # [run, run] each
    seeds_of: dict[str, set[int]] = {}
    for variant, seed in listed:
        seeds_of.setdefault(variant, set()).add(seed)
    # A variant's runs side by side, so that two variants are always named in the same order.
    order = list(seeds_of)
    places = sorted(range(len(listed)), key=lambda place: order.index(listed[place][0]))

    rows: list[tuple] = []
    for i, j in combinations(places, 2):
        (a, seed_a), (b, seed_b) = listed[i], listed[j]
        numbers = [table[i, j] for table in tables.values()]
        single = len(seeds_of[a] | seeds_of[b]) == 1
        if a == b:
            rows.append((a, seed_a, b, seed_b, a, WITHIN, *numbers))
        elif seed_a != seed_b or single:
            rows.append((a, seed_a, b, seed_b, f"{a} – {b}", BETWEEN, *numbers))
    rows.sort(key=lambda row: row[5] == BETWEEN)  # stable: the order of the runs stays
    return pd.DataFrame(rows, columns=["a", "seed_a", "b", "seed_b", "pair", "kind", *tables])


def differ(pairs: pd.DataFrame, value: str = "distance", by: str | None = None) -> pd.DataFrame:
    """Rule 7 on a table of `pairs`, one row for every two variants.

    Columns: ``pair``, ``a``, ``b``; ``between``, the mean of ``value`` over runs of both; ``within``, the largest
    over runs of either of the two, which is the line that a figure draws; ``differ``, between > within; and
    ``verdict`` in words: "differ", "not shown", or "open" where neither variant has two runs (``within`` is NaN).
    With ``by`` each value of that column (a depth, a part of the prompt, a level) is judged by itself; the column
    then stands in the answer."""
    if by is not None and len(pairs):
        judged = []
        for key, part in pairs.groupby(by, sort=False):
            judged.append(differ(part, value).assign(**{by: key}))
        return pd.concat(judged, ignore_index=True)

    largest = pairs[pairs["kind"] == WITHIN].groupby("a")[value].max()  # [variant]
    means = pairs[pairs["kind"] == BETWEEN].groupby(["pair", "a", "b"], sort=False)[value].mean()
    rows = []
    for (pair, a, b), between in means.items():
        within = largest.reindex([a, b]).max()  # NaN only if neither has two runs
        clear = bool(between > within)
        verdict = "differ" if clear else "not shown"
        if np.isnan(within):
            verdict = "open"
        rows.append((pair, a, b, between, within, clear, verdict))
    columns = ["pair", "a", "b", "between", "within", "differ", "verdict"]
    if by is not None:
        columns.append(by)  # of a table without pairs, there is no row
    return pd.DataFrame(rows, columns=columns)
