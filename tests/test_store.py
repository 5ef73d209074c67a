"""Tables are whole, stamped and byte for byte the same; nothing half written gets a final name."""

import errno
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewired import store
from rewired.errors import RewiredError
from rewired.profiles import ROOT, load
from rewired.store import atomic_dir, atomic_path, output_dir, read_table, results_dir, write_table

FRAME = pd.DataFrame({"scenario": ["CC", "DD"], "p_defect": [0.25, 1 / 3], "n": [1, 2], "ok": [True, False]})


def refused(call, *arguments, **options) -> str:
    """The message of the RewiredError that the call must raise: one paragraph."""
    with pytest.raises(RewiredError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_results_of_a_trial_lie_apart(tmp_path, monkeypatch):
    assert results_dir("pocket") == tmp_path / "results" / "pocket"
    assert output_dir("pocket") == tmp_path / "results" / "pocket" / "trials"
    monkeypatch.setenv("REWIRED_BUILD", "1")
    assert output_dir("pocket") == results_dir("pocket")
    monkeypatch.delenv("REWIRED_ROOT")
    assert results_dir("pocket") == ROOT / "results" / "pocket"


def test_tables_come_back_and_repeat_byte_for_byte(tmp_path):
    first = write_table(FRAME, tmp_path / "a" / "t.parquet", "pocket")
    second = write_table(FRAME.set_index("n", drop=False), tmp_path / "b.parquet", load("pocket"))
    pd.testing.assert_frame_equal(read_table(first, "pocket"), FRAME)
    assert first.read_bytes() == second.read_bytes()
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["t.parquet"]


def test_a_table_of_another_origin_is_refused(tmp_path, monkeypatch):
    file = write_table(FRAME, tmp_path / "t.parquet", "pocket")
    assert "'ci'" in refused(read_table, file, "ci") and "'pocket'" in refused(read_table, file, "ci")
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    assert "format" in refused(read_table, file, "pocket")


def test_a_missing_or_damaged_table_says_how_to_make_it(tmp_path):
    file = tmp_path / "t.parquet"
    assert "make book PROFILE=pocket" in refused(read_table, file, "pocket")
    whole = write_table(FRAME, file, "pocket").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(read_table, file, "pocket")
    pq.write_table(pa.table({"a": [1]}), file)
    assert "not written by this book" in refused(read_table, file, "pocket")


def test_nothing_half_written_stays(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "run") as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file.txt") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert [str(f.relative_to(tmp_path)) for f in sorted(tmp_path.rglob("*"))] == ["run", "run/old"]
    with atomic_dir(tmp_path / "run") as folder:
        (folder / "new").touch()
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["new"]


@pytest.mark.parametrize("context", [atomic_dir, atomic_path])
def test_a_full_disk_is_told(tmp_path, context):
    def fill():
        with context(tmp_path / "thing") as place:
            file = place / "part" if place.is_dir() else place
            file.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = refused(fill)
    assert "disk is full" in message and "thing" in message
    assert not list(tmp_path.iterdir())
