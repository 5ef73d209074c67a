"""Edits of single activations, against hooks."""

import brute
import pytest
import torch

from rewired.errors import RewiredError
from rewired.tracing import edit
from rewired.tracing.edit import Edit, intervene


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    model, tokenizer, switch = brute.gemma(tmp_path_factory.mktemp("gemma"))
    return switch("one"), tokenizer


EVERY = slice(None)
CASES = {
    "zero ablation of a head": (Edit("z", 1, 0.0, head=2), slice(16, 24), lambda t, v: 0 * t),
    "steering": (Edit("resid_pre", 2, torch.arange(32) / 8, "add"), EVERY, lambda t, v: t + v),
    "half an MLP": (Edit("mlp_add", 1, 0.5, "scale"), EVERY, lambda t, v: t / 2),
    "at the decision": (Edit("attn_out", 1, 2.0, positions="decision"), EVERY, lambda t, v: 0 * t + v),
    "the last stream": (Edit("resid_final", 0, torch.arange(32) / 9, "add"), EVERY, lambda t, v: t + v),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_edits_against_hooks(gemma, case, monkeypatch):
    monkeypatch.setattr(edit, "BATCH_SIZE", 3)
    model, tokenizer = gemma
    change_of, columns, change = case
    table = intervene(model, tokenizer, brute.PROMPTS[:4], [change_of])
    rows = slice(-1, None) if change_of.positions == "decision" else slice(None)
    for prompt, mine in zip(brute.PROMPTS, table.itertuples(), strict=False):

        def write(tensor):
            tensor = tensor.clone()
            tensor[0, rows, columns] = change(tensor[0, rows, columns], change_of.value)
            return tensor

        with torch.no_grad(), brute.editing((*brute.place(model, change_of.site, change_of.layer), write)):
            due = brute.delta(model, tokenizer, prompt).item()
        before = brute.delta(model, tokenizer, prompt).item()
        assert mine.delta == pytest.approx(due, abs=1e-5) and abs(due - before) > 1e-4
        assert mine.effect == pytest.approx(due - before, abs=1e-5) and mine.flip == ((due > 0) != (before > 0))


def test_edits_are_made_in_the_order_of_the_model(gemma):
    """However they are listed: the later edit of the same stream sees the earlier one."""
    model, tokenizer = gemma
    steer, halve = Edit("resid_pre", 1, torch.ones(32), "add"), Edit("mlp_out", 1, 0.5, "scale")
    last = Edit("resid_final", 0, torch.ones(32), "add")
    one = intervene(model, tokenizer, brute.PROMPTS[:2], [last, halve, steer])
    assert one.equals(intervene(model, tokenizer, brute.PROMPTS[:2], [steer, halve, last]))


def test_bad_edits_are_refused(gemma):
    model, tokenizer = gemma
    for change, why in (
        (Edit("zz", 0, 0.0), "Unknown site 'zz'"),
        (Edit("z", 9, 0.0), "no layer 9"),
        (Edit("z", 0, 0.0, head=8), "heads are 0 to 7"),
        (Edit("mlp_out", 0, 0.0, head=1), "heads are 0 to 7 of site 'z'"),
        (Edit("z", 0, 0.0, "put"), "Unknown kind of edit 'put'"),
        (Edit("z", 0, 0.0, positions="last"), "Unknown positions 'last'"),
    ):
        with pytest.raises(RewiredError, match=why):
            intervene(model, tokenizer, brute.PROMPTS[:1], [change])
