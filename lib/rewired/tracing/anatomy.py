"""What a decoder is made of: the modules that tracing reads and edits, and where its named sites are.

The *residual stream* is the running sum that every layer reads and adds to. The named sites of a layer, in the order
in which they are computed:

``resid_pre``    the residual stream that enters the layer
``z``            what the heads have gathered: the input of ``o_proj``, one slice of ``head_dim`` numbers per head
``attn_out``     the attention layer's output, ``o_proj(z)``
``attn_add``     what attention adds to the residual stream: ``attn_out`` after Gemma's post-attention norm
``mlp_out``      the MLP's output
``mlp_add``      what the MLP adds to the residual stream: ``mlp_out`` after Gemma's post-feedforward norm

and, once, ``resid_final``: the residual stream after the last layer, before the final norm. Decoders without
post-sublayer norms (Llama, Qwen) add what they compute: there ``attn_add`` is ``attn_out``, ``mlp_add`` is ``mlp_out``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from nnsight import NNsight

from rewired.answers import head_factor
from rewired.errors import RewiredError
from rewired.models import network

SITES = ("resid_pre", "z", "attn_out", "attn_add", "mlp_out", "mlp_add", "resid_final")

# the modules of each part: those it must have, those it may have
NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
EXPECTED = {
    "decoder": ({"embed_tokens", "layers", "norm", "rotary_emb"}, set()),
    "layer": ({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}, NORMS),
    "self_attn": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}),
    "mlp": ({"gate_proj", "up_proj", "down_proj"}, set()),
}


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
        """How far two ways to compute one delta may lie apart, relative to the size of the logits."""
        return 1e-6 if self.unembedding.dtype in (torch.float32, torch.float64) else 1e-2


def anatomy(model) -> Anatomy:
    """The parts of ``model`` (or of the model in a PEFT wrapper). Raises RewiredError unless it is a decoder of the
    usual pattern: norm, attention, norm, MLP, each added to the residual stream (Gemma-2 and -3, Llama, Qwen)."""
    if isinstance(model, Anatomy):
        return model
    model = network(model)
    if reason := _unknown(model):
        raise RewiredError(
            f"The inside of {type(model).__name__} cannot be traced: {reason}. `rewired.tracing` knows decoders made "
            "of norm, attention, norm and MLP, each added to the residual stream: Gemma-2, Gemma-3 (text), Llama, Qwen."
        )
    decoder = model.get_decoder()
    return Anatomy(
        decoder=decoder,
        unembedding=model.get_output_embeddings().weight,
        heads=decoder.config.num_attention_heads,
        kv_heads=decoder.config.num_key_value_heads,
        head_dim=decoder.layers[0].self_attn.head_dim,
        sandwich=hasattr(decoder.layers[0], "pre_feedforward_layernorm"),
        cap=getattr(decoder.config, "final_logit_softcapping", None),
    )


def _unknown(model) -> str | None:
    """Why this model cannot be traced, in words; None if it can."""
    try:
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        modules = [("decoder", decoder)]
        for layer in decoder.layers:
            modules.append(("layer", layer))
            modules += [(kind, getattr(layer, kind)) for kind in ("self_attn", "mlp") if hasattr(layer, kind)]
    except (AttributeError, TypeError):
        return "it has no decoder with a list of layers"
    for kind, module in modules:
        required, optional = EXPECTED[kind]
        children = dict(module.named_children())
        if required - set(children):
            return f"its {type(module).__name__} lacks {', '.join(sorted(required - set(children)))}"
        for name in sorted(set(children) - required - optional):
            if next(children[name].parameters(), None) is not None:  # an activation function is of no consequence
                return f"its {type(module).__name__} has {name} besides"
    if getattr(decoder.config, "residual_multiplier", 1.0) != 1.0 or head_factor(model) != 1.0:
        return "it puts factors on what its layers add or on its logits"
    return "its unembedding has a bias" if head.bias is not None else None


def locate(decoder, sandwich: bool, site: str, layer: int):
    """(module, ``"input"`` or ``"output"``) of a site, in a decoder or in nnsight's view of one."""
    if site == "resid_final":
        return decoder.norm, "input"
    block = decoder.layers[layer]
    if site in ("resid_pre", "z"):
        return (block if site == "resid_pre" else block.self_attn.o_proj), "input"
    if site == "attn_add" and sandwich:
        return block.post_attention_layernorm, "output"
    if site == "mlp_add" and sandwich:
        return block.post_feedforward_layernorm, "output"
    return (block.mlp if site.startswith("mlp") else block.self_attn.o_proj), "output"


def chosen_layers(parts: Anatomy, layers: Sequence[int] | None) -> list[int]:
    """``layers``, or all of them. Raises RewiredError for a layer that the model does not have."""
    layers = list(range(parts.depth)) if layers is None else list(layers)
    for layer in layers:
        if layer not in range(parts.depth):
            raise RewiredError(f"There is no layer {layer!r}: the model's layers are 0 to {parts.depth - 1}.")
    return layers
