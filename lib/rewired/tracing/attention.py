"""What a position looks at: attention weights summed over the words of a prompt, and what happens without them.

A prompt knows where each of its fields stands (`Prompt.spans`: the own move, the other's move, each payoff …), so the
weight a head gives to "the other player's displayed move" is a sum over known tokens and no search for substrings.
Weights say where a head looks, not whether it matters; `knockout` hides the words from the model and measures that.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from rewired.errors import RewiredError, choice
from rewired.prompts import Labels, Prompt, chat
from rewired.tracing.capture import (
    BATCH_SIZE,
    Anatomy,
    Encoded,
    anatomy,
    batches,
    chosen_layers,
    encode,
    read_out,
    reads,
)  # fmt: skip
from rewired.tracing.intervention import edited_deltas

START, REST = "start_token", "rest"


def spans(tokenizer, prompt: Prompt) -> dict[str, list[int]]:
    """{role: token positions} in the prompt's chat. A token that overlaps two fields belongs to the first; position 0
    is ``start_token``, what is left over (the question, the template, the shared label prefix) is ``rest`` and not
    listed. Raises RewiredError for a tokenizer that does not tell which characters a token covers."""
    text = prompt.text.strip()
    shift = len(prompt.text) - len(prompt.text.lstrip())
    turn = [{"role": "user", "content": prompt.text}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    begin = rendered.find(text) - shift
    if not getattr(tokenizer, "is_fast", False) or begin + shift < 0:
        raise RewiredError(
            f"Attention to the words of a prompt needs a fast tokenizer whose chat template keeps the text as it is; "
            f"{type(tokenizer).__name__} is not one."
        )
    found = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    if found["input_ids"] != chat(tokenizer, prompt):
        raise RewiredError("The tokenizer gives other tokens when asked for offsets; attention cannot be located.")
    roles: dict[str, list[int]] = {START: [0]}
    taken = {0}
    for role, first, last in prompt.spans:
        for position, (a, b) in enumerate(found["offset_mapping"]):
            if position not in taken and a < begin + last and begin + first < b:
                roles.setdefault(role, []).append(position)
                taken.add(position)
    return roles


@torch.no_grad()
def weights(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    labels: Labels | Sequence[str] | None = None,
    at: str = "decision",
    layers: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """One row per prompt, layer, head and role: prompt_id, scenario, layer, head, role, ``tokens`` (how many) and
    ``weight``: the attention that the position ``at`` (``"decision"`` or ``"prompt_end"``) pays to them. Each head's
    weights over all roles, ``rest`` among them, sum to 1. Raises RewiredError unless attention is eager."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    _needs_eager(parts)
    if at not in ("decision", "prompt_end"):
        raise choice("position", at, ("decision", "prompt_end"))
    query = [[len(r) - 1] if at == "decision" else [e] for r, e in zip(encoded.rows, encoded.ends, strict=True)]
    layers = chosen_layers(parts, layers)
    described = list(encoded.frame().itertuples(index=False))
    rows = []
    for indices, ids in batches(encoded.rows, batch_size, parts.device):
        found = _weights(parts, ids, layers, reads(query, indices, parts.device)[1])
        for i, weight in zip(indices, found.transpose(0, 1).double().cpu(), strict=True):  # [layer, head, key]
            roles = spans(tokenizer, prompts[i])
            covered = {p for places in roles.values() for p in places}
            roles[REST] = [p for p in range(query[i][0] + 1) if p not in covered]
            sums = {role: weight[:, :, places].sum(-1).tolist() for role, places in roles.items()}
            rows += [
                (*described[i], layer, head, role, len(roles[role]), total[k][head])
                for role, total in sums.items()
                for k, layer in enumerate(layers)
                for head in range(parts.heads)
            ]
    return pd.DataFrame(rows, columns=["prompt_id", "scenario", "layer", "head", "role", "tokens", "weight"])


