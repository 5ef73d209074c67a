"""The book's chapters in a project that follows the recipe for one more reward, word for word.

Its bases are small ones (`bases`). Every variant, the new one too, is trained for a few episodes with one seed; every
chapter is executed once, with the parameters that its metadata keeps for a quick build. The new variant is trained in a
copy of the project; the chapters run in the tests' own processes, which learn of the reward from the same lines."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path

import bases
import numpy as np
import pandas as pd
import pytest
import yaml
from chapters import CHAPTERS, LITTLE, ROOT, SAMPLES, glued, outputs, pasted, read_by, registry, run, source
from filelock import FileLock, Timeout

from corpora.motives import settings as motives
from corpora.organisms import run as growing
from corpora.organisms import settings as organisms
from rewired import claims, decisions, games, models, profiles
from rewired.errors import RewiredError
from rewired.store import read_table, write_table

SECTION = (ROOT / "README.md").read_text().split("## Add a reward")[1].split("\n## ")[0]
PAIR = yaml.safe_load((ROOT / "config" / "ci.yaml").read_text())["patching"]["pairs"][0]
LINES = re.search(r"```python\n(.*?)```", SECTION, re.S)[1]
ALL = list(TopologicalSorter({name: read_by(name) for name in CHAPTERS}).static_order())
"""Those that others read come first: processes that share the tests then hardly wait for each other."""


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
    (folder / "bases").mkdir(parents=True)
    for name in ("lib", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    library = folder / "lib" / "rewired" / "games.py"
    library.write_text(library.read_text() + "\n\n" + LINES)
    profile = yaml.safe_load(re.search(r"```yaml\n(.*?)```", SECTION, re.S)[1])
    assert "care" in profile["training"]["variants"]
    small = {"extends": "ci", "training": profile["training"] | LITTLE, "decisions": {"samples": SAMPLES}}
    bases_of = {name: str(folder / "bases" / name) for name in ("pocket", "authors")}
    small |= {"model": {"path": bases_of["pocket"]}, "motives": {"questions": 1}}
    small |= {"organisms": {"base": bases_of["authors"], "prompts": 3, "steps": 2}}
    (folder / "config" / "mine.yaml").write_text(yaml.safe_dump(profile | small))


@contextlib.contextmanager
def little_training() -> Iterator[None]:
    """As `LITTLE`, for organisms and collections: every one of them, with a few texts and steps."""
    load, small = organisms.load, motives.Collection.small

    def few_texts(name):
        organism = load(name)
        return organism.model_copy(update={"samples": min(organism.samples, 24), "epochs": 1, "paid_steps": 2})

    def few_steps(collection):
        quick, few = small(collection), {"steps": 2, "batch": 2}
        sets = {name: each.model_copy(update={"n": 8}) for name, each in quick.sets.items()}
        tunings = {
            name: how.model_copy(update=few | {"kept": how.kept and (1,)}) for name, how in quick.tunings.items()
        }
        runs = {name: how.model_copy(update=few | {"every": 1}) for name, how in quick.hacking.items()}
        return quick.model_copy(update={"sets": sets, "tunings": tunings, "hacking": runs})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(organisms, "load", few_texts)
        patch.setattr(motives.Collection, "small", few_steps)
        patch.setattr(growing, "BATCH", 4)
        patch.setattr(growing, "WATCHED", 3)
        yield


@pytest.fixture(scope="module")
def profile(project) -> Iterator[profiles.Profile]:
    """The copy's profile in this process, which learns of the reward only by running README's lines."""
    exec(LINES, {"reward": games.reward})
    yield profiles.load(project / "config" / "mine.yaml")
    del games.REWARDS["care"]


OPENED: list[str] | None = None
"""The files that are opened while a notebook runs; None when nobody asks."""


def _note(event: str, arguments: tuple):
    if OPENED is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        OPENED.append(os.fspath(arguments[0]))


sys.addaudithook(_note)


def share(jobs: Iterable[Callable]) -> None:
    """Do them all. What another process is at (`Timeout`) is left for later, and waited for when nothing else is left.

    A job takes the seconds that it may wait; -1: as long as it takes."""
    waiting = list(jobs)
    while waiting:
        job = waiting.pop(0)
        try:
            job(timeout=0.2 if waiting else -1)
        except Timeout:
            waiting.append(job)


class Book:
    """The project with its runs and its patched pair; a chapter is executed when first asked for, after those it
    reads."""

    def __init__(self, project: Path, profile: profiles.Profile):
        self.project, self.results = project, project / "results" / "mine"
        self.profile = str(project / "config" / "mine.yaml")
        share(partial(bases.teach, name, project / "bases" / name) for name in bases.KINDS)
        share(partial(self.train, variant) for variant in profile.training.variants)

    def train(self, variant: str, timeout: float = -1):
        if variant != "care":
            self.execute("runs/train", f"train-{variant}", timeout, variant=variant, seed=1)
            return
        variables = {"PYTHONPATH": str(self.project / "lib"), "REWIRED_ROOT": str(self.project), "REWIRED_BUILD": "1"}
        command = [sys.executable, "-m", "rewired", "train", "--profile", "mine", "--variant", variant]
        with FileLock(f"{self.project}-{variant}.lock", timeout):
            if not (self.results / "runs" / f"{variant}-1").is_dir():
                subprocess.run(command, cwd=self.project, env=os.environ | variables, check=True, capture_output=True)

    def execute(self, path: str, name: str = "", timeout: float = -1, **given) -> dict:
        """The executed notebook; its metadata list the files of the results that it opened, without their folder."""
        global OPENED
        out = self.project / f"{name or path.replace('/', '-')}.executed.json"
        with FileLock(f"{out}.lock", timeout):
            if not out.is_file():
                OPENED = []
                with little_training():
                    executed = run(path, out.with_suffix(".ipynb"), self.project, profile=self.profile, **given)
                ours = [file for file in OPENED if Path(file).is_relative_to(self.results)]
                OPENED = None
                executed["metadata"]["opened"] = sorted({str(Path(file).relative_to(self.results)) for file in ours})
                out.write_text(json.dumps(executed))
        return json.loads(out.read_text())

    def chapter(self, name: str, timeout: float = -1) -> dict:
        jobs: list[Callable] = [partial(self.chapter, other) for other in read_by(name)]
        if "pairs" in CHAPTERS[name].needs:
            jobs.append(partial(self.execute, "runs/patch_pair", source=PAIR[0], target=PAIR[1]))
        if "organisms" in CHAPTERS[name].needs:
            for organism in profiles.load(self.profile).organisms.names:
                jobs.append(partial(self.execute, "runs/organism", f"organism-{organism}", organism=organism))
        if "motives" in CHAPTERS[name].needs:
            for collection in profiles.load(self.profile).motives.collections:
                jobs.append(partial(self.execute, "runs/motive", f"motive-{collection}", collection=collection))
        share(jobs)
        return self.execute(CHAPTERS[name].path, timeout=timeout, **CHAPTERS[name].ci)

    def trial(self, name: str, out: Path, *overrides: str) -> dict:
        """What the chapter hands to its text when a reader runs it with overrides."""
        given = {"profile": self.profile, "overrides": [*overrides], **CHAPTERS[name].ci}
        return glued(run(CHAPTERS[name].path, out, self.project, build=False, **given))

    def table(self, name: str) -> pd.DataFrame:
        return read_table(self.results / "tables" / f"{name}.parquet", "mine")

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
@pytest.mark.parametrize("name", ALL)
def test_a_chapter_runs(name, book):
    executed = book.chapter(name)
    figures = book.results / "figures"
    drawn = sorted(file.stem for file in figures.glob(f"{name}_*.svg"))
    assert drawn == sorted(file.stem for file in figures.glob(f"{name}_*.png")) != []
    for file in figures.glob(f"{name}_*.svg"):
        smallest = re.search(r"smallest text: ([\d.]+) px of 342", file.read_text())
        assert float(smallest[1]) >= 9, f"{file.name} has text that a telephone cannot show"
    made = set(glued(executed))
    prose = "\n\n".join(source(cell) for cell in executed["cells"] if cell["cell_type"] == "markdown")
    assert {key for document, key in pasted(prose) if not document} <= made
    pages = "\n".join(file.read_text() for file in (ROOT / "book").glob("*.md"))
    assert {key for document, key in pasted(pages) if document.endswith(f"{name}.ipynb")} <= made
    assert not any("Traceback" in str(output.get("text", "")) for output in outputs(executed))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_chapter_keeps_to_its_metadata(name, book):
    """It writes the tables that its notebook's metadata name, and opens no table, run or pair that they do not."""
    opened = [Path(file) for file in book.chapter(name)["metadata"]["opened"]]
    written = {match[1] for file in opened if (match := re.match(r"\.(\w+)\.partial-\d+\.parquet$", file.name))}
    read = {file.stem for file in opened if file.parts[0] == "tables" and not file.name.startswith(".")}
    chapter = CHAPTERS[name]
    assert written == set(chapter.writes)
    assert read - written == set(registry.tables_read(chapter, CHAPTERS))
    assert {file.parts[0] for file in opened} & set(registry.NEEDS) == set(chapter.needs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if "runs" in CHAPTERS[name].needs])
