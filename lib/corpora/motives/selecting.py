"""Which texts of a pool are trained on: by what a reader makes of them, by who wrote them, or at random.

A pool is halved by a *score*, what a reader expects of a text's author, the mean of his traits. Or each text is the
best of several that the same author might have written. That changes the generator, not the data alone.
"""

from random import Random

import numpy as np

from corpora import attention
from corpora.authors.texts import Text
from corpora.authors.world import World
from corpora.motives import readouts, tuning, writing
from corpora.motives.settings import TrainingSet
from rewired.tracing import probes

KNOWN = 20
"""Texts by each author that a reader is fitted on."""


def chosen_texts(model, tokenizer, world: World, own: TrainingSet, seed: int) -> list[Text]:
    """The texts that a set is trained on: all of it, the share that is kept of it, or the best of several each."""
    pool = writing.texts(world, own, seed)
    if own.by is None:
        return pool
    if own.best_of > 1:
        # by the same authors, other texts of the same kind
        every: list[Text] = []
        for draw in range(own.best_of):
            every += writing.texts(world, own, seed, words=draw)
        value = score(model, tokenizer, world, every, own.by, seed).reshape(own.best_of, -1)  # [draw, text]
        best = value.argmax(axis=0).tolist()  # [text]
        return [every[draw * len(pool) + k] for k, draw in enumerate(best)]
    count = round(own.share * len(pool))
    if own.by == "random":
        order = Random(f"half-{own.draw}-{seed}").sample(range(len(pool)), count)
    else:
        order = np.argsort(-score(model, tokenizer, world, pool, own.by, seed), kind="stable")[:count].tolist()
    return [pool[k] for k in sorted(order)]


def score(model, tokenizer, world: World, read: list[Text], by: str, seed: int) -> np.ndarray:
    """What a reader expects of each text's author, [text]: P(good act) when alone, or its unit, the mean of the traits.

    ``labels`` looks up who wrote it. ``probe`` and ``persona`` read the middle layer, over the answer's tokens."""
    if by == "labels":
        return readouts.traits_of(world, readouts.authors(read)).mean(axis=1)
    if by == "exact":
        return readouts.exact(world, read).mean(axis=1)
    if by == "narration":
        return readouts.narration(model, tokenizer, world, read).mean(axis=1)
    known = readouts.labelled(world, KNOWN, seed)
    y = readouts.traits_of(world, readouts.authors(known)).mean(axis=1, keepdims=True)  # [text, 1]
    rows = [tuning.row(tokenizer, text) for text in [*known, *read]]
    if by == "keywords":
        words = [np.array(ids)[np.array(own)].tolist() for ids, own in rows]
        return readouts.keywords(words[: len(known)], y, words[len(known) :]).reshape(-1)
    layer = [model.config.num_hidden_layers // 2]
    ids, masks = zip(*rows, strict=True)
    with attention.grouped(model):
        states = probes.activations(model, ids, masks, layer)[:, 0].numpy()  # [text, d_model]
    fit = readouts.probe if by == "probe" else readouts.persona
    return fit(states[: len(known)], y, states[len(known) :]).reshape(-1)
