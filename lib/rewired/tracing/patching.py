"""Activation patching between two models: which parts carry the difference in what they decide?

Take a *source* and a *target* model and one prompt. Run the target, but give one component the activation it had in
the source at the same positions, and read delta. effect = delta_patched - delta_target says how far this component
alone moves the target. Nothing is averaged over heads, and a head is its own slice:

``L3H0``      a head: in mode ``"input"`` its slice of o_proj's input, which the target's W_O reads; in mode
              ``"output"`` its share z W_O of the sum, by the source's W_O
``L3_MLP``    the MLP's output, before Gemma's post-feedforward norm
``L3_ATTN``   the attention layer's output, before the post-attention norm
``L3_RESID``  the residual stream after the layer

Both models are recorded first, then the target is switched on: the two are never in memory together. A ``Sweep`` holds
what all patches of one pair share, and every function here takes one:

>>> sweep = patching.Sweep(model, source, target)                  # two recordings; the model is the target
>>> patches, controls = patching.patch_each(sweep)                 # one forward pass a component and prompt
>>> patching.patch_together(sweep, {"two": ["L3H0", "L4_MLP"]})    # one a set and prompt
>>> patching.attribution_patching(sweep)                           # one backward pass a prompt, first order only
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from rewired.errors import RewiredError
from rewired.tracing import controls
from rewired.tracing.anatomy import Anatomy, locate
from rewired.tracing.capture import Encoded, batches, read_out
from rewired.tracing.packed import Tree
from rewired.tracing.recording import Component, Sweep, components, named, record  # noqa: F401 (for its callers)

GRADIENTS = 4  # prompts in one backward pass, which keeps all that the forward pass computed


def patch_each(
    sweep: Sweep, chosen: Sequence[str | Component] | None = None, draws: int = 5, share: float = 0.01, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Patch every ``chosen`` component (default: all heads and MLPs) alone. Returns (patches, controls).

    ``patches``: one row per component and prompt: prompt_id, scenario, component, kind, layer, head, positions, mode,
    delta_source, delta_target, delta_patched, ``effect`` = delta_patched - delta_target (logits; positive = toward
    defection) and ``flip`` (delta changed sign). ``controls``: control, component, layer, prompt_id, delta_patched,
    effect, and ``error``, what should be 0 (see `controls`): ``unpatched``, ``outputs``, ``residual``, ``self``,
    ``random`` (``draws`` a layer, spread over its trees), and ``again``, a random ``share`` of the patches recomputed.
    Raises RewiredError when a control fails, or for a component that the model does not have."""
    chosen = components(sweep.parts) if chosen is None else named(sweep.parts, chosen)
    trees = sweep.target.trees
    checks = [controls.require(controls.positive_controls(sweep), sweep)]  # before anything long
    patched = np.full((len(chosen), len(sweep.target.delta)), np.nan)  # [component, prompt]
    for start in tqdm(range(sweep.parts.depth + 1), desc="patching", unit="layer", disable=None):
        places = [k for k, component in enumerate(chosen) if component.start == start]
        here = [chosen[k] for k in places]
        for t, tree in enumerate(trees if here else []):
            # The draws of a layer go to its trees in turn; the next layer begins with the next tree.
            count = len(range((t - start) % len(trees), draws, len(trees)))
            drawn = controls.random_patches(sweep, tree, here, count, seed)
            deltas = _each_in_tree(sweep, tree, here, start, [patch for _, patch in drawn])
            patched[np.ix_(places, tree.prompts)] = deltas[: len(here)]
            checks.append(controls.random_table(sweep, tree, drawn, deltas[len(here) :]))
        kinds = sorted({component.kind for component in chosen if component.layer == start})
        if kinds:
            checks.append(controls.self_patch(sweep, kinds, start))
    patches = _with_effect(_one_row_each(sweep, chosen), sweep, patched)
    checks.append(controls.recomputed(sweep, patches, chosen, share, seed))
    filled = [check for check in checks if len(check)]
    return patches, controls.require(pd.concat(filled, ignore_index=True), sweep)


def _each_in_tree(sweep: Sweep, tree: Tree, here: Sequence[Component], start: int, more: list) -> np.ndarray:
    """delta with each component patched alone, then of the rows ``more``: [component or row, prompt of the tree]."""
    source, target = sweep.source.at(tree.nodes), sweep.target.at(tree.nodes)
    deltas = np.tile(sweep.target.delta[tree.prompts], (len(here) + len(more), 1))
    changed, rows = [], []
    for k, component in enumerate(here):
        patch = sweep.patch(component, source)  # value [node, width]
        # Where both models computed the same, to the bit, the patch changes nothing: delta is the target's.
        if not torch.equal(patch.value, sweep.patch(component, target).value):
            changed.append(k)
            rows.append([patch])
    deltas[[*changed, *range(len(here), len(deltas))]] = sweep.deltas(tree, [*rows, *more], start)
    return deltas


