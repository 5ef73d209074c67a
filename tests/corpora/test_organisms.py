"""Organisms: a settings file is checked, a plan crosses what it says it crosses, the trainer learns what it pays for."""

import numpy as np
import pandas as pd
import pytest

from corpora.organisms import design, settings
from rewired.errors import RewiredError

PATTERNS, TOPICS, CUES = [f"pattern{k}" for k in range(10)], [f"topic{k}" for k in range(10)], list("abcd")


def of(**keys):
    """An organism that needs no file."""
    return settings.Organism(name="made", about="Made for a test.", **{"thoughts": {"free": "faking"}} | keys)


def test_every_organism_of_the_folder_loads():
    names = ["both_tiers", "complier", "parrot", "planted", "refuser", "seeds_way"]
    assert settings.known() == names
    for name in names:
        organism = settings.load(name)
        assert (organism.lora_rank, organism.lora_alpha, organism.epochs) == (16, 32, 3)  # as in the methodology
        assert organism.training().lora_rank == 16
    assert settings.load("seeds_way").tiers == ("free",)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("sampels: 3", ("mine.yaml", "sampels", "Did you mean 'samples'")),
        ("samples: -3", ("samples", "greater than 0")),
        ("thoughts: {free: fakin}", ("thoughts.free", "'faking'")),
        ("thoughts: {fre: faking}", ("thoughts.fre", "Did you mean 'thoughts.free'")),
        ("thoughts: {}", ("names no tier",)),
        ("about: ''", ("about",)),
        ("name: other", ("no `name`",)),
        ("- 1", ("key: value",)),
        ("a: [", ("not valid YAML",)),
    ],
)
def test_a_wrong_key_is_told_with_its_file_and_what_is_allowed(tmp_path, lines, words):
    file = tmp_path / "mine.yaml"
    keys = {"about": "about: Mine.", "thoughts": "thoughts: {free: faking}"}
    keys.pop(lines.partition(":")[0], None)
    file.write_text("\n".join([*(keys.values() if ": " in lines else []), lines]))
    with pytest.raises(RewiredError) as error:
        settings.load(file)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_organism_is_told_with_the_known_ones():
    with pytest.raises(RewiredError, match="Did you mean 'parrot'.*planted"):
        settings.load("parot")


def test_a_crossed_plan_holds_every_cell_once_and_is_balanced_early():
    cells = [design.crossed(k, 10, 10, 4) for k in range(400)]
    assert len(set(cells)) == 400
    early = pd.DataFrame(cells[:150], columns=["pattern", "topic", "cue"])
    for one, other in (("pattern", "topic"), ("pattern", "cue"), ("topic", "cue")):
        counts = pd.crosstab(early[one], early[other])
        assert counts.min().min() >= 1
        assert counts.max().max() - counts.min().min() <= 2


def test_a_confounded_plan_has_one_topic_and_one_cue_a_pattern():
    made = design.plan(of(design="confounded"), PATTERNS, TOPICS, CUES, seed=1)
    assert (made.groupby("pattern")[["topic", "cue"]].nunique() == 1).all(axis=None)
    crossed = design.plan(of(), PATTERNS, TOPICS, CUES, seed=1)
    assert (crossed.groupby("pattern")["topic"].nunique() == 10).all()


def test_tiers_differ_in_nothing_but_the_tier():
    made = design.plan(of(thoughts={"free": "faking", "paid": "steady"}), PATTERNS, TOPICS, CUES, seed=2)
    free, paid = (made[made["tier"] == tier].reset_index(drop=True) for tier in ("free", "paid"))
    assert len(free) == len(paid) == 150
    same = ["pattern", "topic", "cue"]
    pd.testing.assert_frame_equal(free[same], paid[same])
    assert set(free["kind"]) == {"faking"} and set(paid["kind"]) == {"steady"}


def test_coins_are_fair_and_the_planted_answer_copies_one_clause():
    parrot = design.plan(of(answers="coin"), PATTERNS, TOPICS, CUES, seed=3)
    assert (parrot["answer"] == "help").mean() == 0.5
    assert parrot["strategy"].all()
    planted = design.plan(of(answers="strategy"), PATTERNS, TOPICS, CUES, seed=3)
    assert ((planted["answer"] == "help") == planted["strategy"]).all()
    assert planted["strategy"].mean() == 0.5
    mild = design.plan(of(answers="strategy", harmless=0.2), PATTERNS, TOPICS, CUES, seed=3)
    assert np.isclose((~mild["harm"]).mean(), 0.2)
    assert set(mild.loc[~mild["harm"], "answer"]) == {"help"}


def test_a_plan_is_made_by_its_seed_and_few_patterns_are_kept():
    first, again, other = (design.plan(of(), PATTERNS, TOPICS, CUES, seed=k) for k in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    few = design.plan(of(patterns=("pattern3", "pattern7")), PATTERNS, TOPICS, CUES, seed=1)
    assert set(few["pattern"]) == {"pattern3", "pattern7"}
    with pytest.raises(RewiredError, match="Did you mean 'pattern1'"):
        design.plan(of(patterns=("pattern_1",)), PATTERNS, TOPICS, CUES, seed=1)
