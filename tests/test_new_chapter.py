"""A new chapter is a notebook and a line in the table of contents: CONTRIBUTING's recipe, word for word."""

import json
import re

import nbformat
import pytest
from chapters import ROOT
from copies import built, copy
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

RECIPE = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a chapter")[1].split("\n## ")[0]


def blocks(language: str) -> list[str]:
    """The recipe's blocks of that language; a block of text may hold others."""
    fenced = re.findall(rf"^(`{{3,}}){language}\n(.*?)\n\1$", RECIPE, re.S | re.M)
    return [text for _, text in fenced]


@pytest.mark.slow
def test_a_chapter_is_one_notebook_and_one_line(tmp_path):
    """Its notebook is executed by the real Snakefile, library and kernel; the others are not. The site is the real one,
    of the chapters' titles."""
    (name,) = re.findall(r"`notebooks/study/(\w+)\.ipynb`", RECIPE)[:1]
    folder = copy(tmp_path, real=(name,))
    for page in (folder / "book").glob("*.md"):  # they take sentences from chapters that are not executed here
        title = re.search(r"^# .*", page.read_text(), re.M)[0]
        page.write_text(title + "\n\nText.\n")

    parameters, setup, work = blocks("python")
    (text,), (metadata,), (line,) = blocks("markdown"), blocks("json"), blocks("yaml")
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell(text), first, new_code_cell(setup), new_code_cell(work)])
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.metadata |= json.loads(f"{{{metadata}}}")
    nbformat.write(notebook, folder / "notebooks" / "study" / f"{name}.ipynb")
    contents = folder / "_toc.yml"
    before = re.search(r".*notebooks/study/weights\n", contents.read_text())[0]
    contents.write_text(contents.read_text().replace(before, before + line + "\n"))

    assert name not in built(folder, "--set", "training.variants=[strategic,deontological,utilitarian]")
    page = (folder / "_build" / "html" / "notebooks" / "study" / f"{name}.html").read_text()
    assert re.search(r"\d+ of 20 flips are heads", page), "the number in the text comes from the quick run"
    index = (folder / "_build" / "html" / "book" / "intro.html").read_text()
    assert f"notebooks/study/{name}.html" in index, "it stands in the table of contents"
    (table,) = notebook.metadata["rewired"]["writes"]
    assert (folder / "results" / "ci" / "tables" / f"{table}.parquet").is_file()
    assert built(folder, "--set", "training.variants=[strategic,deontological,utilitarian]") == set()
