"""The fast loop behind patching: many patched copies of many prompts, and nothing computed twice.

Prompts that begin alike are packed into a *tree*: one node per distinct (beginning, token), each attending to its own
path, so a shared beginning is computed once per patched copy ("row"). A row starts at the layer of its first patch,
from the target's recorded residual stream. In the last layer, and everywhere when only the decision step is patched,
only decision steps are computed. All is computed by the model's own modules, adapters included, but for attention,
which is written out here; every sweep checks it against whole passes under nnsight.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from rewired.answers import shared_beginnings
from rewired.tracing.anatomy import Anatomy

# longest run of nodes whose attention is computed at once: shorter wastes calls, longer computes masked scores
SEGMENT = 64


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
        """What ``count`` last nodes of a path of length ``keys`` may attend to: 0 or -inf [count, keys]; None = all."""
        if (count, keys, window) not in self.masks:
            query = torch.arange(keys - count, keys, device=self.leaf.device)[:, None]  # [count, 1]
            key = torch.arange(keys, device=self.leaf.device)  # [keys]
            blocked = (key > query) | (key <= query - (window or keys))  # [count, keys]
            mask = torch.zeros(blocked.shape, device=self.leaf.device).masked_fill(blocked, -torch.inf)
            self.masks[count, keys, window] = mask if blocked.any() else None
        return self.masks[count, keys, window]


def plant(rows: Sequence[Sequence[int]], limit: int, device="cpu") -> tuple[list[Tree], list[int], list[list[int]]]:
    """(trees, order, owned): trees of at most about ``limit`` nodes; the rows in the order in which recordings hold
    them; and for each row of that order the positions whose nodes it is the first to need."""
    order, common = shared_beginnings(rows)  # neighbours share the longest beginnings
    trees: list[Tree] = []
    owned: list[list[int]] = []
    prompts: list[int] = []  # of the tree that is growing
    size = first = 0
    for k, i in enumerate(order):
        length = len(rows[i])
        # a decision step is a node of its own, even where it is the beginning of another prompt
        shared = min(common[k], length - 1, len(rows[order[k - 1]]) - 1)
        if prompts and size + length - shared > limit:
            trees.append(_tree(prompts, owned[-len(prompts) :], first, device))
            first += size
            prompts, size = [], 0
        if not prompts:
            shared = 0
        prompts.append(i)
        owned.append(list(range(shared, length)))
        size += length - shared
    trees.append(_tree(prompts, owned[-len(prompts) :], first, device))
    return trees, order, owned


def _tree(prompts: list[int], owned: list[list[int]], first: int, device) -> Tree:
    paths, segments = [], []
    depth_of: list[int] = []
    path: list[int] = []  # the nodes of the prompt before
    for positions in owned:
        start, shared = len(depth_of), positions[0]
        path = path[:shared] + list(range(start, start + len(positions)))
        for a in range(0, len(positions), SEGMENT):
            b = min(a + SEGMENT, len(positions))
            segments.append((start + a, start + b, torch.tensor(path[: shared + b], device=device)))
        paths.append(torch.tensor(path, device=device))
        depth_of += positions
    return Tree(prompts, first, torch.tensor(depth_of, device=device), paths, segments)


def _rope(parts: Anatomy, layer: int, tree: Tree, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) of the rotary position embedding, each [node, head_dim]."""
    rotary = parts.decoder.rotary_emb
    kinds: tuple = ()
    if "layer_type" in inspect.signature(type(rotary).forward).parameters:  # Gemma-3: a table for each kind of layer
        kinds = (parts.decoder.config.layer_types[layer],)
    cos, sin = rotary(like, tree.depth_of[None], *kinds)
    return cos[0], sin[0]


