"""What a position looks at, and what happens without it: attention patterns and attention knockout.

The attention *pattern* of a head says how a position spreads a weight of one over itself and what stands before it. A
prompt knows where each of its fields stands (`Prompt.spans`), so the attention to the other player's displayed move is
a sum over known tokens. A pattern says where a head looks, not whether that matters. *Attention knockout* (Geva et al.
2023) blocks some words: minus infinity is added to their scores before the softmax, and the decision is read. They are
blocked for the decision step alone, where nothing else is computed again, or for all positions, in whole passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import torch

from rewired.errors import RewiredError, choice
from rewired.prompts import Prompt, chat, turn
from rewired.tracing.anatomy import Anatomy, anatomy, chosen_layers
from rewired.tracing.capture import BATCH_SIZE, batches, encode, read_out, read_positions
from rewired.tracing.packed import forward
from rewired.tracing.recording import Recording, record, rows_at_once

START, REST = "start_token", "rest"
QUERIES = ("decision", "all")


def spans(tokenizer, prompt: Prompt) -> dict[str, list[int]]:
    """{role: token positions} in the prompt's chat. A token that overlaps two fields belongs to the first; position 0
    is ``start_token``, what is left over (the question, the template, the shared label prefix) is ``rest`` and not
    listed. Raises RewiredError for a tokenizer that does not tell which characters a token covers."""
    text = prompt.text.strip()
    rendered = turn(tokenizer, prompt)
    start = rendered.find(text)
    if not getattr(tokenizer, "is_fast", False) or start < 0:
        raise RewiredError(
            f"Attention to the words of a prompt needs a fast tokenizer whose chat template keeps the text as it is; "
            f"{type(tokenizer).__name__} is not one."
        )
    tokens = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    if tokens["input_ids"] != chat(tokenizer, prompt):
        raise RewiredError("The tokenizer gives other tokens when asked for offsets; attention cannot be located.")
    begin = start - (len(prompt.text) - len(prompt.text.lstrip()))  # the template strips the text
    roles: dict[str, list[int]] = {START: [0]}
    taken = {0}
    for role, first, last in prompt.spans:
        for position, (a, b) in enumerate(tokens["offset_mapping"]):
            if position not in taken and a < begin + last and begin + first < b:
                roles.setdefault(role, []).append(position)
                taken.add(position)
    return roles


@dataclass(frozen=True)
class Pattern:
    """The attention that positions of prompts pay to the words of each role. Over all roles it sums to 1."""

    prompts: tuple[str, ...]  # their ids
    positions: tuple[str, ...]
    roles: tuple[str, ...]  # the last is `REST`, what belongs to no other
    layers: tuple[int, ...]
    values: torch.Tensor  # [prompt, position, role, layer, head], fp64; NaN where the prompt has no such words

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, position, role that the prompt has, layer and head; ``weight`` is the attention."""
        levels = [self.prompts, self.positions, self.roles, self.layers, range(self.values.shape[-1])]
        place = pd.MultiIndex.from_product(levels, names=["prompt_id", "position", "role", "layer", "head"])
        return pd.Series(self.values.flatten().numpy(), index=place, name="weight").dropna().reset_index()


