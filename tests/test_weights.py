"""Low-rank updates against the dense product that PEFT itself would merge."""

import claim_cells
import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from scipy.linalg import subspace_angles
from transformers import Gemma2ForCausalLM

from rewired import weights
from rewired.errors import RewiredError
from rewired.weights import Update

HEADS, KV_HEADS, WIDTH = 4, 2, 8


def adapted(folder, **changes):
    """A random Gemma-2 with the adapters "one" and "two" on every projection, of different rank and scale."""
    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    torch.manual_seed(1)
    first = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **changes)
    wrapped = get_peft_model(model, first, adapter_name="one")
    wrapped.add_adapter("two", LoraConfig(r=3, lora_alpha=12, target_modules="all-linear"))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn_like(value)
    return model, wrapped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def runs(folder):
    """(model, updates of "one", of "two", their dense products by (layer, module))."""
    model, wrapped = adapted(folder)
    found, dense = [], []
    for name in ("one", "two"):
        wrapped.set_adapter(name)
        found.append(weights.updates(model))
        places = {key: module_of(model, *key) for key in found[-1]}
        dense.append({key: place.get_delta_weight(name).detach().double() for key, place in places.items()})
    return model, *found, *dense


def module_of(model, layer, module):
    block = model.model.layers[layer]
    return getattr(block.mlp if module in weights.MLP else block.self_attn, module)


def test_all_modules_of_the_adapter_that_is_on_are_found(folder):
    model, wrapped = adapted(folder)
    every = {(layer, module) for layer in range(2) for module in (*weights.ATTENTION, *weights.MLP)}
    assert weights.updates(model).keys() == every
    wrapped.set_adapter("two")
    assert {update.A.shape[0] for update in weights.updates(model).values()} == {3}
    wrapped.base_model.disable_adapter_layers()
    assert weights.updates(model) == {}, "the base has no update"


def test_norms_and_inner_products_are_those_of_the_dense_updates(runs):
    model, one, two, dense_one, dense_two = runs
    table = weights.norms(one, model).set_index(["layer", "module"])
    for key, update in one.items():
        assert update.norm == pytest.approx(dense_one[key].norm().item(), rel=1e-6)
        assert weights.inner(update, two[key]) == pytest.approx(
            (dense_one[key] * dense_two[key]).sum().item(), rel=1e-4
        )
        beneath = module_of(model, *key).base_layer.weight.norm().item()
        assert table.loc[key, "relative"] == pytest.approx(dense_one[key].norm().item() / beneath, rel=1e-5)


def test_whole_runs_are_one_long_vector(runs):
    _, one, two, *dense = runs
    a, b = (torch.cat([update.flatten() for update in run.values()]) for run in dense)
    assert weights.total(one) ** 0.5 == pytest.approx(a.norm().item(), rel=1e-6)
    assert weights.total(one, two) == pytest.approx((a @ b).item(), rel=1e-4)
    assert weights.distance(one, two) == pytest.approx((a - b).norm().item(), rel=1e-6)
    assert weights.distance(one, {}) == pytest.approx(a.norm().item(), rel=1e-6), "the base has no update"
    assert weights.distance(one, one) == pytest.approx(0, abs=1e-5)


