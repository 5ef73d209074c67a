"""Which components vary together, and does that differ between two models?

Over prompts, one component's value (its contribution to the decision, say, or the size of its output) rises and falls
with another's. All such correlations form a matrix, and two models have two matrices. The study called a pair of
components *rewired* when its two correlations differed by 0.3 or more. But any two finite samples differ, and over ten
distinct prompts they differ a lot. So every difference here comes with its null: what it would be if there were
nothing to find. Everything takes plain frames: one row a prompt, one column a component, one frame a model.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.linalg import helmert

from rewired.errors import RewiredError
from rewired.statistics import swaps

THRESHOLDS = (0.3, 0.5, 0.7)
"""The study's threshold for a "rewired" pair, and the two harder ones it also counts."""
_TIE = 1e-6  # sizes are kept in single precision; closer ones count as equal


def correlations(values: pd.DataFrame) -> pd.DataFrame:
    """[component, component]: Pearson's r over prompts; NaN for a component that has one value throughout."""
    return pd.DataFrame(_correlations(contrasts(values)), index=values.columns, columns=values.columns)


def null_sizes(a: pd.DataFrame, b: pd.DataFrame, draws=2_000, seed=0, clusters: Sequence | None = None) -> np.ndarray:
    """|r_b - r_a| of every pair of components after swapping models prompt by prompt, or whole ``clusters`` of prompts
    (one name a prompt) at once: [swap, pair], the first one as observed; pairs in the order of ``np.triu_indices``.

    The null: it does not matter which model a prompt's values came from, its mean and spread taken out. Swapped are
    `contrasts`: deviations from the mean of *all* prompts sum to zero before a swap and not after it, and reject two
    to three times too often over ten prompts. With few prompts *and* heavy tails the p of `share_table` is still a
    little too small; so it is with few clusters (benchmarks/calibration)."""
    groups = np.arange(len(a)) if clusters is None else pd.factorize(np.asarray(clusters))[0]  # [prompt]
    order = np.argsort(groups, kind="stable")  # the prompts of a cluster side by side
    z_a, z_b = (_scaled(contrasts(values.iloc[order])) for values in (a, b))  # [prompt - 1, component]
    one, other = np.triu_indices(a.shape[1], 1)  # both [pair]
    coins = pd.factorize(groups[order][1:])[0]  # [prompt - 1]: which coin decides about a contrast
    stays = swaps(coins.max() + 1, draws, seed)[:, coins, None] > 0  # [swap, prompt - 1, 1]
    sizes = np.empty((len(stays), len(one)), dtype=np.float32)
    for start in range(0, len(stays), 100):  # a hundred swaps at once
        block = slice(start, start + 100)
        r_a = _correlations(np.where(stays[block], z_a, z_b))  # [swap, component, component]
        r_b = _correlations(np.where(stays[block], z_b, z_a))
        sizes[block] = np.abs(r_b - r_a)[:, one, other]
    return sizes


def pair_table(a: pd.DataFrame, b: pd.DataFrame, sizes: np.ndarray) -> pd.DataFrame:
    """One row per pair of components: ``one``, ``other``, ``r_a``, ``r_b``, ``difference`` = r_b - r_a, ``rank`` (1 =
    largest |difference|), two-sided ``p`` of this pair alone, and ``p_adjusted`` over all pairs: against the largest
    difference of each swap (family-wise). p is never 0, and NaN for a component that does not vary."""
    one, other = np.triu_indices(a.shape[1], 1)
    table = pd.DataFrame({"one": a.columns[one], "other": a.columns[other]})
    table["r_a"] = correlations(a).to_numpy()[one, other]
    table["r_b"] = correlations(b).to_numpy()[one, other]
    table["difference"] = table["r_b"] - table["r_a"]
    table["rank"] = table["difference"].abs().rank(ascending=False, method="first")
    largest = np.fmax.reduce(sizes, axis=1)  # [swap]
    table["p"] = _p(sizes, sizes[0])
    table["p_adjusted"] = _p(largest[:, None], sizes[0])
    return table


