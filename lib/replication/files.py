"""What the study's own released files say about each claim: the third part of a verdict, as the book prints it.

``book/study_files.yaml`` holds the numbers (recomputed by ``rewired reread``, each with its file and its rule) and one
answer a claim. An answer's text names numbers in braces, so that none stands in two places.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import yaml

from rewired.claims import FILES
from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT

STUDY_FILES = ROOT / "book" / "study_files.yaml"


def answers(claims: Iterable[str], file: str | Path = STUDY_FILES) -> pd.DataFrame:
    """One row a claim, in this order: ``id``, ``files`` (one of ``rewired.claims.FILES``) and ``files_text``, the
    answer in words, with its numbers. RewiredError, naming the claim, for an entry that is missing or unreadable."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        values = {name: about["value"] for name, about in content["numbers"].items()}
        entries = content["claims"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RewiredError(
            f"{file} cannot be used ({problem}). `git checkout {Path(file).name}` restores it."
        ) from None
    rows = [{"id": claim, **_answer(claim, entries.get(claim), values)} for claim in claims]
    return pd.DataFrame(rows, columns=["id", "files", "files_text"])


def _answer(claim: str, entry: dict | None, values: dict) -> dict[str, str]:
    """What the files say of one claim, and why."""
    if not isinstance(entry, dict) or not {"says", "text"} <= set(entry):
        raise RewiredError(f"book/study_files.yaml has no answer for claim {claim!r}: give it `says` and `text` there.")
    if entry["says"] not in FILES:
        raise choice(f"answer of claim {claim!r} in book/study_files.yaml,", entry["says"], FILES)
    try:
        return {"files": entry["says"], "files_text": entry["text"].format(**values)}
    except (KeyError, ValueError, IndexError) as error:
        raise RewiredError(
            f"The answer of claim {claim!r} in book/study_files.yaml asks for a number that is not there ({error})."
        ) from None
