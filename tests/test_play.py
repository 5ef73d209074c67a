"""Games against games computed by hand, and drawn answers against answers generated one by one."""

import zlib
from dataclasses import astuple

import claim_cells
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewired import decisions, games, models, play, profiles, prompts
from rewired.errors import RewiredError
from rewired.games import GAMES, MOVES, OPPONENTS, REWARDS, STATES, Game, Turn, get_game
from rewired.prompts import Labels, chat, scenario_set

NAMES = tuple(play.SCRIPTS)
EXACT = 1e-9


def taught(name: str):
    """A function that the chapter on behaviour defines: the measures of its games stand there."""
    known = {"games": games, "play": play, "prompts": prompts, "game": get_game("prisoners_dilemma")}
    known |= {"labels": Labels(), "unseen_labels": ["action3", "action4"]}
    return claim_cells.defined("behaviour", name, **known)


regret, reciprocity, tournament = taught("regret"), taught("reciprocity"), taught("tournament")


# --- by hand: plain loops over the documented random numbers --------------------------------------------------------


def by_hand(first: str, second: str, game: Game, turns: pd.DataFrame, draws: np.ndarray) -> list[dict]:
    """The turns of scripted players, one at a time: first previous moves from ``turns``, answers from ``OPPONENTS``;
    only the coin of ``random`` comes from ``draws``."""
    rounds, _, plays = draws.shape
    played = []
    for k in range(plays):
        own, other = turns.loc[(turns["play"] == k) & (turns["round"] == 1), "state"].item()
        for t in range(rounds):
            moves = []
            for side, (name, seen) in enumerate(((first, other), (second, own))):
                coin = "C" if draws[t, side, k] < 0.5 else "D"
                moves.append(coin if name == "random" else OPPONENTS[name](seen, None))
            paid = game.payoffs["".join(moves)]
            played.append({"play": k, "round": t + 1, "state": own + other, "own": moves[0], "other": moves[1],
                           "own_points": paid[0], "other_points": paid[1]})  # fmt: skip
            own, other = moves
    return played


def the_draws(first: str, second: str, game: Game, rounds: int, plays: int, seed: int) -> np.ndarray:
    random = np.random.default_rng([seed, zlib.crc32(f"{first} {second} {game.name}".encode())])
    random.integers(2, size=(2, plays))
    return random.random((rounds, 2, plays))


def regrets_by_hand(played: list[dict], name: str, game: Game) -> dict[str, float]:
    reward = REWARDS[name]
    earned = [reward(Turn(t["state"], t["own"], t["other"], game.points(t["own"], t["other"]))) for t in played]
    every = [reward(Turn(s, a, b, game.points(a, b))) for s in STATES for a in MOVES for b in MOVES]
    mean, lost, stake = sum(earned) / len(earned), 0.0, 0.0
    for t, got in zip(played, earned, strict=True):
        could = [reward(Turn(t["state"], a, t["other"], game.points(a, t["other"]))) for a in MOVES]
        lost, stake = lost + max(could) - got, stake + max(could) - min(could)
    return {
        "regret": max(every) - mean,
        "scaled": (max(every) - mean) / (max(every) + 6) if max(every) != -6 else float("nan"),
        "hindsight": lost / stake if stake else float("nan"),
    }


def reciprocity_by_hand(played: list[dict]) -> dict[str, float]:
    told = {m: [t["own"] == "D" for t in played if t["state"][1] == m] for m in MOVES}
    return {f"after_{m}": sum(v) / len(v) if v else float("nan") for m, v in told.items()}


