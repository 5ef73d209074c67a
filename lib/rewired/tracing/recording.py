"""One model's activations on a set of prompts, and what it takes to write one model's into another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewired.errors import RewiredError, choice
from rewired.prompts import Labels, Prompt
from rewired.tracing.anatomy import Anatomy, anatomy
from rewired.tracing.capture import Encoded, capture, encode, label_logits, read_out
from rewired.tracing.edit import POSITIONS
from rewired.tracing.packed import Patch, Tree, forward, plant

KINDS = ("head", "mlp", "attn", "resid")
SITES = ("resid", "z", "attn_out", "mlp_out")
MODES = ("input", "output")
TREE_NODES = 1_200
BUDGET = {"cpu": 2_400, "cuda": 18_000}
"""Nodes in one tree, and nodes x rows in one batch: on a CPU, what still fits its caches; on any accelerator, cuda."""
ON_CARD = 2 * 2**30  # bytes; a larger recording is kept in the processor's memory, which is slower


@dataclass(frozen=True, order=True)
class Component:
    """A part of the model that can be patched."""

    layer: int
    kind: str
    head: int = -1

    @property
    def name(self) -> str:
        return f"L{self.layer}H{self.head}" if self.kind == "head" else f"L{self.layer}_{self.kind.upper()}"

    @property
    def start(self) -> int:
        """The first layer that a patch of it changes from the inside."""
        return self.layer + (self.kind == "resid")


def components(model, kinds: Sequence[str] = ("head", "mlp")) -> list[Component]:
    """All components of these kinds, by layer. Raises RewiredError for an unknown kind."""
    parts = anatomy(model)
    for kind in kinds:
        if kind not in KINDS:
            raise choice("kind of component", kind, KINDS)
    listed = []
    for layer in range(parts.depth):
        for kind in kinds:
            heads = range(parts.heads) if kind == "head" else [-1]
            listed += [Component(layer, kind, head) for head in heads]
    return listed


def named(model, names: Iterable[str | Component]) -> list[Component]:
    """The components of these names. Raises RewiredError for a name that the model does not have."""
    known = {component.name: component for component in components(model, KINDS)}
    words = [name.name if isinstance(name, Component) else name for name in names]
    for word in words:
        if word not in known:
            raise choice("component", word, known)
    return [known[word] for word in words]


class Layers:
    """Some nodes of a recorded site: indexing brings one layer to the device that computes, and keeps the last."""

    def __init__(self, whole: torch.Tensor, nodes, device: torch.device):
        self.whole, self.nodes, self.device = whole, nodes, device
        self.last: tuple = (None, None)

    def __getitem__(self, layer) -> torch.Tensor:
        """[node, …]"""
        if self.last[0] != layer:
            self.last = (layer, self.whole[layer][self.nodes].to(self.device))
        return self.last[1]


@dataclass
class Recording:
    """One model's activations on a set of prompts, packed into trees (see `packed`). All models record the same
    prompts alike, so positions match by construction. Large ones are kept off the GPU (``ON_CARD``)."""

    encoded: Encoded
    trees: list[Tree]
    resid: torch.Tensor  # [layer + 1, node, d_model]: the stream entering each layer, and the final one
    z: torch.Tensor  # [layer, node, head, head_dim]
    attn_out: torch.Tensor  # [layer, node, d_model]
    mlp_out: torch.Tensor  # [layer, node, d_model]
    w_o: torch.Tensor  # [layer, head, head_dim, d_model], adapter included: a head's output is z W_O
    delta: np.ndarray  # [prompt]
    logit: np.ndarray  # [prompt]: the larger of the two labels' logits, were all its terms positive

    def at(self, nodes) -> dict[str, Layers]:
        """The activations of some nodes, by site, and ``w_o``, a layer at a time."""
        device = self.trees[0].leaf.device  # where the model computes
        held = {site: Layers(getattr(self, site), nodes, device) for site in SITES}
        return held | {"w_o": Layers(self.w_o, slice(None), device)}

    def take(self, nodes) -> dict[str, torch.Tensor]:
        """The activations of some nodes, by site, as a recording holds them: [layer, node, …]."""
        nodes = nodes.to(self.z.device)
        return {site: getattr(self, site).index_select(1, nodes) for site in SITES}

    def path(self, prompt: int) -> torch.Tensor:
        """The nodes of one prompt, first token to decision step."""
        tree = next(tree for tree in self.trees if prompt in tree.prompts)
        return tree.first + tree.paths[tree.prompts.index(prompt)].cpu()

    def tolerance(self, parts: Anatomy) -> np.ndarray:
        """How far another way to compute a prompt's delta may lie from the recorded one, in logits: [prompt]."""
        return parts.exact * np.maximum(self.logit, 5)  # rounding grows with the terms of a sum, not with the sum

    def select(self, prompts: Sequence[int]) -> "Recording":
        """The recording of some of the prompts."""
        encoded = self.encoded.pick(prompts)
        trees, order, owned = plant(encoded.rows, TREE_NODES, self.trees[0].leaf.device)
        nodes = torch.cat([self.path(prompts[i])[positions] for i, positions in zip(order, owned, strict=True)])
        numbers = {"delta": self.delta[list(prompts)], "logit": self.logit[list(prompts)]}
        return Recording(encoded, trees, **self.take(nodes), w_o=self.w_o, **numbers)


