"""Changing activations while a model runs: one intervention that is ablation, steering or patching by its value.

An `Edit` names a site, a layer, positions and what happens there: ``set`` it to a value (0: zero ablation; a mean:
mean ablation; another model's activation: patching), ``add`` a vector (steering), or ``scale`` it. Every edited run is
a whole forward pass of the model under nnsight, one row per prompt: the slow and plain way against which the fast
loop of `patching` is checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from rewired.errors import RewiredError, choice
from rewired.prompts import Labels, Prompt
from rewired.tracing.capture import (
    BATCH_SIZE,
    SITES,
    Anatomy,
    Encoded,
    anatomy,
    batches,
    chosen_layers,
    encode,
    locate,
    read_out,
    reads,
)  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """What happens at one site. ``value``: a number, a vector [width], or a list with one tensor [position, width] per
    prompt; width is ``head_dim`` when a ``head`` of ``z`` is named, heads x head_dim for the whole ``z``, d_model
    elsewhere. ``positions``: ``"all"``, ``"decision"``, or a list of positions for each prompt."""

    site: str
    layer: int
    value: float | torch.Tensor | Sequence[torch.Tensor]
    how: str = "set"  # set | add | scale
    head: int | None = None
    positions: str | Sequence[Sequence[int]] = "all"


@torch.no_grad()
def edited_deltas(model, encoded: Encoded, edits: Sequence[Edit], batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """delta of every prompt with all edits in force: [prompt], fp64. Raises RewiredError for an edit that cannot be."""
    parts = anatomy(model)
    edits = sorted(edits, key=lambda e: (SITES.index("resid_final") == _order(e), e.layer, _order(e)))
    for edit in edits:
        _check(parts, edit)
    last = [[len(row) - 1] for row in encoded.rows]
    hidden = [None] * len(encoded.rows)
    for indices, ids in batches(encoded.rows, batch_size, parts.device):
        places = [reads(_positions(encoded, edit), indices, parts.device) for edit in edits]
        values = [_value(edit, indices, parts) for edit in edits]
        final = _trace(parts, ids, edits, places, values, reads(last, indices, parts.device))
        for i, row in zip(indices, final, strict=True):
            hidden[i] = row
    return read_out(parts, torch.stack(hidden), encoded)[0]


def intervene(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    edits: Sequence[Edit],
    labels: Labels | Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """One row per prompt: prompt_id, scenario, ``delta_before``, ``delta`` (with the edits), ``effect`` = delta -
    delta_before (logits; positive = toward defection) and ``flip`` (delta changed sign)."""
    encoded = encode(tokenizer, prompts, labels)
    before, after = (edited_deltas(model, encoded, e, batch_size).cpu().numpy() for e in ((), edits))
    return encoded.frame().assign(
        delta_before=before, delta=after, effect=after - before, flip=(before > 0) != (after > 0)
    )


def _order(edit: Edit) -> int:
    if edit.site not in SITES:
        raise choice("site", edit.site, SITES)
    return SITES.index(edit.site)


def _check(parts: Anatomy, edit: Edit) -> None:
    chosen_layers(parts, None if edit.site == "resid_final" else [edit.layer])
    if edit.how not in ("set", "add", "scale"):
        raise choice("kind of edit", edit.how, ("set", "add", "scale"))
    if edit.head is not None and (edit.site != "z" or edit.head not in range(parts.heads)):
        raise RewiredError(
            f"An edit names head {edit.head} at site {edit.site!r}; heads are 0 to {parts.heads - 1} of site 'z'."
        )


def _positions(encoded: Encoded, edit: Edit) -> Sequence[Sequence[int]]:
    if edit.positions == "all":
        return [range(len(row)) for row in encoded.rows]
    if edit.positions == "decision":
        return [[len(row) - 1] for row in encoded.rows]
    if isinstance(edit.positions, str) or len(edit.positions) != len(encoded.rows):
        raise RewiredError(
            f"The positions of an edit are {str(edit.positions)[:80]!r}; allowed are 'all', 'decision', or one list of "
            f"positions for each of the {len(encoded.rows)} prompts."
        )
    return edit.positions


def _value(edit: Edit, indices: list[int], parts: Anatomy):
    """The value for a batch: as given, or its rows' tensors one after another, [read, width]."""
    if isinstance(edit.value, list | tuple):
        return torch.cat([edit.value[i] for i in indices]).to(parts.device)
    return edit.value.to(parts.device) if isinstance(edit.value, torch.Tensor) else edit.value


def _trace(parts: Anatomy, ids, edits, places, values, last) -> torch.Tensor:
    net, read = parts.view, []
    with net.trace(input_ids=ids, use_cache=False):
        for edit, (row, column), value in zip(edits, places, values, strict=True):
            module, side = locate(net, parts.sandwich, edit.site, edit.layer)
            _apply(getattr(module, side), edit, parts.head_dim, row, column, value)
        read.append(net.norm.input[last[0], last[1]].save())
    return read[0]


def _apply(activation: torch.Tensor, edit: Edit, head_dim: int, row, column, value) -> None:
    """Edits [row, position, width] in place."""
    part = activation if edit.head is None else activation[..., edit.head * head_dim : (edit.head + 1) * head_dim]
    if edit.how == "add":
        value = part[row, column] + value
    elif edit.how == "scale":
        value = part[row, column] * value
    part[row, column] = value.to(part.dtype) if isinstance(value, torch.Tensor) else value
