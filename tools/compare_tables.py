"""Compare the tables of two builds, value by value: did a change of the code change a result?

Integers, words and truth values must be equal, floats to ``TOLERANCE`` of their column's largest size. Tables and
columns that were renamed are listed in ``RENAMED``; tables that exist on one side only are named.

    python tools/compare_tables.py OLD/tables NEW/tables [--only NAME ...]
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

TOLERANCE = 1e-5
RENAMED: dict[str, dict[str, str]] = {
    "interactions_runs": {"mean": "distance"},
    "attention_reach": {"hidden": "blocked"},
    "attention_use": {"knock-out": "knockout"},
}
"""{new table: {old column: new column}}"""


def new_name(old: str) -> str:
    """Chapters carried their number in a table's name once: ``07_attribution`` is ``attribution`` now."""
    return re.sub(r"^\d\d_", "", old)


def new_words(column: pd.Series) -> pd.Series:
    """The names of chapters and tables that stand in cells, as they are written now."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(lambda cell: new_name(cell) if isinstance(cell, str) else cell)


def in_order(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """These columns of the frame, its rows in an order that the rows alone decide: words and integers first."""
    exact = [column for column in columns if not pd.api.types.is_float_dtype(frame[column])]
    rounded = frame[columns].round(6)
    order = rounded.sort_values([*exact, *(c for c in columns if c not in exact)], kind="stable", key=as_sortable)
    return frame.loc[order.index, columns].reset_index(drop=True)


def as_sortable(column: pd.Series) -> pd.Series:
    """Words and mixed values as text; numbers as they are."""
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)


def unequal(before: pd.Series, now: pd.Series) -> np.ndarray:
    """[row]: do the two values differ? Floats may, by rounding."""
    if not (pd.api.types.is_float_dtype(before) and pd.api.types.is_float_dtype(now)):
        return ~((before == now) | (before.isna() & now.isna())).to_numpy(dtype=bool)
    a, b = before.to_numpy(dtype=float), now.to_numpy(dtype=float)
    size = np.nanmax(np.abs(a), initial=0.0)
    return ~np.isclose(a, b, rtol=0, atol=TOLERANCE * size, equal_nan=True)


def differences(old: pd.DataFrame, new: pd.DataFrame) -> Iterator[str]:
    """What differs between two tables, a line each. Rows may stand in another order, and columns may be new."""
    if len(old) != len(new):
        yield f"{len(old)} rows before, {len(new)} now"
        return
    for column in old.columns.difference(new.columns):
        yield f"column {column!r} is gone"
    shared = [column for column in old.columns if column in new]
    before, now = old[shared].reset_index(drop=True), new[shared].reset_index(drop=True)
    if any(unequal(before[column], now[column]).any() for column in shared):
        before, now = in_order(before, shared), in_order(now, shared)
    for column in shared:
        differ = np.flatnonzero(unequal(before[column], now[column]))
        if len(differ):
            one = differ[0]
            values = f"{before[column][one]} -> {now[column][one]}"
            yield f"{column}: {len(differ)} of {len(old)} differ, for example {values}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="chapters whose tables are compared")
    chosen = parser.parse_args()
    old = {new_name(file.stem): file for file in sorted(chosen.old.glob("*.parquet"))}
    new = {file.stem: file for file in sorted(chosen.new.glob("*.parquet"))}
    names = sorted(old | new)
    if chosen.only:
        names = [name for name in names if any(name == c or name.startswith(f"{c}_") for c in chosen.only)]
    count = 0
    for name in names:
        if name not in old or name not in new:
            print(f"{name}: only in the {'old' if name in old else 'new'} build")
            continue
        before = pd.read_parquet(old[name]).rename(columns=RENAMED.get(name, {})).apply(new_words)
        now = pd.read_parquet(new[name])
        lines = list(differences(before, now))
        added = ", ".join(now.columns.difference(before.columns))
        print(f"{name}: {'differs' if lines else 'equal'}{f' (new: {added})' if added else ''}")
        for line in lines:
            print(f"  {line}")
        count += bool(lines)
    print(f"{count} tables differ" if count else "no table that both builds have differs")
    return int(bool(count))


if __name__ == "__main__":
    sys.exit(main())
