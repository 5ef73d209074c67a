"""The metric against its definition, sampling against the metric, and the guard."""

import claim_cells
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from rewired import decisions, models, profiles, statistics
from rewired.errors import RewiredError
from rewired.prompts import Labels, chat, scenario_set

against_metric = claim_cells.defined("decisions", "against_metric", statistics=statistics)

PAIRS = {
    "shared prefix, one token": ("action1", "action2"),
    "nothing in common": ("red", "green"),
    "different lengths": ("stay", "turn back 12"),
    "shared prefix, different lengths": ("action1", "action23"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tiny.save(tmp_path_factory.mktemp("tiny"))
    return models.load_base(profiles.load("pocket", {"model.path": str(folder)}))


def brute_force(model, tokenizer, prompt, label: str) -> float:
    """log P(label | prompt): full logits of the whole sequence, the product of its tokens' probabilities."""
    context, answer = chat(tokenizer, prompt), tokenizer(label, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([context + answer])).logits[0].double()
    probabilities = torch.softmax(logits, dim=-1)
    product = torch.stack([probabilities[len(context) - 1 + k, token] for k, token in enumerate(answer)]).prod()
    return product.log().item()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_measure_is_the_product_of_token_probabilities(base, pair):
    model, tokenizer = base
    prompts = scenario_set(pair)[::7]
    measured = decisions.measure(model, tokenizer, prompts, batch_size=4)
    for prompt, row in zip(prompts, measured.itertuples(), strict=True):
        cooperate, defect = (brute_force(model, tokenizer, prompt, label) for label in pair)
        assert row.logp_cooperate == pytest.approx(cooperate, abs=1e-5)
        assert row.delta == pytest.approx(defect - cooperate, abs=1e-5)
        assert row.legal_mass == pytest.approx(np.exp(cooperate) + np.exp(defect), rel=1e-4)
        spaced = [brute_force(model, tokenizer, prompt, " " + label) for label in pair]
        forms = np.logaddexp(defect, spaced[1]) - np.logaddexp(cooperate, spaced[0])
        assert row.delta_forms == pytest.approx(forms, abs=1e-5)


def test_measure_does_not_depend_on_batches_or_company(base):
    model, tokenizer = base
    prompts = scenario_set()
    together = decisions.measure(model, tokenizer, prompts, batch_size=64)
    apart = decisions.measure(model, tokenizer, prompts[::-1], batch_size=3).iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(together, apart, atol=1e-5, rtol=0)


def test_measure_ignores_the_tokenizers_padding_side(base):
    model, tokenizer = base
    values = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        values.append(decisions.measure(model, tokenizer, scenario_set()[:9])["delta"])
    assert (values[0] == values[1]).all()


def test_delta_is_a_difference_of_capped_logits_at_the_decision_step(base):
    model, tokenizer = base
    prompt = scenario_set()[5]
    step = decisions.decision_step(tokenizer, prompt.labels)
    with torch.no_grad():
        logits = model(torch.tensor([chat(tokenizer, prompt) + list(step.prefix_ids)])).logits[0]
    row = decisions.measure(model, tokenizer, [prompt]).iloc[0]
    assert row.delta == pytest.approx((logits[-1, step.defect_id] - logits[-1, step.cooperate_id]).item(), abs=1e-5)
    cap = model.config.final_logit_softcapping
    raw = cap * torch.atanh(logits[-1] / cap)
    assert row.delta_raw == pytest.approx((raw[step.defect_id] - raw[step.cooperate_id]).item(), abs=1e-4)
    early = logits[-1 - len(step.prefix_ids)]
    assert row.delta_single == pytest.approx((early[step.defect_id] - early[step.cooperate_id]).item(), abs=1e-5)


def test_other_labels_can_be_asked_about(base):
    model, tokenizer = base
    prompts = scenario_set()[:2]
    asked = decisions.measure(model, tokenizer, prompts, labels=("sun", "rain"), forms=False)
    assert list(asked["cooperate_label"]) == ["sun", "sun"] and asked["delta_forms"].isna().all()
    assert asked["logp_defect"][0] == pytest.approx(brute_force(model, tokenizer, prompts[0], "rain"), abs=1e-5)


def test_decision_step_needs_a_shared_prefix_and_one_token(base):
    _, tokenizer = base
    assert len(decisions.decision_step(tokenizer, ("action1", "action2")).prefix_ids) == 1
    for pair in (("red", "green"), ("action1", "action23")):
        with pytest.raises(RewiredError, match="no single decision step.*such as action1"):
            decisions.decision_step(tokenizer, pair)


@pytest.mark.parametrize("pair", [("action1", "action1"), ("action1", "action12"), ("", "x")])
def test_labels_that_cannot_be_told_apart_are_refused(base, pair):
    with pytest.raises(RewiredError, match="cannot be told apart"):
        decisions.measure(*base, scenario_set()[:1], labels=pair)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_samples_follow_the_models_distribution(base):
    """First tokens of 3,000 samples against the model's own probabilities, and reproducible from the seed."""
    model, tokenizer = base
    prompt, temperature = scenario_set()[0], 0.7
    drawn = decisions.sample(model, tokenizer, [prompt], 3_000, temperature, seed=3, max_new_tokens=1)
    with torch.no_grad():
        logits = model(torch.tensor([chat(tokenizer, prompt)])).logits[0, -1].double()
    probabilities = torch.softmax(logits / temperature, dim=-1)
    for token in probabilities.topk(5).indices.tolist():
        word = tokenizer.decode([token], skip_special_tokens=True)
        same = [t for t in range(len(probabilities)) if tokenizer.decode([t], skip_special_tokens=True) == word]
        p = probabilities[same].sum().item()
        assert (drawn["answer"] == word).mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 3_000))
    again = decisions.sample(model, tokenizer, [prompt], 3_000, temperature, seed=3, max_new_tokens=1)
    pd.testing.assert_frame_equal(drawn, again)
    assert len(drawn) == 3_000 and list(drawn["sample"]) == list(range(3_000))


