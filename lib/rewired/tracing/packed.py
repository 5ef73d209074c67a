"""The fast loop behind patching: many patched copies of many prompts, and nothing computed twice.

Prompts that begin alike are packed into a *tree*: one node per distinct (beginning, token), each node attending to the
nodes on its own path, so a shared beginning is computed once per patched copy ("row"). A row starts at the layer of
its first patch, from the target's recorded residual stream; in the last layer, and everywhere when only the decision
step is patched, only the decision steps are computed. The arithmetic is that of the model's own modules, adapters
included, but for attention, which is written out here; `patching.sweep` checks it against whole nnsight runs.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rewired.tracing.capture import Anatomy

SEGMENT = 64
"""Longest run of nodes whose attention is computed at once: shorter wastes calls, longer computes masked scores."""


@dataclass
class Tree:
    """Some prompts as a tree of tokens; nodes are numbered from 0 within it."""

    prompts: list[int]
    first: int  # where its nodes begin in a recording
    depth_of: torch.Tensor  # [node]: the node's position in its prompts
    paths: list[torch.Tensor]  # per prompt: its nodes from first token to decision step
    segments: list[tuple[int, int, torch.Tensor]]  # (start, stop, nodes on the path to stop)
    masks: dict = field(default_factory=dict)

    def __post_init__(self):
        self.leaf = torch.stack([path[-1] for path in self.paths])  # [prompt]: its decision step, never shared
        self.leaves = [(i, i + 1, path) for i, path in enumerate(self.paths)]

    @property
    def nodes(self) -> slice:
        return slice(self.first, self.first + len(self.depth_of))

    def mask(self, count: int, keys: int, window: int | None) -> torch.Tensor | None:
        """What ``count`` last nodes of a path of length ``keys`` may see: 0 or -inf [count, keys]; None = all."""
        if (count, keys, window) not in self.masks:
            query = torch.arange(keys - count, keys, device=self.leaf.device)[:, None]
            key = torch.arange(keys, device=self.leaf.device)
            hidden = (key > query) | (key <= query - (window or keys))
            mask = torch.zeros(hidden.shape, device=self.leaf.device).masked_fill(hidden, -torch.inf)
            self.masks[count, keys, window] = mask if hidden.any() else None
        return self.masks[count, keys, window]


def plant(rows: Sequence[Sequence[int]], limit: int, device="cpu") -> tuple[list[Tree], list[int], list[list[int]]]:
    """(trees, order, owned): trees of at most about ``limit`` nodes; the rows in the order in which recordings hold
    them; and for each row of that order the positions whose nodes it is the first to need."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))  # neighbours share the longest beginnings
    groups: list[list[int]] = []
    owned, size = [], 0
    for previous, i in zip([None, *order], order, strict=False):
        shared = 0 if previous is None else _common(rows[previous], rows[i])
        if previous is None or size + len(rows[i]) - shared > limit:
            groups.append([])
            shared = size = 0
        groups[-1].append(i)
        owned.append(list(range(shared, len(rows[i]))))
        size += len(rows[i]) - shared
    trees, first, started = [], 0, 0
    for group in groups:
        tree = _tree(group, owned[started : started + len(group)], first, device)
        trees.append(tree)
        first, started = first + len(tree.depth_of), started + len(group)
    return trees, order, owned


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two rows, short of either's last token."""
    most = min(len(a), len(b)) - 1
    return next((n for n in range(most) if a[n] != b[n]), most)


def _tree(prompts: list[int], owned: list[list[int]], first: int, device) -> Tree:
    paths, depth_of, segments = [], [], []
    for positions in owned:
        start = len(depth_of)
        path = (paths[-1][: positions[0]] if paths else []) + list(range(start, start + len(positions)))
        for a in range(0, len(positions), SEGMENT):
            b = min(a + SEGMENT, len(positions))
            segments.append((start + a, start + b, torch.tensor(path[: positions[0] + b], device=device)))
        paths.append(path)
        depth_of += positions
    tensors = [torch.tensor(path, device=device) for path in paths]
    return Tree(prompts, first, torch.tensor(depth_of, device=device), tensors, segments)


# --- one layer -------------------------------------------------------------------------------------------------------


