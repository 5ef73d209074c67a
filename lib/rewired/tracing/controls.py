"""What every sweep of patches carries along, so that its numbers can be believed.

Each control is a table: control, component, layer, prompt_id, ``delta_patched``, ``effect`` (logits) and ``error``,
what should be 0 (NaN where nothing is due). `require` stops where one is not met.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from rewired.errors import RewiredError
from rewired.tracing.capture import Encoded, read_out
from rewired.tracing.edit import Edit, edited_deltas
from rewired.tracing.packed import Patch, Rows, Tree, forward, patched_layer, plant
from rewired.tracing.recording import TREE_NODES, Component, Sweep


def _table(about: tuple[str, str, int], encoded: Encoded, patched, effect, error=np.nan) -> pd.DataFrame:
    """One row per prompt; ``about`` is (control, component, layer), each number is [prompt]."""
    names = dict(zip(("control", "component", "layer"), about, strict=True))
    frame = encoded.frame()[["prompt_id"]].assign(**names)[[*names, "prompt_id"]]
    return frame.assign(delta_patched=patched, effect=effect, error=error)


def positive_controls(sweep: Sweep) -> pd.DataFrame:
    """Patches whose result is known: none (``unpatched``) leaves the target's delta; all ``outputs`` of the source at
    once, or its ``residual`` stream after the last layer, give the source's."""
    depth = sweep.parts.depth
    outputs = [Component(layer, kind) for layer in range(depth) for kind in ("attn", "mlp")]
    sets = {"unpatched": [], "outputs": outputs, "residual": [Component(depth - 1, "resid")]}
    frames = []
    for tree in sweep.target.trees:
        values = sweep.source.at(tree.nodes)
        rows = []
        for members in sets.values():
            rows.append([sweep.patch(component, values, mode="output") for component in members])
        patched = sweep.deltas(tree, rows, 0)  # [set, prompt of the tree]
        own, encoded = sweep.target.delta[tree.prompts], sweep.target.encoded.pick(tree.prompts)
        for control, delta in zip(sets, patched, strict=True):
            due = own if control == "unpatched" else sweep.source.delta[tree.prompts]
            frames.append(_table((control, "all", -1), encoded, delta, delta - own, delta - due))
    return pd.concat(frames)


@torch.no_grad()
def self_patch(sweep: Sweep, kinds: Sequence[str], layer: int) -> pd.DataFrame:
    """One layer's components given their own activations, for one prompt (another one in each layer): exactly 0. Each
    row of a batch, one per kind, gets what that very row computed: other rows may be rounded differently. Where the
    stream after the layer stays the same to the bit, so does all that follows."""
    parts, target, only = sweep.parts, sweep.target, sweep.decision_only
    i = layer % len(target.delta)
    [tree], _, _ = plant([target.encoded.rows[i]], TREE_NODES, parts.device)
    base, encoded = target.at(target.path(i)), target.encoded.pick([i])
    unpatched: list[list[Patch]] = [[] for _ in kinds]
    batch = Rows(tree, base, unpatched, only)
    stream = base["resid"][layer][batch.nodes(only)].expand(len(kinds), -1, -1)
    computed = patched_layer(parts, layer, batch, stream, base["z"][layer])
    rows = []
    for row, kind in enumerate(kinds):
        site = {"head": "z", "resid": "resid_post"}.get(kind, f"{kind}_out")
        own = computed[site][row]  # [computed node, width], or [computed node, head, head_dim]
        value = own.new_zeros(len(tree.depth_of), *own.shape[1:])  # [node, …]
        value[batch.nodes(only or layer == parts.depth - 1)] = own
        values = value.unbind(1) if kind == "head" else [value]
        rows.append([Patch(site, layer, head, part) for head, part in enumerate(values)])
    after = patched_layer(parts, layer, Rows(tree, base, rows, only), stream, base["z"][layer])
    changes = np.zeros((len(kinds), 1))  # [kind, prompt]
    if not torch.equal(after["resid_post"], computed["resid_post"]):
        ends = [forward(parts, tree, base, some, layer, only) for some in (unpatched, rows)]
        old, new = (read_out(parts, end, encoded)[0].cpu().numpy() for end in ends)
        changes = new - old
    frames = []
    for kind, change in zip(kinds, changes, strict=True):
        about = ("self", f"L{layer}_{kind.upper()}", layer)
        frames.append(_table(about, encoded, target.delta[[i]] + change, change, change))
    return pd.concat(frames)


