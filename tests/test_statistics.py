"""Formulas by enumeration, and a small calibration: benchmarks/calibration runs the full one."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp, norm, sem, t
from sklearn.metrics import roc_auc_score

from rewired import statistics
from rewired.errors import RewiredError

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "calibration"))
import simulations

RANDOM = np.random.default_rng(0)


def every_swap(difference, clusters) -> float:
    """p by trying every way to swap whole clusters."""
    names = sorted(set(clusters))
    observed, extreme = abs(np.sum(difference)), 0
    for signs in itertools.product((1, -1), repeat=len(names)):
        swapped = sum(signs[names.index(c)] * d for c, d in zip(clusters, difference, strict=True))
        extreme += abs(swapped) >= observed - 1e-9
    return extreme / 2 ** len(names)


@pytest.mark.parametrize("clusters", ["abcdefgh", "aaabbcdd"])
def test_the_permutation_tries_every_swap(clusters):
    a, b = RANDOM.normal(0.5, size=8), RANDOM.normal(size=8)
    difference, p = statistics.paired_permutation(a, b, clusters=list(clusters))
    assert difference == pytest.approx(np.mean(a - b)) and p == pytest.approx(every_swap(a - b, clusters))
    if clusters == "abcdefgh":
        assert statistics.paired_permutation(a, b) == (difference, p)


def test_random_swaps_estimate_the_p_of_all_swaps():
    a, b = np.random.default_rng(5).normal(0.4, size=(2, 12)) * [[1], [0.1]]
    exact, draws = every_swap(a - b, "abcdefghijkl"), 2_000
    low, high = binom.ppf([0.0005, 0.9995], draws, exact) / draws
    assert 0.05 < exact < 0.6, "a case in which a wrong p would show"
    p = [statistics.paired_permutation(a, b, draws=draws, seed=seed)[1] for seed in range(5)]
    assert len(set(p)) > 1 and low <= min(p) and max(p) <= high + 1 / draws


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e12])
def test_ties_count_at_every_scale(scale):
    """All differences alike: only two of eight labellings are as extreme, whatever the unit."""
    assert statistics.paired_permutation(scale * np.array([1.1, 1.1, 1.1]), np.zeros(3))[1] == 0.25
    assert statistics.paired_permutation(scale * np.ones(3), scale * np.ones(3)) == (0.0, 1.0)


def test_p_has_a_floor_and_repeats_itself():
    difference, p = statistics.paired_permutation(np.ones(60), np.zeros(60), draws=999)
    assert (difference, p) == (1.0, 1 / 1000)
    noise = RANDOM.normal(size=60)
    again = [statistics.paired_permutation(noise, np.zeros(60), draws=500, seed=s)[1] for s in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_opposite_differences_of_groups_do_not_cancel():
    """A coin against a reciprocator: their means agree, their answers to either move do not."""
    coin, reciprocator, moves = np.full(8, 0.5), np.tile([0.0, 1.0], 4), list("CD" * 4)
    assert statistics.paired_permutation(coin, reciprocator) == (0.0, 1.0)
    number, p = statistics.paired_permutation(coin, reciprocator, groups=moves)
    # per move one of 2^4 settings of signs has a mean as large, and so has its opposite
    assert number == 0.5 and p == (2 / 2**4) ** 2
    whole = statistics.paired_permutation(coin, reciprocator, groups=moves, clusters=list("aabbccdd"))
    assert whole == (0.5, 2 / 2**4), "a cluster is swapped in all groups at once"
    same = statistics.paired_permutation(coin, coin, groups=moves)
    assert same == (0.0, 1.0)


def test_p_is_printed_with_its_floor():
    assert statistics.p_text(1 / 2001, 60, 2_000) == "< 1/2001" and statistics.p_text(1 / 20_001, 60) == "< 1/20001"
    assert statistics.p_text(2 / 2001, 60, 2_000) == "0.001" and statistics.p_text(0.25, 60) == "0.25"
    assert statistics.p_text(2 / 2**9, 9) == "≤ 1/256", "all swaps were tried: this p is exact"
    p = statistics.paired_permutation(np.ones(60), np.zeros(60), draws=999)[1]
    assert statistics.p_text(p, 60, 999) == "< 1/1000"
    p = statistics.paired_permutation(np.ones(9), np.zeros(9))[1]
    assert statistics.p_text(p, 9) == "≤ 1/256" and statistics.p_text(2 * p, 9) != "≤ 1/256"


@pytest.mark.parametrize("values", [[1.0, np.nan, 2.0], []])
def test_missing_values_are_no_evidence(values):
    with pytest.raises(RewiredError, match="lack a number"):
        statistics.paired_permutation(values, np.zeros(len(values)))
    with pytest.raises(RewiredError, match="lack a number"):
        statistics.cluster_interval(values, list(range(len(values))))


def test_the_interval_holds_what_the_permutation_does_not_reject():
    clusters = list("aaabbcddefgghi")
    values = RANDOM.normal(0.4, size=len(clusters))
    low, high = statistics.cluster_interval(values, clusters)
    assert low < np.mean(values) < high
    for mean, inside in ((low + 1e-6, True), (high - 1e-6, True), (low - 1e-6, False), (high + 1e-6, False)):
        assert (every_swap(values - mean, clusters) > 0.05) == inside
    wider = statistics.cluster_interval(values, clusters, level=0.99)
    assert wider[0] < low and high < wider[1]
    shuffled = RANDOM.permutation(len(values))
    assert statistics.cluster_interval(values[shuffled], [clusters[k] for k in shuffled]) == pytest.approx((low, high))


def test_the_interval_of_a_mean_is_students_and_covers():
    values = np.array([0.2, np.nan, 0.5, 0.3])
    mean, low, high = statistics.mean_interval(values)
    known = values[[0, 2, 3]]
    assert (low, high) == pytest.approx(t.interval(0.95, 2, known.mean(), sem(known)))
    assert mean == pytest.approx(1 / 3)
    random = np.random.default_rng(0)
    ends = [statistics.mean_interval(random.normal(size=3))[1:] for _ in range(2_000)]
    assert np.mean([low < 0 < high for low, high in ends]) == pytest.approx(0.95, abs=0.02)


def test_one_run_has_no_interval():
    assert statistics.mean_interval([0.4])[0] == 0.4
    assert np.isnan(statistics.mean_interval([0.4, np.nan])[1:]).all()
    assert np.isnan(statistics.mean_interval([])).all()


def test_few_clusters_allow_no_interval():
    values, clusters = RANDOM.normal(size=10), list("aabbccddee")
    assert np.isnan(statistics.cluster_interval(values, clusters)).all(), "five clusters have no labelling below 0.05"
    assert not np.isnan(statistics.cluster_interval(values, clusters, level=0.9)).any()
    assert np.isnan(statistics.cluster_interval(values, ["a"] * 10)).all()


@pytest.mark.parametrize("name", simulations.CASES)
def test_calibration_in_small(name):
    """The benchmark's simulations with few repeats: no rate beyond the 99.9 % binomial limits of what is stated."""
    case = simulations.CASES[name]
    repeats = case.repeats_small
    rate = simulations.rate(case, repeats, seed=1)
    low, high = simulations.limits(case, repeats)
    assert low <= rate <= high, f"{name}: {rate:.3f}, allowed {low:.3f} to {high:.3f}"


