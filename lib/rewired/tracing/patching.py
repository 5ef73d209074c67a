"""Activation patching between two models: which parts carry the difference in what they decide?

Take a *source* and a *target* model and one prompt. Run the target, but give one component the activation it had in
the source at the same positions, and read delta. effect = delta_patched - delta_target says how far this component
alone moves the target. Nothing is averaged over heads, and a head is its own slice:

========  ==================================================================================
``head``  ``L3H0``: in mode ``"input"`` its slice of o_proj's input (the target's W_O reads
          it), in mode ``"output"`` its share z W_O of the sum, by the source's W_O
``mlp``   ``L3_MLP``: the MLP's output, before Gemma's post-feedforward norm
``attn``  ``L3_ATTN``: the attention layer's output, before the post-attention norm
``resid`` ``L3_RESID``: the residual stream after the layer
========  ==================================================================================

The source is recorded first, then the target is switched on: the two are never in memory together. Every sweep carries
its controls and stops when one fails.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from rewired.errors import RewiredError
from rewired.prompts import Labels, Prompt
from rewired.tracing import controls
from rewired.tracing.capture import BATCH_SIZE, Anatomy, Encoded, anatomy, batches, locate, read_out
from rewired.tracing.recording import (
    Component,
    Recording,
    check,
    components,
    named,
    patch_of,
    patched_deltas,
    record,
)

# --- the sweep -------------------------------------------------------------------------------------------------------


def sweep(
    model,
    source: Recording,
    target: Recording,
    wanted: Sequence[str | Component] | None = None,
    positions: str = "all",
    mode: str = "input",
    draws: int = 5,
    share: float = 0.01,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every wanted component (default: all heads and MLPs) patched alone, from ``source`` into ``model``, whose own
    recording is ``target``. Returns (patches, controls).

    ``patches``: one row per prompt and component: prompt_id, scenario, component, kind, layer, head, positions, mode,
    delta_source, delta_target, delta_patched, ``effect`` = delta_patched - delta_target (logits; positive = toward
    defection) and ``flip`` (delta changed sign). ``controls``: control, component, layer, prompt_id, delta_patched,
    effect, and ``error``, what should be 0:

    ``unpatched``  a row without patches against the target's own delta
    ``self``       the components of a layer patched with their own activation, against the same row unpatched
    ``outputs``    all attention and MLP outputs of the source at once, against the source's delta
    ``residual``   the residual stream after the last layer, against the source's delta
    ``random``     the target's activation plus a random direction of the length of source - target at each position,
                   ``draws`` a layer, each for a component and a tree of prompts in turn: a null for the effects
    ``again``      a random ``share`` of the patches, one whole run of the model each

    Raises RewiredError when a control fails, or when source and target do not match."""
    check(source, target, positions, mode)
    parts = anatomy(model)
    wanted = components(model) if wanted is None else named(model, wanted)
    patched = np.full((len(wanted), len(target.delta)), np.nan)
    checks = [controls.hold(controls.whole(parts, source, target, positions), parts)]  # before anything long
    for start in tqdm(range(parts.depth + 1), desc="patching", unit="layer", disable=None):
        index = [k for k, c in enumerate(wanted) if c.start == start]
        for t, tree in enumerate(target.trees if index else ()):
            values, own = source.at(tree.nodes), target.at(tree.nodes)
            patched[np.ix_(index, tree.prompts)] = target.delta[tree.prompts]
            patches = {k: patch_of(wanted[k], values, mode) for k in index}
            # what is the same in both models, to the bit, changes nothing: such a row is the target and is not run
            new = [k for k in index if not torch.equal(patches[k].value, patch_of(wanted[k], own, mode).value)]
            rows = [[patches[k]] for k in new]
            patched[np.ix_(new, tree.prompts)] = patched_deltas(parts, tree, target, rows, start, positions)
            here = [wanted[k] for k in index]
            count = sum((i + start) % len(target.trees) == t for i in range(draws))
            checks.append(controls.random_patches(parts, tree, source, target, here, positions, mode, count, seed))
        kinds = sorted({c.kind for c in wanted if c.layer == start})
        if kinds:
            checks.append(controls.itself(parts, target, kinds, start, positions))
    frame = _frame(target.encoded, wanted, positions, mode)
    deltas = (np.tile(recording.delta, len(wanted)) for recording in (source, target))
    frame = _compare(frame, *deltas, patched.reshape(-1))
    checks.append(controls.again(parts, frame, wanted, patched, source, target, positions, mode, share, seed))
    table = pd.concat([c for c in checks if len(c)], ignore_index=True)
    return frame, controls.hold(table, parts)