def random_patches(
    sweep: Sweep, tree: Tree, here: Sequence[Component], count: int, seed: int
) -> list[tuple[Component, list[Patch]]]:
    """``count`` random patches of the components ``here``, which all start at one layer, each as a row of its own: the
    target's activation plus a random direction of the length of source - target at each position. A null for the
    effects."""
    start = here[0].start
    random = np.random.default_rng([seed, start, tree.first])
    chosen = [here[int(k)] for k in random.integers(len(here), size=count)]
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    values, base = sweep.source.at(tree.nodes), sweep.target.at(tree.nodes)
    rows = []
    for component in chosen:
        there, own = sweep.patch(component, values).value, sweep.patch(component, base)
        direction = torch.randn(there.shape, generator=generator, device="cpu").to(there)  # [node, width]
        length = (there - own.value).norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
        rows.append((component, [Patch(own.site, own.layer, own.head, own.value + direction * length)]))
    return rows


def random_table(sweep: Sweep, tree: Tree, drawn: Sequence[tuple], deltas: np.ndarray) -> pd.DataFrame:
    """The control ``random`` from the `random_patches` of a tree and what they gave, [patch, prompt of the tree]."""
    delta, encoded = sweep.target.delta[tree.prompts], sweep.target.encoded.pick(tree.prompts)
    frames = [pd.DataFrame()]
    for (component, _), new in zip(drawn, deltas, strict=True):
        frames.append(_table(("random", component.name, component.layer), encoded, new, new - delta))
    return pd.concat(frames)


def recomputed(sweep: Sweep, patches: pd.DataFrame, chosen: Sequence, share: float, seed: int) -> pd.DataFrame:
    """A random ``share`` of the patches once more, each in a row of its own of whole forward passes under nnsight.
    ``patches`` has one row per component of ``chosen`` and prompt, in this order."""
    source, target, frames = sweep.source, sweep.target, [pd.DataFrame()]
    count = min(len(patches), math.ceil(share * len(patches)))
    drawn = sorted(np.random.default_rng([seed, 1]).choice(len(patches), size=count, replace=False).tolist())
    places = [(chosen[k // len(target.delta)], k % len(target.delta)) for k in drawn]
    edits = []
    for row, (component, i) in enumerate(places):
        edit = _edit(sweep, component, source.at(source.path(i)), target.at(target.path(i)))
        edits.append(replace(edit, value=[edit.value if k == row else None for k in range(count)]))
    deltas = edited_deltas(sweep.parts, target.encoded.pick([i for _, i in places]), edits).tolist() if drawn else []
    for k, (component, i), delta in zip(drawn, places, deltas, strict=True):
        about, row = ("again", component.name, component.layer), patches.iloc[k]
        frames.append(_table(about, target.encoded.pick([i]), delta, row["effect"], delta - row["delta_patched"]))
    return pd.concat(frames)


def _edit(sweep: Sweep, component: Component, there: dict, own: dict) -> Edit:
    """The patch as an edit of a whole pass; ``there`` and ``own`` are source and target on one prompt's path."""
    patch = sweep.patch(component, there)  # value [position, width]
    site, layer, at = patch.site, patch.layer, slice(-1 if sweep.decision_only else 0, None)
    if site == "head_out":  # the sum over heads changes by the difference of this head's shares
        change = patch.value - sweep.patch(component, own).value
        return Edit("attn_out", layer, change[at], "add", positions=sweep.positions)
    if site == "resid_post":  # the stream after a layer is what the next one reads, or the final norm
        site, layer = ("resid_pre" if layer + 1 < sweep.parts.depth else "resid_final"), layer + 1
    return Edit(site, layer, patch.value[at], head=patch.head if site == "z" else None, positions=sweep.positions)


def require(controls: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """The controls, if they are met; RewiredError otherwise. What is allowed grows with a prompt's logits."""
    tolerance = np.maximum(sweep.source.tolerance(sweep.parts), sweep.target.tolerance(sweep.parts))  # [prompt]
    of_prompt = dict(zip(sweep.target.encoded.frame()["prompt_id"], tolerance, strict=True))
    sums = 20 if sweep.parts.exact < 1e-3 else 10  # all layers at once err by this many times as much
    allowed = {"unpatched": 1, "self": 0, "outputs": sums, "residual": sums, "again": 1}
    for _, row in controls[controls["control"].isin(list(allowed))].iterrows():
        limit = allowed[row["control"]] * of_prompt[row["prompt_id"]]
        if not abs(row["error"]) <= limit:  # NaN as well
            raise RewiredError(
                f"Patching cannot be trusted here: the control {row['control']!r} is off by {row['error']:.3g} logits "
                f"at {row['component']} on prompt {row['prompt_id']}, where {limit:.0e} is allowed. Either the source "
                "and the target differ outside their layers (an adapter on the embedding or on a norm), or this model "
                "computes something that `rewired.tracing.packed` does not; patch it with "
                "`rewired.tracing.edit.intervene` instead."
            )
    return controls
