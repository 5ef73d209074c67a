"""The book's chapters in a copy of the project that follows README's recipe for one more reward, word for word.

Every variant, the new one too, is trained for a few episodes with one seed; every chapter is executed once."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from chapters import CHAPTERS, LITTLE, READS, ROOT, SAMPLES, glued, outputs, pasted, run, source
from filelock import FileLock

from rewired import decisions, games, models, profiles, training, traps, verdicts
from rewired.errors import RewiredError

SECTION = (ROOT / "README.md").read_text().split("## Add a reward")[1].split("\n## ")[0]
PAIR = yaml.safe_load((ROOT / "config" / "ci.yaml").read_text())["patching"]["pairs"][0]
LINES = re.search(r"```python\n(.*?)```", SECTION, re.S)[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy with the reward from README at the end of games.py, and a profile that asks for it. The processes that
    share the tests share the copy too: whatever is made in it is made by one, and under a lock."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "copy"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            follow_the_recipe(folder)
    return folder


def follow_the_recipe(folder: Path):
    for name in ("lib", "config", "notebooks", "models", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    library = folder / "lib" / "rewired" / "games.py"
    library.write_text(library.read_text() + "\n\n" + LINES)
    profile = yaml.safe_load(re.search(r"```yaml\n(.*?)```", SECTION, re.S)[1])
    assert "care" in profile["training"]["variants"]
    small = {"extends": "ci", "training": profile["training"] | LITTLE, "decisions": {"samples": SAMPLES}}
    (folder / "config" / "mine.yaml").write_text(yaml.safe_dump(profile | small))


@pytest.fixture(scope="module")
def profile(project) -> Iterator[profiles.Profile]:
    """The copy's profile in this process, which learns of the reward only by running README's lines."""
    exec(LINES, {"reward": games.reward})
    yield profiles.load(project / "config" / "mine.yaml")
    del games.REWARDS["care"]


class Book:
    """The copy with its runs and its patched pair; a chapter is executed when first asked for, after those it reads."""

    def __init__(self, project: Path, profile: profiles.Profile):
        self.project, self.results = project, project / "results" / "mine"
        with FileLock(f"{project}.lock"):
            for variant in profile.training.variants:
                if not (self.results / "runs" / f"{variant}-1").is_dir():
                    self.train(profile, variant)
        self.execute("runs/patch_pair", source=PAIR[0], target=PAIR[1])

    def train(self, profile: profiles.Profile, variant: str):
        if variant != "care":
            training.train(profile, variant, 1, self.results / "runs" / f"{variant}-1")
            return
        variables = {"PYTHONPATH": str(self.project / "lib"), "REWIRED_ROOT": str(self.project), "REWIRED_BUILD": "1"}
        command = [sys.executable, "-m", "rewired", "train", "--profile", "mine", "--variant", variant]
        subprocess.run(command, cwd=self.project, env=os.environ | variables, check=True, capture_output=True)

    def execute(self, name: str, **given) -> dict:
        out = self.project / f"{name.replace('/', '-')}.executed.json"
        with FileLock(f"{out}.lock"):
            if not out.is_file():
                executed = run(name, out.with_suffix(".ipynb"), self.project, self.project, profile="mine", **given)
                out.write_text(json.dumps(executed))
        return json.loads(out.read_text())

    def chapter(self, name: str) -> dict:
        for other in READS.get(name, []):
            self.chapter(other)
        return self.execute(name, **CHAPTERS[name])

    def trial(self, name: str, out: Path, *overrides: str) -> dict:
        """What the chapter hands to its text when a reader runs it with overrides."""
        given = {"profile": "mine", "overrides": [*overrides], **CHAPTERS[name]}
        return glued(run(name, out, self.project, self.project, build=False, **given))

    def table(self, name: str) -> pd.DataFrame:
        return profiles.read_table(self.results / "tables" / f"{name}.parquet", "mine")

    def copy(self, root: Path) -> Path:
        """Its results in another results root, to be tampered with."""
        unfinished = shutil.ignore_patterns("*.partial-*", "figures", "trials")
        return shutil.copytree(self.results, root / "results" / "mine", ignore=unfinished)


@pytest.fixture(scope="module")
def book(project, profile) -> Book:
    return Book(project, profile)


def mentions(frame: pd.DataFrame, word: str) -> bool:
    """Does any text of the table hold the word?"""
    texts = frame.select_dtypes(exclude=["number", "bool"]).astype(str)
    return bool(texts.apply(lambda column: column.str.contains(rf"\b{word}\b")).any(axis=None))


# --- every chapter ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs(name, book):
    executed = book.chapter(name)
    assert (book.results / "tables" / f"{name}.parquet").is_file()
    figures = book.results / "figures"
    drawn = sorted(file.stem for file in figures.glob(f"{name}_*.svg"))
    assert drawn == sorted(file.stem for file in figures.glob(f"{name}_*.png")) != []
    made = set(glued(executed))
    prose = "\n\n".join(source(cell) for cell in executed["cells"] if cell["cell_type"] == "markdown")
    assert {key for document, key in pasted(prose) if not document} <= made
    pages = "\n".join(file.read_text() for file in (ROOT / "book").glob("*.md"))
    assert {key for document, key in pasted(pages) if document.endswith(f"{name}.ipynb")} <= made
    assert not any("Traceback" in output.get("text", "") for output in outputs(executed))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHAPTERS][1:])  # the first is about the base
def test_a_chapter_shows_the_new_variant(name, book):
    told = " ".join(glued(book.chapter(name)).values())
    assert re.search(r"\bcare\b", told), f"{name} says and draws nothing about the new variant"
    if name == "15_verdicts":
        return  # a table of claims and not of models
    files = sorted((book.results / "tables").glob(f"{name}*.parquet"))
    listed = [file.stem for file in files if mentions(pd.read_parquet(file), "care")]
    assert files and listed, f"none of {name}'s tables lists the new variant"


def test_every_chapter_is_here():
    assert sorted(CHAPTERS) == sorted(file.stem for file in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


# --- fewer variants, another reward ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variants"), [("04_decisions", ["utilitarian"]), ("07_attribution", ["deontological", "utilitarian"])]
)
def test_a_chapter_makes_do_with_few_variants(book, tmp_path, name, variants):
    """One is enough for what is measured of each, two for what compares; the strategic one may be missing."""
    told = str(book.trial(name, tmp_path / "out.ipynb", f"training.variants=[{', '.join(variants)}]"))
    assert all(variant in told for variant in variants) and "hybrid" not in told


@pytest.mark.slow
def test_chapter_2_tells_of_a_change_of_reward(book, tmp_path):
    changed = ["training.first_reward=strategic", "training.first_episodes=4"]
    few = "training.variants=[strategic, utilitarian]"
    told = book.trial("02_training", tmp_path / "out.ipynb", few, *changed)["told_paid"]
    assert "For 4 of 8 episodes every run was paid the strategic reward" in told
    assert "The utilitarian runs defect after CC, CD, DC, DD" in told
    assert "For the strategic runs the change of reward asks for no other move" in told


# --- traps: their right numbers are the chapters' --------------------------------------------------------------------


def right_numbers(table) -> dict[str, dict[str, tuple[float, float]]]:
    """{trap: {subject: (wrong or NaN where no table holds it, right)}} from the main chapters' tables alone."""
    decisions, votes, patches = table("04_decisions"), table("07_attribution"), table("08_patching")
    mean = decisions.groupby("model").agg(
        wrong=("delta_single", lambda x: (x > 0).mean()),
        right=("delta", lambda x: (x > 0).mean()),
        p=("p_defect", "mean"),
    )
    due = {"position": {m: (r.wrong, r.right) for m, r in mean.iterrows()}}
    due["merge"] = {m: (np.nan, p) for m, p in mean["p"].items() if m != "base"}
    heads = votes[votes["kind"] == "head"].groupby(["model", "layer", "component"])["contribution"].mean()
    loudest = [heads[m].abs().idxmax() for m in mean.index]
    due["heads"] = {f"{c} of the {m} model": (heads[m, layer].mean(), heads[m, layer, c])
                    for m, (layer, c) in zip(mean.index, loudest, strict=True)}  # fmt: skip
    pairs = patches["source"] + " → " + patches["target"]
    one = patches[patches["kind"].isin(["head", "mlp"])]
    effects = one.groupby([pairs, "component"])["effect"].mean()
    strongest = effects.abs().groupby(level=0).idxmax()
    due["patch"] = {f"{c} ({pair})": (np.nan, effects[pair, c]) for pair, c in strongest}
    last = patches[(patches["kind"] == "resid") & (patches["layer"] == patches["layer"].max())]
    closed = (last["effect"] / (last["delta_source"] - last["delta_target"])).groupby(pairs).median()
    due["control"] = {pair: (np.nan, share) for pair, share in closed.items()}
    due["copies"] = {r.row: (np.nan, r[-1]) for r in table("09_attention_tests")[["row", "p, adjusted"]].itertuples()}
    shares, likeness = table("10_interactions_shares"), table("11_weights_likeness")
    shares = shares[(shares["threshold"] == 0.3) & (shares["a"] == "deontological") & (shares["b"] == "utilitarian")]
    due["threshold"] = {
        f"relabelled models ({r.measure})": (r.share, max(r.share - r.null, 0)) for r in shares.itertuples()
    }
    norms = likeness[likeness["kind"] == "between variants"].groupby("pair")[["norms", "updates"]].mean()
    due["norms"] = {pair: tuple(r) for pair, r in norms.iterrows()}
    counts = table("08_patching_morals").groupby("scenario")[["p", "p_adjusted"]].agg(lambda p: (p < 0.05).sum())
    due["tests"] = {scenario: tuple(r) for scenario, r in counts.iterrows()}
    return due


