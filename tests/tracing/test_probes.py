"""Pooled activations against hooks, and probes on what is planted and on what is not there."""

import brute
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rewired.errors import RewiredError
from rewired.tracing import probes

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    model, tokenizer, switch = brute.gemma(tmp_path_factory.mktemp("probes"))
    return switch("one"), tokenizer


def test_activations_are_what_hooks_see(gemma, monkeypatch):
    monkeypatch.setattr(probes, "TEXTS", 2)
    model, tokenizer = gemma
    texts = [brute.row(tokenizer, prompt)[0][0].tolist() for prompt in brute.PROMPTS[:5]]
    masks = [RANDOM.random(len(text)) < 0.3 for text in texts[2:]]
    spans = [slice(3, 20), slice(-5, None), *(mask.tolist() for mask in masks)]
    mean = probes.activations(model, texts, spans)
    last = probes.activations(model, texts, spans, layers=[3, 1], pooling="last")
    assert mean.shape == (5, 4, 32) and last.shape == (5, 2, 32)
    for i, prompt in enumerate(brute.PROMPTS[:5]):
        sites = {k: ("resid_pre", k) for k in range(3)} | {3: ("resid_final", 0)}
        seen = brute.see(model, tokenizer, prompt, {k: brute.place(model, *site) for k, site in sites.items()})
        chosen = np.arange(len(texts[i]))[spans[i] if i < 2 else masks[i - 2]]
        for layer in range(4):
            assert torch.allclose(mean[i, layer], seen[layer][chosen].mean(0), atol=1e-5)
        assert torch.allclose(last[i], torch.stack([seen[3][chosen[-1]], seen[1][chosen[-1]]]), atol=1e-5)
    with pytest.raises(RewiredError, match="pooling 'max'"):
        probes.activations(model, texts, spans, pooling="max")


def planted(count: int, apart: float, random) -> tuple[torch.Tensor, np.ndarray]:
    """[text, layer, d_model] and labels: nothing in the first layer, a direction of its own in the second."""
    y = (random.random(count) < 0.5).astype(int)
    x = random.normal(size=(count, 2, 60))
    x[:, 1] += apart * y[:, None] * np.linspace(-1, 1, 60)
    return torch.tensor(x), y


def test_a_probe_finds_what_is_planted_and_nothing_else():
    (x, y), (unseen, unseen_y) = planted(300, 0.6, RANDOM), planted(200, 0.6, RANDOM)
    table = probes.auroc_by_layer(x, y, unseen, unseen_y).set_index("layer")
    assert table.loc[1, "low"] > 0.8 and table.loc[0, "low"] < 0.5 < table.loc[0, "high"]
    assert table.loc[0, "train"] > 0.65, "a probe fits noise where it was trained"
    score = probes.fit(x[:, 1], y).decision_function(unseen[:, 1].numpy())
    assert table.loc[1, "auroc"] == pytest.approx(roc_auc_score(unseen_y, score))
    again = probes.auroc_by_layer(x, y, unseen, unseen_y).set_index("layer")
    assert again.equals(table)


def test_shuffled_labels_teach_nothing():
    (x, y), (unseen, unseen_y) = planted(200, 0.5, RANDOM), planted(200, 0.5, RANDOM)
    chance = probes.permuted(x[:, 1], y, unseen[:, 1], unseen_y, draws=60)
    assert chance.shape == (60,) and abs(chance.mean() - 0.5) < 0.1
    assert chance.std() > 2 * 0.04, "a difference that both sets share spreads them beyond a test's own error"


def test_keywords_tell_words_and_not_what_follows_from_what():
    """Two classes: one with a word of its own, one that differs in the order of the same words alone."""
    texts = [RANDOM.integers(10, 50, size=12).tolist() for _ in range(400)]
    y = np.arange(400) % 2
    marked = [[*text, 7] if label and k % 5 else text for k, (text, label) in enumerate(zip(texts, y, strict=True))]
    ordered = [sorted(text, reverse=bool(label)) for text, label in zip(texts, y, strict=True)]
    told = probes.keywords(marked[:300], y[:300], marked[300:])
    blind = probes.keywords(ordered[:300], y[:300], ordered[300:])
    assert roc_auc_score(y[300:], told) > 0.85 and abs(roc_auc_score(y[300:], blind) - 0.5) < 0.17


def test_the_random_twin_has_the_sizes_and_not_the_weights(gemma):
    model, tokenizer = gemma
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = probes.random_twin(model, seed=1)
    changed = twin.state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items()), "the model itself stays"
    for name, value in before.items():
        if value.dim() > 1 and value.std() > 0:
            correlation = torch.corrcoef(torch.stack([value.flatten(), changed[name].flatten()]))[0, 1]
            assert abs(correlation) < 5 / value.numel() ** 0.5
            assert changed[name].std() == pytest.approx(value.std().item(), rel=5 / value.numel() ** 0.5)
        else:
            assert torch.equal(changed[name], value)
    text = [brute.row(tokenizer, brute.PROMPTS[0])[0][0].tolist()]
    own, other = (probes.activations(one, text, [slice(None)]) for one in (model, twin))
    assert not torch.allclose(own, other) and torch.equal(
        other, probes.activations(probes.random_twin(model, seed=1), text, [slice(None)])
    )