def _heads(projected: torch.Tensor, norm, rope, head_dim: int) -> torch.Tensor:
    """[row, node, heads x head_dim] -> [row, head, node, head_dim], normed and rotated where the model does so."""
    x = projected.unflatten(-1, (-1, head_dim))  # [row, node, head, head_dim]
    x = (norm(x) if norm is not None else x).transpose(1, 2)  # [row, head, node, head_dim]
    if rope is None:
        return x
    (cos, sin), half = rope, head_dim // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def attend(
    parts: Anatomy, layer: int, tree: Tree, x: torch.Tensor, leaf_only: bool, base=None, blocked=None
) -> torch.Tensor:
    """z of a layer: [row, query, head, head_dim], queries = all nodes, or the decision steps if ``leaf_only``.

    ``x`` [row, node, d_model] is the residual stream entering the layer; with ``base`` [node, d_model], the target's,
    x holds the decision steps alone, [row, prompt, d_model]. ``blocked``, for decision steps only, says for each prompt
    at which of its positions each row's decision step may not look: [row, position], True = blocked."""
    block, attn = parts.decoder.layers[layer], parts.decoder.layers[layer].self_attn
    q_norm, k_norm = getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)
    cos, sin = _rope(parts, layer, tree, x)
    at_nodes, at_leaf = (cos, sin), (cos[tree.leaf], sin[tree.leaf])
    normed = block.input_layernorm(x)
    asking = normed[:, tree.leaf] if leaf_only and base is None else normed  # [row, query, d_model]
    q = _heads(attn.q_proj(asking), q_norm, at_leaf if leaf_only else at_nodes, parts.head_dim)
    k = _heads(attn.k_proj(normed), k_norm, at_nodes if base is None else at_leaf, parts.head_dim)
    v = _heads(attn.v_proj(normed), None, None, parts.head_dim)
    if base is not None:
        # keys and values of all nodes are the target's; each row brings those of its own decision steps
        shared = block.input_layernorm(base[None])  # [1, node, d_model]
        base_k = _heads(attn.k_proj(shared), k_norm, at_nodes, parts.head_dim)
        base_v = _heads(attn.v_proj(shared), None, None, parts.head_dim)
        k = torch.index_copy(base_k.expand(len(x), -1, -1, -1), 2, tree.leaf, k)  # [row, kv_head, node, head_dim]
        v = torch.index_copy(base_v.expand(len(x), -1, -1, -1), 2, tree.leaf, v)
    cap = getattr(attn, "attn_logit_softcapping", None)
    q = (q * (attn.scaling / (cap or 1))).unflatten(1, (parts.kv_heads, -1))  # [row, kv_head, group, query, head_dim]
    config = parts.decoder.config
    window = getattr(attn if getattr(config, "layer_types", None) else config, "sliding_window", None)
    plan = tree.leaves if leaf_only else tree.segments
    masks = [tree.mask(stop - start, len(path), window) for start, stop, path in plan]
    return _mix(plan, masks, (q, k, v), cap, blocked)


def _mix(plan, masks, qkv: tuple[torch.Tensor, ...], cap: float | None, blocked=None) -> torch.Tensor:
    """Attention along paths. q [row, kv_head, group, query, head_dim] (scaled, divided by the cap); k, v
    [row, kv_head, node, head_dim] -> [row, query, head, head_dim]."""
    q, k, v = qkv
    rows, kv, group, queries, width = q.shape
    z = q.new_empty(rows, queries, kv, group, width)
    for i, (start, stop, path) in enumerate(plan):
        count = stop - start
        asked = q[..., start:stop, :].reshape(rows, kv, group * count, width)
        scores = asked @ k.index_select(2, path).transpose(-1, -2)  # [row, kv_head, group x query, key]
        if cap:
            scores = _tanh(scores).mul_(cap)
        if masks[i] is not None:
            scores.view(rows, kv, group, count, -1).add_(masks[i])
        if blocked is not None:
            scores.masked_fill_(blocked[i][:, None, None], -torch.inf)
        pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        mixed = pattern @ v.index_select(2, path)  # [row, kv_head, group x query, head_dim]
        z[:, start:stop] = mixed.view(rows, kv, group, count, width).permute(0, 3, 1, 2, 4)
    return z.flatten(2, 3)


def _tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh in place; on a CPU by way of expm1, which torch computes twice as fast and in fp32 as exactly."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.tanh_()
    grown = x.mul_(2).clamp_(max=40).expm1_()  # tanh x = (e^2x - 1) / (e^2x + 1)
    return grown.div_(grown + 2)


@dataclass(frozen=True)
class Patch:
    """``value`` [node, width] to be written at ``site`` of ``layer``: ``z`` (a head's slice), ``head_out`` (a head's
    share of the sum before the post-attention norm), ``attn_out``, ``mlp_out`` or ``resid_post`` (after the layer).
    It may be made when it is needed: all values of all patches together fill a memory."""

    site: str
    layer: int
    head: int
    made: torch.Tensor | Callable[[], torch.Tensor]

    @property
    def value(self) -> torch.Tensor:
        """[node, width], made anew at every call."""
        return self.made() if callable(self.made) else self.made


