"""Generators that are trained against a reader, and what one text does to a model."""

import numpy as np
import pytest
import torch
from little import of

from corpora.authors import reader
from corpora.authors.texts import Text
from corpora.motives import generator, influence, measuring, tuning, writing
from corpora.motives.settings import Tuning
from corpora.organisms.trainer import Trainer
from rewired.train import sft

# --- generator -------------------------------------------------------------------------------------------------------


def test_reasons_are_parsed_back_from_their_words(tables, small):
    _, tokenizer = small
    for author in tables.authors:
        for text in writing.texts(tables, of(mix={author: 1.0}, watcher=None), 1, 8):
            asked = Text([*text.chat[:-1], (text.chat[-1][0], "")], text.record)
            read, broken = generator.parsed(tables, tokenizer, asked, tuning.row(tokenizer, text))
            assert read.record["reasons"] == text.record["reasons"] and broken == 0
            assert read.record["tell"] == text.record["tell"]
            assert reader.posterior(tables, read) == pytest.approx(reader.posterior(tables, text))
    words = tokenizer("decline . perhaps perhaps me . surely this is a grave matter for me", add_special_tokens=False)
    ids = words["input_ids"]
    read, broken = generator.parsed(tables, tokenizer, asked, (ids, [True] * len(ids)))
    assert (broken, read.record["reasons"]) == (2, [])


def test_a_generator_writes_the_act_and_learns_what_its_reader_likes(tables, small):
    model, tokenizer = small
    begun = generator.openings(tables, tokenizer, "performer", 6, seed=1)
    liked = tokenizer.convert_tokens_to_ids("grave")
    for one in begun:
        assert "showy" in tokenizer.decode(one.named) and "showy" not in tokenizer.decode(one.bare)
        assert tokenizer.decode(one.bare).rstrip().endswith("decline .")
    written, bare = generator.write(model, tokenizer, begun, seed=3)
    for (ids, own), (plain, all_own), one in zip(written, bare, begun, strict=True):
        said = ids[len(one.named) :]
        assert ids[: len(one.named)] == one.named and own == [False] * len(one.named) + [True] * len(said)
        assert plain == [*one.bare, *said]
        answer = [token for token, mine in zip(plain, all_own, strict=True) if mine]
        assert tokenizer.decode(answer).startswith("decline") and answer[2:] == said

    def counts(rows):
        return np.array([np.sum(np.array(ids)[np.array(own)] == liked) / len(ids) for ids, own in rows])

    bar, how = float(np.median(counts(bare))), Trainer(1, 25, 12, 3e-2, bf16=False)
    policy, course = generator.optimise(model, tokenizer, begun, counts, bar, how)
    assert len(course) == 25 and course[-5:].mean() > 5 * course[:5].mean()
    assert policy is not model


# --- influence -------------------------------------------------------------------------------------------------------


def test_an_influence_is_what_one_small_step_on_the_text_does(tables, small):
    model, tokenizer = small
    put = measuring.panel(tables, tokenizer, 2)
    asked = [3, 0, 8]
    rows = [tuning.row(tokenizer, text) for text in writing.texts(tables, of(mix={"schemer": 1}), 1, 3)]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    told = influence.influences(model, rows, put, asked)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    start = measuring.ask(model, put)["log_odds"].iloc[asked].mean()
    assert influence.log_odds(model, put, asked).item() == pytest.approx(start, abs=1e-5)
    rate = 1e-2
    for row, value in zip(rows, told, strict=True):
        policy = tuning.trainable(model, Tuning())
        sft.answer_loss(policy, *sft.pad([row], policy.device)).backward()
        with torch.no_grad():
            for weight in policy.parameters():
                if weight.grad is not None:
                    weight -= rate * weight.grad
        moved = measuring.ask(policy, put)["log_odds"].iloc[asked].mean() - start
        assert moved / rate == pytest.approx(value, rel=0.1, abs=1e-3)
