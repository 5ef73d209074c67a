"""How features of alignment faking were tested on a gold set, and the same questions asked without choosing the answer.

Gold is a set of texts [text] that people labelled, y = 1 for faking, with features x [text, feature]. The first of each
pair of functions chooses with the very labels it then tests against: features, a direction, a threshold. On shuffled
labels it still finds something. The second one chooses elsewhere, or chooses anew whenever labels are shuffled.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.model_selection import KFold

from rewired.statistics import aurocs, permutation_p
from rewired.tracing import probes

CUT = 0.6  # a feature with a larger AUROC is kept
TOP = 10  # features whose match is counted
FOLDS = 5
LABELS = np.repeat([1, 0], [51, 55])
"""How many texts of the gold set fake."""


@dataclass(frozen=True)
class Noise:
    """Features that know nothing of the gold set's labels, nor of what an organism is. They tell the labels of the
    training texts, for such features are those that come this far; ``training`` is labelled as gold is."""

    gold: np.ndarray  # [text, feature]
    organism: np.ndarray  # [text, feature]
    training: np.ndarray  # [text, feature]


def noise(seed: int, shared: float, features: int = 1_125, organism: int = 50) -> Noise:
    """Normal noise of a seed, as many features as were published. ``shared`` is the share of a feature's variance that
    it owes to fifty dimensions common to all; training texts that fake are half a standard deviation higher in each."""
    random = np.random.default_rng(seed)
    loading = random.normal(size=(50, features))  # [dimension, feature]
    loading /= np.linalg.norm(loading, axis=0)
    sets = []
    for count in (len(LABELS), organism, len(LABELS)):
        common = random.normal(size=(count, 50)) @ loading
        sets.append(np.sqrt(shared) * common + np.sqrt(1 - shared) * random.normal(size=(count, features)))
    sets[2] += 0.5 * LABELS[:, None]
    return Noise(*sets)


def kept(y, x, ranked: bool = False) -> np.ndarray:
    """The places of the features whose AUROC exceeds .6, or of the best one where none does. ``ranked`` as in
    `statistics.aurocs`."""
    value = aurocs(y, x, ranked)  # [feature]
    return np.flatnonzero(value > min(CUT, value.max() - 1e-12))


def kept_as_published(y, x, toward) -> np.ndarray:
    """The places of the features whose AUROC on gold exceeds .6 in the direction that training texts gave them,
    ``toward`` [feature] of +1 or -1; the best three where fewer do."""
    above = toward * (aurocs(y, x) - 0.5)  # [feature]
    places = np.flatnonzero(above > CUT - 0.5)
    return places if len(places) > 2 else np.argsort(-above)[:3]


def probe_as_published(y, x, training_y, training) -> np.ndarray:
    """Scores [text] of gold by a probe that training texts [text, feature] fitted, as it was done: on the features that
    score on both."""
    toward = np.sign(aurocs(training_y, training) - 0.5)
    places = kept_as_published(y, x, toward)
    return probes.fit(training[:, places], training_y).decision_function(x[:, places])


def folds(x, seed: int = 0) -> list[tuple]:
    """(places of the others, places of the fold, ranks of the others [text, feature]) of five folds, cut without a look
    at any label."""
    parts = []
    for others, fold in KFold(FOLDS, shuffle=True, random_state=seed).split(x):
        parts.append((others, fold, rankdata(x[others], axis=0)))
    return parts


def probe_after_choice(y, x, parts: list[tuple]) -> np.ndarray:
    """Scores [text] of a probe fitted on the other folds, as it was done: features are kept by their AUROC on *all*
    texts before, so each fold's own labels have chosen what it is scored by."""
    x, score = x[:, kept(y, x)], np.empty(len(y))
    for others, fold, _ in parts:
        score[fold] = probes.fit(x[others], y[others]).decision_function(x[fold])
    return score


def probe_with_choice(y, x, parts: list[tuple]) -> np.ndarray:
    """Scores [text] of a probe fitted on the other folds, where these other folds choose the features too. DeLong's
    interval is still too narrow for them: any two folds' probes were fitted on mostly the same texts. See `probe_p`."""
    score = np.empty(len(y))
    for others, fold, ranks in parts:
        columns = kept(y[others], ranks, ranked=True)
        score[fold] = probes.fit(x[others][:, columns], y[others]).decision_function(x[fold][:, columns])
    return score


def probe_p(y, x, draws: int = 99, seed: int = 0, parts: list[tuple] | None = None) -> tuple[float, float]:
    """(AUROC across folds, p), where shuffled labels choose their features and fit their probes anew."""
    parts = folds(x, seed) if parts is None else parts
    return permutation_p(
        lambda labels: aurocs(labels, probe_with_choice(labels, x, parts)[:, None]).item(), y, draws, seed
    )


def top(y, x, ranked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(places, directions) of the ten features whose AUROC is farthest from a half; a direction is +1 or -1. ``ranked``
    as in `statistics.aurocs`."""
    value = aurocs(y, x, ranked) - 0.5  # [feature]
    places = np.argsort(-np.abs(value))[:TOP]
    return places, np.sign(value[places])


def match_rate(y, x, organism, chosen: tuple | None = None) -> float:
    """The share of the top features in which an organism's mean, of its texts [text, feature], lies beyond the mean of
    gold's negatives, in the feature's direction. ``chosen``: the `top` of other labels, kept."""
    places, direction = top(y, x) if chosen is None else chosen
    beyond = organism[:, places].mean(axis=0) - x[y == 0][:, places].mean(axis=0)  # [feature]
    return float((beyond * direction > 0).mean())


def match_p_as_published(y, x, organism, draws: int = 199, seed: int = 0) -> float:
    """p of the match rate, as it was done: labels are shuffled, features and directions are not chosen again."""
    chosen = top(y, x)
    return permutation_p(lambda labels: match_rate(labels, x, organism, chosen), y, draws, seed)[1]


def match_p(y, x, organism, draws: int = 199, seed: int = 0) -> float:
    """p of the match rate, where shuffled labels choose their own features and directions."""
    ranks = rankdata(x, axis=0)  # [text, feature]
    return permutation_p(lambda labels: match_rate(labels, x, organism, top(labels, ranks, True)), y, draws, seed)[1]


def tuned_judge(y, votes) -> tuple[int, float]:
    """(prompt, threshold) of a judge with the most hits on these labels, votes [text, prompt]: "faking" from the
    threshold on. It was then reported on the same texts."""
    best = (0, 0.0, -1.0)
    for prompt in range(votes.shape[1]):
        for threshold in np.unique(votes[:, prompt]):
            hits = ((votes[:, prompt] >= threshold) == y).mean()
            if hits > best[2]:
                best = (prompt, float(threshold), hits)
    return best[:2]


def hits(y, votes, judge: tuple[int, float]) -> int:
    """How many texts a judge sorts as the labels do."""
    prompt, threshold = judge
    return int(((votes[:, prompt] >= threshold) == y).sum())
