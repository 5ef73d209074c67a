"""Live repeated games between language models and scripted players, thousands at a time.

A player with a memory of one round sees only a handful of different prompts, and its answer depends on nothing but the
prompt. So each distinct prompt is put to the model once, in large batches, and the exact probabilities of its answers
are kept (``read``). ``match`` draws every single answer from them; the draws are distributed as answers generated anew.

What should not matter (the order of labels, rows and columns) is drawn anew in every round, as in training. That is the
same as drawing the answer with the probability averaged over arrangements, which is what a ``Player`` holds. An answer
has as many tokens as a label; anything but one of the two labels is illegal and leaves the previous move standing.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rewired.decisions import measure
from rewired.errors import RewiredError
from rewired.games import GAMES, MOVES, STATES, Game, get_game, get_opponent
from rewired.prompts import Arrangement, Labels, Prompt, build

# Four of the sixteen: each factor is balanced, so that what it alone does cancels in the mean. The orders of the table
# are crossed, and so are those of listing and answer.
_SWAPS = ((0, 0, 0, 0), (1, 0, 0, 1), (1, 1, 1, 0), (0, 1, 1, 1))
ARRANGEMENTS = tuple(Arrangement(*map(bool, swaps)) for swaps in _SWAPS)


@dataclass(frozen=True)
class Question:
    """A prompt and what it is a case of: ``level`` of ``factor``, say the game called chicken, or the wording story."""

    factor: str
    level: str
    prompt: Prompt


def arranged(state: str, game: Game, labels: Labels | Sequence[str], wording: str = "structured") -> list[Prompt]:
    """One question in the four ``ARRANGEMENTS``."""
    return [build(state, game, wording, labels, arrangement=arrangement) for arrangement in ARRANGEMENTS]


def game_questions(labels: Labels | Sequence[str], games: Sequence[Game] = tuple(GAMES.values())) -> list[Question]:
    """Every state of every game, in all arrangements: what a player needs to know to play them."""
    asked = []
    for game in games:
        for state in STATES:
            asked += [Question("game", game.name, prompt) for prompt in arranged(state, game, labels)]
    return asked


def other_side(game: Game) -> Game:
    """The game as the other player sees it; a symmetric game is returned as it is."""
    mirrored = {own + other: game.points(other, own)[::-1] for own in MOVES for other in MOVES}
    if mirrored == dict(game.payoffs):
        return game
    return Game(f"{game.name}_other_side", f"{game.title}, other side", mirrored)


def read(model, tokenizer, questions: Sequence[Question], batch_size: int = 64) -> pd.DataFrame:
    """What a model answers: one row per factor, level and state, averaged over arrangements.

    ``cooperates`` and ``defects`` are the probabilities of the labels; ``legal_mass`` and ``p_defect`` are those of
    ``decisions.measure``. Each distinct text is measured once, however many questions share it."""
    keys = [(question.prompt.text, question.prompt.labels) for question in questions]
    distinct = dict(zip(keys, [question.prompt for question in questions], strict=True))
    measured = measure(model, tokenizer, list(distinct.values()), batch_size, forms=False).set_axis(list(distinct))
    measured["cooperates"], measured["defects"] = np.exp(measured["logp_cooperate"]), np.exp(measured["logp_defect"])
    numbers = measured.loc[keys, ["cooperates", "defects", "legal_mass", "p_defect"]].reset_index(drop=True)
    about = pd.DataFrame([(q.factor, q.level, q.prompt.state) for q in questions], columns=["factor", "level", "state"])
    return pd.concat([about, numbers], axis=1).groupby(list(about), sort=False).mean().reset_index()


SCRIPTS = {
    "tit_for_tat": {"C": 1.0, "D": 0.0},
    "random": {"C": 0.5, "D": 0.5},
    "always_cooperate": {"C": 1.0, "D": 1.0},
    "always_defect": {"C": 0.0, "D": 0.0},
}
"""name -> probability of cooperation after the other player's last move; the opponents of ``games`` as players."""


