"""Distances measured in runs: against brute force, planted ratios, levels without a yardstick, calibrated intervals."""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest

from rewired import yardstick
from rewired.errors import RewiredError

NAMES = ("one", "two", "three")


def runs_of(seeds: int, names=NAMES) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples([(v, s) for v in names for s in range(1, seeds + 1)])


def random_values(seeds: int = 3, numbers: int = 7, names=NAMES) -> pd.DataFrame:
    columns = runs_of(seeds, names)
    return pd.DataFrame(np.random.default_rng(1).normal(size=(numbers, len(columns))), columns=columns)


def planted(apart: float, scatter, names=NAMES, seeds: int = 3) -> pd.DataFrame:
    """Runs whose squared distances are known: each variant ``apart`` / √2 from the origin along an axis of its own,
    each run ``scatter`` of its variant / √2 along one more."""
    columns, count = runs_of(seeds, names), len(names)
    table = np.zeros((count + len(columns), len(columns)))
    for k, (variant, _) in enumerate(columns):
        table[list(names).index(variant), k] = apart / np.sqrt(2)
        table[count + k, k] = dict(zip(names, np.broadcast_to(scatter, count), strict=True))[variant] / np.sqrt(2)
    return pd.DataFrame(table * np.sqrt(len(table)), columns=columns)


def test_distances_are_root_mean_square_differences():
    values = random_values()
    found = yardstick.distances(values)
    for u, v in combinations(values.columns, 2):
        assert found.loc[u, v] == pytest.approx(np.sqrt(((values[u] - values[v]) ** 2).mean()))
        assert found.loc[v, u] == found.loc[u, v]
    assert (np.diag(found) == 0).all()


def test_a_missing_number_is_refused():
    values = random_values()
    values.iloc[2, 3] = np.nan
    with pytest.raises(RewiredError, match=r"of 7 numbers in 9 runs 1 are missing"):
        yardstick.distances(values)


def test_compare_against_brute_force():
    matrix = yardstick.distances(random_values())
    found = yardstick.compare(matrix).set_index(["a", "b"])
    assert list(found.index) == [*combinations(NAMES, 2), (yardstick.ALL, yardstick.ALL)]
    for a, b in combinations(NAMES, 2):
        across = [matrix.loc[(a, i), (b, j)] for i in (1, 2, 3) for j in (1, 2, 3) if i != j]
        within = [matrix.loc[(v, i), (v, j)] for v in (a, b) for i, j in ((1, 2), (1, 3), (2, 3))]
        row = found.loc[(a, b)]
        assert row["across"] == pytest.approx(np.sqrt(np.mean(np.square(across))))
        assert row["within"] == pytest.approx(np.sqrt(np.mean(np.square(within))))
        assert row["ratio"] == pytest.approx(row["across"] / row["within"])
        assert row["mean"] == pytest.approx(np.mean(across)) and row["largest"] == pytest.approx(max(within))
        assert row["differ"] == (np.mean(across) > max(within)) == (row["ratio"] > row["bar"])


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0])
def test_a_planted_ratio_is_found_whatever_the_scatter(apart):
    for scatter in (1.0, (0.5, 1.0, 2.0), (0.0, 0.0, 1.0)):
        found = yardstick.compare(yardstick.distances(planted(apart, scatter)))
        spread = dict(zip(NAMES, np.broadcast_to(scatter, 3), strict=True))
        for row in found.itertuples():
            mine = list(spread.values()) if row.a == yardstick.ALL else [spread[row.a], spread[row.b]]
            if any(mine):
                assert row.ratio == pytest.approx(np.sqrt(1 + apart**2 / np.mean(np.square(mine))))
    assert yardstick.compare(yardstick.distances(planted(3.0, 1.0)))["differ"].all()
    assert not yardstick.compare(yardstick.distances(planted(0.0, (0.5, 1.0, 2.0))))["differ"].any()


def test_without_runs_of_one_variant_there_is_no_yardstick():
    matrix = yardstick.distances(random_values(seeds=1))
    found = yardstick.compare(matrix)
    assert found["across"].notna().all() and found[["within", "ratio", "bar"]].isna().all(axis=None)
    assert not found["differ"].any()
    clusters = dict(zip(range(7), "aabbccd", strict=True))
    none = yardstick.intervals(lambda kept: matrix, clusters)
    assert none[["low", "high"]].isna().all(axis=None) and len(none) == len(found)
    assert yardstick.without_one_run(matrix)[["run_low", "run_high"]].isna().all(axis=None)
    assert np.isnan(yardstick.permutation(matrix)[0])


