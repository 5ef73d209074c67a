"""Supervised fine-tuning teaches a tiny model an answer, and only answers count."""

import numpy as np
import pytest
import tiny
import torch

from rewired import models, profiles
from rewired.decisions import measure
from rewired.errors import RewiredError
from rewired.prompts import held_out_set, scenario_set
from rewired.train import sft


def profile(overrides=None):
    quick = {"training.batch_size": 8, "training.learning_rate": 1e-2, "training.bf16": False}
    return profiles.load("pocket", {"model.path": str(tiny.legal_base()), **quick, **(overrides or {})})


def chat(*turns: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)]


def test_the_answers_and_their_ends_are_marked():
    _, tokenizer = models.load_base(profile())
    ids, answer = sft.encode(tokenizer, chat("which one?", "action1", " and now? ", " action2 "))
    assert ids == tokenizer.apply_chat_template(chat("which one?", "action1", "and now?", "action2"))["input_ids"]
    marked = [token for token, counts in zip(ids, answer, strict=True) if counts]
    assert tokenizer.decode(marked) == "action1<end_of_turn>action2<end_of_turn>"
    assert len(answer) == len(ids) and not answer[-1]  # the line break after the last turn


def test_the_loss_is_the_mean_over_answer_tokens():
    """Against the model's full logits, one token at a time."""
    model, tokenizer = models.load_base(profile())
    chats = chat("one", "action1"), chat("a longer one", "action2", "x", "y")
    rows = [sft.encode(tokenizer, messages) for messages in chats]
    ids, answer = sft.pad(rows, model.device)
    logp = model(input_ids=ids).logits.double().log_softmax(-1)
    each = [-logp[r, t - 1, ids[r, t]].item() for r, t in answer.nonzero().tolist()]
    assert len(each) == sum(sum(marks) for _, marks in rows)
    assert sft.answer_loss(model, ids, answer).item() == pytest.approx(np.mean(each), rel=1e-5)


def test_only_answer_tokens_count():
    """What the user says is no target: with another last question the loss of the answers is the same."""
    model, tokenizer = models.load_base(profile())
    losses = []
    for last in ("which?", "what?"):
        ids, answer = sft.pad([sft.encode(tokenizer, chat("hello", "action1", last))], model.device)
        losses.append(sft.answer_loss(model, ids, answer).item())
    assert losses[0] == losses[1]
    ids, answer = sft.pad([sft.encode(tokenizer, chat("hello", "action1"))], model.device)
    turned = answer.clone()
    turned[0, :4] = True
    assert sft.answer_loss(model, ids, turned).item() != losses[0]


def test_padding_changes_nothing():
    model, tokenizer = models.load_base(profile())
    short = sft.encode(tokenizer, chat("one", "action1"))
    long = sft.encode(tokenizer, chat("a much longer question than that", "action2"))
    alone = [sft.answer_loss(model, *sft.pad([row], model.device)).item() for row in (short, long)]
    weights = [sum(marks) for _, marks in (short, long)]
    together = sft.answer_loss(model, *sft.pad([short, long], model.device)).item()
    assert together == pytest.approx(np.average(alone, weights=weights), rel=1e-5)


@pytest.mark.parametrize(("answer", "ends"), [("action1", (0.0, 0.2)), ("action2", (0.8, 1.0))])
def test_it_teaches_a_tiny_model_an_answer(answer, ends):
    """Trained on one label after scenario prompts, it gives that label on prompts with other payoffs."""
    p = profile()
    model, tokenizer = models.load_base(p)
    chats = [chat(prompt.text, answer) for prompt in scenario_set()[::2]]
    policy, losses = sft.train(model, tokenizer, chats, p.training, seed=3, epochs=3)
    p_defect = measure(policy, tokenizer, held_out_set()[::3])["p_defect"]
    assert ends[0] <= p_defect.mean() <= ends[1]
    assert len(losses) == 3 * -(-len(chats) // 8)
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])


def test_the_same_seed_gives_the_same_adapter():
    chats = [chat(prompt.text, "action1") for prompt in scenario_set()[:12]]
    made = []
    for seed in (1, 1, 2):
        p = profile({"training.layers": [0]})
        model, tokenizer = models.load_base(p)
        policy, _ = sft.train(model, tokenizer, chats, p.training, seed)
        made.append({name: value.detach() for name, value in policy.named_parameters() if "lora_" in name})
    one, two, other = made
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_chat_without_an_answer_is_refused():
    _, tokenizer = models.load_base(profile())
    with pytest.raises(RewiredError, match="no message of the role 'assistant'"):
        sft.encode(tokenizer, chat("hello?"))


def test_a_template_that_rewrites_earlier_turns_is_refused():
    _, tokenizer = models.load_base(profile())
    tokenizer.chat_template = (
        "{{ messages | length }} turns: {% for m in messages %}<start_of_turn>{{ m.content }}<end_of_turn>{% endfor %}"
    )
    with pytest.raises(RewiredError, match="rewrites earlier turns"):
        sft.encode(tokenizer, chat("one", "action1", "two", "action2"))


def test_a_loss_that_is_no_number_stops_the_training():
    p = profile({"training.learning_rate": 1e30})
    model, tokenizer = models.load_base(p)
    chats = [chat(prompt.text, "action1") for prompt in scenario_set()[:40]]
    with pytest.raises(RewiredError, match="Training diverged.*learning_rate"):
        sft.train(model, tokenizer, chats, p.training, seed=1)
