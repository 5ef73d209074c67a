"""Attention to named words, and knocking it out."""

from itertools import product
from pathlib import Path

import brute
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoTokenizer

from rewired.errors import RewiredError
from rewired.games import STATES
from rewired.prompts import WORDINGS, Arrangement, build, chat
from rewired.tracing import attention


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    model, tokenizer, switch = brute.gemma(tmp_path_factory.mktemp("gemma"))
    return switch("one"), tokenizer


def test_spans_are_the_words_they_name(gemma):
    _, tokenizer = gemma
    for prompt in brute.PROMPTS:
        ids, roles = chat(tokenizer, prompt), attention.spans(tokenizer, prompt)
        assert ids[0] == tokenizer.bos_token_id and roles["start_token"] == [0]
        for role, move in (("own_move", prompt.state[0]), ("other_move", prompt.state[1])):
            assert tokenizer.decode([ids[p] for p in roles[role]]).strip() == prompt.labels.of(move)
        places = [p for found in roles.values() for p in found]
        assert len(places) == len(set(places))


POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
PAIRS = [("action1", "action2"), ("action2", "action1"), ("action4", "action3"), ("red", "green"), ("plum", "fig")]


@pytest.mark.parametrize("words", ["tiny", "pocket"])
@pytest.mark.parametrize("wording", WORDINGS)
def test_the_tokens_of_a_span_are_its_text(wording, words):
    """Every role of every arrangement and label pair, with two tokenizers."""
    tokenizer = tiny.tokenizer() if words == "tiny" else AutoTokenizer.from_pretrained(POCKET)
    for k, (labels, swaps) in enumerate(product(PAIRS, product((False, True), repeat=4))):
        prompt = build(STATES[k % 4], None, wording, labels, bool(k % 3), Arrangement(*swaps))
        ids, roles = chat(tokenizer, prompt), attention.spans(tokenizer, prompt)
        due = {role: prompt.text[a:b].strip() for role, a, b in prompt.spans}
        found = {role: tokenizer.decode([ids[p] for p in places]).strip() for role, places in roles.items()}
        assert found == {**due, "start_token": tokenizer.bos_token}
        assert due["question"].endswith("?") and due["answer_first"] in labels


@pytest.mark.parametrize("at", ["decision", "prompt_end"])
def test_a_pattern_is_sums_of_the_models_own(gemma, at, monkeypatch):
    model, tokenizer = gemma
    monkeypatch.setattr(attention, "BATCH_SIZE", 3)
    table = attention.pattern(model, tokenizer, brute.PROMPTS, at=[at], layers=[2, 1]).to_frame()
    assert np.allclose(table.groupby(["prompt_id", "layer", "head"])["weight"].sum(), 1, atol=1e-5)
    by_name = table.set_index(["prompt_id", "role", "layer", "head"])["weight"].sort_index()
    for prompt in brute.PROMPTS[:3]:
        ids, step = brute.row(tokenizer, prompt)
        query = -1 if at == "decision" else -1 - len(step.prefix_ids)
        with torch.no_grad():
            seen = model(ids, output_attentions=True).attentions
        for role, places in attention.spans(tokenizer, prompt).items():
            mine = by_name.loc[prompt.id, role]
            for layer, head in ((1, 0), (2, 7)):
                due = seen[layer][0, head, query, places].sum().item()
                assert mine[layer, head] == pytest.approx(due, abs=1e-6)


def test_the_axes_of_a_pattern(gemma):
    """values[prompt, position, role, layer, head] is the frame's cell of these names; NaN where there are no words."""
    model, tokenizer = gemma
    pattern = attention.pattern(model, tokenizer, brute.PROMPTS[:4], at=("prompt_end", "decision"), layers=[2, 0])
    shape = (4, 2, len(pattern.roles), 2, 8)
    assert tuple(pattern.values.shape) == shape and pattern.layers == (2, 0) and pattern.roles[-1] == "rest"
    weights = pattern.to_frame().set_index(["prompt_id", "position", "role", "layer", "head"])["weight"]
    names = (pattern.prompts, pattern.positions, pattern.roles, pattern.layers, range(8))
    count = 0
    spans = [attention.spans(tokenizer, prompt) for prompt in brute.PROMPTS[:4]]
    for place in product(*map(range, shape)):
        name = tuple(level[k] for level, k in zip(names, place, strict=True))
        has_words = name[2] in spans[place[0]] or name[2] == "rest"
        assert (name in weights.index) == has_words == bool(pattern.values[place].isfinite())
        if has_words:
            count += 1
            assert weights[name] == pattern.values[place].item()
    assert count == len(weights)


def test_both_positions_at_once_are_each_alone(gemma, monkeypatch):
    model, tokenizer = gemma
    monkeypatch.setattr(attention, "BATCH_SIZE", 2)
    both = attention.pattern(model, tokenizer, brute.PROMPTS[:3], at=("prompt_end", "decision")).to_frame()
    monkeypatch.undo()
    keys = ["prompt_id", "position", "role", "layer", "head"]
    for position, part in both.groupby("position"):
        alone = attention.pattern(model, tokenizer, brute.PROMPTS[:3], at=[position]).to_frame()
        joined = part.merge(alone, on=keys, validate="one_to_one")
        assert len(joined) == len(part) == len(alone)
        assert np.allclose(joined["weight_x"], joined["weight_y"], atol=1e-6)


