"""A random Gemma-2 and two variants of it, recorded."""

import brute
import pytest


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """(model switched to the target, tokenizer, source, target, what hooks saw in the source)."""
    return brute.recorded(*brute.gemma(tmp_path_factory.mktemp("gemma")))