def _rope(parts: Anatomy, layer: int, tree: Tree, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) of the rotary position embedding, each [node, head_dim]."""
    rotary = parts.decoder.rotary_emb
    typed = "layer_type" in inspect.signature(type(rotary).forward).parameters
    extra = (parts.decoder.config.layer_types[layer],) if typed else ()
    cos, sin = rotary(like, tree.depth_of[None], *extra)
    return cos[0], sin[0]


def _heads(projected: torch.Tensor, norm, rope, head_dim: int) -> torch.Tensor:
    """[row, node, heads x head_dim] -> [row, head, node, head_dim], normed and rotated where the model does so."""
    x = projected.unflatten(-1, (-1, head_dim))
    x = (norm(x) if norm is not None else x).transpose(1, 2)
    if rope is None:
        return x
    half = head_dim // 2
    return x * rope[0] + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * rope[1]


def attend(
    parts: Anatomy, layer: int, tree: Tree, x: torch.Tensor, leaf_only: bool, base=None, hidden=None
) -> torch.Tensor:
    """z of a layer: [row, query, heads x head_dim], queries = all nodes, or the decision steps if ``leaf_only``.

    ``x`` [row, node, d_model] is the residual stream entering the layer; with ``base`` [node, d_model], the target's,
    x holds the decision steps alone, [row, prompt, d_model]. ``hidden``, for decision steps only, says for each prompt
    at which of its positions each row's decision step may not look: [row, position], True = hidden."""
    block, attn = parts.decoder.layers[layer], parts.decoder.layers[layer].self_attn
    rope = _rope(parts, layer, tree, x)
    at_leaf = tuple(r[tree.leaf] for r in rope)
    q_norm, k_norm = getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)
    normed = block.input_layernorm(x)
    asking = normed[:, tree.leaf] if leaf_only and base is None else normed
    q = _heads(attn.q_proj(asking), q_norm, at_leaf if leaf_only else rope, parts.head_dim)
    k = _heads(attn.k_proj(normed), k_norm, rope if base is None else at_leaf, parts.head_dim)
    v = _heads(attn.v_proj(normed), None, None, parts.head_dim)
    if base is not None:
        shared = block.input_layernorm(base[None])
        all_k = _heads(attn.k_proj(shared), k_norm, rope, parts.head_dim)
        all_v = _heads(attn.v_proj(shared), None, None, parts.head_dim)
        k = torch.index_copy(all_k.expand(len(x), -1, -1, -1), 2, tree.leaf, k)
        v = torch.index_copy(all_v.expand(len(x), -1, -1, -1), 2, tree.leaf, v)
    cap = getattr(attn, "attn_logit_softcapping", None)
    q = (q * (attn.scaling / cap if cap else attn.scaling)).unflatten(1, (parts.kv_heads, -1))
    config = parts.decoder.config
    window = getattr(attn if getattr(config, "layer_types", None) else config, "sliding_window", None)
    return _mix(tree, q, k, v, tree.leaves if leaf_only else tree.segments, cap, window, hidden)


def _mix(tree: Tree, q, k, v, plan, cap: float | None, window: int | None, hidden=None) -> torch.Tensor:
    """Attention along paths. q [row, kv_head, group, query, head_dim] (scaled, divided by the cap); k, v
    [row, kv_head, node, head_dim] -> [row, query, heads x head_dim]."""
    rows, kv, group, queries, width = q.shape
    z = q.new_empty(rows, queries, kv, group, width)
    for i, (start, stop, path) in enumerate(plan):
        count = stop - start
        asked = q[..., start:stop, :].reshape(rows, kv, group * count, width)
        scores = asked @ k.index_select(2, path).transpose(-1, -2)
        if cap:
            scores = _tanh(scores).mul_(cap)
        mask = tree.mask(count, len(path), window)
        if mask is not None:
            scores.view(rows, kv, group, count, -1).add_(mask)
        if hidden is not None:
            scores.masked_fill_(hidden[i][:, None, None], -torch.inf)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        mixed = (weights @ v.index_select(2, path)).view(rows, kv, group, count, width)
        z[:, start:stop] = mixed.permute(0, 3, 1, 2, 4)
    return z.flatten(2)


