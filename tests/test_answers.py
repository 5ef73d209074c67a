"""Log-probabilities and samples of any token lists against full forward passes, one text at a time."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewired import answers, models, profiles
from rewired.errors import RewiredError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny.save(tmp_path_factory.mktemp("tiny"))
    return models.load_base(profiles.load("pocket", {"model.path": str(folder)}))[0]


def all_logits(model, text: list[int]) -> torch.Tensor:
    """[position, vocabulary], double precision: one text, no cache, no padding, nothing shared."""
    with torch.no_grad():
        return model(torch.tensor([text])).logits[0].double()


def brute_force(model, context: list[int], answer: list[int]) -> float:
    """The product of the answer's token probabilities, each from a forward pass of its own."""
    product = 1.0
    for k, token in enumerate(answer):
        before = [*context, *answer[:k]]
        product *= torch.softmax(all_logits(model, before)[-1], dim=-1)[token].item()
    return np.log(product)


CONTEXTS = [[2, 7, 8, 9, 10, 11], [2, 7, 8, 9, 10, 12], [2, 7, 8, 9], [2, 30], [2, 7, 8, 9, 10, 11]]
ANSWERS = [[5], [5, 6, 7], [10, 11, 5], [40, 41], [5, 6]]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_logprobs_are_sums_over_the_answers_tokens(model, batch_size):
    """Answers of one to three tokens; contexts that begin alike, that contain each other, and that stand twice."""
    measured = answers.logprobs(model, CONTEXTS, ANSWERS, batch_size)
    due = [brute_force(model, context, answer) for context, answer in zip(CONTEXTS, ANSWERS, strict=True)]
    assert measured == pytest.approx(due, abs=1e-5)


def test_the_probabilities_of_all_next_tokens_sum_to_one(model):
    context = CONTEXTS[0]
    words = model.config.vocab_size
    measured = answers.logprobs(model, [context] * words, [[token] for token in range(words)])
    assert np.exp(measured).sum() == pytest.approx(1, abs=1e-6)


def test_logits_are_read_before_each_token(model):
    for pair, raw, capped in answers.answer_logits(model, CONTEXTS, ANSWERS):
        context, answer = CONTEXTS[pair], ANSWERS[pair]
        whole = all_logits(model, context + answer)[len(context) - 1 : -1]
        assert capped.double().numpy() == pytest.approx(whole.numpy(), abs=1e-4)
        cap = model.config.final_logit_softcapping
        assert (cap * torch.tanh(raw / cap)).numpy() == pytest.approx(capped.numpy(), abs=1e-6)


# --- what texts begin with -------------------------------------------------------------------------------------------

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_shared_beginnings_of_sorted_rows(rows):
    order, shared = answers.shared_beginnings(rows)
    assert sorted(order) == list(range(len(rows))) and shared[0] == 0
    for k in range(1, len(order)):
        before, row = rows[order[k - 1]], rows[order[k]]
        assert before <= row
        common = shared[k]
        assert before[:common] == row[:common]
        assert before[: common + 1] != row[: common + 1] or common == min(len(before), len(row))


def forward_shapes(model, rows, reads, batch_size) -> list[tuple[int, int]]:
    """[row, position] of every forward pass of the decoder."""
    shapes = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        list(answers.hidden_states(model, rows, reads, batch_size))
    finally:
        hook.remove()
    return shapes


def test_a_beginning_is_run_once_and_nothing_that_is_read():
    folder = tiny.legal_base()
    model, _ = models.load_base(profiles.load("pocket", {"model.path": str(folder)}))
    rows = [[1] * 20 + [k, 5, 6] for k in (2, 3, 4)] + [[9] * 8, [1] * 4 + [7] * 10]
    reads = [[21, 22], [21, 22], [18, 22], [7], [13]]
    shapes = forward_shapes(model, rows, reads, batch_size=64)
    assert shapes == [(1, 18), (3, 16), (2, 16)], "position 18 is read, so only 18 tokens are shared"
    assert max(count for count, _ in forward_shapes(model, rows, reads, batch_size=2)) == 2


def test_hidden_states_come_back_at_the_positions_asked_for(model):
    rows = [[2, *range(10, 40)], [2, *range(10, 38), 50], [2, 90, 91], [2, *range(10, 40)]]
    reads = [[29, 30], [29], [0, 1, 2], [30]]
    for batch, hidden in answers.hidden_states(model, rows, reads, batch_size=3):
        due = []
        for i in batch:
            with torch.no_grad():
                due.append(model.get_decoder()(torch.tensor([rows[i]]))[0][0, reads[i]])
        assert hidden.numpy() == pytest.approx(torch.cat(due).numpy(), abs=1e-5)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_samples_follow_the_models_distribution(model):
    """Whole answers of up to three tokens, ended by a stop token, against the product of the model's probabilities."""
    n, stops = 20_000, frozenset(range(0, model.config.vocab_size, 3))
    how = answers.Sampling(n, stops, temperature=0.8, max_new_tokens=3)
    contexts = CONTEXTS[:2]
    drawn = answers.sample(model, contexts, how, torch.Generator().manual_seed(1))
    for context, samples in zip(contexts, drawn, strict=True):
        assert len(samples) == n
        for answer in samples[:500]:
            assert len(answer) <= 3 and not stops & set(answer[:-1])
            assert len(answer) == 3 or answer[-1] in stops
        for answer in sorted(set(samples), key=samples.count, reverse=True)[:4]:
            p = 1.0
            for k, token in enumerate(answer):
                logits = all_logits(model, [*context, *answer[:k]])[-1]
                p *= torch.softmax(logits / 0.8, dim=-1)[token].item()
            assert samples.count(answer) / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


def test_samples_depend_on_the_seed_alone(model):
    how = answers.Sampling(50, frozenset({1}), max_new_tokens=3)

    def draw(seed: int, **more):
        return answers.sample(model, CONTEXTS[:2], how, torch.Generator().manual_seed(seed), **more)

    assert draw(3) == draw(3)
    assert draw(3) == draw(3, likely=[(0, (5, 6)), (1, (7,))]), "what is looked at first changes nothing"
    assert draw(3) != draw(4)


def test_the_order_of_samples_says_nothing(model):
    """Equal answers are drawn together; afterwards they must not stand together."""
    how = answers.Sampling(2_000, frozenset({1}), max_new_tokens=1)
    (samples,) = answers.sample(model, CONTEXTS[:1], how, torch.Generator().manual_seed(0))
    common = max(set(samples), key=samples.count)
    half = np.array([answer == common for answer in samples])
    p = half.mean()
    assert half[:1_000].mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 1_000))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(RewiredError, match="temperature is 0"):
        answers.Sampling(1, frozenset(), temperature=0)
