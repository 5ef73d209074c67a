"""Data in which the truth is known, shaped like the book's: prompts in clusters, two models, several runs a variant.

A prompt's value in a run is a sum: what its wording and matrix (its cluster) and it alone do in every model, what the
variant adds, what this run adds everywhere and in each cluster, and noise. A case draws such data once per repeat and
says what a test made of it: True for a rejection or, where intervals are asked about, for the truth being inside.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import PermutationMethod, binom, pearsonr
from statsmodels.stats.multitest import multipletests

from rewired import interactions, statistics
from rewired import runs as rule

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import claim_cells

BOOK = np.repeat(np.arange(9), (15, 5, 5, 5, 5, 5, 10, 5, 5))
"""The clusters (wording and matrix) of the book's sixty prompts."""
EVEN = np.repeat(np.arange(6), 3)


@dataclass(frozen=True)
class Case:
    """``draw`` makes one repeat. ``kind``: "error" (its rate may not exceed ``stated``), "cover" or "power" (it may not
    fall short of it). ``repeats_small`` is how many the test in tests/ can afford."""

    what: str
    kind: str
    stated: float
    draw: Callable[[np.random.Generator], bool]
    repeats_small: int = 200


def rate(case: Case, repeats: int, seed: int = 0) -> float:
    """Share of repeats in which ``draw`` says True."""
    return float(np.mean([case.draw(np.random.default_rng([seed, k])) for k in range(repeats)]))


def limits(case: Case, repeats: int) -> tuple[float, float]:
    """Where the rate has to lie: the 99.9 % binomial limit of what is stated, on the side that matters."""
    if case.kind == "error":
        return 0.0, float(binom.ppf(0.999, repeats, case.stated)) / repeats
    return float(binom.ppf(0.001, repeats, case.stated)) / repeats, 1.0


# --- prompts x runs --------------------------------------------------------------------------------------------------


def noise(random, size, tails: str = "normal") -> np.ndarray:
    return random.standard_t(3, size) if tails == "heavy" else random.normal(size=size)


def runs(
    random, count: int, clusters=BOOK, apart: float = 0.0, run: float = 0.0, by_cluster: float = 0.0, tails="normal"
):
    """[variant, run, prompt] of two variants with ``count`` runs each; the second lies ``apart`` higher. ``run`` and
    ``by_cluster`` are standard deviations of what a run adds everywhere and in each cluster, in units of the noise."""
    shape, groups = (2, count, 1), clusters.max() + 1
    shared = 3 * random.normal(size=groups)[clusters] + random.normal(size=len(clusters))
    own = run * noise(random, shape, tails) + by_cluster * noise(random, (2, count, groups), tails)[..., clusters]
    return shared + own + np.array([0, apart])[:, None, None] + noise(random, (2, count, len(clusters)), tails)


def rejected(random, clusters=BOOK, whole: bool = False, **options) -> bool:
    (a,), (b,) = runs(random, 1, clusters, **options)
    seed = int(random.integers(2**31))
    return statistics.paired_permutation(a, b, 500, seed, clusters if whole else None)[1] <= 0.05


def any_of_a_family(random, size: int = 20) -> bool:
    """Benjamini-Hochberg over components whose differences share half of their noise; nothing is there to find."""
    common = random.normal(size=12)
    p = [statistics.paired_permutation(common + random.normal(size=12), np.zeros(12), 1_000, k)[1] for k in range(size)]
    return bool(multipletests(p, method="fdr_bh")[0].any())


def covered(random, clusters, tails="normal") -> bool:
    values = noise(random, clusters.max() + 1, tails)[clusters] + 0.5 * noise(random, len(clusters), tails)
    low, high = statistics.cluster_interval(values, clusters, draws=1_000, seed=int(random.integers(2**31)))
    return low <= 0 <= high


def differ(random, count: int, **options) -> bool:
    values = runs(random, count, **options)  # [variant, run, prompt]
    columns = pd.MultiIndex.from_product([["a", "b"], range(count)])
    table = pd.DataFrame(values.reshape(2 * count, -1).T, columns=columns)
    return bool(rule.differ(rule.pairs(rule.distances(table)))["differ"].iloc[0])