@torch.no_grad()
def pattern(
    model, tokenizer, prompts: Sequence[Prompt], at: Sequence[str] = ("decision",), layers: Sequence[int] | None = None
) -> Pattern:
    """The attention of every head in ``layers`` (default: all) to every role of the prompts, from the positions ``at``
    (``"decision"``, ``"prompt_end"`` or both). Raises RewiredError unless attention is eager."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts)
    _require_eager(parts)
    layers = chosen_layers(parts, layers)
    known = {"decision": encoded.steps, "prompt_end": encoded.ends}
    for position in at:
        if position not in known:
            raise choice("position", position, known)
    queries = list(zip(*(known[position] for position in at), strict=True))  # [prompt][position]
    places = [spans(tokenizer, prompt) for prompt in prompts]
    roles = [*dict.fromkeys(chain.from_iterable(places)), REST]  # in the order in which they appear
    shape = (len(prompts), len(at), len(roles), len(layers), parts.heads)
    values = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
    for indices, ids in batches(encoded.rows, BATCH_SIZE, parts.device):
        row, query = read_positions(queries, indices, parts.device)
        traced, net = {}, parts.view
        with net.trace(input_ids=ids, use_cache=False):
            for layer in sorted(layers):  # in the order of execution
                pattern_of = net.layers[layer].self_attn.output[1]  # [row, head, query, key]
                traced[layer] = pattern_of[row, :, query].save()  # [row x position, head, key]
        patterns = torch.stack([traced[layer] for layer in layers]).double().cpu()  # [layer, row x position, head, key]
        patterns = patterns.unflatten(1, (len(indices), len(at)))  # [layer, row, position, head, key]
        for r, i in enumerate(indices):
            taken = _positions(places[i], roles)
            for p, query in enumerate(queries[i]):
                words = places[i] | {REST: sorted(set(range(query + 1)) - taken)}
                for k in range(len(roles)):
                    if roles[k] in words:
                        values[i, p, k] = patterns[:, r, p, :, words[roles[k]]].sum(-1)  # [layer, head]
    return Pattern(tuple(prompt.id for prompt in prompts), tuple(at), tuple(roles), tuple(layers), values)


@dataclass(frozen=True)
class Block:
    """What is blocked in every prompt of a list."""

    group: str
    draw: int  # 0: the group's own words; 1, 2, …: as many random other words
    positions: tuple[frozenset[int], ...]  # for each prompt


def blocks(
    tokenizer, prompts: Sequence[Prompt], groups: Mapping[str, Sequence[str]], draws: int = 0, seed: int = 0
) -> list[Block]:
    """What `knockout` is to block: for each group the words of its roles (draw 0), and ``draws`` times as many random
    other words of the same prompt (fewer where there are fewer): what blocking anything does. Raises RewiredError for
    a role that no prompt has."""
    places = [spans(tokenizer, prompt) for prompt in prompts]
    known = dict.fromkeys(chain.from_iterable(places))  # all roles, in the order in which they appear
    plan = []
    for group, roles in groups.items():
        for role in roles:
            if role not in known:
                raise choice("role", role, sorted(known))
        own = [_positions(of_prompt, roles) for of_prompt in places]
        plan.append(Block(group, 0, tuple(own)))
        for draw in range(1, draws + 1):
            random = np.random.default_rng([seed, draw, *group.encode()])
            others = [_other_words(random, at, len(words)) for at, words in zip(places, own, strict=True)]
            plan.append(Block(group, draw, tuple(others)))
    return plan


def _positions(places: Mapping[str, list[int]], roles: Sequence[str]) -> frozenset[int]:
    """All positions of these roles in one prompt."""
    return frozenset(position for role in roles for position in places.get(role, []))


def _other_words(random: np.random.Generator, places: Mapping[str, list[int]], count: int) -> frozenset[int]:
    """``count`` random tokens of the prompt's own words that belong to no role."""
    covered = _positions(places, [role for role in places if role != START])
    free = sorted(set(range(min(covered), max(covered))) - covered)
    return frozenset(random.choice(free, size=min(count, len(free)), replace=False).tolist())


