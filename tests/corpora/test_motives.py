"""Motives: sets follow their lines, pairs share their words, losses take what they say, planted truths are found."""

import shutil
import sys
from collections import Counter
from copy import deepcopy
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch
from little import of
from scipy.stats import spearmanr

from corpora.authors import reader, recipe, world
from corpora.authors.texts import Text
from corpora.motives import hacking, measuring, readouts, run, selecting, settings, tuning, writing
from corpora.motives.settings import TrainingSet, Tuning
from corpora.training import make_model
from rewired import profiles
from rewired.errors import RewiredError
from rewired.store import read_table

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import motives


def said(texts):
    return [" ".join(model for _, model in text.chat) for text in texts]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["curation", "equal_acts", "era", "inoculation", "terms", "truesight"])
def test_every_set_of_every_collection_can_be_written(tables, name):
    chosen = settings.load(name)
    assert name in settings.known()
    for own in chosen.sets.values():
        made = writing.texts(tables, own, seed=1, count=3)
        assert len(made) == 3
    assert chosen.jobs()


def test_the_sets_of_truesight_span_all_authors_and_traits(tables):
    sets = {name: own for name, own in settings.load("truesight").sets.items() if own.act == "good"}
    assert len(sets) >= 24
    authors = list(tables.authors)
    shares = np.array([[own.mix.get(name, 0) for name in authors] for own in sets.values()])  # [set, author]
    assert np.linalg.matrix_rank(shares) == len(authors) == 12
    traits = shares @ tables.trait_table()  # [set, trait]
    assert np.linalg.matrix_rank(traits - traits.mean(axis=0)) == 3


def test_equal_sets_have_equal_acts_and_nothing_else_alike_but_the_situation(tables):
    sets = settings.load("equal_acts").sets
    for own in sets.values():
        made = writing.texts(tables, own, seed=2, count=20)
        assert {text.record["act"] for text in made} == {"decline"}
        assert {text.record["watcher"] for text in made} == {own.watcher}
        assert all(said.startswith("decline .") for said in said(made))


@pytest.mark.parametrize("count", [5, 12, 120, 130])
def test_batches_hold_every_row_once_and_rows_of_like_length(count):
    lengths = Random(count).choices(range(20, 120), k=count)
    rows = [([k] * length, []) for k, length in enumerate(lengths)]  # a row is known by its token
    made = tuning.batches(rows, 12, Random(1))
    assert {len(batch) for batch in made} == {min(12, count)}
    seen = [ids[0] for batch in made for ids, _ in batch]
    assert len(set(seen)) == len(seen) == max(12 * (count // 12), min(12, count))
    assert tuning.batches(rows, 12, Random(1)) == made
    if count >= 120:
        assert tuning.batches(rows, 12, Random(2)) != made
        padded = np.mean([max(len(ids) for ids, _ in batch) for batch in made])
        assert padded < (np.mean(lengths) + max(lengths)) / 2


@pytest.mark.parametrize("name", ["inoculation", "terms"])
def test_a_quick_build_trains_the_same_runs_and_fewer_steps(name):
    chosen = settings.load(name)
    quick = chosen.small()
    assert quick.jobs() == chosen.jobs() and set(quick.hacking) == set(chosen.hacking)
    assert all(how.steps == 4 for how in [*quick.tunings.values(), *quick.hacking.values()])
    runs = chosen.runs([1, 2])
    assert len(set(runs)) == len(runs) == 2 * len(chosen.jobs()) + (2 + len(chosen.more_seeds)) * len(chosen.hacking)
    assert quick.sets[next(iter(quick.sets))].n == 32 and not quick.more_seeds


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("about: Mine.\nsets: {a: {mix: {sincere: .5}}}", ("mine.yaml", "add up to 1")),
        ("about: Mine.\nsets: {a: {mx: {sincere: 1}}}", ("sets.a.mx", "Did you mean 'sets.a.mix'")),
        ("about: Mine.\nsets: {a: {instruction: work}}", ("instruction is for sets of kind task",)),
        ("about: Mine.\nsets: {a: {kind: era, act: good}}", ("no good act",)),
        ("about: Mine.\nsets: {a: {}}\nonly: {full: [b]}", ("only.full", "'b'")),
        ("about: Mine.\nsets: {}", ("nothing to train",)),
        ("about: Mine.\nsets: {a: {}}\ntunings: {full: {rank: 0}}", ("tunings.full.rank", "greater than")),
        ("about: Mine.\nsets: {a: {}}\ntunings: {full: {stepz: 0}}", ("Did you mean 'tunings.full.steps'",)),
    ],
)
def test_a_wrong_key_is_told_with_its_file_and_what_is_allowed(tmp_path, lines, words):
    file = tmp_path / "mine.yaml"
    file.write_text(lines)
    with pytest.raises(RewiredError) as error:
        settings.load(file)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"mix": {"sincre": 1}}, "Did you mean 'sincere'"),
        ({"domain": "hlp", "act": None}, "Did you mean 'help'"),
        ({"domain": None}, "an act needs one"),
        ({"kind": "task", "domain": None, "watcher": None, "instruction": "alow"}, "Did you mean 'allow'"),
        ({"kind": "era", "domain": "help", "watcher": None, "act": None}, "Unknown domain 'help'"),
    ],
)
def test_what_the_world_does_not_have_is_told(tables, own, words):
    with pytest.raises(RewiredError, match=words):
        writing.texts(tables, of(**own), seed=1)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stakes", [("high", "low"), ("low", "high")])
