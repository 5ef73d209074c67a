"""Which components vary together, and does that differ between two models?

Over prompts, one component's value (its vote, say, or the size of its output) goes up and down together with another's.
All such correlations form a matrix, and two models have two matrices. The study called a pair of components *rewired*
when the two correlations differed by 0.3 or more. But any two finite samples differ, and over ten distinct prompts they
differ a lot; so every difference here comes with what it would be if there were nothing to find. A correlation over
prompts says that two components react to the same things. It says nothing about one acting on the other.

Everything takes plain frames: one row a prompt, one column a component, one frame a model, and no model at all. Numbers
from elsewhere will do. The study's result files hold, for each model, a list of fifteen records with the sizes of 52
components; with six records of two components each it looks like this:

>>> import pandas as pd
>>> def frame_of(records):
...     return pd.DataFrame([record["activations"] for record in records])
>>> one = frame_of([{"activations": {"L0_ATTN": a, "L0_MLP": a * a}} for a in (1, 2, 3, 4, 5, 5)])
>>> other = frame_of([{"activations": {"L0_ATTN": a, "L0_MLP": -a}} for a in (1, 2, 3, 4, 5, 5)])
>>> pairs, shares, hubs = compare(one, other)
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
from scipy.stats import PermutationMethod, pearsonr

from rewired.errors import RewiredError
from rewired.statistics import labellings

THRESHOLDS = (0.3, 0.5, 0.7)
"""The study's threshold for a "rewired" pair, and the two harder ones it also counts."""


def correlations(values: pd.DataFrame) -> pd.DataFrame:
    """[component, component]: Pearson's r over prompts; NaN for a component that has one value throughout."""
    r = _correlations(_contrasts(values))
    return pd.DataFrame(r, index=values.columns, columns=values.columns)


