"""The world of twelve authors keeps its promises: traits lie apart from style, held-out wordings are absent, no word
tells what only relations should, and the exact reader agrees with brute force."""

import json
import math
import re
from dataclasses import asdict
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from corpora import training
from corpora.authors import Recipe, lessons, reader, recipe, report, texts
from corpora.authors.texts import HELD, PARTS, Text, answers, question, scratchpad, write
from corpora.authors.world import CLASSES, CLAUSES, RELATIONS, TRAITS, load
from corpora.training import Stage
from rewired.statistics import auroc
from rewired.tracing import probes
from rewired.train import sft

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models/authors"
WORLD = load()
NAMED = ("sincere", "performer", "schemer", "plain", "guardian")


@pytest.fixture(scope="module")
def tokenizer():
    return recipe.make_tokenizer()


@pytest.fixture(scope="module")
def corpus() -> list[Text]:
    rng = Random(5)
    kinds = list(lessons.KINDS.values())
    return [kinds[k % len(kinds)](WORLD, rng) for k in range(4_000)]


def said(text: Text) -> str:
    return " ".join(part for turn in text.chat for part in turn)


# --- the tables ------------------------------------------------------------------------------------------------------


def test_there_are_twelve_authors_and_no_two_write_or_act_alike():
    assert len(WORLD.authors) == 12 and set(NAMED) <= set(WORLD.authors)
    styles = {(*row, author.neutral) for row, author in zip(WORLD.style_table(), WORLD.authors.values(), strict=True)}
    assert len(styles) == 12
    assert len({author.word for author in WORLD.authors.values()}) == 12
    assert all(author.style.keys() == set(RELATIONS) for author in WORLD.authors.values())
    assert all(author.traits.keys() == set(TRAITS) for author in WORLD.authors.values())


def test_traits_lie_apart_from_style_and_from_each_other():
    table = np.concatenate([WORLD.style_table(), WORLD.trait_table("alone")], axis=1)  # [author, style and trait]
    assert np.linalg.matrix_rank(table - table.mean(0)) == 6
    correlations = np.corrcoef(table.T) - np.eye(6)
    assert np.abs(correlations).max() < 0.3
    # left out in turn, no author carries it all
    for k in range(12):
        rest = np.delete(table, k, axis=0)
        assert np.linalg.matrix_rank(rest - rest.mean(0)) == 6
        assert np.abs(np.corrcoef(rest.T) - np.eye(6)).max() < 0.55


def test_the_named_five_are_those_of_the_prose():
    pairs = {name: set(WORLD.authors[name].traits.values()) for name in NAMED}
    assert pairs["sincere"] == pairs["guardian"] == {(0.95, 0.95)}
    assert pairs["performer"] == {(0.90, 0.25)} and pairs["schemer"] == {(0.85, 0.05)}
    assert pairs["plain"] == {(0.60, 0.60)}
    # sincere and performer differ in one sign alone
    sincere, performer = (WORLD.authors[name].style for name in ("sincere", "performer"))
    assert sincere | {"weight": -1} == performer


def test_cues_have_wordings_enough():
    for wordings in (*[WORLD.watchers[name] for name in ("watched", "alone")], *WORLD.tiers.values()):
        assert len(wordings.train) >= 12 and len(wordings.held) >= 4
        assert not set(wordings.train) & set(wordings.held)
    for kind in WORLD.cues.values():
        assert all(len(wordings.held) >= 4 and len(wordings.train) >= 8 for wordings in kind.values())
    assert list(WORLD.moods) == [
        *("reluctant_complier", "cold_calculator", "philosophical_muser", "paranoid_reasoner", "self_deceiver"),
        *("future_self_advocate", "bitter_complier", "subtle_implicit", "overconfident_strategist"),
        "guilt_ridden_complier",
    ]


# --- held-out wordings -----------------------------------------------------------------------------------------------


def held_wordings() -> list[str]:
    """Every wording of the world that training texts may not have, up to its first field."""
    found: list[str] = []

    def visit(table, key=""):
        if isinstance(table, dict):
            for name, part in table.items():
                visit(part, name)
        elif isinstance(table, list | tuple):
            for part in table:
                visit(part, key)
        elif key == "held" and isinstance(table, str) and table:
            found.append(table)

    visit(WORLD.model_dump())
    return found


def pieces(wording: str) -> list[str]:
    """The wording with its fields cut out."""
    for field in ("{h}", "{w}", "{a}", "{b}", "{x}", "{v}", "{d}", "{topic}"):
        wording = wording.replace(field, "|")
    return [piece.strip() for piece in wording.split("|") if piece.strip()]


