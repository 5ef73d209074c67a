"""A planted dictionary is recovered; the folder is SAELens' and reads back; what cannot be read is told."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewired.errors import RewiredError
from rewired.tracing import features


def planted(count: int = 8_000, d_model: int = 16, size: int = 24, seed: int = 0):
    """(dictionary [direction, d_model], activations [token, d_model]): on average two of 24 directions each, far away
    from the origin and small."""
    random = torch.Generator().manual_seed(seed)
    dictionary = torch.nn.functional.normalize(torch.randn(size, d_model, generator=random), dim=1)
    on = torch.rand(count, size, generator=random) < 2 / size
    f = on * (1 + torch.rand(count, size, generator=random))
    return dictionary, 0.01 * (f @ dictionary + 0.01 * torch.randn(count, d_model, generator=random) + 3)


@pytest.fixture(scope="module")
def learnt():
    dictionary, x = planted()
    return dictionary, x, features.train(x, 24, 2, steps=400, batch_size=256, rate=5e-3)


def test_a_planted_dictionary_is_recovered(learnt):
    dictionary, x, sae = learnt
    found = torch.nn.functional.normalize(sae.W_dec, dim=1) @ dictionary.T  # [latent, direction]
    assert (found.amax(dim=0) > 0.95).float().mean() > 0.9
    numbers = features.quality(sae, x)
    assert numbers["fve"] > 0.85 and 1.7 < numbers["l0"] < 2.5 and numbers["alive"] > 0.9
    untrained = features.train(x, 24, 2, steps=1, batch_size=256)
    assert features.quality(untrained, x)["fve"] < numbers["fve"] - 0.2


def test_quality_is_its_definition(learnt):
    _, x, sae = learnt
    x, f = x[:200], sae.encode(x[:200])
    rest = sum((x[k] - sae.decode(f[k])).square().sum() for k in range(200))
    spread = sum((x[k] - x.mean(0)).square().sum() for k in range(200))
    numbers = features.quality(sae, x)
    assert numbers["fve"] == pytest.approx(1 - (rest / spread).item(), abs=1e-4)
    assert numbers["l0"] == pytest.approx((f > 0).sum().item() / 200)
    assert numbers["alive"] == pytest.approx((f > 0).any(0).sum().item() / 24)


def test_each_token_is_encoded_alone_as_its_formula_says(learnt):
    _, x, sae = learnt
    before = (x[:50] - sae.b_dec) @ sae.W_enc + sae.b_enc
    by_hand = torch.where(before > sae.threshold, before, 0)
    assert torch.allclose(sae.encode(x[:50]), by_hand) and (sae.threshold > 0).all()
    assert torch.allclose(sae.encode(x[7]), by_hand[7], atol=1e-5)
    mean = torch.stack([sae.encode(token) for token in x[:50]]).mean(0)
    assert not torch.allclose(mean, sae.encode(x[:50].mean(0)), atol=0.05), "encoding the mean is another thing"


def test_training_repeats_itself_and_leaves_the_random_state():
    _, x = planted(500)
    state = torch.random.get_rng_state()
    one, two = (features.train(x, 8, 2, steps=5, batch_size=64, seed=4) for _ in "ab")
    assert torch.equal(one.W_enc, two.W_enc) and torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(one.W_enc, features.train(x, 8, 2, steps=5, batch_size=64, seed=5).W_enc)


def test_dead_latents_are_revived(monkeypatch):
    """Latents that start too faint to be among the largest fire with the auxiliary loss, and hardly without it."""
    _, x = planted(2_000)
    start = features.BatchTopK.__init__

    def faint(self, d_model, width, device=None):
        start(self, d_model, width, device)
        self.W_enc.data[:, : width // 2] *= 0.02

    monkeypatch.setattr(features.BatchTopK, "__init__", faint)
    alive = {}
    for idle in (1_000, 10**9):
        monkeypatch.setattr(features, "IDLE", idle)
        alive[idle] = features.quality(features.train(x, 24, 2, steps=300, batch_size=128), x)["alive"]
    assert alive[1_000] > alive[10**9] + 0.2


def test_a_saved_folder_is_saelens_and_reads_back(learnt, tmp_path):
    _, x, sae = learnt
    features.save(sae, tmp_path / "sae", "models/authors", "layer 4")
    config, held = (
        json.loads((tmp_path / "sae/cfg.json").read_text()),
        load_file(tmp_path / "sae/sae_weights.safetensors"),
    )
    shapes = {"W_enc": (16, 24), "W_dec": (24, 16), "b_enc": (24,), "b_dec": (16,), "threshold": (24,)}
    assert {name: tuple(value.shape) for name, value in held.items()} == shapes
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("jumprelu", 16, 24)
    assert config["apply_b_dec_to_input"] and config["metadata"]["hook_name"] == "layer 4"
    again = features.load(tmp_path / "sae")
    assert torch.equal(again.encode(x), sae.encode(x)) and torch.equal(again.W_dec, sae.W_dec)


def test_others_folders_are_read_where_they_mean_the_same(learnt, tmp_path):
    """A standard SAE has no threshold; one may read its input without taking b_dec off."""
    _, x, sae = learnt
    features.save(sae, tmp_path / "sae", "m", "s")
    file, weights = tmp_path / "sae/cfg.json", tmp_path / "sae/sae_weights.safetensors"
    config, held = json.loads(file.read_text()), load_file(weights)
    held.pop("threshold")
    save_file(held, weights)
    file.write_text(json.dumps(config | {"architecture": "standard", "apply_b_dec_to_input": False}))
    due = (x @ held["W_enc"] + held["b_enc"]).relu()
    assert torch.allclose(features.load(tmp_path / "sae").encode(x), due, atol=1e-4)
    for change in ({"architecture": "topk"}, {"normalize_activations": "layer_norm"}):
        file.write_text(json.dumps(config | change))
        with pytest.raises(RewiredError, match="no JumpReLU or standard SAE.*(topk|layer_norm)"):
            features.load(tmp_path / "sae")
    weights.write_bytes(b"half")
    file.write_text(json.dumps(config))
    for folder in (tmp_path / "sae", tmp_path / "none"):
        with pytest.raises(RewiredError, match="no JumpReLU or standard SAE"):
            features.load(folder)


def test_published_saes_need_a_package_of_their_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(RewiredError, match=r"pip install -e '.\[published\]'"):
        features.read_published("gemma-scope-2-4b-it-res", "layer_17_width_16k_l0_medium")


def test_a_published_sae_out_of_reach_is_no_missing_package(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    loaders = SimpleNamespace(sparsify_huggingface_loader=None)
    monkeypatch.setitem(sys.modules, "sae_lens", SimpleNamespace(SAE=SimpleNamespace(from_pretrained=unreachable)))
    monkeypatch.setitem(sys.modules, "sae_lens.loading", SimpleNamespace(pretrained_sae_loaders=loaders))
    monkeypatch.setitem(sys.modules, "sae_lens.loading.pretrained_sae_loaders", loaders)
    with pytest.raises(RewiredError, match="no network.*can be reached") as told:
        features.read_published("gemma-scope-2-4b-it-res", "none")
    assert "pip install" not in str(told.value)