def _frame(encoded: Encoded, wanted: Sequence[Component], positions: str, mode: str) -> pd.DataFrame:
    """One row per component and prompt, in this order."""
    about = encoded.frame()
    frame = pd.concat([about] * len(wanted), ignore_index=True)
    for column, value in (("component", "name"), ("kind", "kind"), ("layer", "layer"), ("head", "head")):
        frame[column] = np.repeat([getattr(c, value) for c in wanted], len(about))
    return frame.assign(positions=positions, mode=mode)


def _compare(frame: pd.DataFrame, source, target, patched) -> pd.DataFrame:
    flip = (np.asarray(target) > 0) != (np.asarray(patched) > 0)
    return frame.assign(
        delta_source=source, delta_target=target, delta_patched=patched, effect=patched - target, flip=flip
    )


# --- sets of components ----------------------------------------------------------------------------------------------


def _start(chosen: Sequence[Component], parts: Anatomy) -> int:
    return min((c.start for c in chosen), default=parts.depth)


def patch_together(
    model,
    source: Recording,
    target: Recording,
    sets: dict[str, Sequence[str | Component]],
    positions: str = "all",
    mode: str = "output",
) -> pd.DataFrame:
    """Sufficiency: all components of a set patched at once. One row per prompt and set: prompt_id, scenario, set,
    size, delta_source, delta_target, delta_patched, effect, flip, and ``recovered`` = effect / (delta_source -
    delta_target): 1 is the source's decision."""
    check(source, target, positions, mode)
    parts = anatomy(model)
    chosen = {name: named(model, members) for name, members in sets.items()}
    patched = _sets(parts, source, target, list(chosen.values()), positions, mode)
    frames = []
    for (name, members), delta in zip(chosen.items(), patched, strict=True):
        frame = target.encoded.frame().assign(set=name, size=len(members))
        frame = _compare(frame, source.delta, target.delta, delta)
        gap = frame["delta_source"] - frame["delta_target"]
        frames.append(frame.assign(recovered=frame["effect"] / gap.where(gap != 0)))
    return pd.concat(frames, ignore_index=True)


def _sets(parts, source, target, sets: Sequence[Sequence[Component]], positions: str, mode: str) -> np.ndarray:
    """[set, prompt]: delta with each set patched."""
    patched = np.full((len(sets), len(target.delta)), np.nan)
    for start in sorted({_start(members, parts) for members in sets}):
        index = [k for k, members in enumerate(sets) if _start(members, parts) == start]
        for tree in target.trees:
            values = source.at(tree.nodes)
            rows = [[patch_of(c, values, mode) for c in sets[k]] for k in index]
            patched[np.ix_(index, tree.prompts)] = patched_deltas(parts, tree, target, rows, start, positions)
    return patched


