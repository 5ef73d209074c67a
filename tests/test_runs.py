"""Rule 7 and the distances it judges: by hand, against brute force, and where there is nothing to compare."""

import doctest
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from rewired import runs
from rewired.errors import RewiredError

NAMES = ("one", "two", "three")


def runs_of(seeds: int, names=NAMES) -> pd.MultiIndex:
    return pd.MultiIndex.from_product([names, range(1, seeds + 1)], names=["model", "seed"])


def random_values(seeds: int = 3, numbers: int = 7, names=NAMES) -> pd.DataFrame:
    columns = runs_of(seeds, names)
    return pd.DataFrame(np.random.default_rng(1).normal(size=(numbers, len(columns))), columns=columns)


# --- distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "by_hand"),
    [
        ("mean", lambda u, v: np.mean(np.abs(u - v))),
        ("root mean square", lambda u, v: np.sqrt(np.mean((u - v) ** 2))),
        ("cosine", lambda u, v: 1 - u @ v / np.sqrt((u @ u) * (v @ v))),
        (lambda u, v: np.mean(np.abs(u - v) > 1), lambda u, v: np.mean(np.abs(u - v) > 1)),
    ],
)
def test_distances_by_hand(measure, by_hand):
    values = random_values()
    found = runs.distances(values, measure)
    assert found.index.equals(values.columns) and found.columns.equals(values.columns)
    for u, v in combinations(values.columns, 2):
        assert found.at[u, v] == pytest.approx(by_hand(values[u].to_numpy(), values[v].to_numpy()))
        assert found.at[v, u] == found.at[u, v]
    assert (np.diag(found) == 0).all()


def test_missing_numbers_and_unknown_measures_are_refused():
    values = random_values()
    with pytest.raises(RewiredError, match="'cosin'.*Did you mean 'cosine'"):
        runs.distances(values, "cosin")
    values.iloc[2, 3] = np.nan
    with pytest.raises(RewiredError, match="of 7 numbers in 9 runs 1 are missing"):
        runs.distances(values)
    with pytest.raises(RewiredError, match="of 0 numbers"):
        runs.distances(values.iloc[:0])


def test_where_there_is_nothing_to_judge_the_columns_are_the_same():
    several = runs.pairs(runs.distances(random_values())).assign(depth=0)
    single = runs.pairs(runs.distances(random_values(seeds=1, names=["one"]))).assign(depth=0)
    assert single.empty and runs.differ(single, by="depth").empty
    assert list(runs.differ(single, by="depth")) == list(runs.differ(several, by="depth"))


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_two_variants_are_compared_at_different_seeds():
    matrix = runs.distances(random_values())
    table = runs.pairs(matrix, doubled=2 * matrix)
    within, between = table[table["kind"] == runs.WITHIN], table[table["kind"] == runs.BETWEEN]
    assert len(within) == 3 * 3 and len(between) == 3 * 6 and len(table) == 27
    assert (table["kind"].iloc[:9] == runs.WITHIN).all(), "runs of one variant first"
    assert (between["seed_a"] != between["seed_b"]).all() and (within["pair"] == within["a"]).all()
    assert list(dict.fromkeys(between["pair"])) == ["one – two", "one – three", "two – three"]
    for row in table.itertuples():
        assert row.distance == matrix.at[(row.a, row.seed_a), (row.b, row.seed_b)] == row.doubled / 2
    assert not table.duplicated(["a", "seed_a", "b", "seed_b"]).any()


def test_with_one_seed_each_variants_are_compared_at_that_seed():
    table = runs.pairs(runs.distances(random_values(seeds=1)))
    assert list(table["pair"]) == ["one – two", "one – three", "two – three"]
    assert (table["kind"] == runs.BETWEEN).all()


def test_one_run_of_another_seed_is_compared_with_all():
    values = random_values(seeds=2, names=("one",))
    values[("base", 0)] = 1.0
    table = runs.pairs(runs.distances(values))
    assert list(table["kind"]) == [runs.WITHIN, runs.BETWEEN, runs.BETWEEN]


