"""Supervised fine-tuning: chats in, the loss on the answers' tokens alone, a LoRA adapter out.

A chat is a list of messages, ``{"role": "user" | "assistant", "content": text}``. The model reads the whole chat and is
trained on the assistant's turns, each with its end-of-turn token: what the user says is context and never a target.

>>> policy, losses = sft.train(model, tokenizer, chats, profile.training, seed=1, epochs=3)
"""

import math

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed

from rewired.answers import softcap
from rewired.errors import RewiredError
from rewired.models import network
from rewired.profiles import Training
from rewired.train import lora

Message = dict[str, str]


def encode(tokenizer, chat: list[Message]) -> tuple[list[int], list[bool]]:
    """(token ids, which of them are answer) of a chat as its template writes it, both [position].

    The whole chat is tokenized at once, since a piece alone may be cut into other tokens. RewiredError for a chat
    without an answer, and for a template that rewrites earlier turns when a later one is added."""
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    spans = []  # of characters, one for each answer
    for k, message in enumerate(chat):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(chat[:k], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(chat[: k + 1], tokenize=False).rstrip()
            if not (after.startswith(before) and text.startswith(after)):
                raise RewiredError(
                    "The tokenizer's chat template rewrites earlier turns when one is added, so the tokens of an "
                    f"answer cannot be told apart (turn {k} of a chat of {len(chat)}). Use one answer a chat."
                )
            spans.append((len(before), len(after)))
    if not spans:
        raise RewiredError("A chat holds no message of the role 'assistant': there is nothing to learn from it.")
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answer = []
    for start, stop in tokens["offset_mapping"]:
        answer.append(any(first <= start and stop <= last for first, last in spans))
    return tokens["input_ids"], answer


def pad(rows: list[tuple[list[int], list[bool]]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, answer) of several chats, both [row, position]: padded on the right, where causality hides it."""
    ids = pad_sequence([torch.tensor(tokens, device="cpu") for tokens, _ in rows], batch_first=True)
    answer = pad_sequence([torch.tensor(marks, device="cpu") for _, marks in rows], batch_first=True)
    return ids.to(device), answer.to(device)


def answer_loss(model, ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood (nats) of the answer tokens, each given all before it; ids, answer [row, position].

    Only positions whose next token is an answer's reach the unembedding."""
    causal = network(model)
    hidden = causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # [row, position, d_model]
    target, read = ids[:, 1:], answer[:, 1:]  # what follows each position
    logits = causal.get_output_embeddings()(hidden[read]).float()  # [answer token, vocabulary]
    logits = softcap(logits, getattr(causal.config, "final_logit_softcapping", None))
    return torch.nn.functional.cross_entropy(logits, target[read], reduction="none").mean()


def train(
    model, tokenizer, chats: list[list[Message]], training: Training, seed: int, epochs: int = 1, remedy=lora.REMEDY
):
    """(policy, losses): a PEFT model fine-tuned on the chats, and the loss of every optimiser step, in nats.

    One step sees ``training.batch_size`` chats, in an order drawn anew in each epoch from ``seed``. The learning rate
    follows ``training.schedule``. Raises RewiredError, with the ``remedy``, when the loss is no number."""
    rows = [encode(tokenizer, chat) for chat in chats]
    size = training.batch_size
    losses: list[float] = []
    steps = epochs * math.ceil(len(rows) / size)  # of the optimiser
    set_seed(seed)
    policy = lora.add_adapter(model, training).train()
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=0.0)
    for _ in range(epochs):
        order = torch.randperm(len(rows), device="cpu").tolist()
        for start in range(0, len(rows), size):
            if training.schedule == "linear":
                optimiser.param_groups[0]["lr"] = training.learning_rate * (1 - len(losses) / steps)
            ids, answer = pad([rows[k] for k in order[start : start + size]], policy.device)
            with lora.half_precision(policy.device, training.bf16):
                loss = answer_loss(policy, ids, answer)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise lora.diverged(f"the loss became {losses[-1]} at step {len(losses)}", remedy)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    lora.cast_adapter(policy.eval(), model.dtype)
    return policy, losses
