"""The real size without a GPU: tensors that live on another device, and half precision."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from chapters import CHAPTERS, ROOT, registry, run
from elsewhere import CUDA, elsewhere, marked
from test_chapters import book, profile, project  # noqa: F401 (fixtures)

from rewired import decisions, elicit, models, profiles, prompts
from rewired.tracing import attention, attribution, lens, patching, probes
from rewired.train import reinforce

sys.path.insert(0, str(ROOT / "tools"))
import lint

STUDY = registry.chosen(CHAPTERS, ["study"])
"""The chapters that open the profile's model."""
FAULT = '''
def next_tokens(model, ids, count=5):
    """The most probable next tokens after ``ids``."""
    logits = model(torch.tensor([ids])).logits[0, -1]
    return logits.float().softmax(-1).topk(count)
'''
ASKED = prompts.scenario_set(per_scenario=1)[:2]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def loaded(base, monkeypatch):
    """A model on a device that is not the default, and its tokenizer."""
    with elsewhere(monkeypatch):
        yield models.load_base(profiles.load("ci", {"model.path": str(base), "model.device": "cuda"}))


def test_a_tensor_made_without_its_device_is_found(loaded):
    """The fault that stopped a chapter on a GPU: by the lint, and when it runs where the default is another device."""
    names: dict = {"torch": torch}
    exec(FAULT, names)
    with pytest.raises(RuntimeError, match="same device"):
        names["next_tokens"](loaded[0], [2, 5, 7])
    assert [maker for _, maker in lint.devices(FAULT)] == ["torch.tensor"]
    mended = FAULT.replace("torch.tensor([ids])", "torch.tensor([ids], device=model.device)")
    exec(mended, names)
    assert marked(names["next_tokens"](loaded[0], [2, 5, 7]).values) and not list(lint.devices(mended))


def test_the_device_elsewhere_behaves_like_one(loaded):
    there, here = torch.ones(3, device=CUDA), torch.ones(3)
    assert there.device == CUDA and (there * 2).device == CUDA and there.cpu().device.type == "cpu"
    assert torch.equal(there.cpu(), here) and there.tolist() == [1, 1, 1] and there[torch.tensor([0])].device == CUDA
    for meets in (lambda: there + here, lambda: torch.stack([here, there]), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="at least two devices"):
            meets()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


def test_every_measurement_runs_elsewhere(loaded, base):
    model, tokenizer = loaded
    plain = models.load_base(profiles.load("ci", {"model.path": str(base)}))[0]
    assert models.fingerprint(model) == models.fingerprint(plain)
    measured = decisions.measure(model, tokenizer, ASKED, 8)
    attribution.contributions(model, tokenizer, ASKED)
    lens.trajectories(model, tokenizer, ASKED)
    attention.pattern(model, tokenizer, ASKED)
    for queries in ("decision", "all"):
        plan = attention.blocks(tokenizer, ASKED, {"other": ["other_move"]})
        attention.knockout(model, tokenizer, ASKED, plan, queries=queries)
    sweep = patching.Sweep(model, *[patching.record(model, tokenizer, ASKED) for _ in range(2)])
    patching.patch_each(sweep)
    patching.attribution_patching(sweep)
    decisions.sample(model, tokenizer, ASKED, 2)
    assert (measured["delta"] - sweep.target.delta).abs().max() < 1e-4


def test_what_is_read_from_texts_is_read_elsewhere(loaded, base):
    """Sampled and forced answers and activations: as where the default device is."""
    model, tokenizer = loaded
    plain = models.load_base(profiles.load("ci", {"model.path": str(base)}))[0]
    texts = [tokenizer(words)["input_ids"] for words in ("one move", "another move then", "points")]
    said = [elicit.sample(each, tokenizer, texts, 4) for each in (model, plain)]
    assert said[0] == said[1]
    forced = [elicit.forced(each, tokenizer, texts, ("action1", "action2")) for each in (model, plain)]
    assert (forced[0] - forced[1]).abs().to_numpy().max() < 1e-5
    spans = [slice(None)] * len(texts)
    read = [probes.activations(each, texts, spans) for each in (model, plain)]
    assert (read[0] - read[1]).abs().max() < 1e-4


@pytest.mark.all
@pytest.mark.parametrize("name", [name for name in STUDY if name != "training"])
def test_a_chapter_runs_elsewhere(name, book, monkeypatch, tmp_path):  # noqa: F811
    """But for the one on training, in which TRL chooses its device itself."""
    for other in STUDY:  # whose tables it may read
        if other != name:
            book.chapter(other)
    with elsewhere(monkeypatch):
        given = {"profile": book.profile, "overrides": [], **CHAPTERS[name].ci}
        run(CHAPTERS[name].path, tmp_path / "out.ipynb", book.project, build=False, **given)


# --- half precision --------------------------------------------------------------------------------------------------

HALF = {"model.dtype": "bfloat16", "training.variants": ["strategic", "deontological"], "training.episodes": 4,
        "training.checkpoint_every": 2, "training.log_every": 2, "training.lora_rank": 2}  # fmt: skip


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> tuple[Path, list[str]]:
    """Two runs of a tiny base in bf16: where they lie, and the overrides that made them."""
    folder = tmp_path_factory.mktemp("half")
    changes = HALF | {"model.path": str(tiny.legal_base())}
    chosen = profiles.load("ci", changes)
    with models.RoundedProducts():
        for variant in chosen.training.variants:
            reinforce.train(chosen, variant, 1, folder / "results" / "ci" / "runs" / f"{variant}-1")
    return folder, [f"{key}={value}" for key, value in changes.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decisions", "logit_lens", "prompts"])
def test_a_chapter_runs_in_half_precision(name, half, tmp_path):
    """Its guard finds every run as training left it, whatever the shapes of its batches."""
    folder, overrides = half
    given = {"profile": "ci", "overrides": overrides, **CHAPTERS[name].ci}
    with models.RoundedProducts():
        run(CHAPTERS[name].path, tmp_path / "out.ipynb", folder, build=False, **given)


@pytest.mark.all
def test_the_whole_book_runs_in_half_precision(tmp_path):
    """Every run, pair and chapter of a small growth in bf16, as on a machine without kernel and workflow."""
    options = ["--tiny", "--out", str(tmp_path), "--set", "model.dtype=bfloat16"]
    options += ["--seconds", "3600", "--within", "3600"]
    command = [sys.executable, str(ROOT / "benchmarks" / "rehearsal.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
