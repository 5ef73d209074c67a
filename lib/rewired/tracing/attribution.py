"""Direct logit attribution: how much of the decision did each head and each MLP add, directly?

At the decision step the residual stream is a sum: the embedding plus what every head and every MLP added. The final
norm divides the sum by one number; with that number frozen at its value in this run, delta_raw is linear in the sum and
falls apart into one term per component. Gemma's post-sublayer norms are treated alike: what head h adds is its own
output through the norm, at the scale that the sum of all heads had. So, with r(v) = 1 / sqrt(mean(v²) + eps),

    u       = (W_U[defect] - W_U[cooperate]) · w_final · r(final residual)
    embed   = embedding · u
    head    = (z_h W_O) · w_post_attention · r(sum over heads) · u
    mlp     = mlp_out · w_post_feedforward · r(mlp_out) · u

The terms add up to delta_raw. The soft-cap is one function of the two logits; multiplying each term by
delta / delta_raw (its mean slope between them) makes them add up to delta.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from rewired.errors import RewiredError
from rewired.prompts import Labels, Prompt
from rewired.tracing.capture import BATCH_SIZE, Anatomy, anatomy, capture, encode, read_out


def frozen(norm, value: torch.Tensor) -> torch.Tensor:
    """The vector that an RMS norm multiplies ``value`` [..., width] by: its weight over the root mean square, fp64."""
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0.0)
    ones = torch.ones(value.shape[-1], device=value.device)  # norm(1) is the weight (Gemma: 1 + weight) but for eps
    weight = norm(ones).double() * (1 + eps) ** 0.5
    return weight * torch.rsqrt(value.double().pow(2).mean(-1, keepdim=True) + eps)


def head_outputs(o_proj, z: torch.Tensor) -> torch.Tensor:
    """What ``o_proj``, adapter included, makes of each head alone: z [..., head, head_dim] -> [..., head, d_model]."""
    heads = z.shape[-2]
    alone = torch.eye(heads, device=z.device, dtype=z.dtype)[:, :, None] * z[..., None, :, :]
    return o_proj(alone.flatten(-2))


@torch.no_grad()
def terms(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    labels: Labels | Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(terms, closure).

    ``terms`` has one row per prompt and component: prompt_id, scenario, component (``embed``, ``L3H0``, ``L3_MLP``),
    kind, layer, head (-1 where there is none), ``raw`` (its share of delta_raw, in logits; positive = toward defection)
    and ``contribution`` (its share of delta). ``closure`` has one row per prompt: ``delta``, ``delta_raw``, the sum of
    the raw terms ``total``, ``error`` = total - delta_raw, and ``scale``, the final norm's r: dividing raw by it takes
    out what a change of the norm's scale does to all terms alike."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    if any(layer.self_attn.o_proj.bias is not None for layer in parts.decoder.layers):
        raise RewiredError("Attribution shares out a sum of heads and MLPs, and this model's o_proj has a bias too.")
    steps = [[len(row) - 1] for row in encoded.rows]
    sites = ("resid_pre", "z", "attn_out", "mlp_out", "resid_final")
    found = capture(model, encoded.rows, sites, None, steps, batch_size)
    delta, raw = read_out(parts, found["resid_final"][0], encoded)
    slope = torch.where(raw.abs() > 1e-9, delta / raw, _slope(parts, found["resid_final"][0], encoded))
    shares = _terms(parts, found, _direction(parts, found["resid_final"][0], encoded))
    frames = []
    for (name, kind, layer, head), value in shares.items():
        about = {"component": name, "kind": kind, "layer": layer, "head": head}
        frames.append(
            encoded.frame().assign(**about, raw=value.cpu().numpy(), contribution=(value * slope).cpu().numpy())
        )
    total = torch.stack(list(shares.values())).sum(0)
    scale = torch.rsqrt(found["resid_final"][0].double().pow(2).mean(-1))
    closure = {"delta": delta, "delta_raw": raw, "total": total, "error": total - raw, "scale": scale}
    closed = encoded.frame().assign(**{name: value.cpu().numpy() for name, value in closure.items()})
    return pd.concat(frames, ignore_index=True), closed


def _direction(parts: Anatomy, final: torch.Tensor, encoded) -> torch.Tensor:
    """u [prompt, d_model], fp64."""
    defect, cooperate = (parts.unembedding[list(ids)].double() for ids in (encoded.defect, encoded.cooperate))
    return (defect - cooperate) * frozen(parts.decoder.norm, final)


def _slope(parts: Anatomy, final: torch.Tensor, encoded) -> torch.Tensor:
    """The cap's slope at the two logits' common value, for prompts where they are equal: [prompt]."""
    if parts.cap is None:
        return torch.ones(len(final), device=parts.device, dtype=torch.float64)
    logit = (parts.decoder.norm(final.float()).double() * parts.unembedding[list(encoded.defect)].double()).sum(-1)
    return 1 - torch.tanh(logit / parts.cap) ** 2


def _terms(parts: Anatomy, found: dict[str, torch.Tensor], u: torch.Tensor) -> dict[tuple, torch.Tensor]:
    """{(component, kind, layer, head): [prompt]}, fp64."""
    terms = {("embed", "embed", -1, -1): (found["resid_pre"][0].double() * u).sum(-1)}
    for layer, block in enumerate(parts.decoder.layers):
        attention, mlp = found["attn_out"][layer], found["mlp_out"][layer]
        after = frozen(block.post_attention_layernorm, attention) * u if parts.sandwich else u
        heads = (head_outputs(block.self_attn.o_proj, found["z"][layer]).double() * after[:, None]).sum(-1)
        for head in range(parts.heads):
            terms[f"L{layer}H{head}", "head", layer, head] = heads[:, head]
        after = frozen(block.post_feedforward_layernorm, mlp) * u if parts.sandwich else u
        terms[f"L{layer}_MLP", "mlp", layer, -1] = (mlp.double() * after).sum(-1)
    return terms
