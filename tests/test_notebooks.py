"""Every notebook: how it is stored, what it refuses, and what it does with other runs than the book's."""

import ast
import re

import papermill
import pytest
from chapters import CHAPTERS, LITTLE, NOTEBOOKS, SAMPLES, cells, glued, run, source
from IPython.core.interactiveshell import InteractiveShell

from rewired import profiles, training

OVERRIDES = [f"training.{key}={value}" for key, value in LITTLE.items()] + [f"decisions.samples={SAMPLES}"]

# --- as they are stored ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_without_outputs(name):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(name, "code"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short(name):
    for cell in cells(name, "code"):
        assert len(source(cell).splitlines()) <= 20, source(cell)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_holds_literal_parameters(name):
    first = cells(name, "code")[0]
    assert first["metadata"]["tags"] == ["parameters"]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source(first)).body}
    assert values["profile"] == "pocket" and values["overrides"] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_its_parts(name):
    text = "\n\n".join(source(cell) for cell in cells(name, "markdown"))
    parts = "Before you start, Prerequisites, Time to read, Needs, :class: results, Exercise, Solution"
    for part in [*parts.split(", "), "papermill notebooks/"]:
        assert part in text, f"{name} lacks {part!r}"
    figures = re.findall(r"```\{glue:figure\} (\w+)\n(.*?)```", text, re.S)
    assert figures
    for key, body in figures:
        assert re.search(r":alt: .{40}", body), f"{key} in {name} has no alternative text"
        assert "{glue:text}`made_by`" in body, f"{key} in {name} does not say what made it"


# --- what they refuse ------------------------------------------------------------------------------------------------


def refused_by(name: str, error: str) -> bool:
    """Does the message name the parameter that does not exist and all that do?"""
    known = [node.targets[0].id for node in ast.parse(source(cells(name, "code")[0])).body]
    return "sead" in error and all(parameter in error for parameter in known)


def test_papermill_is_refused_an_unknown_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        run("01_pocket", tmp_path / "out.ipynb", tmp_path, sead=3)
    assert refused.value.ename == "RewiredError" and refused_by("01_pocket", refused.value.evalue)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_unknown_parameter_is_refused(name):
    """The first cells as papermill would run them, in a shell of this process: a kernel takes seconds to start."""
    first, second = (source(cell) for cell in cells(name, "code")[:2])
    shell = InteractiveShell.instance()
    try:
        for cell in (first, "# Parameters\nsead = 3\n"):
            assert shell.run_cell(cell, store_history=True).success
        error = shell.run_cell(second, store_history=True, silent=False).error_in_exec
    finally:
        InteractiveShell.clear_instance()
    assert type(error).__name__ == "RewiredError" and refused_by(name, str(error))


# --- other runs than the book's --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A results root with one barely trained run of three variants."""
    root, profile = tmp_path_factory.mktemp("root"), profiles.load("ci", OVERRIDES)
    for variant in ("strategic", "deontological", "utilitarian"):
        training.train(profile, variant, 1, root / "results" / "ci" / "runs" / f"{variant}-1")
    return root


def only(*variants: str) -> list[str]:
    return [*OVERRIDES, f"training.variants=[{', '.join(variants)}]"]


@pytest.mark.slow
def test_chapter_2_tells_of_a_change_of_reward(three, tmp_path):
    changed = [*only("strategic", "utilitarian"), "training.first_reward=strategic", "training.first_episodes=4"]
    given = {"profile": "ci", "overrides": changed, **CHAPTERS["02_training"]}
    told = glued(run("02_training", tmp_path / "out.ipynb", three, **given))["told_paid"]
    assert "For 4 of 8 episodes every run was paid the strategic reward" in told
    assert "The utilitarian runs defect after CC, CD, DC, DD" in told
    assert "For the strategic runs the change of reward asks for no other move" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variants"), [("04_decisions", ["utilitarian"]), ("07_attribution", ["deontological", "utilitarian"])]
)
def test_a_chapter_makes_do_with_few_variants(three, tmp_path, name, variants):
    """One is enough for what is measured of each, two for what compares; the strategic one may be missing."""
    given = {"profile": "ci", "overrides": only(*variants), **CHAPTERS[name]}
    told = " ".join(glued(run(name, tmp_path / "out.ipynb", three, **given)).values())
    assert all(variant in told for variant in variants) and "hybrid" not in told


@pytest.mark.slow
def test_a_run_runs_alone(tmp_path):
    given = {"profile": "ci", "overrides": OVERRIDES, "variant": "hybrid", "seed": 9}
    run("runs/train", tmp_path / "out.ipynb", tmp_path, build=False, **given)
    made = tmp_path / "results" / "ci" / "trials" / "runs" / "hybrid-9" / "run.json"
    assert made.is_file(), "a trial stays apart"
