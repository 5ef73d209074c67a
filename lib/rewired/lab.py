"""A run's models as files for the page on which readers patch them: weights, words and shapes.

Every file is a script that calls ``rewired.data(name, content)``: a page opened from a disk may load nothing else.
Weights are single precision in base64. ``lab.js`` holds everything small; for a model that a page cannot run it says
why, and the page keeps its text. Templates and vocabulary are exported: the page repeats no word of the library.
"""

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from rewired.models import ADAPTER, Variants, check_run
from rewired.prompts import TEXTS, turn
from rewired.store import atomic_dir, atomic_path

LARGEST, LONGEST = 3_000_000, 600
"""Parameters of a model that a page can run, and tokens of a prompt."""
WORDS: list[dict] = [
    {"type": "Split", "pattern": {"Regex": " ?[0-9]"}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]
"""How the shipped tokenizer cuts a text into words; the page knows no other way."""
MARK = "the words of a turn"
FORM = {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
"""What the page's own Gemma-2 takes for granted, as a model's config says it."""


def unfit(config, tokenizer) -> str | None:
    """Why a page cannot run the model of this config, as a sentence; None if it can. No weight is read."""
    with torch.device("meta"):  # shapes alone
        model = AutoModelForCausalLM.from_config(config)
    size = sum(value.numel() for value in model.parameters())
    if size > LARGEST:
        return f"This book was built with a model of {size:,} parameters, and a page can run {LARGEST:,}."
    widths = [getattr(config, name, 1) for name in ("hidden_size", "intermediate_size", "head_dim")]
    capped = getattr(config, "attn_logit_softcapping", None) and getattr(config, "final_logit_softcapping", None)
    if config.model_type != "gemma2" or not capped or any(width % 8 for width in widths):
        return f"The page runs a soft-capped Gemma-2 in multiples of eight; this is {config.model_type} {widths}."
    if not FORM.items() <= config.to_dict().items():
        return f"The page runs a Gemma-2 with {FORM}; this model has another of these."
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    cut = (words["pre_tokenizer"] or {}).get("pretokenizers")
    if words["normalizer"] or cut != WORDS or words["model"]["type"] != "BPE":
        return "The page does not know the way in which this model's tokenizer cuts a text into words."
    return None if turn(tokenizer, MARK).count(MARK) == 1 else "The page does not know this model's chat template."


def write(folder: Path, name: str, content: dict) -> None:
    """Make ``name.js``, which hands over the content; whole or not at all."""
    with atomic_path(folder / f"{name}.js") as temporary:
        temporary.write_text(f"rewired.data({json.dumps(name)}, {json.dumps(content, separators=(',', ':'))});\n")


def packed(tensors: Iterable[tuple[str, np.ndarray]]) -> dict:
    """Tensors one behind the other, in fp32: {tensors: [[name, rows, columns]], weights: base64}."""
    shapes, content = [], []
    for name, value in tensors:
        shapes.append([name.removesuffix(".weight"), len(value), value.size // len(value)])
        content.append(value.astype("<f4").tobytes())
    return {"tensors": shapes, "weights": base64.b64encode(b"".join(content)).decode()}


def export(variants: Variants, folder: Path, more: dict) -> None:
    """Write ``lab.js`` with what is ``more``, ``base.js`` and every run's adapter to ``folder``, which appears whole.

    The model must be fit for a page (see `unfit`). RewiredError for a damaged run."""
    model, runs = variants.model, [{"name": "base", "variant": "base", "seed": 0}]
    with atomic_dir(folder) as temporary:
        weights = model.model.state_dict()
        write(temporary, "base", packed((name, value.float().cpu().numpy()) for name, value in weights.items()))
        for variant, seed in variants.runs():
            check_run(variants, variant, seed)
            adapter, name = variants.run_dir(variant, seed) / "adapter", f"{variant}-{seed}"
            settings, matrices = json.loads((adapter / "adapter_config.json").read_text()), []
            for path, value in sorted(load_file(adapter / ADAPTER).items()):  # layers.0.mlp.up_proj.lora_A.weight
                matrices.append((path.removeprefix("base_model.model.model.").replace("lora_", ""), value))
            rank = settings["r"] ** (0.5 if settings.get("use_rslora") else 1)
            write(temporary, f"adapter-{name}", packed(matrices) | {"scale": settings["lora_alpha"] / rank})
            runs.append({"name": name, "variant": variant, "seed": seed})
        content = {"runs": runs, "config": _shape(model), "tokenizer": _words(variants.tokenizer), "templates": TEXTS}
        write(temporary, "lab", content | more)


def _shape(model) -> dict:
    config = model.config
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    return {
        "depth": config.num_hidden_layers, "d_model": config.hidden_size, "d_mlp": config.intermediate_size,
        "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads, "head_dim": config.head_dim,
        "vocabulary": config.vocab_size, "eps": config.rms_norm_eps, "scaling": config.query_pre_attn_scalar**-0.5,
        "attention_cap": config.attn_logit_softcapping, "final_cap": config.final_logit_softcapping,
        "window": windows, "inv_freq": model.model.rotary_emb.inv_freq.tolist(), "limit": LONGEST,
    }  # fmt: skip


def _words(tokenizer) -> dict:
    words, ids = json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.get_vocab()
    before, after = turn(tokenizer, MARK).split(MARK)
    chat = {"before": before, "after": after, "trim": turn(tokenizer, f" {MARK}\n") == before + MARK + after}
    special = [token["content"] for token in words["added_tokens"]]
    told = {"split": WORDS[0]["pattern"]["Regex"], "chat": chat, "special": special}
    merges = [" ".join(pair) for pair in words["model"]["merges"]]
    return told | {"vocab": sorted(ids, key=ids.__getitem__), "merges": merges}