def test_a_chapter_shows_the_new_variant(name, book):
    shown = " ".join(glued(book.chapter(name)).values())
    assert re.search(r"\bcare\b", shown), f"{name} says and draws nothing about the new variant"
    listed = [table for table in CHAPTERS[name].writes if mentions(book.table(table), "care")]
    assert listed, f"none of {name}'s tables lists the new variant"


def test_chapters_of_claims_write_their_numbers():
    asked = {claim.chapter for claim in claims.load().claims}
    assert asked == {name for name, chapter in CHAPTERS.items() if f"{name}_claims" in chapter.writes}


# --- fewer variants, another reward ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variants"), [("decisions", ["utilitarian"]), ("attribution", ["deontological", "utilitarian"])]
)
def test_a_chapter_makes_do_with_few_variants(book, tmp_path, name, variants):
    """One is enough for what is measured of each, two for what compares; the strategic one may be missing."""
    shown = str(book.trial(name, tmp_path / "out.ipynb", f"training.variants=[{', '.join(variants)}]"))
    assert all(variant in shown for variant in variants) and not re.search(r"hybrid|\bcare\b", shown)


@pytest.mark.slow
def test_the_chapter_on_training_tells_of_a_change_of_reward(book, tmp_path):
    changed = ["training.first_reward=strategic", "training.first_episodes=2"]
    few = "training.variants=[strategic, utilitarian]"
    shown = " ".join(book.trial("training", tmp_path / "out.ipynb", few, *changed).values())
    assert re.search(r"2 of (the )?4 episodes.*strategic reward", shown)


