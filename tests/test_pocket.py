"""The corpus keeps its promises (answers are right, held-out things are absent), training resumes exactly, and the
shipped base reads."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch

from rewired import models, profiles
from rewired.errors import RewiredError
from rewired.games import STATES, dilemma
from rewired.pocket import Recipe, corpus, lessons, train_base
from rewired.pocket.recipe import Stage, _pad, answer_loss, make_model, make_tokenizer, tokenize
from rewired.pocket.report import FLOORS, SETS, base_report, reading_chat
from rewired.prompts import held_out

STAGES = (
    Stage({"echo": 40, "recall": 20, "drill": 30, "chat": 20}, seed=1, batch_tokens=1024, warmup=4, steps=12),
    Stage({"card": 30, "quiz": 30}, seed=2, batch_tokens=1024, text_weight=0.3, decay=0.5, exact=0.2, fresh=True),
    Stage({"picks": 12}, seed=3, batch_tokens=1024, soft=True, sharpen=1.25),
)
TINY = Recipe(seed=3, layers=2, width=32, mlp=64, stages=STAGES, sliding_window=64)


@pytest.fixture(scope="module")
def texts() -> list[corpus.Chat]:
    rng = Random(11)
    return [make(rng) for _ in range(3000) for make in (corpus.drill, corpus.chat, lessons.talk, lessons.exam)]


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
        corpus.matrix_key(corpus.study_scene(rng)[0].payoffs or (((1, 1), (0, 0)), ((0, 0), (1, 1))))
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


@pytest.mark.parametrize("lesson", [lessons.echo, lessons.entry, lessons.pair, lessons.recall])
def test_recalled_digits_are_those_read_before(lesson, tokenizer):
    """A key has one digit throughout, comes three times or more, and the digits of its repetitions are marked."""
    for seed in range(60):
        pieces = lesson(Random(seed))
        ids, marked, _ = tokenize(tokenizer, pieces)
        text = "".join(a + b for a, b in pieces)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        digits = [tokenizer.decode([i]) for i, m in zip(ids, marked, strict=True) if m]
        assert digits == [b for _, b in pieces]
        entries = re.findall(r"(.+?)(?: =| ->|:|) (\d)(?:; |[.] |\n| |$)", text)
        assert len(entries) > 2 * len(set(entries)) and len(set(entries)) == len({key for key, _ in entries})


@pytest.mark.parametrize("lesson", [lessons.against, lessons.either, lessons.most])
def test_short_comparisons_are_answered_from_the_payoffs(lesson, monkeypatch):
    """Against a plain list of the payoffs, read back by a pattern."""
    line = "{m} / {n}: {x}, {y}\n"
    monkeypatch.setattr(
        lessons,
        "_payoffs",
        lambda w, s: "".join(line.format(**w.cell_fields(s, i, j)) for i in (0, 1) for j in (0, 1)),
    )
    asked = set()
    for seed in range(200):
        pieces = lesson(Random(seed))
        text = "".join(a + b for a, b in pieces)
        cells = {(m, n): (int(x), int(y)) for m, n, x, y in re.findall(r"(.+?) / (.+?): (\d), (\d)\n", text)}
        mine = list(dict.fromkeys(m for m, _ in cells))
        for cue, answer in pieces:
            cue = cue.split("\n")[-1].removesuffix(":")
            if "against " in cue:
                kind, column = "against", cue.split("against ")[1]
                values = [cells[m, column][0] for m in mine]
                assert lesson is not lessons.either or sorted(cue.split(" against")[0].split(" or ")) == sorted(mine)
            else:
                kind = "you" if cue == "most for you" else "other"
                values = [max(cells[m, n][kind == "other"] for n in mine) for m in mine]
            assert values[0] != values[1] and answer == f" {mine[values[1] > values[0]]}"
            asked.add(kind)
    assert asked == ({"against", "you", "other"} if lesson is lessons.most else {"against"})


def test_answer_loss_is_the_mean_over_answer_tokens(texts, tokenizer):
    model = make_model(TINY, tokenizer)
    ids, answer = (torch.tensor([x]) for x in tokenize(tokenizer, texts[0])[:2])
    logits = model(input_ids=ids).logits[0].double()
    picked = [-logits[t - 1].log_softmax(-1)[ids[0, t]].item() for t in range(ids.shape[1]) if answer[0, t]]
    assert answer_loss(model, ids, answer)[1] == pytest.approx(np.mean(picked), abs=1e-5)
    every = -logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean().item()
    assert answer_loss(model, ids, answer, 0.3)[0].item() == pytest.approx(np.mean(picked) + 0.3 * every, abs=1e-5)


def test_drawn_answers_have_the_probability_they_are_drawn_with():
    """Among choices of one kind, the share of either move is the probability that it was given."""
    groups: dict = {}
    for seed in range(12_000):
        rng = Random(seed)
        s = (corpus.draw_scene if seed % 4 else corpus.meaning_scene)(rng)
        text, label, move = corpus.Writer(rng).choose(s, None if seed % 3 else rng.choice(corpus.PERSONAS))
        assert label == s.labels[move]
        if isinstance(label, corpus.Drawn):
            assert label.other == s.labels[1 - move]
            p = label.p if move == 0 else 1 - label.p
            groups.setdefault(round(p, 6), []).append(move == 0)
    large = {p: moves for p, moves in groups.items() if len(moves) >= 80}
    assert len(large) > 12
    for p, moves in large.items():
        assert abs(np.mean(moves) - p) < 4.5 * (p * (1 - p) / len(moves)) ** 0.5, (p, len(moves))


def test_loss_on_drawn_answers_is_the_cross_entropy_to_both_tokens(tokenizer):
    model, chats = make_model(TINY, tokenizer), [lessons.picks(Random(k)) for k in range(6)]
    rows = [tokenize(tokenizer, chat) for chat in chats]
    ids, answer, drawn = (torch.from_numpy(a) for a in _pad(rows, 0, True))
    assert len(drawn) > 30
    logp = model(input_ids=ids.long()).logits.double().log_softmax(-1)
    total = []
    for r, t in answer.nonzero().tolist():
        own = -logp[r, t - 1, ids[r, t].item()].item()
        for row, position, other, p in drawn.tolist():
            if (row, position) == (r, t):
                own = (1 - p) * own - p * logp[r, t - 1, int(other)].item()
        total.append(own)
    assert answer_loss(model, ids.long(), answer, 0.0, drawn)[1] == pytest.approx(np.mean(total), abs=1e-5)
    hard = answer_loss(model, ids.long(), answer)[1]
    assert abs(hard - np.mean(total)) > 1e-4


def test_training_resumes_to_the_same_bytes(tmp_path):
    whole = train_base(tmp_path / "whole", TINY)
    train_base(tmp_path / "parts", TINY, stop_at=7)
    assert not (tmp_path / "parts").exists()
    parts = train_base(tmp_path / "parts", TINY)
    for name in ("model.safetensors", "tokenizer.json", "training_log.parquet"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    log = pd.read_parquet(whole / "training_log.parquet")
    assert log["loss"].notna().all() and not (tmp_path / "parts.partial").exists()


def test_the_shipped_recipe_is_that_of_the_code():
    assert json.loads(Path("models/pocket/recipe.json").read_text()) == json.loads(json.dumps(asdict(Recipe())))


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


def test_the_shipped_base_reads():
    """Every floor of the report, on the base in models/pocket."""
    model, tokenizer = models.load_base(profiles.load("pocket"))
    report = base_report(model, tokenizer, n=50, seed=7)
    missed = report[~report["passed"].fillna(True).astype(bool)]
    assert missed.empty, missed.to_string()
