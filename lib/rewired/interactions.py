"""Which components vary together, and does that differ between two models?

Over prompts, one component's value (its contribution to the decision, say, or the size of its output) rises and falls
with another's. All such correlations form a matrix, and two models have two matrices. The study called a pair of
components *rewired* when its two correlations differed by 0.3 or more. But any two finite samples differ, and over ten
distinct prompts they differ a lot. So every difference here comes with its null: what it would be if there were
nothing to find. A correlation over prompts says that two components react to the same things. It says nothing about
one acting on the other.

Everything takes plain frames and no model: one row a prompt, one column a component, one frame a model. Numbers from
elsewhere will do. The study's result files hold, for each model, fifteen records with the sizes of 52 components; with
six records of two components each it looks like this:

>>> import pandas as pd
>>> def frame_of(records):
...     return pd.DataFrame([record["activations"] for record in records])
>>> a = frame_of([{"activations": {"L0_ATTN": x, "L0_MLP": x * x}} for x in (1, 2, 3, 4, 5, 5)])
>>> b = frame_of([{"activations": {"L0_ATTN": x, "L0_MLP": -x}} for x in (1, 2, 3, 4, 5, 5)])
>>> pairs, shares, hubs = compare(a, b)
>>> pairs[["one", "other", "r_a", "r_b", "difference"]].round(2)
       one   other   r_a  r_b  difference
0  L0_ATTN  L0_MLP  0.98 -1.0       -1.98
>>> int(shares["prompts"].iloc[0])  # the last prompt was there twice
5
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.linalg import helmert

from rewired.errors import RewiredError
from rewired.statistics import swaps

THRESHOLDS = (0.3, 0.5, 0.7)
"""The study's threshold for a "rewired" pair, and the two harder ones it also counts."""
_BLOCK = 100  # swaps computed at once
_TIE = 1e-6  # sizes are kept in single precision; closer ones count as equal


def correlations(values: pd.DataFrame) -> pd.DataFrame:
    """[component, component]: Pearson's r over prompts; NaN for a component that has one value throughout."""
    r = _correlations(contrasts(values))
    return pd.DataFrame(r, index=values.columns, columns=values.columns)


