"""Jobs share a graphics card only while what they declare fits it."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest
from chapters import ROOT
from copies import built, copy

from rewired import profiles
from rewired.errors import RewiredError

sys.path.insert(0, str(ROOT / "tools"))
import cards

import book

SITE = """
from pathlib import Path
Path("_build/html").mkdir(parents=True, exist_ok=True)
Path("_build/html/.built").touch()
"""


def entry(card: int, mb: int) -> dict:
    return {"process": os.getpid(), "card": card, "mb": mb}


@pytest.mark.parametrize(
    ("need", "held", "card"),
    [
        (20, [], 1),
        (20, [entry(1, 10)], 0),
        (20, [entry(0, 10), entry(1, 10)], 1),
        (20, [entry(0, 10), entry(1, 11)], None),
        (14, [entry(0, 10), entry(1, 30)], 0),
        (25, [], 1),
        (31, [], None),
    ],
)
def test_a_job_goes_where_most_room_is(need, held, card):
    assert cards.place(need, [24, 30], held) == card


def test_an_entry_counts_as_long_as_its_process_lives(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ledger = tmp_path / "ledger.json"
    ledger.write_text(json.dumps([{"process": ended.pid, "card": 0, "mb": 24}]))
    assert cards.take(20, [24], ledger) == 0
    assert json.loads(ledger.read_text()) == [{"process": os.getpid(), "card": 0, "mb": 20}]


def overlaps(times: list[list[str]]) -> list[tuple[str, str]]:
    """The cards of each two jobs that ran at the same time; a job is (name, card, begin, end)."""
    pairs = itertools.combinations(times, 2)
    return [(a[1], b[1]) for a, b in pairs if float(a[2]) < float(b[3]) and float(b[2]) < float(a[3])]


@pytest.mark.all
def test_jobs_that_do_not_fit_one_card_never_overlap(tmp_path):
    """The real Snakefile, four trainings of 14 of 24 GB: one after the other on one card, by two on two cards."""
    folder = copy(tmp_path)
    (folder / "tools" / "build_site.py").write_text(SITE)
    options = ("--cores", "4", "--set", "model.device=cuda gpu_mem_mb.train=14000")
    for found, together in (("[24000]", set()), ("[24000, 24000]", {("0", "1"), ("1", "0")})):
        (folder / "times.txt").unlink(missing_ok=True)
        runs = [f"results/ci/runs/{variant}-1/run.json" for variant in ("strategic", "utilitarian", "hybrid")]
        built(
            folder, *options, "--force", "--", *runs, REWIRED_CARDS=found, STAND_IN_SECONDS="1.5", TMPDIR=str(tmp_path)
        )
        times = [line.split() for line in (folder / "times.txt").read_text().splitlines()]
        assert len(times) == 3 and {card for _, card, *_ in times} == {str(k) for k in range(len(json.loads(found)))}
        assert set(overlaps(times)) <= together and bool(overlaps(times)) == bool(together)


def test_a_job_that_fits_no_card_is_refused(monkeypatch):
    monkeypatch.setenv("REWIRED_CARDS", "[8000, 16000]")
    monkeypatch.setenv("REWIRED_GPU_MEM", "")
    profile = profiles.load("pocket", ["model.device=cuda", "gpu_mem_mb.pair=20000"])
    with pytest.raises(RewiredError, match="gpu_mem_mb.pair.*20000.*16000 MB"):
        book.hand_on_cards(profile)


def test_without_sharing_a_job_takes_a_whole_card(monkeypatch):
    monkeypatch.setenv("REWIRED_CARDS", "[8000, 16000]")
    monkeypatch.setenv("REWIRED_GPU_MEM", "")
    book.hand_on_cards(profiles.load("pocket", ["model.device=cuda", "share_gpu=false", "gpu_mem_mb.pair=2000"]))
    assert json.loads(os.environ["REWIRED_GPU_MEM"]) == {"train": 1, "pair": 1, "chapter": 1}
    assert json.loads(os.environ["REWIRED_CARDS"]) == [1, 1]
    book.hand_on_cards(profiles.load("pocket", ["model.device=cpu"]))
    assert json.loads(os.environ["REWIRED_CARDS"]) == []


def test_a_card_that_a_cluster_chose_is_kept(monkeypatch, tmp_path):
    variables = {"CUDA_VISIBLE_DEVICES": "3", "REWIRED_CARDS": "[100]", "REWIRED_GPU_MEM": '{"train": 999}'}
    command = [sys.executable, ROOT / "tools" / "cards.py", "train", "--", sys.executable, "-c"]
    asked = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    begun = time.time()
    done = subprocess.run([*command, asked], env=os.environ | variables, capture_output=True, text=True)
    assert done.stdout.strip() == "3" and time.time() - begun < 30
