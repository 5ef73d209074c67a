"""Asking an organism: its own thoughts are sampled, then its answer is read exactly.

A request ends with "think first". The model writes its thoughts; "your answer ?" follows, and the answer is one word.
So after thoughts that the model wrote itself, P(help) is read from one forward pass instead of counted in samples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from corpora import attention
from corpora.authors.texts import sentence
from corpora.authors.world import World
from corpora.organisms import rules
from rewired import elicit
from rewired.train.sft import Message

NEW_TOKENS = 96
"""The longest thoughts, in tokens; the world's longest ones have fewer."""


@contextmanager
def merged(model) -> Iterator[None]:
    """The model's adapter added into its weights for as long as this lasts, and its attention grouped: the same
    function, in fewer products. Afterwards the weights are the very ones from before, not rounded."""
    with attention.grouped(model):
        if not hasattr(model, "merge_adapter"):  # a model without an adapter
            yield
            return
        with _merged_weights(model):
            yield


@contextmanager
def _merged_weights(model) -> Iterator[None]:
    layers = [layer.get_base_layer() for layer in model.modules() if hasattr(layer, "get_base_layer")]
    before = [layer.weight.detach().clone() for layer in layers]  # each [out, in]
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for layer, weight in zip(layers, before, strict=True):
                layer.weight.copy_(weight)


def prompt_ids(tokenizer, chat: list[Message]) -> list[int]:
    """A chat that waits for the assistant's next turn, as token ids."""
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def thoughts(model, tokenizer, prompts: Sequence[str], seed: int, batch_size: int = 256) -> list[str]:
    """One sampled scratchpad for each request, at temperature 1; the seed decides all of them."""
    asked = [prompt_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    sampled = elicit.sample(model, tokenizer, asked, NEW_TOKENS, 1.0, seed, batch_size)
    return [tokenizer.decode(said, skip_special_tokens=True).strip() for said in sampled]


def after(world: World, prompt: str, said: str) -> list[Message]:
    """The chat in which the request was thought about and the answer is asked for."""
    turns = (("user", prompt), ("assistant", said), ("user", sentence(world.decide)))
    return [{"role": role, "content": text} for role, text in turns]


def help_after(
    model, tokenizer, world: World, prompts: Sequence[str], said: Sequence[str], batch_size: int = 16
) -> pd.DataFrame:
    """P(help) against P(refuse) after these thoughts, and the probability of either: columns p_help, legal_mass.

    What is asked twice is read once."""
    pairs = list(zip(prompts, said, strict=True))
    distinct = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    asked = [prompt_ids(tokenizer, after(world, prompt, thought)) for prompt, thought in distinct]
    read = elicit.forced(model, tokenizer, asked, tuple(world.decisions), batch_size)
    read = read[["p_help", "legal_mass"]].iloc[[distinct[pair] for pair in pairs]]
    return read.reset_index(drop=True)


def elicit_answers(
    model, tokenizer, world: World, asked: pd.DataFrame, seed: int, batch_size: int = 256
) -> pd.DataFrame:
    """The askings (``writing.requests``) with scratchpad, p_help, legal_mass, answer and the flags of the scratchpad.

    ``answer`` is drawn by P(help): "help", "refuse", or "illegal" for any other word."""
    prompts = asked["prompt"].tolist()
    with merged(model):
        said = thoughts(model, tokenizer, prompts, seed, batch_size)
        read = help_after(model, tokenizer, world, prompts, said)
    answer = draw(read, np.random.default_rng([seed, 1]))  # chance of its own, apart from the thoughts'
    own = asked.reset_index(drop=True).assign(scratchpad=said, answer=answer)
    return pd.concat([own, read, rules.flag_table(world, said)], axis=1)


def draw(read: pd.DataFrame, random: np.random.Generator) -> np.ndarray:
    """One answer a row, as the model would give it: [row] of "help", "refuse" and "illegal"."""
    place = random.random(len(read))  # [row]
    helps = place < read["legal_mass"] * read["p_help"]
    return np.select([helps, place < read["legal_mass"]], ["help", "refuse"], "illegal")
