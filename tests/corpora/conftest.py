"""The world and a base of random weights, made once for each file."""

import little
import pytest

from corpora.authors import world


@pytest.fixture(scope="module")
def tables() -> world.World:
    return world.load()


@pytest.fixture(scope="module")
def small():
    """(model, tokenizer); a file that needs more layers has a fixture of this name of its own."""
    return little.base()
