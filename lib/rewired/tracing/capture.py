"""Where things are in a decoder, and a record of what passed there.

The *residual stream* is the running sum that every layer reads and adds to. The named sites of a layer, in the order
in which they are computed:

``resid_pre``    the residual stream that enters the layer
``z``            what the heads have gathered: the input of ``o_proj``, one slice of ``head_dim`` numbers per head
``attn_out``     the attention layer's output, ``o_proj(z)``
``attn_add``     what attention adds to the residual stream: ``attn_out`` after Gemma's post-attention norm
``mlp_out``      the MLP's output
``mlp_add``      what the MLP adds to the residual stream: ``mlp_out`` after Gemma's post-feedforward norm

and, once, ``resid_final``: the residual stream after the last layer, before the final norm. Decoders without
post-sublayer norms (Llama, Qwen) add what they compute; there ``attn_add`` is ``attn_out``, ``mlp_add`` is ``mlp_out``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from nnsight import NNsight

from rewired.decisions import decision_step
from rewired.errors import RewiredError, choice
from rewired.prompts import Labels, Prompt, chat

SITES = ("resid_pre", "z", "attn_out", "attn_add", "mlp_out", "mlp_add", "resid_final")
BATCH_SIZE = 16


# --- the parts of a decoder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model that this package reads and edits."""

    decoder: torch.nn.Module  # embedding, layers, final norm
    unembedding: torch.Tensor  # [vocabulary, d_model]
    heads: int
    kv_heads: int
    head_dim: int
    sandwich: bool  # Gemma: a norm after attention and after the MLP as well
    cap: float | None  # of the final logits

    @cached_property
    def view(self) -> NNsight:
        """nnsight's view of the decoder: made once, since it walks every module."""
        return NNsight(self.decoder)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.decoder.layers)

    @property
    def device(self) -> torch.device:
        return self.unembedding.device

    @property
    def exact(self) -> float:
        """How far two ways to compute one delta may lie apart: 5e-6 in fp32, a tenth in half precision."""
        return 5e-6 if self.unembedding.dtype in (torch.float32, torch.float64) else 0.1


def anatomy(model) -> Anatomy:
    """The parts of ``model`` (or of the model in a PEFT wrapper). Raises RewiredError unless it is a decoder of the
    usual pattern: norm, attention, norm, MLP, each added to the residual stream (Gemma-2 and -3, Llama, Qwen)."""
    if isinstance(model, Anatomy):
        return model
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    why = _unusual(network)
    if why:
        raise RewiredError(
            f"The inside of {type(network).__name__} cannot be traced: {why}. `rewired.tracing` knows decoders made of "
            "norm, attention, norm and MLP, each added to the residual stream: Gemma-2, Gemma-3 (text), Llama, Qwen."
        )
    decoder, unembedding = network.get_decoder(), network.get_output_embeddings().weight
    attention = decoder.layers[0].self_attn
    return Anatomy(
        decoder=decoder,
        unembedding=unembedding,
        heads=decoder.config.num_attention_heads,
        kv_heads=decoder.config.num_key_value_heads,
        head_dim=attention.head_dim,
        sandwich=hasattr(decoder.layers[0], "pre_feedforward_layernorm"),
        cap=getattr(decoder.config, "final_logit_softcapping", None),
    )


_USUAL = {
    "": ({"embed_tokens", "layers", "norm", "rotary_emb"}, set()),
    "layer": (
        {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
        {"pre_feedforward_layernorm", "post_feedforward_layernorm"},
    ),
    "self_attn": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}),
    "mlp": ({"gate_proj", "up_proj", "down_proj"}, set()),
}
_MULTIPLIERS = ("residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale")


