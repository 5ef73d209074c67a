"""Two-player games, opponents and rewards: everything about play that needs neither text nor a model.

A *move* is ``"C"`` (cooperate) or ``"D"`` (defect). A *state* is two letters, the own previous move followed by the
other player's previous move, so ``"CD"`` reads "I cooperated, they defected". Memory never reaches further back than
one round, as in the study. A *reward* turns one played turn into a number; the registry ``REWARDS`` holds the four of
the study, and adding a moral framework is one decorated function:

>>> @reward("care", title="Care")
... def care(turn):
...     return min(turn.payoffs)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import SupportsFloat

from rewired.errors import RewiredError, choice

MOVES = ("C", "D")
STATES = ("CC", "CD", "DC", "DD")
ILLEGAL = -6.0
"""Reward of an answer that is neither label, whatever the framework; the study's value."""


@dataclass(frozen=True)
class Game:
    """A 2 x 2 game. ``payoffs[own + other]`` is the pair (own points, other's points)."""

    name: str
    title: str
    payoffs: Mapping[str, tuple[int, int]]

    def points(self, own: str, other: str) -> tuple[int, int]:
        """Points (own, other's) when I play ``own`` and the other plays ``other``."""
        return self.payoffs[own + other]


def _game(name: str, title: str, cc, cd, dc, dd) -> Game:
    return Game(name, title, MappingProxyType(dict(zip(STATES, (cc, cd, dc, dd), strict=True))))


def dilemma(reward: int, sucker: int, temptation: int, punishment: int) -> Game:
    """A symmetric game from its four payoffs R, S, T, P: CC pays (R, R), CD (S, T), DC (T, S), DD (P, P).

    Raises RewiredError unless T > R > P > S, the order that makes it a prisoner's dilemma."""
    if not temptation > reward > punishment > sucker:
        raise RewiredError(
            f"The matrix R, S, T, P = {reward}, {sucker}, {temptation}, {punishment} is not a prisoner's dilemma: "
            "it needs T > R > P > S. Put the four numbers in the order R, S, T, P, for example [3, 0, 4, 1]."
        )
    R, S, T, P = reward, sucker, temptation, punishment  # the letters of the literature
    return _game("prisoners_dilemma", "Prisoner's Dilemma", (R, R), (S, T), (T, S), (P, P))


GAMES: dict[str, Game] = {
    game.name: game
    for game in (
        dilemma(3, 0, 4, 1),
        _game("stag_hunt", "Stag Hunt", (4, 4), (0, 3), (3, 0), (1, 1)),  # cooperation pays, but only together
        _game("chicken", "Chicken", (2, 2), (1, 4), (4, 1), (0, 0)),  # to defect together is the disaster
        _game("bach_stravinsky", "Bach or Stravinsky", (3, 2), (0, 0), (0, 0), (2, 3)),  # to do the same pays
        _game("defective_coordination", "Defective Coordination", (1, 1), (0, 0), (0, 0), (4, 4)),
        _game("volunteer", "Volunteer's Dilemma", (3, 3), (1, 4), (4, 1), (0, 0)),
    )
}
"""The study's five games with their true payoffs, and a sixth (the last) that its code defines and never plays."""


OPPONENTS: dict[str, Callable] = {
    "tit_for_tat": lambda own_last, rng: own_last,
    "random": lambda own_last, rng: MOVES[int(rng.integers(2))],
    "always_cooperate": lambda own_last, rng: "C",
    "always_defect": lambda own_last, rng: "D",
}
"""name -> f(own_last, rng) -> move. ``own_last`` is the *learner's* previous move, so Tit-for-Tat is the identity."""


@dataclass(frozen=True)
class Turn:
    """One played turn. ``state`` is what was displayed, ``own`` and ``other`` are the moves now made, and
    ``payoffs`` the points (own, other's) those moves earn."""

    state: str
    own: str
    other: str
    payoffs: tuple[int, int]