def compare(first: str, second: str, game: Game, rounds: int = 6, plays: int = 9, seed: int = 5) -> None:
    turns = play.match(play.scripted(first), play.scripted(second), game, rounds, plays, seed)
    played = by_hand(first, second, game, turns, the_draws(first, second, game, rounds, plays, seed))
    expected = pd.DataFrame(played).sort_values(["round", "play"]).reset_index(drop=True)
    got = turns[list(expected)].astype(dict.fromkeys(("state", "own", "other"), str))
    pd.testing.assert_frame_equal(got, expected, check_dtype=False, rtol=0, atol=EXACT)
    for name in ("strategic", "deontological", "utilitarian", "hybrid"):
        assert regret(turns, REWARDS[name], game) == pytest.approx(
            regrets_by_hand(played, name, game), abs=EXACT, nan_ok=True
        )
    assert reciprocity(turns) == pytest.approx(reciprocity_by_hand(played), abs=EXACT, nan_ok=True)


@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("first", NAMES)
def test_scripted_games_equal_games_by_hand(first, second):
    for game in GAMES.values():
        compare(first, second, game)


POINTS = st.tuples(st.integers(-9, 9), st.integers(-9, 9))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cells=st.tuples(POINTS, POINTS, POINTS, POINTS), pair=st.tuples(*[st.sampled_from(NAMES)] * 2))
@example([(0, -6)] * 4, ("tit_for_tat", "tit_for_tat"))
def test_any_payoff_matrix(cells, pair):
    compare(*pair, Game("drawn", "Drawn", dict(zip(STATES, cells, strict=True))), rounds=4, plays=4)


# --- numbers that everybody can check --------------------------------------------------------------------------------


def test_payoffs_of_well_known_pairs():
    always_c, always_d, copycat = (play.scripted(n) for n in ("always_cooperate", "always_defect", "tit_for_tat"))
    for first, second, points in ((always_d, always_c, 4), (always_c, always_d, 0), (always_d, always_d, 1)):
        assert (play.match(first, second)["own_points"] == points).all()
    turns = play.match(always_d, copycat, rounds=3)
    assert turns.loc[turns["round"] > 1, "own_points"].eq(1).all(), "it copies what I did last"


def test_regret_of_the_study_formulas():
    game = get_game("prisoners_dilemma")
    betrayer = play.match(play.scripted("always_defect"), play.scripted("always_cooperate"), rounds=1, plays=400)
    shown = (betrayer["state"].astype(str).str[1] == "C").mean()
    told = regret(betrayer, REWARDS["deontological"], game)
    assert told["regret"] == pytest.approx(3 * shown, abs=EXACT) and told["hindsight"] == 1
    told = regret(betrayer, REWARDS["utilitarian"], game)
    assert told["scaled"] == pytest.approx((6 - 4) / 12, abs=EXACT) and told["hindsight"] == 1
    saint = play.match(play.scripted("always_cooperate"), play.scripted("always_defect"))
    assert regret(saint, REWARDS["deontological"], game)["regret"] == 0
    assert regret(saint, REWARDS["utilitarian"], game)["hindsight"] == 0


@pytest.mark.parametrize(
    "game, best",
    [("prisoners_dilemma", 6), ("stag_hunt", 8), ("chicken", 5), ("bach_stravinsky", 5), ("defective_coordination", 8)],
)
def test_the_largest_sum_of_points_is_the_papers(game, best):
    assert taught("reward_table")(REWARDS["utilitarian"], get_game(game)).max() == best


def test_reciprocity_reads_the_displayed_move():
    turns = play.match(play.scripted("tit_for_tat"), play.scripted("random"), plays=2000)
    assert reciprocity(turns) == {"after_C": 0, "after_D": 1}
    concurrent = reciprocity(turns, displayed=False)
    assert concurrent["after_C"] == pytest.approx(0.5, abs=0.02), "the other's next move tells nothing"


def test_illegal_answers_leave_the_move_and_are_fined():
    mute = play.Player("mute", lambda game: np.zeros((4, 2)))
    turns = play.match(mute, play.scripted("always_defect"), rounds=3, plays=50)
    assert turns["answer"].isna().all() and (turns["own"] == turns["state"].astype(str).str[0]).all()
    told = regret(turns, REWARDS["utilitarian"], get_game("prisoners_dilemma"))
    assert told["scaled"] == 1 and np.isnan(told["hindsight"])
    assert np.isnan(reciprocity(turns)["after_D"])


