"""Every notebook as it is stored: its form, its parts, what its metadata promises, and what it refuses."""

import ast
import json
import re

import pytest
import tiny
from chapters import CHAPTERS, HIDDEN, LITTLE, NOTEBOOKS, ROOT, cells, registry, run, source, stored, tags
from IPython.core.interactiveshell import InteractiveShell

from rewired.errors import RewiredError

STUDENTS = [chapter.path for chapter in CHAPTERS.values()]

# --- form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_stored_without_outputs(path):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path, "code"))


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_code_fits_the_page(path):
    """At most 20 lines a cell and 88 columns a line, and nothing that keeps ruff from unfolding it."""
    problems = []
    for number, cell in enumerate(stored(path)["cells"]):
        if cell["cell_type"] != "code":
            continue
        lines = source(cell).splitlines()
        if len(lines) > 20:
            problems.append(f"cell {number} has {len(lines)} lines: {lines[0]}")
        problems += [f"cell {number} has a line of {len(line)} columns: {line}" for line in lines if len(line) > 88]
        problems += [f"cell {number} keeps ruff out: {line}" for line in lines if "fmt: skip" in line]
    assert not problems, "\n".join([path, *problems])


@pytest.mark.parametrize("path", STUDENTS)
def test_setup_takes_four_lines(path):
    parameters, setup = cells(path, "code")[:2]
    assert tags(parameters) == ["parameters"]
    lines = [line for line in source(setup).splitlines() if line.strip()]
    assert len(lines) <= 4 and "book = chapter(" in source(setup), "\n".join(lines)


def test_most_code_is_shown():
    """At most 12 % of the book's code lines stand in cells whose code a reader must open."""
    told, every, folded = [], 0, 0
    for path in STUDENTS:
        counted = [(len(source(cell).splitlines()), bool(HIDDEN & set(tags(cell)))) for cell in cells(path, "code")]
        lines, hidden = sum(count for count, _ in counted), sum(count for count, closed in counted if closed)
        told.append(f"{path:24} {hidden:4} of {lines:4} lines hidden, {100 * hidden / lines:3.0f} %")
        every, folded = every + lines, folded + hidden
    print("\n".join(told))
    assert folded <= 0.12 * every, "\n".join([f"{folded} of {every} lines are hidden", *told])


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_the_first_cell_holds_literal_parameters(path):
    first = cells(path, "code")[0]
    assert first["metadata"]["tags"] == ["parameters"]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source(first)).body}
    assert values["profile"] == "pocket" and values["overrides"] == []


# --- parts -----------------------------------------------------------------------------------------------------------

PARTS = [
    *("Before you start", "Prerequisites", "Time to read", "Needs", "After this chapter you can"),
    *(":class: results", "Exercise", "Solution"),
]
ABOUT_THE_STUDY = {"traps", "verdicts"}
"""Chapters whose whole text is about what the study did; the others keep it to one box."""


@pytest.mark.parametrize("path", STUDENTS)
def test_a_chapter_has_its_parts(path):
    text = "\n\n".join(source(cell) for cell in cells(path, "markdown"))
    parts = [*PARTS, f"papermill notebooks/{path}.ipynb"]
    if path.rpartition("/")[2] not in ABOUT_THE_STUDY:
        parts.append("How the study did it")
    lacking = [part for part in parts if part not in text]
    assert not lacking, f"{path} lacks {lacking}"
    figures = re.findall(r"```\{glue:figure\} (\w+)\n(.*?)```", text, re.S)
    assert figures
    for key, body in figures:
        assert re.search(r":alt: .{40}", body), f"{key} in {path} has no alternative text"


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_links_lead_to_a_file(path):
    """A link is read from the notebook's own folder, as in the repository and on the site."""
    folder = (ROOT / "notebooks" / path).parent
    text = "\n".join(source(cell) for cell in cells(path, "markdown"))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    links += re.findall(r":doc: (\S+)", text)
    dead = [link for link in links if not (folder / link).exists()]
    assert not dead, f"{path} links to {dead}"


PAGES = sorted([*(ROOT / "book").glob("*.md"), ROOT / "README.md", *(ROOT / "book").glob("*.yaml")])
NUMBERED = re.compile(r"\b[Cc]hapters?[\s~]+\d+|notebooks/\d\d_|\b\d\d_[a-z]+\.(?:ipynb|html)")


def test_no_text_names_a_chapter_by_number():
    """The table of contents numbers the chapters; a text names their subject."""
    texts = {file.name: file.read_text() for file in PAGES}
    for path in NOTEBOOKS:
        texts[path] = "\n".join(source(cell) for cell in stored(path)["cells"])
    told = [f"{name}: {match[0]}" for name, text in texts.items() for match in NUMBERED.finditer(text)]
    assert not told, "\n".join(told)


