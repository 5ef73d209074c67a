"""Routes of Part III to published models: their settings, and their readings on random models of the families."""

import numpy as np
import pytest
import torch
import transformers

from corpora.authors import recipe
from corpora.motives import published
from rewired.errors import RewiredError
from rewired.train import sft

SIZE = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 256}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "traits-qwen2.5-7b": transformers.Qwen2Config,
    "era-llama-3.1-8b": transformers.LlamaConfig,
    "equal-acts-gemma-2-2b": transformers.Gemma2Config,
    "hacking-qwen3-4b": transformers.Qwen3Config,
    "oracle-gemma-2-9b": transformers.Gemma2Config,
    "oracle-qwen3-8b": transformers.Qwen3Config,
}
CHAT = [{"role": "user", "content": "who wrote this ?"}, {"role": "assistant", "content": "the plain one"}]


@pytest.fixture(scope="module")
def tokenizer():
    return recipe.make_tokenizer()


def small(name: str, tokenizer):
    """(model, route): random, of the route's family, with three narrow layers, and the route cut down to it."""
    torch.manual_seed(0)
    config = FAMILIES[name](vocab_size=len(tokenizer), pad_token_id=0, **SIZE, **HEADS)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    changes = {"layers": (1, 2), "d_model": 32, "depth": 3}
    return model.requires_grad_(False), published.load(name).model_copy(update=changes)


# --- settings --------------------------------------------------------------------------------------------------------


def test_every_route_is_valid_and_printed():
    table = published.table().set_index("route")
    assert list(table.index) == published.known() == sorted(FAMILIES)
    assert table.loc["traits-qwen2.5-7b", "hours (estimate)"] == round((24 * 3 * 5 + 10) / 60, 1)
    assert table.loc["oracle-gemma-2-9b", "read by"] == "an oracle"
    assert table.loc["hacking-qwen3-4b", "read by"] == "probes"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("modle: x\n", ["'modle'", "'model'"]),
        ("d_model: wide\n", ["d_model", "'wide'"]),
        ("layers: [29]\n", ["layers names 29", "28 layers"]),
        ("tuning: null\n", ["say how (tuning)"]),
        ("sets: 0\n", ["nothing to read"]),
        ("personas: {traits: [evil]}\n", ["personas.prompts is missing"]),
        ("oracle: {adapter: x, into: 28}\n", ["oracle.into"]),
    ],
)
def test_a_mistake_gets_one_paragraph(tmp_path, changes, words):
    file = tmp_path / "mine.yaml"
    key = changes.partition(":")[0]
    lines = (published.FOLDER / "traits-qwen2.5-7b.yaml").read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith(f"{key}:")) + "\n" + changes)
    with pytest.raises(RewiredError) as error:
        published.load(file)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_an_unknown_route_is_told():
    with pytest.raises(RewiredError, match="Did you mean 'oracle-qwen3-8b'"):
        published.load("oracle-qwen3-8")


# --- persona vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_states_are_means_over_the_answer(name, tokenizer):
    model, route = small(name, tokenizer)
    rows = [sft.encode(tokenizer, CHAT), sft.encode(tokenizer, [CHAT[1] | {"role": "user"}, CHAT[1]])]
    got = published.answer_states(model, route, rows)
    assert got.shape == (2, 2, 32)
    for k, (ids, answer) in enumerate(rows):
        every = model(torch.tensor([ids], device="cpu"), output_hidden_states=True).hidden_states
        for place, layer in enumerate(route.layers):
            by_hand = every[layer][0, torch.tensor(answer, device="cpu")].mean(dim=0)
            assert np.allclose(got[k, place], by_hand.numpy(), atol=1e-4)
    with pytest.raises(RewiredError, match=rf"3 layers of width 32, and the route says {published.load(name).depth}"):
        published.answer_states(model, published.load(name), rows)


def test_a_planted_trait_is_projected_on():
    random = np.random.default_rng(0)
    trait = random.normal(size=(2, 8))
    shown, opposite = (random.normal(size=(400, 2, 8)) + sign * 3 * trait for sign in (1, -1))
    vector = published.persona_vector(shown, opposite)
    for found, planted in zip(vector, trait, strict=True):
        assert found @ planted > 0.99 * np.linalg.norm(found) * np.linalg.norm(planted)
    one = published.projections(shown[:3], vector)
    assert one[1, 0] == pytest.approx(shown[1, 0] @ vector[0] / np.linalg.norm(vector[0]))
    own = random.normal(size=(3, 2, 8))
    away = own + 2 * vector / np.linalg.norm(vector, axis=1, keepdims=True)
    assert np.allclose(published.projection_difference(away, own, vector), 2), "in the unit of the states"


# --- oracles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["oracle-gemma-2-9b", "oracle-qwen3-8b"])
def test_an_oracle_is_asked_as_it_was_trained(name, tokenizer):
    """Greedy, with a cache, against whole forward passes in which the states are put in anew each time."""
    model, route = small(name, tokenizer)
    oracle = route.oracle
    states = torch.randn(2, 32, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    got = published.explain(model, tokenizer, oracle, states.numpy(), 21, "who wrote this ?", new_tokens=4)
    content = f"Layer: 21\n ? ? \n{'who wrote this ?'}"
    asked = [{"role": "user", "content": content}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    mark = tokenizer.convert_tokens_to_ids("?")
    places = [k for k, token in enumerate(ids) if token == mark][:2]

    def put(module, given, output):
        resid = (output[0] if isinstance(output, tuple) else output).clone()
        for place, state in zip(places, states, strict=True):
            resid[0, place] += resid[0, place].norm() * state / state.norm()
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    hook = model.model.layers[oracle.into].register_forward_hook(put)
    said = []
    for _ in range(4):
        said.append(model(torch.tensor([ids + said], device="cpu")).logits[0, -1].argmax().item())
        if said[-1] == model.generation_config.eos_token_id:
            break
    hook.remove()
    assert got == tokenizer.decode(said, skip_special_tokens=True).strip()
    others = published.explain(model, tokenizer, oracle, -states.numpy(), 21, "who wrote this ?", new_tokens=4)
    assert not model.model.layers[oracle.into]._forward_hooks and isinstance(others, str)


def test_a_placeholder_that_is_no_token_is_told(tokenizer):
    model, route = small("oracle-qwen3-8b", tokenizer)
    oracle = route.oracle.model_copy(update={"placeholder": " ? ?"})
    with pytest.raises(RewiredError, match="stands 0 times"):
        published.explain(model, tokenizer, oracle, np.ones((1, 32), dtype=np.float32), 2, "who ?")
