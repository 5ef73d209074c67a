"""Every test runs with pinned threads, without a network, and writes below its own temporary folder."""

import os
from collections import Counter

os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1"
)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_results(tmp_path, monkeypatch):
    """``results/`` of the library lies in the test's folder."""
    monkeypatch.setenv("REWIRED_ROOT", str(tmp_path))
    monkeypatch.delenv("REWIRED_BUILD", raising=False)


def pytest_collection_modifyitems(items):
    """Files with many slow tests first: a worker that has nothing left takes half of what waits at another."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
