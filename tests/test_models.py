"""Loading a base, switching variants exactly, and refusing what does not belong together."""

import json
import shutil

import pytest
import safetensors.torch
import tiny
import torch
from safetensors.torch import load_file, save_file

from rewired import decisions, models, profiles
from rewired.errors import RewiredError
from rewired.prompts import held_out_set, scenario_set
from rewired.store import read_table, results_dir, write_table
from rewired.train import reinforce

QUICK = {
    "training.episodes": 4, "training.batch_size": 10, "training.minibatches": 2, "training.ppo_epochs": 2,
    "training.learning_rate": 1e-2,
    "training.variants": ["strategic", "utilitarian"], "training.seeds": [1, 2],
    "training.log_every": 2, "training.checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(profile, folder) of two small runs."""
    profile = profiles.load("pocket", {"model.path": str(tiny.legal_base()), **QUICK})
    folder = tmp_path_factory.mktemp("runs")
    for variant in profile.training.variants:
        reinforce.train(profile, variant, 1, folder / f"{variant}-1")
    return profile, folder


@pytest.fixture
def trained(runs, tmp_path, monkeypatch):
    """A profile whose results are these runs: a copy, free to be damaged."""
    profile, folder = runs
    monkeypatch.setenv("REWIRED_ROOT", str(tmp_path / "root"))
    shutil.copytree(folder, results_dir(profile) / "runs")
    return profile


def deltas(variants, model):
    return decisions.measure(model, variants.tokenizer, scenario_set()[::6], forms=False)["delta"].to_numpy()


def test_variants_switch_exactly_and_are_restored(trained):
    variants = models.Variants(trained)
    base = deltas(variants, variants.model)
    with variants.variant("strategic", 1) as model:
        strategic = deltas(variants, model)
        with variants.variant("utilitarian", 1) as model:
            utilitarian = deltas(variants, model)
            with variants.variant("base") as model:
                assert (deltas(variants, model) == base).all()
        assert (deltas(variants, model) == strategic).all()
    assert (deltas(variants, variants.model) == base).all()
    assert abs(strategic - base).max() > 1e-3 and abs(strategic - utilitarian).max() > 1e-3


def test_a_variant_is_what_training_saved(trained):
    """p_defect of the reloaded adapter equals what the run wrote down, and the guard says so."""
    variants = models.Variants(trained)
    assert variants.runs() == [("strategic", 1), ("utilitarian", 1)]
    for variant, seed in variants.runs():
        recorded = read_table(variants.run_dir(variant, seed) / "decisions.parquet", trained)
        now = decisions.guard(variants, variant, seed)
        assert abs(now["p_defect"] - recorded["p_defect"]).max() < 1e-6


def test_a_checkpoint_is_what_the_run_was_then(trained):
    """A checkpoint answers as the log says, beside finished runs and alone, and nothing of it stays behind."""
    alone, variants = models.Variants(trained), models.Variants(trained)
    base, asked = deltas(variants, variants.model), reinforce.probe_set(held_out_set())
    log = read_table(variants.run_dir("utilitarian", 1) / "log.parquet", trained)
    logged = log[log["metric"].eq("p_defect") & log["state"].eq("all")].set_index("episode")["value"]
    assert variants.checkpoints("utilitarian", 1) == [2, 4] and logged.nunique() == 3

    def told(where, episode=None):
        with where.variant("utilitarian", 1, episode) as model:
            return decisions.measure(model, where.tokenizer, asked, forms=False)["p_defect"].mean()

    for episode in (2, 4):
        assert told(alone, episode) == pytest.approx(logged[episode], abs=1e-6)
    with variants.variant("strategic", 1) as model:
        strategic = deltas(variants, model)
        assert told(variants, 2) == pytest.approx(logged[2], abs=1e-6)
        assert (deltas(variants, model) == strategic).all()
        with variants.variant("utilitarian", 1, 2), variants.variant("base"):
            assert told(variants, 2) == pytest.approx(logged[2], abs=1e-6), "in use twice"
    assert told(variants) == pytest.approx(logged[4], abs=1e-6)
    assert (deltas(variants, variants.model) == base).all() and (deltas(alone, alone.model) == base).all()
    kept = {name.split(".")[-2] for name, _ in variants.model.named_parameters() if "lora_" in name}
    assert kept == {"strategic-1", "utilitarian-1"}
    assert not any(p.requires_grad for p in variants.model.parameters())


def test_there_is_one_copy_of_the_base(trained):
    variants = models.Variants(trained)
    before = {name: value.data_ptr() for name, value in variants.model.named_parameters()}
    for variant, seed in variants.runs():
        with variants.variant(variant, seed):
            pass
    after = {n.replace(".base_layer.", "."): p for n, p in variants.model.named_parameters()}
    assert all(after[name].data_ptr() == pointer for name, pointer in before.items())
    extra = [name for name in after if name not in before]
    assert extra and all("lora_" in name for name in extra)
    assert not any(p.requires_grad for p in after.values()) and not variants.model.training


def test_a_copy_of_a_run_is_no_run(trained):
    variants = models.Variants(trained)
    folder = variants.run_dir("strategic", 1)
    shutil.copytree(folder, folder.with_name("strategic-1-old"))
    assert variants.runs() == [("strategic", 1), ("utilitarian", 1)]


def test_the_switch_is_restored_after_an_error(trained):
    variants = models.Variants(trained)
    base = deltas(variants, variants.model)
    with pytest.raises(KeyError), variants.variant("strategic", 1):
        raise KeyError
    assert (deltas(variants, variants.model) == base).all()


def test_the_guard_stops_another_model(trained):
    variants = models.Variants(trained)
    table = variants.run_dir("strategic", 1) / "decisions.parquet"
    recorded = read_table(table, trained)
    recorded.loc[3, "delta"] += 0.01
    write_table(recorded, table, trained)
    with pytest.raises(RewiredError, match=f"not the model that was trained.*{recorded.prompt_id[3]}"):
        decisions.guard(variants, "strategic", 1)


def test_unknown_variants_and_seeds(trained):
    variants = models.Variants(trained)
    with pytest.raises(RewiredError, match="Unknown variant 'strategc'.*strategic"), variants.variant("strategc"):
        pass
    with (
        pytest.raises(RewiredError, match="seed 2.*strategic-1, utilitarian-1.*train"),
        variants.variant("strategic", 2),
    ):
        pass


def test_an_adapter_of_another_base_is_refused(trained, tmp_path):
    other = tiny.save(tmp_path / "other", seed=9)
    variants = models.Variants(profiles.load("pocket", {"model.path": str(other), **QUICK}))
    with pytest.raises(RewiredError, match="trained on another base"), variants.variant("strategic", 1):
        pass


def truncate(run):
    file = run / "adapter" / models.ADAPTER
    file.write_bytes(file.read_bytes()[:-100])


def exchange(run):
    file = run / "adapter" / models.ADAPTER
    save_file({name: value + 1e-3 for name, value in safetensors.torch.load(file.read_bytes()).items()}, file)


def pickle(run):
    torch.save({}, run / "adapter" / "adapter_model.bin")
    (run / "adapter" / models.ADAPTER).unlink()


def unsettle(run):
    about = json.loads((run / "run.json").read_text())
    del about["base"]
    (run / "run.json").write_text(json.dumps(about))


def cut(run):
    (run / "run.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, exchange, pickle, unsettle, cut])
def test_a_damaged_run_is_refused(trained, damage):
    variants = models.Variants(trained)
    damage(variants.run_dir("strategic", 1))
    with (
        pytest.raises(RewiredError, match="Delete .*strategic-1 and run `make book`"),
        variants.variant("strategic", 1),
    ):
        pass
    with variants.variant("utilitarian", 1) as model:
        assert deltas(variants, model).any()


def test_a_damaged_or_unknown_checkpoint_is_refused(trained):
    variants = models.Variants(trained)
    with pytest.raises(
        RewiredError, match="Unknown checkpoint.*episode-000003.*Known: .*episode-000002.*episode-000004"
    ):
        with variants.variant("strategic", 1, 3):
            pass
    shutil.copytree(variants.run_dir("strategic", 1) / "checkpoints/episode-000002",
                    variants.run_dir("strategic", 1) / "checkpoints/episode-000004", dirs_exist_ok=True)  # fmt: skip
    with pytest.raises(RewiredError, match="Delete .*strategic-1 and run `make book`"):
        with variants.variant("strategic", 1, 4):
            pass
    with variants.variant("strategic", 1, 2) as model:
        assert deltas(variants, model).any()


# --- the base --------------------------------------------------------------------------------------------------------


def load(path, **changes):
    return models.load_base(profiles.load("pocket", {"model.path": str(path), **changes}))


def test_the_base_loads_eager_frozen_and_in_the_asked_type(tmp_path):
    model, _ = load(tiny.save(tmp_path / "m"), **{"model.dtype": "bfloat16"})
    assert model.config._attn_implementation == "eager" and model.dtype == torch.bfloat16
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("able", [True, False])
def test_products_in_half_precision_are_those_of_single_precision_rounded(monkeypatch, able):
    """On a processor that has none; where it has, they are its own. Nothing else changes, and gradients pass."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    torch.manual_seed(1)
    x, w = (torch.randn(64, 64) for _ in range(2))
    half, weight = x.bfloat16().requires_grad_(), w.bfloat16()
    due = (half.float() @ weight.float().T).bfloat16()
    layer = torch.nn.Linear(64, 64, bias=False)
    layer.weight.data = weight
    multiply, nothing = torch.nn.functional.linear, torch.zeros(64, 64).bfloat16()
    single = multiply(x, w)
    with models.RoundedProducts():
        assert torch.equal(multiply(x, w), single), "single precision is left as it is"
        found = [layer(half), half @ weight.T, torch.matmul(half, weight.T), multiply(half, weight=weight)]
        found += [torch.addmm(nothing, half, weight.T, beta=1), multiply(input=half, weight=weight)]
        found[0].sum().backward()
    for product in found:
        assert product.dtype == torch.bfloat16
        assert torch.equal(product, due) or able
        torch.testing.assert_close(product, due)
    torch.testing.assert_close(half.grad, weight.sum(0).expand(64, 64))


def test_fingerprints_tell_bases_apart(tmp_path):
    one, same, other = (load(tiny.save(tmp_path / name, seed=s))[0] for name, s in (("a", 0), ("b", 0), ("c", 1)))
    assert models.fingerprint(one) == models.fingerprint(same) != models.fingerprint(other)


def test_a_missing_folder_says_what_to_do():
    with pytest.raises(RewiredError, match="models/nowhere.*model.path.*corpora.pocket rebuild"):
        load("models/nowhere")


def test_a_hub_model_that_cannot_be_fetched_names_page_and_variable(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewiredError, match="licence at https://.*/google/gemma-2-2b-it.*HF_TOKEN.*model.path=<folder>"):
        load("google/gemma-2-2b-it")


def test_pickled_weights_are_not_loaded(tmp_path):
    folder = tiny.save(tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RewiredError, match="safetensors"):
        load(folder)


def test_damaged_weights_are_refused(tmp_path):
    folder = tiny.save(tmp_path / "m")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    whole = safetensors.torch.load(content)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(RewiredError, match="cannot be read"):
        load(folder)
    save_file({k: v for k, v in whole.items() if "layers.1.mlp.up" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(RewiredError, match="do not fit.*layers.1.mlp.up"):
        load(folder)


def test_cuda_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RewiredError, match="model.device=cpu"):
        load(tmp_path, **{"model.device": "cuda"})


def test_a_missing_base_of_authors_is_told_by_its_own_key():
    """The same loader, device and precision as for the study's base; another key, and another recipe to mend it."""
    profile = profiles.load("pocket", {"organisms.base": "models/none", "model.dtype": "bfloat16"}).of_authors()
    assert profile.model.dtype == "bfloat16" and profile.model.like is None
    with pytest.raises(RewiredError, match=r"'models/none' \(organisms.base in profile 'pocket'\).*corpora.authors"):
        models.load_base(profile)