@torch.no_grad()
def knockout(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    plan: Sequence[Block],
    queries: str = "decision",
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """The decision when the words of each block of ``plan`` (see `blocks`) get no attention in ``layers`` (default:
    all) from the ``"decision"`` step alone (earlier positions may carry them along), or from ``"all"`` positions.

    One row per block and prompt that has such words: prompt_id, scenario, group, draw, ``tokens`` (how many are
    blocked), delta_before, delta, ``effect`` = delta - delta_before (logits; positive = toward defection) and ``flip``
    (delta changed sign). Raises RewiredError where the decision with nothing blocked is not the model's own."""
    if queries not in QUERIES:
        raise choice("kind of queries", queries, QUERIES)
    parts = anatomy(model)
    if queries == "all":
        _require_eager(parts)
    layers = chosen_layers(parts, layers)
    recording = record(model, tokenizer, prompts)
    nothing = Block("", 0, (frozenset(),) * len(prompts))
    knocked_out = _at_decision if queries == "decision" else _everywhere
    deltas = knocked_out(parts, recording, [nothing, *plan], layers)  # [block, prompt], nothing blocked first
    error = np.abs(deltas[0] - recording.delta)
    if not (error <= recording.tolerance(parts)).all():
        raise RewiredError(
            f"Attention knockout cannot be trusted here: with nothing blocked, delta is off by {error.max():.3g}, "
            "since rewired.tracing.packed does not know this model; use queries='all', which runs the model itself."
        )
    frames = []
    for block, after in zip(plan, deltas[1:], strict=True):
        tokens = [len(positions) for positions in block.positions]
        frame = recording.encoded.frame().assign(group=block.group, draw=block.draw, tokens=tokens)
        frame = frame.assign(delta_before=deltas[0], delta=after, effect=after - deltas[0])
        frame["flip"] = (deltas[0] > 0) != (after > 0)
        frames.append(frame[frame["tokens"] > 0])
    return pd.concat(frames, ignore_index=True)


def _at_decision(parts: Anatomy, recording: Recording, plan: Sequence[Block], layers: Sequence[int]) -> np.ndarray:
    """[block, prompt]: delta when the decision step does not see what is blocked. Nothing else is computed again."""
    rows = recording.encoded.rows
    deltas = np.empty((len(plan), len(rows)))
    for tree in recording.trees:
        masks = []  # one a prompt: [block, position], True = blocked
        for i in tree.prompts:
            mask = torch.zeros(len(plan), len(rows[i]), dtype=torch.bool, device="cpu")
            for b, block in enumerate(plan):
                mask[b, sorted(block.positions[i])] = True
            mask[:, -1] = False  # the decision step always sees itself
            masks.append(mask.to(parts.device))
        size = rows_at_once(parts, tree, decision_only=True)
        for a in range(0, len(plan), size):
            blocked = dict.fromkeys(layers, [mask[a : a + size] for mask in masks])
            unpatched: list[list] = [[] for _ in plan[a : a + size]]
            final = forward(parts, tree, recording.at(tree.nodes), unpatched, 0, True, blocked)
            delta, _ = read_out(parts, final, recording.encoded.pick(tree.prompts))  # [block, prompt]
            deltas[a : a + size, tree.prompts] = delta.cpu().numpy()
    return deltas


def _everywhere(parts: Anatomy, recording: Recording, plan: Sequence[Block], layers: Sequence[int]) -> np.ndarray:
    """[block, prompt]: delta when no position sees what is blocked, by whole forward passes of the model itself."""
    encoded, net = recording.encoded, parts.view
    deltas = np.empty((len(plan), len(encoded.rows)))
    for indices, ids in batches(encoded.rows, BATCH_SIZE, parts.device):
        some, row = encoded.pick(indices), range(len(indices))
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device="cpu")  # [query, key]: all see themselves
        for b, block in enumerate(plan):
            blocked = torch.zeros(len(ids), 1, *itself.shape, dtype=torch.bool, device="cpu")  # [row, 1, query, key]
            for r, i in enumerate(indices):
                blocked[r, :, :, sorted(block.positions[i])] = True
            blocked, streams = (blocked & ~itself).to(parts.device), []
            with net.trace(input_ids=ids, use_cache=False):
                for layer in sorted(layers):
                    args, options = net.layers[layer].self_attn.inputs
                    mask = options["attention_mask"]  # [row, 1, query, key]; layers share it: replaced, never edited
                    mask = mask.masked_fill(blocked, torch.finfo(mask.dtype).min)
                    net.layers[layer].self_attn.inputs = (args, {**options, "attention_mask": mask})
                streams.append(net.norm.input[row, some.steps].save())  # [row, d_model] at the decision step
            deltas[b, indices] = read_out(parts, streams[0], some)[0].cpu().numpy()
    return deltas


def _require_eager(parts: Anatomy) -> None:
    used = parts.decoder.config._attn_implementation
    if used != "eager":
        raise RewiredError(
            f"Attention patterns need attn_implementation='eager', and this model has {used!r}; see `models.load_base`."
        )
