"""The site: every warning an error, nothing from another host, and the house rules that the lint keeps."""

import json
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import browser_check  # noqa: E402
import build_site  # noqa: E402
import lint  # noqa: E402
import registry  # noqa: E402

INTRO = """# A book

$$\\Delta = \\log P$$

A [chapter](../notebooks/study/one.ipynb), [another](../notebooks/motives/two.ipynb), a {cite}`someone`, a table:

| state | p_defect |
| --- | --- |
| CC | 0.5 |

```{admonition} What this run shows
:class: results
It found {glue:text}`../notebooks/study/one.ipynb::found:s`, and {glue:text}`../notebooks/motives/two.ipynb::more:s`.
```

```{bibliography}
```
"""


def stored_notebook() -> nbformat.NotebookNode:
    """A small executed notebook with a glued text and a table."""
    glued = {"application/papermill.record/text/plain": "'much'"}
    output = nbformat.v4.new_output(
        "display_data",
        data=glued,
        metadata={"scrapbook": {"mime_prefix": "application/papermill.record/", "name": "found"}},
    )
    page = (
        '<div class="rewired-scroll"><table class="rewired-table"><tr><th>a</th></tr><tr><td>1</td></tr></table></div>'
    )
    table = nbformat.v4.new_output("display_data", data={"text/html": page, "text/plain": "a 1"})
    made = deepcopy(output)
    made["metadata"]["scrapbook"]["name"] = "made_by"
    made["data"]["application/papermill.record/text/plain"] = "'notebooks/study/one.ipynb, few 2'"
    outputs = [output, made, table]
    code = nbformat.v4.new_code_cell("glue('found', 'much')", outputs=outputs, execution_count=1)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# One\n\nText."), code], metadata=kernel)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A small repository with the real settings, built once: (folder, exit status)."""
    folder = tmp_path_factory.mktemp("book")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    (folder / "book" / "intro.md").write_text(INTRO)
    (folder / "book" / "references.bib").write_text("@misc{someone, title={T}, author={Some One}, year={2020}}\n")
    contents = (
        "format: jb-book\nroot: book/intro\nchapters:\n- file: notebooks/study/one\n- file: notebooks/motives/two\n"
    )
    (folder / "_toc.yml").write_text(contents)
    for path, title in {"study/one": "One", "motives/two": "Two", "runs/train": "Train"}.items():
        stored, executed = folder / "notebooks" / f"{path}.ipynb", folder / "executed" / f"{path}.ipynb"
        for file in (stored, executed):
            file.parent.mkdir(parents=True, exist_ok=True)
        cells = [nbformat.v4.new_markdown_cell(f"# {title}")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"rewired": {}}), stored)
    nbformat.write(stored_notebook(), folder / "executed" / "study" / "one.ipynb")
    (folder / "executed" / "study" / ".one.partial-1.ipynb").write_text("half")
    return folder, build(folder)


def build(folder: Path) -> int:
    work, build_site.ROOT = build_site.ROOT, folder
    try:
        return build_site.main(folder / "executed")
    finally:
        build_site.ROOT = work


# --- building ------------------------------------------------------------------------------------------------------


def test_the_book_builds_without_a_warning(book):
    folder, status = book
    assert status == 0
    page = (folder / "_build" / "html" / "book" / "intro.html").read_text()
    assert "much" in page and (folder / "_build" / "html" / "notebooks" / "study" / "one.html").is_file()


def test_a_chapter_that_was_not_built_has_a_page(book):
    """Links to it lead somewhere, and a text that would take a sentence from it shows a dash."""
    site = book[0] / "_build" / "html"
    assert "is not part of this build" in (site / "notebooks" / "motives" / "two.html").read_text()
    page = (site / "book" / "intro.html").read_text()
    assert re.search(r'href="\.\./notebooks/motives/two\.html"', page) and re.search(r"much.*, and .*–", page)


def test_a_page_says_how_it_was_made(book):
    """At its end, once: what its notebook says of itself, the base with its hash, the commit, the libraries."""
    page = (book[0] / "_build" / "html" / "notebooks" / "study" / "one.html").read_text()
    assert len(re.findall("How this page was made", page)) == 1 and "one.ipynb, few 2" in page
    chapter = SimpleNamespace(needs=["runs", "pairs"])
    told = build_site.made(chapter, "ci")["source"]
    assert "runs of seed 1;" in told and re.search(r"base models/pocket with the hash [0-9a-f]{16};", told)
    assert f"torch {torch.__version__}" in told and re.search(r"commit (unknown|[0-9a-f]{7})", told)


def test_pages_fetch_nothing_from_another_host(book):
    for page in (book[0] / "_build" / "html").rglob("*.html"):
        loads = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](https?:)?//[^\"']+", page.read_text())
        assert not loads, page
        assert "thebe" not in page.read_text().lower(), page


def test_formulas_are_set_by_the_files_of_the_book(book):
    page = (book[0] / "_build" / "html" / "book" / "intro.html").read_text()
    assert re.search(r'src="\.\./_static/mathjax/tex-chtml\.js', page)
    assert len(list((book[0] / "_build" / "html" / "_static" / "mathjax").rglob("*.woff"))) > 15


