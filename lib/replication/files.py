"""What the authors' own released files say about each claim: the third part of a verdict, as the book prints it.

``book/study_files.yaml`` holds the study's numbers (recomputed by ``rewired reread``, each with its file and its rule)
and one answer a claim; ``book/organisms_files.yaml`` and ``book/motives_files.yaml`` the same for the other parts. An
answer's text names numbers in braces, so that none stands in two places.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import yaml

from rewired.claims import FILES
from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT

BOOKED = tuple(ROOT / "book" / f"{part}_files.yaml" for part in ("study", "organisms", "motives"))
PLACES = " or ".join(f"book/{file.name}" for file in BOOKED)


def answers(claims: Iterable[str], *files: str | Path) -> pd.DataFrame:
    """One row a claim, in this order: ``id``, ``files`` (one of ``rewired.claims.FILES``) and ``files_text``, the
    answer in words, with its numbers; read in ``files``, by default those of the book. RewiredError, naming the claim,
    for an entry that is missing or unreadable."""
    values: dict = {}
    entries: dict = {}
    for file in files or BOOKED:
        numbers, told = _read(Path(file))
        values |= numbers
        entries |= told
    rows = [{"id": claim, **_answer(claim, entries.get(claim), values)} for claim in claims]
    return pd.DataFrame(rows, columns=["id", "files", "files_text"])


def _read(file: Path) -> tuple[dict, dict]:
    """The numbers of one file by name, and its entries by claim."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {name: about["value"] for name, about in content["numbers"].items()}, dict(content["claims"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RewiredError(f"{file} cannot be used ({problem}). `git checkout {file.name}` restores it.") from None


def _answer(claim: str, entry: dict | None, values: dict) -> dict[str, str]:
    """What the files say of one claim, and why."""
    if not isinstance(entry, dict) or not {"says", "text"} <= set(entry):
        raise RewiredError(f"{PLACES} has no answer for claim {claim!r}: give it `says` and `text` there.")
    if entry["says"] not in FILES:
        raise choice(f"answer of claim {claim!r} in {PLACES},", entry["says"], FILES)
    try:
        return {"files": entry["says"], "files_text": entry["text"].format(**values)}
    except (KeyError, ValueError, IndexError) as error:
        raise RewiredError(
            f"The answer of claim {claim!r} in {PLACES} asks for a number that is not there ({error})."
        ) from None