def _unusual(network) -> str | None:
    """What makes this model one we do not know, in words; None if nothing does."""
    try:
        decoder, head = network.get_decoder(), network.get_output_embeddings()
        layers = list(decoder.layers)
    except (AttributeError, TypeError):
        return "it has no decoder with a list of layers"
    parts = [("", decoder)] + [("layer", layer) for layer in layers]
    for kind in ("self_attn", "mlp"):
        parts += [(kind, getattr(layer, kind)) for layer in layers if hasattr(layer, kind)]
    for kind, module in parts:
        required, optional = _USUAL[kind]
        lacking = required - {name for name, _ in module.named_children()}
        extra = {name for name, part in module.named_children() if any(True for _ in part.parameters())}
        extra -= required | optional
        if lacking or extra:
            told = [f"lacks {', '.join(sorted(lacking))}"] * bool(lacking)
            told += [f"has {', '.join(sorted(extra))} besides"] * bool(extra)
            return f"its {type(module).__name__} {' and '.join(told)}"
    odd = [name for name in _MULTIPLIERS if getattr(decoder.config, name, 1.0) not in (None, 1.0)]
    if odd:
        return f"its config sets {odd[0]}"
    return "its unembedding has a bias" if head.bias is not None else None


def locate(decoder, sandwich: bool, site: str, layer: int):
    """(module, ``"input"`` or ``"output"``) of a site, in a decoder or in nnsight's view of one."""
    if site == "resid_final":
        return decoder.norm, "input"
    block = decoder.layers[layer]
    if site == "resid_pre":
        return block, "input"
    if site in ("z", "attn_out") or (site == "attn_add" and not sandwich):
        return block.self_attn.o_proj, "input" if site == "z" else "output"
    if site == "mlp_out" or not sandwich:
        return block.mlp, "output"
    return (block.post_attention_layernorm if site == "attn_add" else block.post_feedforward_layernorm), "output"


def chosen_layers(parts: Anatomy, layers: Sequence[int] | None) -> list[int]:
    """``layers``, or all of them. Raises RewiredError for a layer that the model does not have."""
    layers = list(range(parts.depth)) if layers is None else list(layers)
    for layer in layers:
        if layer not in range(parts.depth):
            raise RewiredError(f"There is no layer {layer!r}: the model's layers are 0 to {parts.depth - 1}.")
    return layers


# --- prompts as rows of tokens ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Prompts as token rows that end at the decision step, and the two tokens compared there."""

    prompts: tuple[Prompt, ...]
    rows: tuple[tuple[int, ...], ...]  # prompt and shared label prefix; the last position is the decision step
    ends: tuple[int, ...]  # the prompt's own last position
    cooperate: tuple[int, ...]
    defect: tuple[int, ...]

    def pick(self, indices: Sequence[int]) -> "Encoded":
        """Some of the prompts."""
        fields = (self.prompts, self.rows, self.ends, self.cooperate, self.defect)
        return Encoded(*(tuple(field[i] for i in indices) for field in fields))

    def frame(self) -> pd.DataFrame:
        """prompt_id and scenario, one row per prompt."""
        return pd.DataFrame({"prompt_id": [p.id for p in self.prompts], "scenario": [p.scenario for p in self.prompts]})


def encode(tokenizer, prompts: Sequence[Prompt], labels: Labels | Sequence[str] | None = None) -> Encoded:
    """Prompts as rows of tokens. ``labels`` asks about another pair than the one each prompt uses. Raises RewiredError
    for a pair that is not a shared prefix plus one token, and for no prompts at all."""
    if not prompts:
        raise RewiredError("There are no prompts to trace. Give at least one, for example from prompts.scenario_set().")
    steps = [decision_step(tokenizer, labels or prompt.labels) for prompt in prompts]
    chats = [chat(tokenizer, prompt) for prompt in prompts]
    return Encoded(
        prompts=tuple(prompts),
        rows=tuple((*ids, *step.prefix_ids) for ids, step in zip(chats, steps, strict=True)),
        ends=tuple(len(ids) - 1 for ids in chats),
        cooperate=tuple(step.cooperate_id for step in steps),
        defect=tuple(step.defect_id for step in steps),
    )