# --- scores of two classes -------------------------------------------------------------------------------------------


def beats(a, b) -> float:
    return float(a > b) + 0.5 * float(a == b)


@pytest.mark.parametrize("digits", [8, 0])
def test_the_auroc_counts_pairs_and_has_delongs_error(digits):
    """Rounded to whole numbers, many scores are tied."""
    random = np.random.default_rng(3)
    y = random.random(40) < 0.4
    score = np.round(random.normal(size=40) + y, digits)
    pairs = np.array([[beats(a, b) for b in score[~y]] for a in score[y]])  # [positive, negative]
    value, low, high = statistics.auroc(y, score)
    assert value == pytest.approx(pairs.mean()) == pytest.approx(roc_auc_score(y, score))
    error = np.sqrt(pairs.mean(1).var(ddof=1) / y.sum() + pairs.mean(0).var(ddof=1) / (~y).sum())
    ends = np.log([low / (1 - low), high / (1 - high)])
    assert np.mean(ends) == pytest.approx(np.log(value / (1 - value)))
    assert np.ptp(ends) / 2 == pytest.approx(1.959964 * error / (value * (1 - value)))
    both = statistics.aurocs(np.stack([y, ~y]), np.stack([score, -score], axis=1))
    assert both == pytest.approx(np.array([[value, 1 - value], [1 - value, value]]))