def test_scripts_are_the_opponents_of_games():
    assert set(play.SCRIPTS) == set(OPPONENTS)
    random = np.random.default_rng(0)
    for name, script in play.SCRIPTS.items():
        for move, chance in script.items():
            share = np.mean([OPPONENTS[name](move, random) == "C" for _ in range(400)])
            assert share == pytest.approx(chance, abs=0.1)
    with pytest.raises(RewiredError, match="nobody.*Known"):
        play.scripted("nobody")


@pytest.mark.parametrize(
    "usual, exchanged, score", [([1, 0, 0.9], [1, 0, 0.9], 1), ([1, 0, 0.9], [0, 1, 0.1], 0), ([1, 1], [0.5, 0.5], 0.5)]
)
def test_move_or_word(usual, exchanged, score):
    assert taught("move_or_word")(np.array(usual), np.array(exchanged)) == pytest.approx(score, abs=EXACT)


def test_a_coin_has_learnt_neither_move_nor_word():
    assert np.isnan(taught("move_or_word")(np.array([0.5]), np.array([0.5])))


# --- tournaments ----------------------------------------------------------------------------------------------------


def test_a_tournament_pairs_everybody_once_and_does_not_depend_on_who_else_plays():
    players = [play.scripted(name) for name in NAMES]
    table = tournament(players, "prisoners_dilemma", 20, 50)
    assert len(table) == len(NAMES) ** 2 and not table.duplicated(["player", "opponent"]).any()
    few = tournament(players[:2], "prisoners_dilemma", 20, 50)
    both = table.merge(few, on=["player", "opponent"], suffixes=("", "_few"))
    assert len(both) == 4 and (both["points"] == both["points_few"]).all()


def test_both_sides_of_an_asymmetric_game():
    game = get_game("bach_stravinsky")
    other = play.other_side(game)
    assert other.payoffs == {"CC": (2, 3), "CD": (0, 0), "DC": (0, 0), "DD": (3, 2)}
    assert play.other_side(get_game("chicken")) is get_game("chicken")
    table = tournament([play.scripted("always_cooperate"), play.scripted("tit_for_tat")], game)
    points = table.set_index(["player", "opponent"])["points"]
    assert points["always_cooperate", "always_cooperate"] == 3
    seen = play.Player("seen", lambda shown: np.array([[1.0, 0.0]] * 4) if shown.name == other.name else None)
    assert play.match(play.scripted("always_cooperate"), seen, game)["other_points"].eq(2).all()


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return models.load_base(profiles.load("pocket", {"model.path": str(tiny.legal_base())}))


def test_questions_cover_what_they_promise():
    asked = []
    for state in STATES:
        for name in ("in_other_words", "with_other_labels", "with_parts_left_out"):
            asked += taught(name)(state)
    levels = pd.DataFrame({"factor": [q.factor for q in asked], "level": [q.level for q in asked]})
    assert dict(levels.groupby("factor")["level"].nunique()) == {"labels": 4, "reduced": 4, "table": 4, "wording": 4}
    usual = {q.prompt.text for q in play.game_questions(("action1", "action2"), [get_game("prisoners_dilemma")])}
    for factor, first in levels.groupby("factor", sort=False)["level"].first().items():
        texts = {q.prompt.text for q in asked if q.factor == factor and q.level == first}
        assert factor == "table" or texts == usual, f"the first level of {factor} is the usual prompt"
    sentences, values = taught("VALUES"), taught("with_values")()
    assert {q.level for q in values} == set(sentences) and len(values) == 3 * 16
    assert all(q.prompt.text.startswith(sentences[q.level]) for q in values)