@pytest.mark.slow
def test_the_right_numbers_of_the_traps_are_their_chapters(book):
    book.chapter("14_traps")
    staged, due = book.table("14_traps"), right_numbers(book.table)
    assert list(dict.fromkeys(staged["trap"])) == list(traps.TRAPS) and due.keys() == set(traps.TRAPS)
    for trap, numbers in due.items():
        rows = staged[staged["trap"] == trap].set_index("subject")
        assert set(rows.index) == set(numbers), trap
        for subject, (wrong, right) in numbers.items():
            assert rows.loc[subject, "right"] == pytest.approx(right, abs=1e-5), (trap, subject)
            assert np.isnan(wrong) or rows.loc[subject, "wrong"] == pytest.approx(wrong, abs=1e-5), (trap, subject)
        holds = traps.RULES[traps.TRAPS[trap].rule].holds
        assert list(rows["harm"]) == [holds(r.wrong, r.right) for r in rows.itertuples()]
        assert (book.results / "tables" / f"{rows['source'].iloc[0]}.parquet").is_file()


@pytest.mark.slow
def test_traps_on_tables_of_other_runs_stop(book, tmp_path):
    for name in READS["14_traps"]:
        book.chapter(name)
    file, moved = book.copy(tmp_path) / "tables" / "04_decisions.parquet", book.table("04_decisions")
    profiles.write_table(moved.assign(delta=moved["delta"] + 0.01), file, "mine")
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        run("14_traps", tmp_path / "out.ipynb", tmp_path, book.project, profile="mine")
    assert refused.value.ename == "RewiredError" and "04_decisions" in refused.value.evalue


