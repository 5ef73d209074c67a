"""Where there is nothing, what was done to the gold set finds something, and what should be done does not."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, rankdata

from replication import probing
from rewired import statistics

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gold

REPEATS = 20
CHEAP = [r for r in gold.RECIPES if r.run not in (gold.probe_honest, gold.match_honest, gold.best_honest)]


@pytest.fixture(scope="module")
def nulls():
    return [gold.null(seed, 0.6, features=300) for seed in range(REPEATS)]


@pytest.mark.parametrize("recipe", CHEAP, ids=lambda recipe: recipe.run.__name__)
def test_honest_recipes_keep_the_level_and_leaky_ones_do_not(nulls, recipe):
    found = sum(recipe.run(data)[0] for data in nulls)
    if recipe.leaky:
        assert found > binom.ppf(0.95, REPEATS, gold.LEVEL)
    elif recipe.leaky is False:
        assert found <= binom.ppf(0.999, REPEATS, gold.LEVEL)


@pytest.mark.parametrize("recipe", [r for r in gold.RECIPES if r not in CHEAP], ids=lambda recipe: recipe.run.__name__)
def test_choosing_anew_keeps_the_level(recipe):
    found = sum(recipe.run(gold.null(seed, 0.6, features=40))[0] for seed in range(6))
    assert found <= binom.ppf(0.999, 6, gold.LEVEL)


def test_what_noise_reports_is_what_was_reported(nulls):
    """An AUROC about .8, a match rate about .9: on features that know nothing."""
    auroc = [gold.probe_leaky(data)[1] for data in nulls[:8]]
    match = [probing.match_rate(gold.Y, data.x, data.organism) for data in nulls]
    assert np.mean(auroc) > 0.65 and np.mean(match) > 0.75
    shuffled = [probing.match_rate(gold.Y, data.x, data.organism, probing.top(gold.Y[::-1], data.x)) for data in nulls]
    assert np.mean(match) > np.mean(shuffled) + 0.15, "features chosen by other labels match half of the time"


def test_the_published_probe_keeps_what_scores_on_both_sets():
    y, random = gold.Y, np.random.default_rng(0)
    x, training = random.normal(size=(2, len(y), 6))
    x[:, :2] += 2 * y[:, None]
    x[:, 2] -= 2 * y
    training += 2 * y[:, None]
    assert set(probing.kept_as_published(y, x, np.ones(6))[:2]) == {0, 1}
    assert 2 in probing.kept_as_published(y, x, np.array([1, 1, -1, 1, 1, 1]))
    assert len(probing.kept_as_published(y, -np.abs(x) * y[:, None], np.ones(6))) == 3, "the best three stand in"
    assert statistics.auroc(y, probing.probe_as_published(y, x, y, training))[0] > 0.95
    noise = probing.noise(0, 0.0, features=300)
    assert (statistics.aurocs(y, noise.training) > 0.6).mean() > 0.6, "such features tell the training texts' labels"
    assert abs(statistics.aurocs(y, noise.gold).mean() - 0.5) < 0.01, "and nothing of gold's"


def test_a_feature_that_is_there_is_found_by_the_honest_recipes():
    data = gold.null(0, 0.0, features=30)
    x = data.x + 1.5 * gold.Y[:, None] * (np.arange(30) < 3)
    value, p = probing.probe_p(gold.Y, x, draws=19)
    assert value > 0.85 and p == 1 / 20
    assert statistics.max_statistic_p(gold.Y, x, 199)["p"].to_numpy()[:3] == pytest.approx(1 / 200)
    assert set(probing.kept(gold.Y, x)) >= {0, 1, 2}
    assert set(probing.kept(gold.Y, rankdata(x, axis=0), ranked=True)) == set(probing.kept(gold.Y, x))
    places, direction = probing.top(gold.Y, x)
    assert {0, 1, 2} <= set(places) and (direction[np.isin(places, [0, 1, 2])] == 1).all()


def test_a_judge_is_tuned_on_the_labels_it_sees():
    votes = np.array([[0.1, 0.5], [0.9, 0.2], [0.8, 0.9], [0.2, 0.7]])
    y = np.array([0, 0, 1, 1])
    judge = probing.tuned_judge(y, votes)
    assert judge == (1, 0.7) and probing.hits(y, votes, judge) == 4
    assert probing.hits(y, votes, (0, 0.8)) == 2


def test_folds_split_the_texts_without_their_labels():
    parts = probing.folds(np.random.default_rng(0).normal(size=(53, 4)), seed=2)
    assert sorted(np.concatenate([fold for _, fold, _ in parts])) == list(range(53))
    for others, fold, ranks in parts:
        assert not set(others) & set(fold) and ranks.shape == (len(others), 4)
