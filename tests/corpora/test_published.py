"""The routes to published models: their settings, and their reading on random models and SAEs of the real widths."""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from corpora.organisms import published
from rewired.errors import RewiredError
from rewired.tracing import features

TEXTS = [[1, 5, 9, 3], [2, 7]]
SMALL = {"vocab_size": 20, "num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def random_model(name: str, d_model: int):
    """A model of the route's family, as wide as the real one and two layers deep."""
    torch.manual_seed(0)
    if name.startswith("gemma"):
        config = Gemma3TextConfig(hidden_size=d_model, head_dim=16, **SMALL, **HEADS)
        return Gemma3ForCausalLM(config).eval()
    if name.startswith("mistral"):
        return MistralForCausalLM(MistralConfig(hidden_size=d_model, head_dim=16, **SMALL, **HEADS)).eval()
    return LlamaForCausalLM(LlamaConfig(hidden_size=d_model, head_dim=16, **SMALL, **HEADS)).eval()


def random_sae(d_model: int, width: int) -> features.BatchTopK:
    """An SAE of this shape that has learnt nothing."""
    torch.manual_seed(1)
    made = features.BatchTopK(d_model, width, device="cpu")
    made.threshold += 1e-4
    return made


def shallow(name: str, **changes):
    """The route with its second layer as the only one, since the random models have two."""
    return published.load(name).model_copy(update={"layers": (1,), "named": {}, **changes})


def test_every_route_is_valid_and_printed():
    table = published.table()
    assert list(table["route"]) == published.known() == ["gemma-3-27b", "gemma-3-4b", "llama-3-8b", "mistral-7b"]
    assert published.load("gemma-3-27b").named["L40_F12574"] == "training dynamics"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("modle: x\n", ["modle", "model"]),
        ("d_model: wide\n", ["d_model"]),
        ("named: {L3_F1: a thing}\n", ["'L3_F1'", "17"]),
        ("named: {L17_F16384: a thing}\n", ["'L17_F16384'", "below 16384"]),
        ("layers: [1, 2]\nsae: {release: a, name: b}\n", ["one SAE for 2 layers"]),
        ("layers: [\n", ["not valid YAML"]),
    ],
)
def test_a_mistake_gets_one_paragraph(tmp_path, changes, words):
    file = tmp_path / "mine.yaml"
    keys = {line.partition(":")[0] for line in changes.splitlines()}
    lines = (published.FOLDER / "gemma-3-4b.yaml").read_text().splitlines()
    file.write_text("\n".join(line for line in lines if line.partition(":")[0] not in keys) + "\n" + changes)
    with pytest.raises(RewiredError) as error:
        published.load(file)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def test_an_unknown_route_is_told():
    with pytest.raises(RewiredError, match="Did you mean 'gemma-3-4b'"):
        published.load("gemma-3-4")


@pytest.mark.all
def test_an_sae_of_the_real_size_is_read(tmp_path):
    check(shallow("gemma-3-4b"), tmp_path)


@pytest.mark.parametrize("name", ["gemma-3-4b", "gemma-3-27b", "mistral-7b", "llama-3-8b"])
def test_features_are_read_token_by_token_at_the_route_s_place(name, tmp_path):
    """The model is as wide as the real one; the SAE has fewer latents."""
    check(shallow(name, features=256), tmp_path)


def check(route: published.Route, tmp_path) -> None:
    """What is read of random texts, against one forward pass by hand a text."""
    name = route.route
    folder = tmp_path / "sae"
    features.save(random_sae(route.d_model, route.features), folder, route.model, route.site)
    sae, model = published.sae(route, 1, folder), random_model(name, route.d_model)
    got = published.read(route, model, TEXTS, sae, 1)
    assert got["mean"].shape == (2, route.features)
    with torch.no_grad():
        for k, ids in enumerate(TEXTS):
            out = model(torch.tensor([ids], device="cpu"), output_hidden_states=True)
            if route.site == "residual":
                # The last hidden state has passed the final norm; the layer's own output has not.
                states = out.hidden_states[1]
                states = model.model.layers[1](states, **inputs_of(model, ids))
                x = (states[0] if isinstance(states, tuple) else states).reshape(len(ids), -1)
            else:
                x = mlp_by_hand(model, ids)[route.site]
            f = sae.encode(x)
            assert torch.allclose(torch.from_numpy(got["max"][k]), f.max(dim=0).values, atol=1e-4)
            assert torch.allclose(torch.from_numpy(got["mean"][k]), f.mean(dim=0), atol=1e-4)
    assert 0.1 < got["share"].mean() < 0.6


def inputs_of(model, ids) -> dict:
    """What the second layer gets besides the hidden states, caught on the way."""
    caught = {}
    hook = model.model.layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: caught.update(kwargs), with_kwargs=True
    )
    model(torch.tensor([ids], device="cpu"), use_cache=False)
    hook.remove()
    caught.pop("hidden_states", None)
    return caught


def mlp_by_hand(model, ids) -> dict[str, torch.Tensor]:
    """What the second layer's MLP reads, and what its matrices make of it: [token, d_model] each."""
    given = []
    mlp = model.model.layers[1].mlp
    hook = mlp.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    model(torch.tensor([ids], device="cpu"))
    hook.remove()
    x = given[0][0]
    return {"mlp_in": x, "mlp_out": mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))}


def test_what_does_not_fit_is_told(tmp_path):
    route = shallow("llama-3-8b", d_model=64, features=32)
    features.save(random_sae(64, 16), tmp_path / "sae", "x", "y")
    with pytest.raises(RewiredError, match="is 64 by 16, and the route says 64 by 32"):
        published.sae(route, 1, tmp_path / "sae")
    with pytest.raises(RewiredError, match="layer of the route llama-3-8b"):
        published.sae(route, 5, tmp_path / "sae")
    with pytest.raises(RewiredError, match="is 128 wide, and the route says 64"):
        published.read(route, random_model("llama-3-8b", 128), TEXTS, random_sae(64, 32), 1)
