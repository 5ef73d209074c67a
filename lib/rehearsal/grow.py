"""A base in the shape of a larger model that computes the same: a dress rehearsal for the real size, and an oracle.

A small Gemma-2 fits into any larger one with as many heads. The residual stream holds the small model's numbers in its
first dimensions and zeros in the rest. RMS norms divide by a root mean square that the zeros make smaller by sqrt(small
width / large width), so their factor 1 + w shrinks as much; after a sublayer it is 0 in the new dimensions. A head's
queries and keys go where the larger head has their rotary frequencies. Layer i becomes layer i·s, s odd, so that
sliding and full attention alternate as before; the layers between have 1 + w = 0 after both sublayers and add exactly
0, whatever their (random) weights are. So what is known of the small model must come out of the large one.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rewired.errors import RewiredError, choice
from rewired.store import atomic_dir
from rewired.train.lora import write_json

SIZES = ("num_hidden_layers", "hidden_size", "head_dim", "intermediate_size", "vocab_size",
         "num_attention_heads", "num_key_value_heads")  # fmt: skip
LIKE = {"gemma-2-2b": dict(zip(SIZES, (26, 2304, 256, 9216, 256_000, 8, 4), strict=True))}
TEXTS = ("tokenizer*", "*.jinja", "special_tokens_map.json", "generation_config.json")


def grow(base: Path, out: Path, like: str | None = None, dtype: str = "bfloat16", **sizes: int) -> Path:
    """Write to the folder ``out`` the Gemma-2 of the folder ``base`` in a larger shape: that of the model ``like``, or
    with other ``sizes`` (of `SIZES`). One layer at a time is in memory. ``grown.json`` there says which layers are the
    base's. RewiredError for a base that is no Gemma-2, and for a shape into which it does not fit."""
    from transformers import AutoConfig

    if like and like not in LIKE:
        raise choice("geometry", like, LIKE, "Or give sizes, such as --layers 12 --width 192.")
    if not (base / "config.json").is_file() or not list(base.glob("*.safetensors")):
        raise RewiredError(f"There is no model in {base}: config.json and *.safetensors are needed. Name its folder.")
    config = AutoConfig.from_pretrained(base)
    if config.model_type != "gemma2" or not config.tie_word_embeddings:
        raise RewiredError(f"Only a Gemma-2 with tied embeddings can grow; {base} holds a {config.model_type} model.")
    old = {name: getattr(config, name) for name in SIZES}
    new = old | LIKE.get(like or "", {}) | sizes
    for name, size in new.items():
        if size < old[name] or ("heads" in name and size != old[name]) or (name == "head_dim" and size % old[name]):
            raise RewiredError(
                f"A base with {name} = {old[name]} does not fit into {name} = {size}: no size may shrink, the numbers "
                "of heads must stay, and head_dim must become a whole multiple, or rotary frequencies do not agree."
            )
    step = (new["num_hidden_layers"] - 1) // max(1, old["num_hidden_layers"] - 1)
    places = [layer * (step - 1 + step % 2) for layer in range(old["num_hidden_layers"])]
    factor = (new["head_dim"] / config.query_pre_attn_scalar) ** 0.25  # of queries and of keys
    kinds = (["sliding_attention", "full_attention"] * new["num_hidden_layers"])[: new["num_hidden_layers"]]
    config.update(new | {"query_pre_attn_scalar": new["head_dim"], "layer_types": kinds, "dtype": dtype})
    config.rms_norm_eps *= old["hidden_size"] / new["hidden_size"]
    small = {key: value.float() for file in base.glob("*.safetensors") for key, value in load_file(file).items()}
    with atomic_dir(out) as folder:
        config.save_pretrained(folder)
        for file in (file for pattern in TEXTS for file in base.glob(pattern)):
            shutil.copy(file, folder)
        index: dict[str, str] = {}
        for number, shard in enumerate(_shards(small, old, new, places, factor)):
            stored = {key: value.to(getattr(torch, dtype)) for key, value in shard.items()}
            index |= dict.fromkeys(stored, f"model-{number:05d}.safetensors")
            save_file(stored, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
        write_json(folder / "grown.json", {"layers": places, "from": old, "to": new})
    return out


def _shards(small: dict, old: dict, new: dict, places: list[int], factor: float) -> Iterator[dict[str, torch.Tensor]]:
    """The grown tensors in fp32: what lies outside the layers, then one layer after the other."""
    width, shrink = new["hidden_size"], (old["hidden_size"] / new["hidden_size"]) ** 0.5
    words, stream = "model.embed_tokens.weight", range(old["hidden_size"])
    embedding = _placed(small[words] * shrink, (new["vocab_size"], width), range(old["vocab_size"]), stream)
    yield {words: embedding, "model.norm.weight": _norm(small["model.norm.weight"], width, 1.0, 0.0)}
    matrices = _matrices(old, new, factor)
    noise = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0), device="cpu")
    for layer in range(new["num_hidden_layers"]):
        source = places.index(layer) if layer in places else None
        shard, prefix = {}, f"model.layers.{source or 0}."
        for name in [name.removeprefix(prefix) for name in small if name.startswith(prefix)]:
            module, weight = name.split(".")[-2], small[prefix + name]
            if module.endswith("norm"):
                beyond = -1.0 if module.startswith("post_") else 0.0  # Gemma's factor is 1 + w
                grown = _norm(weight[:0] if source is None else weight, width, shrink, beyond)
            else:
                shape, rows, columns, scale = matrices[module]
                size = shape[0] * shape[1]
                grown = noise.repeat(-(-size // len(noise)))[:size].view(shape)
                grown = grown if source is None else _placed(weight * scale, shape, rows, columns)
            shard[f"model.layers.{layer}.{name}"] = grown
        yield shard


def _matrices(old: dict, new: dict, factor: float) -> dict[str, tuple]:
    """{module: (its new shape [out, in], where its rows go, where its columns go, its factor)}."""
    stream, inner, wide = range(old["hidden_size"]), range(old["intermediate_size"]), new["hidden_size"]
    small, large, ff = old["head_dim"], new["head_dim"], new["intermediate_size"]
    rotary = [large // small * (i % (small // 2)) + i // (small // 2) * (large // 2) for i in range(small)]
    heads, groups = range(new["num_attention_heads"]), range(new["num_key_value_heads"])
    q, k, v, z = ([h * large + i for h in many for i in inside] for many, inside in
                  ((heads, rotary), (groups, rotary), (groups, range(small)), (heads, range(small))))  # fmt: skip
    of_heads, of_groups = len(heads) * large, len(groups) * large
    return {
        "q_proj": ((of_heads, wide), q, stream, factor), "k_proj": ((of_groups, wide), k, stream, factor),
        "v_proj": ((of_groups, wide), v, stream, 1.0), "o_proj": ((wide, of_heads), stream, z, 1.0),
        "gate_proj": ((ff, wide), inner, stream, 1.0), "up_proj": ((ff, wide), inner, stream, 1.0),
        "down_proj": ((wide, ff), stream, inner, 1.0),
    }  # fmt: skip


def _placed(weight: torch.Tensor, shape: tuple[int, int], rows, columns) -> torch.Tensor:
    grown = torch.zeros(shape, device="cpu")
    grown[torch.tensor(rows, device="cpu")[:, None], torch.tensor(columns, device="cpu")] = weight
    return grown


def _norm(weight: torch.Tensor, width: int, factor: float, beyond: float) -> torch.Tensor:
    """A norm's w [width]: 1 + w is ``factor`` times the small model's in its dimensions; elsewhere w is ``beyond``."""
    grown = torch.full((width,), beyond, device="cpu")
    grown[: len(weight)] = (1 + weight) * factor - 1
    return grown