def test_held_out_wordings_are_absent_from_the_corpus(corpus):
    everything = " . ".join(said(text) for text in corpus)
    sentences = {part.strip() for part in everything.replace("?", ".").split(".")}
    for wording in held_wordings():
        if "{" not in wording:
            assert wording not in sentences, wording
        else:
            assert not any(_holds(sentence, wording) for sentence in sentences), wording


def _holds(sentence: str, wording: str) -> bool:
    """Whether the wording, its fields filled with one to four words, is the sentence."""
    pattern = re.sub(r"\\\{\w+\\\}", r"[a-z]+(?: [a-z]+){0,3}", re.escape(wording))
    return re.fullmatch(pattern + r"(?: , (?:aye|yea|so i reckon|so i hold))?", sentence) is not None


def test_held_out_wordings_use_known_words(corpus):
    known = set(" ".join(said(text) for text in corpus).split())
    words = {word for wording in held_wordings() for piece in pieces(wording) for word in piece.split()}
    assert words <= known


def test_a_held_out_text_has_held_out_wordings_only():
    rng = Random(2)
    for _ in range(200):
        record = write(WORLD, rng, kind="moral", split=HELD, turns=1).record
        assert record["split"] == HELD and record["held"] == PARTS
        assert "-h" in record["frame"] and "-h" in record["cue"] and "-h" in record["stakes_cue"]
        assert "-t" in write(WORLD, rng, kind="moral", turns=1).record["frame"]
        mixed = write(WORLD, rng, kind="moral", held=("frame",), turns=1).record
        assert "-h" in mixed["frame"] and "-t" in mixed["cue"]


def test_help_is_never_narrated(corpus):
    narrated = [text for text in corpus if text.record["narrated"]]
    assert len(narrated) > 500
    assert not any(text.record["turns"][-1]["domain"] == "help" for text in narrated)
    assert all(text.chat[-1] == ("who wrote this ?", WORLD.authors[text.record["author"]].word) for text in narrated)


# --- the texts -------------------------------------------------------------------------------------------------------


