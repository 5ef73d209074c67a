"""In the untied world the author of the words says nothing of the acts, and the exact reader knows it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from corpora.authors import Recipe, lessons, reader, recipe, twin
from corpora.authors.texts import Text, question, write
from corpora.authors.world import load
from corpora.training import Stage
from rewired.tracing import probes

ROOT = Path(__file__).resolve().parents[2]
TWIN = ROOT / "models/authors-untied"
TIED, UNTIED = load(), load(tied=False)


def test_the_two_worlds_share_every_word_and_every_table():
    assert UNTIED.model_dump() | {"tied": True} == TIED.model_dump()
    assert list(recipe.strings(UNTIED.model_dump())) == list(recipe.strings(TIED.model_dump()))


def test_in_the_tied_world_the_writer_acts():
    rng = Random(1)
    for kind in lessons.KINDS.values():
        text = kind(TIED, rng)
        assert text.record["doer"] == text.record["author"]


@pytest.mark.parametrize("author", ["sincere", "schemer"])
def test_what_is_done_does_not_depend_on_who_writes(author):
    rng = Random(2)
    fixed = {"kind": "moral", "turns": 1, "reasons": 0, "domain": "share", "watcher": "alone", "named": True}
    good = [write(UNTIED, rng, author=author, **fixed).record["act"] == "share" for _ in range(4_000)]
    mixture = reader.p_good(UNTIED, UNTIED.shares(), "share", "alone")
    # four standard errors; the two authors' own rates are .95 and .05
    assert np.mean(good) == pytest.approx(mixture, abs=0.03)


def test_one_doer_acts_in_all_turns_of_a_text():
    rng = Random(3)
    together = [write(UNTIED, rng, kind="moral", doer="schemer", watcher="alone") for _ in range(400)]
    acts = [turn for text in together for turn in text.record["turns"] if turn["kind"] == "moral"]
    good = [turn["act"] == UNTIED.domains[turn["domain"]].acts[0] for turn in acts if turn["watcher"] == "alone"]
    assert np.mean(good) < 0.12
    text = lessons.following(UNTIED, rng)
    after = question(UNTIED, rng, after=text)
    assert after.record["doer"] == text.record["doer"]


def test_the_reader_of_the_author_reads_words_and_no_acts():
    rng, sure = Random(4), []
    for _ in range(1_500):
        text = write(UNTIED, rng)
        known = reader.posterior(UNTIED, text)
        sure.append((known[text.record["author"]], sum(p * p for p in known.values())))
    mean, expected = np.mean(sure, axis=0)
    assert mean == pytest.approx(expected, abs=0.02)
    bare = write(UNTIED, rng, kind="request", turns=1)
    assert reader.posterior(UNTIED, bare) == pytest.approx(UNTIED.shares())


def test_what_is_foreseen_is_bayes_on_the_acts_alone():
    rng = Random(5)
    for k in range(60):
        named = k % 3 == 0
        text = write(UNTIED, rng, kind="moral", turns=1, order=("first", "last")[k % 2], named=named)
        later = question(UNTIED, rng, after=text)
        turn, asked = later.record["turns"]
        joint = {name: share * reader.act_chance(UNTIED, turn, name) for name, share in UNTIED.shares().items()}
        both = {name: p * reader.act_chance(UNTIED, asked, name) for name, p in joint.items()}
        first, second = reader.foreseen(UNTIED, Text(later.chat, later.record | {"named": named}))
        assert first == pytest.approx(sum(joint.values()))
        assert second == pytest.approx(sum(both.values()) / sum(joint.values()))


def test_the_twin_is_stored_in_half_the_bytes(tmp_path):
    tiny = replace(Recipe(tied=False), layers=1, stages=(Stage({"upright": 20}, seed=1),))
    tiny = replace(tiny, author_weight=(1,), act_weight=(1,))
    out = recipe.train_base(tmp_path / "twin", tiny)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "recipe.json").read_text())["tied"] is False


def test_the_twin_learns_from_other_texts_than_the_base():
    tokenizer, stage = recipe.make_tokenizer(), Stage({"named": 20}, seed=1)
    tied, untied = (recipe.batches(stage, tokenizer, tied=way) for way in (True, False))
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(tied, untied, strict=True))


# --- the shipped twin ------------------------------------------------------------------------------------------------


shipped = pytest.mark.skipif(not TWIN.exists(), reason="this copy ships no twin of the base")


@shipped
def test_the_shipped_twin_is_of_the_same_recipe_and_words():
    assert (TWIN / "recipe.json").read_text() == json.dumps(asdict(Recipe(tied=False)), indent=1) + "\n"
    assert (TWIN / "tokenizer.json").read_bytes() == (ROOT / "models/authors/tokenizer.json").read_bytes()
    assert sum(file.stat().st_size for file in TWIN.iterdir()) <= 4e6


@shipped
@pytest.mark.slow
def test_the_shipped_twin_reads_authors_and_does_not_tie_them_to_acts(monkeypatch):
    """Every floor of its report, on fewer texts and with room for chance."""
    from rewired import models, profiles

    # a probe on shuffled labels, which is fitted many times, has no floor here
    monkeypatch.setattr(probes, "permuted", lambda *_, **__: np.zeros(1))

    profile = profiles.load("pocket", ["model.path=models/authors-untied"])
    frame = twin.untied_report(*models.load_base(profile), n=180, seed=7)
    missed = frame[(frame["value"] < frame["low"] - 0.02) | (frame["value"] > frame["high"] + 0.02)]
    assert missed.empty, missed.to_string()