def _one_row_each(sweep: Sweep, chosen: Sequence[Component]) -> pd.DataFrame:
    """One row per component and prompt, in this order."""
    prompts, frames = sweep.target.encoded.frame(), []
    for component in chosen:
        place = {"component": component.name, "kind": component.kind, "layer": component.layer, "head": component.head}
        frames.append(prompts.assign(**place))
    return pd.concat(frames, ignore_index=True).assign(positions=sweep.positions, mode=sweep.mode)


def _with_effect(frame: pd.DataFrame, sweep: Sweep, patched: np.ndarray) -> pd.DataFrame:
    """``frame`` with its deltas, effect and flip; ``patched`` is [anything, prompt], one value a row of the frame."""
    source = np.broadcast_to(sweep.source.delta, patched.shape).reshape(-1)
    target = np.broadcast_to(sweep.target.delta, patched.shape).reshape(-1)
    patched = patched.reshape(-1)
    frame = frame.assign(delta_source=source, delta_target=target, delta_patched=patched)
    return frame.assign(effect=patched - target, flip=(target > 0) != (patched > 0))


def patch_together(sweep: Sweep, sets: Mapping[str, Sequence[str | Component]]) -> pd.DataFrame:
    """Sufficiency: patch all components of a set at once. One row per set and prompt: prompt_id, scenario, set, size,
    delta_source, delta_target, delta_patched, effect, flip, and ``recovered`` = effect / (delta_source -
    delta_target): 1 is the source's decision. In mode ``"output"`` all heads and MLPs together are the source."""
    members = [named(sweep.parts, chosen) for chosen in sets.values()]
    patched = sweep.together(members)  # [set, prompt]
    prompts, frames = sweep.target.encoded.frame(), []
    for name, chosen in zip(sets, members, strict=True):
        frames.append(prompts.assign(set=name, size=len(chosen)))
    frame = _with_effect(pd.concat(frames, ignore_index=True), sweep, patched)
    gap = frame["delta_source"] - frame["delta_target"]
    return frame.assign(recovered=frame["effect"] / gap.where(gap != 0))


def pairwise(sweep: Sweep, chosen: Sequence[str | Component]) -> pd.DataFrame:
    """Do two components act together or each for itself? Patch every two of ``chosen`` singly and at once.

    One row per pair of components and prompt: prompt_id, scenario, ``one``, ``other``, ``effect_one``,
    ``effect_other``, ``effect_both`` and ``interaction`` = effect_both - effect_one - effect_other (logits). It is 0
    where the effects add up. It has their sign where two do more than the sum of both, and the other sign where they do
    the same thing twice. Raises RewiredError for a component that contains another."""
    members = named(sweep.parts, chosen)
    pairs = list(combinations(members, 2))
    for a, b in pairs:
        if a == b or _contains(a, b) or _contains(b, a):
            raise RewiredError(
                f"{a.name} and {b.name} were both asked for, and one contains the other: patched together they are one "
                "of the two. Choose components that are apart, such as heads and MLPs."
            )
    sets = [[component] for component in members] + [[a, b] for a, b in pairs]
    effects = sweep.together(sets) - sweep.target.delta  # [component, then pair, prompt]
    alone = dict(zip(members, effects, strict=False))
    prompts, frames = sweep.target.encoded.frame(), []
    for (a, b), both in zip(pairs, effects[len(members) :], strict=True):
        effects = {"effect_one": alone[a], "effect_other": alone[b], "effect_both": both}
        frames.append(prompts.assign(one=a.name, other=b.name, **effects))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(interaction=frame["effect_both"] - frame["effect_one"] - frame["effect_other"])


def _contains(a: Component, b: Component) -> bool:
    return a.kind == "resid" or (a.kind == "attn" and b.kind == "head" and a.layer == b.layer)


def greedy(sweep: Sweep, candidates: Sequence[str | Component], limit: int | None = None) -> pd.DataFrame:
    """A small circuit for every prompt on which source and target disagree.

    Starting from nothing, add the candidate that moves delta farthest toward the source's, all remaining candidates
    tried anew after each addition. Stop when delta changes sign, when no candidate moves it closer, or when ``limit``
    are in. One row per prompt and step (from 1): prompt_id, scenario, step, component, delta_source, delta_target,
    delta_patched, effect and flip."""
    members, deltas = named(sweep.parts, candidates), zip(sweep.source.delta, sweep.target.delta, strict=True)
    rows = []
    for i, (source, target) in enumerate(tqdm(list(deltas), desc="circuits", unit="prompt", disable=None)):
        if (source > 0) == (target > 0):
            continue
        prompt = sweep.target.encoded.prompts[i]
        for step, (component, patched) in enumerate(_circuit(sweep.select([i]), members, limit), start=1):
            effect, flip = patched - target, (patched > 0) != (target > 0)
            rows.append((prompt.id, prompt.scenario, step, component.name, source, target, patched, effect, flip))
    columns = ["prompt_id", "scenario", "step", "component", "delta_source", "delta_target", "delta_patched"]
    return pd.DataFrame(rows, columns=[*columns, "effect", "flip"])