def masked_delta(model, tokenizer, prompt, places, layers, queries) -> float:
    """delta of one prompt, the whole model run with hooks that add -inf to its attention scores."""
    n = brute.row(tokenizer, prompt)[0].shape[1]

    def hide(_, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        for query in range(n) if queries == "all" else [n - 1]:
            mask[..., query, [p for p in places if p != query]] = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask}

    attentions = [model.model.layers[layer].self_attn for layer in (range(3) if layers is None else layers)]
    handles = [attn.register_forward_pre_hook(hide, with_kwargs=True) for attn in attentions]
    due = brute.delta(model, tokenizer, prompt).item()
    for handle in handles:
        handle.remove()
    return due


GROUPS = {
    "moves": ["own_move", "other_move"],
    "other": ["other_move"],
    "question": ["question"],
    "points": ["payoff_CC", "payoff_DD"],
}


@pytest.mark.parametrize("queries", attention.QUERIES)
@pytest.mark.parametrize("layers", [None, [1]])
def test_knockout_blocks_the_words(gemma, queries, layers, monkeypatch):
    """Against the model's own attention function under another mask, one whole pass a prompt and group."""
    model, tokenizer = gemma
    monkeypatch.setattr(attention, "BATCH_SIZE", 2)
    plan = attention.blocks(tokenizer, brute.PROMPTS, GROUPS)
    table = attention.knockout(model, tokenizer, brute.PROMPTS, plan, queries, layers)
    assert table["effect"].abs().max() > 1e-3 and (table["draw"] == 0).all()
    rows = table.set_index(["prompt_id", "group"])
    for prompt in brute.PROMPTS:
        spans = attention.spans(tokenizer, prompt)
        before = brute.delta(model, tokenizer, prompt).item()
        for group, roles in GROUPS.items():
            places = sorted(p for role in roles for p in spans.get(role, []))
            assert ((prompt.id, group) in rows.index) == bool(places), "no words, no row"
            if places:
                mine = rows.loc[prompt.id, group]
                due = masked_delta(model, tokenizer, prompt, places, layers, queries)
                assert mine["delta"] == pytest.approx(due, abs=1e-5) and mine["tokens"] == len(places)
                assert mine["delta_before"] == pytest.approx(before, abs=1e-5)
                assert mine["effect"] == pytest.approx(mine["delta"] - mine["delta_before"], abs=1e-9)
                assert mine["flip"] == ((mine["delta"] > 0) != (mine["delta_before"] > 0))


def test_the_control_blocks_as_many_other_words(gemma):
    model, tokenizer = gemma
    plan = attention.blocks(tokenizer, brute.PROMPTS, GROUPS, draws=2, seed=4)
    assert [(block.group, block.draw) for block in plan] == [(g, d) for g in GROUPS for d in range(3)]
    own = {block.group: block.positions for block in plan if block.draw == 0}
    for block in plan:
        for prompt, positions, words in zip(brute.PROMPTS, block.positions, own[block.group], strict=True):
            covered = {p for places in attention.spans(tokenizer, prompt).values() for p in places}
            free = set(range(min(covered - {0}), max(covered))) - covered  # between the prompt's first and last role
            if block.draw:
                assert positions <= free and len(positions) == min(len(words), len(free))
            else:
                assert positions == words
    table = attention.knockout(model, tokenizer, brute.PROMPTS, plan)
    counts = table.groupby(["group", "draw"]).size().unstack("draw")
    assert (counts[0] == counts[1]).all() and (counts[1] == counts[2]).all()
    moves = table[table["group"] == "moves"].pivot_table(index="prompt_id", columns="draw", values=["tokens", "effect"])
    assert (moves["tokens"].nunique(axis=1) == 1).all() and (moves["effect"].nunique(axis=1) == 3).all()
    assert attention.blocks(tokenizer, brute.PROMPTS, GROUPS, draws=2, seed=4) == plan
    assert attention.blocks(tokenizer, brute.PROMPTS, GROUPS, draws=2, seed=5) != plan


def test_a_fast_loop_that_is_not_the_model_is_noticed(gemma, monkeypatch):
    model, tokenizer = gemma
    wrong = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *given, **named: wrong(*given, **named) * 1.5 + 0.1)
    plan = attention.blocks(tokenizer, brute.PROMPTS[:2], GROUPS)
    with pytest.raises(RewiredError, match="with nothing blocked, delta is off.*queries='all'"):
        attention.knockout(model, tokenizer, brute.PROMPTS[:2], plan)
    assert len(attention.knockout(model, tokenizer, brute.PROMPTS[:2], plan, "all"))


def test_bad_requests_are_refused(gemma, monkeypatch):
    model, tokenizer = gemma
    prompts = brute.PROMPTS[:1]
    with pytest.raises(RewiredError, match="Unknown role 'their_move'.*other_move"):
        attention.blocks(tokenizer, prompts, {"moves": ["own_move", "their_move"]})
    plan = attention.blocks(tokenizer, prompts, {"moves": ["own_move"]})
    with pytest.raises(RewiredError, match="Unknown kind of queries 'last'.*decision"):
        attention.knockout(model, tokenizer, prompts, plan, "last")
    with pytest.raises(RewiredError, match="no layer 9"):
        attention.knockout(model, tokenizer, prompts, plan, layers=[9])
    with pytest.raises(RewiredError, match="Unknown position 'end'"):
        attention.pattern(model, tokenizer, prompts, at=["end"])
    monkeypatch.setattr(model.config, "_attn_implementation", "sdpa")
    with pytest.raises(RewiredError, match="eager.*'sdpa'"):
        attention.pattern(model, tokenizer, prompts)
    with pytest.raises(RewiredError, match="eager.*'sdpa'"):
        attention.knockout(model, tokenizer, prompts, plan, "all")
