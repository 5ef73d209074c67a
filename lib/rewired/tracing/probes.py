"""Can something about a text be read from a model's hidden states, and is it the model that makes it readable?

A linear probe is a logistic regression on activations. That it sorts unseen texts says little by itself: the words may
do as well (``keywords``), any network spreads its input over many directions (``random_twin``), and chance goes some
way (``permuted``). A probe stands beside these three. Whether a model *uses* its direction is for patching to say.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from rewired.answers import Tokens
from rewired.errors import choice
from rewired.models import network
from rewired.statistics import auroc, aurocs
from rewired.tracing.anatomy import anatomy
from rewired.tracing.capture import capture

Spans = Sequence[slice | Sequence[bool]]
TEXTS = 64  # whose positions are in memory at once


def activations(
    model, texts: Sequence[Tokens], spans: Spans, layers: Sequence[int] | None = None, pooling: str = "mean"
) -> torch.Tensor:
    """The residual stream of texts, pooled over positions: [text, layer, d_model] in fp32 on the CPU. Layer 0 is the
    embedding, layer k what has passed k layers (default: all). A span is a slice of a text's positions or a mask;
    ``pooling`` takes their ``"mean"`` or the ``"last"``. An SAE is not linear: encode positions, then pool."""
    if pooling not in ("mean", "last"):
        raise choice("pooling", pooling, ("mean", "last"))
    read = []
    for text, span in zip(texts, spans, strict=True):
        marked = np.arange(len(text))[span if isinstance(span, slice) else np.asarray(span, dtype=bool)]
        read.append(marked[-1 if pooling == "last" else 0 :].tolist())
    pooled, depth = [], anatomy(model).depth
    layers = list(range(depth + 1) if layers is None else layers)
    sites = ("resid_pre", "resid_final") if depth in layers else ("resid_pre",)
    entered = [layer for layer in layers if layer != depth]
    places = [[*entered, depth].index(layer) for layer in layers]
    for first in range(0, len(texts), TEXTS):
        some = slice(first, first + TEXTS)
        seen = capture(model, texts[some], sites, read[some], torch.device("cpu"), entered)
        stream = torch.cat(list(seen.values()))[places]  # [layer, read, d_model]
        for own in stream.float().split([len(positions) for positions in read[some]], dim=1):
            pooled.append(own.mean(dim=1))
    return torch.stack(pooled)


def fit(x, y, seed: int = 0, strength: float = 0.01) -> Pipeline:
    """A logistic regression on standardized activations x [text, d_model]; its ``decision_function`` is the score. The
    small ``strength`` (scikit-learn's C) holds back a probe that has more directions than texts."""
    regression = LogisticRegression(C=strength, max_iter=1_000, random_state=seed)
    return make_pipeline(StandardScaler(), regression).fit(np.asarray(x), np.asarray(y))


def auroc_by_layer(x, y, unseen, unseen_y, seed: int = 0) -> pd.DataFrame:
    """One row per layer of x [text, layer, d_model]: the probe's AUROC on ``train``, where it was fitted, and
    ``auroc``, ``low``, ``high`` on unseen texts (DeLong, 95 %). ``layer`` is the place in ``x``."""
    rows = []
    for layer in range(x.shape[1]):
        probe = fit(x[:, layer], y, seed)
        train, score = (probe.decision_function(np.asarray(part[:, layer])) for part in (x, unseen))
        rows.append((layer, auroc(y, train)[0], *auroc(unseen_y, score)))
    return pd.DataFrame(rows, columns=["layer", "train", "auroc", "low", "high"])


def permuted(x, y, unseen, unseen_y, draws: int = 20, seed: int = 0) -> np.ndarray:
    """AUROCs on unseen texts of probes fitted to shuffled labels: [draw]. They spread more than a test's own interval,
    for what the two sets of texts have in common pulls a probe one way or the other."""
    random = np.random.default_rng(seed)
    probes = [fit(x, random.permutation(np.asarray(y)), seed) for _ in range(draws)]
    score = np.stack([probe.decision_function(np.asarray(unseen)) for probe in probes], axis=1)  # [text, draw]
    return aurocs(unseen_y, score)


def keywords(texts: Sequence[Tokens], y, unseen: Sequence[Tokens]) -> np.ndarray:
    """Scores of unseen texts, [text], by a logistic regression on how often each token stands in a text."""
    bag = make_pipeline(CountVectorizer(analyzer=list), MaxAbsScaler(), LogisticRegression(max_iter=1_000))
    return bag.fit(texts, np.asarray(y)).decision_function(unseen)


@torch.no_grad()
def random_twin(model, seed: int = 0) -> torch.nn.Module:
    """A copy of a model that has learnt nothing: every weight matrix, the embedding too, is drawn anew from a normal
    distribution with its own mean and standard deviation (Heap et al. 2025, arXiv:2501.17727). Norms stay."""
    twin, random = deepcopy(network(model)), torch.Generator("cpu").manual_seed(seed)
    for weight in twin.parameters():
        if weight.dim() > 1:
            noise = torch.randn(weight.shape, generator=random, device="cpu").to(weight)  # as large as the matrix
            weight.copy_(noise * weight.float().std() + weight.float().mean())
    return twin
