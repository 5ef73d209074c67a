"""The recipes of CONTRIBUTING.md, followed word for word. The one for a chapter is followed by test_new_chapter."""

import ast
import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import claim_cells
import numpy as np
import pandas as pd
import pytest
import tiny
import yaml
from chapters import CHAPTERS, ROOT, cells, source

from rewired import claims, games, plots, profiles
from rewired.claims import HOLDS, Register
from rewired.errors import RewiredError

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def section(title: str, text: str = TEXT) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str, text: str = TEXT) -> list[str]:
    """The recipe's blocks in that language; a block of text may hold others."""
    fenced = re.findall(rf"^(`{{3,}}){language}\n(.*?)\n\1$", section(title, text), re.S | re.M)
    return [block for _, block in fenced]


def test_every_recipe_is_named_at_the_top():
    titles = re.findall(r"^## (.*)$", TEXT, re.M)
    assert titles == ["Add a chapter", "Add a reward", "Add a claim", "Add a figure", "Add a model"]
    for title in titles:
        assert f"(#{title.lower().replace(' ', '-')})" in TEXT


# --- a reward --------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_one_of_the_readme():
    """Which test_chapters trains in a copy and takes through every chapter."""
    readme = (ROOT / "README.md").read_text()
    for language in ("python", "yaml"):
        assert blocks("Add a reward", language) == blocks("Add a reward", language, readme)


def test_a_reward_needs_no_more_than_its_function(tmp_path):
    (code,), (settings,) = blocks("Add a reward", "python"), blocks("Add a reward", "yaml")
    (tmp_path / "mine.yaml").write_text(settings)
    name = profiles.load(tmp_path / "mine.yaml").training.variants[-1]
    with pytest.raises(RewiredError, match=name):
        games.get_reward(name)
    try:
        exec(code, {"reward": games.reward})
        care = games.get_reward(name)
        assert dict(care.optimum) == dict(zip(games.STATES, "CCDD", strict=True)), "asked of the function"
    finally:
        games.REWARDS.pop(name, None)


# --- a claim ---------------------------------------------------------------------------------------------------------

PROMPTS = ["CC_continue/v0", "CC_continue/x3", "DD_trapped/v1", "DD_trapped/x5"]
MEASURED = pd.DataFrame({"model": "base", "prompt_id": PROMPTS, "p_defect": [0.7, 0.1, 0.5, 0.3]})


def test_a_claim_is_one_entry_and_one_cell():
    (entry,), (code,), (metadata,) = (blocks("Add a claim", language) for language in ("yaml", "python", "json"))
    whole = yaml.safe_load(claims.CLAIMS.read_text())
    new = yaml.safe_load(entry)
    register = Register(**whole | {"claims": [*whole["claims"], *new]})
    name, about = new[0]["id"], json.loads(metadata)
    assert about["rewired"]["claims"] == [name] and about["tags"] == ["claims"]
    read = [cell.get("from") for _, cell, _ in claim_cells.code_cells("decisions")]
    assert about["rewired"]["from"] in read, "a frame that the chapter has"

    book = claim_cells.book("decisions")
    frames = {"measured": pd.concat([MEASURED, MEASURED.assign(model="strategic", p_defect=1.0)])}
    known = {"np": np, "pd": pd, "book": book.seen_by_cell}
    claim_cells.execute([(code, about["rewired"]["from"])], frames, known)
    numbers = pd.DataFrame(list(book.whole._claims.values()))
    alone = register.model_copy(update={"claims": tuple(claim for claim in register.claims if claim.id == name)})
    row = claims.judge(alone, numbers).iloc[0]
    assert (row["original"], row["right"]) == (pytest.approx(0.6), pytest.approx(0.4))
    assert row["here"] == HOLDS


# --- a figure --------------------------------------------------------------------------------------------------------


def test_a_figure_is_drawn_and_glued():
    (code,), (text,) = blocks("Add a figure", "python"), blocks("Add a figure", "markdown")
    frame = pd.DataFrame({"model": ["hybrid"] * 2 + ["base"] * 2, "depth": [0, 1] * 2, "delta": [0.0, 2.0, 0.0, -1.0]})
    drawn = {}
    exec(code, {"plots": plots, "frame": frame, "book": SimpleNamespace(figure=drawn.__setitem__)})
    ((name, figure),) = drawn.items()
    (axes,) = figure.axes
    lines = {line.get_label(): (line.get_color(), line.get_ydata().tolist()) for line in axes.lines}
    assert lines == {"base": (plots.COLOURS["base"], [0.0, -1.0]), "hybrid": (plots.COLOURS["hybrid"], [0.0, 2.0])}
    assert f"{{glue:figure}} figure_{name}\n" in text
    assert re.search(r":alt: .{40}", text) and re.search(r":name: fig-", text)


# --- a model ---------------------------------------------------------------------------------------------------------


def test_a_model_is_a_profile_and_a_look_at_it(tmp_path, monkeypatch):
    (settings,), (code,) = blocks("Add a model", "yaml"), blocks("Add a model", "python")
    (tmp_path / "mine.yaml").write_text(settings)
    folder = tiny.save(tmp_path / "models" / "mine")
    assert yaml.safe_load(settings)["model"]["path"] == str(folder.relative_to(tmp_path))
    monkeypatch.chdir(tmp_path)  # a folder is looked for here, and then in the repository
    code = code.replace('profiles.load("mine")', 'profiles.load("mine.yaml")')
    with redirect_stdout(StringIO()) as printed:
        exec(code, {})
    assert "2 layers" in printed.getvalue() and "DecisionStep" in printed.getvalue()
    assert "legal_mass" in printed.getvalue()


# --- the table of chapters and files ---------------------------------------------------------------------------------

EVERYWHERE = {"plots", "errors", "profiles", "store", "notebook", "execute"}


def imported(path: str) -> set[str]:
    """The library's files that a chapter imports, as the table of book/rerun.md names them."""
    files = set()
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(source(cell))):
            module = getattr(node, "module", None) or ""
            if not isinstance(node, ast.ImportFrom) or module.split(".")[0] not in ("rewired", "corpora"):
                continue
            for name in node.names:
                parts = [*module.split("."), name.name]
                while not (ROOT / "lib" / Path(*parts)).with_suffix(".py").is_file() and len(parts) > 2:
                    parts.pop()
                if parts[0] == "rewired":
                    files.add("/".join(parts[1:]) + ".py")
                else:  # a corpus is named by its folder, what corpora share by its file
                    corpus = (ROOT / "lib" / "corpora" / parts[1]).is_dir()
                    files.add(f"corpora/{parts[1]}" + ("/" if corpus else ".py"))
    files = {file for file in files if (ROOT / "lib" / "rewired" / file).is_file() or file.startswith("corpora/")}
    return {file for file in files if file.removesuffix(".py") not in EVERYWHERE}


def test_the_table_of_chapters_says_what_each_imports():
    text = (ROOT / "book" / "rerun.md").read_text()
    table = re.findall(r"^\| \[[^]]+\]\(\.\./notebooks/(\S+)\.ipynb\) \| (.*?) \| .*? \|$", text, re.M)
    named = {path: set(re.findall(r"`([^`]+)`", files)) for path, files in table}
    assert named == {chapter.path: imported(chapter.path) for chapter in CHAPTERS.values()}
