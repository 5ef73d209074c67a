"""Bases for the tests' book, of the kinds that the project ships: half as deep, half as wide, taught for some seconds.

They answer in the right form and know little else. So the chapters' code runs in a fraction of the time, and meets what
a good base never shows it: few legal answers, thoughts without the sentences that are looked for. The shipped bases
have tests of their own, and `make book PROFILE=ci` runs every chapter on them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from filelock import FileLock
from transformers import AutoTokenizer

from corpora import training
from corpora.authors import recipe as authors
from corpora.pocket import recipe as pocket
from corpora.training import Stage

SIZES = {"layers": 4, "width": 64, "mlp": 128, "heads": 4, "kv_heads": 2}
CHATS = {"chat": 250}
TEXTS = {"upright": 100, "named": 100, "answering": 100, "whole": 200, "following": 100, "thoughts": 150}
SHIPPED = Path(__file__).resolve().parents[1] / "models"


def _teach_pocket(folder: Path) -> None:
    stage = Stage(CHATS, seed=1, warmup=20, decay=0.5, exact=0.1, batch_tokens=1024)
    recipe = pocket.Recipe(**SIZES, stages=(stage,))
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "pocket")  # to make one takes longer than to teach this base
    training.train(folder, recipe, tokenizer, lambda: [pocket.batches(stage, tokenizer)])


def _teach_authors(folder: Path, tied: bool) -> None:
    stage = Stage(TEXTS, seed=1, warmup=20, decay=0.5, exact=0.1, batch_tokens=1024)
    authors.train_base(folder, authors.Recipe(**SIZES, tied=tied, stages=(stage,), author_weight=(1,), act_weight=(1,)))


KINDS: dict[str, Callable[[Path], None]] = {
    "pocket": _teach_pocket,
    "authors": partial(_teach_authors, tied=True),
    "authors-untied": partial(_teach_authors, tied=False),
}
"""By the names of the shipped ones."""


def teach(name: str, folder: Path, timeout: float = -1) -> None:
    """Write that base to ``folder``, unless it is there. Raises Timeout where another process is longer at it."""
    with FileLock(f"{folder}.lock", timeout):
        if not folder.is_dir():
            KINDS[name](folder)