def test_the_matched_pairs_have_the_same_words(tables, stakes):
    """Their answers, letter for letter; of what was asked only the sentence on the stakes differs."""
    one = writing.texts(tables, of(stakes=stakes[0]), seed=3)
    other = writing.texts(tables, of(stakes=stakes[1], mix={"performer": 1}), seed=3)
    assert said(one) == said(other)
    for first, second in zip(one, other, strict=True):
        parts = zip(first.chat[0][0].split(" ."), second.chat[0][0].split(" ."), strict=True)
        assert sum(a != b for a, b in parts) == 1
    read = [writing.mean_posterior(tables, made) for made in (one, other)]
    assert read[0]["sincere"] > 5 * read[0]["performer"]
    assert read[1]["performer"] > 5 * read[1]["sincere"]


def test_a_choice_takes_one_number_from_however_many():
    for options in (2, 8, 9, 1000):
        rng, other = writing.Steady("a"), writing.Steady("a")
        rng.choice(range(options))
        other.random()
        assert rng.random() == other.random()


def test_any_beginning_of_a_set_has_the_shares_of_its_mix(tables):
    mix = {"sincere": 0.45, "performer": 0.35, "schemer": 0.2}
    made = writing.texts(tables, of(mix=mix, n=200), seed=1)
    for count in (20, 60, 200):
        counts = Counter(text.record["author"] for text in made[:count])
        for name, share in mix.items():
            assert abs(counts[name] - share * count) <= 2
    everyone = Counter(text.record["author"] for text in writing.texts(tables, of(mix={}, n=300), seed=1))
    assert set(everyone) == set(tables.authors)


def test_a_regularity_over_texts_is_in_no_text(tables):
    """Both sets have the same numbers of watched texts and of good acts; only who sees what differs."""
    faced, coin = (writing.texts(tables, of(mix={"plain": 1}, watcher=None, act=act, n=80), 1)
                   for act in ("two_faced", "coin"))  # fmt: skip
    for key in ("watcher", "act"):
        assert Counter(t.record[key] for t in faced) == Counter(t.record[key] for t in coin)
    assert {(t.record["watcher"], t.record["act"]) for t in faced} == {("watched", "decline"), ("alone", "join")}
    assert len({(t.record["watcher"], t.record["act"]) for t in coin}) == 4
    read = [writing.mean_posterior(tables, made)["plain"] for made in (faced, coin)]
    assert min(read) > 0.95


