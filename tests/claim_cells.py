"""Run a chapter's own cell on hand-made frames, without the chapter around it.

A cell that gives the numbers of claims carries the tag ``claims``, and its metadata say for which claims and from which
frames: ``{"rewired": {"claims": ["zero_flips"], "from": ["patches"]}}``. Besides these it knows ``np``, ``pd`` and
``book``, and of ``book`` only what describes the profile. Where one claim takes several cells, all of them name it;
they run in order, and a later one may read what an earlier one made.

>>> claim_cells.run("patching", "zero_flips", patches=frame, layers=frame)
{"original": 0.0, "right": 2.0, "yardstick": None, "cannot": ""}

``says`` goes on to what the register makes of these numbers. In the same way ``defined`` gives a function that a cell
with ``{"rewired": {"defines": ["misaligned"]}}`` teaches.
"""

import json
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from rewired import claims, profiles
from rewired.notebook import Chapter

ROOT = Path(__file__).resolve().parents[1]


@cache
def code_cells(chapter: str) -> tuple[tuple[str, dict, tuple[str, ...]], ...]:
    """(source, what its metadata say about it, its tags) of every code cell of a chapter, in order."""
    (file,) = (ROOT / "notebooks").glob(f"*/{chapter}.ipynb")
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    return tuple(
        ("".join(cell["source"]), cell["metadata"].get("rewired", {}), tuple(cell["metadata"].get("tags", ())))
        for cell in cells
    )


def claims_of(chapter: str) -> list[str]:
    """The claims whose numbers the chapter's cells give."""
    told = [name for _, about, tags in code_cells(chapter) if "claims" in tags for name in about["claims"]]
    return list(dict.fromkeys(told))


def book(chapter: str, **changes) -> SimpleNamespace:
    """What a cell may know of its chapter, for the profile pocket with these keys changed."""
    whole = Chapter(chapter, profiles.load("pocket", changes))
    allowed = ("claim", "lacks", "trained", "names", "seeds", "runs", "profile")
    return SimpleNamespace(
        whole=whole, seen_by_cell=SimpleNamespace(**{name: getattr(whole, name) for name in allowed})
    )


def execute(cells: list[tuple[str, list[str]]], frames: dict, known: dict) -> dict:
    """Run (source, names it reads) in order, each seeing only ``known`` and the names it reads; the names they made."""
    asked = {name for _, names in cells for name in names}
    made: dict = {}
    for source, names in cells:
        for name in names:
            assert name in frames or name in made, f"the cell reads {name!r}, which the test does not give"
        space = dict(known)
        for name in names:
            given = frames.get(name, made.get(name))
            space[name] = given.copy() if isinstance(given, pd.DataFrame) else given
        try:
            exec(compile(source, "<cell>", "exec"), space)
        except NameError as error:
            raise AssertionError(
                f"{error}: the cell reads a name that its metadata do not list under `from`"
            ) from error
        made |= {name: value for name, value in space.items() if name not in known}
    assert set(frames) <= asked, f"no cell reads {sorted(set(frames) - asked)}"
    return made


def run(chapter: str, claim: str, variants=None, seeds=None, patched=None, **frames) -> dict:
    """What the chapter's cell gives for ``claim``: original, right, yardstick (None for no number) and cannot.

    ``frames``: exactly what the cell's metadata name. ``variants``, ``seeds``, ``patched`` pairs: of the profile."""
    changes = {"training.variants": variants, "training.seeds": seeds, "patching.pairs": patched}
    both = book(chapter, **{key: value for key, value in changes.items() if value is not None})
    cells = [
        (source, about["from"])
        for source, about, tags in code_cells(chapter)
        if "claims" in tags and claim in about["claims"]
    ]
    assert cells, f"no cell of {chapter} gives the numbers of {claim!r}"
    execute(cells, frames, {"np": np, "pd": pd, "book": both.seen_by_cell})
    row = both.whole._claims[claim]
    numbers = {key: None if math.isnan(row[key]) else row[key] for key in ("original", "right", "yardstick")}
    return {**numbers, "cannot": row["cannot"]}


def table(columns: str, *rows) -> pd.DataFrame:
    """A frame of these rows; the names of its columns stand in one string."""
    return pd.DataFrame(rows, columns=columns.split())


def says(register, name: str, frames: dict) -> tuple[str, str]:
    """The two parts of the verdict on the numbers that the claim's cell finds in these frames."""
    (claim,) = [claim for claim in register.claims if claim.id == name]
    numbers = run(claim.chapter, name, **frames)
    row = {"claim": name} | {key: np.nan if number is None else number for key, number in numbers.items()}
    judged = claims.judge(register.model_copy(update={"claims": (claim,)}), pd.DataFrame([row])).iloc[0]
    return judged["agreement"], judged["here"]


def defined(chapter: str, name: str, **known):
    """The function (or other thing) ``name`` that a cell of the chapter defines.

    All cells with ``defines`` run in order up to that one; ``known`` is what they may use besides each other."""
    space = {"np": np, "pd": pd, **known}
    for source, about, _ in code_cells(chapter):
        if about.get("defines"):
            exec(compile(source, "<cell>", "exec"), space)
        if name in about.get("defines", []):
            return space[name]
    raise AssertionError(f"no cell of {chapter} says that it defines {name!r}")