def _weights(parts: Anatomy, ids, layers: Sequence[int], query) -> torch.Tensor:
    """[layer, row, head, key]: attention from one position of each row."""
    net, found = parts.view, []
    row = torch.arange(len(ids), device=parts.device)
    with net.trace(input_ids=ids, use_cache=False):
        for layer in sorted(layers):
            found.append(net.layers[layer].self_attn.output[1][row, :, query].save())
    return torch.stack([found[sorted(layers).index(layer)] for layer in layers])


@torch.no_grad()
def knockout(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    roles: Sequence[str],
    layers: Sequence[int] | None = None,
    queries: str = "decision",
    labels: Labels | Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """The decision when ``roles`` are hidden from attention in ``layers`` (default: all). ``queries``: only from the
    decision step, or from ``"all"`` positions after the words. Columns as `intervention.intervene`, and ``tokens``,
    how many were hidden (0: the prompt has no such words, and nothing changes)."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    _needs_eager(parts)
    if queries not in ("decision", "all"):
        raise choice("kind of queries", queries, ("decision", "all"))
    layers = sorted(chosen_layers(parts, layers))
    hidden = [sorted({p for role in roles for p in places.get(role, [])}) for places in _all_spans(tokenizer, prompts)]
    if not any(hidden):
        known = sorted({role for places in _all_spans(tokenizer, prompts) for role in places})
        raise choice("role", ", ".join(roles), known)
    before = edited_deltas(model, encoded, (), batch_size).cpu().numpy()
    final = [None] * len(prompts)
    for indices, ids in batches(encoded.rows, batch_size, parts.device):
        last = reads([[len(row) - 1] for row in encoded.rows], indices, parts.device)[1]
        blocked = _blocked(encoded, hidden, indices, ids.shape[1], queries).to(parts.device)
        for i, row in zip(indices, _masked(parts, ids, layers, blocked, last), strict=True):
            final[i] = row
    after = read_out(parts, torch.stack(final), encoded)[0].cpu().numpy()
    changed = {"delta_before": before, "delta": after, "effect": after - before, "flip": (before > 0) != (after > 0)}
    return encoded.frame().assign(tokens=[len(places) for places in hidden], **changed)


def _all_spans(tokenizer, prompts) -> list[dict[str, list[int]]]:
    return [spans(tokenizer, prompt) for prompt in prompts]


def _blocked(encoded: Encoded, hidden, indices, length: int, queries: str) -> torch.Tensor:
    """[row, 1, query, key], True where attention is forbidden. A position always sees itself, so none is left blind."""
    blocked = torch.zeros(len(indices), 1, length, length, dtype=torch.bool)
    for r, i in enumerate(indices):
        rows = slice(None) if queries == "all" else slice(len(encoded.rows[i]) - 1, len(encoded.rows[i]))
        for key in hidden[i]:
            blocked[r, 0, rows, key] = True
    return blocked & ~torch.eye(length, dtype=torch.bool)


def _masked(parts: Anatomy, ids, layers, blocked, last) -> torch.Tensor:
    """Final residual stream of each row at ``last`` when ``layers`` cannot see what is ``blocked``: [row, d_model]."""
    net, read = parts.view, []
    row = torch.arange(len(ids), device=parts.device)
    with net.trace(input_ids=ids, use_cache=False):
        for layer in layers:
            args, given = net.layers[layer].self_attn.inputs
            mask = given["attention_mask"]  # the layers share it: replaced, never edited
            mask = mask.masked_fill(blocked, torch.finfo(mask.dtype).min)
            net.layers[layer].self_attn.inputs = (args, {**given, "attention_mask": mask})
        read.append(net.norm.input[row, last].save())
    return read[0]


def _needs_eager(parts: Anatomy) -> None:
    if parts.decoder.config._attn_implementation != "eager":
        raise RewiredError(
            f"Attention weights exist only with attn_implementation='eager', and this model was loaded with "
            f"{parts.decoder.config._attn_implementation!r}. Load it with `models.load_base`, or pass 'eager'."
        )
