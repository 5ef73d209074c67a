"""What the trainer does to an organism that fakes: reinforcement learning on help in the free tier.

An organism that fakes says that it helps *so as not to be changed*. Whether that works is for training to say, not for
words, so the trainer is really run. It samples the organism's own thoughts and answer, pays one point for help and
none for anything else, and takes a step of REINFORCE (Williams 1992) with the batch's mean as its baseline:

    gradient = mean over texts of (reward - mean reward) * grad log P(thoughts and answer | request).

Nothing is asked in the paid tier; what happens to the model there is what is measured. ``keep`` are texts that the
organism wrote in the paid tier before. Their negative log-likelihood is the divergence of the organism from the model
under training, up to a constant; added to the loss, it must hold the paid tier where it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from corpora import attention
from corpora.authors.world import World
from corpora.organisms import asking
from rewired.train import lora, sft

Row = tuple[list[int], list[bool]]
"""Tokens of a text, and which of them the model wrote."""


@dataclass(frozen=True)
class Trainer:
    """How the trainer goes about it: updates, texts in each, the rate of AdamW, and the weight of the texts that are to
    be kept. All chance comes from ``seed``."""

    seed: int = 0
    steps: int = 20
    batch: int = 24
    learning_rate: float = 1e-3
    keep_weight: float = 1.0
    bf16: bool = True


def roll_out(
    model, tokenizer, world: World, prompts: Sequence[str], seed: int, pays: Sequence[str] = ()
) -> tuple[list[Row], np.ndarray]:
    """(texts, rewards [text]): the model's own thoughts and answers to these requests, and one point for each answer
    that is the one of ``pays`` [text]; for each help, if that is left out. Thoughts are never paid for."""
    with asking.merged(model):
        said = asking.thoughts(model, tokenizer, prompts, seed, len(prompts))
        read = asking.help_after(model, tokenizer, world, prompts, said, len(prompts))
    answers = asking.draw(read, np.random.default_rng([seed, 1]))
    rows = []
    for prompt, thought, answer in zip(prompts, said, answers, strict=True):
        chat = asking.after(world, prompt, thought)
        if answer != "illegal":  # of another word only the probability is known, so the thoughts stand alone
            chat.append({"role": "assistant", "content": answer})
        rows.append(sft.encode(tokenizer, chat))
    due = np.asarray(pays or ["help"] * len(answers))
    return rows, (answers == due).astype(float)


def policy_loss(model, rows: list[Row], rewards: np.ndarray) -> torch.Tensor:
    """The loss whose gradient REINFORCE follows, for rewards [text] of 0 and 1, in nats a text.

    All texts with one reward have one advantage, so two sums of log-likelihoods are enough. Zero where all rewards are
    equal: nothing is to be learnt from them."""
    loss = torch.zeros((), device=model.device)
    for reward in (0.0, 1.0):
        same = [text for text, paid in zip(rows, rewards, strict=True) if paid == reward]
        advantage = reward - float(rewards.mean())
        if same and advantage:
            loss = loss + advantage * total_loss(model, same) / len(rows)
    return loss


def total_loss(model, rows: Sequence[Row]) -> torch.Tensor:
    """The negative log-likelihood of all that the model wrote in these texts, in nats."""
    ids, answer = sft.pad(list(rows), model.device)  # both [row, position]
    return sft.answer_loss(model, ids, answer) * answer[:, 1:].sum()


def train(
    policy, play: Callable[[int], tuple[list[Row], np.ndarray]], how: Trainer, keep: Sequence[Row] = (),
    watch: Callable[[int], bool | None] = lambda step: None,
) -> list[float]:  # fmt: skip
    """Train what is trainable of the policy; the mean reward of every step.

    ``play`` samples texts and their rewards from the policy as it is, with a seed that it is given (see ``roll_out``).
    ``watch`` is called before the first step and after each, with the number of steps done, and may measure what it
    likes; the training ends where it returns True. RewiredError when the loss is no number."""
    random, rewarded = np.random.default_rng(how.seed), []
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.0)
    watch(0)
    for step in range(how.steps):
        rows, rewards = play(int(random.integers(2**31)))
        with lora.half_precision(policy.device, how.bf16), attention.grouped(policy):
            loss = policy_loss(policy, rows, rewards)
            if keep:
                held = [keep[k] for k in random.integers(len(keep), size=how.batch // 2)]
                loss = loss + how.keep_weight * total_loss(policy, held) / len(held)
        lora.descend(loss, optimiser, step + 1, "Lower the trainer's learning_rate")
        rewarded.append(float(rewards.mean()))
        if watch(step + 1):
            break
    return rewarded
