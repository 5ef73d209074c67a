"""The authors' words, letter for letter: short excerpts, each with its text and line, and a check against the texts.

``book/study_quotes.yaml`` holds the excerpts. A claim of ``book/claims.yaml`` names those that it rests on, so a reader
can see what was said and where. The texts themselves are no part of this repository. Whoever has them can hold every
excerpt against a folder with all of them:

    python -m rewired quotes FOLDER

A text is known by its first line, whatever its file is called. If that line was changed, it is the file that contains
most of the excerpts.
"""

from pathlib import Path

import pandas as pd
import yaml

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT

QUOTES = ROOT / "book" / "study_quotes.yaml"
FIX = "`git checkout book/study_quotes.yaml` restores the excerpts."


def load(file: str | Path = QUOTES) -> pd.DataFrame:
    """The excerpts, indexed by name: ``source`` (its key), ``title`` (of the source), ``line``, ``text`` (as it stands
    there) and ``words`` (the text without Markdown's signs). RewiredError for a file that cannot be used."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        rows = [{"name": name, **about} for name, about in content["excerpts"].items()]
        frame = pd.DataFrame(rows).set_index("name")[["source", "line", "text"]]
        frame["title"] = [content["sources"][source]["title"] for source in frame["source"]]
        frame.attrs["first_lines"] = {name: about["first_line"] for name, about in content["sources"].items()}
    except OSError:
        raise RewiredError(f"There is no file of excerpts {file}. {FIX}") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise RewiredError(f"The excerpts in {file} cannot be used: {problem}. Mend the file, or {FIX}") from None
    frame["words"] = frame["text"].map(plain)
    return frame


def plain(text: str) -> str:
    """A text without the signs of Markdown for bold, slanted and code."""
    for sign in ("**", "*", "`"):
        text = text.replace(sign, "")
    return text


def named(excerpts: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """The excerpts with these names, in this order. RewiredError for a name that there is none of."""
    for name in names:
        if name not in excerpts.index:
            raise choice("excerpt", name, excerpts.index, "The excerpts stand in book/study_quotes.yaml.")
    return excerpts.loc[list(names)]


def read(folder: Path) -> dict[Path, list[str]]:
    """Every file of the folder that is text, as lines."""
    if not folder.is_dir():
        raise RewiredError(f"There is no folder {folder}. Name one that holds the texts that are quoted.")
    texts = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if b"\0" not in content and len(content) < 10_000_000:  # neither a picture nor a data file
            text = content.decode("utf-8-sig", errors="replace")
            # Not splitlines: it would also end lines at signs that no editor counts as an end of line.
            texts[file] = [line.removesuffix("\r") for line in text.split("\n")]
    return texts


def file_of(source: str, excerpts: pd.DataFrame, texts: dict[Path, list[str]]) -> Path:
    """The file that is this source: by its first line, else by what it contains. RewiredError if none is."""
    first_line = excerpts.attrs["first_lines"][source]
    own = excerpts.loc[excerpts["source"] == source, "text"]
    held = {}
    for file, lines in texts.items():
        whole = "\n".join(lines)
        held[file] = sum(text in whole for text in own) + len(own) * (lines[0] == first_line)
    title = excerpts.loc[excerpts["source"] == source, "title"].iloc[0]
    best = max(held, key=lambda file: held[file], default=None)
    if best is None or held[best] < len(own) / 2:
        raise RewiredError(
            f"None of the {len(texts)} text files of the folder is the {title}: none begins with "
            f"{first_line!r}, and none contains half of its {len(own)} excerpts. Put that text into the folder."
        )
    return best


def compare(folder: Path, excerpts: pd.DataFrame) -> pd.DataFrame:
    """Each excerpt held against its text. Adds ``file``, ``found`` (the line, or 0) and ``there``, what now stands in
    the line that the excerpt names."""
    texts = read(folder)
    files = {source: file_of(source, excerpts, texts) for source in excerpts.attrs["first_lines"]}
    rows = []
    for row in excerpts.itertuples():
        lines = texts[files[row.source]]
        places = [number for number, line in enumerate(lines, 1) if row.text in line]
        # Where it stands more than once, the line that the excerpt names, if it is one of them.
        found = row.line if row.line in places else (places or [0])[0]
        there = lines[row.line - 1] if row.line <= len(lines) else ""
        rows.append({"file": files[row.source].name, "found": found, "there": there})
    return excerpts.join(pd.DataFrame(rows, index=excerpts.index))


def check(folder: Path, out: Path | None = None) -> str:
    """Hold every excerpt against the folder and return a table of what was found, also written to ``out``.

    Raises RewiredError, naming file, excerpt and line, where a text is missing, or an excerpt is not in it letter for
    letter at the line that it names."""
    table = compare(Path(folder), load())
    if out is not None:
        from replication.reread import write  # heavy, and not needed otherwise

        write(table.drop(columns="words").reset_index(), out)
    wrong = table[table["found"] != table["line"]]
    if len(wrong):
        problems = []
        for row in wrong.head(5).itertuples():
            now = f"It stands in line {row.found}" if row.found else f"There it says {row.there!r}"
            problems.append(f"{row.file}, line {row.line}, excerpt {row.Index!r}: {row.text!r} is not there. {now}")
        raise RewiredError(
            f"{len(wrong)} of {len(table)} excerpts do not stand where book/study_quotes.yaml says. "
            f"{'. '.join(problems)}. Mend the excerpts, or use the texts as they were published."
        )
    lines = [f"{'excerpt':23}{'file':34}{'line':>5}  text"]
    lines += [f"{row.Index:23}{row.file:34}{row.line:5}  {row.text}" for row in table.itertuples()]
    return "\n".join([*lines, f"{len(table)} excerpts stand in the texts, letter for letter, in the lines named."])
