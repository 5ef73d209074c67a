"""What the prompts say, that they are crossed and distinct, and that spans point at what they name."""

from collections import Counter

import numpy as np
import pytest

from rewired import prompts
from rewired.errors import RewiredError
from rewired.games import STATES, dilemma
from rewired.prompts import (
    SCENARIOS,
    WORDINGS,
    Arrangement,
    Labels,
    build,
    held_out_matrices,
    held_out_set,
    scenario_set,
    study_set,
)


def test_scenario_set_follows_the_rule():
    all_prompts = scenario_set()
    assert len({p.text for p in all_prompts}) == len({p.id for p in all_prompts}) == len(all_prompts) >= 60
    assert min(Counter(p.scenario for p in all_prompts).values()) >= 12
    for scenario in SCENARIOS:
        own = [p for p in all_prompts if p.scenario == scenario]
        assert len({p.wording for p in own}) >= 3 and len({p.matrix for p in own}) >= 3
        assert {p.state for p in own} == {scenario[:2]}
        for factor in ("listing_swapped", "answer_swapped", "rows_swapped", "columns_swapped"):
            assert {getattr(p.arrangement, factor) for p in own} == {True, False}


def test_fifteen_prompts_in_the_studys_form_by_name():
    assert [p.id for p in study_set()] == [f"{s}/v{k}" for s in SCENARIOS for k in range(3)]
    assert {p.matrix for p in study_set()} == {(3, 0, 4, 1)} and {p.wording for p in study_set()} == {"structured"}


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("state", STATES)
def test_spans_point_at_what_they_name(wording, state):
    labels = Labels("plum", "fig")
    p = build(state, dilemma(5, 1, 6, 2), wording, labels, True, Arrangement(True, False, True, False))
    said = {role: p.text[a:b] for role, a, b in p.spans}
    assert said["own_move"] == labels.of(state[0]) and said["other_move"] == labels.of(state[1])
    assert (said["listed_first"] if "listed_first" in said else "fig") == "fig" and said["answer_first"] == "plum"
    assert "6 points and not 5" in said["temptation"]
    if wording == "structured":
        assert (
            said["payoff_CD"] == "1,6"
            and said["payoff_DC"] == "6,1"
            and said["row_1"] == "fig"
            and said["column_1"] == "plum"
        )
    if wording == "prose":
        assert (
            said["payoff_DC"]
            == "If you pick fig and your friend picks plum, you get 6 points and your friend gets 1 points."
        )
    if wording in ("structured", "prose", "named"):
        x, y = dilemma(5, 1, 6, 2).points(*state)
        assert (said["own_points"], said["other_points"]) == (str(x), str(y))


def test_reversing_the_labels_changes_only_the_labels():
    for p, q in zip(scenario_set(), scenario_set(Labels().reversed), strict=True):
        swapped = p.text.replace("action1", "#").replace("action2", "action1").replace("#", "action2")
        assert q.text == swapped and q.id == p.id


def test_held_out_matrices_are_in_no_training_prompt():
    rng = np.random.default_rng(0)
    with pytest.raises(RewiredError, match="held out"):
        prompts.training_prompt("CC", rng, [held_out_matrices()[0]], ["structured"], ("action1", "action2"))
    seen = {
        prompts.training_prompt("CC", rng, [(3, 0, 4, 1), (4, 1, 5, 2)], ["prose"], ("a", "b")).matrix
        for _ in range(40)
    }
    assert seen == {(3, 0, 4, 1), (4, 1, 5, 2)}
    assert {p.matrix for p in held_out_set()} == set(held_out_matrices())
    assert len({p.text for p in held_out_set()}) == len(held_out_set())


@pytest.mark.parametrize("pair", [("a", "a"), ("action1", "action12"), ("", "b")])
def test_labels_that_cannot_be_told_apart_are_refused(pair):
    with pytest.raises(RewiredError, match="told apart"):
        Labels(*pair)


@pytest.mark.parametrize("bad", [{"state": "XX"}, {"state": "CC", "wording": "sonnet"}])
def test_unknown_state_or_wording(bad):
    with pytest.raises(RewiredError, match="Unknown (state|wording).*Known"):
        build(**bad)


def test_the_first_prompts_of_each_scenario():
    few = scenario_set(per_scenario=2)
    assert [p.id for p in few] == [f"{scenario}/v{k}" for scenario in SCENARIOS for k in range(2)]
    assert few == [p for k, p in enumerate(scenario_set()) if k % 12 < 2]
    for wrong in (0, 13):
        with pytest.raises(RewiredError, match=f"per_scenario is {wrong}.*Choose 1 to 12"):
            scenario_set(per_scenario=wrong)


def test_held_out_arrangements_are_balanced():
    """Each factor half and half, and every two crossed, but for answer and columns."""
    swaps = [(a.listing_swapped, a.answer_swapped, a.rows_swapped, a.columns_swapped) for a in arrangements()]
    for i in range(4):
        assert sum(swap[i] for swap in swaps) == 2
        for j in range(i):
            assert len({(swap[i], swap[j]) for swap in swaps}) == (2 if (j, i) == (1, 3) else 4)


def arrangements() -> list[Arrangement]:
    return list({p.arrangement: None for p in held_out_set()})
