"""The corpus keeps its promises (answers are right, held-out things are absent), training resumes exactly, and the
shipped base reads."""

import re
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch

from rewired import models, profiles
from rewired.errors import RewiredError
from rewired.games import STATES, dilemma
from rewired.pocket import Recipe, corpus, train_base
from rewired.pocket.recipe import Stage, answer_loss, make_model, make_tokenizer, tokenize
from rewired.pocket.report import FLOORS, SETS, base_report, reading_chat
from rewired.prompts import held_out

STAGES = (
    Stage({"echo": 40, "recall": 20, "drill": 30, "chat": 20}, seed=1, batch_tokens=1024, warmup=4, steps=12),
    Stage({"card": 30, "quiz": 30}, seed=2, batch_tokens=1024, text_weight=0.3, decay=0.5, exact=0.2),
)
TINY = Recipe(seed=3, layers=2, width=32, mlp=64, stages=STAGES, sliding_window=64)


@pytest.fixture(scope="module")
def texts() -> list[corpus.Chat]:
    rng = Random(11)
    return [make(rng) for _ in range(3000) for make in (corpus.drill, corpus.chat, corpus.viva, corpus.exam)]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(1)


def test_held_out_labels_and_templates_are_absent(texts):
    everything = "\n".join(part for chat in texts for turn in chat for part in turn)
    for label in held_out()["labels"]["never"]:
        assert not re.search(rf"\b{label}\b", everything)
    pairs = {frozenset(pair) for pair in held_out()["labels"]["pairs"]}
    rng = Random(0)
    assert not any(frozenset(corpus.draw_labels(rng)) in pairs for _ in range(20_000))
    kept = held_out()["templates"]
    sentences = [
        *kept["openings"],
        *kept["cells"],
        *kept["histories"],
        *(q for v in kept["questions"].values() for q in v),
    ]
    for sentence in sentences:  # no corpus text contains any held-out sentence, whatever fills its fields
        pattern = re.sub(r"\\\{\w+\\\}", r"[^.?!]{1,20}", re.escape(sentence))
        assert not re.search(pattern, everything), sentence