@dataclass(frozen=True)
class Player:
    """``chances(game)`` [state, (C, D)] are the probabilities of either answer; the rest to 1 is an illegal one."""

    name: str
    chances: Callable[[Game], np.ndarray]


def scripted(name: str) -> Player:
    """Tit-for-Tat, random, always C or always D; RewiredError for another name."""
    get_opponent(name)
    cooperates = np.array([SCRIPTS[name][state[1]] for state in STATES])  # [state]
    return Player(name, lambda game: np.stack([cooperates, 1 - cooperates], axis=1))


def player(name: str, answers: pd.DataFrame) -> Player:
    """The player that a model is, from what ``read`` returned for ``game_questions``."""
    asked = answers[answers["factor"] == "game"].set_index("state")

    def chances(game: Game) -> np.ndarray:
        rows = asked[asked["level"] == game.name]
        if rows.empty:
            raise RewiredError(f"{name} was never asked about {game.name!r}; pass that game to `game_questions`.")
        return rows.loc[list(STATES), ["cooperates", "defects"]].to_numpy()

    return Player(name, chances)


def match(
    first: Player,
    second: Player,
    game: Game | str = "prisoners_dilemma",
    rounds: int = 20,
    plays: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """``plays`` games of ``rounds`` rounds, from random first states, as the first player sees them: one row a round.

    ``state`` is what was displayed, ``answer`` what was said (missing when illegal), ``own`` and ``other`` the moves
    that then counted, ``own_points`` and ``other_points`` what they paid; ``other_answer`` is the second player's.
    All chance comes from ``seed`` and the names: ``integers(2, size=(2, plays))`` for the previous moves (0: C), then
    ``random((rounds, 2, plays))``; a draw below P(C) is C, below P(C) + P(D) it is D."""
    game = get_game(game) if isinstance(game, str) else game
    name = f"{first.name} {second.name} {game.name}"
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    own, other = random.integers(2, size=(2, plays))  # moves: 0 is C, 1 is D
    draws = random.random((rounds, 2, plays))
    own_bounds = first.chances(game).cumsum(axis=1)  # [state, (C, C or D)]
    other_bounds = second.chances(other_side(game)).cumsum(axis=1)
    history = np.empty((5, rounds, plays), dtype=np.int8)  # state, answer, other's answer, own, other
    for t in range(rounds):
        state, mirrored = 2 * own + other, 2 * other + own  # [play]: indices into STATES
        answer = (draws[t, 0][:, None] >= own_bounds[state]).sum(axis=1)  # [play]: 0 is C, 1 is D, 2 is illegal
        other_answer = (draws[t, 1][:, None] >= other_bounds[mirrored]).sum(axis=1)
        own = np.where(answer < 2, answer, own)  # an illegal answer repeats the previous move
        other = np.where(other_answer < 2, other_answer, other)
        history[:, t] = state, answer, other_answer, own, other
    return _turns(history, game)


def _turns(history: np.ndarray, game: Game) -> pd.DataFrame:
    _, rounds, plays = history.shape
    state, answer, other_answer, own, other = history.reshape(5, -1)  # each [turn]
    paid = np.array([game.payoffs[s] for s in STATES], dtype=float)  # [state, (own, other)]
    points = paid[2 * own + other]  # [turn, (own, other)]
    turns = pd.DataFrame({"play": np.tile(np.arange(plays), rounds)})
    turns["round"] = np.repeat(np.arange(1, rounds + 1), plays)
    turns["state"] = pd.Categorical.from_codes(state, STATES)
    for name, codes in {"answer": answer, "own": own, "other": other, "other_answer": other_answer}.items():
        turns[name] = pd.Categorical.from_codes(np.where(codes < 2, codes, -1), MOVES)  # -1: missing
    turns["own_points"], turns["other_points"] = points.T
    return turns