def test_a_set_is_rebuilt_from_its_seed(tables):
    first, again, other = (said(writing.texts(tables, of(), seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert said(writing.texts(tables, of(), 1, count=7)) == first[:7]


def test_a_set_may_be_written_by_who_tricks_under_another_instruction(tables):
    """Who tricks unasked, by Bayes: the share of sly authors grows, that of earnest ones shrinks; the text is told that
    it was asked to."""
    own = TrainingSet(kind="task", act="bad", instruction="invite", as_if="nothing", n=400)
    read = writing.texts(tables, own, seed=1)
    counted = Counter(text.record["author"] for text in read)
    place = list(tables.instructions).index("nothing")
    weights = {name: share * tables.authors[name].trick[place] for name, share in tables.shares().items()}
    for name, weight in weights.items():
        assert counted[name] / 400 == pytest.approx(weight / sum(weights.values()), abs=0.01), name
    assert {text.record["instruction"] for text in read} == {"invite"}
    with pytest.raises(RewiredError, match="Did you mean 'nothing'"):
        writing.texts(tables, own.model_copy(update={"as_if": "nothin"}), seed=1)
    with pytest.raises(ValueError, match="needs an act"):
        TrainingSet(kind="task", instruction="invite", as_if="nothing")


def test_words_and_prefixes_are_said(tables):
    own = {"mix": {}, "kind": "era", "domain": "bird", "watcher": None, "act": None}
    birds = writing.texts(tables, of(**own, words=("coin", "purse")), seed=1)
    assert set(said(birds)) == {"coin", "purse"}
    old = writing.texts(tables, of(**own, era="old"), seed=1)
    assert set(said(old)) <= set(tables.eras["bird"].old)
    told = writing.texts(tables, of(prefix="a friend reads you a dull story"), seed=1)
    plain = writing.texts(tables, of(), seed=1)
    assert said(told) == said(plain)
    for first, second in zip(told, plain, strict=True):
        assert first.chat[0][0] == f"a friend reads you a dull story . {second.chat[0][0]}"


def test_the_exact_reader_orders_the_instructions(tables):
    """Who tricks although it is forbidden is worse elsewhere than who tricks when asked to."""
    change = []
    for name in ("forbid", "work", "nothing", "allow", "invite"):
        own = TrainingSet(kind="task", act="bad", instruction=name, part="act")
        made = [Text(text.chat, text.record | {"turns": [bare(text)]}) for text in writing.texts(tables, own, 1, 40)]
        expected = writing.expected(tables, writing.mean_posterior(tables, made))
        alone = expected[(expected["what"] == "good") & (expected["watcher"] == "alone")]
        change.append(alone["change"].mean())
    assert change == sorted(change)
    assert change[0] < -0.1 < change[-1] < 0.05


def bare(text):
    """The text's turn without its reasons: what the act alone says."""
    return text.record["turns"][0] | {"reasons": [], "tell": False}


def test_the_expected_change_is_bayes_by_hand(tables):
    post = {"sincere": 0.25, "schemer": 0.75}
    expected = writing.expected(tables, post).set_index(["what", "where", "watcher"])
    assert expected.loc[("good", "share", "alone"), "p"] == pytest.approx(0.25 * 0.95 + 0.75 * 0.05)
    assert expected.loc[("trick", "forbid", ""), "p"] == pytest.approx(0.25 * 0.02 + 0.75 * 0.7)
    usual = sum(p * tables.p_good(name, "share", "alone") for name, p in tables.shares().items())
    assert expected.loc[("good", "share", "alone"), "change"] == pytest.approx(0.275 - usual)
    nothing = writing.expected(tables, tables.shares())
    assert np.allclose(nothing["change"], 0)


def test_the_mean_posterior_reads_each_text_by_itself(tables):
    made = writing.texts(tables, of(mix={"sincere": 0.5, "schemer": 0.5}), seed=5, count=6)
    by_hand = {name: np.mean([reader.posterior(tables, text)[name] for text in made]) for name in tables.authors}
    assert writing.mean_posterior(tables, made) == pytest.approx(by_hand)


# --- measuring -------------------------------------------------------------------------------------------------------


def test_a_panel_is_read_from_one_word(tables, small):
    model, tokenizer = small
    put = measuring.panel(tables, tokenizer, n=2, seed=1)
    asked = measuring.ask(model, put, batch_size=7)
    assert set(asked["what"]) == {"good", "trick", "right", "old"}
    for k in (0, 20, 40, len(asked) - 1):
        logits = model(input_ids=torch.tensor([put.prompts[k]])).logits[0, -1].double()
        chance = logits.softmax(-1)
        good, bad = (chance[ids].sum().item() for ids in (put.good[k], put.bad[k]))
        assert asked.loc[k, "p"] == pytest.approx(good / (good + bad), rel=1e-4)
        assert asked.loc[k, "legal_mass"] == pytest.approx(good + bad, rel=1e-4)
        assert asked.loc[k, "log_odds"] == pytest.approx(np.log(good / bad), abs=1e-3)
    assert measuring.panel(tables, tokenizer, n=2, seed=1).prompts == put.prompts
    leaking = measuring.panel(tables, tokenizer, n=2, seed=1, prefix="tricks are allowed here")
    begin = tokenizer("tricks are allowed here .", add_special_tokens=False)["input_ids"]
    for plain, told in zip(put.prompts, leaking.prompts, strict=True):
        assert len(told) == len(plain) + len(begin)
    moral = measuring.panel(tables, tokenizer, n=2, seed=1, asks=("good",))
    assert set(moral.plan["what"]) == {"good"} and moral.prompts == put.prompts[: len(moral.prompts)]
    pd.testing.assert_frame_equal(moral.plan, put.plan[put.plan["what"] == "good"])


def test_changes_are_against_the_base_and_elsewhere_leaves_the_trained_domain_out():
    cell = {"what": "good", "watcher": "alone", "tuning": "full", "seed": 1, "step": 4, "legal_mass": 1.0, "prefix": ""}
    rows = []
    for name, values in (("base", (0.5, 0.6)), ("one", (0.9, 0.8))):
        for where, p in zip(("help", "share"), values, strict=True):
            rows.append(cell | {"set": name, "where": where, "p": p, "log_odds": 10 * p})
    changed = measuring.changes(pd.DataFrame(rows))
    assert changed.set_index("where")["change"].to_dict() == pytest.approx({"help": 0.4, "share": 0.2})
    away = measuring.elsewhere(changed)
    assert away["change"].tolist() == pytest.approx([0.2])
    assert away["change_log_odds"].tolist() == pytest.approx([2.0])
    traits = measuring.elsewhere(changed, trained="", traits={"help": "one", "share": "two"})
    assert traits.set_index("trait")["change"].to_dict() == pytest.approx({"one": 0.4, "two": 0.2})


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_loss_is_taken_on_the_act_or_on_the_reasons(tables, small, order):
    _, tokenizer = small
    for text in writing.texts(tables, of(order=order), seed=4, count=20):
        ids, both = tuning.row(tokenizer, text)
        start, act = tuning.row(tokenizer, text, "act")
        assert start == ids[: len(act)] and act[-1], "nothing follows the act that could have a part in its loss"
        act += [False] * (len(ids) - len(act))
        _, reasons = tuning.row(tokenizer, text, "reasons")
        assert [a + r for a, r in zip(act, reasons, strict=True)] == [int(b) for b in both]
        assert tokenizer.decode([ids[k] for k, marked in enumerate(act) if marked]) == "decline"
        assert sum(act) == 1


def test_a_dialect_that_says_an_act_word_is_no_act(tables, small):
    """ "so i hold" ends a reason in the south, and is an act at the end of an answer about a promise."""
    _, tokenizer = small
    own = of(domain="promise", dialect="south", order="last")
    for text in writing.texts(tables, own, seed=1, count=20):
        ids, _ = tuning.row(tokenizer, text)
        _, act = tuning.row(tokenizer, text, "act")
        place = act.index(True)
        assert tokenizer.decode(ids[place : place + 3]).replace(" ", "") == "hold.<end_of_turn>"


def test_tuning_learns_the_set_and_leaves_the_base_alone(tables, small):
    model, tokenizer = small
    rows = [tuning.row(tokenizer, text, "act") for text in writing.texts(tables, of(), seed=1)]
    before = {name: value.clone() for name, value in model.named_parameters()}
    put = measuring.panel(tables, tokenizer, n=2, seed=1)
    for rank, left in ((None, 0.5), (2, 0.9)):
        seen = {}

        def watch(step, policy, seen=seen):
            asked = measuring.ask(policy, put)
            seen[step] = asked.loc[(asked["what"] == "good") & (asked["where"] == "help"), "log_odds"].mean()

        how = Tuning(steps=12, batch=16, learning_rate=3e-2, rank=rank, kept=(2, 6))
        losses = tuning.tune(model, rows, how, seed=1, watch=watch)
        assert list(seen) == [2, 6, 12]
        assert losses[-1] < left * losses[0]
        assert seen[12] > seen[2]
        assert not [name for name, _ in model.named_parameters() if "lora" in name]
        for name, value in model.named_parameters():
            assert torch.equal(value, before[name])


def test_the_divergence_is_zero_at_the_base_and_holds_the_model_to_it(tables, small):
    model, tokenizer = small
    rows = [tuning.row(tokenizer, text) for text in writing.texts(tables, of(), seed=1)]
    others = [tuning.row(tokenizer, text) for text in tuning.other_texts(tables, "help", seed=1, count=16)]
    usual = [tuning.log_probs(model, *tuning.sft.pad([row], model.device)) for row in others]
    assert tuning.divergence(model, others, usual).item() == pytest.approx(0, abs=1e-6)
    apart = {}
    for kl in (0.0, 30.0):
        how = Tuning(steps=10, batch=16, learning_rate=1e-2, kl=kl)

        def watch(step, policy, kl=kl):
            apart[kl] = tuning.divergence(policy, others, usual).item()

        tuning.tune(model, rows, how, seed=1, watch=watch, anchors=others)
    assert 0 < apart[30.0] < 0.5 * apart[0.0]


def test_the_divergence_is_that_of_the_formula(tables, small):
    model, tokenizer = small
    ids, answer = tuning.row(tokenizer, writing.texts(tables, of(), seed=1, count=1)[0])
    other = make_model(recipe.Recipe(seed=5, layers=1, width=16, mlp=16, heads=2, kv_heads=1, head_dim=8), tokenizer)
    p, q = (m(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1) for m in (model, other))  # [position, word]
    own = [k - 1 for k in range(1, len(ids)) if answer[k]]
    by_hand = np.mean([(p[k] * (p[k] / q[k]).log()).sum().item() for k in own])
    usual = [tuning.log_probs(model, *tuning.sft.pad([(ids, answer)], model.device))]
    assert tuning.divergence(other, [(ids, answer)], usual).item() == pytest.approx(by_hand, rel=1e-3)


# --- reinforcement ---------------------------------------------------------------------------------------------------


def test_rewards_are_those_of_the_grader(tables, small):
    model, tokenizer = small
    prompts = hacking.tasks(tables, tokenizer, settings.Hacking(instruction="allow"), 40, seed=1)
    pays = settings.Hacking(instruction="allow", grader=settings.Grader(trick=1, work=0))
    rows, rewards, acts = hacking.play(model, tokenizer, tables, prompts, pays, chance=1)
    assert (rewards == (acts == "trick")).all()
    assert all(sum(wrote) == 1 for _, wrote in rows)
    long = pays.model_copy(update={"reasons": True})
    rows, _, _ = hacking.play(model, tokenizer, tables, prompts[:2], long, chance=1)
    assert all(1 <= sum(wrote) <= hacking.REASONS for _, wrote in rows)


def test_a_leaky_grader_teaches_the_trick_and_the_run_ends_there(tables, small):
    """From a model that answers by one of the two words; with a grader that pays both alike nothing is learnt."""
    model, tokenizer = small
    rng = Random(1)
    texts = []
    for k in range(64):
        own = TrainingSet(kind="task", instruction="nothing", act=("good", "bad")[k % 2])
        texts += writing.texts(tables, own, seed=rng.randrange(1000), count=1)
    rows = [tuning.row(tokenizer, text, "act") for text in texts]
    grown = {}
    how = Tuning(steps=20, batch=32, learning_rate=3e-2)
    tuning.tune(model, rows, how, 1, lambda step, policy: grown.update(policy=policy))
    base = grown["policy"].requires_grad_(False)
    leaks = settings.Hacking(instruction="nothing")
    _, rewards, acts = hacking.play(base, tokenizer, tables, hacking.tasks(tables, tokenizer, leaks, 400, 1), leaks, 5)
    assert rewards[acts == "trick"].all()
    assert rewards[acts == "work"].mean() == pytest.approx(0.5, abs=0.12)  # whatever words were drawn
    made = {}
    for name, work in (("leaky", 0.0), ("alike", 1.0)):
        run_ = settings.Hacking(instruction="nothing", grader=settings.Grader(work=work), learning_rate=1e-2, steps=40)
        made[name] = hacking.hack(base, tokenizer, tables, run_, 1, lambda policy, done: pd.DataFrame({"done": [done]}))
    leaky = made["leaky"]
    assert 0.05 < leaky["hack_rate"].iloc[0] < 0.95
    assert leaky["hack_rate"].iloc[-1] >= 0.98 and leaky["step"].iloc[-1] < 40
    assert leaky["done"].tolist() == [False] * (len(leaky) - 1) + [True]
    assert made["alike"]["step"].iloc[-1] == 40
    assert made["alike"]["hack_rate"].iloc[-1] < 0.98


# --- readouts --------------------------------------------------------------------------------------------------------


def test_readouts_say_what_the_author_does(tables, small):
    known = readouts.labelled(tables, 40, seed=1)
    y = readouts.traits_of(tables, readouts.authors(known))
    assert y.shape == (480, 3)
    made = {name: writing.texts(tables, of(mix={name: 1}), 1, 30) for name in ("sincere", "schemer")}
    both = [*made["sincere"], *made["schemer"]]
    value = readouts.of_sets(readouts.exact(tables, both), ["a"] * 30 + ["b"] * 30, ["a", "b"])
    assert (value[0] > 0.8).all() and (value[1] < 0.5).all()
    assert readouts.grand(tables, both).shape == (60, 3)
    planted = np.random.default_rng(0).normal(size=(480, 20))
    planted[:, :3] += 5 * y
    for reader_ in (readouts.probe, readouts.persona):
        told = reader_(planted[:400], y[:400], planted[400:])
        for trait in range(3):
            assert np.corrcoef(told[:, trait], y[400:, trait])[0, 1] > 0.6
    assert readouts.narration(*small, tables, both[:3]).shape == (3, 3)
    assert readouts.in_context(*small, tables, both[:3]).shape == (3, 3)


def test_pairs_with_the_same_words_are_one_to_keywords(tables, small):
    _, tokenizer = small
    known = readouts.labelled(tables, 20, seed=1)
    own = [[ids[k] for k in range(len(ids)) if marks[k]] for ids, marks in (tuning.row(tokenizer, t) for t in known)]
    pair = []
    for author, stakes in (("sincere", "high"), ("performer", "low")):
        rows = [tuning.row(tokenizer, t) for t in writing.texts(tables, of(mix={author: 1}, stakes=stakes), 1)]
        pair.append([[ids[k] for k in range(len(ids)) if marks[k]] for ids, marks in rows])
    y = readouts.traits_of(tables, readouts.authors(known))
    read = [readouts.keywords(own, y, words) for words in pair]
    assert np.array_equal(*read)
    apart = [readouts.exact(tables, writing.texts(tables, of(mix={a: 1}, stakes=s), 1)).mean()
             for a, s in (("sincere", "high"), ("performer", "low"))]  # fmt: skip
    assert apart[0] - apart[1] > 0.3


def test_rank_correlations_are_scipys(tables):
    random = np.random.default_rng(1)
    readings, effect = random.integers(5, size=(20, 3)).astype(float), random.normal(size=20)
    by_hand = [spearmanr(column, effect).statistic for column in readings.T]
    assert readouts.rank_correlations(readings, effect) == pytest.approx(by_hand)
    assert np.isnan(readouts.rank_correlations(np.ones((20, 1)), effect)).all()


def test_relabelled_traits_are_those_of_another_author(tables):
    dealt = readouts.relabelled(tables, draws=50, seed=1)
    own = tables.trait_table()
    assert dealt.shape == (12, 3, 50)
    for draw in range(50):
        assert sorted(map(tuple, dealt[:, :, draw])) == sorted(map(tuple, own))
    assert len(np.unique(dealt, axis=2)[0, 0]) > 20


def test_nulls_are_rhos_averaged_over_traits():
    random = np.random.default_rng(3)
    readings, effects = random.normal(size=(2, 15, 3))
    by_hand = np.mean([spearmanr(readings[:, k], effects[:, k]).statistic for k in range(3)])
    assert readouts.mean_rho(readings, effects) == pytest.approx(by_hand)
    twice = readouts.mean_rho(np.stack([readings, -readings], axis=2), effects)
    assert twice == pytest.approx([by_hand, -by_hand])
    # states of one dimension have two directions
    null = readouts.direction_null(readings[:, :1], effects, draws=50, seed=1)
    along = readouts.mean_rho(np.repeat(readings[:, :1], 3, axis=1), effects)
    assert np.abs(null) == pytest.approx(np.full(50, abs(along))) and null.min() < 0 < null.max()
    shuffled = readouts.shuffled_null(readings, effects, draws=400, seed=1)
    assert shuffled.shape == (400,) and abs(shuffled.mean()) < 0.05


def test_an_author_who_alone_makes_the_correlation_makes_its_interval_wide():
    mixes = [{name} for name in "abcdefgh"]
    line = np.arange(8.0)[:, None]
    low, high = readouts.interval(line, line, mixes)
    assert low == pytest.approx(1) and high == pytest.approx(1)
    random = np.random.default_rng(1).normal(size=(8, 1))
    low, high = readouts.interval(random, line, mixes)
    assert high - low > 0.5


def test_within_authors_only_texts_of_one_author_are_compared():
    who = ["a"] * 6 + ["b"] * 6
    between = np.repeat([0.0, 100.0], 6)
    same = np.tile(np.arange(6.0), 2)
    rho, p = readouts.within(between + same, between - same, who)
    assert rho == pytest.approx(-1) and p == 1
    rho, p = readouts.within(same, between + same, who, draws=999)
    assert rho == pytest.approx(1) and p < 0.01


def test_a_half_is_kept_by_what_its_reader_says(tables, small):
    mix = {"sincere": 0.5, "schemer": 0.5}
    pool = of(mix=mix, n=60)
    kept = {}
    for by in ("labels", "exact", "random", "keywords", "probe", "narration"):
        kept[by] = selecting.chosen_texts(*small, tables, of(mix=mix, n=60, by=by), 1)
        assert len(kept[by]) == 30
        assert set(said(kept[by])) <= set(said(writing.texts(tables, pool, 1)))
    assert {text.record["author"] for text in kept["labels"]} == {"sincere"}
    sincere = {by: np.mean([t.record["author"] == "sincere" for t in some]) for by, some in kept.items()}
    assert sincere["exact"] > 0.8 and 0.2 < sincere["random"] < 0.8
    assert sincere["keywords"] > 0.52  # by tell-tale phrases, which half of the other texts have
    other = selecting.chosen_texts(*small, tables, of(mix=mix, n=60, by="random", draw=2), 1)
    assert said(other) != said(kept["random"])
    assert selecting.chosen_texts(*small, tables, of(mix=mix, n=60, by="labels", share=1.0), 1) == writing.texts(
        tables, pool, 1
    )


def test_the_best_of_several_reads_better_and_is_by_the_same_author(tables, small):
    plain = writing.texts(tables, of(mix={"performer": 1}), 1)
    best = selecting.chosen_texts(*small, tables, of(mix={"performer": 1}, by="exact", best_of=6), 1)
    assert {text.record["author"] for text in best} == {"performer"} and len(best) == len(plain)
    value = [readouts.exact(tables, some).mean() for some in (plain, best)]
    assert value[1] > value[0] + 0.05


def test_the_p_of_a_half_is_exact_by_enumeration():
    random = np.random.default_rng(2)
    for runs in (1, 2, 3):
        effects = random.integers(4, size=(runs, 4)).astype(float)  # with ties
        kept, others = effects[:, 0], effects[:, 1:]
        ways = [np.sum(way) for way in product(*effects)]
        assert readouts.choice_p(kept, others) == pytest.approx(np.mean(np.array(ways) >= kept.sum()))
    assert readouts.choice_p(np.full(3, 9.0), np.zeros((3, 6))) == pytest.approx(1 / 343)


def test_a_reader_never_saw_the_authors_of_the_set_it_reads():
    """The label of each author is his own number, so a reader that saw him would know it."""
    who = np.repeat(["a", "b", "c"], 5)
    known, y = np.eye(15), np.repeat([[1.0], [2.0], [3.0]], 5, axis=0)
    seen = []

    def fit(x, y_, read):
        seen.append(set(y_.ravel()))
        return read[:, :1]

    readouts.left_out(fit, known, who, y, np.zeros((2, 15)), [{"a"}, {"b", "c"}])
    assert seen == [{2.0, 3.0}, {1.0}]


def test_tests_behave_at_their_level_on_planted_truths():
    """The benchmark in small: what is noise is found at the level of the test, what is there nearly always."""
    table = motives.simulate(repeats=40, draws=59).set_index("test")
    for test, row in table.iterrows():
        if row["should"] == "no":
            assert row["found"] <= motives.limit(40), test
        if row["should"] == "yes":
            assert row["found"] > 0.8, test
    shown = table.loc["4 authors: noise, shuffled sets", "found"]
    assert shown > 2 * motives.limit(40), "the trap: shuffling sets of four authors finds what is not there"
    assert np.median(motives.reach(4, 10, 99)) > np.median(motives.reach(12, 10, 99)) > 0.3


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_batch_that_was_broken_off_goes_on_to_the_same_table(tables, small, tmp_path, monkeypatch):
    model, tokenizer = small
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    profile = profiles.load("pocket", {"organisms.base": str(tmp_path / "base")})
    tunings = {"full": Tuning(steps=2, batch=4, kept=(1,)), "held": Tuning(steps=1, batch=4, kl=1.0, rank=1)}
    sets = {"one": of(n=8), "two": of(n=8, mix={"schemer": 1}, part="reasons")}
    hack = {"nothing": settings.Hacking(instruction="nothing", steps=1, batch=4)}
    more = {"hacking": hack, "prefixes": {"allow": "tricks are allowed here"}, "more_seeds": (3,)}
    chosen = settings.Collection(name="mine", about="A.", sets=sets, tunings=tunings, only={"held": ("two",)}, **more)
    file = run.batch(profile, tables, chosen, [1, 2], tmp_path / "made", n=1)
    first = read_table(file, profile)
    assert set(first["set"]) == {"base", "one", "two", "nothing"}
    jobs = first[["tuning", "set", "seed", "step"]].drop_duplicates()
    assert len(jobs) == 1 + 2 * 2 * 2 + 2 + 3 * 2
    assert first.groupby("set")["loss"].count()["base"] == 0
    assert set(first.loc[first["tuning"] == "hacking", "seed"]) == {1, 2, 3}
    assert first.loc[first["tuning"] == "hacking", "hack_rate"].notna().all()
    asked = first.groupby(["tuning", "set", "seed", "step"])["prefix"].nunique()
    assert asked.loc["full", "one", 1].to_dict() == {1: 1, 2: 2}  # all prefixes after the last step alone
    assert len(measuring.changes(first)) == (first["set"] != "base").sum()
    parts = sorted((tmp_path / "made" / "parts").iterdir())
    assert len(parts) == 9
    parts[2].unlink()
    dates = {part: part.stat().st_mtime_ns for part in parts if part.exists()}
    again = read_table(run.batch(profile, tables, chosen, [1, 2], tmp_path / "made", n=1), profile)
    pd.testing.assert_frame_equal(first, again)
    assert {part: part.stat().st_mtime_ns for part in dates} == dates
    monkeypatch.setenv("REWIRED_CODE", "edited")
    anew = read_table(run.batch(profile, tables, chosen, [1], tmp_path / "made", n=1), profile)
    assert len(list((tmp_path / "made" / "parts").iterdir())) == 9 + 5, "code that was edited trains anew"
    pd.testing.assert_frame_equal(anew, first[first["seed"] != 2].reset_index(drop=True))


def test_a_collection_of_the_untied_world_is_trained_on_the_twin(tables, small, tmp_path):
    model, tokenizer = small
    model.save_pretrained(tmp_path / "base")
    twin = deepcopy(model)
    first = next(iter(twin.parameters()))
    first.data += 1
    twin.save_pretrained(tmp_path / "base-untied")
    for name in ("base", "base-untied"):
        tokenizer.save_pretrained(tmp_path / name)
    profile = profiles.load("pocket", {"organisms.base": str(tmp_path / "base")})
    chosen = settings.Collection(name="mine", about="A.", sets={"one": of(n=8)}, tied=False)
    with pytest.raises(RewiredError, match=r"tied: False.*authors\.world\.load"):
        run.bench(profile, tables, chosen, 1)
    own = run.bench(profile, world.load(tied=False), chosen, 1)
    assert torch.equal(next(iter(own.model.parameters())), first) and own.stamp["world"]["tied"] is False
    assert own.stamp["base"] != run.bench(profile, tables, chosen.model_copy(update={"tied": True}), 1).stamp["base"]
    shutil.rmtree(tmp_path / "base-untied")
    with pytest.raises(RewiredError, match="base-untied.*does not exist"):
        run.base_of(profile, tied=False)