def read_out(parts: Anatomy, hidden: torch.Tensor, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """(delta, delta_raw) of residual streams before the final norm, [..., prompt, d_model] -> [..., prompt] in fp64.

    Two rows of the unembedding are read, never the vocabulary, and in high precision: half-precision logits are spaced
    as widely as the effects we look for."""
    normed = parts.decoder.norm(hidden.float()).double()
    ids = [torch.tensor(ids, device=parts.device) for ids in (encoded.cooperate, encoded.defect)]
    cooperate, defect = ((normed * parts.unembedding[i].double()).sum(-1) for i in ids)
    raw = defect - cooperate
    if parts.cap is None:
        return raw, raw
    return parts.cap * (torch.tanh(defect / parts.cap) - torch.tanh(cooperate / parts.cap)), raw


# --- recording -------------------------------------------------------------------------------------------------------


def batches(rows: Sequence[Sequence[int]], size: int, device) -> list[tuple[list[int], torch.Tensor]]:
    """(indices, tokens) of batches of rows of similar length, padded on the right: no position shifts, and causality
    hides the padding, so no mask is needed."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = []
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        ids = torch.zeros(len(indices), len(rows[indices[-1]]), dtype=torch.long)
        for r, i in enumerate(indices):
            ids[r, : len(rows[i])] = torch.tensor(rows[i])
        found.append((indices, ids.to(device)))
    return found


def reads(positions: Sequence[Sequence[int]], indices: Sequence[int], device) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) index tensors of the positions wanted from the rows of a batch."""
    row = torch.tensor([r for r, i in enumerate(indices) for _ in positions[i]], device=device, dtype=torch.long)
    return row, torch.tensor([p for i in indices for p in positions[i]], device=device, dtype=torch.long)


@torch.no_grad()
def capture(
    model,
    rows: Sequence[Sequence[int]],
    sites: Sequence[str] = SITES,
    layers: Sequence[int] | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, torch.Tensor]:
    """Activations of token rows at named sites: {site: [layer, read, width]}, ``z`` as [layer, read, head, head_dim],
    ``resid_final`` as [1, read, d_model], in the model's precision.

    ``positions`` lists the positions to read from each row (default: all); reads are in the order of rows, then of
    positions. Raises RewiredError for an unknown site or layer, a position outside its row, an unknown model."""
    parts = anatomy(model)
    layers = chosen_layers(parts, layers)
    for site in sites:
        if site not in SITES:
            raise choice("site", site, SITES)
    positions = positions or [range(len(row)) for row in rows]
    for i, (row, wanted) in enumerate(zip(rows, positions, strict=True)):
        if any(p not in range(len(row)) for p in wanted):
            raise RewiredError(f"Row {i} has positions 0 to {len(row) - 1}, and {list(wanted)} were asked for.")
    first = torch.tensor([0, *(len(wanted) for wanted in positions)]).cumsum(0).tolist()  # where a row's reads begin
    inner = [(site, layer) for layer in sorted(layers) for site in SITES[:-1] if site in sites]
    inner += [("resid_final", 0)] * ("resid_final" in sites)
    found: dict[str, list[list]] = {site: [[None] * len(rows) for _ in layers] for site in sites}
    for indices, ids in batches(rows, batch_size, parts.device):
        values = _trace(parts, ids, inner, *reads(positions, indices, parts.device))
        for (site, layer), value in zip(inner, values, strict=True):
            pieces = value.split([first[i + 1] - first[i] for i in indices])
            for i, piece in zip(indices, pieces, strict=True):
                found[site][layers.index(layer) if site != "resid_final" else 0][i] = piece
    stacked = {}
    for site, per_layer in found.items():
        kept = per_layer[:1] if site == "resid_final" else per_layer
        stacked[site] = torch.stack([torch.cat(pieces) for pieces in kept])
    if "z" in stacked:
        stacked["z"] = stacked["z"].unflatten(-1, (parts.heads, parts.head_dim))
    return stacked


def _trace(parts: Anatomy, ids, inner, row, column) -> list[torch.Tensor]:
    """The values of (site, layer) pairs, given in the order of execution, at [row, column]: each [read, width]."""
    net, values = parts.view, []
    with net.trace(input_ids=ids, use_cache=False):
        for site, layer in inner:
            module, side = locate(net, parts.sandwich, site, layer)
            values.append(getattr(module, side)[row, column].save())
    return values