@torch.no_grad()
def record(model, tokenizer, prompts: Sequence[Prompt], labels: Labels | Sequence[str] | None = None) -> Recording:
    """What patching needs to know of a model, as source or as target. Its nodes, in their order, are the positions
    that each row is the first to need."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    trees, order, owned = plant(encoded.rows, TREE_NODES, parts.device)
    rows = [encoded.rows[i] for i in order]
    width = 3 * parts.unembedding.shape[1] + parts.heads * parts.head_dim
    size = sum(map(len, owned)) * parts.depth * width * parts.unembedding.element_size()
    device = parts.device if size <= ON_CARD else torch.device("cpu")
    values = capture(model, rows, ("resid_pre", "z", "attn_out", "mlp_out", "resid_final"), owned, device)
    values["resid"] = torch.cat([values.pop("resid_pre"), values.pop("resid_final")])
    eye = torch.eye(parts.heads * parts.head_dim, device=parts.device, dtype=parts.unembedding.dtype)
    w_o = torch.empty(parts.depth, len(eye), parts.unembedding.shape[1], device=device, dtype=eye.dtype)
    for layer, block in enumerate(parts.decoder.layers):
        o_proj = block.self_attn.o_proj
        w_o[layer] = o_proj(eye) - o_proj(0 * eye)  # [heads x head_dim, d_model], without a bias
    values["w_o"] = w_o.unflatten(1, (parts.heads, parts.head_dim))
    recording = Recording(encoded, trees, **values, delta=np.empty(0), logit=np.empty(0))
    final = torch.stack([recording.resid[-1, recording.path(i)[-1]] for i in range(len(prompts))])
    final = final.to(parts.device)  # [prompt, d_model]
    recording.delta = read_out(parts, final, encoded)[0].cpu().numpy()
    recording.logit = torch.stack(label_logits(parts, final, encoded, terms=True)).amax(0).cpu().numpy()
    return recording


def rows_at_once(parts: Anatomy, tree: Tree, decision_only: bool) -> int:
    """How many patched copies of a tree fit into a batch. Where decision steps alone are computed, each copy has keys
    and values of the other nodes too, which take a sixteenth of the memory at most."""
    nodes, budget = len(tree.depth_of), BUDGET["cpu" if parts.device.type == "cpu" else "cuda"]
    return max(1, budget // (len(tree.leaf) + nodes // 16 if decision_only else nodes))


@dataclass(frozen=True)
class Sweep:
    """Patches from one recording into another: what every kind of patching shares.

    ``parts`` is the model that is switched on (or its anatomy), whose recording ``target`` is. ``mode``: a head's
    ``"input"`` to o_proj is patched, read by the target's W_O, or its ``"output"``, made by the source's. Raises
    RewiredError for an unknown word, and when the two were not recorded on the same prompts."""

    parts: Anatomy
    source: Recording
    target: Recording
    positions: str = "all"  # or "decision": the decision step alone
    mode: str = "input"

    def __post_init__(self):
        object.__setattr__(self, "parts", anatomy(self.parts))
        for name, known in (("positions", POSITIONS), ("mode", MODES)):
            if getattr(self, name) not in known:
                raise choice(name, getattr(self, name), known)
        if self.source.encoded != self.target.encoded or self.source.z.shape != self.target.z.shape:
            raise RewiredError(
                "The source and the target of a patch were not recorded on the same prompts and labels with models of "
                "the same shape, so their positions do not match. Record both with the same prompts and tokenizer."
            )

    @property
    def decision_only(self) -> bool:
        return self.positions == "decision"

    def select(self, prompts: Sequence[int]) -> "Sweep":
        """The same for some of the prompts."""
        source, target = self.source.select(prompts), self.target.select(prompts)
        return Sweep(self.parts, source, target, self.positions, self.mode)

    def patch(self, component: Component, values: dict[str, Layers], mode: str | None = None) -> Patch:
        """The patch that gives a component its activation in ``values``, which a recording holds at some nodes."""
        layer, head = component.layer, component.head
        if component.kind == "head":
            if (mode or self.mode) == "input":
                return Patch("z", layer, head, lambda: values["z"][layer][:, head])  # [node, head_dim]
            # [node, d_model]
            return Patch("head_out", layer, head, lambda: values["z"][layer][:, head] @ values["w_o"][layer][head])
        if component.kind == "resid":
            return Patch("resid_post", layer, -1, lambda: values["resid"][layer + 1])
        site = f"{component.kind}_out"
        return Patch(site, layer, -1, lambda: values[site][layer])

    @torch.no_grad()
    def deltas(self, tree: Tree, rows: Sequence[Sequence[Patch]], start: int) -> np.ndarray:
        """delta of patched rows, [row, prompt of the tree]. No row has a patch before layer ``start``."""
        base = self.target.at(tree.nodes)
        size = rows_at_once(self.parts, tree, self.decision_only)
        patched = np.empty((len(rows), len(tree.prompts)))  # [row, prompt of the tree]
        for a in range(0, len(rows), size):
            final = forward(self.parts, tree, base, rows[a : a + size], start, self.decision_only)
            delta, _ = read_out(self.parts, final, self.target.encoded.pick(tree.prompts))
            patched[a : a + size] = delta.cpu().numpy()
        return patched

    def together(self, sets: Sequence[Sequence[Component]]) -> np.ndarray:
        """delta with each set of components patched at once: [set, prompt]."""
        starts = np.array([min((c.start for c in members), default=self.parts.depth) for members in sets])
        patched = np.full((len(sets), len(self.target.delta)), np.nan)  # [set, prompt]
        for start in sorted(set(starts.tolist())):
            indices = np.flatnonzero(starts == start)
            for tree in self.target.trees:
                values = self.source.at(tree.nodes)
                rows = [[self.patch(component, values) for component in sets[k]] for k in indices]
                patched[np.ix_(indices, tree.prompts)] = self.deltas(tree, rows, start)
        return patched
