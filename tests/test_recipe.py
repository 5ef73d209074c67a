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


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy with the reward from README at the end of games.py, and a profile that asks for it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("lib", "config", "notebooks", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    section = (ROOT / "README.md").read_text().split("## Add a reward")[1].split("\n## ")[0]
    games = folder / "lib" / "rewired" / "games.py"
    games.write_text(games.read_text() + "\n\n" + re.search(r"```python\n(.*?)```", section, re.S)[1])
    profile = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.S)[1])
    assert "care" in profile["training"]["variants"]
    small = {"extends": "ci", "training": {"variants": ["strategic", "care"], **LITTLE}}
    (folder / "config" / "mine.yaml").write_text(yaml.safe_dump(profile | small))
    return folder


def rewired(project: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project / "lib"), "REWIRED_ROOT": str(project), "REWIRED_BUILD": "1"}
    done = subprocess.run([sys.executable, "-m", "rewired", *words], cwd=project, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LISTING = {
    "02_training": ["02_training", "02_training_departures", "02_training_checkpoints"],
    "03_prompts": ["03_prompts"],
    "04_decisions": ["04_decisions", "04_decisions_agreement"],
    "05_behaviour": ["05_behaviour", "05_behaviour_tournament", "05_behaviour_regret", "05_behaviour_summary"],
}
"""The cheap chapters and their tables that list variants."""


@pytest.mark.slow
def test_the_recipe_trains_a_variant_that_the_chapters_show(project):
    for variant in ("strategic", "care"):  # differences need another one
        rewired(project, "train", "--profile", "mine", "--variant", variant, "--seed", "1")
    for name, tables in LISTING.items():
        out = project / f"{name}.ipynb"
        more = ["-p", "plays=20"] if name == "05_behaviour" else []
        rewired(project, "run-notebook", f"notebooks/{name}.ipynb", "--out", str(out), "-p", "profile=mine", *more)
        glued = [o for cell in json.loads(out.read_text())["cells"] for o in cell.get("outputs", [])]
        told = " ".join(json.dumps(o["data"]) for o in glued if "scrapbook" in o.get("metadata", {}))
        assert "care" in told, f"{name} says nothing about the new variant"
        for table in tables:
            frame = pd.read_parquet(project / "results" / "mine" / "tables" / f"{table}.parquet")
            column = next(c for c in ("model", "variant") if c in frame)
            assert "care" in set(frame[column]), f"{table} does not list the new variant: {set(frame[column])}"