def test_a_warning_fails_and_leaves_the_old_site(book, capsys):
    folder, _ = book
    before = (folder / "_build" / "html" / "book" / "intro.html").read_bytes()
    (folder / "book" / "intro.md").write_text(INTRO + "\n[nowhere](nowhere.md)\n")
    assert build(folder) == 1
    assert "nowhere" in capsys.readouterr().err
    assert (folder / "_build" / "html" / "book" / "intro.html").read_bytes() == before
    (folder / "book" / "intro.md").write_text(INTRO)


def test_buttons_appear_with_the_address_of_the_repository():
    without = build_site.with_repository({"repository": {"url": ""}, "html": {}})
    assert not without["launch_buttons"] and not without["html"]["use_edit_page_button"] and "repository" not in without
    known = build_site.with_repository({"repository": {"url": "https://example.org/me/book"}, "html": {}})
    assert known["html"]["use_edit_page_button"] and "colab_url" in known["launch_buttons"]


def test_the_table_of_contents_names_what_is_there():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    named = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    stored = [f"notebooks/{chapter.path}" for chapter in registry.chapters(ROOT).values()]
    prose = [f"book/{file.stem}" for file in (ROOT / "book").glob("*.md")]
    assert sorted(named) == sorted(stored + prose)


# --- in a browser --------------------------------------------------------------------------------------------------

BROKEN = """
<script>console.error("boo"); fetch("https://example.org/x").catch(() => 0); nope();</script>
<img src="no.png" alt=""><a href="nowhere.html">x</a><a href="#noplace">x</a><p style="color:#eee">faint</p>
<div style="width:900px">wide</div><p class="math">x</p><pre>Traceback (most recent call last)</pre>
<div class="rewired-scroll"><table class="rewired-table"><tr><td>row</td><td>answer</td><td><div style="width:2000px">x
</div></td></tr></table></div>
<div class="cell_input"><div class="highlight" style="width:300px"><pre>a_line_that_is_wider_than_its_cell_by_far = 1
</pre></div></div><svg><desc>smallest text: 8.5 px of 342</desc></svg>
<svg><desc>smallest text: 9.0 px of 342</desc></svg>
</article>
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, browser_check.PROGRAMS)), reason="no Chromium")
def test_the_browser_finds_nothing_and_then_everything(book):
    site = book[0] / "_build" / "html"
    assert browser_check.check(site) == []
    page = site / "book" / "intro.html"
    page.write_text(page.read_text().replace("</article>", BROKEN, 1))
    problems = "\n".join(browser_check.check(site))
    for word in (
        *("console error: boo", "another host: https://example.org/x", "nope is not defined", "no.png", "faint text"),
        *(
            "wider than the screen",
            "formula not set",
            "code scrolls sideways: a_line_that_is_wider",
            "a traceback",
            "intro.html (light, 1440 px): table is cut: row answer",
            "intro.html: a figure with text of 8.5 px",
            "dead link book/nowhere.html",
            "intro.html#noplace",
        ),
    ):
        assert word in problems, word
    assert "text of 9" not in problems
    assert "(dark, 390 px): table is cut" not in problems, "its answer is seen; the rest may be scrolled to"


# --- house rules ---------------------------------------------------------------------------------------------------

BOX = "```{admonition} Title\n:class: results\n%s\n```\n"


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        (BOX % "All of {glue:text}`told_2:.3f` agree.", 0),
        (BOX % "All 12 agree.", 1),
        (BOX.replace("Title", "The 3 of us") % "x", 1),
        (BOX.replace("results", "tip results") % "12", 1),
        (BOX.replace("results", "tip") % "12", 0),
        ("12 outside\n\n" + BOX % "none" + "\n13 after", 0),
        (BOX.replace("```", ":::") % "12", 1),
        (BOX.replace("```", "````") % "```{glue:figure} figure_1\n:figwidth: 300px\nIn 2 panels\n```", 1),
        ("````{tab-set}\n" + BOX % "12" + "````\n", 1),
    ],
)
def test_a_results_block_holds_no_literal_number(markdown, found):
    assert len(list(lint.literal_numbers(markdown))) == found


def test_a_stored_notebook_is_empty_and_declares_its_parameters():
    notebook = stored_notebook()
    told = " ".join(lint.notebook_problems(json.loads(nbformat.writes(notebook))))
    assert "outputs" in told and "parameters" in told
    cell = nbformat.v4.new_code_cell('seed = 1\nfolder = f"{seed}"\nimport os')
    cell.metadata["tags"] = ["parameters"]
    notebook.cells = [cell]
    told = list(lint.notebook_problems(json.loads(nbformat.writes(notebook))))
    assert len(told) == 2 and all("literals" in problem for problem in told)


def test_no_machine_is_named(tmp_path):
    for text, found in [("see /ho" + "me/somebody/x", 1), ("--extra-index" + "-url x", 1), ("a/home/b and ~/x", 0)]:
        (tmp_path / "a.txt").write_text(text)
        assert len(list(lint.problems(tmp_path / "a.txt"))) == found


def test_the_repository_keeps_the_rules(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lint.py"])
    assert lint.main() == 0, capsys.readouterr().out
