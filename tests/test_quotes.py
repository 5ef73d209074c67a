"""The study's words: each excerpt against its text, and each claim against its excerpts."""

import re

import pytest

from replication import quotes
from rewired import claims
from rewired.errors import RewiredError
from rewired.profiles import ROOT

EXCERPTS = quotes.load()
CLAIMS = {claim.id: claim for claim in claims.load().claims}


@pytest.fixture
def folder(tmp_path):
    """The texts, as far as the excerpts know them, under names of our own."""
    for source, first_line in EXCERPTS.attrs["first_lines"].items():
        own = EXCERPTS[EXCERPTS["source"] == source]
        lines = [""] * own["line"].max()
        for row in own.itertuples():
            lines[row.line - 1] += f" {row.text} …"
        lines[0] = first_line
        (tmp_path / f"{source} as saved.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\0\1\2")
    return tmp_path


def test_every_excerpt_is_found(folder, tmp_path):
    printed = quotes.check(folder, tmp_path / "found.csv")
    assert f"{len(EXCERPTS)} excerpts stand in the texts" in printed and "blog as saved.txt" in printed
    assert (tmp_path / "found.csv").read_text().count("\n") >= len(EXCERPTS)
    with pytest.raises(RewiredError, match="must end in .csv"):
        quotes.check(folder, tmp_path)


def spoil(folder, source, old, new) -> None:
    file = folder / f"{source} as saved.txt"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("→ actual sampling", "-> actual sampling", ["strategic", "line 458", "-> actual"]),
        ("0.047", "0.047 logits", ["largest_change"]),
        ("\n", "\n\n", ["excerpts do not stand", "It stands in line"]),
    ],
)
def test_a_changed_text_is_named(folder, old, new, words):
    """A dash, a word, a line: the excerpt and what stands there now."""
    spoil(folder, "blog", old, new)
    with pytest.raises(RewiredError) as error:
        quotes.check(folder)
    text = str(error.value)
    assert "blog as saved.txt" in text and "\n" not in text
    assert all(word in text for word in words), text


def test_a_text_is_known_by_its_content_too(folder):
    spoil(folder, "blog", EXCERPTS.attrs["first_lines"]["blog"], "# Another title")
    assert "letter for letter" in quotes.check(folder)


def test_a_missing_text_is_named(folder, tmp_path):
    (folder / "summary as saved.txt").unlink()
    with pytest.raises(RewiredError, match="is the summary for the paper's authors.*Put that text"):
        quotes.check(folder)
    with pytest.raises(RewiredError, match="There is no folder"):
        quotes.check(tmp_path / "none")


def test_excerpts_that_cannot_be_used(tmp_path):
    with pytest.raises(RewiredError, match="git checkout"):
        quotes.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("excerpts: {a: {source: blog}}\nsources: {}\n")
    with pytest.raises(RewiredError, match="bad.yaml"):
        quotes.load(tmp_path / "bad.yaml")
    with pytest.raises(RewiredError, match="Did you mean 'similar'"):
        quotes.named(EXCERPTS, ("simliar",))


# --- the claims ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_claim_quotes_stands_in_its_excerpts(name):
    claim = CLAIMS[name]
    words = list(quotes.named(EXCERPTS, claim.quotes)["words"])
    quoted = re.findall("“([^”]*)”", claim.statement)
    assert quoted, f"{name} quotes nothing"
    for quotation in quoted:
        assert any(quotation in text for text in words), f"{name}: {quotation!r} stands in none of {words}"


@pytest.mark.parametrize("name", CLAIMS)
def test_every_reported_number_stands_in_an_excerpt(name):
    claim = CLAIMS[name]
    words = " ".join(quotes.named(EXCERPTS, claim.quotes)["words"])
    for number in re.findall(r"\d[\d.,]*\d|\d", claim.reported):
        assert number in words, f"{name}: {number} of {claim.reported!r} stands in none of its excerpts"


def test_every_excerpt_is_used():
    used = {name for claim in CLAIMS.values() for name in claim.quotes}
    used |= {"base_too"}  # the recipe of CONTRIBUTING.md
    pages = " ".join(" ".join(file.read_text() for file in (ROOT / "book").glob("*.md")).split())
    used |= {name for name, words in EXCERPTS["words"].items() if f"“{words}”" in pages}
    assert set(EXCERPTS.index) == used
