"""Attention to named words, hiding them, and edits of single activations."""

import brute
import numpy as np
import pytest
import torch

from rewired.errors import RewiredError
from rewired.prompts import chat
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


@pytest.mark.parametrize("queries", ["decision", "all"])
@pytest.mark.parametrize("layers", [None, [1]])
def test_knockout_hides_the_words(gemma, queries, layers):
    """Against attention weights set to zero and renormalised by hand, in the model's own attention function."""
    model, tokenizer = gemma
    table = attention.knockout(model, tokenizer, brute.PROMPTS[:3], ["other_move"], layers, queries, batch_size=2)
    for prompt, mine in zip(brute.PROMPTS, table.itertuples(), strict=False):
        places = attention.spans(tokenizer, prompt)["other_move"]
        n = brute.row(tokenizer, prompt)[0].shape[1]
        handles = []
        for layer in range(3) if layers is None else layers:

            def hide(_, args, kwargs, n=n, places=places):
                mask = kwargs["attention_mask"].clone()
                for query in range(n) if queries == "all" else [n - 1]:
                    mask[..., query, [p for p in places if p != query]] = torch.finfo(mask.dtype).min
                return args, {**kwargs, "attention_mask": mask}

            attn = model.model.layers[layer].self_attn
            handles.append(attn.register_forward_pre_hook(hide, with_kwargs=True))
        due = brute.delta(model, tokenizer, prompt).item()
        for handle in handles:
            handle.remove()
        assert mine.delta == pytest.approx(due, abs=1e-5) and abs(mine.effect) > 1e-4
        assert mine.delta_before == pytest.approx(brute.delta(model, tokenizer, prompt).item(), abs=1e-5)


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
    with pytest.raises(RewiredError, match="Unknown position 'end'"):
        attention.weights(model, tokenizer, brute.PROMPTS[:1], at="end")