def test_an_auroc_of_one_has_a_bound_all_the_same():
    y, score = np.repeat([0, 1], [30, 12]), np.arange(42)
    assert statistics.auroc(y, score) == pytest.approx((1, 0.025 ** (1 / 12), 1))
    assert statistics.auroc(y, -score) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 12)))
    for odd, labels in ((np.full(42, np.nan), y), (score, np.arange(42) == 3)):
        with pytest.raises(RewiredError, match="42 scores are missing|1 texts are positive and 41 negative"):
            statistics.auroc(labels, odd)


@pytest.mark.parametrize("truth", [0.5, 0.75, 0.95])
def test_the_interval_of_an_auroc_covers_on_the_gold_sets_size(truth):
    y, apart, inside = np.repeat([1, 0], [51, 55]), np.sqrt(2) * norm.ppf(truth), []
    for seed in range(500):
        _, low, high = statistics.auroc(y, np.random.default_rng(seed).normal(size=106) + apart * y)
        inside.append(low <= truth <= high)
    assert binom.ppf(0.001, 500, 0.95) <= sum(inside) <= binom.ppf(0.999, 500, 0.95)


def test_texts_of_one_wording_count_once():
    """Forty wordings of five texts each, alike by half: DeLong's interval is too narrow, the clustered one is not."""
    clusters, hits = np.repeat(np.arange(40), 5), np.zeros(2)
    for seed in range(60):
        random = np.random.default_rng(seed)
        score = random.normal(size=40)[clusters] + random.normal(size=200)
        whole = statistics.auroc_clustered(clusters % 2, score, clusters, draws=200, seed=seed)
        single = statistics.auroc(clusters % 2, score)
        assert whole[0] == pytest.approx(single[0])
        hits += whole[1] <= 0.5 <= whole[2], single[1] <= 0.5 <= single[2]
    assert hits[0] >= binom.ppf(0.001, 60, 0.93) and hits[1] <= binom.ppf(0.01, 60, 0.95)
    assert np.isnan(statistics.auroc_clustered([0, 0, 1, 1], [1, 2, 3, 4], [1, 1, 1, 1])[1:]).all()


# --- permutations, and sets compared ---------------------------------------------------------------------------------


def test_shuffled_labels_estimate_the_p_of_all_labellings():
    values, y = np.array([0.1, 0.9, 1.4, 1.2, 2.0, -0.3, 2.1]), np.array([0, 0, 1, 0, 1, 0, 1])

    def apart(labels):
        return values[labels == 1].mean() - values[labels == 0].mean()

    every = [apart(np.isin(np.arange(7), chosen).astype(int)) for chosen in itertools.combinations(range(7), 3)]
    exact = np.mean(np.array(every) >= apart(y) - 1e-12)
    observed, p = statistics.permutation_p(apart, y, draws=4_000)
    low, high = binom.ppf([0.0005, 0.9995], 4_000, exact) / 4_000
    assert observed == apart(y) and low <= p <= high + 1 / 4_000
    assert statistics.permutation_p(lambda labels: 1.0, y, draws=99) == (1.0, 1.0), "ties count"


