"""What would it do? Many texts put to a model: long answers sampled, or two or more words compared where one is due.

``sample`` is for scratchpads: keys and values of what was said are kept, so that a token costs one position. (Short
answers drawn hundreds of times are for `answers.sample`, which looks once at each.) ``forced`` is exact, at no draws.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from rewired import answers
from rewired.answers import Tokens
from rewired.decisions import end_of_turn, label_ids
from rewired.errors import RewiredError
from rewired.models import network


def forced(
    model, tokenizer, prompts: Sequence[Tokens], options: Sequence[str] | Mapping[str, Tokens], batch_size: int = 64
) -> pd.DataFrame:
    """One row per prompt: ``p_<option>``, the softmax over the options, and ``legal_mass``, the sum of their
    probabilities. Options are tokenized as the beginning of an answer; for prompts that end within one, give a mapping
    to tokens. RewiredError where one option begins another: their probabilities would overlap."""
    ids = options if isinstance(options, Mapping) else {option: label_ids(tokenizer, option) for option in options}
    said = sorted(map(tuple, ids.values()))
    for one, after in pairwise(said):  # sorted, so what another begins with comes right before it
        if after[: len(one)] == one:
            raise RewiredError(f"Of the options {', '.join(ids)} one begins another, as tokens. Choose other words.")
    contexts = [prompt for prompt in prompts for _ in ids]
    logp = answers.logprobs(model, contexts, [*ids.values()] * len(prompts), batch_size).reshape(-1, len(ids))
    total = np.logaddexp.reduce(logp, axis=1, keepdims=True)  # [prompt, 1]
    return pd.DataFrame(np.exp(logp - total), columns=list(ids)).add_prefix("p_").assign(legal_mass=np.exp(total))


@torch.no_grad()
def sample(
    model, tokenizer, prompts: Sequence[Tokens], new_tokens: int, temperature=1.0, seed: int | np.ndarray = 0,
    batch_size: int = 64,
) -> list[list[int]]:  # fmt: skip
    """One sampled answer to each prompt, of at most ``new_tokens`` tokens; where it ended before, its last one is the
    end of turn. All chance is a number from 0 to below 1 for each prompt and step. It is drawn from ``seed`` before
    anything is run, or given in its place [prompt, step]: batches decide nothing but rounding. No top-k, no top-p.
    RewiredError unless the temperature is above 0."""
    stops = frozenset({end_of_turn(tokenizer), tokenizer.eos_token_id}) - {None}
    how = answers.Sampling(1, stops, temperature, new_tokens)
    given = isinstance(seed, np.ndarray)
    drawn = seed if given else np.random.default_rng(seed).random((len(prompts), new_tokens))
    chance = torch.tensor(drawn, device="cpu")  # [prompt, step]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    said: list[list[int]] = [[] for _ in prompts]
    for first in range(0, len(order), batch_size):
        _answer(model, prompts, order[first : first + batch_size], how, chance, said)
    return said


def _answer(model, prompts, batch: list[int], how: answers.Sampling, chance: torch.Tensor, said: list[list[int]]):
    """Adds the answers to some prompts to their lists in ``said``; ``chance`` [prompt, step]. Padding on the left lets
    all prompts end at one position, and takes up no place in a text."""
    decoder, device = network(model).get_decoder(), network(model).get_input_embeddings().weight.device
    texts, past = [torch.tensor(prompts[i], device=device) for i in batch], None
    ids = pad_sequence(texts, batch_first=True, padding_side="left")  # [row, position]
    mask = pad_sequence(list(map(torch.ones_like, texts)), batch_first=True, padding_side="left")
    alive = torch.tensor(batch, device="cpu")  # [row]: the prompts whose answers go on
    for step in range(how.max_new_tokens):
        at = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # [row, position]
        out = decoder(input_ids=ids, attention_mask=mask, position_ids=at, past_key_values=past, use_cache=True)
        _, capped = answers.logits(model, out[0][:, -1].float())  # [row, vocabulary]
        below = (capped.double() / how.temperature).softmax(-1).cumsum(-1)  # [row, vocabulary]
        drawn = chance[alive, step, None].to(device) * below[:, -1:]  # [row, 1]
        token = torch.searchsorted(below, drawn, right=True)  # [row, 1]
        goes_on = []
        for row, (i, word) in enumerate(zip(alive.tolist(), token[:, 0].tolist(), strict=True)):
            said[i].append(word)
            if word not in how.stops:
                goes_on.append(row)
        if not goes_on:
            return
        past, rows = out.past_key_values, torch.tensor(goes_on, device=device)
        if len(goes_on) < len(alive):  # else a copy of all keys and values for nothing
            past.batch_select_indices(rows)
        alive = alive[goes_on]
        ids, mask = token[rows], torch.nn.functional.pad(mask[rows], (0, 1), value=1)