# --- sampled answers -------------------------------------------------------------------------------------------------


def shares_covered(random) -> bool:
    p = random.uniform(size=10)
    low, high = statistics.binomial_interval(random.binomial(40, p), 40, 0.95, family=10)
    return bool(((low <= p) & (p <= high)).all())


against_metric = claim_cells.defined("decisions", "against_metric", statistics=statistics)


def sampled_agrees(random, off: float = 0.0) -> bool:
    """Five scenarios of four prompts, a hundred answers each, two in a hundred not legal."""
    p = random.uniform(0.2, 0.8, size=20)
    about = pd.DataFrame({"prompt_id": np.arange(20), "scenario": np.arange(20) // 4})
    moves = np.where(random.uniform(size=(20, 100)) < p[:, None], "D", "C").astype(object)
    moves[random.uniform(size=(20, 100)) < 0.02] = None
    samples = about.loc[np.repeat(np.arange(20), 100)].assign(move=moves.ravel())
    measured = about.assign(p_defect=p + np.where(about["scenario"] == 0, off, 0.0))
    inside = against_metric(samples, measured, level=0.95)["inside"]
    return bool(inside.all() if off == 0 else not inside.iloc[0])


# --- correlations between components ---------------------------------------------------------------------------------


def two_models(random, prompts: int, tails="normal", size: int = 16) -> list[np.ndarray]:
    """Two models whose components react to the same two things, in the same way, at other means and spreads."""
    clusters = np.arange(prompts) % 9
    common = random.normal(size=(9, 2))[clusters] + noise(random, (prompts, 2), tails)
    shared = common @ random.normal(size=(2, size))
    a, b = (shared + noise(random, (prompts, size), tails) for _ in "ab")
    return [a, b * np.exp(random.normal(size=size)) + 3 * random.normal(size=size)]


def compared(random, prompts: int, what: str = "share", tails="normal", planted: str = "") -> bool:
    """Does the comparison of two models find a pair, a share or a hub? ``planted``: in the second model one pair of
    components that was independent is tied (r = 0.8), or half of the components vote the other way."""
    a, b = two_models(random, prompts, tails)
    if planted == "pair":
        a, b = (random.normal(size=(prompts, 16)) for _ in "ab")
        b[:, 1] = 0.8 * b[:, 0] + 0.6 * b[:, 1]
    if planted == "half":
        b[:, :8] *= -1
    seed = int(random.integers(2**31))
    a, b = interactions.distinct(pd.DataFrame(a), pd.DataFrame(b))
    null = interactions.null_sizes(a, b, 99, seed)
    pairs = interactions.pair_table(a, b, null)
    if planted == "pair":
        return bool(pairs["p_adjusted"].iloc[0] <= 0.05)
    p = {"pairs": pairs["p_adjusted"].min()}
    p["share"] = interactions.share_table(null, prompts, (0.3,))["p"].iloc[0]
    p["hubs"] = interactions.hub_table(a.columns, null)["p_adjusted"].min()
    return bool(p[what] <= 0.05)


mantel = claim_cells.defined("interactions", "mantel", interactions=interactions)
"""The chapter's own function."""


def associated(random, r: float = 0.0) -> bool:
    x, y = random.normal(size=(2, 16))
    y = r * x + np.sqrt(1 - r**2) * y
    method = PermutationMethod(n_resamples=399, rng=np.random.default_rng(int(random.integers(2**31))))
    return pearsonr(x, y, method=method).pvalue <= 0.05


def matrices_associated(random, weight: float = 0.0) -> bool:
    """Two matrices over eight components, each a sum of component effects and noise, ``weight`` of it in common."""
    one, other = np.triu_indices(8, 1)
    effect, own = random.normal(size=(2, 8)), random.normal(size=(2, 28))
    x, y = (e[one] + e[other] + n for e, n in zip(effect, own, strict=True))
    pairs = pd.DataFrame({"one": one, "other": other, "x": x, "y": weight * x + (1 - weight) * y})
    columns = (pairs[name] for name in ("one", "other", "x", "y"))
    return mantel(*columns, draws=99, seed=int(random.integers(2**31)))[1] <= 0.05


_CLUSTERED = dict(by_cluster=1.0)
_RUNS = dict(run=1.0, by_cluster=1.0)


def _case(what: str, kind: str, stated: float, draw, small: int = 200, /, **options) -> Case:
    return Case(what, kind, stated, partial(draw, **options), small)


_ALL = (
    _case("permutation: models alike", "error", 0.05, rejected),
    _case("permutation: models alike, heavy tails", "error", 0.05, rejected, tails="heavy"),
    _case("permutation: models alike, six prompts", "error", 0.05, rejected, clusters=np.arange(6)),
    _case("permutation by cluster: alike over wordings", "error", 0.05, rejected, whole=True, **_CLUSTERED),
    _case("the same, heavy tails", "error", 0.05, rejected, whole=True, tails="heavy", **_CLUSTERED),
    _case("permutation, Benjamini-Hochberg, 20 components", "error", 0.05, any_of_a_family, 60),
    _case("permutation: apart by 0.7 of the noise", "power", 0.95, rejected, apart=0.7),
    _case("permutation by cluster: apart by 2", "power", 0.8, rejected, apart=2.0, whole=True, **_CLUSTERED),
    _case("cluster interval: the book's nine clusters", "cover", 0.95, covered, clusters=BOOK),
    _case("cluster interval: nine, heavy tails", "cover", 0.95, covered, clusters=BOOK, tails="heavy"),
    _case("cluster interval: six clusters", "cover", 0.95, covered, clusters=EVEN),
    _case("cluster interval: forty clusters", "cover", 0.95, covered, clusters=np.arange(120) // 3),
    _case("binomial interval: ten shares at once", "cover", 0.95, shares_covered),
    _case("agreement with sampling: five cells at once", "cover", 0.95, sampled_agrees, 100),
    _case("agreement: metric off by 0.15 in a cell", "power", 0.9, sampled_agrees, 100, off=0.15),
    _case("between and within: three runs, no effect", "error", 1 / 10, differ, 60, count=3, **_RUNS),
    _case("between and within: three runs, only noise", "error", 1 / 10, differ, 60, count=3),
    _case("between and within: two runs, no effect", "error", 1 / 3, differ, 60, count=2, **_RUNS),
    _case("between and within: apart by 5 runs' spreads", "power", 0.9, differ, 60, count=3, apart=5, run=1.0),
    _case("correlations, 10 prompts: any pair, corrected", "error", 0.05, compared, 60, prompts=10, what="pairs"),
    _case("correlations, 10 prompts: share of pairs", "error", 0.05, compared, 60, prompts=10, what="share"),
    _case("correlations, 10 prompts: any hub, corrected", "error", 0.05, compared, 60, prompts=10, what="hubs"),
    _case("correlations, 60 prompts: any pair, corrected", "error", 0.05, compared, 40, prompts=60, what="pairs"),
    _case("correlations, 60 prompts: share of pairs", "error", 0.05, compared, 40, prompts=60, what="share"),
    _case("correlations, 60 prompts: any hub, corrected", "error", 0.05, compared, 40, prompts=60, what="hubs"),
    _case("correlations, 60 prompts: r = 0 against 0.8", "power", 0.8, compared, 40, prompts=60, planted="pair"),
    _case("correlations, 60 prompts: half turned around", "power", 0.9, compared, 40, prompts=60, planted="half"),
    _case("association over 16 components: none", "error", 0.05, associated, 100),
    _case("association over 16 components: r = 0.8", "power", 0.9, associated, 100, r=0.8),
    _case("Mantel, 8 components: none", "error", 0.05, matrices_associated, 100),
    _case("Mantel, 8 components: 0.8 in common", "power", 0.9, matrices_associated, 100, weight=0.8),
)
CASES = {case.what: case for case in _ALL}
SHOWN = (
    _case("permutation prompt by prompt, asked about wordings", "error", 0.05, rejected, **_CLUSTERED),
    _case("correlations, 10 prompts, heavy tails: share", "error", 0.05, compared, prompts=10, tails="heavy"),
    _case("correlations, 60 prompts, heavy tails: share", "error", 0.05, compared, prompts=60, tails="heavy"),
)
"""What a function does *not* claim: in the table, not judged."""