def test_variants_are_named_in_one_order_however_the_runs_are_mixed():
    values = random_values(seeds=2, names=("x", "y"))
    mixed = values[[("x", 1), ("y", 1), ("y", 2), ("x", 2)]]
    assert set(runs.pairs(runs.distances(mixed))["pair"]) == {"x", "y", "x – y"}
    pd.testing.assert_frame_equal(runs.pairs(runs.distances(mixed)), runs.pairs(runs.distances(values)))


# --- rule 7 ----------------------------------------------------------------------------------------------------------


def by_hand(**distances: float) -> pd.DataFrame:
    """A table of pairs of the runs a1, a2, b1, b2, c1, c2 with these distances; all others are 0.1."""
    columns = runs_of(2, list("abc"))
    matrix = pd.DataFrame(0.1, columns, columns)
    for name, distance in distances.items():
        u, v = [(end[0], int(end[1])) for end in name.split("_")]
        matrix.at[u, v] = matrix.at[v, u] = distance
    return runs.pairs(matrix)


def test_rule_7_by_hand():
    judged = runs.differ(by_hand(a1_a2=1.0, b1_b2=2.0, c1_c2=0.5, a1_b2=1.0, a2_b1=2.0, b1_c2=4.0, b2_c1=1.0))
    judged = judged.set_index("pair")
    assert list(judged.index) == ["a – b", "a – c", "b – c"]
    assert list(judged["between"]) == pytest.approx([1.5, 0.1, 2.5]), "means over both pairs of different seeds"
    assert list(judged["within"]) == [2.0, 1.0, 2.0], "the largest of either of the two"
    assert list(judged["differ"]) == [False, False, True]
    assert list(judged["verdict"]) == ["not shown", "not shown", "differ"]


def test_a_third_variant_does_not_count():
    """The largest distance within ANY variant, 9, would hide that a and b differ."""
    judged = runs.differ(by_hand(a1_a2=1.0, b1_b2=1.0, c1_c2=9.0, a1_b2=3.0, a2_b1=3.0)).set_index("pair")
    assert judged.at["a – b", "differ"] and not judged.at["a – c", "differ"]


def test_exactly_as_far_is_not_farther():
    judged = runs.differ(by_hand(a1_a2=3.0, a1_b2=3.0, a2_b1=3.0)).set_index("pair")
    assert not judged.at["a – b", "differ"]


def test_rule_7_against_brute_force():
    matrix = runs.distances(random_values(seeds=3))
    for row in runs.differ(runs.pairs(matrix)).itertuples():
        seeds = (1, 2, 3)
        between = [matrix.at[(row.a, i), (row.b, j)] for i in seeds for j in seeds if i != j]
        within = [matrix.at[(v, i), (v, j)] for v in (row.a, row.b) for i, j in combinations(seeds, 2)]
        assert row.between == pytest.approx(np.mean(between)) and row.within == max(within)
        assert row.differ == (np.mean(between) > max(within))


def test_without_two_runs_of_one_variant_the_question_stays_open():
    alone = runs.differ(runs.pairs(runs.distances(random_values(seeds=1))))
    assert alone["within"].isna().all() and not alone["differ"].any() and set(alone["verdict"]) == {"open"}
    half = random_values(seeds=2, names=("one",)).join(random_values(seeds=1, names=("two",)))
    (row,) = runs.differ(runs.pairs(runs.distances(half))).itertuples()
    assert row.verdict != "open", "two runs of one of the two are enough"
    single = runs.differ(runs.pairs(runs.distances(random_values(names=("one",)))))
    assert single.empty and "differ" in single


def test_several_measures_and_parts_are_judged_each_by_itself():
    near, far = by_hand(a1_a2=1.0, a1_b2=0.5, a2_b1=0.5), by_hand(a1_a2=1.0, a1_b2=5.0, a2_b1=5.0)
    both = pd.concat([near.assign(depth=3), far.assign(depth=1)])
    judged = runs.differ(both, by="depth")
    of_ab = judged[judged["pair"] == "a – b"]
    assert list(of_ab["depth"]) == [3, 1] and list(of_ab["differ"]) == [False, True]
    other = runs.differ(near.assign(logits=far["distance"]), value="logits").set_index("pair")
    assert other.at["a – b", "differ"]
    pd.testing.assert_frame_equal(other.reset_index(), runs.differ(far))


def test_the_example_in_the_docstring():
    assert doctest.testmod(runs).failed == 0