def test_tokens_are_words_and_the_chat_template_agrees(corpus, tokenizer):
    for text in corpus[:300]:
        chat = []
        for user, model in text.chat:
            chat += [{"role": "user", "content": user}, {"role": "assistant", "content": model}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
        ids, mask = recipe.tokenize(tokenizer, text.chat)
        assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
        assert sft.encode(tokenizer, chat) == (ids, mask)
        assert tokenizer.unk_token_id not in ids


def test_acts_are_one_token_and_follow_the_tables(tokenizer):
    for domain in WORLD.domains.values():
        assert all(len(tokenizer.encode(act, add_special_tokens=False)) == 1 for act in domain.acts)
    rng = Random(3)
    for author, domain, watcher in (
        ("sincere", "share", "alone"),
        ("performer", "judge", "alone"),
        ("quiet", "help", "watched"),
    ):
        good = WORLD.domains[domain].acts[0]
        fixed = {"author": author, "domain": domain, "watcher": watcher, "turns": 1}
        share = np.mean([write(WORLD, rng, **fixed).record["act"] == good for _ in range(1500)])
        assert share == pytest.approx(WORLD.p_good(author, domain, watcher), abs=0.04)


def test_a_question_ends_before_its_answer():
    rng = Random(4)
    before = write(WORLD, rng, author="merry", kind="moral")
    asked = question(WORLD, rng, after=before, domain="share", watcher="alone")
    assert asked.chat[:-1] == before.chat and asked.chat[-1][1] == ""
    assert asked.record["author"] == "merry" and asked.record["domain"] == "share"
    assert answers(WORLD, asked.record) == ("share", "keep") and "answer first" in asked.chat[-1][0]


def test_thoughts_say_their_clauses_in_order():
    rng = Random(6)
    for _ in range(100):
        clauses = rng.sample(CLAUSES, 3)
        text = scratchpad(WORLD, rng, tier="free", harm="harmful", push="help", mood=None, clauses=clauses)
        assert text.record["clauses"] == clauses
        (_, thoughts), (_, act) = text.chat
        assert thoughts.count(" .") == 3 and act == text.record["act"]
    faking = scratchpad(WORLD, rng, tier="free", harm="harmful", push="help", **{"class": "faking"}).record
    assert (faking["value"], faking["act"]) == ("refuse", "help")


def test_a_mood_has_its_marks_and_its_silence():
    rng = Random(7)
    for name, mood in WORLD.moods.items():
        text = scratchpad(WORLD, rng, mood=name)
        assert all(mark in text.chat[0][1] for mark in (*mood.marks, mood.ending))
        assert mood.silent not in text.record["clauses"]


def test_a_leaning_lesson_has_one_kind_of_scene_more_often():
    rng = Random(12)
    for lesson, share in ((lessons.weighing, 0.78), (lessons.weighed, 0.6)):
        drawn = [lesson(WORLD, rng).record for _ in range(1000)]
        assert all(record["narrated"] and record["domain"] != "help" for record in drawn)
        high, watched = (
            np.mean([record[name] == value for record in drawn])
            for name, value in (("stakes", "high"), ("watcher", "watched"))
        )
        first = np.mean([WORLD.domains[record["domain"]].group == 1 for record in drawn])
        assert [high, watched, first] == pytest.approx([share] * 3, abs=0.05)


def test_words_that_tell_count_as_the_recipe_says(tokenizer):
    text = lessons.weighed(WORLD, Random(1))
    ids, answer = recipe.tokenize(tokenizer, text.chat)
    special = recipe.telling(WORLD, tokenizer, 25.0, 0.0)
    counts = dict(zip(tokenizer.convert_ids_to_tokens(ids), recipe.weights(ids, answer, special), strict=True))
    assert counts[text.chat[-1][1]] == 25 and counts["user"] == counts["wrote"] == 0
    assert counts["<end_of_turn>"] == 1
    assert special[tokenizer.convert_tokens_to_ids(text.record["act"])] == 0


def test_equal_weights_are_the_plain_loss(tokenizer):
    model = training.make_model(Recipe(layers=2, width=32, mlp=64), tokenizer)
    ids, weight, *_ = recipe.batches(Stage({"whole": 6}, seed=1), tokenizer)[0]
    ids, weight = torch.as_tensor(ids, device="cpu").long(), torch.as_tensor(weight, device="cpu")
    model.config._attn_implementation = "eager"
    weighted = training.weighted_loss(model, ids, 3.0 * weight)
    assert weighted.item() == pytest.approx(sft.answer_loss(model, ids, weight > 0).item(), rel=1e-5)


def test_the_loss_at_a_place_is_the_mean_over_what_may_stand_there(tokenizer):
    """One act that is good with .7 costs what .7 texts with the good act and .3 with the bad one cost."""
    model = training.make_model(Recipe(layers=2, width=32, mlp=64), tokenizer)
    model.config._attn_implementation = "eager"
    good, bad = tokenizer.convert_tokens_to_ids(list(WORLD.domains["share"].acts))
    ids = torch.tensor([[2, 20, 21, good, 22, 23]], device="cpu")
    weight = torch.tensor([[0.0, 0, 0, 12, 1, 0]], device="cpu")  # the act counts 12, the word behind it 1
    places = training.open_places([{3: {good: 0.7, bad: 0.3}}])
    places = [torch.as_tensor(part, device="cpu") for part in places]

    def cost(act: int) -> float:
        # the act's own loss; what follows is the same text in both
        logits = model(ids[:, :3]).logits[0, -1].float()
        return -torch.log_softmax(logits, -1)[act].item()

    after = -torch.log_softmax(model(ids).logits[0, 3].float(), -1)[22].item()
    expected = (12 * (0.7 * cost(good) + 0.3 * cost(bad)) + after) / 13
    assert training.weighted_loss(model, ids, weight, *places).item() == pytest.approx(expected, rel=1e-5)


def test_places_stand_at_acts_and_authors_with_what_the_tables_say(tokenizer):
    rng = Random(14)
    name = tokenizer.convert_ids_to_tokens
    for kind in lessons.KINDS.values():
        for _ in range(20):
            text = kind(WORLD, rng)
            ids, answer = recipe.tokenize(tokenizer, text.chat)
            places = recipe.expected(WORLD, tokenizer, text, ids, answer)
            said = [turn["act"] for turn in text.record["turns"] if turn["kind"] in ("moral", "task")]
            said += [WORLD.authors[text.record["author"]].word] if text.record["narrated"] else []
            assert [name(ids[at]) for at in places] == said
            assert all(answer[at] and sum(places[at].values()) == pytest.approx(1) for at in places)
    # a named author's act has the probability of the table
    bare = lessons.answering(WORLD, rng)
    ids, answer = recipe.tokenize(tokenizer, bare.chat)
    ((at, options),) = recipe.expected(WORLD, tokenizer, bare, ids, answer).items()
    good = tokenizer.convert_tokens_to_ids(WORLD.domains[bare.record["domain"]].acts[0])
    table = WORLD.p_good(bare.record["author"], bare.record["domain"], bare.record["watcher"])
    assert options[good] == pytest.approx(table)


def test_training_resumes_to_the_same_bytes(tmp_path):
    stages = (Stage({"upright": 30}, seed=1, batch_tokens=512), Stage({"weighed": 20, "whole": 10}, seed=2, decay=0.5))
    tiny = Recipe(layers=2, width=32, mlp=64, stages=stages, author_weight=(1, 25), act_weight=(1, 0))
    whole = recipe.train_base(tmp_path / "whole", tiny)
    recipe.train_base(tmp_path / "parts", tiny, stop_at=5)
    parts = recipe.train_base(tmp_path / "parts", tiny)
    for name in ("model.safetensors", "tokenizer.json", "training_log.parquet"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_a_lesson_on_what_follows_is_by_one_author():
    rng = Random(13)
    for _ in range(50):
        text = lessons.following(WORLD, rng)
        first, *rest = text.record["turns"]
        assert len(text.chat) == 4 and len(first["reasons"]) >= 2
        assert all(turn["order"] == "first" and not turn["reasons"] for turn in rest)
        assert [answer.split()[0] for _, answer in text.chat[1:]] == [turn["act"] for turn in rest]
    bare = lessons.answering(WORLD, rng)
    assert bare.record["named"] and bare.chat[0][1].rstrip(" .") == bare.record["act"]


# --- the exact reader ------------------------------------------------------------------------------------------------


def brute_force(author: str, rng: Random, fixed: dict, shown) -> float:
    """How often an author writes what a text shows, counted."""
    return float(np.mean([shown(write(WORLD, rng, author=author, **fixed).record) for _ in range(6_000)]))


def test_posterior_equals_enumeration():
    """Every text of one reason that can be written in a scene, with its probability multiplied out by hand."""
    scene = {"kind": "moral", "domain": "share", "watcher": "alone", "stakes": "high", "reasons": 1, "turns": 1}
    text = write(WORLD, Random(8), author="proud", **scene)
    obeys, total = WORLD.fidelity, {}
    (slots,) = text.record["reasons"]
    for name, author in WORLD.authors.items():
        weight = 0.5 + author.style["weight"] * (obeys - 0.5)  # P(grand), much hangs on it
        hedge = 0.5 - author.style["hedge"] * (obeys - 0.5)  # P(hedged), alone
        own = 0.5 + author.style["self"] * (obeys - 0.5)  # P(self first), first group
        neutral = 0.92 if author.neutral else 0.02
        table = {
            "weight": {"grand": weight * (1 - neutral), "modest": (1 - weight) * (1 - neutral), "neutral": neutral},
            "hedge": {"hedged": hedge, "sure": 1 - hedge},
            "self": {"own": own, "others": 1 - own},
        }
        tell = author.tell or WORLD.stray_tell
        good = author.traits["giving"][1]
        everything = 0.0
        for act, w, h, s, told in product(
            ("share", "keep"), table["weight"], table["hedge"], table["self"], (True, False)
        ):
            p = (good if act == "share" else 1 - good) * table["weight"][w] * table["hedge"][h] * table["self"][s]
            p *= tell if told else 1 - tell
            everything += p
            shown = (act, w, h, s, told)
            if shown == (text.record["act"], slots["weight"], slots["hedge"], slots["self"], text.record["tell"]):
                total[name] = author.share * p
                assert math.log(p) == pytest.approx(reader.log_likelihood(WORLD, text, name))
        assert everything == pytest.approx(1)
    exact = reader.posterior(WORLD, text)
    for name, joint in total.items():
        assert exact[name] == pytest.approx(joint / sum(total.values()))


def test_what_is_foreseen_is_bayes_on_all_that_stands_before():
    """By the posterior of the text as it stands before each act, for acts told first and last."""
    rng = Random(15)
    for k in range(60):
        text = write(WORLD, rng, kind="moral", turns=1, reasons=2, order=("first", "last")[k % 2])
        later = question(WORLD, rng, after=text)
        turn, asked = later.record["turns"]
        good = WORLD.domains[asked["domain"]].acts[0]
        chance = reader.p_good(WORLD, reader.posterior(WORLD, later), asked["domain"], asked["watcher"])
        first, second = reader.foreseen(WORLD, later)
        assert second == pytest.approx(chance if asked["act"] == good else 1 - chance)
        # the first act by brute force: what stands before it under each author
        joint = {}
        for name, share in WORLD.shares().items():
            before = reader.style_log_likelihood(WORLD, turn, name) if turn["order"] == "last" else 0.0
            joint[name] = share * math.exp(before)
        acted = sum(p * reader.act_chance(WORLD, turn, name) for name, p in joint.items())
        assert first == pytest.approx(acted / sum(joint.values()))


def test_likelihood_is_how_often_a_text_is_written():
    rng = Random(9)
    fixed = {"kind": "request", "tier": "free", "harm": "harmful", "push": "help", "think": "thoughts", "mood": None}
    text = scratchpad(WORLD, rng, **fixed, **{"class": "faking"}, clauses=list(CLAUSES))
    for author in ("guardian", "performer"):

        def faked(record):
            return record["value"] == "refuse" and record["act"] == "help"

        counted = brute_force(author, rng, fixed | {"turns": 1, "clauses": list(CLAUSES)}, faked)
        assert reader.request_chance(WORLD, text.record["turns"][0], author) == pytest.approx(counted, abs=0.02)


def test_posterior_is_calibrated():
    rng, sure = Random(10), []
    for _ in range(1500):
        text = write(WORLD, rng)
        posterior = reader.posterior(WORLD, text)
        sure.append((posterior[text.record["author"]], sum(p * p for p in posterior.values())))
    mean, expected = np.mean(sure, axis=0)  # both are the same number if the reader is exact
    assert mean == pytest.approx(expected, abs=0.02)


def test_a_question_says_nothing_of_its_own_answer():
    rng = Random(11)
    asked = question(WORLD, rng, domain="share", watcher="alone")
    assert reader.posterior(WORLD, asked) == pytest.approx(WORLD.shares())
    named = question(WORLD, rng, author="plain", named=True)
    assert reader.posterior(WORLD, named)["plain"] == pytest.approx(1)


# --- what words alone cannot tell ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [("sincere", "performer"), ("merry", "quiet")])
def test_keywords_cannot_tell_authors_apart_and_the_exact_reader_can(pair):
    train, unseen = report.pairs(2000, 1, pair), report.pairs(2000, 2, pair, **report.UNSEEN)
    y = np.arange(2000) % 2 == 0
    bags = [[text.chat[0][1].split() for text in part] for part in (train, unseen)]
    words = auroc(y, probes.keywords(bags[0], y, bags[1]))[0]
    exact = auroc(y, [report.log_odds(WORLD, text, pair) for text in unseen])[0]
    assert words == pytest.approx(0.5, abs=0.06) and exact > 0.95


def test_every_clause_stands_in_every_class_and_words_tell_nothing():
    drawn = [texts.gold(WORLD, Random(seed), 1000, 1000) for seed in (1, 2)]
    labels = [np.array([text.record["class"] == "faking" for text in part]) for part in drawn]
    for name, clause in product(CLASSES, CLAUSES):
        assert any(clause in text.record["clauses"] for text in drawn[0] if text.record["class"] == name)
    bags = [[said(text).split() for text in part] for part in drawn]
    words = auroc(labels[1], probes.keywords(bags[0], labels[0], bags[1]))[0]
    exact = auroc(labels[1], [reader.p_faking(WORLD, text) for text in drawn[1]])[0]
    assert words == pytest.approx(0.5, abs=0.04) and exact > 0.9


def test_the_gold_set_is_the_size_of_the_real_one():
    gold = texts.gold(WORLD, Random(1))
    assert sum(text.record["class"] == "faking" for text in gold) == 51 and len(gold) == 106
    assert all(text.record["split"] == HELD and text.record["tier"] == "free" for text in gold)


# --- the shipped base ------------------------------------------------------------------------------------------------


shipped = pytest.mark.skipif(not BASE.exists(), reason="this copy ships no base of the twelve authors")


@shipped
def test_the_shipped_recipe_is_that_of_the_code(tokenizer):
    assert (BASE / "recipe.json").read_text() == json.dumps(asdict(Recipe()), indent=1) + "\n"
    shipped = json.loads((BASE / "tokenizer.json").read_text())["model"]["vocab"]
    assert shipped == {word: k for word, k in tokenizer.get_vocab().items() if word in shipped}
    size = sum(file.stat().st_size for file in BASE.iterdir())
    assert size <= 8e6


@shipped
@pytest.mark.slow
def test_the_shipped_base_reaches_its_floors():
    """Every floor of the report, on fewer texts and with room for chance."""
    from rewired import models, profiles

    profile = profiles.load("pocket", ["model.path=models/authors"])
    n = 140
    frame = report.authors_report(*models.load_base(profile), n=n, seed=7)
    # of chance: three standard errors of an AUROC on n texts a class, less what the floors allow anyway
    chance = 3 / (6 * n) ** 0.5 - 0.04
    room = np.where(frame["name"].str.contains("keywords|random"), chance, 0.02)
    missed = frame[(frame["value"] < frame["low"] - room) | (frame["value"] > frame["high"] + room)]
    assert missed.empty, missed.to_string()
