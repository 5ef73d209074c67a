"""Distances measured in runs, as the chapter's own cells define them: brute force, planted ratios, calibrated tests."""

from functools import partial
from itertools import combinations, permutations
from math import factorial

import claim_cells
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from rewired import runs

NAMES = ("one", "two", "three")


def taught(name: str):
    """A function that the chapter defines in a visible cell."""
    return claim_cells.defined("synthesis", name, runs=runs, combinations=combinations)


def runs_of(seeds: int, names=NAMES) -> pd.MultiIndex:
    return pd.MultiIndex.from_product([names, range(1, seeds + 1)], names=["model", "seed"])


def distances(values: pd.DataFrame) -> pd.DataFrame:
    return runs.distances(values, "root mean square")


def random_values(seeds: int = 3, numbers: int = 7, names=NAMES) -> pd.DataFrame:
    columns = runs_of(seeds, names)
    return pd.DataFrame(np.random.default_rng(1).normal(size=(numbers, len(columns))), columns=columns)


def planted(apart: float, scatter, names=NAMES, seeds: int = 3) -> pd.DataFrame:
    """Runs whose squared distances are known: each variant ``apart`` / √2 from the origin along an axis of its own,
    each run ``scatter`` of its variant / √2 along one more."""
    columns, count = runs_of(seeds, names), len(names)
    table = np.zeros((count + len(columns), len(columns)))
    for k, (variant, _) in enumerate(columns):
        place = list(names).index(variant)
        table[place, k] = apart / np.sqrt(2)
        table[count + k, k] = np.broadcast_to(scatter, count)[place] / np.sqrt(2)
    return pd.DataFrame(table * np.sqrt(len(table)), columns=columns)


# --- ratios ----------------------------------------------------------------------------------------------------------


def test_ratios_against_brute_force():
    matrix = distances(random_values())
    table = taught("with_rule")(matrix).set_index(["a", "b"])
    assert list(table.index) == [*combinations(NAMES, 2), ("all", "all")]
    for a, b in combinations(NAMES, 2):
        across = [matrix.loc[(a, i), (b, j)] for i in (1, 2, 3) for j in (1, 2, 3) if i != j]
        within = [matrix.loc[(v, i), (v, j)] for v in (a, b) for i, j in ((1, 2), (1, 3), (2, 3))]
        row = table.loc[(a, b)]
        assert row["across"] == pytest.approx(np.sqrt(np.mean(np.square(across))))
        assert row["within"] == pytest.approx(np.sqrt(np.mean(np.square(within))))
        assert row["ratio"] == pytest.approx(row["across"] / row["within"])
        assert row["mean"] == pytest.approx(np.mean(across)) and row["largest"] == pytest.approx(max(within))
        assert row["differ"] == (np.mean(across) > max(within)) == (row["ratio"] > row["bar"])
    pairs, whole = table.drop(("all", "all")), table.loc[("all", "all")]
    assert whole["across"] == pytest.approx(np.sqrt((pairs["across"] ** 2).mean()))
    assert whole["mean"] == pytest.approx(pairs["mean"].mean()) and whole["largest"] == pairs["largest"].max()


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0])
def test_a_planted_ratio_is_found_whatever_the_scatter(apart):
    for scatter in (1.0, (0.5, 1.0, 2.0), (0.0, 0.0, 1.0)):
        table = taught("ratios")(distances(planted(apart, scatter)))
        spread = dict(zip(NAMES, np.broadcast_to(scatter, 3), strict=True))
        for row in table.itertuples():
            mine = list(spread.values()) if row.a == "all" else [spread[row.a], spread[row.b]]
            if any(mine):
                assert row.ratio == pytest.approx(np.sqrt(1 + apart**2 / np.mean(np.square(mine))))


def test_a_planted_difference_passes_rule_7_and_a_scatter_does_not():
    with_rule = taught("with_rule")
    assert with_rule(distances(planted(3.0, 1.0)))["differ"].all()
    assert not with_rule(distances(planted(0.0, (0.5, 1.0, 2.0))))["differ"].any()


def test_false_verdicts_are_rule_7_on_alike_variants():
    false_verdicts = taught("false_verdicts")
    drawn = np.random.default_rng(0).normal(size=(60, 6, 4))
    columns = pd.MultiIndex.from_product([["a", "b"], range(3)])
    said = []
    for values in drawn:
        table = runs.pairs(distances(pd.DataFrame(values.T, columns=columns)))
        said.append(runs.differ(table)["differ"].iloc[0])
    assert false_verdicts(3, 4, repeats=60) == pytest.approx(np.mean(said))
    assert 0 < false_verdicts(3, 3) <= 1 / 10 < false_verdicts(2, 3) <= 1 / 3


def test_without_runs_of_one_variant_there_is_no_ratio():
    matrix = distances(random_values(seeds=1))
    table = taught("with_rule")(matrix)
    assert table["across"].notna().all() and table[["within", "ratio", "bar"]].isna().all(axis=None)
    assert not table["differ"].any()
    clusters = dict(zip(range(7), "aabbccd", strict=True))
    assert np.isnan(taught("intervals")(lambda prompts: matrix, clusters)).all()
    assert np.isnan(taught("without_one_run")(matrix)).all()
    assert np.isnan(taught("permutation")(matrix, 20_000, 0)[0])


