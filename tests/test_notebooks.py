"""Every notebook: how it is stored, what it refuses, and a run that runs alone."""

import ast
import re

import papermill
import pytest
from chapters import CHAPTERS, LITTLE, NOTEBOOKS, cells, run, source
from IPython.core.interactiveshell import InteractiveShell

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


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_runs_alone(tmp_path):
    little = [f"training.{key}={value}" for key, value in LITTLE.items()]
    given = {"profile": "ci", "overrides": little, "variant": "hybrid", "seed": 9}
    run("runs/train", tmp_path / "out.ipynb", tmp_path, build=False, **given)
    made = tmp_path / "results" / "ci" / "trials" / "runs" / "hybrid-9" / "run.json"
    assert made.is_file(), "a trial stays apart"
