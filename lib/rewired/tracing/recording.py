"""One model's activations on a set of prompts, and the components whose activations can be exchanged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewired.errors import RewiredError, choice
from rewired.prompts import Labels, Prompt
from rewired.tracing.capture import BATCH_SIZE, Anatomy, Encoded, anatomy, capture, encode, read_out
from rewired.tracing.packed import Patch, Tree, plant, run

KINDS = ("head", "mlp", "attn", "resid")
POSITIONS = ("all", "decision")
MODES = ("input", "output")
TREE_NODES = {"cpu": 1_200, "cuda": 16_384}
BUDGET = {"cpu": 2_400, "cuda": 65_536}
"""Nodes in one tree, and nodes x rows in one batch: on a CPU, what still fits its caches and its allocator."""


# --- components ------------------------------------------------------------------------------------------------------


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
    heads = {kind: range(parts.heads) if kind == "head" else [-1] for kind in kinds}
    return [Component(layer, kind, h) for layer in range(parts.depth) for kind in kinds for h in heads[kind]]


def named(model, names: Iterable[str | Component]) -> list[Component]:
    """The components of these names. Raises RewiredError for a name that the model does not have."""
    known = {c.name: c for c in components(model, KINDS)}
    found = []
    for name in names:
        name = name.name if isinstance(name, Component) else name
        if name not in known:
            raise choice("component", name, known)
        found.append(known[name])
    return found


# --- recordings ------------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """One model's activations on a set of prompts, packed into trees (see `packed`). All models record the same
    prompts alike, so positions match by construction."""

    encoded: Encoded
    trees: list[Tree]
    resid: torch.Tensor  # [layer + 1, node, d_model]: the stream entering each layer, and the final one
    z: torch.Tensor  # [layer, node, head, head_dim]
    attn_out: torch.Tensor  # [layer, node, d_model]
    mlp_out: torch.Tensor  # [layer, node, d_model]
    w_o: torch.Tensor  # [layer, head, head_dim, d_model], adapter included: a head's output is z W_O
    delta: np.ndarray  # [prompt]

    def at(self, nodes) -> dict[str, torch.Tensor]:
        """The activations of some nodes."""
        found = {site: getattr(self, site)[:, nodes] for site in ("resid", "z", "attn_out", "mlp_out")}
        return {**found, "w_o": self.w_o}

    def path(self, prompt: int) -> torch.Tensor:
        """The nodes of one prompt, first token to decision step."""
        tree = next(tree for tree in self.trees if prompt in tree.prompts)
        return tree.first + tree.paths[tree.prompts.index(prompt)]

    def select(self, prompts: Sequence[int]) -> "Recording":
        """The recording of some of the prompts."""
        encoded, device = self.encoded.pick(prompts), self.z.device
        trees, order, owned = plant(encoded.rows, TREE_NODES[device.type], device)
        nodes = torch.cat([self.path(prompts[i])[at] for i, at in zip(order, owned, strict=True)])
        return Recording(encoded, trees, **self.at(nodes), delta=self.delta[list(prompts)])


@torch.no_grad()
def record(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    labels: Labels | Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Recording:
    """What patching needs to know of a model, as source or as target."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    trees, order, owned = plant(encoded.rows, TREE_NODES[parts.device.type], parts.device)
    rows = [encoded.rows[i] for i in order]
    found = capture(model, rows, ("resid_pre", "z", "attn_out", "mlp_out", "resid_final"), None, owned, batch_size)
    eye = torch.eye(parts.heads * parts.head_dim, device=parts.device, dtype=parts.unembedding.dtype)
    w_o = [block.self_attn.o_proj(eye) - block.self_attn.o_proj(0 * eye) for block in parts.decoder.layers]
    resid = torch.cat([found["resid_pre"], found["resid_final"]])
    recording = Recording(
        encoded, trees, resid, found["z"], found["attn_out"], found["mlp_out"],
        torch.stack(w_o).unflatten(1, (parts.heads, -1)), np.empty(0),
    )  # fmt: skip
    last = torch.stack([resid[-1, recording.path(i)[-1]] for i in range(len(prompts))])
    recording.delta = read_out(parts, last, encoded)[0].cpu().numpy()
    return recording


def check(source: Recording, target: Recording, positions: str, mode: str) -> None:
    for kind, value, known in (("positions", positions, POSITIONS), ("mode", mode, MODES)):
        if value not in known:
            raise choice(kind, value, known)
    same = source.encoded == target.encoded and source.z.shape == target.z.shape
    if not same:
        raise RewiredError(
            "The source and the target of a patch were not recorded on the same prompts and labels with models of the "
            "same shape, so their positions do not match. Record both with the same prompts and tokenizer."
        )


def patch_of(component: Component, values: dict[str, torch.Tensor], mode: str) -> Patch:
    """The patch that gives a component its activation in ``values``."""
    layer, head = component.layer, component.head
    if component.kind == "head":
        z = values["z"][layer][:, head]
        if mode == "input":
            return Patch("z", layer, head, z)
        return Patch("head_out", layer, head, z @ values["w_o"][layer, head])
    if component.kind == "resid":
        return Patch("resid_post", layer, -1, values["resid"][layer + 1])
    site = f"{component.kind}_out"
    return Patch(site, layer, -1, values[site][layer])


def patched_deltas(parts: Anatomy, tree: Tree, target: Recording, rows, start: int, positions: str) -> np.ndarray:
    """delta of patched rows, [row, prompt of the tree], in batches that fit the budget."""
    size = max(1, BUDGET[parts.device.type] // len(tree.leaf if positions == "decision" else tree.depth_of))
    base, encoded, found = target.at(tree.nodes), target.encoded.pick(tree.prompts), []
    for a in range(0, len(rows), size):
        hidden = run(parts, tree, base, rows[a : a + size], start, positions == "decision")
        found.append(read_out(parts, hidden, encoded)[0].cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, len(tree.prompts)))