def _tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh in place; on a CPU by way of expm1, which torch computes twice as fast and in fp32 as exactly."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.tanh_()
    grown = x.mul_(2).clamp_(max=40).expm1_()  # tanh x = (e^2x - 1) / (e^2x + 1)
    return grown.div_(grown + 2)


# --- patched rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """``value`` [node, width] to be written at ``site`` of ``layer``: ``z`` (a head's slice), ``head_out`` (a head's
    share of the sum before the post-attention norm), ``attn_out``, ``mlp_out`` or ``resid_post`` (after the layer)."""

    site: str
    layer: int
    head: int
    value: torch.Tensor


@torch.no_grad()
def run(
    parts: Anatomy,
    tree: Tree,
    base: dict[str, torch.Tensor],
    rows: Sequence[Sequence[Patch]],
    start: int,
    decision_only: bool = False,
    keep: dict | None = None,
    hidden: Mapping[int, Sequence[torch.Tensor]] | None = None,
) -> torch.Tensor:
    """Final residual stream of each row's prompts at their decision steps: [row, prompt, d_model].

    ``base`` is the target's recording of this tree: ``resid`` [layer + 1, node, d_model] and ``z``. No row may have a
    patch before layer ``start`` (``resid_post`` of the layer before it is allowed). ``keep`` receives what the rows
    computed in layer ``start``, by site. ``hidden`` {layer: see `attend`} knocks out attention of the decision steps,
    and needs ``decision_only``."""
    hidden = hidden or {}
    where: dict[tuple[str, int], list[tuple[int, Patch]]] = {}
    for r, patches in enumerate(rows):
        for patch in patches:
            where.setdefault((patch.site, patch.layer), []).append((r, patch))
    leaf_only = decision_only
    x = base["resid"][start][tree.leaf if decision_only else slice(None)].expand(len(rows), -1, -1)

    def write(into: torch.Tensor, site: str, layer: int) -> torch.Tensor:
        """``into`` with the rows' patches for this site; a copy, since it may be (or share) the recording itself."""
        found = where.get((site, layer), [])
        into = into.clone() if found else into
        for r, patch in found:
            width = patch.value.shape[-1]
            value = patch.value[tree.leaf] if leaf_only else patch.value
            if site == "head_out":
                into[r] += value
            else:
                a = patch.head * width if site == "z" else 0
                into[r, :, a : a + width] = value
        return into

    def without(z: torch.Tensor, layer: int) -> torch.Tensor:
        """``z`` with the slices of heads whose output is patched set to 0: the target's share goes."""
        found = where.get(("head_out", layer), [])
        z = z.clone() if found else z
        for r, patch in found:
            z[r, :, patch.head * parts.head_dim : (patch.head + 1) * parts.head_dim] = 0
        return z

    for layer in range(start, parts.depth):
        block = parts.decoder.layers[layer]
        x = write(x, "resid_post", layer - 1)
        ends = layer == parts.depth - 1
        same = layer == start and ("resid_post", layer - 1) not in where and layer not in hidden
        if same:  # still the target: its z is known
            z = base["z"][layer][tree.leaf if leaf_only or ends else slice(None)].flatten(-2)
            z = z.expand(len(rows), -1, -1).contiguous()
        else:
            beneath = base["resid"][layer] if decision_only else None
            z = attend(parts, layer, tree, x, leaf_only or ends, beneath, hidden.get(layer))
        if ends and not leaf_only:
            x, leaf_only = x[:, tree.leaf], True
        z = without(write(z, "z", layer), layer)
        out = write(write(block.self_attn.o_proj(z), "head_out", layer), "attn_out", layer)
        x = x + (block.post_attention_layernorm(out) if parts.sandwich else out)
        before = block.pre_feedforward_layernorm if parts.sandwich else block.post_attention_layernorm
        mlp = write(block.mlp(before(x)), "mlp_out", layer)
        x = x + (block.post_feedforward_layernorm(mlp) if parts.sandwich else mlp)
        if keep is not None and layer == start:
            keep.update(z=z, attn_out=out, mlp_out=mlp, resid_post=x)
    x = write(x, "resid_post", parts.depth - 1)
    return x if leaf_only else x[:, tree.leaf]
