"""What training wrote into the weights: the size, the direction and the subspaces of low-rank updates.

LoRA replaces a weight matrix W by W + scale · B A, with B [out, rank] and A [rank, in]. The two factors mean nothing by
themselves: (B M)(M⁻¹ A) is the same update for every invertible M. So everything here is about the product

    U = scale · B A        its Frobenius norm, inner products and cosines with other updates, the directions it reads
                           (rows of A) and the directions it writes (columns of B)

None of it forms U, which has as many numbers as W. Small Gram matrices do, B₁ᵀB₂ and A₁A₂ᵀ [rank, rank]:

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

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class Update:
    """One module's update, scale · B A, as its factors."""

    B: torch.Tensor  # [out, rank]
    A: torch.Tensor  # [rank, in]
    scale: float

    def part(self, rows: slice = slice(None), columns: slice = slice(None)) -> "Update":
        """The update of some outputs (``rows``) and some inputs (``columns``) of the module: one head's, say."""
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
    """The updates of the adapter that is switched on in ``model`` (see `models.Variants.variant`); none for the base.

    Raises RewiredError for an adapter that is more than scale · B A (DoRA, a bias, two adapters at once), or that sits
    outside the numbered layers."""
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
                "DoRA, no bias) on the linear layers of a decoder. Train with the defaults of `training` in the profile."
            )
        (adapter,) = active
        A = module.lora_A[adapter].weight.detach()  # [rank, in]
        B = module.lora_B[adapter].weight.detach()  # [out, rank]
        by_module[int(place[1]), place[2]] = Update(B, A, module.scaling[adapter])
    return by_module


def of_variant(variants, name: str, seed: int) -> dict[tuple[int, str], Update]:
    """The updates of a run of a `models.Variants`. Raises RewiredError as `models.Variants.variant` does."""
    with variants.variant(name, seed) as model:
        return updates(model)


# --- size ------------------------------------------------------------------------------------------------------------


def weight_of(model, layer: int, module: str) -> torch.Tensor:
    """The weight matrix [out, in] beneath a module's update, without the adapter."""
    block = model.get_decoder().layers[layer]
    parent = block.self_attn if module in ATTENTION else block.mlp
    return getattr(parent, module).weight


def norms(run: Updates, model) -> pd.DataFrame:
    """One row per module: layer, module, ``norm`` of its update, ``base``, the norm of the weight matrix beneath, and
    ``relative``, the one over the other."""
    rows = []
    for (layer, module), update in run.items():
        base = torch.linalg.matrix_norm(weight_of(model, layer, module).detach().float()).item()
        rows.append((layer, module, update.norm, base, update.norm / base))
    return pd.DataFrame(rows, columns=["layer", "module", "norm", "base", "relative"])


def by_component(run: Updates, heads: int, kv_heads: int) -> dict[str, dict[tuple[int, str], Update]]:
    """{component: its updates}. ``L3_MLP`` and ``L3_ATTN`` own their modules' whole updates. A head, ``L3H0``, owns
    the slices that it uses: its rows of ``q_proj``, its columns of ``o_proj``, and the rows of ``k_proj`` and
    ``v_proj`` of its KV head, which the heads of a group share."""
    components: dict[str, dict[tuple[int, str], Update]] = {}
    for (layer, module), update in run.items():
        kind = "ATTN" if module in ATTENTION else "MLP"
        components.setdefault(f"L{layer}_{kind}", {})[layer, module] = update
        if kind == "MLP":
            continue
        for head in range(heads):
            part = _of_head(update, module, head, heads, kv_heads)
            components.setdefault(f"L{layer}H{head}", {})[layer, module] = part
    return components


def _of_head(update: Update, module: str, head: int, heads: int, kv_heads: int) -> Update:
    """The slice of an attention module's update that one head uses."""
    if module == "o_proj":  # a head's output enters through its columns
        width = update.A.shape[1] // heads
        return update.part(columns=slice(head * width, (head + 1) * width))
    count, index = heads, head
    if module in ("k_proj", "v_proj"):  # the heads of a group read one KV head
        count, index = kv_heads, head * kv_heads // heads
    width = update.B.shape[0] // count
    return update.part(rows=slice(index * width, (index + 1) * width))


def total(a: Updates, b: Updates | None = None) -> float:
    """<a, b> over the modules that both change; with one argument the squared norm of a. As one long vector of all
    their entries: the norm is total(a) ** 0.5, the cosine total(a, b) / (total(a) * total(b)) ** 0.5."""
    b = a if b is None else b
    return sum(inner(a[key], b[key]) for key in a if key in b)


def distance(a: Updates, b: Updates) -> float:
    """Frobenius norm of the difference of two runs' updates: of their weights, since the base beneath is the same."""
    return max(total(a) + total(b) - 2 * total(a, b), 0.0) ** 0.5


# --- similarity ------------------------------------------------------------------------------------------------------


def shared(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(share, angle) of two subspaces, given by orthonormal bases [width, rank].

    The singular values of aᵀb are the cosines of the principal angles (Björck and Golub 1973). ``share`` is the mean of
    their squares over the smaller rank: 1 if one space contains the other, and on average rank / width for two random
    spaces of one rank. ``angle`` is the smallest principal angle in degrees. NaN for an update that is zero."""
    if not a.shape[1] or not b.shape[1]:
        return float("nan"), float("nan")
    cosines = np.linalg.svd(a.T @ b, compute_uv=False).clip(0, 1)  # [smaller rank], descending
    return float((cosines**2).mean()), float(np.degrees(np.arccos(cosines[0])))


def similarity(a: Updates, b: Updates) -> pd.DataFrame:
    """One row per module of two runs: layer, module, ``inner``, ``norm_a``, ``norm_b``, ``cosine`` of the updates.
    For the directions they read and write: ``reads``, ``writes`` (the shared part), ``reads_angle``, ``writes_angle``
    (the smallest principal angle) and ``reads_chance``, ``writes_chance`` (the part that random spaces share).

    Raises RewiredError for runs whose adapters sit on different modules."""
    if a.keys() != b.keys():
        odd = ", ".join(f"layer {layer} {module}" for layer, module in sorted(a.keys() ^ b.keys())[:3])
        raise RewiredError(
            f"The two runs change different modules ({odd} in one only), so their updates cannot be compared. Compare "
            "runs that were trained with the same settings."
        )
    rows = []
    for (layer, module), u in a.items():
        v = b[layer, module]
        row = {"layer": layer, "module": module, "inner": inner(u, v), "norm_a": u.norm, "norm_b": v.norm}
        lengths = u.norm * v.norm
        row["cosine"] = row["inner"] / lengths if lengths else float("nan")
        for side, mine, other in (("reads", u.reads, v.reads), ("writes", u.writes, v.writes)):
            row[side], row[f"{side}_angle"] = shared(mine, other)
            row[f"{side}_chance"] = max(mine.shape[1], other.shape[1]) / len(mine)
        rows.append(row)
    return pd.DataFrame(rows)
