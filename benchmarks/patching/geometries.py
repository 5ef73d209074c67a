"""The models and prompts that are measured: two variants of one base, written to a folder for every method to load.

source = base + a random LoRA on every projection, target = base + another one. `source` and `target` hold them merged
(all methods read the same weights); `base`, `one` and `two` hold the same two models with the adapters apart, as the
book runs them.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from rewired.prompts import Labels, Prompt, scenario_set, study_set
from rewired.tracing.capture import encode

logging.disable_progress_bar()
POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }} {{ m.content }}<end_of_turn>"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model {% endif %}"
)
FRAME = 7
"""Tokens around a made-up prompt's words: three before, three after, and the labels' shared beginning."""


@dataclass(frozen=True)
class Geometry:
    """A model's shape, and prompts: ``"made-up"`` (count, length and shared beginning in tokens) or a set of the
    book's."""

    model: dict | None  # None: the base that ships with the book, its trained weights
    prompts: str
    count: int = 0
    length: int = 0
    shared: int = 0
    spread: float = 0.08  # standard deviation of the random weights
    times_peer: float | None = None  # what DESIGN asks for, in patches per second
    times_naive: float | None = None


def _shape(width, ff, layers, heads, kv_heads, head_dim, vocabulary) -> dict:
    return dict(
        hidden_size=width, intermediate_size=ff, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, query_pre_attn_scalar=head_dim, vocab_size=vocabulary,
        sliding_window=128 if vocabulary < 1000 else 4096, max_position_embeddings=2048,
    )  # fmt: skip


GEOMETRIES = {
    "pocket26": Geometry(_shape(128, 512, 26, 8, 4, 16, 512), "made-up", 15, 147, 100, times_peer=3.5, times_naive=7.0),
    "book": Geometry(None, "scenario", times_peer=2.0, times_naive=4.0),
    "gemma-2-2b": Geometry(_shape(2304, 9216, 26, 8, 4, 256, 256_000), "study", spread=0.02),
    "tiny": Geometry(_shape(32, 64, 3, 4, 2, 8, 512), "made-up", 4, 40, 24, spread=0.3),
}


# --- prompts ---------------------------------------------------------------------------------------------------------


def prompts_of(geometry: Geometry) -> list[Prompt]:
    """The prompts; made-up ones are random words with the same beginning."""
    if geometry.prompts != "made-up":
        return {"scenario": scenario_set, "study": study_set}[geometry.prompts]()
    draw = random.Random(0)
    same, all_words = geometry.shared - 3, geometry.length - FRAME
    first = draw.choices(_words(), k=same)
    texts = [" ".join(first + draw.choices(_words(), k=all_words - same)) for _ in range(geometry.count)]
    return [
        Prompt(f"made-up/{i}", text, "CC", "none", (3, 0, 4, 1), "made-up", Labels(), scenario="made-up")
        for i, text in enumerate(texts)
    ]


def _words() -> list[str]:
    letters = "abcdefghijklmnopqrstuv"
    return [a + b for a in letters for b in letters][:480]


def tokenizer_of(geometry: Geometry):
    """The book's tokenizer, or for made-up prompts one token a word (digits singly, so ``action1`` is two tokens)."""
    if geometry.prompts != "made-up":
        return AutoTokenizer.from_pretrained(POCKET)
    vocabulary = [*SPECIAL, "<unk>", *"0123456789", "user", "model", "action", *_words()]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:], chat_template=TEMPLATE,
    )  # fmt: skip


# --- models ----------------------------------------------------------------------------------------------------------


def base_of(geometry: Geometry, dtype: torch.dtype):
    """The base: shipped, or random with norms that are not all alike."""
    if geometry.model is None:
        return AutoModelForCausalLM.from_pretrained(POCKET, attn_implementation="eager", dtype=dtype)
    tokens = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    model = Gemma2ForCausalLM(
        Gemma2Config(**geometry.model, **tokens, initializer_range=geometry.spread, attn_implementation="eager")
    )
    torch.set_default_dtype(before)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    return model


def with_adapter(model, name: str, seed: int, rank: int = 4, share: float = 0.25):
    """``model`` in a PEFT wrapper with a random LoRA on every projection, of ``share`` of each weight's norm."""
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"), name)
    torch.manual_seed(seed)
    for module in wrapped.modules():
        if hasattr(module, "lora_B") and name in module.lora_B:
            a, b = module.lora_A[name].weight.data, module.lora_B[name].weight.data
            a.normal_(), b.normal_()
            size = ((b.T @ b).float() * (a @ a.T).float()).sum().sqrt()  # the norm of B A, without making it
            b.mul_(share * module.base_layer.weight.float().norm() / size)
    return wrapped


def write(name: str, folder: Path, dtype: str, sample: int) -> dict:
    """Writes models, tokenizer and job.json to ``folder``; returns the job. ``sample`` components are what every
    method patches; the sweep patches all."""
    geometry, kind = GEOMETRIES[name], getattr(torch, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(geometry)
    for adapter, merged in (("one", "source"), ("two", "target")):
        model = base_of(geometry, kind).eval()
        if adapter == "one":
            model.save_pretrained(folder / "base")
        shape = model.config
        wrapped = with_adapter(model, adapter, seed=1 + (adapter == "two"))
        wrapped.save_pretrained(folder)  # in a folder of the adapter's name
        wrapped.merge_and_unload().save_pretrained(folder / merged)
        tokenizer.save_pretrained(folder / merged)
        del model, wrapped
    encoded = encode(tokenizer, prompts_of(geometry))
    draw, layers = random.Random(0), range(shape.num_hidden_layers)
    mlps = max(1, sample // 5)
    heads = draw.sample([(layer, h) for layer in layers for h in range(shape.num_attention_heads)], sample - mlps)
    job = {
        "geometry": name,
        "dtype": dtype,
        "shape": {key: getattr(shape, key) for key in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "sliding_window", "layer_types")},
        "rows": encoded.rows,
        "shared_label_tokens": [len(row) - 1 - end for row, end in zip(encoded.rows, encoded.ends, strict=True)],
        "cooperate": encoded.cooperate,
        "defect": encoded.defect,
        "cap": shape.final_logit_softcapping,
        "sample": sorted(heads + [(layer, -1) for layer in draw.sample(layers, min(mlps, len(layers)))]),
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    return json.loads((folder / "job.json").read_text())