class Rows:
    """Patched copies of a tree's prompts, and what is the same for all layers that they pass through.

    ``base`` is the target's recording of this tree: ``resid`` [layer + 1, node, d_model] and ``z``. ``blocked``
    {layer: see `attend`} knocks out attention of the decision steps, and needs ``decision_only``."""

    def __init__(self, tree: Tree, base: dict, patches: Sequence[Sequence[Patch]], decision_only=False, blocked=None):
        self.tree, self.base, self.decision_only, self.blocked = tree, base, decision_only, blocked or {}
        self.count = len(patches)
        self.at: dict[tuple[str, int], list[tuple[int, Patch]]] = {}  # {(site, layer): [(row, its patch)]}
        for row, of_row in enumerate(patches):
            for patch in of_row:
                self.at.setdefault((patch.site, patch.layer), []).append((row, patch))

    def nodes(self, leaf_only: bool):
        """Index of the nodes that are computed: the decision steps, or all."""
        return self.tree.leaf if leaf_only else slice(None)

    def apply_patches(self, into: torch.Tensor, site: str, layer: int, nodes) -> torch.Tensor:
        """``into`` [row, node, width], or [row, node, head, head_dim] for ``z``, with the patches of one site; a copy,
        since it may be (or share) the recording itself. ``nodes`` indexes the nodes that ``into`` holds."""
        here = self.at.get((site, layer), [])
        into = into.clone() if here else into
        for row, patch in here:
            value = patch.value[nodes]  # [node, width]
            if site == "z":
                into[row, :, patch.head] = value
            elif site == "head_out":
                into[row] += value
            else:
                into[row] = value
        return into


@torch.no_grad()
def forward(
    parts: Anatomy, tree: Tree, base: dict, rows: Sequence, start: int, decision_only: bool = False, blocked=None
) -> torch.Tensor:
    """Final residual stream of each row's prompts at their decision steps: [row, prompt, d_model].

    The arguments are those of `Rows`; ``rows`` lists the patches of each row. None may have one before layer ``start``
    (``resid_post`` of the layer before it is allowed)."""
    batch = Rows(tree, base, rows, decision_only, blocked)
    nodes = batch.nodes(decision_only)
    x = base["resid"][start][nodes].expand(len(rows), -1, -1)  # [row, node, d_model]
    x = batch.apply_patches(x, "resid_post", start - 1, nodes)
    # what enters the first layer may still be the target in every row; then the target's z is known
    known = ("resid_post", start - 1) not in batch.at and start not in batch.blocked
    for layer in range(start, parts.depth):
        known_z = base["z"][layer] if known and layer == start else None
        x = patched_layer(parts, layer, batch, x, known_z)["resid_post"]
    # the last layer, if it ran, left only the decision steps
    return x if decision_only or start < parts.depth else x[:, tree.leaf]


def patched_layer(
    parts: Anatomy, layer: int, batch: Rows, x: torch.Tensor, known_z: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """What each row computes in a layer, patched: {site: [row, node, width]} for ``z``, ``attn_out``, ``mlp_out`` and
    ``resid_post``. ``x`` is the stream entering it. With ``known_z`` [node, head, head_dim] attention is not computed.

    In the last layer, and when only decisions are patched, nodes are the decision steps: [row, prompt, width]."""
    block, last = parts.decoder.layers[layer], layer == parts.depth - 1
    leaf_only = batch.decision_only or last
    nodes = batch.nodes(leaf_only)
    if known_z is not None:
        # laid out like a patched one, so that rows with and without patches are rounded alike
        z = known_z[nodes].expand(batch.count, -1, -1, -1).contiguous()  # [row, node, head, head_dim]
    else:
        beneath = batch.base["resid"][layer] if batch.decision_only else None
        z = attend(parts, layer, batch.tree, x, leaf_only, beneath, batch.blocked.get(layer))
    if last and not batch.decision_only:
        x = x[:, batch.tree.leaf]  # [row, prompt, d_model]
    z = batch.apply_patches(z, "z", layer, nodes)
    shares = batch.at.get(("head_out", layer), [])
    z = z.clone() if shares else z
    for row, patch in shares:
        z[row, :, patch.head] = 0  # the source's share of the sum replaces the target's
    out = batch.apply_patches(block.self_attn.o_proj(z.flatten(2)), "head_out", layer, nodes)  # [row, node, d_model]
    out = batch.apply_patches(out, "attn_out", layer, nodes)
    x = x + (block.post_attention_layernorm(out) if parts.sandwich else out)
    # without post-sublayer norms, "post_attention" names the norm in front of the MLP
    before_mlp = block.pre_feedforward_layernorm if parts.sandwich else block.post_attention_layernorm
    mlp = batch.apply_patches(block.mlp(before_mlp(x)), "mlp_out", layer, nodes)
    x = x + (block.post_feedforward_layernorm(mlp) if parts.sandwich else mlp)
    x = batch.apply_patches(x, "resid_post", layer, nodes)
    return {"z": z, "attn_out": out, "mlp_out": mlp, "resid_post": x}
