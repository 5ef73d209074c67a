"""What every sweep of patches carries along, so that its numbers can be believed: see `patching.sweep`."""

import math

import numpy as np
import pandas as pd
import torch

from rewired.errors import RewiredError
from rewired.tracing.capture import Anatomy, read_out
from rewired.tracing.intervention import Edit, edited_deltas
from rewired.tracing.packed import Patch, Tree, run
from rewired.tracing.recording import Component, Recording, patch_of, patched_deltas


def _control(control: str, tree_or_ids, component: str, layer: int, patched, effect, error=np.nan) -> pd.DataFrame:
    return pd.DataFrame(
        {"control": control, "component": component, "layer": layer, "prompt_id": tree_or_ids,
         "delta_patched": patched, "effect": effect, "error": error}
    )  # fmt: skip


def _ids(recording: Recording, tree: Tree) -> list[str]:
    return [recording.encoded.prompts[i].id for i in tree.prompts]


def whole(parts: Anatomy, source: Recording, target: Recording, positions: str) -> pd.DataFrame:
    """No patch; all outputs at once; the final residual stream."""
    outputs = [Component(layer, kind) for layer in range(parts.depth) for kind in ("attn", "mlp")]
    sets = {"unpatched": [], "outputs": outputs, "residual": [Component(parts.depth - 1, "resid")]}
    frames = []
    for tree in target.trees:
        values = source.at(tree.nodes)
        rows = [[patch_of(c, values, "output") for c in chosen] for chosen in sets.values()]
        found = patched_deltas(parts, tree, target, rows, 0, positions)
        for control, delta in zip(sets, found, strict=True):
            due = (target if control == "unpatched" else source).delta[tree.prompts]
            own = target.delta[tree.prompts]
            frames.append(_control(control, _ids(target, tree), "all", -1, delta, delta - own, delta - due))
    return pd.concat(frames)


def itself(parts: Anatomy, target: Recording, kinds: list[str], layer: int, positions: str) -> pd.DataFrame:
    """One layer's components given their own activations, for one prompt (another one in each layer).

    One row per kind, run twice: without patches, and patched with what that very row computed. Rows of one batch may
    be rounded differently (a matrix product's last rows take another path); a row and itself may not."""
    target = target.select([layer % len(target.delta)])
    [tree] = target.trees
    base, encoded, only = target.at(tree.nodes), target.encoded.pick(tree.prompts), positions == "decision"
    kept: dict[str, torch.Tensor] = {}
    before = run(parts, tree, base, [[] for _ in kinds], layer, only, kept)
    rows = []
    for r, kind in enumerate(kinds):
        site = {"head": "z", "resid": "resid_post"}.get(kind, f"{kind}_out")
        value = kept[site][r].new_zeros(len(tree.depth_of), kept[site].shape[-1])
        value[tree.leaf if only or layer == parts.depth - 1 else slice(None)] = kept[site][r]
        slices = value.split(parts.head_dim, dim=-1) if kind == "head" else [value]
        rows.append([Patch(site, layer, head, part) for head, part in enumerate(slices)])
    after = run(parts, tree, base, rows, layer, only)
    deltas = [read_out(parts, hidden, encoded)[0].cpu().numpy() for hidden in (before, after)]
    names = [f"L{layer}_{kind.upper()}" for kind in kinds]
    return pd.concat(
        _control("self", _ids(target, tree), name, layer, new, new - old, new - old)
        for name, old, new in zip(names, *deltas, strict=True)
    )


def random_patches(parts, tree, source, target, here, positions, mode, count: int, seed: int) -> pd.DataFrame:
    """``count`` random patches at this layer and tree."""
    random = np.random.default_rng([seed, here[0].start, tree.first])
    chosen = [here[int(k)] for k in random.integers(len(here), size=count)]
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    values, base, rows = source.at(tree.nodes), target.at(tree.nodes), []
    for component in chosen:
        there, own = patch_of(component, values, mode), patch_of(component, base, mode)
        direction = torch.randn(own.value.shape, generator=generator).to(own.value)
        length = (there.value - own.value).norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
        rows.append([Patch(own.site, own.layer, own.head, own.value + direction * length)])
    found = patched_deltas(parts, tree, target, rows, here[0].start, positions)
    frames = [
        _control("random", _ids(target, tree), c.name, c.layer, delta, delta - target.delta[tree.prompts])
        for c, delta in zip(chosen, found, strict=True)
    ]
    return pd.concat(frames) if frames else pd.DataFrame()


def again(parts, frame, wanted, patched, source, target, positions, mode, share, seed) -> pd.DataFrame:
    """A random share of the patches once more, each as one whole nnsight run of one row."""
    random = np.random.default_rng([seed, 1])
    count = min(patched.size, math.ceil(share * patched.size))
    found = []
    for flat in sorted(random.choice(patched.size, size=count, replace=False).tolist()):
        component, i = wanted[flat // len(target.delta)], flat % len(target.delta)
        edit = _edit(component, source.at(source.path(i)), target.at(target.path(i)), positions, mode)
        value = float(edited_deltas(parts, target.encoded.pick([i]), [edit], 1)[0])
        row = frame.iloc[flat]
        difference = value - row["delta_patched"]
        found.append(
            _control("again", [row["prompt_id"]], component.name, component.layer, value, row["effect"], difference)
        )
    return pd.concat(found) if found else pd.DataFrame()


def _edit(component: Component, there: dict, own: dict, positions: str, mode: str) -> Edit:
    """The patch as an edit of a whole run; ``there`` and ``own`` are source and target on one prompt's path."""
    patch = patch_of(component, there, mode)
    take = slice(None) if positions == "all" else slice(-1, None)
    if patch.site == "head_out":
        value = patch.value - patch_of(component, own, mode).value
        return Edit("attn_out", patch.layer, [value[take]], "add", positions=positions)
    site, layer = patch.site, patch.layer
    if site == "resid_post":
        last = layer == len(own["z"]) - 1
        site, layer = ("resid_final" if last else "resid_pre"), layer + 1
    head = component.head if site == "z" else None
    return Edit(site, layer, [patch.value[take]], head=head, positions=positions)


def hold(controls: pd.DataFrame, parts: Anatomy) -> pd.DataFrame:
    """The controls, if they hold; RewiredError otherwise."""
    rough = parts.exact > 1e-3
    sums = 1.0 if rough else 1e-4
    limits = {"unpatched": parts.exact, "self": 0.0, "outputs": sums, "residual": sums, "again": parts.exact}
    for control, limit in limits.items():
        rows = controls[controls["control"] == control]
        if len(rows) and not (rows["error"].abs() <= limit).all():
            worst = rows.loc[rows["error"].abs().fillna(np.inf).idxmax()]
            raise RewiredError(
                f"Patching cannot be trusted here: the control {control!r} is off by {worst['error']:.3g} logits at "
                f"{worst['component']} on prompt {worst['prompt_id']}, where {limit:.0e} is allowed. Either the source "
                "and the target differ outside their layers (an adapter on the embedding or on a norm), or this model "
                "computes something that rewired.tracing.packed does not; patch it with `tracing.intervene` instead."
            )
    return controls
