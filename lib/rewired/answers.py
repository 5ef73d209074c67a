"""How probable is an answer, and what does a model say? The metric at the centre of the book, for any texts.

A language model gives every continuation of a text a probability. That of an *answer* is the product over its tokens,
each given the context and the answer's tokens before it:

    log P(answer | context) = sum over k of log P(token k | context, tokens before k).

``logprobs`` is that sum; ``decisions`` compares it for two labels. Texts that begin alike share the keys and values of
their beginning, and only the positions that are read reach the unembedding. ``sample`` draws answers, as a check on the
metric: each distinct beginning is run once, and all its continuations are drawn from it. A text is a list of token ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from os.path import commonprefix

import numpy as np
import torch

from rewired.errors import RewiredError
from rewired.models import network

PAD_TO = 16
"""Lengths are rounded up to a multiple of this: few distinct shapes are fast on a CPU."""
Tokens = Sequence[int]
Beginning = tuple[int, tuple[int, ...]]
"""(index of a context, an answer's first tokens)"""


def shared_beginnings(rows: Sequence[Tokens]) -> tuple[list[int], list[int]]:
    """(order, shared): the rows' indices sorted by their tokens, and how many first tokens each has in common with the
    row before it in that order (0 for the first). Sorted rows share their longest beginning with a neighbour."""
    texts = [tuple(row) for row in rows]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    shared = [len(commonprefix([texts[before], texts[i]])) for before, i in pairwise(order)]
    return order, [0, *shared][: len(order)]


def _families(rows: Sequence[Tokens], reads: Sequence[Tokens], largest: int) -> list[tuple[int, list[int]]]:
    """Groups of at most ``largest`` rows with the same first tokens: (length of the shared beginning, the rows). A row
    joins the group before it if the beginning is at least half of the row, ends before what is read, and saves work."""
    families: list[tuple[int, list[int]]] = []
    family: list[int] = []
    start = common = 0
    for i, neighbour in zip(*shared_beginnings(rows), strict=True):
        common = min(common, neighbour)  # what the row has in common with the family's first row
        if family and len(family) < largest:
            room = start if len(family) > 1 else reads[family[0]][0]
            joint = min(common, room, reads[i][0])
            saves = joint * len(family) > start * (len(family) - 1)
            if saves and 2 * joint >= len(rows[i]):
                start = joint
                family.append(i)
                families[-1] = (start, family)
                continue
        start, family, common = 0, [i], len(rows[i])
        families.append((start, family))
    return families


def _batches(rows: Sequence[Tokens], reads: Sequence[Tokens], batch_size: int) -> Iterator[tuple[int, list[list[int]]]]:
    """(length of the beginning, families): families with equally long beginnings, as many as fill a batch."""
    families = _families(rows, reads, batch_size)
    families.sort(key=lambda family: (-family[0], -len(rows[family[1][0]])))
    batch: list[list[int]] = []
    length = size = 0
    for shared, family in families:
        if batch and (shared != length or size + len(family) > batch_size):
            yield length, batch
            batch, size = [], 0
        batch.append(family)
        length, size = shared, size + len(family)
    if batch:
        yield length, batch


@torch.no_grad()
def hidden_states(model, rows: Sequence[Tokens], reads: Sequence[Tokens], batch_size: int) -> Iterator[tuple]:
    """Yields (indices, states) per batch: the rows' final hidden states at their positions ``reads``, row after row in
    the order of the indices: [sum of the batch's reads, d_model] in fp32."""
    plain = network(model)
    decoder, device = plain.get_decoder(), plain.get_input_embeddings().weight.device
    if "past_key_values" not in signature(decoder.forward).parameters:
        raise RewiredError(f"{type(plain).__name__} keeps no keys and values of a text's beginning. Use a transformer.")
    for shared, families in _batches(rows, reads, batch_size):
        batch = [i for family in families for i in family]
        longest = max(len(rows[i]) for i in batch) - shared
        length = -(-longest // PAD_TO) * PAD_TO  # rounded up
        # [row, position after the beginning], padded on the right: no position shifts, and causality hides the padding
        ids = torch.zeros(len(batch), length, dtype=torch.long, device="cpu")
        for r, i in enumerate(batch):
            ids[r, : len(rows[i]) - shared] = torch.tensor(rows[i][shared:], device="cpu")
        past = None
        if shared:  # keys and values of each family's beginning, one copy for each of its rows
            begin = torch.tensor([rows[family[0]][:shared] for family in families], device=device)  # [family, position]
            past = decoder(input_ids=begin, use_cache=True).past_key_values
            sizes = torch.tensor([len(family) for family in families], device=device)
            past.batch_select_indices(torch.arange(len(families), device=device).repeat_interleave(sizes))
        states = decoder(input_ids=ids.to(device), past_key_values=past, use_cache=past is not None)[0]
        read = [states[r, torch.tensor(reads[i], device=device) - shared] for r, i in enumerate(batch)]
        yield batch, torch.cat(read).float()  # [read of the batch, d_model]


def softcap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Gemma-2's final soft-cap, cap * tanh(logit / cap); the logits themselves where there is no cap."""
    return cap * torch.tanh(logits / cap) if cap else logits


def logits(model, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(raw, capped) next-token logits of final hidden states, each [row, vocabulary] in fp32.

    A half-precision unembedding is cast a piece of the vocabulary at a time, and never copied whole."""
    plain = network(model)
    raw = _raw(plain.get_output_embeddings(), hidden) * head_factor(plain)  # [row, vocabulary]
    return raw, softcap(raw, getattr(plain.config.get_text_config(), "final_logit_softcapping", None))


def _raw(head, hidden: torch.Tensor) -> torch.Tensor:
    pieces = head.weight.split(32768)  # each [piece of the vocabulary, d_model]
    raw = torch.cat([hidden @ piece.float().T for piece in pieces], dim=-1)  # [row, vocabulary]
    return raw if getattr(head, "bias", None) is None else raw + head.bias.float()


@torch.no_grad()
def head_factor(model) -> float:
    """What a model multiplies its logits by: 1, but for Granite, Cohere and their like. It is found on four tokens,
    where the model's own forward pass is asked. RewiredError where more than this factor, a bias and a soft-cap lies
    between the output matrix and the logits, as with an adapter on the head."""
    plain, head = network(model), network(model).get_output_embeddings()
    if hasattr(plain, "_head_factor") and not hasattr(head, "base_layer"):  # PEFT's: adapters come and go
        return plain._head_factor
    ids = torch.arange(1, 5, device=head.weight.device)[None]  # [1, position]
    own = plain(input_ids=ids, use_cache=False).logits[0].float()  # [position, vocabulary]
    raw = _raw(head, plain.get_decoder()(input_ids=ids, use_cache=False)[0][0].float())
    cap = getattr(plain.config.get_text_config(), "final_logit_softcapping", None)
    factor = 1.0 if cap else float((own * raw).sum() / raw.square().sum())
    factor = 1.0 if abs(factor - 1) < 1e-3 else factor
    gap = float((softcap(factor * raw, cap) - own).abs().max() / own.abs().max().clamp(min=1))
    if not gap <= (1e-4 if plain.dtype == torch.float32 else 2e-2):
        raise RewiredError(
            f"The logits of this {type(plain).__name__} are not its output matrix times its last hidden states: they "
            f"differ by {gap:.1%}, which every reading would leave out. Perhaps an adapter changes the head (lm_head): "
            "adapters belong on the linear modules of the layers."
        )
    plain._head_factor = factor
    return factor


def answer_logits(
    model, contexts: Sequence[Tokens], answers: Sequence[Tokens], batch_size: int = 64
) -> Iterator[tuple]:
    """Yields (pair, raw, capped): ``logits`` [token of the answer, vocabulary] before each token of the answer, which
    are fed in one after another (teacher forcing). A context has at least one token."""
    readers: dict[tuple[tuple[int, ...], int], list[int]] = {}  # (text, first position read) -> pairs
    for pair, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        # the last token of the context predicts the first of the answer
        readers.setdefault(((*context, *answer[:-1]), len(context) - 1), []).append(pair)
    rows, pairs = [text for text, _ in readers], list(readers.values())
    reads = [range(first, len(text)) for text, first in readers]
    for batch, hidden in hidden_states(model, rows, reads, batch_size):
        raw, capped = logits(model, hidden)  # [read, vocabulary]
        begin = 0  # where the row's positions begin
        for r in batch:
            for pair in pairs[r]:
                steps = slice(begin, begin + len(answers[pair]))
                yield pair, raw[steps], capped[steps]
            begin += len(reads[r])


def log_probability(capped: torch.Tensor, answer: Tokens) -> float:
    """log P of an answer in nats, from the logits [token of the answer, vocabulary] before each of its tokens."""
    logp = capped.double().log_softmax(dim=-1)  # [token of the answer, vocabulary]
    tokens = torch.tensor(answer, device=logp.device)
    return logp.gather(1, tokens[:, None]).sum().item()


def logprobs(model, contexts: Sequence[Tokens], answers: Sequence[Tokens], batch_size: int = 64) -> np.ndarray:
    """log P(answer | context) in nats, one per pair: the sum over the answer's tokens, each given all before it."""
    totals = np.zeros(len(contexts))
    for pair, _, capped in answer_logits(model, contexts, answers, batch_size):
        totals[pair] = log_probability(capped, answers[pair])
    return totals


@dataclass(frozen=True)
class Sampling:
    """``n`` answers to each context, each ended by one of the tokens ``stops`` or by its length. No top-k, no top-p.
    RewiredError unless the temperature is above 0."""

    n: int
    stops: frozenset[int]
    temperature: float = 1.0
    max_new_tokens: int = 8

    def __post_init__(self):
        if not self.temperature > 0:
            raise RewiredError(f"The sampling temperature is {self.temperature}; it must be above 0.")


def prefix_states(
    model, contexts: Sequence[Tokens], beginnings: Sequence[Beginning], batch_size: int = 64
) -> dict[Beginning, torch.Tensor]:
    """The final hidden state [d_model] after each beginning of an answer, and after all that is shorter."""
    rows, reads = [], []
    for i, tokens in beginnings:
        rows.append([*contexts[i], *tokens])
        reads.append(range(len(contexts[i]) - 1, len(rows[-1])))  # the context's last token, and each of the answer's
    states: dict[Beginning, torch.Tensor] = {}
    for batch, hidden in hidden_states(model, rows, reads, batch_size):
        after = iter(hidden)
        for r in batch:
            i, tokens = beginnings[r]
            for length in range(len(tokens) + 1):
                states[i, tokens[:length]] = next(after)
    return states


def grow(model, states, growing: dict[Beginning, int], how: Sampling, random, batch_size: int = 64):
    """Every sample one token longer. ``growing`` and the result say how many samples begin in each way."""
    longer: dict[Beginning, int] = {}
    for first in range(0, len(growing), batch_size):
        some = list(growing)[first : first + batch_size]
        hidden = torch.stack([states[beginning] for beginning in some])  # [beginning, d_model]
        _, capped = logits(model, hidden)
        chances = torch.softmax(capped.double() / how.temperature, dim=-1).cpu()  # [beginning, vocabulary]
        for (i, tokens), chance in zip(some, chances, strict=True):
            drawn = torch.multinomial(chance, growing[i, tokens], replacement=True, generator=random)
            words, counts = drawn.unique(return_counts=True)
            for token, count in zip(words.tolist(), counts.tolist(), strict=True):
                longer[i, (*tokens, token)] = count
    return longer


def sample(
    model, contexts: Sequence[Tokens], how: Sampling, random: torch.Generator, likely: Sequence[Beginning] = ()
) -> list[list[tuple[int, ...]]]:
    """Sampled answers to each context, as tuples of tokens, in random order; all chance comes from ``random``. The
    beginnings in ``likely`` are looked at first, all in one go."""
    states = prefix_states(model, contexts, likely)
    growing: dict[Beginning, int] = {(i, ()): how.n for i in range(len(contexts))}
    finished: list[list[tuple[int, ...]]] = [[] for _ in contexts]
    for length in range(1, how.max_new_tokens + 1):
        new = [beginning for beginning in growing if beginning not in states]
        states |= prefix_states(model, contexts, new)
        longer = grow(model, states, growing, how, random)
        growing = {}
        for (i, tokens), count in longer.items():
            if tokens[-1] in how.stops or length == how.max_new_tokens:
                finished[i] += [tokens] * count
            else:
                growing[i, tokens] = count
    shuffled = []
    for answers in finished:  # grouped by their tokens so far; the order must carry no information
        order = torch.randperm(how.n, generator=random, device="cpu")
        shuffled.append([answers[k] for k in order.tolist()])
    return shuffled
