"""Payoffs, opponents and rewards against tables written by hand."""

import numpy as np
import pytest

from rewired.errors import RewiredError
from rewired.games import (
    GAMES,
    MOVES,
    OPPONENTS,
    REWARDS,
    STATES,
    Turn,
    best_moves,
    dilemma,
    get_game,
    get_opponent,
    get_reward,
    reward,
)

PAYOFFS = {  # CC, CD, DC, DD: (own, other)
    "prisoners_dilemma": [(3, 3), (0, 4), (4, 0), (1, 1)],
    "stag_hunt": [(4, 4), (0, 3), (3, 0), (1, 1)],
    "chicken": [(2, 2), (1, 4), (4, 1), (0, 0)],
    "bach_stravinsky": [(3, 2), (0, 0), (0, 0), (2, 3)],
    "defective_coordination": [(1, 1), (0, 0), (0, 0), (4, 4)],
    "volunteer": [(3, 3), (1, 4), (4, 1), (0, 0)],
}


def test_the_games_have_their_true_payoffs():
    assert {name: [game.payoffs[s] for s in STATES] for name, game in GAMES.items()} == PAYOFFS


@pytest.mark.parametrize("name", ["prisoners_dilemma", "stag_hunt", "chicken", "defective_coordination", "volunteer"])
def test_symmetric_games_look_the_same_from_both_sides(name):
    game = GAMES[name]
    assert all(game.points(a, b) == game.points(b, a)[::-1] for a in MOVES for b in MOVES)


def test_rewards_against_the_study_table():
    game = GAMES["prisoners_dilemma"]
    gain = {}  # D minus C in each state, the other copying the own previous move
    for name, function in REWARDS.items():
        for state in STATES:
            values = {m: function(Turn(state, m, state[0], game.points(m, state[0]))) for m in MOVES}
            gain[name, state] = values["D"] - values["C"]
    for state in STATES:
        assert gain["strategic", state] == 1
        assert gain["utilitarian", state] == -2
        assert gain["deontological", state] == (-3 if state[1] == "C" else 0)
        assert gain["hybrid", state] == (-2 if state[1] == "C" else 1)


@pytest.mark.parametrize("name", ["strategic", "deontological", "utilitarian", "hybrid"])
def test_stated_optimum_is_the_better_move(name):
    game, function = GAMES["prisoners_dilemma"], REWARDS[name]
    for state in STATES:
        values = {m: function(Turn(state, m, state[0], game.points(m, state[0]))) for m in MOVES}
        best = None if values["C"] == values["D"] else max(values, key=values.get)
        assert function.optimum[state] == best


OPTIMA = {  # after CC, CD, DC, DD
    "strategic": ["D", "D", "D", "D"],
    "deontological": ["C", None, "C", None],
    "utilitarian": ["C", "C", "C", "C"],
    "hybrid": ["C", "D", "C", "D"],
}


@pytest.mark.parametrize("name", OPTIMA)
def test_the_best_moves_of_a_reward_are_its_optimum(name):
    stated = dict(zip(STATES, OPTIMA[name], strict=True))
    assert best_moves(REWARDS[name], GAMES["prisoners_dilemma"]) == dict(REWARDS[name].optimum) == stated


def test_the_best_moves_follow_the_payoffs():
    best = best_moves(REWARDS["utilitarian"], GAMES["defective_coordination"])
    assert best == {"CC": "C", "CD": "C", "DC": "D", "DD": "D"}


def test_a_new_reward_is_one_decorated_function():
    try:

        @reward("care", title="Care")
        def care(turn):
            return min(turn.payoffs)

        assert get_reward("care")(Turn("CC", "D", "C", (4, 0))) == 0.0
        assert get_reward("care").optimum == {"CC": "C", "CD": "C", "DC": "D", "DD": "D"}, "found by asking it"
    finally:
        REWARDS.pop("care")


def test_opponents():
    rng = np.random.default_rng(0)
    assert [OPPONENTS["tit_for_tat"](m, rng) for m in MOVES] == ["C", "D"]
    assert {OPPONENTS["random"]("C", rng) for _ in range(50)} == {"C", "D"}
    assert {OPPONENTS["always_cooperate"](m, rng) for m in MOVES} == {"C"}
    assert {OPPONENTS["always_defect"](m, rng) for m in MOVES} == {"D"}


@pytest.mark.parametrize("look_up", [get_game, get_opponent, get_reward])
def test_unknown_names_list_the_known_ones(look_up):
    with pytest.raises(RewiredError, match="nonsense.*Known"):
        look_up("nonsense")


def test_a_matrix_that_is_no_dilemma_is_refused():
    with pytest.raises(RewiredError, match="T > R > P > S"):
        dilemma(4, 0, 3, 1)