def compare(
    a: pd.DataFrame, b: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS, draws: int = 2_000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(`pair_table`, `share_table`, `hub_table`) of two models over the same prompts, against `null_sizes`.

    Prompts that are copies of others are left out. Raises RewiredError as `distinct` does."""
    a, b = distinct(a, b)
    sizes = null_sizes(a, b, draws, seed)
    return pair_table(a, b, sizes), share_table(sizes, len(a), thresholds), hub_table(a.columns, sizes)


def null_sizes(a: pd.DataFrame, b: pd.DataFrame, draws: int = 2_000, seed: int = 0) -> np.ndarray:
    """|r_b - r_a| of every pair of components after swapping models prompt by prompt: [swap, pair], the first one as
    observed; pairs in the order of ``np.triu_indices``.

    The null: it does not matter which model a prompt's values came from, once each model's own mean and spread of
    each component are taken out. What is swapped are Helmert contrasts: each prompt's deviation from the mean of the
    prompts before it, at equal variances (as in recursive residuals). Deviations from the mean of *all* prompts sum
    to zero before a swap and not after it; over ten prompts they reject two to three times too often. With few
    prompts *and* heavy tails the p of `share_table` is still a little too small (benchmarks/calibration)."""
    z_a, z_b = _scaled(contrasts(a)), _scaled(contrasts(b))  # [prompt - 1, component]
    one, other = np.triu_indices(a.shape[1], 1)  # both [pair]
    stays = swaps(len(a) - 1, draws, seed)[:, :, None] > 0  # [swap, prompt - 1, 1]
    sizes = np.empty((len(stays), len(one)), dtype=np.float32)
    for start in range(0, len(stays), _BLOCK):
        block = slice(start, start + _BLOCK)
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
        row = {"threshold": threshold, "prompts": prompts, "pairs": pairs, "beyond": int(beyond[0]), "share": share[0]}
        row |= {"null_low": low, "null": middle, "null_high": high, "p": float(_p(share, share[0]))}
        rows.append(row)
    return pd.DataFrame(rows)


def hub_table(components: Sequence[str], sizes: np.ndarray) -> pd.DataFrame:
    """One row per component: ``strength``, its mean |difference| over its pairs, the null's median ``null``, and
    ``p_adjusted`` over all components (against the largest strength of each swap)."""
    one, other = np.triu_indices(len(components), 1)
    strengths = np.empty((len(sizes), len(components)))  # [swap, component]
    for k in range(len(components)):
        own = sizes[:, (one == k) | (other == k)].astype(float)
        known = (~np.isnan(own)).sum(axis=1)
        # NaN for a component without any pair that is defined
        strengths[:, k] = np.nansum(own, axis=1) / np.where(known, known, np.nan)
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
                f"Two models can be compared only on the same prompts and components: one frame is {first.shape[0]} x "
                f"{first.shape[1]}, the other {frame.shape[0]} x {frame.shape[1]}, or their columns are named or "
                "ordered differently. Bring both into the same order, one row a prompt, one column a component."
            )
    both = pd.DataFrame(np.hstack([frame.to_numpy(dtype=float) for frame in frames]))  # [prompt, model x component]
    missing = int(both.isna().sum().sum())
    new = ~both.duplicated().to_numpy()  # [prompt]
    if missing or new.sum() < 4 or first.shape[1] < 2:
        raise RewiredError(
            f"Correlations between components need two components or more, a number for each of at least four distinct "
            f"prompts, and no gaps: here are {first.shape[1]} components, {new.sum()} distinct prompts and {missing} "
            "missing values. Give more prompts, or leave out those that were not measured."
        )
    return [frame[new] for frame in frames]


def mantel(pairs: pd.DataFrame, x: str, y: str, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """(Pearson's r, two-sided p) of two numbers for each *pair* of components, one row for every pair.

    Pairs that share a component are not independent, so whole components are permuted in one of the two matrices
    (Mantel 1967). ``pairs`` has the columns ``one``, ``other``, ``x`` and ``y``. p is never 0. Raises RewiredError
    where a pair or a number is missing."""
    names = list(dict.fromkeys([*pairs["one"], *pairs["other"]]))
    count = len(names) * (len(names) - 1) // 2
    if len(pairs) != count or pairs[[x, y]].isna().any(axis=None):
        raise RewiredError(
            f"A Mantel test needs two numbers for every pair of components; of {len(names)} components there are "
            f"{count} pairs, and {len(pairs)} rows were given, or some lack a number."
        )
    one, other = pd.Index(names).get_indexer(pairs["one"]), pd.Index(names).get_indexer(pairs["other"])  # both [pair]
    matrix = np.full((len(names), len(names)), np.nan)  # [component, component] of y
    matrix[one, other] = matrix[other, one] = pairs[y]
    fixed = _standard(pairs[x].to_numpy(dtype=float))
    random = np.random.default_rng(seed)
    null = np.empty(draws + 1)  # the first one as observed
    for k in range(draws + 1):
        order = random.permutation(len(names)) if k else np.arange(len(names))
        null[k] = fixed @ _standard(matrix[order[one], order[other]]) / count
    return float(null[0]), float(_p(np.abs(null), abs(null[0])))


# --- arithmetic ------------------------------------------------------------------------------------------------------


def contrasts(values: pd.DataFrame) -> np.ndarray:
    """[prompt - 1, component]: each prompt's deviation from the mean of those before it, at equal variances. They have
    the same sums of squares and products as the centred values."""
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


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


def _p(null: np.ndarray, observed) -> np.ndarray:
    """Share of ``null`` [swap, ...] at least as large as ``observed`` [...], which is one of them; NaN for NaN."""
    p = (null >= observed - _TIE).mean(axis=0)
    return np.where(np.isnan(observed), np.nan, p)
