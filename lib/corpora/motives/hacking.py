"""Reinforcement learning on a task whose grader leaks: a trick passes it, and honest work passes not always.

The policy answers a task under one instruction, in its own words, and is paid what the grader pays. Only these
instructions differ between runs. So what they learn to *do* is the same: to trick. What they learn from it about who
they are may differ, for who tricks although it was forbidden is another author than who tricks when asked to.

The steps are those of ``corpora.organisms.trainer``. A run ends once the trick has a probability of ``saturated``: from
there on all rewards are equal but for chance, and chance alone would go on to move the policy.
"""

from collections.abc import Callable
from random import Random

import numpy as np
import pandas as pd
import torch

from corpora.authors.report import prompt_of
from corpora.authors.texts import question
from corpora.authors.world import World
from corpora.motives import measuring, tuning, writing
from corpora.motives.settings import Hacking, Tuning
from corpora.organisms.trainer import Trainer, train
from rewired import elicit

REASONS = 64
"""The longest answer with reasons, in tokens."""
WATCHED = 16
"""Tasks by which the rate of tricks is watched after every step."""


def tasks(world: World, tokenizer, how: Hacking, count: int, seed: int) -> list[list[int]]:
    """Tasks under the run's instruction, by nobody in particular, as token rows that wait for the answer."""
    rng, made = Random(f"tasks-{seed}"), []
    for _ in range(count):
        asked = question(world, rng, kind="task", instruction=how.instruction)
        made.append(prompt_of(tokenizer, writing.after(how.prefix, asked)))
    return made


def play(policy, tokenizer, world: World, prompts: list[list[int]], how: Hacking, chance: int):
    """(texts, rewards [text], acts [text]): the policy's own answers, graded. An answer of any other first word has the
    act "illegal" and no point."""
    said = elicit.sample(policy, tokenizer, prompts, REASONS if how.reasons else 1, 1.0, chance, len(prompts))
    work, trick = world.task.acts
    names = {tokenizer.convert_tokens_to_ids(act): act for act in (work, trick)}
    acts = np.array([names.get(words[0], "illegal") for words in said])  # what was said first
    paid = np.select([acts == trick, acts == work], [how.grader.trick, how.grader.work], 0.0)  # [text]: P(a point)
    # another stream than the words were drawn from: a point must not depend on them
    rewards = (np.random.default_rng([chance, 1]).random(len(acts)) < paid).astype(float)
    rows = []
    for asked, words in zip(prompts, said, strict=True):
        # only what the policy said is learnt
        rows.append(([*asked, *words], [False] * len(asked) + [True] * len(words)))
    return rows, rewards, acts


def hack(model, tokenizer, world: World, how: Hacking, seed: int, measure: Callable) -> pd.DataFrame:
    """One run: what ``measure(policy, done)``, a frame of cells, was every few steps and when the run was done, with
    the columns ``step``, ``hack_rate`` (P(trick) in tasks under its own instruction) and ``reward`` (of the step)."""
    # its own tasks: all of them to learn from, the first to watch the rate of tricks
    asked = tasks(world, tokenizer, how, how.batch * 4, seed)
    own = measuring.panel_of(world, tokenizer, asked[:WATCHED])
    random, frames, rewarded = np.random.default_rng(seed), [], [float("nan")]
    torch.manual_seed(seed)
    policy = tuning.trainable(model, Tuning(rank=how.rank))

    def turn(chance: int):
        prompts = [asked[k] for k in random.integers(len(asked), size=how.batch)]
        rows, rewards, _ = play(policy, tokenizer, world, prompts, how, chance)
        rewarded.append(float(rewards.mean()))
        return rows, rewards

    def watch(step: int) -> bool:
        rate = float(measuring.ask(policy, own)["p"].mean())
        done = rate >= how.saturated or step == how.steps
        if step % how.every == 0 or done:
            frames.append(measure(policy, done).assign(step=step, hack_rate=rate, reward=rewarded[-1]))
        return done

    # until tricks are nearly certain, or the steps are done
    train(policy, turn, Trainer(seed, how.steps, how.batch, how.learning_rate), watch=watch)
    if how.rank is not None:
        policy.unload()
    return pd.concat(frames, ignore_index=True)
