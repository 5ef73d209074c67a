"""Attention to named words, hiding them, and edits of single activations."""

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
from rewired.prompts import WORDINGS, build, chat
from rewired.tracing import attention, intervention
from rewired.tracing.intervention import Edit


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
        prompt = build(STATES[k % 4], None, wording, labels, bool(k % 3), *swaps)
        ids, roles = chat(tokenizer, prompt), attention.spans(tokenizer, prompt)
        due = {role: prompt.text[a:b].strip() for role, a, b in prompt.spans}
        found = {role: tokenizer.decode([ids[p] for p in places]).strip() for role, places in roles.items()}
        assert found == {**due, "start_token": tokenizer.bos_token}
        assert due["question"].endswith("?") and due["answer_first"] in labels


@pytest.mark.parametrize("at", ["decision", "prompt_end"])
def test_weights_are_sums_of_the_models_own(gemma, at):
    model, tokenizer = gemma
    table = attention.weights(model, tokenizer, brute.PROMPTS, at=at, layers=[2, 1], batch_size=3)
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


def test_both_positions_at_once_are_each_alone(gemma):
    model, tokenizer = gemma
    both = attention.weights(model, tokenizer, brute.PROMPTS[:3], at=("prompt_end", "decision"), batch_size=2)
    keys = ["prompt_id", "position", "role", "layer", "head"]
    for position, part in both.groupby("position"):
        alone = attention.weights(model, tokenizer, brute.PROMPTS[:3], at=position)
        joined = part.merge(alone, on=[*keys, "scenario", "tokens"], validate="one_to_one")
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


@pytest.mark.parametrize("queries", ["decision", "all"])
@pytest.mark.parametrize("layers", [None, [1]])
def test_knockout_hides_the_words(gemma, queries, layers):
    """Against the model's own attention function under another mask."""
    model, tokenizer = gemma
    table = attention.knockout(model, tokenizer, brute.PROMPTS[:3], ["other_move"], layers, queries, batch_size=2)
    for prompt, mine in zip(brute.PROMPTS, table.itertuples(), strict=False):
        places = attention.spans(tokenizer, prompt)["other_move"]
        due = masked_delta(model, tokenizer, prompt, places, layers, queries)
        assert mine.delta == pytest.approx(due, abs=1e-5) and abs(mine.effect) > 1e-4
        assert mine.delta_before == pytest.approx(brute.delta(model, tokenizer, prompt).item(), abs=1e-5)


GROUPS = {"moves": ["own_move", "other_move"], "question": ["question"], "points": ["payoff_CC", "payoff_DD"]}


@pytest.mark.parametrize("layers", [None, [1]])
def test_many_knockouts_at_once_are_each_alone(gemma, layers):
    """The fast way, prompts sharing beginnings, against one whole masked run a prompt and group."""
    model, tokenizer = gemma
    table = attention.knockouts(model, tokenizer, brute.PROMPTS, GROUPS, draws=0, layers=layers)
    assert table["effect"].abs().max() > 1e-3
    rows = table.set_index(["prompt_id", "group"])
    for prompt in brute.PROMPTS:
        places = attention.spans(tokenizer, prompt)
        for group, roles in GROUPS.items():
            hidden = sorted(p for role in roles for p in places.get(role, []))
            assert ((prompt.id, group) in rows.index) == bool(hidden), "no words, no row"
            if hidden:
                mine = rows.loc[prompt.id, group]
                due = masked_delta(model, tokenizer, prompt, hidden, layers, "decision")
                assert mine["delta"] == pytest.approx(due, abs=1e-5) and mine["tokens"] == len(hidden)
                assert mine["effect"] == pytest.approx(mine["delta"] - mine["delta_before"], abs=1e-9)


