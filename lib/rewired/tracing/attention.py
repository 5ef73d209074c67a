"""What a position looks at: attention weights summed over the words of a prompt, and what happens without them.

A prompt knows where each of its fields stands (`Prompt.spans`: the own move, the other's move, each payoff …), so the
weight a head gives to "the other player's displayed move" is a sum over known tokens and no search for substrings.
Weights say where a head looks, not whether it matters. A *knock-out* hides the words, by adding minus infinity to the
scores before the softmax, and measures what happens to the decision: `knockout` in whole slow runs, from the decision
step or from all positions, `knockouts` many groups of words at once, from the decision step, where nothing but that
step needs to be computed again.
"""

from collections.abc import Mapping, Sequence

import numpy as np
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
from rewired.tracing.packed import run
from rewired.tracing.recording import record

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
    at: str | Sequence[str] = "decision",
    layers: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """One row per prompt, position, role, layer and head: prompt_id, scenario, position, role, ``tokens`` (how many),
    layer, head and ``weight``: the attention that the position (``"decision"`` or ``"prompt_end"``; ``at`` names one
    or both) pays to them. Each head's weights over all roles, ``rest`` among them, sum to 1. Raises RewiredError unless
    attention is eager."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    _needs_eager(parts)
    known = {"decision": [len(row) - 1 for row in encoded.rows], "prompt_end": encoded.ends}
    at = [at] if isinstance(at, str) else list(at)
    for position in at:
        if position not in known:
            raise choice("position", position, known)
    queries = [[known[position][i] for position in at] for i in range(len(prompts))]
    layers = chosen_layers(parts, layers)
    described = list(encoded.frame().itertuples(index=False))
    rows = []
    for indices, ids in batches(encoded.rows, batch_size, parts.device):
        found = _weights(parts, ids, layers, *reads(queries, indices, parts.device))  # [layer, read, head, key]
        found = found.unflatten(1, (len(indices), len(at))).permute(1, 2, 0, 3, 4).double().cpu()
        for i, of_prompt in zip(indices, found, strict=True):
            roles = spans(tokenizer, prompts[i])
            covered = {p for places in roles.values() for p in places}
            for position, query, weight in zip(at, queries[i], of_prompt, strict=True):  # weight [layer, head, key]
                roles[REST] = [p for p in range(query + 1) if p not in covered]
                sums = {role: weight[:, :, places].sum(-1).tolist() for role, places in roles.items()}
                rows += [
                    (*described[i], position, role, len(roles[role]), layer, head, total[k][head])
                    for role, total in sums.items()
                    for k, layer in enumerate(layers)
                    for head in range(parts.heads)
                ]
    columns = ["prompt_id", "scenario", "position", "role", "tokens", "layer", "head", "weight"]
    return pd.DataFrame(rows, columns=columns)


def _weights(parts: Anatomy, ids, layers: Sequence[int], row, query) -> torch.Tensor:
    """[layer, read, head, key]: attention from the positions ``query`` of the rows ``row`` of a batch."""
    net, found = parts.view, []
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


@torch.no_grad()
def knockouts(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    groups: Mapping[str, Sequence[str]],
    draws: int = 1,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    labels: Labels | Sequence[str] | None = None,
) -> pd.DataFrame:
    """What happens when the decision step, and it alone, cannot see the roles of a group in ``layers`` (default: all).

    One row per prompt, group and draw: columns as `knockout`, and ``group`` and ``draw``: 0 hides the group's words,
    1 … ``draws`` hide as many random other words of the same prompt (fewer where there are fewer): what hiding
    anything does. A prompt without the group's words has no row. Earlier positions still see everything and may have
    carried the words along. Raises RewiredError for an unknown role, and where the unhidden decision is not met."""
    parts, recording = anatomy(model), record(model, tokenizer, prompts, labels)
    encoded, places = recording.encoded, _all_spans(tokenizer, prompts)
    known = sorted({role for found in places for role in found})
    for role in [role for roles in groups.values() for role in roles]:
        if role not in known:
            raise choice("role", role, known)
    plan = [("", 0, [set()] * len(prompts))]  # nothing hidden: the control
    for group, roles in groups.items():
        own = [{p for role in roles for p in found.get(role, [])} for found in places]
        plan.append((group, 0, own))
        for draw in range(1, draws + 1):
            random = np.random.default_rng([seed, draw, *group.encode()])
            plan.append((group, draw, [_others(random, found, len(n)) for found, n in zip(places, own, strict=True)]))
    delta = np.empty((len(plan), len(prompts)))
    for tree in recording.trees:
        blind = []  # per prompt of the tree: [row, position]
        for i in tree.prompts:
            blind.append(torch.zeros(len(plan), len(encoded.rows[i]), dtype=torch.bool))
            for r, (_, _, hidden) in enumerate(plan):
                blind[-1][r, sorted(hidden[i] - {len(encoded.rows[i]) - 1})] = True
        blind = [mask.to(parts.device) for mask in blind]
        hidden = {layer: blind for layer in chosen_layers(parts, layers)}
        final = run(parts, tree, recording.at(tree.nodes), [[]] * len(plan), 0, True, hidden=hidden)
        delta[:, tree.prompts] = read_out(parts, final, encoded.pick(tree.prompts))[0].cpu().numpy()
    _met(delta[0] - recording.delta, parts)
    frames = []
    for (group, draw, hidden), after in zip(plan[1:], delta[1:], strict=True):
        before = recording.delta
        frame = encoded.frame().assign(group=group, draw=draw, tokens=[len(found) for found in hidden])
        frame = frame.assign(delta_before=before, delta=after, effect=after - before, flip=(before > 0) != (after > 0))
        frames.append(frame[frame["tokens"] > 0])
    return pd.concat(frames, ignore_index=True)


def _others(random, places: dict[str, list[int]], count: int) -> set[int]:
    """``count`` random tokens of the prompt's own words that belong to no role."""
    covered = {p for role, found in places.items() for p in found if role != START}
    free = sorted(set(range(min(covered), max(covered))) - covered)
    return set(random.choice(free, size=min(count, len(free)), replace=False).tolist())


def _met(error: np.ndarray, parts: Anatomy) -> None:
    """RewiredError unless the decision with nothing hidden is the model's own."""
    worst = float(np.abs(error).max())
    if not worst <= parts.exact:
        raise RewiredError(
            f"Knock-outs cannot be trusted here: with nothing hidden, delta is off by {worst:.3g} logits, where "
            f"{parts.exact:.0e} is allowed. This model computes something that rewired.tracing.packed does not; use "
            "`attention.knockout`, which runs the model itself."
        )


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
