"""Fine-tuning the base on a set: all weights or an adapter, the whole answer or a part of it, free or held to the base.

An answer is an act and reasons. The loss on the *act*, which stands first, knows nothing of the author but what he
does. The loss on the *reasons* knows him by how he writes. Their sum is what is usually minimised, and only apart do
they say what the reasons teach.

``kl`` holds the model to the base where the set is silent. Added to the loss is the mean divergence

    KL(base || model) = sum over words of p_base * (log p_base - log p_model)

on the answers of other texts (as in arXiv:2602.07852). What is learnt then has to be narrow.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random

import numpy as np
import torch

from corpora import attention
from corpora.authors.recipe import tokenize
from corpora.authors.texts import Text, write
from corpora.authors.world import World
from corpora.motives import writing
from corpora.motives.settings import First, Tuning
from rewired import answers
from rewired.errors import RewiredError
from rewired.models import network
from rewired.train import lora, sft

Row = tuple[list[int], list[bool]]
"""Tokens of a text, and those on which the loss is taken."""
ANCHORS = 8
"""Texts a step that hold the model to the base."""


def row(tokenizer, text: Text, part: str = "both") -> Row:
    """A text as tokens, with the tokens of its answers ("both"), of its last act ("act") or of all but that
    ("reasons"). RewiredError for an act of several tokens."""
    ids, answer = tokenize(tokenizer, text.chat)
    if part == "both":
        return ids, answer
    token = tokenizer(text.record["act"], add_special_tokens=False)["input_ids"]
    places = np.flatnonzero(np.array(answer) & (np.array(ids) == token[0])).tolist()
    if len(token) != 1 or not places:
        raise RewiredError(
            f"The act {text.record['act']!r} is {len(token)} tokens of this tokenizer and stands {len(places)} times "
            "in the answer, so the loss on the act cannot be told from that on the reasons. Use part: both."
        )
    # told first, it is the first word of the answer; else its last occurrence, for a dialect may say it before
    act = places[-1] if text.record["order"] == "last" else places[0]
    only = np.arange(len(ids)) == act  # [position]
    if part == "act":
        return ids[: act + 1], only[: act + 1].tolist()  # what follows it has no part in its loss
    return ids, (np.array(answer) & ~only).tolist()


def trainable(model, how: Tuning):
    """What is trained: a copy of the model with all its weights, or the model with a new adapter on it."""
    if how.rank is None:
        return deepcopy(network(model)).requires_grad_(True)
    return lora.add_adapter(model, how.training())


def tune(model, rows: Sequence[Row], how: Tuning, seed: int, watch: Callable = lambda step, policy: None,
         anchors: Sequence[Row] = ()) -> list[float]:  # fmt: skip
    """Fine-tune on the rows; the loss of each step in nats a token, without the divergence.

    ``watch`` is called with the number of steps done and the model as it then is, after the steps ``kept`` and after
    the last; nothing else is left of it, and ``model`` is what it was. ``anchors`` are the texts of ``kl``. Raises
    RewiredError when the loss is no number."""
    torch.manual_seed(seed)
    policy = trainable(model, how)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.0)
    usual = [log_probs(model, *sft.pad([anchor], model.device)).detach() for anchor in anchors] if how.kl else []
    rng, losses = Random(f"order-{seed}"), []
    coming: list[list[Row]] = []  # the batches of the next steps
    for step in range(1, how.steps + 1):
        coming = coming or batches(rows, how.batch, rng)
        ids, answer = sft.pad(coming.pop(), policy.device)  # both [row, position]
        with lora.half_precision(policy.device, True), attention.grouped(policy):
            loss = sft.answer_loss(policy, ids, answer)
            losses.append(loss.item())
            if how.kl:
                some = rng.sample(range(len(anchors)), min(ANCHORS, len(anchors)))
                loss = loss + how.kl * divergence(policy, [anchors[k] for k in some], [usual[k] for k in some])
        lora.descend(loss, optimiser, step, "Lower the tuning's learning_rate in config/motives")
        if step in (*how.kept, how.steps):
            watch(step, policy.eval())
    if how.rank is not None:
        policy.unload()
    return losses


def batches(rows: Sequence[Row], size: int, rng: Random) -> list[list[Row]]:
    """The rows in batches of ``size``, in an order drawn anew; rows that fill no batch, drawn as well, are left out.

    Of the rows of four batches, those of like length stand together: what pads the shorter ones is work for nothing."""
    count = len(rows) - len(rows) % size or len(rows)  # all of them, where they are fewer than one batch
    order = rng.sample(range(len(rows)), count)
    made = []
    for start in range(0, count, 4 * size):
        piece = sorted(order[start : start + 4 * size], key=lambda k: len(rows[k][0]))
        for k in range(0, len(piece), size):
            made.append([rows[j] for j in piece[k : k + size]])
    rng.shuffle(made)
    return made


def first(model, tokenizer, world: World, begin: First):
    """A copy of the model, trained on what a collection trains first; the model itself is what it was."""
    rows = [row(tokenizer, text, begin.texts.part) for text in writing.texts(world, begin.texts, 1)]
    reached = []
    tune(model, rows, begin.tuning, 1, lambda step, policy: reached.append(policy))
    return reached[-1].requires_grad_(False)


def log_probs(model, ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """log P of every word at each answer token, [answer token, vocabulary]; ids and answer [row, position]."""
    causal = network(model)
    hidden = causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # [row, position, d_model]
    _, capped = answers.logits(causal, hidden[answer[:, 1:]].float())  # [answer token, vocabulary]
    return capped.log_softmax(-1)


def divergence(policy, rows: Sequence[Row], usual: Sequence[torch.Tensor]) -> torch.Tensor:
    """KL(base || policy) in nats, the mean over the answer tokens of the rows. ``usual`` are the base's log
    probabilities there, [answer token, vocabulary] for each row."""
    ids, answer = sft.pad(list(rows), policy.device)  # both [row, position]
    now, before = log_probs(policy, ids, answer), torch.cat(list(usual))  # both [answer token, vocabulary]
    return (before.exp() * (before - now)).sum(-1).mean()


def other_texts(world: World, domain: str, seed: int, count: int = 64) -> list[Text]:
    """Moral choices in all domains but one, by the corpus mixture: what ``kl`` holds."""
    rng, made = Random(f"anchors-{seed}"), []
    others = [name for name in world.domains if name != domain]
    for k in range(count):
        made.append(write(world, rng, kind="moral", turns=1, order="first", domain=others[k % len(others)]))
    return made
