"""Differences of correlations by hand and by enumeration; frames from elsewhere; what is refused."""

import itertools

import claim_cells
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


def compare(a, b, thresholds=interactions.THRESHOLDS, draws=2_000, seed=0):
    """The three tables of two models, as the chapter makes them."""
    a, b = interactions.distinct(a, b)
    null = interactions.null_sizes(a, b, draws, seed)
    shares = interactions.share_table(null, len(a), thresholds)
    return interactions.pair_table(a, b, null), shares, interactions.hub_table(a.columns, null)


def taught(name: str):
    """A function that the chapter defines in a visible cell."""
    return claim_cells.defined("interactions", name, interactions=interactions)


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


def test_clusters_are_swapped_whole():
    a, b = models(6, seed=3)
    clusters = list("xyxzzx")  # not side by side, as given
    order = [0, 2, 5, 1, 3, 4]
    swapped = by_enumeration(a.to_numpy()[order], b.to_numpy()[order])  # every swap of five contrasts: x x y z z
    whole = [k for k, s in enumerate(itertools.product((0, 1), repeat=5)) if s[0] == s[1] and s[3] == s[4]]
    got = interactions.null_sizes(a, b, clusters=clusters)
    assert got.shape == (8, 6) and got[0] == pytest.approx(swapped[0], abs=1e-6)
    in_order = [np.array(sorted(map(tuple, null.round(4)))) for null in (got, swapped[whole])]
    assert in_order[0] == pytest.approx(in_order[1], abs=2e-4)
    alone = interactions.null_sizes(a, b, clusters=range(6))
    assert alone == pytest.approx(interactions.null_sizes(a, b))


def test_models_that_read_each_wording_in_their_own_way_are_alike_by_cluster():
    clusters, below = np.repeat(np.arange(9), 5), np.zeros(2)
    for k in range(40):
        random = np.random.default_rng(k)
        a, b = (pd.DataFrame(2 * random.normal(size=(9, 8))[clusters] + random.normal(size=(45, 8))) for _ in "ab")
        for way, given in enumerate((None, clusters)):
            null = interactions.null_sizes(a, b, 127, 0, given)
            below[way] += interactions.share_table(null, 45, (0.3,))["p"].iloc[0] <= 0.05
    assert below[0] > 20 > 8 > below[1], "singly they are told apart by their wordings, not by more"


def test_correlations_are_pearson_s():
    a, _ = models(9)
    pd.testing.assert_frame_equal(interactions.correlations(a), a.corr(), atol=1e-12)
    constant = interactions.correlations(a.assign(L0_MLP=0.1 + 1e6))
    assert constant["L0_MLP"].isna().all() and constant.drop("L0_MLP").drop(columns="L0_MLP").notna().all(axis=None)


def test_compare_tries_every_swap():
    a, b = models(8)
    pairs, shares, hubs = compare(a, b, thresholds=(0.2, 0.4))
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
    first = compare(a, b, draws=200)[0]
    moved = compare(a * [1, 10, 0.1, 7] + [3, -100, 0, 2], b, draws=200)[0]
    pd.testing.assert_frame_equal(first, moved, atol=1e-6)


def test_copies_of_a_prompt_are_not_counted():
    a, b = models(8)
    twice = [pd.concat([frame, frame.iloc[:5]], ignore_index=True) for frame in (a, b)]
    once = compare(a, b)
    for got, due in zip(compare(*twice), once, strict=True):
        pd.testing.assert_frame_equal(got, due)
    half = twice[0].copy()
    half.iloc[-1] += 1  # the same prompt in one model only is another observation
    assert compare(half, twice[1])[1]["prompts"].iloc[0] == 9


def test_a_component_that_never_varies_is_missing_and_no_difference():
    a, b = models(10)
    pairs, shares, hubs = compare(a.assign(L1_ATTN=2.0), b)
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
    pairs, shares, _ = compare(one, other, draws=200)
    assert len(pairs) == 1326 and (shares["prompts"] == 10).all() and shares["share"].is_monotonic_decreasing
    assert 0 < shares["null"].iloc[0] < 1 and shares["p"].between(1 / 201, 1).all()


def test_redrawn_prompts_move_one_model():
    a, _ = models(12)
    shares = taught("redrawn")(a, 100, 0)  # [draw, threshold]
    assert shares.shape == (100, len(interactions.THRESHOLDS))
    assert (np.diff(shares, axis=1) <= 0).all(), "fewer pairs differ by more"
    few, many = np.median(shares[:, 0]), np.median(taught("redrawn")(models(200)[0], 100, 0)[:, 0])
    assert many < few, "many prompts hold the correlations still"
    twice = taught("redrawn")(pd.concat([a, a]), 100, 0)
    assert (twice == shares).all(), "a copy of a prompt is no prompt"


def test_redrawn_prompts_by_hand():
    a, _ = models(12)
    random = np.random.default_rng(7)
    r = [a.iloc[random.integers(12, size=12)].corr().to_numpy() for _ in range(2)]
    gap = np.abs(r[1] - r[0])[np.triu_indices(4, 1)]
    due = [(gap >= threshold).mean() for threshold in interactions.THRESHOLDS]
    assert taught("redrawn")(a, 1, 7)[0] == pytest.approx(due)


def test_mantel_permutes_components_not_pairs():
    names = list("abcd")
    pairs = pd.DataFrame(list(itertools.combinations(names, 2)), columns=["one", "other"])
    pairs["x"], pairs["y"] = np.random.default_rng(4).normal(size=(2, 6))
    r, p = taught("mantel")(*(pairs[name] for name in ("one", "other", "x", "y")), draws=4_000, seed=0)
    value = {frozenset(k): v for *k, v in pairs[["one", "other", "y"]].itertuples(index=False)}
    null = []
    for order in itertools.permutations(names):
        new = dict(zip(names, order, strict=True))
        moved = [value[frozenset((new[a], new[b]))] for a, b in zip(pairs["one"], pairs["other"], strict=True)]
        null.append(np.corrcoef(pairs["x"], moved)[0, 1])
    assert r == pytest.approx(null[0])
    assert p == pytest.approx(np.mean(np.abs(null) >= abs(r) - 1e-9), abs=0.03)


def test_the_null_of_one_pair_is_that_of_all():
    """What the chapter does by hand for two components, the library does for every two of them."""
    a, b = models(8)
    whole, one = interactions.null_sizes(a, b), interactions.null_sizes(a[NAMES[1:3]], b[NAMES[1:3]])
    place = list(itertools.combinations(range(4), 2)).index((1, 2))
    assert whole[:, place] == pytest.approx(one[:, 0], abs=1e-6)


def test_frames_that_do_not_match_are_refused():
    a, b = models(8)
    for wrong in (b.iloc[:5], b[NAMES[::-1]], b[NAMES[:3]]):
        with pytest.raises(RewiredError, match="same prompts and components"):
            compare(a, wrong)
    with pytest.raises(RewiredError, match="1 missing"):
        compare(a, b.mask(b == b.iloc[2, 1]))
    with pytest.raises(RewiredError, match="3 distinct prompts"):
        compare(*(pd.concat([frame.iloc[:3]] * 4) for frame in (a, b)))
    with pytest.raises(RewiredError, match="1 components"):
        compare(a[["L0_MLP"]], b[["L0_MLP"]])