def test_the_control_hides_as_many_other_words(gemma, monkeypatch):
    model, tokenizer = gemma
    drawn, others = [], attention._others

    def seen(random, places, count):
        drawn.append((places, others(random, places, count)))
        return drawn[-1][1]

    monkeypatch.setattr(attention, "_others", seen)
    table = attention.knockouts(model, tokenizer, brute.PROMPTS, GROUPS, draws=2, seed=4)
    counts = table[table["draw"] > 0].groupby(["group", "draw"]).size().unstack("draw")
    assert (counts[1] == counts[2]).all() and len(drawn) == 2 * len(GROUPS) * len(brute.PROMPTS)
    for places, found in drawn:
        assert not found & {p for covered in places.values() for p in covered}
    moves = table[table["group"] == "moves"].pivot_table(index="prompt_id", columns="draw", values=["tokens", "effect"])
    assert (moves["tokens"].nunique(axis=1) == 1).all() and (moves["effect"].nunique(axis=1) == 3).all()
    same = attention.knockouts(model, tokenizer, brute.PROMPTS, GROUPS, draws=2, seed=4)
    assert same.equals(table)


def test_a_fast_loop_that_is_not_the_model_is_noticed(gemma, monkeypatch):
    model, tokenizer = gemma
    wrong = attention.run
    monkeypatch.setattr(attention, "run", lambda *given, **named: wrong(*given, **named) * 1.5 + 0.1)
    with pytest.raises(RewiredError, match="with nothing hidden, delta is off"):
        attention.knockouts(model, tokenizer, brute.PROMPTS[:2], GROUPS)


CASES = {
    "zero ablation of a head": (Edit("z", 1, 0.0, head=2), "z", slice(16, 24), lambda t, v: 0 * t),
    "steering": (Edit("resid_pre", 2, torch.arange(32) / 8, "add"), "resid_pre", slice(None), lambda t, v: t + v),
    "half an MLP": (Edit("mlp_add", 1, 0.5, "scale"), "mlp_add", slice(None), lambda t, v: t / 2),
    "at the decision": (Edit("attn_out", 1, 2.0, "set", positions="decision"), "attn_out", slice(None), None),
    "the last stream": (Edit("resid_final", 0, torch.arange(32) / 9, "add"), "resid_final", slice(None), None),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_edits_against_hooks(gemma, case):
    model, tokenizer = gemma
    edit, site, columns, change = case
    table = intervention.intervene(model, tokenizer, brute.PROMPTS[:4], [edit], batch_size=3)
    rows = slice(-1, None) if edit.positions == "decision" else slice(None)
    change = change or ((lambda t, v: t + v) if edit.how == "add" else (lambda t, v: 0 * t + v))
    for prompt, mine in zip(brute.PROMPTS, table.itertuples(), strict=False):

        def write(tensor):
            tensor = tensor.clone()
            tensor[0, rows, columns] = change(tensor[0, rows, columns], edit.value)
            return tensor

        with torch.no_grad(), brute.editing((*brute.place(model, site, edit.layer), write)):
            due = brute.delta(model, tokenizer, prompt).item()
        before = brute.delta(model, tokenizer, prompt).item()
        assert mine.delta == pytest.approx(due, abs=1e-5) and abs(due - before) > 1e-4
        assert mine.effect == pytest.approx(due - before, abs=1e-5) and mine.flip == ((due > 0) != (before > 0))


def test_bad_edits_and_roles_are_refused(gemma):
    model, tokenizer = gemma
    for edit, why in (
        (Edit("zz", 0, 0.0), "Unknown site 'zz'"),
        (Edit("z", 9, 0.0), "no layer 9"),
        (Edit("z", 0, 0.0, head=8), "heads are 0 to 7"),
        (Edit("mlp_out", 0, 0.0, head=1), "heads are 0 to 7 of site 'z'"),
        (Edit("z", 0, 0.0, "put"), "Unknown kind of edit 'put'"),
        (Edit("z", 0, 0.0, positions="last"), "positions of an edit"),
    ):
        with pytest.raises(RewiredError, match=why):
            intervention.intervene(model, tokenizer, brute.PROMPTS[:1], [edit])
    with pytest.raises(RewiredError, match="Unknown role 'their_move'.*other_move"):
        attention.knockout(model, tokenizer, brute.PROMPTS[:1], ["their_move"])
    with pytest.raises(RewiredError, match="Unknown role 'their_move'.*other_move"):
        attention.knockouts(model, tokenizer, brute.PROMPTS[:1], {"moves": ["own_move", "their_move"]})
    with pytest.raises(RewiredError, match="Unknown position 'end'"):
        attention.weights(model, tokenizer, brute.PROMPTS[:1], at="end")
