"""Differences of correlations by hand and by enumeration; frames from elsewhere; what is refused."""

import doctest
import itertools

import numpy as np
import pandas as pd
import pytest

from rewired import interactions
from rewired.errors import RewiredError

RANDOM = np.random.default_rng(0)
NAMES = ["L0_ATTN", "L0_MLP", "L1_ATTN", "L1_MLP"]


def models(prompts: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two models of four components that share what they react to, of different means and spreads."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(prompts, 1))
    a, b = (common + random.normal(size=(prompts, 4)) for _ in "ab")
    return pd.DataFrame(a, columns=NAMES), pd.DataFrame(5 + b * [1, 2, 3, 4], columns=NAMES)


def recursive(values: np.ndarray) -> np.ndarray:
    """Each row's deviation from the mean of those before it, divided by its standard deviation in units of a row's."""
    return np.array([(values[k] - values[:k].mean(axis=0)) * np.sqrt(k / (k + 1)) for k in range(1, len(values))])


def by_enumeration(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|r_b - r_a| of every pair of columns under every swap, [labelling, pair], the first one without swaps."""
    a, b = (recursive(x) / np.sqrt((recursive(x) ** 2).sum(axis=0)) for x in (a, b))
    found = []
    for swaps in itertools.product((False, True), repeat=len(a)):
        new = [np.where(np.array(swaps)[:, None], *pair) for pair in ((b, a), (a, b))]
        row = []
        for i, j in itertools.combinations(range(a.shape[1]), 2):
            r = [(x[:, i] * x[:, j]).sum() / np.sqrt((x[:, i] ** 2).sum() * (x[:, j] ** 2).sum()) for x in new]
            row.append(abs(r[1] - r[0]))
        found.append(row)
    return np.array(found)


def test_correlations_are_pearson_s():
    a, _ = models(9)
    pd.testing.assert_frame_equal(interactions.correlations(a), a.corr(), atol=1e-12)
    constant = interactions.correlations(a.assign(L0_MLP=0.1 + 1e6))
    assert constant["L0_MLP"].isna().all() and constant.drop("L0_MLP").drop(columns="L0_MLP").notna().all(axis=None)


def test_compare_tries_every_swap():
    a, b = models(8)
    pairs, shares, hubs = interactions.compare(a, b, thresholds=(0.2, 0.4))
    null = by_enumeration(a.to_numpy(), b.to_numpy())
    assert len(null) == 2**7
    expected = [b.corr().loc[i, j] - a.corr().loc[i, j] for i, j in zip(pairs["one"], pairs["other"], strict=True)]
    assert pairs["difference"].to_numpy() == pytest.approx(expected, abs=1e-9)
    assert null[0] == pytest.approx(np.abs(expected), abs=1e-9)
    assert pairs["p"].to_numpy() == pytest.approx((null >= null[0] - 1e-6).mean(axis=0))
    largest = null.max(axis=1)
    assert pairs["p_adjusted"].to_numpy() == pytest.approx([(largest >= size - 1e-6).mean() for size in null[0]])
    assert (pairs["p_adjusted"] >= pairs["p"]).all()
    assert list(pairs["rank"]) == list(1 + (-null[0]).argsort().argsort())
    for row, threshold in zip(shares.itertuples(), (0.2, 0.4), strict=True):
        share = (null >= threshold).mean(axis=1)
        assert row.share == share[0] == row.beyond / row.pairs and row.prompts == 8
        assert row.p == (share >= share[0]).mean()
        assert [row.null_low, row.null, row.null_high] == pytest.approx(np.quantile(share, (0.025, 0.5, 0.975)))
    of_first = null[:, [0, 1, 2]].mean(axis=1)  # pairs 0-1, 0-2, 0-3
    assert hubs.loc[0, "strength"] == pytest.approx(of_first[0]) and hubs.loc[0, "null"] == pytest.approx(
        np.median(of_first)
    )
    strengths = np.stack([null[:, c].mean(axis=1) for c in ([0, 1, 2], [0, 3, 4], [1, 3, 5], [2, 4, 5])], axis=1)
    due = [(strengths.max(axis=1) >= s - 1e-6).mean() for s in strengths[0]]
    assert hubs["p_adjusted"].to_numpy() == pytest.approx(due)


def test_means_and_spreads_are_no_difference():
    a, b = models(12)
    first = interactions.compare(a, b, draws=200)[0]
    moved = interactions.compare(a * [1, 10, 0.1, 7] + [3, -100, 0, 2], b, draws=200)[0]
    pd.testing.assert_frame_equal(first, moved, atol=1e-6)


def test_copies_of_a_prompt_are_not_counted():
    a, b = models(8)
    twice = [pd.concat([frame, frame.iloc[:5]], ignore_index=True) for frame in (a, b)]
    once = interactions.compare(a, b)
    for got, due in zip(interactions.compare(*twice), once, strict=True):
        pd.testing.assert_frame_equal(got, due)
    half = twice[0].copy()
    half.iloc[-1] += 1  # the same prompt in one model only is another observation
    assert interactions.compare(half, twice[1])[1]["prompts"].iloc[0] == 9


def test_a_component_that_never_varies_is_missing_and_no_difference():
    a, b = models(10)
    pairs, shares, hubs = interactions.compare(a.assign(L1_ATTN=2.0), b)
    gone = (pairs["one"] == "L1_ATTN") | (pairs["other"] == "L1_ATTN")
    assert gone.sum() == 3 and pairs.loc[gone, ["difference", "p", "p_adjusted"]].isna().all(axis=None)
    assert pairs.loc[~gone, ["difference", "p", "p_adjusted"]].notna().all(axis=None)
    assert (shares["pairs"] == 3).all() and hubs.set_index("component")["strength"].isna().sum() == 1


def test_the_published_shape_is_enough():
    """Two models, fifteen prompts of which five are copies, 52 components in half precision."""
    random = np.random.default_rng(1)
    names = [f"L{layer}_{kind}" for layer in range(26) for kind in ("ATTN", "MLP")]
    ten = [50 + random.normal(size=(10, 52)).round(1) for _ in "ab"]
    one, other = (pd.DataFrame(x[[*range(10), *range(5)]].astype(np.float16), columns=names) for x in ten)
    pairs, shares, _ = interactions.compare(one, other, draws=200)
    assert len(pairs) == 1326 and (shares["prompts"] == 10).all() and shares["share"].is_monotonic_decreasing
    assert 0 < shares["null"].iloc[0] < 1 and shares["p"].between(1 / 201, 1).all()


def test_resampled_prompts_move_one_model():
    a, _ = models(12)
    found = interactions.resampled(a, (0.0, 0.3, 2.1), draws=100)
    assert found["share"].iloc[0] == 1 and found["share"].iloc[2] == 0
    assert (found["low"] <= found["share"]).all() and (found["share"] <= found["high"]).all()
    more = interactions.resampled(models(200)[0], (0.3,), draws=100)
    assert more["share"].iloc[0] < found["share"].iloc[1], "many prompts hold the correlations still"
    once = interactions.resampled(pd.concat([a, a]), (0.3,), draws=100)
    assert once["prompts"].iloc[0] == 12 and once["share"].iloc[0] == found["share"].iloc[1]


def test_association_permutes_components():
    x, y = np.array([1.0, 2.0, 4.0, 3.0, 7.0]), np.array([2.0, 1.0, 5.0, 5.5, 6.0])
    r, p = interactions.association(x, y)
    null = [np.corrcoef(x, y[list(order)])[0, 1] for order in itertools.permutations(range(5))]
    upper, lower = np.mean(np.array(null) >= r - 1e-9), np.mean(np.array(null) <= r + 1e-9)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1]) and p == pytest.approx(min(1, 2 * min(upper, lower)))
    assert np.isnan(interactions.association(x, np.ones(5))).all()


def test_mantel_permutes_components_not_pairs():
    names = list("abcd")
    pairs = pd.DataFrame(list(itertools.combinations(names, 2)), columns=["one", "other"])
    pairs["x"], pairs["y"] = RANDOM.normal(size=6), RANDOM.normal(size=6)
    r, p = interactions.mantel(pairs, "x", "y", draws=4_000)
    value = {frozenset(k): v for *k, v in pairs[["one", "other", "y"]].itertuples(index=False)}
    null = []
    for order in itertools.permutations(names):
        new = dict(zip(names, order, strict=True))
        null.append(np.corrcoef(pairs["x"], [value[frozenset((new[a], new[b]))] for a, b in
                                             zip(pairs["one"], pairs["other"], strict=True)])[0, 1])  # fmt: skip
    assert r == pytest.approx(null[0])
    assert p == pytest.approx(np.mean(np.abs(null) >= abs(r) - 1e-9), abs=0.03)
    with pytest.raises(RewiredError, match="every pair"):
        interactions.mantel(pairs.iloc[1:], "x", "y")


def test_frames_that_do_not_match_are_refused():
    a, b = models(8)
    for wrong in (b.iloc[:5], b[NAMES[::-1]], b[NAMES[:3]]):
        with pytest.raises(RewiredError, match="same prompts and components"):
            interactions.compare(a, wrong)
    with pytest.raises(RewiredError, match="1 missing"):
        interactions.compare(a, b.mask(b == b.iloc[2, 1]))
    with pytest.raises(RewiredError, match="3 distinct prompts"):
        interactions.compare(*(pd.concat([frame.iloc[:3]] * 4) for frame in (a, b)))
    with pytest.raises(RewiredError, match="1 components"):
        interactions.compare(a[["L0_MLP"]], b[["L0_MLP"]])


def test_the_example_in_the_docstring():
    assert doctest.testmod(interactions).failed == 0