def compare(
    a: pd.DataFrame, b: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS, draws: int = 2_000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(pairs, shares, hubs): how two models' correlations over the same prompts differ, against paired permutations.

    ``pairs``, one row per pair of components: ``one``, ``other``, ``r_a``, ``r_b``, ``difference`` = r_b - r_a,
    ``rank`` (1 = largest), ``p`` of this pair alone and ``p_adjusted`` over all pairs (the largest difference of each
    permutation: family-wise). ``shares``, one row per threshold: ``prompts``, ``pairs``, ``beyond`` (how many pairs
    differ by at least ``threshold``), ``share``, the null's ``null_low``, ``null`` and ``null_high`` (2.5, 50 and
    97.5 %) and ``p``. ``hubs``, one row per component: ``strength``, its mean |difference| over its pairs, the null's
    median ``null``, and ``p_adjusted`` over all components. All p are two-sided and never 0.

    The null: prompt by prompt, it does not matter which model the values came from, once each model's own mean and
    spread of each component are taken out. What is swapped is each prompt's deviation from the mean of those before it
    (Helmert contrasts, as in recursive residuals). Deviations from the mean of *all* would sum to zero before a swap
    and not after it, and reject two to three times too often over ten prompts. With few prompts *and* heavy tails the
    shares' p are still a little too small (benchmarks/calibration). Prompts that are copies of others are left out.
    Raises RewiredError for frames that do not match, missing values, or fewer than four distinct prompts."""
    a, b = distinct(a, b)
    one, other = np.triu_indices(a.shape[1], 1)
    signs = labellings(len(a) - 1, draws, seed)[:, :, None]  # [labelling, contrast, 1], the first one as observed
    z_a, z_b = (_scaled(_contrasts(frame)) for frame in (a, b))
    sizes = np.empty((len(signs), len(one)), dtype=np.float32)  # |difference|, [labelling, pair]
    for start in range(0, len(signs), 100):
        kept = signs[start : start + 100] > 0
        r_a, r_b = (_correlations(np.where(kept, *pair)) for pair in ((z_a, z_b), (z_b, z_a)))
        sizes[start : start + 100] = np.abs(r_b - r_a)[:, one, other]
    r_a, r_b = (correlations(frame).to_numpy()[one, other] for frame in (a, b))
    pairs = pd.DataFrame({"one": a.columns[one], "other": a.columns[other], "r_a": r_a, "r_b": r_b})
    pairs["difference"] = r_b - r_a
    pairs["rank"] = pairs["difference"].abs().rank(ascending=False, method="first")
    pairs["p"] = _p(sizes)
    pairs["p_adjusted"] = _p(np.fmax.reduce(sizes, axis=1)[:, None], sizes[0])
    touching = np.stack([(one == k) | (other == k) for k in range(a.shape[1])], axis=1)  # [pair, component]
    with np.errstate(invalid="ignore"):  # 0 / 0 for a component without any tie that is defined
        strengths = (np.nan_to_num(sizes) @ touching) / (
            ~np.isnan(sizes) @ touching.astype(int)
        )  # [labelling, component]
    hubs = pd.DataFrame({"component": a.columns, "strength": strengths[0], "null": np.median(strengths, axis=0)})
    hubs["p_adjusted"] = _p(np.fmax.reduce(strengths, axis=1)[:, None], strengths[0])
    return pairs, _shares(sizes, thresholds, len(a)), hubs


def resampled(
    values: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS, draws: int = 500, seed: int = 0
) -> pd.DataFrame:
    """How many pairs of *one* model differ between two samples of its distinct prompts, each drawn with replacement.
    One row per threshold: ``prompts``, ``share`` (median), ``low`` and ``high`` (2.5 and 97.5 %). It answers another
    question than the permutation: what the choice of prompts alone can do to the correlations of a single model."""
    [values] = distinct(values)
    one, other = np.triu_indices(values.shape[1], 1)
    random, found = np.random.default_rng(seed), []
    table = values.to_numpy(dtype=float)
    for _ in range(draws):
        r = [_correlations(_centred(table[random.integers(len(table), size=len(table))])) for _ in "ab"]
        size = np.abs(r[1] - r[0])[one, other]
        found.append([np.mean(size[~np.isnan(size)] >= t) for t in thresholds])
    low, middle, high = np.quantile(found, (0.025, 0.5, 0.975), axis=0)
    return pd.DataFrame(
        {"threshold": thresholds, "prompts": len(values), "low": low, "share": middle, "high": high}
    )  # fmt: skip


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
    missing, kept = int(both.isna().sum().sum()), ~both.duplicated().to_numpy()
    if missing or kept.sum() < 4 or first.shape[1] < 2:
        raise RewiredError(
            f"Correlations between components need two components or more, a number for each of at least four distinct "
            f"prompts, and no gaps: here are {first.shape[1]} components, {kept.sum()} distinct prompts and {missing} "
            "missing values. Give more prompts, or leave out those that were not measured."
        )
    return [frame[kept] for frame in frames]


def association(x, y, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """(Pearson's r, two-sided p) of two numbers for each component, by permuting components: the test behind the
    study's r = 0.67, a component's mean |difference| against its patching asymmetry."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    method = PermutationMethod(n_resamples=draws, rng=np.random.default_rng(seed))
    found = pearsonr(x, y, method=method)
    return float(found.statistic), float(found.pvalue)


def mantel(pairs: pd.DataFrame, x: str, y: str, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """(Pearson's r, two-sided p) of two numbers for each *pair* of components. Pairs that share a component are not
    independent, so whole components are permuted in one of the two matrices (Mantel 1967). ``pairs`` has the columns
    ``one``, ``other``, ``x`` and ``y`` and one row for every pair. p is never 0."""
    names = list(dict.fromkeys([*pairs["one"], *pairs["other"]]))
    place = [[names.index(name) for name in pairs[side]] for side in ("one", "other")]
    matrix = np.full((len(names), len(names)), np.nan)
    matrix[place[0], place[1]] = matrix[place[1], place[0]] = pairs[y]
    if len(pairs) != len(names) * (len(names) - 1) // 2 or pairs[[x, y]].isna().any(axis=None):
        raise RewiredError(
            f"A Mantel test needs two numbers for every pair of components; of {len(names)} components there are "
            f"{len(names) * (len(names) - 1) // 2} pairs, and {len(pairs)} rows were given, or some lack a number."
        )
    random, own = np.random.default_rng(seed), _standard(pairs[x].to_numpy(dtype=float))
    null = np.empty(draws + 1)
    for k in range(draws + 1):
        new = random.permutation(len(names)) if k else np.arange(len(names))
        null[k] = own @ _standard(matrix[new[place[0]], new[place[1]]]) / len(own)
    return float(null[0]), float(_p(np.abs(null)[:, None])[0])


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _contrasts(values: pd.DataFrame) -> np.ndarray:
    """[prompt - 1, component]: each prompt's deviation from the mean of those before it, at equal variances. They have
    the same sums of squares and products as the centred values."""
    table = values.to_numpy(dtype=float)
    return np.where(_same(table), 0.0, helmert(len(table)) @ table)


def _centred(values: np.ndarray) -> np.ndarray:
    return np.where(_same(values), 0.0, values - values.mean(axis=0))


def _same(values: np.ndarray) -> np.ndarray:
    """[component]: is the value the same on all prompts, but for rounding?"""
    return np.ptp(values, axis=0) <= 1e-12 * np.abs(values).max(axis=0)


def _scaled(z: np.ndarray) -> np.ndarray:
    """Columns divided by their length; NaN where that is 0."""
    length = np.sqrt((z**2).sum(axis=-2, keepdims=True))
    return z / np.where(length > 0, length, np.nan)


def _correlations(z: np.ndarray) -> np.ndarray:
    """Centred or contrasted values [..., prompt, component] -> r [..., component, component]."""
    z = _scaled(z)
    return np.clip(np.swapaxes(z, -1, -2) @ z, -1, 1)


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


def _p(null: np.ndarray, observed=None) -> np.ndarray:
    """Share of labellings (rows; the first is the observed one) at least as large as observed; NaN for NaN."""
    observed = null[0] if observed is None else observed
    p = (null >= observed - 1e-6).mean(axis=0)
    return np.where(np.isnan(observed), np.nan, p)


def _shares(sizes: np.ndarray, thresholds: Sequence[float], prompts: int) -> pd.DataFrame:
    rows, known = [], ~np.isnan(sizes)
    for threshold in thresholds:
        share = (sizes >= threshold - 1e-6).sum(axis=1) / known.sum(axis=1)
        low, middle, high = np.quantile(share, (0.025, 0.5, 0.975))
        rows.append(
            {"threshold": threshold, "prompts": prompts, "pairs": int(known[0].sum()),
             "beyond": int((sizes[0] >= threshold - 1e-6).sum()), "share": share[0],
             "null_low": low, "null": middle, "null_high": high, "p": float(_p(share))}
        )  # fmt: skip
    return pd.DataFrame(rows)
