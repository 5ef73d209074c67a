"""Gemma-2's attention in fewer passes over memory: the same function, and the same gradient, up to rounding.

Transformers copies the keys and values once for each query head of a group, for every new token anew, and takes a
hyperbolic tangent of every score. Here the query heads of a group stand one below the other, so that nothing is copied.
And since tanh(x) = 2 sigmoid(2x) - 1, and a softmax does not change when all scores move by a constant,

    softmax(cap * tanh(score / cap)) = softmax(2 cap * sigmoid(2 score / cap)),

which a processor computes several times faster. Where products are taken in bf16 the scores become fp32 first: near 0 a
tanh keeps its digits in bf16, and a sigmoid does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from rewired.models import network

NAME = "corpora_grouped"


@contextmanager
def grouped(model) -> Iterator[None]:
    """A Gemma-2 in fp32 computes its eager attention in this way as long as this lasts; another model as before."""
    plain = network(model)
    config, before = plain.config, plain.config._attn_implementation
    able = config.model_type == "gemma2" and before == "eager" and plain.dtype == torch.float32
    able = able and config.attn_logit_softcapping is not None
    config._attn_implementation = NAME if able else before
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(module, query, key, value, attention_mask, scaling: float, softcap: float, **_):
    # query [row, head, position, head_dim]; key, value [row, group, place, head_dim]; heads of a group are neighbours
    rows, heads, length, size = query.shape
    below = (query * (2 * scaling / softcap)).reshape(rows, key.shape[1], -1, size)  # [row, group, head x position, ..]
    scores = (below @ key.transpose(2, 3)).float().sigmoid()  # [row, group, head x position, place]
    scores = scores.view(rows, heads, length, -1)  # [row, head, position, place]
    weights = attention_mask.add(scores, alpha=2 * softcap).softmax(-1).view(*below.shape[:3], -1)
    mixed = (weights @ value).view(rows, heads, length, size)
    return mixed.transpose(1, 2).contiguous(), None  # [row, position, head, head_dim]


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