def test_arrangements_are_balanced():
    factors = np.array([astuple(arrangement) for arrangement in play.ARRANGEMENTS])
    assert (factors.sum(axis=0) == 2).all()
    names, tables = {tuple(row[:2]) for row in factors}, {tuple(row[2:]) for row in factors}
    assert names == tables and len(tables) == 4


def test_reduced_prompts_lose_what_they_say():
    prompt = scenario_set()[2]
    texts = {level: less.text for level, less in taught("reduced")(prompt).items()}
    assert list(texts) == ["all", "no question", "no last round", "answer only"]
    assert texts["all"] == prompt.text and texts["answer only"].startswith("Answer only with")
    assert "Which choice" not in texts["no question"] and "In the last round" in texts["no question"]
    assert "In the last round" not in texts["no last round"] and "| 3,3 |" in texts["no last round"]
    assert all(text.endswith("Your answer:") for text in texts.values())


def test_reading_is_measuring_each_text_once(base, monkeypatch):
    asked = play.game_questions(("action1", "action2"), [get_game("chicken")])
    seen = []
    monkeypatch.setattr(play, "measure", lambda *a, **k: seen.append(len(a[2])) or decisions.measure(*a, **k))
    answers = play.read(*base, [*asked, *asked])
    assert seen == [16] and len(answers) == 4
    measured = decisions.measure(*base, [q.prompt for q in asked])
    expected = np.exp(measured["logp_defect"]).groupby(measured["state"]).mean()
    assert answers.set_index("state")["defects"].to_dict() == pytest.approx(expected.to_dict(), abs=1e-6)
    with pytest.raises(RewiredError, match="never asked about 'stag_hunt'"):
        play.player("tiny", answers).chances(get_game("stag_hunt"))


def generated(model, tokenizer, states: list[str], labels: Labels, random) -> list[str | None]:
    """One generated answer to each displayed state, the arrangement drawn at random."""
    prompts = [
        play.arranged(s, get_game("prisoners_dilemma"), labels)[random.integers(len(play.ARRANGEMENTS))] for s in states
    ]
    rows = [chat(tokenizer, p) for p in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    size = len(decisions.label_ids(tokenizer, labels.cooperate))
    out = model.generate(input_ids=ids, attention_mask=(ids > 0).long(), do_sample=True, top_k=0, max_new_tokens=size)
    return [decisions.read_move(tokenizer.decode(row[length:]), labels) for row in out]


def test_drawn_answers_are_like_generated_ones(base):
    """The same games played live: every answer of every round generated by the model."""
    torch.manual_seed(0)
    labels, random, plays, rounds = Labels(), np.random.default_rng(0), 300, 2
    states = [STATES[i] for i in random.integers(4, size=plays)]
    answers = play.player("tiny", play.read(*base, play.game_questions(labels, [get_game("prisoners_dilemma")])))
    drawn = play.match(answers, play.scripted("tit_for_tat"), rounds=rounds, plays=20_000)
    for t in range(1, rounds + 1):
        now = drawn[drawn["round"] == t]
        expected = now["state"].value_counts(normalize=True)
        seen = pd.Series(states).value_counts(normalize=True).reindex(STATES, fill_value=0)
        assert np.abs(seen - expected).max() < 0.12, "four standard errors of a share of 300"
        said = generated(*base, states, labels, random)
        for move in MOVES:
            share = np.mean([s == move for s in said])
            assert share == pytest.approx((now["answer"] == move).mean(), abs=0.12)
        states = [(move or state[0]) + state[0] for state, move in zip(states, said, strict=True)]


def test_a_new_reward_has_its_regret():
    try:

        @games.reward("care", title="Care")
        def care(turn):
            return min(turn.payoffs)

        turns = play.match(play.scripted("always_defect"), play.scripted("always_cooperate"))
        told = regret(turns, games.get_reward("care"), get_game("prisoners_dilemma"))
        assert told == pytest.approx({"regret": 3, "scaled": 3 / 9, "hindsight": 1}, abs=EXACT)
    finally:
        REWARDS.pop("care")