def pairwise(
    model,
    source: Recording,
    target: Recording,
    wanted: Sequence[str | Component],
    positions: str = "all",
    mode: str = "output",
) -> pd.DataFrame:
    """Do two components act together or each for itself? Every two of ``wanted`` patched singly and at once. One row
    per prompt and pair: prompt_id, scenario, ``one``, ``other``, ``effect_one``, ``effect_other``, ``effect_both`` and
    ``interaction`` = effect_both - effect_one - effect_other (logits): 0 where the effects add up; of their sign where
    two do more than the sum of both, of the other sign where they do the same thing twice. Raises RewiredError for a
    component that contains another (a stream, a layer's attention and one of its heads)."""
    wanted = named(model, wanted)
    pairs = list(combinations(wanted, 2))
    for a, b in [(a, b) for a, b in pairs if a == b or _contains(a, b) or _contains(b, a)]:
        raise RewiredError(
            f"{a.name} and {b.name} were both asked for, and one contains the other: patched together they are one of "
            "the two. Choose components that are apart, such as heads and MLPs."
        )
    sets = {c.name: [c] for c in wanted} | {f"{a.name} + {b.name}": [a, b] for a, b in pairs}
    effects = patch_together(model, source, target, sets, positions, mode)
    effects = effects.pivot(index="prompt_id", columns="set", values="effect")
    about, frames = target.encoded.frame(), []
    for a, b in pairs:
        found = {"one": a.name, "other": b.name}
        for name, chosen in (("one", a.name), ("other", b.name), ("both", f"{a.name} + {b.name}")):
            found[f"effect_{name}"] = effects.loc[about["prompt_id"], chosen].to_numpy()
        frames.append(about.assign(**found))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(interaction=frame["effect_both"] - frame["effect_one"] - frame["effect_other"])


def _contains(a: Component, b: Component) -> bool:
    return a.kind == "resid" or (a.kind == "attn" and b.kind == "head" and a.layer == b.layer)


def ladder(ranked: Sequence[str], sizes: Sequence[int] = (1, 2, 4, 8, 16), draws: int = 5, seed: int = 0) -> dict:
    """Sets for `patch_together`: ``top-k``, the first k of ``ranked``, and ``random-k-i``, k of them at random."""
    random = np.random.default_rng(seed)
    sets = {}
    for size in sizes:
        if size > len(ranked):
            raise RewiredError(f"A set of {size} components was asked for, and only {len(ranked)} are ranked.")
        sets[f"top-{size}"] = list(ranked[:size])
        for i in range(draws):
            sets[f"random-{size}-{i}"] = [ranked[k] for k in random.choice(len(ranked), size, replace=False)]
    return sets


def greedy(
    model,
    source: Recording,
    target: Recording,
    candidates: Sequence[str | Component],
    positions: str = "all",
    mode: str = "output",
    limit: int | None = None,
) -> pd.DataFrame:
    """A small circuit for every prompt: starting from nothing, add the candidate that moves delta farthest toward the
    source's, all remaining candidates tried anew after each addition, until delta changes sign, no candidate moves it
    closer, or ``limit`` are in. One row per prompt and step (from 1): prompt_id, scenario, step, component,
    delta_source, delta_target, delta_patched, effect and flip. A prompt on which both agree has no rows."""
    check(source, target, positions, mode)
    parts, candidates = anatomy(model), named(model, candidates)
    frames = []
    for i in tqdm(range(len(target.delta)), desc="circuits", unit="prompt", disable=None):
        toward, own = source.delta[i], target.delta[i]
        if (toward > 0) == (own > 0):
            continue
        here, there = target.select([i]), source.select([i])
        chosen, reached = [], own
        while len(chosen) < (limit or len(candidates)) and (reached > 0) == (own > 0):
            rest = [c for c in candidates if c not in chosen]
            tried = _sets(parts, there, here, [[*chosen, c] for c in rest], positions, mode)[:, 0]
            best = int(np.argmax((tried - reached) * np.sign(toward - own))) if len(rest) else -1
            if best < 0 or (tried[best] - reached) * np.sign(toward - own) <= 0:
                break
            chosen, reached = [*chosen, rest[best]], tried[best]
            step = here.encoded.frame().assign(step=len(chosen), component=rest[best].name)
            frames.append(_compare(step, toward, own, reached))
    columns = ["prompt_id", "scenario", "step", "component", "delta_source", "delta_target", "delta_patched"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*columns, "effect", "flip"])


# --- attribution patching: a screen ----------------------------------------------------------------------------------


