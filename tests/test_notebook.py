"""The object that a chapter starts with: what it reads, where it writes, and what it hands to the page."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rewired import notebook
from rewired.errors import RewiredError
from rewired.profiles import load
from rewired.store import read_table, results_dir, write_table

SINGLE = {"training.seeds": [1], "training.variants": ["deontological", "utilitarian"]}


@pytest.fixture
def page(monkeypatch) -> dict:
    """What is glued, by name."""
    glued: dict = {}
    monkeypatch.setattr(notebook, "_glue", lambda name, thing, display=False: glued.update({name: thing}))
    return glued


def test_a_caption_says_what_made_a_figure(page):
    notebook.chapter("attention", "ci", ["training.kl=0.1"], few=2, named=[], seed=0)
    made_by = "notebooks/study/attention.ipynb, profile ci, few 2, seed 0, overrides ['training.kl=0.1']"
    assert page == {"made_by": made_by}


def test_a_chapter_knows_the_runs(page):
    book = notebook.chapter("attention", "pocket", {"training.seeds": [4, 5], "training.variants": ["hybrid"]})
    assert book.names == ["base", "hybrid"] and book.trained == ["hybrid"] and book.seeds == (4, 5)
    assert book.runs == [("base", 0), ("hybrid", 4), ("hybrid", 5)]


def test_a_trial_writes_apart_and_reads_the_books_tables(page):
    book = notebook.chapter("attention", "ci")
    frame = pd.DataFrame({"a": [1, 2]})
    assert book.table("", frame) is frame
    book.table("heads", frame * 2)
    folder = results_dir("ci") / "trials" / "tables"
    assert sorted(file.name for file in folder.iterdir()) == ["attention.parquet", "attention_heads.parquet"]
    assert list(read_table(folder / "attention_heads.parquet", "ci")["a"]) == [2, 4]
    with pytest.raises(RewiredError, match="no table .*patching.*make book PROFILE=ci"):
        book.read("patching")
    write_table(frame, results_dir("ci") / "tables" / "patching.parquet", "ci")
    assert book.read("patching").equals(frame)


def test_pairs_are_read_with_their_names(page):
    changes = {"patching.pairs": [["utilitarian", "deontological"], ["strategic", "utilitarian"]], **SINGLE}
    book = notebook.chapter("patching", "ci", changes)
    file = results_dir("ci") / "pairs" / "utilitarian-1-to-deontological-1" / "patches.parquet"
    write_table(pd.DataFrame({"effect": [0.5], "source": ["utilitarian-1"]}), file, "ci")
    assert book.read_pairs("patches").to_dict("list") == {
        "source": ["utilitarian"], "target": ["deontological"], "effect": [0.5],
    }  # fmt: skip
    none = notebook.Chapter("patching", load("ci", {"training.variants": ["hybrid"]}))
    with pytest.raises(RewiredError, match="patches no pair"):
        none.read_pairs("patches")


def test_a_figure_is_saved_and_shown(page):
    book = notebook.chapter("attention", "ci")
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    book.figure("line", figure)
    folder = results_dir("ci") / "trials" / "figures"
    assert sorted(file.name for file in folder.iterdir()) == ["attention_line.png", "attention_line.svg"]
    assert "figure_line" in page


def test_a_results_table_leaves_out_what_is_empty(page):
    book = notebook.chapter("attention", "ci")
    rows = [("share", 0.12345, "", True), ("loudest", "L3_MLP", "", np.bool_(False)), ("lost", np.nan, "", "")]
    book.results("box", rows)
    shown = page["results_box"].data if hasattr(page["results_box"], "data") else str(page["results_box"])
    for word in ("quantity", "this run", "verdict", "0.123", "L3_MLP", "yes", "no", "–"):
        assert word in shown, word
    assert "yardstick" not in shown
    book.say("some", "{n} of {total} {what}.", n=1, total=2, what=notebook.word(True, "grow", "shrink"))
    assert page["some"] == "1 of 2 grow."


def test_claims_have_their_numbers_or_a_reason(page):
    book = notebook.chapter("patching", "ci")
    book.claim("one", original=1, right=0.5)
    book.claim("two", right=2.0, yardstick=1.5, cannot="the study's way needs three seeds")
    book.claim("three", cannot="one variant")
    table = book.claims().set_index("claim")
    assert list(table.columns) == ["original", "right", "yardstick", "cannot"]
    assert table.loc["one", "original"] == 1 and np.isnan(table.loc["one", "yardstick"])
    assert list(table["cannot"]) == ["", "the study's way needs three seeds", "one variant"]
    assert table.loc["three", ["original", "right", "yardstick"]].isna().all()
    with pytest.raises(RewiredError, match="'four' of chapter 'patching' has no number right"):
        book.claim("four", original=1.0, right=float("nan"))
    read = read_table(results_dir("ci") / "trials" / "tables" / "patching_claims.parquet", "ci")
    assert list(read["claim"]) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ((("deontological",), {}), ""),
        ((("strategic", "hybrid", "utilitarian"), {}), "this profile trains no strategic and no hybrid variant"),
        (((), {"several": True}), ""),
        (((), {"seeds": 2}), "with one seed a variant there are no two runs of one variant to compare with"),
        (((), {"pairs": [("deontological", "utilitarian")]}), ""),
        (
            ((), {"pairs": [("utilitarian", "deontological")]}),
            "this profile does not patch utilitarian → deontological in full",
        ),
    ],
)
def test_what_a_profile_lacks(needs, reason):
    names, more = needs
    assert notebook.Chapter("patching", load("ci", SINGLE)).lacks(*names, **more) == reason
