"""What the chapter on training says of courses: when a run leaves the base, and how much of the end is seen earlier."""

import claim_cells
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

RANDOM = np.random.default_rng(3)
departure = claim_cells.defined("training", "departure")
foresight = claim_cells.defined("training", "foresight")


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
    assert departure(course, 0.1 + 1e-12) == pytest.approx(left, nan_ok=True)


def test_departures_of_random_walks():
    for _ in range(200):
        course = pd.Series(0.5 + 0.1 * RANDOM.normal(size=12).cumsum(), index=np.arange(0, 96, 8))
        assert departure(course, 0.2) == pytest.approx(plainly(course, 0.2), nan_ok=True)


def test_foresight_is_agreement_with_the_end():
    p = RANDOM.random((5, 6, 4)).round(1)  # ties; [episode, run, state]
    value, low, high = foresight(p, draws=200)  # each [same choice | rank correlation, episode]
    for e in range(5):
        same = np.mean([(p[e, r, s] > 0.5) == (p[-1, r, s] > 0.5) for r in range(6) for s in range(4)])
        rho = spearmanr(p[e].ravel(), p[-1].ravel()).statistic
        assert value[:, e] == pytest.approx([same, rho], abs=1e-12)
    assert (low <= value + 1e-12).all() and (value <= high + 1e-12).all()
    assert [value[:, -1], low[:, -1], high[:, -1]] == pytest.approx(np.ones((3, 2)))


def test_foresight_draws_whole_runs():
    """One run in eight ends elsewhere: the interval reaches what samples without it, and with more of it, would say."""
    p = np.full((2, 8, 4), 0.9)
    p[1, 0] = 0.1
    value, low, high = (bound[0, 0] for bound in foresight(p, draws=4_000))
    assert value == 7 / 8 and high == 1
    assert low == 5 / 8  # P(Binomial(8, 1/8) > 3) is 0.01, P(> 2) is 0.07


def test_foresight_of_one_run_has_no_interval():
    value, low, high = foresight(np.array([[[0.4, 0.4, 0.4, 0.4]], [[0.1, 0.2, 0.3, 0.9]]]), draws=50)
    assert np.isnan([low, high]).all()
    assert value[0, 0] == 0.75 and np.isnan(value[1, 0])
