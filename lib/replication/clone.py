"""A clone of the study's repository, read with care: its CSV, JSON and NPZ files, never its code.

A file that is not there raises `Absent`; what needs it is left out and named. A file that is there and is not what it
should be (columns, rows, models, scenarios, numbers) raises RewiredError, a paragraph that names the file, what was
found and what was expected. Nothing is written and nothing is executed.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rewired.errors import RewiredError

REPOSITORY = "https://github.com/tylercrosse/LLM_morality"
OUTPUTS = "mech_interp_outputs"
NAMES = {
    "base": "base",
    "PT2_COREDe": "strategic",
    "PT3_COREDe": "deontological",
    "PT3_COREUt": "utilitarian",
    "PT4_COREDe": "hybrid",
}
"""The study's name of each model, and this book's."""
SCENARIOS = ("CC_continue", "CC_temptation", "CD_punished", "DC_exploited", "DD_trapped")
VARIANTS, LAYERS, HEADS = 3, 26, 8  # prompts a scenario; Gemma-2-2b's layers, and heads a layer
PROMPTS = len(SCENARIOS) * VARIANTS
COMPONENTS = LAYERS * (HEADS + 1)  # 208 names of heads and 26 MLPs
RESTORE = "`git checkout -- .` in the clone restores it."


class Absent(Exception):
    """A file of the study's repository that is not in this folder."""


class Clone:
    """The study's files under one folder. ``Clone(folder)`` raises RewiredError for a folder without any of them."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            kind = "is a file" if self.folder.exists() else "does not exist"
            raise RewiredError(f"The folder {self.folder} {kind}. Give a clone of the study's repository: {_how()}.")
        if self.folder.resolve().name in (OUTPUTS, "results"):
            self.folder = self.folder.resolve().parent  # one step too deep is forgiven
        if not any((self.folder / name).is_dir() for name in (OUTPUTS, "results")):
            raise RewiredError(
                f"The folder {self.folder} holds no file of the study: a clone of its repository has the folders "
                f"{OUTPUTS}/ and results/. Give the folder that holds them, or make one: {_how()}."
            )

    def path(self, name: str) -> Path:
        """The file of that name, or the first that fits a name with a star. Raises Absent where there is none."""
        found = sorted(self.folder.glob(name)) if "*" in name else [self.folder / name]
        # The first that is a file; a folder of that name does not count.
        for file in found:
            if file.is_file():
                return file
        raise Absent(name)

    def table(self, name: str) -> pd.DataFrame:
        """A CSV file as it is, every value a string."""
        try:
            return pd.read_csv(io.StringIO(self._text(name)), dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
            raise self.changed(name, f"it is not a table ({' '.join(str(error).split())})") from None

    def csv(self, name: str, numbers: Sequence[str], words: Sequence[str] = (), rows: int | None = None):
        """A frame of the columns ``words`` (strings) and ``numbers`` (finite floats), in the file's own order."""
        frame = self.table(name)
        lacking = [column for column in [*numbers, *words] if column not in frame]
        if lacking:
            there = ", ".join(map(str, frame.columns[:20]))
            raise self.changed(name, f"it lacks the columns {', '.join(lacking)}; there are {there}")
        if rows is not None and len(frame) != rows:
            raise self.changed(name, f"it has {len(frame):,} rows, and {rows:,} are expected")
        table = frame[[*words]].copy()
        for column in numbers:
            table[column] = self._numbers(name, column, frame[column])
        return table

    def matrix(self, name: str, size: int) -> np.ndarray:
        """[row, column]: a square table of numbers whose first column names the rows."""
        frame = self.table(name)
        if frame.shape != (size, size + 1):
            rows, columns = frame.shape
            raise self.changed(name, f"it has {rows} rows and {columns} columns; {size} and {size + 1} are expected")
        return np.column_stack([self._numbers(name, column, frame[column]) for column in frame.columns[1:]])

    def named(self, name: str, *columns: str) -> str:
        """The first of these columns that the table has; the first of all if it has none."""
        there = self.table(name).columns
        return next((column for column in columns if column in there), columns[0])

    def json(self, name: str) -> Any:
        """What a JSON file holds."""
        try:
            return json.loads(self._text(name))
        except ValueError as error:
            raise self.changed(name, f"it is not JSON ({error})") from None

    def npz(self, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """The arrays of an NPZ file that ``shapes`` names; nothing in it is unpickled."""
        file = self.path(name)
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in shapes}
        except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
            raise self.changed(name, f"its arrays {', '.join(shapes)} cannot be read ({error})") from None
        for key, shape in shapes.items():
            if arrays[key].shape != shape:
                raise self.changed(name, f"its array {key} has shape {arrays[key].shape}, and {shape} is expected")
        return arrays

    def changed(self, name: str, what: str) -> RewiredError:
        """The error for a file that is not what the study released."""
        return RewiredError(f"The file {self.path(name)} is damaged, or not the study's: {what}. {RESTORE}")

    def expect(self, name: str, column: str, found: Iterable, expected: Iterable) -> None:
        """Raises RewiredError unless the values of a column are the expected ones, each of them at least once."""
        found, expected = set(found), set(expected)
        if found != expected:
            odd = ", ".join(sorted(str(value) or "''" for value in found ^ expected)[:8])
            raise self.changed(name, f"its column {column} differs from what is expected in: {odd}")

    def _text(self, name: str) -> str:
        try:
            text = self.path(name).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise self.changed(name, "it is not text") from None
        except OSError as error:
            raise RewiredError(f"The file {self.path(name)} cannot be read: {error.strerror}.") from None
        # A clone without the LFS extension holds three lines in the place of a large file.
        if text.startswith("version https://git-lfs"):
            raise self.changed(name, "it is a pointer of Git LFS, and the file itself is expected (`git lfs pull`)")
        return text

    def _numbers(self, name: str, column: str, values: pd.Series) -> pd.Series:
        """The column as floats; True and False count as 1 and 0."""
        # Everything was read as text, so that a damaged number is seen and not guessed.
        numbers = pd.to_numeric(values.replace({"True": "1", "False": "0"}), errors="coerce")
        if not np.isfinite(numbers).all():
            bad = values[~np.isfinite(numbers)].iloc[0]
            raise self.changed(name, f"its column {column} holds {bad!r} where a number is expected")
        return numbers.astype(float)


def _how() -> str:
    return f"`git clone {REPOSITORY}`"