def test_one_variant_has_nothing_across():
    matrix = yardstick.distances(random_values(names=("one",)))
    (row,) = yardstick.compare(matrix).itertuples()
    assert np.isnan(row.across) and row.within > 0 and not row.differ
    assert np.isnan(yardstick.permutation(matrix)[0])


def test_leaving_out_a_run_changes_only_what_it_takes_part_in():
    values = planted(2.0, 1.0)
    values[("one", 2)] *= 3  # an outlier
    found = yardstick.without_one_run(yardstick.distances(values)).set_index(["a", "b"])
    calm = found.loc[("two", "three")]
    assert calm["run_low"] == pytest.approx(calm["run_high"]) == pytest.approx(np.sqrt(5))
    assert found.loc[("one", "two"), "run_low"] < 0.9 * found.loc[("one", "two"), "run_high"]
    two = yardstick.without_one_run(yardstick.distances(random_values(seeds=2)))
    assert two[["run_low", "run_high"]].isna().all(axis=None), "two runs less one leave no distance within"


def test_all_labellings_are_tried_once():
    assert len(yardstick._labellings([3, 3, 3, 3], 20_000, 0)) == 15_400
    assert len(yardstick._labellings([3, 3], 20_000, 0)) == 10
    few = yardstick._labellings([2, 1, 1], 100, 0)
    distinct = {frozenset(frozenset(np.flatnonzero(np.array(way) == k)) for k in range(3))
                for way in set(permutations([0, 0, 1, 2]))}  # fmt: skip
    assert len(few) == len(distinct) and list(few[0]) == [0, 0, 1, 2]
    assert len(yardstick._labellings([3, 3, 3, 3], 500, 0)) == 501


def test_permutation_finds_a_planted_difference_and_keeps_its_level():
    p, ways = yardstick.permutation(yardstick.distances(planted(5.0, 1.0)))
    assert ways == 280 and p == pytest.approx(1 / 280)
    random, below = np.random.default_rng(0), 0
    for _ in range(400):
        values = pd.DataFrame(random.normal(size=(4, 9)), columns=runs_of(3))
        below += yardstick.permutation(yardstick.distances(values))[0] <= 0.05
    assert below <= 40  # 99.9 % limit of 400 draws at 0.05 is 36


def test_permutation_against_brute_force():
    matrix = yardstick.distances(random_values())
    squares, ways = matrix.to_numpy() ** 2, set(permutations([0, 0, 0, 1, 1, 1, 2, 2, 2]))

    def ratio(way) -> float:
        same = np.equal.outer(way, way)
        return squares[~same].mean() / squares[same & ~np.eye(9, dtype=bool)].mean()

    observed = ratio((0, 0, 0, 1, 1, 1, 2, 2, 2))
    assert yardstick.permutation(matrix)[0] == pytest.approx(np.mean([ratio(w) >= observed - 1e-12 for w in ways]))


def test_intervals_cover_the_ratio_over_prompts():
    random, sizes = np.random.default_rng(3), (15, 10, 5, 5, 5, 5, 5, 5, 5)
    clusters = dict(enumerate(np.repeat(range(9), sizes)))
    inside, columns = 0, runs_of(3, ("one", "two"))
    place = np.array([clusters[p] for p in clusters])
    for _ in range(200):
        # Two populations of prompts' squared differences, shared within clusters; true ratio 2.
        gap = 2 * np.sqrt(3) * np.exp(0.3 * random.normal(size=9))[place] / np.exp(0.3**2)
        noise = np.exp(0.3 * random.normal(size=9))[place] / np.exp(0.3**2)
        table = np.zeros((len(clusters), 7, 6))  # [prompt, number, run]
        for k, (variant, _) in enumerate(columns):
            table[:, 6, k] = gap / 2 * (1 if variant == "one" else -1) * np.sqrt(2) / np.sqrt(2)
            table[:, k, k] = noise / np.sqrt(2)
        index = pd.MultiIndex.from_product([clusters, range(7)])
        values = pd.DataFrame(table.reshape(-1, 6), index=index, columns=columns)
        true = np.sqrt(1 + 12)
        found = yardstick.intervals(lambda kept, v=values: yardstick.distances(v.loc[kept]), clusters).iloc[0]
        inside += found["low"] <= true <= found["high"]
    assert 180 <= inside