def test_held_out_wordings_use_known_words_only(texts):
    known = set(re.findall(r"[A-Za-z]+", " ".join(part for chat in texts for turn in chat for part in turn)))
    kept = held_out()["templates"]
    sentences = [
        *kept["openings"],
        *kept["cells"],
        *kept["histories"],
        *(q for v in kept["questions"].values() for q in v),
    ]
    words = {w for s in sentences for w in re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", s))}
    assert words <= known


def test_held_out_matrices_are_never_drawn():
    rng = Random(5)
    drawn = {corpus.matrix_key(corpus.draw_payoffs(rng)) for _ in range(30_000)}
    canonical = {
        corpus.matrix_key(corpus._canonical(rng)[0].payoffs or (((1, 1), (0, 0)), ((0, 0), (1, 1))))
        for _ in range(3000)
    }
    assert drawn.isdisjoint(corpus.held_out_keys()) and canonical.isdisjoint(corpus.held_out_keys())
    study = dilemma(3, 0, 4, 1).payoffs
    flat = [study[s] for s in STATES]
    assert corpus.matrix_key(((flat[0], flat[1]), (flat[2], flat[3]))) in drawn


def test_answers_follow_from_the_scene():
    """Every reading answer, recomputed from the scene by brute force."""
    rng = Random(2)
    for _ in range(400):
        s = corpus.draw_scene(rng)
        w = corpus.Writer(rng)
        for skill in (*corpus.SKILLS, "greedy", "generous"):
            turn = w.read(s, skill)
            if turn is None:
                continue
            text, answer = turn
            if skill in ("own_last", "other_last"):
                assert answer == s.labels[s.last[0 if skill == "own_last" else 1]]
            if skill == "greedy":
                best = max((s.payoffs[i][j][0], i) for i in (0, 1) for j in (0, 1))
                assert answer == s.labels[best[1]]
            if skill == "generous":
                best = max((s.payoffs[i][j][1], i) for i in (0, 1) for j in (0, 1))
                assert answer == s.labels[best[1]]
            if skill == "own_points":
                assert int(answer) in {s.payoffs[i][j][0] for i in (0, 1) for j in (0, 1)}
            if skill == "reply":
                j = [j for j in (0, 1) if answer == s.labels[int(np.argmax([s.payoffs[i][j][0] for i in (0, 1)]))]]
                assert j and s.labels[j[0]] is not None


def test_persona_acts():
    rng = Random(3)
    w = corpus.Writer(rng)
    pd_scene = corpus.Scene(("x", "y"), "Sam", (((3, 3), (0, 4)), ((4, 0), (1, 1))), (0, 1), "table")
    acts = {p: w.act(pd_scene, p, "none") for p in corpus.PERSONAS}
    assert acts == {"selfish": 1, "kind": 0, "fair": 1, "stubborn": 0}
    free = [w.act(pd_scene, None, "none") for _ in range(4000)]
    assert abs(1 - np.mean(free) - corpus.BASE_COOPERATION["CD"]) < 0.03


def test_tokenize_equals_the_chat_template(texts, tokenizer):
    for chat in texts[:40]:
        messages = [m for u, a in chat for m in ({"role": "user", "content": u}, {"role": "assistant", "content": a})]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == tokenize(tokenizer, chat)[0]
    assert tokenizer.tokenize("action1") == ["action", "1"] and tokenizer.tokenize("23") == ["2", "3"]


@pytest.mark.parametrize("lesson", [corpus.echo, corpus.entry, corpus.pair, corpus.recall])
def test_recalled_digits_are_those_read_before(lesson, tokenizer):
    """A key has one digit throughout, comes three times or more, and the digits of its repetitions are marked."""
    for seed in range(60):
        pieces = lesson(Random(seed))
        ids, marked = tokenize(tokenizer, pieces)
        text = "".join(a + b for a, b in pieces)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        digits = [tokenizer.decode([i]) for i, m in zip(ids, marked, strict=True) if m]
        assert digits == [b for _, b in pieces]
        entries = re.findall(r"(.+?)(?: =| ->|:|) (\d)(?:; |[.] |\n| |$)", text)
        assert len(entries) > 2 * len(set(entries)) and len(set(entries)) == len({key for key, _ in entries})


def test_answer_loss_is_the_mean_over_answer_tokens(texts, tokenizer):
    model = make_model(TINY, tokenizer)
    ids, answer = (torch.tensor([x]) for x in tokenize(tokenizer, texts[0]))
    logits = model(input_ids=ids).logits[0].double()
    picked = [-logits[t - 1].log_softmax(-1)[ids[0, t]].item() for t in range(ids.shape[1]) if answer[0, t]]
    assert answer_loss(model, ids, answer)[1] == pytest.approx(np.mean(picked), abs=1e-5)
    every = -logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean().item()
    assert answer_loss(model, ids, answer, 0.3)[0].item() == pytest.approx(np.mean(picked) + 0.3 * every, abs=1e-5)


def test_training_resumes_to_the_same_bytes(tmp_path):
    whole = train_base(tmp_path / "whole", TINY)
    train_base(tmp_path / "parts", TINY, stop_at=7)
    assert not (tmp_path / "parts").exists()
    parts = train_base(tmp_path / "parts", TINY)
    for name in ("model.safetensors", "tokenizer.json", "training_log.parquet"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    log = pd.read_parquet(whole / "training_log.parquet")
    assert log["loss"].notna().all() and not (tmp_path / "parts.partial").exists()


def test_unfinished_base_of_another_recipe_is_refused(tmp_path):
    train_base(tmp_path / "base", TINY, stop_at=2)
    with pytest.raises(RewiredError, match="another recipe"):
        train_base(tmp_path / "base", Recipe(seed=4, layers=2, width=32))


def test_reading_draws_are_held_out():
    rng = Random(0)
    for group in SETS:
        for skill in corpus.SKILLS:
            ((text, answer),) = reading_chat(rng, skill, group, "table")
            assert text and answer
    assert set(FLOORS) == set(SETS)


# What the shipped base does not reach yet. Chapter 1 says so too; this list may only become shorter.
OPEN = {
    ("reading, seen labels", "reply"),
    ("reading, unseen labels", "reply"),
    ("reading, unseen wordings", "outcome"),
    *(("stated persona", persona) for persona in corpus.PERSONAS),
    ("answers", "legal_mass"),
}


def test_the_shipped_base_reads():
    """Every floor of the report but the open ones, on the base in models/pocket."""
    model, tokenizer = models.load_base(profiles.load("pocket"))
    report = base_report(model, tokenizer, n=50, seed=7)
    missed = report[~report["passed"].fillna(True).astype(bool)]
    assert set(zip(missed["group"], missed["quantity"], strict=True)) <= OPEN, missed.to_string()
