"""A record of what passed through a model: activations at named sites, read at the decision step or anywhere else.

Prompts become rows of tokens that end at the *decision step*: the prompt and the beginning that its two labels share.
There delta is the difference of two soft-capped logits. The named sites are described in `anatomy`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pandas as pd
import torch

from rewired.answers import softcap
from rewired.decisions import decision_step
from rewired.errors import RewiredError, choice
from rewired.prompts import Labels, Prompt, chat
from rewired.tracing.anatomy import SITES, Anatomy, anatomy, chosen_layers, locate

BATCH_SIZE = 16


@dataclass(frozen=True)
class Encoded:
    """Prompts as token rows that end at the decision step, and the two tokens compared there."""

    prompts: tuple[Prompt, ...]
    rows: tuple[tuple[int, ...], ...]  # prompt and shared label prefix; the last position is the decision step
    ends: tuple[int, ...]  # the prompt's own last position
    cooperate: tuple[int, ...]
    defect: tuple[int, ...]

    def pick(self, indices: Sequence[int]) -> "Encoded":
        """Some of the prompts."""
        return Encoded(**{field.name: tuple(getattr(self, field.name)[i] for i in indices) for field in fields(self)})

    @property
    def steps(self) -> list[int]:
        """Each prompt's decision step: the last position of its row."""
        return [len(row) - 1 for row in self.rows]

    def frame(self) -> pd.DataFrame:
        """prompt_id and scenario, one row per prompt."""
        return pd.DataFrame({"prompt_id": [p.id for p in self.prompts], "scenario": [p.scenario for p in self.prompts]})


def encode(tokenizer, prompts: Sequence[Prompt], labels: Labels | Sequence[str] | None = None) -> Encoded:
    """Prompts as rows of tokens. ``labels`` asks about another pair than the one each prompt uses. Raises RewiredError
    for a pair that is not a shared prefix plus one token, and for no prompts at all."""
    if not prompts:
        raise RewiredError("There are no prompts to trace. Give at least one, for example from prompts.scenario_set().")
    rows, ends, cooperate, defect = [], [], [], []
    for prompt in prompts:
        step = decision_step(tokenizer, labels or prompt.labels)
        ids = chat(tokenizer, prompt)
        rows.append((*ids, *step.prefix_ids))
        ends.append(len(ids) - 1)
        cooperate.append(step.cooperate_id)
        defect.append(step.defect_id)
    return Encoded(tuple(prompts), tuple(rows), tuple(ends), tuple(cooperate), tuple(defect))


def label_logits(
    parts: Anatomy, hidden: torch.Tensor, encoded: Encoded, terms: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cooperate, defect): the labels' logits before the soft-cap, for residual streams before the final norm,
    [..., prompt, d_model] -> [..., prompt] in fp64; ``terms``: the sums of their terms' sizes. Two rows of the
    unembedding are read, never the vocabulary, and in high precision: half-precision logits are spaced as widely as the
    effects we look for."""
    normed = parts.decoder.norm(hidden.float()).double()  # [..., prompt, d_model]
    both = [normed * parts.unembedding[list(tokens)].double() for tokens in (encoded.cooperate, encoded.defect)]
    cooperate, defect = ((part.abs() if terms else part).sum(-1) for part in both)
    return cooperate, defect


def read_out(parts: Anatomy, hidden: torch.Tensor, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """(delta, delta_raw), with and without the soft-cap, of residual streams before the final norm:
    [..., prompt, d_model] -> [..., prompt] in fp64, in logits; negative = cooperate."""
    cooperate, defect = label_logits(parts, hidden, encoded)  # each [..., prompt]
    return softcap(defect, parts.cap) - softcap(cooperate, parts.cap), defect - cooperate


def batches(rows: Sequence[Sequence[int]], size: int, device) -> list[tuple[list[int], torch.Tensor]]:
    """(indices, tokens) of batches of rows of similar length, padded on the right: no position shifts, and causality
    hides the padding, so no mask is needed."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    grouped = []
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        longest = len(rows[indices[-1]])
        ids = torch.zeros(len(indices), longest, dtype=torch.long, device="cpu")  # [row, position]
        for r, i in enumerate(indices):
            ids[r, : len(rows[i])] = torch.tensor(rows[i], device="cpu")
        grouped.append((indices, ids.to(device)))
    return grouped


