"""A grown base is an oracle: what is known of the small model comes out of the large one, and nothing of what was
added."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rehearsal import grow
from rewired import decisions, models, profiles, prompts
from rewired.__main__ import app
from rewired.errors import RewiredError
from rewired.tracing import patching

POCKET = profiles.ROOT / "models" / "pocket"
LARGER = {"num_hidden_layers": 12, "hidden_size": 192, "head_dim": 32, "intermediate_size": 400, "vocab_size": 1200}
ASKED = [prompt for prompt in prompts.scenario_set(per_scenario=1) if prompt.state in ("CD", "DD")][:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shipped base, another one whose layers are a little different, and both grown, in fp32 and in bf16."""
    folder = tmp_path_factory.mktemp("bases")
    for name in ("one", "other"):
        (folder / name).mkdir()
        for file in POCKET.iterdir():
            (folder / name / file.name).symlink_to(file)
    random, weights = torch.Generator().manual_seed(0), load_file(POCKET / "model.safetensors")
    for name, value in weights.items():
        if "proj" in name:
            value += 0.3 * value.std() * torch.randn(value.shape, generator=random)
    (folder / "other" / "model.safetensors").unlink()
    save_file(weights, folder / "other" / "model.safetensors", metadata={"format": "pt"})
    for name in ("one", "other"):
        for dtype in ("float32", "bfloat16"):
            grow.grow(folder / name, folder / f"{name}-{dtype}", dtype=dtype, **LARGER)
    return folder


def load(folder: Path, dtype: str = "float32"):
    return models.load_base(profiles.load("pocket", {"model.path": str(folder), "model.dtype": dtype}))


def sweep(one: Path, other: Path, dtype: str):
    """(patches, controls) of all heads and MLPs, from one model into the other; a failed control raises."""
    recordings = [patching.record(*load(path, dtype), ASKED) for path in (one, other)]
    return patching.patch_each(patching.Sweep(load(other, dtype)[0], *recordings), draws=1)


def test_a_grown_base_decides_like_the_small_one(folder):
    tables = [decisions.measure(*load(folder / name), ASKED, forms=True) for name in ("one", "one-float32")]
    for column, close in (("p_defect", 1e-4), ("delta", 1e-3), ("delta_raw", 1e-3), ("legal_mass", 1e-4)):
        assert (tables[0][column] - tables[1][column]).abs().max() < close, column


def test_every_patch_has_the_effect_that_it_has_in_the_small_model(folder):
    small, _ = sweep(folder / "one", folder / "other", "float32")
    large, _ = sweep(folder / "one-float32", folder / "other-float32", "float32")
    places = json.loads((folder / "one-float32" / "grown.json").read_text())["layers"]
    assert places == list(range(8)), "one layer after the other: no odd step but 1 fits"
    key = ["layer", "head", "prompt_id"]
    both = small.merge(large, on=key, suffixes=("", "_large"))
    assert both["effect"].abs().max() > 0.05 and len(both) == 72 * len(ASKED)
    assert (both["effect"] - both["effect_large"]).abs().max() < 1e-3
    added = large[~large["layer"].isin(places)]
    assert len(added) == 36 * len(ASKED) and (added["effect"] == 0).all()


@pytest.mark.all
def test_in_half_precision_the_two_are_as_far_apart_as_rounding_allows(folder):
    small, large = (load(folder / name, "bfloat16") for name in ("one", "one-bfloat16"))
    deltas = [decisions.measure(*loaded, ASKED, forms=False)["delta"] for loaded in (small, large)]
    assert (deltas[0] - deltas[1]).abs().max() < decisions.tolerance(large[0]) == 0.1
    patches, controls = sweep(folder / "one-bfloat16", folder / "other-bfloat16", "bfloat16")
    assert (patches.loc[patches["layer"] > 7, "effect"] == 0).all() and len(controls)
    exact, _ = sweep(folder / "one", folder / "other", "float32")
    key = ["layer", "head", "prompt_id"]
    both = exact.merge(patches, on=key, suffixes=("", "_half"))
    assert (both["effect"] - both["effect_half"]).abs().max() < 0.1


def test_layers_stand_apart_by_an_odd_number_and_alternate_as_before(tmp_path):
    grow.grow(POCKET, tmp_path / "deep", num_hidden_layers=30, dtype="float32")
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    assert json.loads((tmp_path / "deep" / "grown.json").read_text())["layers"] == [3 * i for i in range(8)]
    assert config["layer_types"][:4] == ["sliding_attention", "full_attention"] * 2
    deltas = [decisions.measure(*load(path), ASKED[:1], forms=False)["delta"] for path in (POCKET, tmp_path / "deep")]
    assert np.abs(deltas[0] - deltas[1]).max() < 1e-4


def test_what_cannot_be_grown_is_refused_in_a_paragraph(tmp_path):
    wrong = [({"num_hidden_layers": 4}, "num_hidden_layers = 8 does not fit"), ({"head_dim": 24}, "whole multiple")]
    for sizes, told in [*wrong, ({"num_attention_heads": 16}, "numbers of heads")]:
        with pytest.raises(RewiredError, match=told):
            grow.grow(POCKET, tmp_path / "out", **sizes)
    with pytest.raises(RewiredError, match="Did you mean 'gemma-2-2b'"):
        grow.grow(POCKET, tmp_path / "out", "gemma-2-2")
    with pytest.raises(RewiredError, match="There is no model in"):
        grow.grow(tmp_path, tmp_path / "out", "gemma-2-2b")
    assert not (tmp_path / "out").exists()
    ended = CliRunner().invoke(app, ["grow", str(tmp_path / "out"), "--width", "64"])
    assert isinstance(ended.exception, RewiredError)
    profile = profiles.load("rehearsal", {"model.path": str(tmp_path / "none")})
    with pytest.raises(RewiredError, match=r"python -m rewired grow --like gemma-2-2b .*none. makes it"):
        models.load_base(profile)
