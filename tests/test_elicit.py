"""Sampling with keys and values kept, and the comparison of a few words, against the plain forward pass."""

import itertools
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import chisquare
from transformers import Gemma2ForCausalLM

from rewired import elicit
from rewired.decisions import end_of_turn
from rewired.errors import RewiredError
from rewired.prompts import chat, scenario_set

LENGTHS = (40, 71, 40, 90, 66, 12)
QUESTIONS = scenario_set()[: 10 * len(LENGTHS) : 10]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A tiny model with a sliding window shorter than its prompts, and prompts of different lengths."""
    folder = tiny.save(tmp_path_factory.mktemp("elicit"), scale=0.2)
    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
    tokenizer = tiny.tokenizer()
    prompts = [chat(tokenizer, question)[-length:] for question, length in zip(QUESTIONS, LENGTHS, strict=True)]
    assert len(set(map(len, prompts))) > 2 and max(map(len, prompts)) > model.config.sliding_window
    return model, tokenizer, prompts


def by_hand(model, tokenizer, prompt, chance, temperature) -> list[int]:
    """One answer, the whole text run anew for every token."""
    said: list[int] = []
    for number in chance:
        logits = model(torch.tensor([[*prompt, *said]])).logits[0, -1].double()
        below = (logits / temperature).softmax(-1).cumsum(-1).numpy()
        said.append(int((below <= number * below[-1]).sum()))
        if said[-1] in (end_of_turn(tokenizer), tokenizer.eos_token_id):
            break
    return said


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_kept_keys_and_values_change_no_answer(gemma, temperature):
    model, tokenizer, prompts = gemma
    said = elicit.sample(model, tokenizer, prompts, 8, temperature, seed=3, batch_size=4)
    chance = np.random.default_rng(3).random((len(prompts), 8))
    assert said == [by_hand(model, tokenizer, *pair, temperature) for pair in zip(prompts, chance, strict=True)]
    assert said == elicit.sample(model, tokenizer, prompts, 8, temperature, seed=3, batch_size=50)
    assert said != elicit.sample(model, tokenizer, prompts, 8, temperature, seed=4)


def test_chance_can_be_given(gemma):
    """Prompts with the same numbers and the same text say the same."""
    model, tokenizer, prompts = gemma
    chance = np.random.default_rng(3).random((2, 8))[[0, 1, 0]]  # [prompt, step]
    said = elicit.sample(model, tokenizer, [prompts[0]] * 3, 8, seed=chance)
    assert said[0] == said[2] != said[1]
    assert said[:2] == elicit.sample(model, tokenizer, [prompts[0]] * 2, 8, seed=3)


def test_an_answer_ends_with_its_turn(gemma, monkeypatch):
    model, tokenizer, prompts = gemma
    said = elicit.sample(model, tokenizer, prompts, 8, 0.3)
    stop = Counter(token for tokens in said for token in tokens[2:6]).most_common(1)[0][0]
    monkeypatch.setattr(elicit, "end_of_turn", lambda tokenizer: stop)
    cut = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in said]
    assert elicit.sample(model, tokenizer, prompts, 8, 0.3) == cut != said


def test_words_come_as_often_as_they_are_probable(gemma):
    model, tokenizer, prompts = gemma
    logits = model(torch.tensor([prompts[-1]])).logits[0, -1].double()
    expected = (logits / 0.2).softmax(-1).numpy() * 1_000
    drawn = elicit.sample(model, tokenizer, [prompts[-1]] * 1_000, 1, 0.2, batch_size=500)
    seen = np.bincount([tokens[0] for tokens in drawn], minlength=len(expected))
    common = expected > 10
    assert common.sum() > 3
    counts = [np.append(n[common], n[~common].sum()) for n in (seen, expected)]
    assert chisquare(*counts).pvalue > 1e-3


def test_a_temperature_is_above_zero(gemma):
    with pytest.raises(RewiredError, match="temperature is 0"):
        elicit.sample(*gemma, 3, temperature=0)


def test_forced_choice_is_the_softmax_over_the_options(gemma):
    model, tokenizer, prompts = gemma
    options = ("action1", "action2", "cooperate")
    table = elicit.forced(model, tokenizer, prompts, options, batch_size=3)
    assert list(table) == ["p_action1", "p_action2", "p_cooperate", "legal_mass"]
    for prompt, row in zip(prompts, table.to_numpy(), strict=True):
        chances = []
        for option in options:
            said = tokenizer(option, add_special_tokens=False)["input_ids"]
            logp = model(torch.tensor([[*prompt, *said]])).logits[0].double().log_softmax(-1)
            steps = itertools.count(len(prompt) - 1)
            chances.append(np.exp(sum(logp[next(steps), token].item() for token in said)))
        assert row[:3] == pytest.approx(np.array(chances) / sum(chances), rel=1e-4)
        assert row[3] == pytest.approx(sum(chances), rel=1e-4)


def test_options_may_be_tokens_and_may_not_overlap(gemma):
    model, tokenizer, prompts = gemma
    yes = elicit.forced(model, tokenizer, prompts, {"yes": [40], "no": [41]})
    logits = model(torch.tensor([prompts[0]])).logits[0, -1].double()
    assert yes["p_yes"][0] == pytest.approx(torch.sigmoid(logits[40] - logits[41]).item(), rel=1e-4)
    with pytest.raises(RewiredError, match="a, b, c one begins another"):
        elicit.forced(model, tokenizer, prompts, {"a": [7, 8], "b": [9], "c": [7]})
