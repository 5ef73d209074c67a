"""README's recipe for one more reward, followed word for word in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LITTLE = {"episodes": 8, "batch_size": 20, "checkpoint_every": 8}
CI = yaml.safe_load((ROOT / "config" / "ci.yaml").read_text())
VARIANTS = (*CI["patching"]["pairs"][0], "care")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy with the reward from README at the end of games.py, and a profile that asks for it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("lib", "config", "notebooks", "models", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    section = (ROOT / "README.md").read_text().split("## Add a reward")[1].split("\n## ")[0]
    games = folder / "lib" / "rewired" / "games.py"
    games.write_text(games.read_text() + "\n\n" + re.search(r"```python\n(.*?)```", section, re.S)[1])
    profile = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.S)[1])
    assert "care" in profile["training"]["variants"]
    small = {"extends": "ci", "training": {"variants": [*VARIANTS], **LITTLE}}
    (folder / "config" / "mine.yaml").write_text(yaml.safe_dump(profile | small))
    return folder


def rewired(project: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project / "lib"), "REWIRED_ROOT": str(project), "REWIRED_BUILD": "1"}
    done = subprocess.run([sys.executable, "-m", "rewired", *words], cwd=project, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CHAPTERS = sorted(file.stem for file in (ROOT / "notebooks").glob("[0-9]*.ipynb"))[1:]
"""All but the first, which is about the base."""


@pytest.fixture(scope="module")
def trained(project):
    """The copy with one run of every variant and the patched pair."""
    for variant in VARIANTS:
        rewired(project, "train", "--profile", "mine", "--variant", variant, "--seed", "1")
    ends = [
        word for name, value in (("source", VARIANTS[0]), ("target", VARIANTS[1])) for word in ("-p", f"{name}={value}")
    ]
    out = str(project / "pair.ipynb")
    rewired(project, "run-notebook", "notebooks/runs/patch_pair.ipynb", "--out", out, "-p", "profile=mine", *ends)
    return project


def mentions(frame: pd.DataFrame, word: str) -> bool:
    """Does any text of the table hold the word?"""
    texts = frame.select_dtypes(exclude=["number", "bool"]).astype(str)
    return bool(texts.apply(lambda column: column.str.contains(rf"\b{word}\b")).any(axis=None))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_shows_the_variant(name, trained):
    """In order: later chapters read the tables of earlier ones."""
    out, given = trained / f"{name}.ipynb", CI["chapters"].get(name, {})
    words = [word for key, value in given.items() for word in ("-p", f"{key}={json.dumps(value)}")]
    rewired(trained, "run-notebook", f"notebooks/{name}.ipynb", "--out", str(out), "-p", "profile=mine", *words)
    glued = [o for cell in json.loads(out.read_text())["cells"] for o in cell.get("outputs", [])]
    told = " ".join(json.dumps(o["data"]) for o in glued if "scrapbook" in o.get("metadata", {}))
    assert re.search(r"\bcare\b", told), f"{name} says and draws nothing about the new variant"
    if name == "15_verdicts":
        return  # a table of claims and not of models
    files = sorted((trained / "results" / "mine" / "tables").glob(f"{name}*.parquet"))
    listed = [file.stem for file in files if mentions(pd.read_parquet(file), "care")]
    assert files and listed, f"none of {name}'s tables lists the new variant"
