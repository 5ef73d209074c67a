"""Every test runs with pinned threads, without a network, and writes below its own temporary folder."""

import os

os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1"
)

import pytest
import shared  # noqa: F401 (its folder goes with this process)
import torch

from rewired import plots
from rewired.execute import keep_memory

torch.set_num_threads(1)
keep_memory()


@pytest.fixture(autouse=True)
def _own_results(tmp_path, monkeypatch):
    """``results/`` of the library lies in the test's folder."""
    monkeypatch.setenv("REWIRED_ROOT", str(tmp_path))
    monkeypatch.delenv("REWIRED_BUILD", raising=False)


@pytest.fixture(autouse=True)
def _own_colours(monkeypatch):
    """What a chapter's cell `reserve`s, in a test, it reserves for that test."""
    monkeypatch.setattr(plots, "COLOURS", dict(plots.COLOURS))
    monkeypatch.setattr(plots, "MARKERS", dict(plots.MARKERS))


def pytest_collection_modifyitems(items):
    """Slow tests first: each worker begins with an equal part of the list, at whose head its share of them stands. One
    that has nothing left takes quick tests from another's end."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    ends = [len(quick) * k // workers for k in range(workers + 1)]
    items[:] = [item for k in range(workers) for item in slow[k::workers] + quick[ends[k] : ends[k + 1]]]