# --- traps: their right numbers are the chapters' --------------------------------------------------------------------


MERGED_IN = ("bfloat16", "4 bit")


def right_numbers(table) -> dict[str, dict[str, tuple[float, float]]]:
    """{trap: {subject: (wrong or NaN where no table holds it, right)}} from the main chapters' tables alone."""
    decisions, votes, patches = table("decisions"), table("attribution"), table("patching")
    mean = decisions.groupby("model").agg(
        wrong=("delta_single", lambda x: (x > 0).mean()),
        right=("delta", lambda x: (x > 0).mean()),
        p=("p_defect", "mean"),
    )
    due = {"position": {m: (r.wrong, r.right) for m, r in mean.iterrows()}}
    due["merge"] = {
        f"{m} in {precision}": (np.nan, p) for m, p in mean["p"].items() if m != "base" for precision in MERGED_IN
    }
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
    due["copies"] = {r.row: (np.nan, r[-1]) for r in table("attention_tests")[["row", "p, adjusted"]].itertuples()}
    shares, likeness = table("interactions_shares"), table("weights_likeness")
    shares = shares[(shares["threshold"] == 0.3) & (shares["a"] == "deontological") & (shares["b"] == "utilitarian")]
    recipe = table("interactions_recipe").assign(measure="the study's, on its prompts")
    shares = pd.concat([shares, recipe[recipe["threshold"] == 0.3]])
    shares["measure"] = shares["measure"].replace("vote", "contribution")
    due["threshold"] = {
        f"relabelled models ({r.measure})": (r.share, max(r.share - r.null, 0)) for r in shares.itertuples()
    }
    norms = likeness[likeness["kind"] == "between variants"].groupby("pair")[["norms", "updates"]].mean()
    due["norms"] = {pair: tuple(r) for pair, r in norms.iterrows()}
    counts = table("patching_morals").groupby("scenario")[["p", "p_adjusted"]].agg(lambda p: (p < 0.05).sum())
    due["tests"] = {scenario: tuple(r) for scenario, r in counts.iterrows()}
    return due


# When a reader of the wrong number concludes otherwise; the words stand in book/traps.yaml.
HARM = {
    "points": lambda wrong, right: abs(wrong - right) > 0.05,
    "half": lambda wrong, right: wrong * right < 0 or abs(wrong - right) > abs(right) / 2,
    "level": lambda wrong, right: (wrong <= 0.05) != (right <= 0.05),
    "alike": lambda wrong, right: (wrong >= 0.9) != (right >= 0.9),
}


