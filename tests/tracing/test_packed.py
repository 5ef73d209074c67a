"""Prompts as trees, and forward passes of patched rows, in every family of decoders."""

from itertools import product

import brute
import pytest
import tiny
import torch
import transformers

from rewired.tracing import patching, recording
from rewired.tracing.packed import Patch, forward, plant
from rewired.tracing.recording import Sweep


@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_trees_hold_every_row_once(limit):
    rows = [(2, 3, 4, 5), (2, 3, 4, 6), (2, 3, 4, 5), (7,), (2, 3), (2, 3, 4, 5, 8)]
    trees, order, owned = plant(rows, limit)
    tokens = [rows[i][p] for i, positions in zip(order, owned, strict=True) for p in positions]
    leaves = []
    for tree in trees:
        for i, path in zip(tree.prompts, tree.paths, strict=True):
            assert tuple(tokens[tree.first + n] for n in path.tolist()) == rows[i]
            assert tree.depth_of[path].tolist() == list(range(len(rows[i])))
        leaves += (tree.first + tree.leaf).tolist()
        for path, leaf in ((path, leaf) for path in tree.paths for leaf in tree.leaf.tolist()):
            assert leaf not in path[:-1].tolist()
    assert len(set(leaves)) == len(rows) and sorted(i for t in trees for i in t.prompts) == list(range(6))
    assert limit < 1000 or len(tokens) == 2 + 1 + 1 + 1 + 1 + 1 + 1 + 2


@pytest.mark.parametrize("size", [(150, 200), (5000, 100_000)])
def test_results_do_not_depend_on_how_they_are_packed(pair, size, monkeypatch):
    model, _, source, target, _ = pair
    chosen = ["L0H1", "L1_MLP", "L1_RESID", "L2H7"]
    usual = patching.patch_each(Sweep(model, source, target), chosen)[0]
    monkeypatch.setattr(recording, "TREE_NODES", size[0])
    monkeypatch.setitem(recording.BUDGET, "cpu", size[1])
    everyone = range(len(brute.PROMPTS))
    packed = patching.patch_each(Sweep(model, source, target).select(everyone), chosen)[0]
    assert (usual["delta_patched"] - packed["delta_patched"]).abs().max() < 5e-6


@pytest.mark.parametrize("decision_only", [False, True])
def test_rows_of_one_pass_do_not_mix(pair, decision_only):
    """Each row of a batch alone gives the same stream, and the target's recording stays as it was."""
    model, _, source, target, _ = pair
    sweep, tree = Sweep(model, source, target), target.trees[0]
    base, values = target.at(tree.nodes), source.at(tree.nodes)
    before = {site: getattr(target, site).clone() for site in recording.SITES}
    names = ["L0H3", "L0_MLP", "L1_ATTN", "L2_RESID"]
    patches = [sweep.patch(component, values) for component in recording.named(model, names)]
    rows = [[], patches[:1], patches[1:3], patches]
    together = forward(sweep.parts, tree, base, rows, 0, decision_only)
    assert together.shape == (4, len(tree.prompts), 32)
    for k, row in enumerate(rows):
        alone = forward(sweep.parts, tree, base, [row], 0, decision_only)
        assert torch.allclose(together[k], alone[0], atol=1e-5)
    assert all(torch.equal(getattr(target, site), value) for site, value in before.items())


def test_a_blocked_position_is_not_attended_to(pair):
    """Everything but the decision step itself is blocked: attention returns that step's own value."""
    model, _, _, target, _ = pair
    tree, parts = target.trees[0], patching.Sweep(model, target, target).parts
    masks = []
    for path in tree.paths:
        mask = torch.ones(1, len(path), dtype=torch.bool)
        mask[:, -1] = False
        masks.append(mask)
    base = target.at(tree.nodes)
    final = forward(parts, tree, base, [[]], 2, True, {2: masks})
    block, stream = model.model.layers[2], base["resid"][2][tree.leaf]
    with torch.no_grad():
        value = block.self_attn.v_proj(block.input_layernorm(stream)).unflatten(-1, (4, 8))  # four KV heads
        z = value.repeat_interleave(2, dim=1).flatten(1)  # each read by two of eight heads
        stream = stream + block.post_attention_layernorm(block.self_attn.o_proj(z))
        mlp = block.mlp(block.pre_feedforward_layernorm(stream))
        due = stream + block.post_feedforward_layernorm(mlp)
    assert torch.allclose(final[0], due, atol=1e-5)


def test_a_patch_writes_its_value(pair):
    model, _, _, target, _ = pair
    tree, parts = target.trees[0], Sweep(model, target, target).parts
    value = torch.randn(len(tree.depth_of), 32)
    final = forward(parts, tree, target.at(tree.nodes), [[Patch("resid_post", 2, -1, value)]], 0)
    assert torch.equal(final[0], value[tree.leaf])


# --- other decoders --------------------------------------------------------------------------------------------------

SMALL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=512, initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=1,
)  # fmt: skip
KINDS = ["full_attention", "sliding_attention", "full_attention"]
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "llama with biases": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 40}),
    "gemma3": (transformers.Gemma3TextConfig, {"sliding_window": 40, "layer_types": KINDS, "query_pre_attn_scalar": 8}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_decoders(family):
    config, extra = FAMILIES[family]
    tokenizer = tiny.tokenizer()
    torch.manual_seed(1)
    config = config(**SMALL, **extra, vocab_size=len(tokenizer), attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.data.normal_()  # transformers begins with zeros
    model, switch = brute.with_adapters(model)
    pair = brute.recorded(model, tokenizer, switch, brute.PROMPTS[:3])
    chosen = recording.components(model, recording.KINDS)
    modes = recording.MODES if "biases" in family else ["input"]  # a head's output is its own, without the bias
    for positions, mode in product(recording.POSITIONS, modes):
        table = patching.patch_each(Sweep(model, *pair[2:4], positions, mode), chosen)[0]
        by_name = table.set_index(["prompt_id", "component"])["delta_patched"]
        for k, component in enumerate(chosen):
            prompt = brute.PROMPTS[k % 3]
            due = brute.due(pair, prompt, component, positions, mode)
            assert by_name[prompt.id, component.name] == pytest.approx(due, abs=5e-6)
    assert table["effect"].abs().max() > 1e-2


def test_half_precision_is_near(tmp_path):
    model, tokenizer, switch = brute.gemma(tmp_path)
    model.to(torch.bfloat16)
    source = patching.record(switch("one"), tokenizer, brute.PROMPTS[:3])
    target = patching.record(switch("two"), tokenizer, brute.PROMPTS[:3])
    table, controls = patching.patch_each(Sweep(model, source, target))
    assert (controls[controls["control"] == "self"]["error"] == 0).all() and table["effect"].abs().max() > 0.01
