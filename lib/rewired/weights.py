"""What training wrote into the weights: the size, the direction and the subspaces of low-rank updates.

LoRA replaces a weight matrix W by W + U, U = scale · B A, with B [out, rank] and A [rank, in]. The two factors mean
nothing by themselves: (B M)(M⁻¹ A) is the same update for every invertible M. So everything here is about the product,
and none of it forms U, which has as many numbers as W. Small Gram matrices do, B₁ᵀB₂ and A₁A₂ᵀ [rank, rank]:

    <U₁, U₂> = trace(U₁ᵀ U₂) = scale₁ scale₂ · sum((B₁ᵀ B₂) * (A₁ A₂ᵀ)).

How alike should two runs be that learnt the same? Not very. A starts at random and moves little, and B starts at zero.
After small steps the update is the desired change projected onto the rows of A. Two runs that want the *same* change
have different random A, so their updates have a cosine of about rank / in. A cosine needs that yardstick.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy.linalg import orth

from rewired.errors import RewiredError
from rewired.train.lora import ATTENTION, MLP  # noqa: F401 (for its callers)


@dataclass(frozen=True, eq=False)
class Update:
    """One module's update, scale · B A, as its factors."""

    B: torch.Tensor  # [out, rank]
    A: torch.Tensor  # [rank, in]
    scale: float

    def part(self, rows: slice = slice(None), columns: slice = slice(None)) -> "Update":
        """The update of some of the module's outputs (``rows``) and inputs (``columns``)."""
        return replace(self, B=self.B[rows], A=self.A[:, columns])

    @property
    def norm(self) -> float:
        """Frobenius norm of the product."""
        return max(inner(self, self), 0.0) ** 0.5

    @cached_property
    def reads(self) -> np.ndarray:
        """Orthonormal basis [in, rank] of the input directions that the update depends on (the rows of A)."""
        return orth(self.A.double().T.cpu().numpy())

    @cached_property
    def writes(self) -> np.ndarray:
        """Orthonormal basis [out, rank] of the output directions that the update can change (the columns of B)."""
        return orth(self.B.double().cpu().numpy())


Updates = Mapping[tuple[int, str], Update]
"""{(layer, module): update} of one run; empty for the base."""


def inner(a: Update, b: Update) -> float:
    """<U_a, U_b>, the sum of the products of their entries, in fp64."""
    B = a.B.double().T @ b.B.double()  # [rank of a, rank of b]
    A = a.A.double() @ b.A.double().T  # [rank of a, rank of b]
    return a.scale * b.scale * (B * A).sum().item()


def updates(model) -> dict[tuple[int, str], Update]:
    """The updates of the adapter that is switched on in ``model``; none for the base. Raises RewiredError for an
    adapter that is more than scale · B A (DoRA, a bias, two at once), or that sits outside the numbered layers."""
    by_module = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A") or module.disable_adapters:
            continue
        active = [adapter for adapter in module.active_adapters if adapter in module.lora_A]
        place = re.search(r"layers\.(\d+)\.(?:.*\.)?(\w+)$", name)
        plain = len(active) == 1 and not module.use_dora.get(active[0]) and not module.lora_bias.get(active[0])
        if not (place and plain):
            raise RewiredError(
                f"The module {name} has the adapters {active}; the weights chapter knows one plain LoRA adapter (no "
                "DoRA, no bias) on the linear layers of a decoder. Train with the profile's defaults of `training`."
            )
        (adapter,) = active
        A = module.lora_A[adapter].weight.detach()  # [rank, in]
        B = module.lora_B[adapter].weight.detach()  # [out, rank]
        by_module[int(place[1]), place[2]] = Update(B, A, module.scaling[adapter])
    return by_module


def of_variant(variants, name: str, seed: int) -> dict[tuple[int, str], Update]:
    """The updates of a run of a `models.Variants`."""
    with variants.variant(name, seed) as model:
        return updates(model)


def weight_of(model, layer: int, module: str) -> torch.Tensor:
    """The weight matrix [out, in] beneath a module's update, without the adapter."""
    block = model.get_decoder().layers[layer]
    parent = block.self_attn if module in ATTENTION else block.mlp
    return getattr(parent, module).weight


def norms(run: Updates, model) -> pd.DataFrame:
    """One row per module: layer, module, ``norm`` of its update, ``base`` of the matrix beneath, and ``relative``."""
    rows = []
    for (layer, module), update in run.items():
        base = torch.linalg.matrix_norm(weight_of(model, layer, module).detach().float()).item()
        rows.append((layer, module, update.norm, base, update.norm / base if base else float("nan")))
    return pd.DataFrame(rows, columns=["layer", "module", "norm", "base", "relative"])


def total(a: Updates, b: Updates | None = None) -> float:
    """<a, b> of two runs as long vectors of all their entries; with one argument the squared norm of a."""
    b = a if b is None else b
    return sum(inner(a[key], b[key]) for key in a if key in b)


def distance(a: Updates, b: Updates) -> float:
    """Frobenius norm of the difference of two runs' updates: of their weights, since the base beneath is the same."""
    return max(total(a) + total(b) - 2 * total(a, b), 0.0) ** 0.5


def shared(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(share, angle) of two subspaces, given by orthonormal bases [width, rank]. The singular values of aᵀb are the
    cosines of the principal angles (Björck and Golub 1973). ``share`` is the mean of their squares: 1 if one space
    contains the other, on average rank / width for two random ones. ``angle`` is the smallest, in degrees. NaN for
    an update that is zero."""
    if not a.shape[1] or not b.shape[1]:
        return float("nan"), float("nan")
    cosines = np.linalg.svd(a.T @ b, compute_uv=False).clip(0, 1)  # [smaller rank], descending
    return float((cosines**2).mean()), float(np.degrees(np.arccos(cosines[0])))


def similarity(a: Updates, b: Updates) -> pd.DataFrame:
    """One row per module of two runs: layer, module, ``inner``, ``norm_a``, ``norm_b``, ``cosine`` of the updates.
    For the directions they read and write: the shared part (``reads``, ``writes``), the smallest principal angle
    (``reads_angle`` …) and what random spaces share (``reads_chance`` …). Raises RewiredError for other modules."""
    if a.keys() != b.keys():
        odd = ", ".join(f"layer {layer} {module}" for layer, module in sorted(a.keys() ^ b.keys())[:3])
        raise RewiredError(
            f"The two runs change different modules ({odd} in one only), so their updates cannot be compared. "
            "Compare runs that were trained with the same settings."
        )
    rows = []
    for (layer, module), u in a.items():
        v = b[layer, module]
        product, lengths = inner(u, v), u.norm * v.norm
        row = {"layer": layer, "module": module, "inner": product, "norm_a": u.norm, "norm_b": v.norm}
        row["cosine"] = product / lengths if lengths else float("nan")
        for side, mine, other in (("reads", u.reads, v.reads), ("writes", u.writes, v.writes)):
            row[side], row[f"{side}_angle"] = shared(mine, other)
            row[f"{side}_chance"] = max(mine.shape[1], other.shape[1]) / len(mine)
        rows.append(row)
    return pd.DataFrame(rows)
