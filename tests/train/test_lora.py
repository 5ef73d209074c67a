"""Where an adapter sits, that it changes nothing before it learns, and what is written of it."""

import json
import re

import pytest
import tiny
import torch
from safetensors.torch import load_file

from rewired import models, profiles
from rewired.errors import RewiredError
from rewired.train import lora, reinforce

EVERYWHERE = [f"{layer}.{module}" for layer in (0, 1) for module in lora.MODULES]


def profile(overrides=None):
    return profiles.load("pocket", {"model.path": str(tiny.legal_base()), **(overrides or {})})


def places(names) -> list[str]:
    """The places ("layer.module") of every module that holds an adapter, from the names of its tensors."""
    found = {re.search(r"layers\.(\d+)\.\w+\.(\w+)\.lora_", name) for name in names if "lora_" in name}
    return sorted({f"{match[1]}.{match[2]}" for match in found})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, EVERYWHERE),
        ({"training.layers": [1]}, [p for p in EVERYWHERE if p.startswith("1.")]),
        ({"training.modules": ["up_proj", "down_proj"]}, [p for p in EVERYWHERE if "up_" in p or "down_" in p]),
        ({"training.layers": [0], "training.modules": ["q_proj"]}, ["0.q_proj"]),
    ],
)
def test_an_adapter_sits_where_the_profile_says(overrides, expected):
    p = profile(overrides)
    model, _ = models.load_base(p)
    policy = lora.add_adapter(model, p.training)
    trained = [name for name, value in policy.named_parameters() if value.requires_grad]
    assert places(trained) == sorted(expected)
    assert all("lora_" in name for name in trained)


def test_a_new_adapter_changes_nothing():
    p = profile()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = models.load_base(p)[0](ids).logits
        policy = lora.add_adapter(models.load_base(p)[0], p.training)
        assert torch.equal(policy(ids).logits, before)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.modules": ["up"]}, ["training.modules", "'up'", "up_proj", "null"]),
        ({"training.layers": [0, 2]}, ["training.layers", "layer 2", "2 layers", "0 to 1", "null"]),
    ],
)
def test_a_place_that_the_model_lacks_is_refused(overrides, words, tmp_path):
    with pytest.raises(RewiredError) as refused:
        reinforce.train(profile(overrides), "strategic", 1, tmp_path / "run")
    assert all(word in str(refused.value) for word in words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["[]", "[1, 1]", "[-1]", "up_proj"])
def test_a_list_of_places_that_makes_no_sense_is_refused(value):
    with pytest.raises(RewiredError, match="training.layers"):
        profiles.load("pocket", [f"training.layers={value}"])


def test_a_choice_of_places_is_recorded_and_loads_again(tmp_path, monkeypatch):
    """Training touches the chosen places alone, run.json names them, and the study's models load such an adapter."""
    monkeypatch.setenv("REWIRED_ROOT", str(tmp_path))
    few = {"training.episodes": 2, "training.batch_size": 10, "training.ppo_epochs": 1, "training.variants": ["hybrid"]}
    p = profile({**few, "training.layers": [1], "training.modules": ["up_proj", "down_proj"]})
    run = reinforce.train(p, "hybrid", 1)
    adapter = load_file(run / "adapter" / models.ADAPTER)
    assert places(adapter) == ["1.down_proj", "1.up_proj"]
    about = json.loads((run / "run.json").read_text())["training"]
    assert (about["layers"], about["modules"]) == ([1], ["up_proj", "down_proj"])
    with models.Variants(p).variant("hybrid", 1) as model:
        assert any("lora_" in name for name, _ in model.named_parameters())


def test_one_step_follows_a_gradient_no_longer_than_one_and_refuses_what_is_no_number():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0], device="cpu"))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    assert lora.descend((50 * weight).sum(), optimiser, 1, "Lower it") == 350
    # the gradient (50, 50) is cut to length 1
    assert torch.allclose(weight.detach(), torch.tensor([3.0, 4.0]) - 0.5**0.5, atol=1e-5)
    before = weight.detach().clone()
    with pytest.raises(RewiredError, match="became nan at step 2.*Lower it, and start again"):
        lora.descend((weight * float("nan")).sum(), optimiser, 2, "Lower it")
    assert torch.equal(weight.detach(), before) and lora.descend(torch.zeros(()), optimiser, 3, "") == 0
