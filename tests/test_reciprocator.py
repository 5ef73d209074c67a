"""The functions of the chapter on the reciprocator: on prompts, on planted sets, on a model with a planted circuit."""

from dataclasses import replace
from types import SimpleNamespace

import claim_cells
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewired import prompts
from rewired.tracing import attention, patching

CHAPTER = "reciprocator"
ASKED = [p for p in prompts.scenario_set(per_scenario=2) if p.scenario != "CC_temptation"]
partners = claim_cells.defined(CHAPTER, "partners")
PARTNER = partners(ASKED)


def taught(name: str):
    return claim_cells.defined(CHAPTER, name, torch=torch, replace=replace)


def test_partners_differ_in_what_the_other_did():
    for i, j in enumerate(PARTNER):
        here, there = ASKED[i], ASKED[j]
        assert PARTNER[j] == i and here.state[0] == there.state[0] and here.state[1] != there.state[1]
        changed = {role for (role, *_), a, b in zip(here.spans, words(here), words(there), strict=True) if a != b}
        assert "other_move" in changed and changed <= {"other_move", "own_points", "other_points"}


def words(prompt) -> list[str]:
    """The words of each field of a prompt."""
    return [prompt.text[start:end] for _, start, end in prompt.spans]


class Planted:
    """A sweep whose components move delta by known amounts; those of one team do the same thing twice."""

    worth = {"a": 5.0, "b": 4.9, "c": 3.0, "d": 0.5}
    team = {"a": 1, "b": 1, "c": 2, "d": 3}
    source = SimpleNamespace(delta=np.array([6.0, -6.0]))
    target = SimpleNamespace(delta=np.array([-4.0, 4.0]))

    def together(self, sets):
        gained = []
        for members in sets:
            best = {}
            for name in members:
                best[self.team[name]] = max(best.get(self.team[name], 0), self.worth[name])
            gained.append(sum(best.values()))
        return self.target.delta + np.outer(gained, [1, -1])


def test_shares_are_parts_of_the_gap():
    shares = taught("moved")(Planted(), [[], ["a"], ["a", "c", "d"]])
    assert shares == pytest.approx(np.array([[0, 0], [0.5, 0.5], [0.85, 0.85]]))


def test_the_search_passes_over_what_does_the_same_thing_twice():
    assert taught("greedily")(Planted(), list("abcd"), 3) == ["a", "c", "d"]


def test_random_sets_share_no_member():
    sets = taught("drawn")(np.random.default_rng(0), list(range(9)), [2, 5, 7], 20)
    assert len(sets) == 20 and len({tuple(members) for members in sets}) > 10
    assert all(len(set(members)) == 3 and not {2, 5, 7} & set(members) for members in sets)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model of two layers in which one head alone moves anything from one position to another, and its recording."""
    folder = tiny.save(tmp_path_factory.mktemp("planted"))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").requires_grad_(False)
    width = model.config.head_dim
    for layer, block in enumerate(model.model.layers):
        weight = block.self_attn.o_proj.weight.data  # [d_model, heads x head_dim]
        kept = weight[:, 2 * width : 3 * width].clone()
        weight.zero_()
        if layer == 1:
            weight[:, 2 * width : 3 * width] = kept
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, tokenizer, patching.record(model, tokenizer, ASKED)


def shares(planted, names, positions=None) -> list[float]:
    model, _, recorded = planted
    sweep = patching.Sweep(model, taught("exchanged")(recorded, PARTNER, positions), recorded)
    return taught("moved")(sweep, [patching.named(model, [name]) for name in names]).mean(axis=1).tolist()


def test_the_planted_head_carries_everything_and_no_other_head_anything(planted):
    model, _, recorded = planted
    assert np.abs(recorded.delta[PARTNER] - recorded.delta).min() > 1e-3, "the planted model answers the move"
    heads = [c.name for c in patching.components(model, ("head",))]
    found = dict(zip(heads, shares(planted, heads), strict=True))
    assert found.pop("L1H2") == pytest.approx(1, abs=1e-3)
    assert np.abs(list(found.values())).max() < 1e-4


def test_the_move_is_where_it_was_planted(planted):
    _, tokenizer, recorded = planted
    spans = [attention.spans(tokenizer, prompt) for prompt in ASKED]
    changed = [[*s["other_move"], *s.get("own_points", []), *s.get("other_points", [])] for s in spans]
    last = [[len(row) - 1] for row in recorded.encoded.rows]
    streams = ["L0_RESID", "L1_RESID"]
    assert shares(planted, streams, changed) == pytest.approx([1, 0], abs=1e-3)
    assert shares(planted, streams, last) == pytest.approx([0, 1], abs=1e-3)
    assert shares(planted, streams, [[] for _ in ASKED]) == pytest.approx([0, 0], abs=1e-5)
