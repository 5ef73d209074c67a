"""Where results live, and how they get there: whole or not at all.

Results live in ``results/<profile>/``. Nothing appears there under its final name before it is complete: files are
written under a temporary name and renamed. A table says which profile and which format wrote it, so that old and new
results cannot be mixed silently.
"""

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rewired.errors import RewiredError
from rewired.profiles import ROOT, Profile

FORMAT = 1
"""Version of the tables' columns and meaning; a table of another version is refused. Raise it when either changes."""


def results_dir(profile: Profile | str) -> Path:
    """``results/<profile>`` in the repository, or under the folder that the variable REWIRED_ROOT names."""
    name = profile if isinstance(profile, str) else profile.name
    return ROOT / Path(os.environ.get("REWIRED_ROOT", "")).expanduser() / "results" / name


def output_dir(profile: Profile | str) -> Path:
    """Where a notebook writes its tables and figures.

    That is ``results_dir`` inside ``make book``. A notebook run by hand, perhaps with another parameter, writes to
    ``results/<profile>/trials``, so that what it tries never mixes with the book's results."""
    return results_dir(profile) if os.environ.get("REWIRED_BUILD") else results_dir(profile) / "trials"


def write_table(frame, path: str | Path, profile: Profile | str) -> Path:
    """Write a data frame as parquet, without its index: the same frame gives the same bytes, with no time and no host.
    The file says which profile and table format wrote it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    name = profile if isinstance(profile, str) else profile.name
    stamp = {"rewired": json.dumps({"profile": name, "format": FORMAT})}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(stamp), sink, compression="zstd")
    with atomic_path(path) as temporary:
        temporary.write_bytes(sink.getvalue())
    return Path(path)


def read_table(path: str | Path, profile: Profile | str):
    """The data frame that ``write_table`` wrote there for this profile. Raises RewiredError when the file is missing,
    damaged, of another profile or of another table format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, name = Path(path), profile if isinstance(profile, str) else profile.name
    rebuild = f"`make book PROFILE={name}` makes it"
    if not path.is_file():
        raise RewiredError(f"There is no table {path}; {rebuild}.")
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        stamp = json.loads((table.schema.metadata or {})[b"rewired"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise RewiredError(
            f"The table {path} is damaged, or was not written by this book. Delete it; {rebuild} anew."
        ) from None
    if stamp != {"profile": name, "format": FORMAT}:
        raise RewiredError(
            f"The table {path} was written for profile {stamp.get('profile')!r} in table format "
            f"{stamp.get('format')!r}; profile {name!r} in format {FORMAT} is needed. Delete it; {rebuild} anew."
        )
    return table.to_pandas()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file name beside ``path``; renamed to it when the block ends well, removed when it does not."""
    path = Path(path)
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """An empty temporary folder beside ``path``; takes its name (and its place) when the block ends well."""
    path = Path(path)
    with _disk(path):
        temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into a paragraph; other errors pass."""
    try:
        yield
    except OSError as error:
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
        reasons |= {errno.EROFS: "the disk is read-only", errno.EACCES: "there is no permission"}
        if error.errno not in reasons:
            raise
        raise RewiredError(
            f"Cannot write {path}: {reasons[error.errno]}. Nothing was left under that name. Make room (`make clean` "
            "removes all results), or name another folder in the variable REWIRED_ROOT, then start again."
        ) from None
