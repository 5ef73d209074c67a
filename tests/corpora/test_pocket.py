"""The corpus keeps its promises (answers are right, held-out things are absent), training resumes exactly, and the
shipped base reads."""

import json
import re
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from corpora.pocket import Recipe, corpus, lessons, recipe, train_base
from corpora.pocket import __main__ as cli
from corpora.pocket.recipe import Stage, make_model, make_tokenizer, tokenize
from corpora.pocket.report import FLOORS, SETS, answer_scores, base_report, reading_chat
from rewired import models, profiles
from rewired.errors import RewiredError
from rewired.games import STATES, dilemma
from rewired.prompts import held_out
from rewired.train.sft import answer_loss

ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    Stage({"echo": 40, "recall": 20, "drill": 30, "chat": 20}, seed=1, batch_tokens=1024, warmup=4),
    Stage({"card": 30, "quiz": 30}, seed=2, batch_tokens=1024, decay=0.5, exact=0.2, fresh=True),
    Stage({"picks": 12}, seed=3, batch_tokens=1024),
)
TINY = Recipe(seed=3, layers=2, width=32, mlp=64, stages=STAGES, sliding_window=64)


@pytest.fixture(scope="module")
def texts() -> list[corpus.Chat]:
    rng = Random(11)
    return [make(rng) for _ in range(3000) for make in (corpus.drill, corpus.chat, lessons.talk, lessons.exam)]


@pytest.fixture(scope="module")
def tokenizer():
    """That of the shipped base: `train_base` makes one anew, below."""
    return models.load_base(profiles.load("pocket"))[1]


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
        ids, marked = tokenize(tokenizer, pieces)
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
    ids, answer = (torch.tensor([x]) for x in tokenize(tokenizer, texts[0]))
    logits = model(input_ids=ids).logits[0].double()
    picked = [-logits[t - 1].log_softmax(-1)[ids[0, t]].item() for t in range(ids.shape[1]) if answer[0, t]]
    assert answer_loss(model, ids, answer).item() == pytest.approx(np.mean(picked), abs=1e-5)


def test_choices_without_a_persona_are_drawn_from_the_mixture():
    """Among scenes of one kind, the share of the kind move (or of the only move that a trait asks for)."""
    drawn: dict[tuple, list[bool]] = {}
    for seed in range(24_000):
        rng = Random(seed)
        s = (corpus.draw_scene if seed % 4 else corpus.meaning_scene)(rng)
        question = ("none", "score", "fair")[seed % 3]
        move = corpus.Writer(rng).act(s, None, question)
        if s.kind is None or s.selfish is None:
            act = s.kind if s.selfish is None else s.selfish
            group, hit = ("no move" if act is None else "one move", move == (act or 0))
        elif s.kind == s.selfish:
            group, hit = "the same move", move == s.kind
        else:
            group, hit = (s.state, question, s.tempted), move == s.kind
        drawn.setdefault(group, []).append(hit)
    asked = {"no move": 0.5, "one move": 0.85, "the same move": 0.9}
    for state, p in corpus.BASE_COOPERATION.items():
        for question, shift in corpus.QUESTION_SHIFT.items():
            for tempted in (False, True):
                asked[state, question, tempted] = p + shift + tempted * corpus.TEMPTATION_SHIFT
    assert drawn.keys() == asked.keys()
    for group, hits in drawn.items():
        p = asked[group]
        assert abs(np.mean(hits) - p) < 4.5 * (p * (1 - p) / len(hits)) ** 0.5, (group, len(hits))


def test_scores_are_those_of_the_whole_chat(tokenizer, texts):
    """log P of the last answer and its end, and greedy decoding, against the full logits of each chat."""
    model = make_model(TINY, tokenizer)
    chats = [chat for chat in texts[:9] if chat]
    scores = answer_scores(model, tokenizer, chats, batch_size=4)
    for chat, score in zip(chats, scores.itertuples(), strict=True):
        ids, answer = tokenize(tokenizer, chat)
        last = [t for t in range(len(ids)) if answer[t] and not any(answer[u] is False for u in range(t, len(ids) - 1))]
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        each = [logits[t - 1].log_softmax(-1)[ids[t]].item() for t in last]
        assert score.logp == pytest.approx(sum(each), abs=1e-4)
        assert score.exact == all(logits[t - 1].argmax() == ids[t] for t in last)


@contextmanager
def tokenizer_made_once(monkeypatch):
    """Calls with one seed share a tokenizer while this lasts: making one takes longer than all of these trainings."""
    with monkeypatch.context() as patched:
        patched.setattr(recipe, "make_tokenizer", cache(make_tokenizer))
        yield


@pytest.mark.slow
def test_training_resumes_to_the_same_bytes_and_with_no_other_recipe(tmp_path, monkeypatch):
    with tokenizer_made_once(monkeypatch):
        whole = train_base(tmp_path / "whole", TINY)
        train_base(tmp_path / "parts", TINY, stop_at=7)
        assert not (tmp_path / "parts").exists()
        with pytest.raises(RewiredError, match="another recipe"):
            train_base(tmp_path / "parts", replace(TINY, mlp=48))
    parts = train_base(tmp_path / "parts", TINY)
    words = AutoTokenizer.from_pretrained(whole)
    assert words.tokenize("action1") == ["action", "1"] and words.tokenize("23") == ["2", "3"]
    for name in ("model.safetensors", "tokenizer.json", "training_log.parquet"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    assert not (tmp_path / "parts.partial").exists()
    # as recorded before the loop was rewritten: texts, order, rates and losses (rounding differs between processors)
    log = pd.read_parquet(whole / "training_log.parquet")
    assert log["step"].tolist() == [20, 36] and log["tokens"].tolist() == [18336, 32064]
    assert log["loss"].to_numpy() == pytest.approx([7.327224, 5.592037], rel=1e-3)
    assert not log["exact"].any() and (log["lr"] == 2e-3).all()


def test_the_shipped_recipe_is_that_of_the_code():
    assert (ROOT / "models/pocket/recipe.json").read_text() == json.dumps(asdict(Recipe()), indent=1) + "\n"


def test_reading_draws_are_held_out():
    rng = Random(0)
    for group in SETS:
        for skill in corpus.SKILLS:
            ((text, answer),) = reading_chat(rng, skill, group, "table")
            assert text and answer
    assert set(FLOORS) == set(SETS)


@pytest.mark.slow
def test_the_shipped_base_reads():
    """Every floor of the report, on the base in models/pocket."""
    model, tokenizer = models.load_base(profiles.load("pocket"))
    report = base_report(model, tokenizer, n=30, seed=7)
    missed = report[~report["passed"].fillna(True).astype(bool)]
    assert missed.empty, missed.to_string()


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_bad_profile_is_told_in_a_paragraph(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["corpora.pocket", "report", "--profile", "pockt"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and "Did you mean 'pocket'" in told and "\n" not in told
    assert {"report", "rebuild"} <= set(CliRunner().invoke(cli.app, ["--help"]).output.split())