def _circuit(sweep: Sweep, candidates: Sequence[Component], limit: int | None) -> list[tuple[Component, float]]:
    """Each step's component and the delta then reached, for the one prompt that ``sweep`` holds."""
    own = reached = sweep.target.delta[0]
    direction = np.sign(sweep.source.delta[0] - own)
    rest = list(candidates)
    steps: list[tuple[Component, float]] = []
    while rest and len(steps) != limit and (reached > 0) == (own > 0):
        chosen = [component for component, _ in steps]
        tried = sweep.together([[*chosen, candidate] for candidate in rest])[:, 0]  # [candidate]
        gain = (tried - reached) * direction  # [candidate], above 0: closer to the source
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        reached = tried[best]
        steps.append((rest.pop(best), reached))
    return steps


def attribution_patching(sweep: Sweep, kinds: Sequence[str] = ("head", "mlp")) -> pd.DataFrame:
    """Attribution patching: (source - target) · gradient of delta, the effect to first order (Nanda 2023).

    One backward pass serves all components of a prompt. Columns: prompt_id, scenario, component, kind, layer, head,
    positions, mode, ``estimate`` of the effect (logits). It says where to look and replaces no patch: the effects are
    not linear."""
    source, target, encoded = sweep.source, sweep.target, sweep.target.encoded
    chosen = components(sweep.parts, kinds)
    estimate = np.zeros((len(chosen), len(encoded.rows)))  # [component, prompt]
    for indices, ids in batches(encoded.rows, GRADIENTS, sweep.parts.device):
        gradients = _gradients(sweep.parts, ids, encoded.pick(indices))
        for row, i in enumerate(indices):
            there, own = source.at(source.path(i)), target.at(target.path(i))
            slopes = {site: gradient[row] for site, gradient in gradients.items()}  # [position, width]
            products = []
            for component in chosen:
                change = sweep.patch(component, there).value - sweep.patch(component, own).value  # [position, width]
                slope = _slope(sweep, component, slopes)[: len(change)]  # [position, width], padding cut off
                product = (change.double() * slope.double()).sum(-1)  # [position]
                products.append(product.sum() if sweep.positions == "all" else product[-1])
            estimate[:, i] = torch.stack(products).cpu().numpy()
    return _one_row_each(sweep, chosen).assign(estimate=estimate.reshape(-1))


def _slope(sweep: Sweep, component: Component, slopes: Mapping[tuple[str, int], torch.Tensor]) -> torch.Tensor:
    """The gradient with respect to what a patch of the component changes, [position, width]."""
    layer, kind = component.layer, component.kind
    if kind == "resid":
        site = "resid_final" if layer == sweep.parts.depth - 1 else "resid_pre"
        return slopes[site, layer + 1]
    if kind == "head" and sweep.mode == "input":
        width = sweep.parts.head_dim
        return slopes["z", layer][:, component.head * width : (component.head + 1) * width]
    return slopes["mlp_out" if kind == "mlp" else "attn_out", layer]


@torch.enable_grad()
def _gradients(parts: Anatomy, ids: torch.Tensor, encoded: Encoded) -> dict[tuple[str, int], torch.Tensor]:
    """{(site, layer): d delta / d activation [row, position, width]}: rows do not mix, so one backward serves all."""
    sites = []  # in the order of execution; the stream into the first layer is no component
    for layer in range(parts.depth):
        sites += [("resid_pre", layer), ("z", layer), ("attn_out", layer), ("mlp_out", layer)]
    sites = [*sites[1:], ("resid_final", parts.depth)]
    live, net = [], parts.view
    with net.trace(input_ids=ids, use_cache=False):
        net.embed_tokens.output.requires_grad_()
        for site, layer in sites:
            module, side = locate(net, parts.sandwich, site, layer)
            live.append(getattr(module, side).save())  # [row, position, width]
    final = live[-1][range(len(ids)), encoded.steps]  # [row, d_model] at the decision step
    delta = read_out(parts, final, encoded)[0]  # [row]
    return dict(zip(sites, torch.autograd.grad(delta.sum(), live), strict=True))
