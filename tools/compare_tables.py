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
RENAMED: dict[str, dict[str, str]] = {}
"""{new table: {old column: new column}}"""


def new_name(old: str) -> str:
    """Chapters carried their number in a table's name once: ``07_attribution`` is ``attribution`` now."""
    return re.sub(r"^\d\d_", "", old)


def differences(old: pd.DataFrame, new: pd.DataFrame) -> Iterator[str]:
    """What differs between two tables, a line each."""
    if len(old) != len(new):
        yield f"{len(old)} rows before, {len(new)} now"
        return
    for column in old.columns.symmetric_difference(new.columns):
        yield f"column {column!r} stands only in the {'old' if column in old else 'new'} table"
    for column in old.columns.intersection(new.columns):
        before, now = old[column], new[column]
        if pd.api.types.is_float_dtype(before) and pd.api.types.is_float_dtype(now):
            a, b = before.to_numpy(dtype=float), now.to_numpy(dtype=float)
            size = np.nanmax(np.abs(a), initial=0.0)
            unequal = ~np.isclose(a, b, rtol=0, atol=TOLERANCE * max(size, 1e-300), equal_nan=True)
        else:
            unequal = ~((before == now) | (before.isna() & now.isna())).to_numpy(dtype=bool)
        if unequal.any():
            first = int(np.flatnonzero(unequal)[0])
            yield f"{column}: {unequal.sum()} of {len(old)} differ, first in row {first}: {before[first]} -> {now[first]}"


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
    unequal = 0
    for name in names:
        if name not in old or name not in new:
            print(f"{name}: only in the {'old' if name in old else 'new'} build")
            continue
        before = pd.read_parquet(old[name]).rename(columns=RENAMED.get(name, {}))
        lines = list(differences(before, pd.read_parquet(new[name])))
        unequal += bool(lines)
        print(f"{name}: {'equal' if not lines else ''}", *lines, sep="\n  " if lines else "")
    print(f"{unequal} tables differ" if unequal else "no table that both builds have differs")
    return int(bool(unequal))


if __name__ == "__main__":
    sys.exit(main())