def test_one_variant_has_nothing_across():
    matrix = distances(random_values(names=("one",)))
    (row,) = taught("with_rule")(matrix).itertuples()
    assert np.isnan(row.across) and row.within > 0 and not row.differ
    assert np.isnan(taught("permutation")(matrix, 20_000, 0)[0])


# --- how far a ratio may be trusted ----------------------------------------------------------------------------------


def test_leaving_out_a_run_changes_only_what_it_takes_part_in():
    values = planted(2.0, 1.0)
    values[("one", 2)] *= 3  # an outlier
    matrix = distances(values)
    low, high = taught("without_one_run")(matrix)
    table = taught("ratios")(matrix).assign(low=low, high=high).set_index(["a", "b"])
    calm = table.loc[("two", "three")]
    assert calm["low"] == pytest.approx(calm["high"]) == pytest.approx(np.sqrt(5))
    assert table.loc[("one", "two"), "low"] < 0.9 * table.loc[("one", "two"), "high"]
    two = taught("without_one_run")(distances(random_values(seeds=2)))
    assert np.isnan(two).all(), "two runs less one leave no distance within"


def test_fewer_than_three_clusters_give_no_interval():
    clusters = dict(zip(range(7), "aaaabbb", strict=True))
    values = random_values()
    assert np.isnan(taught("intervals")(lambda prompts: distances(values.loc[prompts]), clusters)).all()


def matrix_of(squares: np.ndarray, columns: pd.MultiIndex, prompts: list[int]) -> pd.DataFrame:
    """Root mean square distances [run, run] from squares [prompt, run, run] on these prompts."""
    return pd.DataFrame(np.sqrt(squares[prompts].mean(axis=0)), columns, columns)


def test_intervals_cover_the_ratio_over_prompts():
    intervals = taught("intervals")
    random, sizes = np.random.default_rng(3), (15, 10, 5, 5, 5, 5, 5, 5, 5)
    clusters = dict(enumerate(np.repeat(range(9), sizes)))
    inside, columns = 0, runs_of(3, ("one", "two"))
    place = np.array([clusters[p] for p in clusters])
    for _ in range(100):
        # Two populations of prompts' squared differences, shared within clusters; true ratio √13.
        gap = 2 * np.sqrt(3) * np.exp(0.3 * random.normal(size=9))[place] / np.exp(0.3**2)
        noise = np.exp(0.3 * random.normal(size=9))[place] / np.exp(0.3**2)
        table = np.zeros((len(clusters), 7, 6))  # [prompt, number, run]
        for k, (variant, _) in enumerate(columns):
            table[:, 6, k] = gap / 2 * (1 if variant == "one" else -1)
            table[:, k, k] = noise / np.sqrt(2)
        squares = np.square(table[..., None] - table[..., None, :]).mean(axis=1)  # [prompt, run, run]
        low, high = intervals(partial(matrix_of, squares, columns), clusters)
        inside += low[0] <= np.sqrt(1 + 12) <= high[0]
    assert binom.ppf(0.001, 100, 0.95) <= inside


# --- the test over runs ----------------------------------------------------------------------------------------------


def test_all_relabellings_are_tried_once():
    relabellings = taught("relabellings")
    assert len(relabellings((3, 3, 3, 3), 20_000, 0)) == 15_400 == factorial(12) // 6**4 // 24
    assert len(relabellings((3, 3), 20_000, 0)) == 10
    few = relabellings((2, 1, 1), 100, 0)

    def groups(way) -> frozenset:
        return frozenset(frozenset(np.flatnonzero(np.array(way) == k)) for k in range(3))

    every = {groups(way) for way in permutations([0, 0, 1, 2])}
    assert {groups(way) for way in few} == every and len(few) == len(every) and list(few[0]) == [0, 0, 1, 2]
    random = relabellings((3, 3, 3, 3), 500, 0)
    assert len(random) == 501 and list(random[0]) == sorted(random[0])


def test_permutation_finds_a_planted_difference_and_keeps_its_level():
    permutation = taught("permutation")
    p, ways = permutation(distances(planted(5.0, 1.0)), 20_000, 0)
    assert ways == 280 and p == pytest.approx(1 / 280)
    random, below = np.random.default_rng(0), 0
    for _ in range(400):
        values = pd.DataFrame(random.normal(size=(4, 9)), columns=runs_of(3))
        below += permutation(distances(values), 20_000, 0)[0] <= 0.05
    assert binom.ppf(0.001, 400, 0.05) <= below <= binom.ppf(0.999, 400, 0.05)


def test_permutation_against_brute_force():
    matrix = distances(random_values())
    squares, ways = matrix.to_numpy() ** 2, set(permutations([0, 0, 0, 1, 1, 1, 2, 2, 2]))

    def ratio(way) -> float:
        same = np.equal.outer(way, way)
        return squares[~same].mean() / squares[same & ~np.eye(9, dtype=bool)].mean()

    observed = ratio((0, 0, 0, 1, 1, 1, 2, 2, 2))
    p, _ = taught("permutation")(matrix, 20_000, 0)
    assert p == pytest.approx(np.mean([ratio(way) >= observed - 1e-12 for way in ways]))