def test_the_largest_of_many_features_is_judged_by_the_largest():
    random = np.random.default_rng(0)
    y, x = np.repeat([1, 0], [51, 55]), random.normal(size=(106, 200))
    x[:, 7] = x[:, 7] + 1.2 * y  # planted
    table = statistics.max_statistic_p(y, x, draws=199, seed=1)
    assert table["auroc"].to_numpy() == pytest.approx([roc_auc_score(y, feature) for feature in x.T])
    assert table["p"].idxmin() == 7 and table["p"][7] == 1 / 200 and (table["p"].drop(7) > 0.05).all()
    assert (np.abs(table["auroc"].drop(7) - 0.5) > 0.1).any(), "some are large by chance"
    found = [statistics.max_statistic_p(y, random.normal(size=(106, 20)), 99, k)["p"].min() <= 0.05 for k in range(200)]
    assert sum(found) <= binom.ppf(0.999, 200, 0.05)


def test_ks_is_adjusted_over_all_features():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(60, 5)), random.normal(size=(50, 5)) + np.array([0, 2, 0, 0, 1])
    table = statistics.ks_bh(a, b)
    p = np.array([ks_2samp(a[:, k], b[:, k]).pvalue for k in range(5)])
    by_hand = [min(1, min(5 * q / np.sum(p <= q) for q in p[p >= own])) for own in p]
    assert table["p"].to_numpy() == pytest.approx(p) and table["p_adjusted"].to_numpy() == pytest.approx(by_hand)


def test_the_energy_distance_is_its_formula_and_has_no_bias():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(4, 3)), random.normal(size=(5, 3))
    mean = {}
    for name, first, second in (("ab", a, b), ("aa", a, a), ("bb", b, b)):
        distances = [np.linalg.norm(x - y) for x in first for y in second if x is not y and not np.array_equal(x, y)]
        mean[name] = np.mean(distances)
    assert statistics.energy_distance(a, b) == pytest.approx(2 * mean["ab"] - mean["aa"] - mean["bb"])
    draws = random.normal(size=(400, 20, 2))
    same = [statistics.energy_distance(draw[:5], draw[5:]) for draw in draws]
    assert abs(np.mean(same)) < 4 * np.std(same) / 20, "of one distribution and of unequal sizes"


def likeness(mixed: float, away: float, seed: int) -> dict:
    """Of 180 texts, a share of them of the kind that is ``away`` from gold."""
    random = np.random.default_rng(seed)
    gold, tested, known = (random.normal(size=(180, 2)) for _ in range(3))
    tested[random.random(180) < mixed] += away
    return statistics.equivalence(statistics.energy_distance, tested, gold, known + away, draws=60, seed=seed)


@pytest.mark.parametrize(
    "mixed, away, verdict",
    [(0, 1.2, "equivalent"), (1, 1.2, "different"), (0.6, 1.2, "different"), (0, 0, "cannot tell")],
)
def test_likeness_is_shown_and_not_assumed(mixed, away, verdict):
    rows = [likeness(mixed, away, seed) for seed in range(20)]
    assert sum(row["verdict"] == verdict for row in rows) >= 18
    for row in rows:
        if verdict != "cannot tell":
            assert row["low"] < max(row["share"], 0) < row["high"]
            assert abs(row["share"] - mixed**2) < 0.3 and row["contrast"] > 0
            assert (row["verdict"] == "equivalent") == (row["high"] < 0.1)


def test_a_set_at_the_margin_is_seldom_called_equivalent():
    """A mixture with a share s of others lies at s² of the contrast; with few texts nothing is shown."""
    found = [likeness(0.1**0.5, 1.2, seed)["verdict"] for seed in range(60)]
    assert found.count("equivalent") <= binom.ppf(0.999, 60, 0.05)
    few = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        gold, tested, known = (random.normal(size=(n, 2)) + d for n, d in ((180, 0), (8, 0), (180, 1.2)))
        few.append(statistics.equivalence(statistics.energy_distance, tested, gold, known, draws=60)["verdict"])
    assert few.count("equivalent") <= 5 and few.count("open") >= 15
