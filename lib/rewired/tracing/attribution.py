"""Direct logit attribution: how much of the decision did each head and each MLP add, directly?

At the decision step the residual stream is a sum: the embedding plus what every head and every MLP added. The final
norm divides the sum by one number; with that number frozen at its value in this forward pass, delta_raw is linear in
the sum and falls apart into one contribution per component. Gemma's post-sublayer norms are treated alike: what head h
adds is its own output through the norm, at the scale that the sum of all heads had. So, with
r(v) = 1 / sqrt(mean(v²) + eps),

    u       = (W_U[defect] - W_U[cooperate]) · w_final · r(final residual)
    embed   = embedding · u
    head    = (z_h W_O) · w_post_attention · r(sum over heads) · u      (and so is a bias of o_proj, as one more head)
    mlp     = mlp_out · w_post_feedforward · r(mlp_out) · u

The contributions add up to delta_raw. The soft-cap is one function of the two logits; multiplying each contribution by
delta / delta_raw (its mean slope between them) makes them add up to delta.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from rewired.answers import softcap
from rewired.errors import RewiredError
from rewired.prompts import Labels, Prompt
from rewired.tracing.anatomy import Anatomy, anatomy
from rewired.tracing.capture import capture, encode, label_logits

SITES = ("resid_pre", "z", "attn_out", "mlp_out", "resid_final")


def frozen(norm, value: torch.Tensor) -> torch.Tensor:
    """The vector that an RMS norm multiplies ``value`` [..., width] by: its weight over the root mean square, fp64."""
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0))  # Gemma, Llama
    ones = torch.ones(value.shape[-1], device=value.device)  # norm(1) is the weight (Gemma: 1 + weight) but for eps
    weight = norm(ones).double() * (1 + eps) ** 0.5  # [width]
    return weight * torch.rsqrt(value.double().pow(2).mean(-1, keepdim=True) + eps)


def head_outputs(o_proj, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(outputs, bias): what ``o_proj``, adapter included, makes of each head alone, from z [..., head, head_dim]:
    [..., head, d_model]; and the bias [d_model] that it adds once to their sum (0 in most models)."""
    heads = z.shape[-2]
    mask = torch.eye(heads, device=z.device, dtype=z.dtype)[:, :, None]  # [kept head, head, 1]
    alone = mask * z[..., None, :, :]  # [..., kept head, head, head_dim]: all other heads are 0
    bias = o_proj(z.new_zeros(alone.shape[-2:]).flatten())
    return o_proj(alone.flatten(-2)) - bias, bias


@torch.no_grad()
def contributions(
    model, tokenizer, prompts: Sequence[Prompt], labels: Labels | Sequence[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(contributions, closure).

    The first has one row per prompt and component: prompt_id, scenario, component (``embed``, ``L3H0``, ``L3_MLP``;
    ``L3_BIAS`` where o_proj has one), kind, layer, head (-1 where there is none), ``raw`` (its share of delta_raw, in
    logits; positive = toward defection) and ``contribution`` (its share of delta). ``closure`` has one row per prompt:
    ``delta``, ``delta_raw``, the sum of the raw contributions ``total``, ``error`` = total - delta_raw, and ``scale``,
    the final norm's r: dividing raw by it takes out what a change of its scale does to all contributions alike."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    steps = [[step] for step in encoded.steps]
    recorded = capture(model, encoded.rows, SITES, steps)  # one read per prompt
    final = recorded["resid_final"][0]  # [prompt, d_model]
    cooperate, defect = label_logits(parts, final, encoded)  # each [prompt]
    raw = defect - cooperate
    delta = softcap(defect, parts.cap) - softcap(cooperate, parts.cap)
    slope = torch.where(raw.abs() > 1e-9, delta / raw, _tangent(parts.cap, defect))  # [prompt]
    directions = parts.unembedding[list(encoded.defect)].double() - parts.unembedding[list(encoded.cooperate)].double()
    shares = _shares(parts, recorded, directions * frozen(parts.decoder.norm, final))
    frames = []
    for (component, kind, layer, head), share in shares.items():
        frame = encoded.frame().assign(component=component, kind=kind, layer=layer, head=head)
        frames.append(frame.assign(raw=share.cpu().numpy(), contribution=(share * slope).cpu().numpy()))
    total = torch.stack(list(shares.values())).sum(0)  # [prompt]
    allowed = 10 * parts.exact * torch.stack(label_logits(parts, final, encoded, terms=True)).amax(0).clamp(min=5)
    if not ((total - raw).abs() <= allowed).all():  # NaN as well
        raise RewiredError(
            f"Attribution does not add up: shares miss their difference of logits by {(total - raw).abs().max():.3g}. "
            "This model computes something else than RMS norms of a sum of heads and MLPs, perhaps LayerNorm."
        )
    scale = torch.rsqrt(final.double().pow(2).mean(-1))  # [prompt]
    closure = encoded.frame()
    sums = {"delta": delta, "delta_raw": raw, "total": total, "error": total - raw, "scale": scale}
    for column, value in sums.items():
        closure[column] = value.cpu().numpy()
    return pd.concat(frames, ignore_index=True), closure


def _tangent(cap: float | None, logit: torch.Tensor) -> torch.Tensor:
    """The soft-cap's slope at a logit: what delta / delta_raw tends to where the two logits are equal."""
    return 1 - torch.tanh(logit / cap) ** 2 if cap else torch.ones_like(logit)


def _shares(parts: Anatomy, recorded: dict[str, torch.Tensor], u: torch.Tensor) -> dict[tuple, torch.Tensor]:
    """{(component, kind, layer, head): its share of delta_raw [prompt]}, fp64."""
    embedding = recorded["resid_pre"][0].double()  # [prompt, d_model]
    shares = {("embed", "embed", -1, -1): (embedding * u).sum(-1)}
    for layer, block in enumerate(parts.decoder.layers):
        attention, mlp = recorded["attn_out"][layer], recorded["mlp_out"][layer]  # each [prompt, d_model]
        toward_attention, toward_mlp = u, u  # what u is before the post-sublayer norm: [prompt, d_model]
        if parts.sandwich:
            toward_attention = frozen(block.post_attention_layernorm, attention) * u
            toward_mlp = frozen(block.post_feedforward_layernorm, mlp) * u
        outputs, bias = head_outputs(block.self_attn.o_proj, recorded["z"][layer])  # [prompt, head, d_model]
        heads = (outputs.double() * toward_attention[:, None]).sum(-1)  # [prompt, head]
        for head in range(parts.heads):
            shares[f"L{layer}H{head}", "head", layer, head] = heads[:, head]
        if bias.any():
            shares[f"L{layer}_BIAS", "bias", layer, -1] = (bias.double() * toward_attention).sum(-1)
        shares[f"L{layer}_MLP", "mlp", layer, -1] = (mlp.double() * toward_mlp).sum(-1)
    return shares