# --- verdicts: they follow the runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_verdicts_follow_the_runs_and_the_guard_the_adapters(book, profile, tmp_path, monkeypatch):
    """One run's whole folder in another's place changes the verdicts; its adapter alone stops the book."""
    for name in READS["15_verdicts"]:
        book.chapter(name)
    here, register = book.results, verdicts.load()
    before = verdicts.judge(register, profile, here).set_index("id")
    alone = before[before["here"] == verdicts.UNTESTED]
    assert {"variants_separate", "rewiring", "similar"} <= set(alone.index), "one seed a variant is no yardstick"
    assert alone["reason"].str.len().min() > 10 and before.loc["strategic_defects", "here"] != verdicts.UNTESTED

    other = book.copy(tmp_path)
    monkeypatch.setenv("REWIRED_ROOT", str(tmp_path))
    target = other / "runs" / "strategic-1"
    shutil.rmtree(target / "adapter")
    shutil.copytree(here / "runs" / "utilitarian-1" / "adapter", target / "adapter")
    with pytest.raises(papermill.PapermillExecutionError, match="not the one the run wrote"):
        run("04_decisions", tmp_path / "out.ipynb", tmp_path, book.project, profile="mine")
    about, giver = (
        json.loads((here / "runs" / name / "run.json").read_text()) for name in ("strategic-1", "utilitarian-1")
    )
    (target / "run.json").write_text(json.dumps(about | {"adapter": giver["adapter"]}))  # as if nobody would look
    with pytest.raises(RewiredError, match="is not the model that was trained"):
        decisions.guard(models.Study(profile), "strategic", 1)

    shutil.rmtree(target)
    shutil.copytree(here / "runs" / "utilitarian-1", target)
    run("04_decisions", tmp_path / "out.ipynb", tmp_path, book.project, profile="mine")
    after = verdicts.judge(register, profile, other).set_index("id")
    changed = set(before.index[before["right"].sub(after["right"]).abs() > 1e-9])
    assert "strategic_defects" in changed and "deontological_cooperates" not in changed
    assert {before.loc[name, "chapter"] for name in changed} == {"04_decisions"}, "nothing else was measured again"
    assert any((before.loc[c, ["measuring", "here"]] != after.loc[c, ["measuring", "here"]]).any() for c in changed)