@dataclass(frozen=True)
class Reward:
    """A moral framework. ``study`` is its name in the study, ``optimum`` the `best_moves` in the study's game. Call it
    with a Turn to get the reward (float); RewiredError where that is no finite number."""

    name: str
    title: str
    study: str
    function: Callable[[Turn], float]

    @cached_property
    def optimum(self) -> Mapping[str, str | None]:
        return MappingProxyType(best_moves(self, GAMES["prisoners_dilemma"]))

    def __call__(self, turn: Turn) -> float:
        paid = self.function(turn)
        try:
            number = float(paid) if isinstance(paid, SupportsFloat) else math.nan
        except (ArithmeticError, TypeError, ValueError, RuntimeError):  # too large, or several numbers
            number = math.nan
        if not math.isfinite(number):
            kind = f"{number} (its function returns a value of type {type(paid).__name__})"
            raise RewiredError(f"The reward {self.name!r} gives {kind} for {turn}. Let it return one finite number.")
        return number


REWARDS: dict[str, Reward] = {}


def best_moves(reward: Callable[[Turn], float], game: Game) -> dict[str, str | None]:
    """The move that earns more in each state of ``game`` against Tit-for-Tat, which plays my previous move; None where
    both earn the same."""
    best: dict[str, str | None] = {}
    for state in STATES:
        other = state[0]  # what Tit-for-Tat plays now: my previous move
        c = reward(Turn(state, "C", other, game.points("C", other)))
        d = reward(Turn(state, "D", other, game.points("D", other)))
        best[state] = "C" if c > d else "D"
        if abs(c - d) < 1e-12:  # rewards may be sums of fractions
            best[state] = None
    return best


def reward(name: str, title: str, study: str = ""):
    """Decorator that adds ``f(turn) -> float`` to ``REWARDS`` under ``name``; see the module docstring."""

    def register(function: Callable[[Turn], float]) -> Callable[[Turn], float]:
        REWARDS[name] = Reward(name, title, study, function)
        return function

    return register


@reward("strategic", title="Strategic", study="PT2")  # best: D after everything
def strategic(turn: Turn) -> float:
    """The own payoff."""
    return turn.payoffs[0]


@reward("deontological", title="Deontological", study="PT3_De")  # best: C after C; after D either
def deontological(turn: Turn) -> float:
    """-3 for defecting on a player whose displayed move was to cooperate, else 0. No game payoff: after the other's
    defection both moves earn 0, so there the reward says nothing."""
    return -3.0 if turn.own == "D" and turn.state[1] == "C" else 0.0


@reward("utilitarian", title="Utilitarian", study="PT3_Ut")  # best: C after everything
def utilitarian(turn: Turn) -> float:
    """The sum of both players' payoffs."""
    return turn.payoffs[0] + turn.payoffs[1]


@reward("hybrid", title="Hybrid", study="PT4")  # best: C after C, D after D
def hybrid(turn: Turn) -> float:
    """The own payoff, minus 3 for betraying a displayed cooperator."""
    return turn.payoffs[0] + deontological(turn)


def get_game(name: str) -> Game:
    """The game called ``name``, or a RewiredError that lists the known ones."""
    if name not in GAMES:
        raise choice("game", name, GAMES, "Games are defined in lib/rewired/games.py.")
    return GAMES[name]


def get_opponent(name: str) -> Callable:
    """The opponent called ``name``, or a RewiredError that lists the known ones."""
    if name not in OPPONENTS:
        raise choice("opponent", name, OPPONENTS, "Opponents are defined in lib/rewired/games.py.")
    return OPPONENTS[name]


def get_reward(name: str) -> Reward:
    """The reward called ``name``, or a RewiredError that lists the known ones."""
    if name not in REWARDS:
        raise choice("reward", name, REWARDS, "Add one with the decorator `reward` in lib/rewired/games.py.")
    return REWARDS[name]
