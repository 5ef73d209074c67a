"""The page "Your own model", followed word for word, for models of other families with their own tokenizers."""

import re
import shutil
import subprocess

import others
import pytest
from chapters import CHAPTERS, ROOT, read_by, registry, run

from rewired import profiles

PAGE = (ROOT / "book" / "own_model.md").read_text()
STEPS = [line.strip() for line in re.findall(r"(?m)^ {7}(.*)$", PAGE.partition("## What the model must bring")[0])]
SMALL = re.search(r'SET="(.*?)"', PAGE)[1].split()
MODELS = {"llama": ("action1", "action2"), "qwen2": ("A", "B"), "qwen3": ("A", "B"), "gemma3": ("action1", "action2")}
"""Family -> labels; A and B are single tokens."""
STUDY = list(registry.chosen(CHAPTERS, ["study"]))
"""The chapters that open the profile's model."""


def order(names):
    """The chapters, each after those whose tables it reads."""
    done: list[str] = []
    while left := [name for name in names if name not in done]:
        done += [name for name in left if {*read_by(name)} & {*names} <= {*done, name}]
    return done


@pytest.mark.all
@pytest.mark.parametrize("family", MODELS)
def test_the_page_word_for_word(tmp_path, family):
    """Steps 1 to 4 in a copy of the repository, with the page's own commands; step 5 a notebook at a time."""
    copy = tmp_path / "book"
    for name in ("lib", "config", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(others.folder(family, MODELS[family]), copy / "models" / "mine")
    *steps, last = STEPS
    assert len(steps) == 3 and last == "make book PROFILE=mine"
    labels = f"prompts.labels=[{','.join(MODELS[family])}]"
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(copy / "lib"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for step in steps:
        more = f" --set '{labels}'" if "rewired train" in step else ""
        done = subprocess.run(step + more, shell=True, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (copy / "results" / "mine" / "trials" / "runs" / "utilitarian-1" / "run.json").is_file()

    file, little = copy / "config" / "mine.yaml", ["training.episodes=8", "training.batch_size=20"]
    overrides = [*SMALL, *little, labels, f"model.path={copy / 'models' / 'mine'}", "decisions.samples=40"]
    given = {"profile": str(file), "overrides": overrides}
    p = profiles.load(file, overrides)
    for variant in p.training.variants:
        run("runs/train", tmp_path / "train.ipynb", tmp_path, variant=variant, seed=1, **given)
    for source, target in p.patching.pairs:
        ends = {"source": source, "source_seed": 1, "target": target, "target_seed": 1}
        run("runs/patch_pair", tmp_path / "pair.ipynb", tmp_path, **ends, **given)
    for name in order(STUDY):
        chapter = CHAPTERS[name]
        run(chapter.path, tmp_path / f"{name}.ipynb", tmp_path, **chapter.ci, **given)
        for table in chapter.writes:
            assert (tmp_path / "results" / "mine" / "tables" / f"{table}.parquet").is_file(), table


def test_the_template_is_a_profile_but_for_its_path():
    assert profiles.load("own-model").model.path in PAGE
