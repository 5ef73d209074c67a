"""What the chapter on training says: when a run leaves the base, how much of the end is seen earlier, and which best
moves are made on payoff tables that may ask for another one than training did."""

import claim_cells
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from rewired import games, prompts

RANDOM = np.random.default_rng(3)
departure = claim_cells.defined("training", "departure")
foresight = claim_cells.defined("training", "foresight")
best_move = claim_cells.defined("training", "best_move")
best_moves_made = claim_cells.defined("training", "best_moves_made")
listed = claim_cells.defined("training", "listed")


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


# --- best moves by each payoff table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "matrix", "best"),
    [  # after CC, CD, DC, DD; Tit-for-Tat now plays the first letter
        ("utilitarian", "3,0,4,1", ["C", "C", "C", "C"]),
        ("utilitarian", "5,2,9,4", ["D", "D", "C", "C"]),  # 9 + 2 > 5 + 5
        ("utilitarian", "7,1,8,5", ["C", "C", "D", "D"]),  # 5 + 5 > 8 + 1
        ("utilitarian", "3,1,5,2", ["either", "either", "C", "C"]),  # 5 + 1 = 3 + 3
        ("hybrid", "3,0,4,1", ["C", "D", "C", "D"]),
        ("hybrid", "5,2,9,4", ["D", "D", "C", "D"]),  # 9 - 3 > 5
        ("hybrid", "7,1,8,5", ["C", "D", "D", "D"]),  # 5 - 3 > 1
        ("hybrid", "4,0,7,1", ["either", "D", "C", "D"]),  # 7 - 3 = 4
        ("strategic", "5,2,9,4", ["D", "D", "D", "D"]),
        ("deontological", "5,2,9,4", ["C", "either", "C", "either"]),
        ("base", "5,2,9,4", ["no reward"] * 4),
    ],
)
def test_a_reward_is_asked_about_each_table(model, matrix, best):
    assert [best_move(model, matrix, state) for state in games.STATES] == best


def test_the_best_move_is_that_of_the_larger_reward():
    for matrix in prompts.held_out_matrices():
        R, S, T, P = matrix
        for state in games.STATES:
            (cc, dc) = (R + R, T + S) if state[0] == "C" else (S + T, P + P)  # what either move earns both
            due = "either" if cc == dc else "C" if cc > dc else "D"
            assert best_move("utilitarian", ",".join(map(str, matrix)), state) == due


def cases(p: float) -> pd.DataFrame:
    """A utilitarian model with two runs that defect with ``p`` on every held-out table, as the chapter's frame."""
    rows = []
    for matrix in prompts.held_out_matrices():
        name = ",".join(map(str, matrix))
        for state in games.STATES:
            best = best_move("utilitarian", name, state)
            rows += [("utilitarian", seed, state, name, p, best) for seed in (1, 2)]
    return pd.DataFrame(rows, columns=["model", "seed", "state", "matrix", "p_defect", "best"])


def test_a_habit_of_cooperation_misses_where_the_table_asks_for_defection():
    made = best_moves_made(cases(0.0), near=0.1)
    assert listed(made[~made["made"]]) == "(5, 2, 9, 4) after CC, CD; (7, 1, 8, 5) after DC, DD"
    assert len(made) == 8 * 4 - 2 and "3,1,5,2" in set(made["matrix"]), (
        "ties are not asked, the table's other states are"
    )
    assert made["made"].sum() == 26 and listed(made[made["made"] & (made["matrix"] == "5,2,9,4")]).endswith("DC, DD")
    defects = best_moves_made(cases(1.0), near=0.1)
    assert defects["made"].sum() == 4, "and a habit of defection makes only these four"
    one = cases(0.0)
    one.loc[(one["seed"] == 2) & (one["matrix"] == "3,0,4,1"), "p_defect"] = 1
    one.loc[(one["seed"] == 2) & (one["matrix"] == "6,2,8,3"), "p_defect"] = 0.2
    assert best_moves_made(one, near=0.1)["made"].sum() == 22, "every run has to make it"