def share_table(sizes: np.ndarray, prompts: int, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
    """One row per threshold: ``prompts``, ``pairs``, ``beyond`` (how many pairs differ by at least ``threshold``),
    ``share``, the null's ``null_low``, ``null`` and ``null_high`` (2.5, 50 and 97.5 %) and ``p`` of the share."""
    pairs = int((~np.isnan(sizes[0])).sum())
    rows = []
    for threshold in thresholds:
        beyond = (sizes >= threshold - _TIE).sum(axis=1)  # [swap]
        share = beyond / pairs
        low, middle, high = np.quantile(share, (0.025, 0.5, 0.975))
        p = float(_p(share, share[0]))
        rows.append((threshold, prompts, pairs, int(beyond[0]), share[0], low, middle, high, p))
    columns = ["threshold", "prompts", "pairs", "beyond", "share", "null_low", "null", "null_high", "p"]
    return pd.DataFrame(rows, columns=columns)


def hub_table(components: Sequence[str], sizes: np.ndarray) -> pd.DataFrame:
    """One row per component: ``strength``, its mean |difference| over its pairs, the null's median ``null``, and
    ``p_adjusted`` over all components (against the largest strength of each swap)."""
    one, other = np.triu_indices(len(components), 1)
    strengths = np.empty((len(sizes), len(components)))  # [swap, component]
    for k in range(len(components)):
        own = sizes[:, (one == k) | (other == k)].astype(float)
        known = (~np.isnan(own)).sum(axis=1)
        strengths[:, k] = np.nansum(own, axis=1) / np.where(known, known, np.nan)  # NaN without a defined pair
    table = pd.DataFrame({"component": components, "strength": strengths[0], "null": np.median(strengths, axis=0)})
    largest = np.fmax.reduce(strengths, axis=1)  # [swap]
    return table.assign(p_adjusted=_p(largest[:, None], strengths[0]))


def distinct(*frames: pd.DataFrame) -> list[pd.DataFrame]:
    """The frames without prompts whose values repeat those of an earlier prompt in *every* frame: a copy is no new
    observation. Raises RewiredError for frames that do not match, missing values, or fewer than four prompts left."""
    first = frames[0]
    for frame in frames[1:]:
        if list(frame.columns) != list(first.columns) or len(frame) != len(first):
            raise RewiredError(
                f"Two models can be compared only on the same prompts and components: one frame is {first.shape}, the "
                f"other {frame.shape}, or their columns differ. Bring both into the same order, one row a prompt."
            )
    both = pd.DataFrame(np.hstack([frame.to_numpy(dtype=float) for frame in frames]))  # [prompt, model x component]
    missing = int(both.isna().sum().sum())
    new = ~both.duplicated().to_numpy()  # [prompt]
    if missing or new.sum() < 4 or first.shape[1] < 2:
        raise RewiredError(
            f"Correlations need two components or more and four distinct prompts or more, without gaps: here are "
            f"{first.shape[1]} components, {new.sum()} distinct prompts and {missing} missing values. Give more."
        )
    return [frame[new] for frame in frames]


def contrasts(values: pd.DataFrame) -> np.ndarray:
    """[prompt - 1, component]: each prompt's deviation from the mean of those before it, at equal variances (Helmert).
    They have the same sums of squares and products as the centred values."""
    table = values.to_numpy(dtype=float)
    constant = np.ptp(table, axis=0) <= 1e-12 * np.abs(table).max(axis=0)  # [component], but for rounding
    return np.where(constant, 0.0, helmert(len(table)) @ table)


def _scaled(z: np.ndarray) -> np.ndarray:
    """Columns divided by their length; NaN where that is 0."""
    length = np.sqrt((z**2).sum(axis=-2, keepdims=True))
    return z / np.where(length > 0, length, np.nan)


def _correlations(z: np.ndarray) -> np.ndarray:
    """Contrasts [..., prompt - 1, component] -> r [..., component, component]."""
    z = _scaled(z)
    return np.clip(np.swapaxes(z, -1, -2) @ z, -1, 1)


def _p(null: np.ndarray, observed) -> np.ndarray:
    """Share of ``null`` [swap, ...] at least as large as ``observed`` [...], which is one of them; NaN for NaN."""
    p = (null >= observed - _TIE).mean(axis=0)
    return np.where(np.isnan(observed), np.nan, p)