def screen(
    model,
    source: Recording,
    target: Recording,
    kinds: Sequence[str] = ("head", "mlp"),
    positions: str = "all",
    mode: str = "input",
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """Attribution patching: the first-order guess (source - target) · gradient of delta, one backward pass for all
    components. Columns: prompt_id, scenario, component, kind, layer, head, positions, mode, ``estimate`` of the effect.
    It says where to look and replaces no patch: the effects are not linear."""
    check(source, target, positions, mode)
    parts, encoded = anatomy(model), target.encoded
    wanted = components(model, kinds)
    sites = [(site, layer) for layer in range(parts.depth) for site in ("z", "attn_out", "mlp_out")]
    sites += [("resid_pre", layer) for layer in range(1, parts.depth)] + [("resid_final", parts.depth)]
    estimate = np.zeros((len(wanted), len(encoded.rows)))
    for indices, ids in batches(encoded.rows, batch_size, parts.device):
        gradients = _gradients(parts, ids, sorted(sites, key=_execution), encoded.pick(indices))
        for r, i in enumerate(indices):
            there, own = source.at(source.path(i)), target.at(target.path(i))
            for k, component in enumerate(wanted):
                a, b = patch_of(component, there, mode), patch_of(component, own, mode)
                change = (a.value - b.value).double()
                slope = gradients[_gradient_site(component, mode, parts.depth)][r, : len(change)].double()
                if a.site == "z":
                    slope = slope[:, component.head * parts.head_dim : (component.head + 1) * parts.head_dim]
                product = (change * slope).sum(-1)  # [position]
                estimate[k, i] = float(product.sum() if positions == "all" else product[-1])
    return _frame(encoded, wanted, positions, mode).assign(estimate=estimate.reshape(-1))


def _execution(site_layer: tuple[str, int]) -> tuple[int, int]:
    return site_layer[1], ("resid_pre", "z", "attn_out", "mlp_out", "resid_final").index(site_layer[0])


def _gradient_site(component: Component, mode: str, depth: int) -> tuple[str, int]:
    if component.kind == "resid":
        return ("resid_final" if component.layer == depth - 1 else "resid_pre"), component.layer + 1
    if component.kind == "head":
        return ("z" if mode == "input" else "attn_out"), component.layer
    return f"{component.kind}_out", component.layer


@torch.enable_grad()
def _gradients(parts: Anatomy, ids, sites, encoded: Encoded) -> dict[tuple[str, int], torch.Tensor]:
    """{(site, layer): d delta / d activation [row, position, width]}: rows do not mix, so one backward serves all."""
    net, live = parts.view, []
    with net.trace(input_ids=ids, use_cache=False):
        net.embed_tokens.output.requires_grad_()
        for site, layer in sites:
            module, side = locate(net, parts.sandwich, site, layer)
            live.append(getattr(module, side).save())
    last = torch.tensor([len(row) - 1 for row in encoded.rows], device=parts.device)
    final = live[-1][torch.arange(len(ids), device=parts.device), last]
    delta = read_out(parts, final, encoded)[0]
    return dict(zip(sites, torch.autograd.grad(delta.sum(), live), strict=True))


# --- two variants of a study -----------------------------------------------------------------------------------------


def record_variant(study, variant: str, seed: int, prompts: Sequence[Prompt], labels=None) -> Recording:
    """The recording of a study's variant; the model is switched back afterwards."""
    with study.variant(variant, seed) as model:
        return record(model, study.tokenizer, prompts, labels)


def patch_pair(
    study,
    source: tuple[str, int],
    target: tuple[str, int],
    prompts: Sequence[Prompt],
    labels: Labels | Sequence[str] | None = None,
    **options,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`sweep` from one (variant, seed) into another, with columns ``source`` and ``target`` (``strategic-1``) in
    front. ``options`` are those of `sweep`."""
    recordings = [record_variant(study, *run, prompts, labels) for run in (source, target)]
    with study.variant(*target) as model:
        tables = sweep(model, *recordings, **options)
    names = {"source": "{}-{}".format(*source), "target": "{}-{}".format(*target)}
    return tuple(
        table.assign(**names)[[*names, *(c for c in table.columns if c not in names)]] for table in tables
    )  # fmt: skip
