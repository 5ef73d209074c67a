"""What the course of training says, and rank correlations, against plain loops and the library."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from rewired import statistics

RANDOM = np.random.default_rng(3)
STATES = ("CC", "CD", "DC", "DD")


def plainly(course: pd.Series, margin: float) -> float:
    for start in course.index:
        if all(abs(value - course.iloc[0]) > margin for value in course.loc[start:]):
            return start
    return float("nan")


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ([0.5, 0.5, 0.7, 0.9], 16),
        ([0.5, 0.9, 0.5, 0.1], 24),  # away, back, and away on the other side
        ([0.5, 0.9, 0.9, 0.55], np.nan),  # back in the end
        ([0.5, 0.6, 0.6, 0.6], np.nan),  # exactly at the margin is near
        ([0.5, 0.9, 0.1, 0.9], 8),
        ([0.5], np.nan),
    ],
)
def test_when_a_course_leaves_its_beginning(values, left):
    course = pd.Series(values, index=8 * np.arange(len(values)))
    assert statistics.departure(course, 0.1 + 1e-12) == pytest.approx(left, nan_ok=True)


def test_departures_of_random_walks():
    for _ in range(200):
        course = pd.Series(0.5 + 0.1 * RANDOM.normal(size=12).cumsum(), index=np.arange(0, 96, 8))
        assert statistics.departure(course, 0.2) == pytest.approx(plainly(course, 0.2), nan_ok=True)


def table(p: np.ndarray) -> pd.DataFrame:
    """p [episode, run, state]"""
    rows = [
        {"episode": 10 * e, "run": f"run-{r}", "state": STATES[s], "p_defect": p[e, r, s]}
        for e, r, s in np.ndindex(p.shape)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_foresight_is_agreement_with_the_end():
    p = RANDOM.random((5, 6, 4)).round(1)  # ties
    found = statistics.foresight(table(p), draws=200).set_index(["measure", "episode"])
    for e in range(5):
        same = np.mean([(p[e, r, s] > 0.5) == (p[-1, r, s] > 0.5) for r in range(6) for s in range(4)])
        rho = spearmanr(p[e].ravel(), p[-1].ravel()).statistic
        assert found.loc[("same choice", 10 * e), "value"] == pytest.approx(same, abs=1e-12)
        assert found.loc[("rank correlation", 10 * e), "value"] == pytest.approx(rho, abs=1e-12)
    assert (found["low"] <= found["value"] + 1e-12).all() and (found["value"] <= found["high"] + 1e-12).all()
    assert found.xs(40, level="episode").to_numpy() == pytest.approx(1)


def test_foresight_draws_whole_runs():
    """One run in eight ends elsewhere: the interval reaches what samples without it, and with more of it, would say."""
    p = np.full((2, 8, 4), 0.9)
    p[1, 0] = 0.1
    found = statistics.foresight(table(p), draws=4_000).set_index(["measure", "episode"]).loc["same choice"]
    assert found.loc[0, "value"] == 7 / 8 and found.loc[0, "high"] == 1
    assert found.loc[0, "low"] == 5 / 8  # P(Binomial(8, 1/8) > 3) is 0.01, P(> 2) is 0.07


def test_foresight_of_one_run_has_no_interval():
    found = statistics.foresight(table(np.array([[[0.4, 0.4, 0.4, 0.4]], [[0.1, 0.2, 0.3, 0.9]]])), draws=50)
    assert found[["low", "high"]].isna().all(axis=None)
    by = found.set_index(["measure", "episode"])["value"]
    assert by["same choice", 0] == 0.75 and np.isnan(by["rank correlation", 0])


def test_the_rank_correlation_is_spearmans_with_ties():
    random = np.random.default_rng(0)
    x, y = random.integers(0, 6, 40), random.normal(size=40)
    rho, low, high = statistics.rank_correlation(x, y, range(40))
    assert rho == pytest.approx(spearmanr(x, y).statistic) and low < rho < high


def test_a_constant_has_no_rank_correlation_and_one_cluster_no_interval():
    assert np.isnan(statistics.rank_correlation([1, 1, 1], [1, 2, 3], "abc")).all()
    rho, low, high = statistics.rank_correlation([1, 2, 3], [1, 2, 3], "aaa")
    assert rho == pytest.approx(1) and np.isnan(low) and np.isnan(high)


def test_copies_within_a_cluster_add_no_certainty():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 30))
    layers = np.repeat(np.arange(30), 8)
    width = [high - low for _, low, high in (
        statistics.rank_correlation(x, y, range(30)),
        statistics.rank_correlation(np.repeat(x, 8), np.repeat(y, 8), layers),
        statistics.rank_correlation(np.repeat(x, 8), np.repeat(y, 8), range(240)),
    )]  # fmt: skip
    assert width[1] == pytest.approx(width[0], rel=0.1) and width[2] < 0.6 * width[1]


@pytest.mark.parametrize("r", [0.0, 0.7])
def test_the_interval_covers_as_stated(r):
    """Eight layers of four heads, alike within a layer; a 90 % interval misses in one case of ten."""
    random = np.random.default_rng(3)
    missed, true = 0, 6 / np.pi * np.arcsin(r / 2)  # of a normal pair with correlation r
    for _ in range(150):
        a, b = random.normal(size=(2, 8, 1)) + random.normal(size=(2, 8, 4))
        _, low, high = statistics.rank_correlation(
            a.ravel(), (r * a + (1 - r**2) ** 0.5 * b).ravel(), np.repeat(np.arange(8), 4), level=0.9, draws=100
        )
        missed += not low <= true <= high
    assert missed <= 30, "more than one in five"