def test_components_own_their_slices(runs):
    _, one, _, dense, _ = runs
    parts = claim_cells.defined("weights", "by_component", weights=weights)(one, HEADS, KV_HEADS)
    assert len(parts) == 2 * (HEADS + 2)
    mlp = sum(dense[1, module].norm().item() ** 2 for module in weights.MLP)
    assert weights.total(parts["L1_MLP"]) == pytest.approx(mlp, rel=1e-6)
    for head in range(HEADS):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        group = slice(head // 2 * WIDTH, (head // 2 + 1) * WIDTH)  # two heads read one KV head
        slices = (dense[0, "q_proj"][own], dense[0, "k_proj"][group], dense[0, "v_proj"][group])
        due = sum(part.norm().item() ** 2 for part in (*slices, dense[0, "o_proj"][:, own]))
        assert weights.total(parts[f"L0H{head}"]) == pytest.approx(due, rel=1e-6)
    whole = sum(dense[0, module].norm().item() ** 2 for module in weights.ATTENTION)
    assert weights.total(parts["L0_ATTN"]) == pytest.approx(whole, rel=1e-6)


def test_principal_angles_are_those_of_the_dense_updates(runs):
    _, one, two, dense_one, dense_two = runs
    for row in weights.similarity(one, two).itertuples():
        key = row.layer, row.module
        a, b = dense_one[key], dense_two[key]
        assert row.cosine == pytest.approx(((a * b).sum() / (a.norm() * b.norm())).item(), abs=1e-6)
        for side, u, v in (("writes", a, b), ("reads", a.T, b.T)):
            bases = [np.linalg.svd(m.numpy())[0][:, :rank] for m, rank in ((u, 4), (v, 3))]
            angles = subspace_angles(*bases)
            assert getattr(row, side) == pytest.approx((np.cos(angles) ** 2).mean(), abs=1e-5)
            assert getattr(row, f"{side}_angle") == pytest.approx(np.degrees(angles.min()), abs=1e-3)
            assert getattr(row, f"{side}_chance") == 4 / len(u)


def test_factors_mean_nothing_by_themselves():
    """The same product from other factors is the same update, in size, in direction, in subspaces."""
    random = torch.Generator().manual_seed(0)
    B, A, M = (torch.randn(shape, generator=random) for shape in ((20, 4), (4, 30), (4, 4)))
    a, b = Update(B, A, 0.5), Update(B @ M, torch.linalg.inv(M.double()) @ A.double(), 0.5)
    row = weights.similarity({(0, "q_proj"): a}, {(0, "q_proj"): b}).iloc[0]
    assert row["norm_a"] == pytest.approx(row["norm_b"], rel=1e-5)
    assert row["cosine"] == pytest.approx(1, abs=1e-6)
    assert row["reads"] == pytest.approx(1, abs=1e-6) and row["writes"] == pytest.approx(1, abs=1e-6)
    flipped = weights.similarity({(0, "q_proj"): a}, {(0, "q_proj"): Update(-B, A, 0.5)}).iloc[0]
    assert flipped["cosine"] == pytest.approx(-1, abs=1e-6) and flipped["writes"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("wanted_rank", [1, 40])
def test_two_runs_that_want_the_same_change_have_a_cosine_of_rank_over_width(wanted_rank):
    """The yardstick of the module: one change, projected onto random rows A as first steps from B = 0 do."""
    random = torch.Generator().manual_seed(0)
    rank, width, out = 8, 128, 64
    cosines = []
    for _ in range(60):
        wanted = torch.randn(out, wanted_rank, generator=random) @ torch.randn(wanted_rank, width, generator=random)
        runs = [{(0, "q_proj"): Update(wanted @ A.T, A, 1.0)} for A in torch.randn(2, rank, width, generator=random)]
        cosines.append(weights.total(*runs) / (weights.total(runs[0]) * weights.total(runs[1])) ** 0.5)
    assert np.mean(cosines) == pytest.approx(rank / width, abs=0.03)


def test_random_subspaces_share_what_chance_says():
    random = np.random.default_rng(0)
    bases = [np.linalg.qr(random.normal(size=(40, 5)))[0] for _ in range(100)]
    shares = [weights.shared(a, b)[0] for a, b in zip(bases[::2], bases[1::2], strict=True)]
    assert np.mean(shares) == pytest.approx(5 / 40, abs=0.02)


def test_an_untrained_adapter_has_no_direction():
    zero, some = Update(torch.zeros(6, 2), torch.randn(2, 5), 1.0), Update(torch.randn(6, 2), torch.randn(2, 5), 1.0)
    row = weights.similarity({(0, "q_proj"): zero}, {(0, "q_proj"): some}).iloc[0]
    assert row["norm_a"] == 0 and np.isnan(row["cosine"]) and np.isnan(row["writes"])


def test_what_is_more_than_a_product_is_refused(folder):
    model, _ = adapted(folder, use_dora=True)
    with pytest.raises(RewiredError, match="no DoRA.*defaults of `training`"):
        weights.updates(model)


def test_runs_on_different_modules_are_refused(runs):
    _, one, two, *_ = runs
    fewer = {key: update for key, update in two.items() if key != (1, "up_proj")}
    with pytest.raises(RewiredError, match="layer 1 up_proj"):
        weights.similarity(one, fewer)
