"""Formulas by enumeration, and a small calibration: benchmarks/calibration runs the full one."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

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