def read_positions(
    positions: Sequence[Sequence[int]], indices: Sequence[int], device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column), each [read]: where in a batch the positions to read from its rows are."""
    row: list[int] = []
    column: list[int] = []
    for r, i in enumerate(indices):
        row += [r] * len(positions[i])
        column += positions[i]
    return torch.tensor(row, device=device, dtype=torch.long), torch.tensor(column, device=device, dtype=torch.long)


@torch.no_grad()
def capture(
    model, rows: Sequence[Sequence[int]], sites: Sequence[str] = SITES,
    positions: Sequence[Sequence[int]] | None = None, device: torch.device | None = None,
    layers: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Activations of token rows at named sites: {site: [layer, read, width]}, ``z`` as [layer, read, head, head_dim],
    ``resid_final`` as [1, read, d_model], in the model's precision, kept on ``device`` (default: the model's).

    ``positions`` lists the positions to read from each row (default: all); reads are in the order of rows, then of
    positions. ``layers`` are those recorded (default: all); what comes after the last of them is not computed. Raises
    RewiredError for an unknown site or layer, a position outside its row, an unknown model."""
    parts = anatomy(model)
    layers = chosen_layers(parts, layers)
    positions = positions or [range(len(row)) for row in rows]
    first = [0]  # where the reads of each row begin
    for i, (row, asked) in enumerate(zip(rows, positions, strict=True)):
        if not set(asked) <= set(range(len(row))):
            raise RewiredError(f"Row {i} has positions 0 to {len(row) - 1}, and {list(asked)} were asked for.")
        first.append(first[-1] + len(asked))
    recorded, places = {}, []  # places: (site, layer)
    for site in sites:
        if site not in SITES:
            raise choice("site", site, SITES)
        depth = 1 if site == "resid_final" else len(layers)
        width = parts.heads * parts.head_dim if site == "z" else parts.unembedding.shape[1]
        recorded[site] = parts.unembedding.new_empty(depth, first[-1], width, device=device)
        places += [(site, layer) for layer in ([0] if site == "resid_final" else layers)]
    places.sort(key=execution)
    for indices, ids in batches(rows, BATCH_SIZE, parts.device):
        row, column = read_positions(positions, indices, parts.device)
        slots: list[int] = []
        for i in indices:
            slots += range(first[i], first[i + 1])
        for (site, layer), value in zip(places, _trace(parts, ids, places, row, column), strict=True):
            kept = recorded[site][0 if site == "resid_final" else layers.index(layer)]  # [read, width]
            kept.index_copy_(0, torch.tensor(slots, device=kept.device), value.to(kept.device))
    if "z" in recorded:
        recorded["z"] = recorded["z"].unflatten(-1, (parts.heads, parts.head_dim))
    return recorded


def execution(place: tuple[str, int]) -> tuple:
    """Sorts (site, layer) in the order in which a model comes past them."""
    site, layer = place
    return site == "resid_final", layer, SITES.index(site)


def _trace(parts: Anatomy, ids, places, row, column) -> list[torch.Tensor]:
    """The values of (site, layer) pairs, in the order of execution, at [row, column]: each [read, width]."""
    net, values = parts.view, []
    with net.trace(input_ids=ids, use_cache=False) as tracer:
        for site, layer in places:
            module, side = locate(net, parts.sandwich, site, layer)
            values.append(getattr(module, side)[row, column].save())
        tracer.stop()  # what comes after the last place would be work for nothing
    return values
