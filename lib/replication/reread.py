"""The study's released files, read again: every number of this book about them, recomputed from a clone.

``book/study_files.yaml`` lists the numbers: what each is, the file that decides it, the rule, and the value that the
book prints. Here each is computed anew and set beside that value.

    git clone https://github.com/tylercrosse/LLM_morality
    python -m rewired reread LLM_morality

The folder may be incomplete. What can be computed is, and the rest is named with the file that it lacks. Random draws
have fixed seeds, so two readings of the same files are equal.
"""

import math
from decimal import Decimal
from pathlib import Path

import pandas as pd
import yaml

from replication import behaviour, inside, patches
from replication.clone import REPOSITORY, Absent, Clone
from rewired.errors import RewiredError
from rewired.profiles import ROOT
from rewired.store import atomic_path, write_table

REGISTER = ROOT / "book" / "study_files.yaml"
GROUPS = (*behaviour.GROUPS, *inside.GROUPS, *patches.GROUPS)
COLUMNS = ["id", "what", "value", "note", "book", "agrees", "file", "rule"]


def numbers(file: str | Path = REGISTER) -> dict[str, dict]:
    """{id: {what, file, rule, value, name}} of the register. RewiredError for a register that cannot be used."""
    try:
        listed = yaml.safe_load(Path(file).read_text(encoding="utf-8"))["numbers"]
        return {name: {"value": None, "name": "", **about} for name, about in listed.items()}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())
        fix = "`git checkout book/study_files.yaml` restores it."
        raise RewiredError(f"The register {file} cannot be used: {problem}. {fix}") from None


def reread(folder: str | Path) -> pd.DataFrame:
    """One row a number, see `compare`. RewiredError for a folder that is no clone, or holds nothing that decides a
    number, and for a file that is not what the study released."""
    values = compute(Clone(folder))
    if not values:
        files = ", ".join(sorted({about["file"] for about in numbers().values()})[:6])
        raise RewiredError(
            f"The folder {folder} holds none of the study's result files that decide a number, such as {files}. Give "
            f"the folder that `git clone {REPOSITORY}` makes."
        )
    return compare(values)


def compute(clone: Clone) -> dict[str, tuple[float, str]]:
    """{id: (value, note)} of all numbers whose files are there."""
    values: dict[str, tuple[float, str]] = {}
    for group in GROUPS:
        try:
            for name, value, note in group(clone):
                values[name] = float(value), note
        except Absent:
            continue  # `compare` names what is missing, and its file
    return values


def compare(values: dict[str, tuple[float, str]]) -> pd.DataFrame:
    """One row a number, in the register's order: ``value`` (NaN where a file is missing) and ``note``; the ``book``'s
    value (NaN where it prints none), ``agrees`` (yes, no, or empty), ``file`` and ``rule``."""
    rows = []
    for name, about in numbers().items():
        value, note = values.get(name, (math.nan, ""))
        row = {"id": name, "what": about["what"], "value": value, "note": note, "book": about["value"]}
        rows.append(row | {"agrees": _agrees(value, note, about), "file": about["file"], "rule": about["rule"]})
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["book"] = pd.to_numeric(table["book"])
    return table


def _agrees(value: float, note: str, about: dict) -> str:
    """Whether the number, rounded as the book's is, is the book's; and what it belongs to, if the book names that."""
    if about["value"] is None or math.isnan(value):
        return ""
    if "files" in note:
        return ""  # only a part of what the book's number counts
    # The digits after the point that the book prints.
    exponent = int(Decimal(repr(about["value"])).as_tuple().exponent)
    close = math.isclose(round(value, max(-exponent, 0)), about["value"], rel_tol=1e-9, abs_tol=1e-12)
    return "yes" if close and about["name"] in note else "no"


def report(table: pd.DataFrame, folder: str | Path) -> str:
    """The table as text: what was recomputed, beside the book's value, then what is missing and for want of which."""
    # In the order of the register: what could be computed, then what could not.
    there, missing = table[table["value"].notna()], table[table["value"].isna()]
    width = there["what"].str.len().max()
    lines = [f"{'recomputed from ' + str(folder):{width}}  {'value':>12}  {'book':>12}  agrees"]
    for row in there.itertuples():
        shown = f"{row.what:{width}}  {_shown(row.value):>12}  {_shown(row.book):>12}  {row.agrees:6}  {row.note}"
        lines.append(shown.rstrip())
    for file, part in missing.groupby("file", sort=False):
        lines.append(f"not in the folder: {file}, which decides {', '.join(part['id'])}")
    differ = table.loc[table["agrees"] == "no", "id"]
    count = f"{(table['agrees'] == 'yes').sum()} agree, {len(differ)} differ"
    lines.append(f"{len(there)} of {len(table)} numbers recomputed. Of those in the book, {count}.")
    if len(differ):
        lines.append(f"These differ from the book: {', '.join(differ)}.")
    return "\n".join(lines)


def write(table: pd.DataFrame, out: Path) -> None:
    """The table as CSV, or as parquet where the name ends so."""
    if out.suffix == ".parquet":
        write_table(table, out, "study")
    elif out.suffix == ".csv":
        with atomic_path(out) as temporary:
            table.to_csv(temporary, index=False)
    else:
        raise RewiredError(f"Cannot write {out}: the name must end in .csv or .parquet.")


def _shown(value: float) -> str:
    if math.isnan(value):
        return ""
    whole = value == round(value) and abs(value) >= 1
    return f"{value:,.0f}" if whole or value == 0 else f"{value:.4g}"