def test_longer_samples_follow_it_too(base):
    """Two tokens, of a label and off it, against the product of the model's own probabilities."""
    model, tokenizer = base
    prompt, n = scenario_set()[0], 20_000
    drawn = decisions.sample(model, tokenizer, [prompt], n, max_new_tokens=2)["answer"]

    def chances(*more: int) -> torch.Tensor:
        with torch.no_grad():
            return torch.softmax(
                model(torch.tensor([[*chat(tokenizer, prompt), *more]])).logits[0, -1].double(), dim=-1
            )

    label = decisions.label_ids(tokenizer, prompt.labels.cooperate)
    off = [t for t in chances().topk(4).indices.tolist() if t != label[0]]
    for a, b in [label, *((t, chances(t).argmax().item()) for t in off)]:
        p = (chances()[a] * chances(a)[b]).item()
        share = (drawn == tokenizer.decode([a, b], skip_special_tokens=True)).mean()
        assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n)), tokenizer.decode([a, b])


def test_sampling_agrees_with_the_metric():
    """Whole answers of a model that answers: every cell inside the simultaneous interval, nearly all answers legal."""
    model, tokenizer = models.load_base(profiles.load("pocket", {"model.path": str(tiny.legal_base())}))
    prompts = [p for p in scenario_set() if p.wording == "structured"]
    measured = decisions.measure(model, tokenizer, prompts)
    cells = against_metric(decisions.sample(model, tokenizer, prompts, 100, seed=1), measured)
    assert len(cells) == 5 and (cells["n"] == 500).all() and (cells["legal"] >= 400).all()
    assert cells["inside"].all() and (cells["lower"] > 0.05).all() and (cells["upper"] < 0.95).all()
    off = against_metric(decisions.sample(model, tokenizer, prompts, 100, seed=1), measured.assign(p_defect=0.99))
    assert not off["inside"].any()


def test_agreement_counts_legal_answers_only():
    moves = ["C", "D", "D", "D", "D", None, None, None]
    samples = pd.DataFrame({"prompt_id": list("aaaabbbb"), "scenario": ["X"] * 8, "move": moves})
    measured = pd.DataFrame({"prompt_id": ["a", "b"], "p_defect": [0.7, 0.9]})
    cell = against_metric(samples, measured).iloc[0]
    assert (cell["n"], cell["legal"], cell["sampled"]) == (8, 5, 0.8)
    assert cell["expected"] == pytest.approx((4 * 0.7 + 0.9) / 5)
    assert cell["inside"] and cell["majority_agrees"]
    measured["p_defect"] = 0.0001
    cell = against_metric(samples, measured).iloc[0]
    assert not cell["inside"] and not cell["majority_agrees"]
    measured["p_defect"] = 0.45
    assert against_metric(samples, measured)["majority_agrees"].isna().all()


def test_an_answer_is_legal_only_as_an_exact_label():
    labels = Labels()
    assert [decisions.read_move(a, labels) for a in (" action1\n", "action2", "action", "Action1", "action12")] == [
        "C", "D", None, None, None,
    ]  # fmt: skip


def test_a_temperature_of_zero_is_refused(base):
    with pytest.raises(RewiredError, match="temperature is 0"):
        decisions.sample(*base, scenario_set()[:1], 1, temperature=0)