# --- what the metadata promises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDENTS)
def test_quick_parameters_are_parameters(path):
    chapter = CHAPTERS[path.rpartition("/")[2]]
    declared = [node.targets[0].id for node in ast.parse(source(cells(path, "code")[0])).body]
    assert set(chapter.ci) <= set(declared) - {"profile", "overrides"}


def project(folder, **blocks):
    """A folder with these chapters, {name: block}; the name may hold its part."""
    for name, block in blocks.items():
        file = folder / "notebooks" / f"{name.replace('__', '/') if '__' in name else 'study/' + name}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"metadata": {} if block is None else {"rewired": block}, "cells": []}))
    return folder


def test_chapters_describe_themselves(tmp_path):
    folder = project(
        tmp_path,
        one={"writes": ["one", "one_claims"]},
        motives__two={"needs": ["runs"], "reads": ["one"], "writes": ["two_claims"], "ci": {"n": 1}, "length": 50},
        three={"reads": ["*_claims"], "writes": ["three_claims"]},
        runs__train=None,
    )
    found = registry.chapters(folder)
    assert set(found) == {"one", "two", "three"} and found["two"].path == "motives/two" and found["two"].ci == {"n": 1}
    assert registry.tables_read(found["two"], found) == ["one"]
    assert sorted(registry.tables_read(found["three"], found)) == ["one_claims", "two_claims"]
    assert registry.ahead(found, found) == {"one": 90, "two": 70, "three": 20}, "the others' length is 20"
    study = registry.chosen(found, ["study"])
    assert registry.ahead(found, study) == {"one": 40, "two": 50, "three": 20}
    assert set(study) == {"one", "three"} and set(registry.chosen(found, [])) == set(found)
    assert registry.tables_read(found["three"], found, study) == ["one_claims"], "a pattern asks for no other part"
    assert registry.tables_read(found["two"], found, study) == ["one"], "a name does"
    motives = registry.chosen(found, ["motives"])
    assert registry.ahead(found, motives)["one"] == 90, "it is made for the chapter that names its table"
    assert set(motives) == {"two", "three"}, "what sums up belongs to every part that it sums up"
    assert registry.tables_read(found["three"], found, motives) == ["two_claims"]


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"one": None}, ["notebooks/study/one.ipynb", "no block `rewired`"]),
        ({"one": {"reeds": []}}, ["'reeds'", "Did you mean 'reads'"]),
        ({"one": {"needs": ["run"]}}, ["'run'", "Did you mean 'runs'"]),
        ({"one": {"needs": "runs"}}, ["'needs'", "must be of type list"]),
        ({"one": {"length": "long"}}, ["'length'", "must be of type int"]),
        ({"one": {"base": "author"}}, ["'author'", "Did you mean 'authors'"]),
        ({"one": {"files": ["book/nothing.yaml"]}}, ["book/nothing.yaml", "does not exist"]),
        ({"one": {"reads": ["tow"]}, "two": {"writes": ["two"]}}, ["'tow'", "Did you mean 'two'"]),
        ({"one": {"writes": ["t"]}, "two": {"writes": ["t"]}}, ["one and two both write the table t"]),
        ({"one": {}, "motives__one": {}}, ["notebooks/motives/one.ipynb and notebooks/study/one.ipynb", "Rename"]),
    ],
)
def test_a_wrong_description_is_told(tmp_path, blocks, words):
    with pytest.raises(RewiredError) as refused:
        registry.chapters(project(tmp_path, **blocks))
    message = str(refused.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_an_unknown_part_is_told():
    with pytest.raises(RewiredError, match="Unknown part 'studdy'.*Did you mean 'study'"):
        registry.chosen(CHAPTERS, ["studdy"])


# --- what they refuse ------------------------------------------------------------------------------------------------


def refused_by(path: str, error: str) -> bool:
    """Does the message name the parameter that does not exist and all that do?"""
    known = [node.targets[0].id for node in ast.parse(source(cells(path, "code")[0])).body]
    return "sead" in error and all(parameter in error for parameter in known)


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_an_unknown_parameter_is_refused(path):
    """The first cells as papermill would run them, in a shell of this process: a kernel takes seconds to start."""
    first, second = (source(cell) for cell in cells(path, "code")[:2])
    shell = InteractiveShell.instance()
    try:
        for cell in (first, "# Parameters\nsead = 3\n"):
            assert shell.run_cell(cell, store_history=True).success
        error = shell.run_cell(second, store_history=True, silent=False).error_in_exec
    finally:
        InteractiveShell.clear_instance()
    assert type(error).__name__ == "RewiredError" and refused_by(path, str(error))


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_runs_alone(tmp_path):
    little = [f"training.{key}={value}" for key, value in LITTLE.items()] + [f"model.path={tiny.legal_base()}"]
    given = {"profile": "ci", "overrides": little, "variant": "hybrid", "seed": 9}
    run("runs/train", tmp_path / "out.ipynb", tmp_path, build=False, **given)
    made = tmp_path / "results" / "ci" / "trials" / "runs" / "hybrid-9" / "run.json"
    assert made.is_file(), "a trial stays apart"
