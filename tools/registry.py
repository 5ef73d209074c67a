"""The chapters of the book, as their notebooks describe themselves.

Every notebook in ``notebooks/<part>/`` is a chapter, but for those in ``notebooks/runs/``, which are executed once a
run or a pair. Its metadata holds a block ``rewired`` that says what the chapter is made from and what it makes:

    "rewired": {
        "base": "authors",                      the model it opens: the profile's "model" (default), or "authors"
        "needs": ["runs", "pairs"],             every training run, every patched pair, all "organisms", all "motives"
        "reads": ["logit_lens", "*_claims"],    tables of other chapters; a pattern means those of all other chapters
        "files": ["book/claims.yaml"],          other files of the repository
        "writes": ["synthesis"],                the tables that it leaves
        "ci": {"per_scenario": 1}               parameters for a quick build and for the tests
        "length": 60                            about how many seconds it takes, for the order of work alone
    }

The Snakefile, the tests and the check of a profile read it here. A new chapter is a notebook and one line in
``_toc.yml``.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rewired.errors import RewiredError, choice

APART = "runs"
"""The folder of the notebooks that are no chapters."""
NEEDS = ("runs", "pairs", "organisms", "motives")
BASES = ("model", "authors")


@dataclass(frozen=True)
class Chapter:
    """One chapter; ``notebook`` is its path in the repository, and tables are named without folder and ending."""

    notebook: Path
    base: str = "model"
    needs: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    ci: dict[str, Any] = field(default_factory=dict)
    length: int = 20

    @property
    def name(self) -> str:
        """The notebook's name, unique over all parts."""
        return self.notebook.stem

    @property
    def part(self) -> str:
        """The folder of the notebook: ``study``, …"""
        return self.notebook.parent.name

    @property
    def path(self) -> str:
        """``study/attribution``: where the chapter stands in ``notebooks/``, in the results and on the site."""
        return f"{self.part}/{self.name}"


def chapters(root: Path) -> dict[str, Chapter]:
    """{name: chapter} of everything that stands in ``root / "notebooks"``.

    Raises RewiredError for a block that is missing or wrong, and for a name or a table that two chapters share."""
    known: dict[str, Chapter] = {}
    written: dict[str, str] = {}
    for file in sorted((root / "notebooks").glob("*/[!.]*.ipynb")):
        if file.parent.name == APART:
            continue
        chapter = described(file, root)
        if chapter.name in known:
            twin = known[chapter.name].notebook
            raise RewiredError(
                f"{twin} and {chapter.notebook} have one name, but chapters are known by it. Rename one."
            )
        for table in chapter.writes:
            if table in written:
                raise RewiredError(f"The chapters {written[table]} and {chapter.name} both write the table {table}.")
            written[table] = chapter.name
        known[chapter.name] = chapter
    for chapter in known.values():
        tables_read(chapter, known)
    return known


def described(file: Path, root: Path) -> Chapter:
    """The chapter in that notebook, read from its metadata. RewiredError, with what is allowed, for a wrong block."""
    notebook = file.relative_to(root)
    block = json.loads(file.read_text())["metadata"].get("rewired")
    if not isinstance(block, dict):
        raise RewiredError(
            f"The metadata of {notebook} has no block `rewired`, which says what the chapter needs, reads and writes. "
            "Copy it from another chapter and mend it; tools/registry.py explains it."
        )
    kinds = {"base": str, "needs": list, "reads": list, "files": list, "writes": list, "ci": dict, "length": int}
    for key, value in block.items():
        if key not in kinds:
            raise choice(f"key in the `rewired` metadata of {notebook}:", key, kinds)
        if not isinstance(value, kinds[key]):
            kind = kinds[key].__name__
            raise RewiredError(f"{key!r} in the `rewired` metadata of {notebook} must be of type {kind}.")
    chapter = Chapter(notebook, **block)
    for need in chapter.needs:
        if need not in NEEDS:
            raise choice(f"need in the `rewired` metadata of {notebook}:", need, NEEDS)
    if chapter.base not in BASES:
        raise choice(f"base in the `rewired` metadata of {notebook}:", chapter.base, BASES)
    for name in chapter.files:
        if not (root / name).is_file():
            raise RewiredError(f"The file {name} that {notebook} names in its `rewired` metadata does not exist.")
    return chapter


def tables_read(chapter: Chapter, chapters: dict[str, Chapter], built: dict[str, Chapter] | None = None) -> list[str]:
    """The tables that ``chapter`` reads; a pattern stands for those of the other chapters that are ``built`` (all).

    Raises RewiredError for a table that no chapter writes; a pattern may match nothing."""
    every = _written(chapter, chapters)
    within = every if built is None else _written(chapter, built)
    tables: list[str] = []
    for name in chapter.reads:
        if "*" in name:
            tables += [table for table in within if fnmatchcase(table, name)]
        elif name in every:
            tables.append(name)
        else:
            raise choice(f"table in the `reads` of {chapter.notebook}:", name, every)
    return tables


def _written(chapter: Chapter, chapters: dict[str, Chapter]) -> list[str]:
    """The tables of these chapters without this one's."""
    return [table for other in chapters.values() if other.name != chapter.name for table in other.writes]


def ahead(chapters: dict[str, Chapter], built: dict[str, Chapter]) -> dict[str, int]:
    """{name: seconds}: how long a chapter takes, with the longest row of chapters that wait for it, one after another,
    among those that are ``built``. What has most ahead of it should begin first."""
    waiting: dict[str, list[str]] = {name: [] for name in chapters}
    for reader in built.values():
        tables = set(tables_read(reader, chapters, built))
        for chapter in chapters.values():
            if tables & set(chapter.writes):
                waiting[chapter.name].append(reader.name)

    def seconds(name: str, before: tuple[str, ...] = ()) -> int:
        before = (*before, name)  # chapters that wait for each other are for Snakemake to refuse
        return chapters[name].length + max((seconds(n, before) for n in waiting[name] if n not in before), default=0)

    return {name: seconds(name) for name in chapters}


def chosen(chapters: dict[str, Chapter], parts: Iterable[str]) -> dict[str, Chapter]:
    """The chapters of those parts; of all parts when none is named. RewiredError for a part that does not exist.

    A chapter that sums up (its ``reads`` hold a pattern) belongs to every part that has something for it."""
    known = sorted({chapter.part for chapter in chapters.values()})
    for part in parts:
        if part not in known:
            raise choice("part", part, known, "A part is a folder in notebooks/.")
    built = {name: chapter for name, chapter in chapters.items() if not parts or chapter.part in parts}
    return {name: chapter for name, chapter in chapters.items() if name in built or _sums_up(chapter, built)}


def _sums_up(chapter: Chapter, built: dict[str, Chapter]) -> bool:
    """Whether a pattern that the chapter reads matches a table of the chapters that are built."""
    patterns = [name for name in chapter.reads if "*" in name]
    return any(fnmatchcase(table, pattern) for pattern in patterns for table in _written(chapter, built))