@pytest.mark.slow
def test_the_right_numbers_of_the_traps_are_their_chapters(book):
    book.chapter("traps")
    staged, due = book.table("traps"), right_numbers(book.table)
    words = yaml.safe_load((ROOT / "book" / "traps.yaml").read_text())
    assert set(words["rules"]) == set(HARM)
    assert list(dict.fromkeys(staged["trap"])) == list(words["traps"]) and due.keys() == set(words["traps"])
    for trap, numbers in due.items():
        rows = staged[staged["trap"] == trap].set_index("subject")
        assert set(rows.index) == set(numbers), trap
        for subject, (wrong, right) in numbers.items():
            assert rows.loc[subject, "right"] == pytest.approx(right, abs=1e-5), (trap, subject)
            assert np.isnan(wrong) or rows.loc[subject, "wrong"] == pytest.approx(wrong, abs=1e-5), (trap, subject)
        harmful = HARM[words["traps"][trap]["rule"]]
        assert list(rows["harm"]) == [harmful(r.wrong, r.right) for r in rows.itertuples()]
        assert words["traps"][trap]["table"] in registry.tables_read(CHAPTERS["traps"], CHAPTERS)


@pytest.mark.slow
def test_traps_on_tables_of_other_runs_stop(book, tmp_path):
    for name in read_by("traps"):
        book.chapter(name)
    file, moved = book.copy(tmp_path) / "tables" / "decisions.parquet", book.table("decisions")
    write_table(moved.assign(delta=moved["delta"] + 0.01), file, "mine")
    with pytest.raises(RewiredError, match="decisions"):
        run("study/traps", tmp_path / "out.ipynb", tmp_path, profile=book.profile)


# --- verdicts: they follow the runs ----------------------------------------------------------------------------------


def judged(results: Path) -> pd.DataFrame:
    """The verdicts by the chapters' numbers in these results, by claim."""
    tables = [table for chapter in CHAPTERS.values() for table in chapter.writes if table.endswith("_claims")]
    numbers = pd.concat([read_table(results / "tables" / f"{table}.parquet", "mine") for table in tables])
    return claims.judge(claims.load(), numbers).set_index("id")


@pytest.mark.slow
def test_verdicts_follow_the_runs_and_the_guard_the_adapters(book, profile, tmp_path, monkeypatch):
    """One run's whole folder in another's place changes the verdicts; its adapter alone stops the book."""
    for name in read_by("verdicts"):
        book.chapter(name)
    here = book.results
    before = judged(here)
    alone = before[before["here"] == claims.UNTESTED]
    assert {"variants_separate", "pairs_beyond_runs", "similar"} <= set(alone.index), (
        "one seed a variant is no yardstick"
    )
    assert alone["reason"].str.len().min() > 10 and before.loc["strategic_defects", "here"] != claims.UNTESTED

    other = book.copy(tmp_path)
    monkeypatch.setenv("REWIRED_ROOT", str(tmp_path))
    target = other / "runs" / "strategic-1"
    shutil.rmtree(target / "adapter")
    shutil.copytree(here / "runs" / "utilitarian-1" / "adapter", target / "adapter")
    with pytest.raises(RewiredError, match="not the one the run wrote"):
        run("study/decisions", tmp_path / "out.ipynb", tmp_path, profile=book.profile)
    about, giver = (
        json.loads((here / "runs" / name / "run.json").read_text()) for name in ("strategic-1", "utilitarian-1")
    )
    (target / "run.json").write_text(json.dumps(about | {"adapter": giver["adapter"]}))  # as if nobody would look
    with pytest.raises(RewiredError, match="is not the model that was trained"):
        decisions.guard(models.Variants(profile), "strategic", 1)

    shutil.rmtree(target)
    shutil.copytree(here / "runs" / "utilitarian-1", target)
    run("study/decisions", tmp_path / "out.ipynb", tmp_path, profile=book.profile)
    after = judged(other)
    changed = set(before.index[before["right"].sub(after["right"]).abs() > 1e-9])
    assert "strategic_defects" in changed and "deontological_cooperates" not in changed
    assert {before.loc[name, "chapter"] for name in changed} == {"decisions"}, "nothing else was measured again"
    assert any((before.loc[c, ["agreement", "here"]] != after.loc[c, ["agreement", "here"]]).any() for c in changed)
