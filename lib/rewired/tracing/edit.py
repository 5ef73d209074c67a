"""Changing activations while a model runs: one edit that is ablation, steering or patching by its value.

An `Edit` names a site, a layer, positions and what happens there: ``set`` it to a value (0: zero ablation; a mean:
mean ablation; another model's activation: patching), ``add`` a vector (steering), or ``scale`` it. Every edit is made
in a whole forward pass of the model under nnsight, one row per prompt: the slow and plain way against which the fast
loop of `packed` is checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from rewired.errors import RewiredError, choice
from rewired.prompts import Labels, Prompt
from rewired.tracing.anatomy import SITES, Anatomy, anatomy, chosen_layers, locate
from rewired.tracing.capture import BATCH_SIZE, Encoded, batches, encode, execution, read_out, read_positions

HOW = ("set", "add", "scale")
POSITIONS = ("all", "decision")


@dataclass(frozen=True)
class Edit:
    """What happens at one site. ``value``: a number, a vector [width], or a list with one tensor [position, width] per
    prompt (None: no edit); width is ``head_dim`` when a ``head`` of ``z`` is named, heads x head_dim for the whole
    ``z``, d_model elsewhere. ``positions``: ``"all"``, or the ``"decision"`` step alone."""

    site: str
    layer: int
    value: float | torch.Tensor | Sequence[torch.Tensor]
    how: str = "set"
    head: int | None = None
    positions: str = "all"


@torch.no_grad()
def edited_deltas(model, encoded: Encoded, edits: Sequence[Edit]) -> torch.Tensor:
    """delta of every prompt with all edits in force: [prompt], fp64. Raises RewiredError for an edit that cannot be."""
    parts = anatomy(model)
    for edit in edits:
        _check(parts, edit)
    edits = sorted(edits, key=lambda edit: execution((edit.site, edit.layer)))
    steps = [[step] for step in encoded.steps]
    everywhere = [range(len(row)) for row in encoded.rows]
    final = parts.unembedding.new_empty(len(encoded.rows), parts.unembedding.shape[1])  # [prompt, d_model]
    for indices, ids in batches(encoded.rows, BATCH_SIZE, parts.device):
        here, places, values = [], [], []  # the edits of this batch, where each falls, and what it writes there
        for edit in edits:
            positions: list = everywhere if edit.positions == "all" else steps
            value = edit.value  # a number, [width], or one [position, width] per prompt
            if isinstance(value, list | tuple):
                if all(value[i] is None for i in indices):
                    continue
                positions = [[] if part is None else where for part, where in zip(value, positions, strict=True)]
                value = torch.cat([value[i] for i in indices if value[i] is not None])  # [read, width]
            here.append(edit)
            places.append(read_positions(positions, indices, parts.device))
            values.append(torch.as_tensor(value, device=parts.device))
        last = read_positions(steps, indices, parts.device)
        final[indices] = _trace(parts, ids, here, places, values, last)
    return read_out(parts, final, encoded)[0]


def intervene(
    model, tokenizer, prompts: Sequence[Prompt], edits: Sequence[Edit], labels: Labels | Sequence[str] | None = None
) -> pd.DataFrame:
    """One row per prompt: prompt_id, scenario, ``delta_before``, ``delta`` (with the edits), ``effect`` = delta -
    delta_before (logits; positive = toward defection) and ``flip`` (delta changed sign)."""
    encoded = encode(tokenizer, prompts, labels)
    before = edited_deltas(model, encoded, ()).cpu().numpy()  # [prompt]
    after = edited_deltas(model, encoded, edits).cpu().numpy()
    flip = (before > 0) != (after > 0)
    return encoded.frame().assign(delta_before=before, delta=after, effect=after - before, flip=flip)


def _check(parts: Anatomy, edit: Edit) -> None:
    words = (("site", edit.site, SITES), ("kind of edit", edit.how, HOW), ("positions", edit.positions, POSITIONS))
    for what, word, known in words:
        if word not in known:
            raise choice(what, word, known)
    if edit.site != "resid_final":
        chosen_layers(parts, [edit.layer])
    if edit.head is not None and (edit.site != "z" or edit.head not in range(parts.heads)):
        raise RewiredError(
            f"An edit names head {edit.head} at site {edit.site!r}; heads are 0 to {parts.heads - 1} of site 'z'."
        )


def _trace(parts: Anatomy, ids, edits, places, values, last) -> torch.Tensor:
    """The final residual stream at ``last``, with the edits in force: [row, d_model]."""
    net, read = parts.view, []
    with net.trace(input_ids=ids, use_cache=False):
        for edit, (row, column), value in zip(edits, places, values, strict=True):
            module, side = locate(net, parts.sandwich, edit.site, edit.layer)
            _apply(getattr(module, side), edit, parts.head_dim, (row, column), value)
        read.append(net.norm.input[last[0], last[1]].save())
    return read[0]


def _apply(activation: torch.Tensor, edit: Edit, head_dim: int, at: tuple, value) -> None:
    """Edits ``activation`` [row, position, width] in place."""
    part = activation
    if edit.head is not None:
        part = activation[..., edit.head * head_dim : (edit.head + 1) * head_dim]  # [row, position, head_dim]
    if edit.how == "add":
        value = part[at] + value  # [read, width]
    elif edit.how == "scale":
        value = part[at] * value
    part[at] = value.to(part.dtype)
