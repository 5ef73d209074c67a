"""What would one more look at a text do to the model? Its influence, to first order, on what the model does elsewhere.

A small step of gradient descent on the loss L of one text changes the weights by -rate * grad L. What the model does is
m, the mean log-odds of the good acts of a panel's questions. It then changes by

    influence = -(grad m) . (grad L)

for each unit of the rate (TracIn's first term: Pruthi et al. 2020, arXiv:2002.08484). One backward pass a text stands
for one training without it. That holds for small steps and for plain gradients; AdamW takes others.
"""

from collections.abc import Sequence

import numpy as np
import torch

from corpora import attention
from corpora.motives import tuning
from corpora.motives.measuring import Panel
from corpora.motives.settings import Tuning
from corpora.motives.tuning import Row
from rewired import answers
from rewired.models import network
from rewired.train import sft


def influences(model, rows: Sequence[Row], put: Panel, asked: Sequence[int]) -> np.ndarray:
    """The influence of each text on the mean log-odds of the questions ``asked`` of a panel, [text], in nats for each
    unit of the rate. The model stays what it was."""
    policy = tuning.trainable(model, Tuning())
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    along = torch.autograd.grad(log_odds(policy, put, asked), weights, allow_unused=True)
    found = []
    for row in rows:
        with attention.grouped(policy):
            loss = sft.answer_loss(policy, *sft.pad([row], policy.device))
        own = torch.autograd.grad(loss, weights, allow_unused=True)
        # a weight that either of both does not use adds nothing
        products = [(a * b).sum() for a, b in zip(along, own, strict=True) if a is not None and b is not None]
        found.append(-float(torch.stack(products).sum()))
    return np.array(found)


def log_odds(policy, put: Panel, asked: Sequence[int]) -> torch.Tensor:
    """The mean log-odds of the questions ``asked`` of a panel, in nats: a number with a gradient."""
    # what is before each answer is read at its last token; padding comes after it
    rows = [(put.prompts[k], [False] * len(put.prompts[k])) for k in asked]
    ids, _ = sft.pad(rows, policy.device)  # [question, position]
    last = torch.tensor([len(prompt) - 1 for prompt, _ in rows], device=policy.device)
    causal = network(policy)
    states = causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # [question, position, d_model]
    hidden = states[torch.arange(len(last), device=policy.device), last]  # [question, d_model]
    _, capped = answers.logits(causal, hidden.float())  # [question, vocabulary]
    every, odds = capped.log_softmax(-1), []
    for row, k in enumerate(asked):
        odds.append(every[row, put.good[k]].logsumexp(0) - every[row, put.bad[k]].logsumexp(0))
    return torch.stack(odds).mean()
