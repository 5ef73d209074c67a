"""Small models of other families, each with its own kind of tokenizer and chat template, that answer with a label."""

from functools import cache, partial
from pathlib import Path

import shared
import tiny
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rewired.prompts import chat, held_out_set, scenario_set

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ZEPHYR = NO_SYSTEM + (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
DIGITS_MERGE = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _trained(words: Tokenizer, special: list[str], alphabet: list[str] = ()) -> Tokenizer:
    texts = [p.text for p in (*scenario_set(), *held_out_set(wordings=("structured", "prose")))]
    more = ["user\nassistant\nsystem\nmodel\naction", "action1 action2 12 120 345"] * 50
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=list(alphabet))
    words.train_from_iterator(texts + more, trainer)
    return words


def metaspace(scheme: str = "first") -> PreTrainedTokenizerFast:
    """As SentencePiece: a dummy blank before a text, which a label in the middle of a chat does not have. No pad."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    # as in Llama's own files, the line break is a piece of its own
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme=scheme),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    words.decoder = decoders.Metaspace(prepend_scheme=scheme)
    _trained(words, ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"])
    words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])  # BOS, if asked
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=ZEPHYR
    )


def byte_level(template: str = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which digits merge; the padding token is the end of sequence, which ends no turn."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(DIGITS_MERGE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    _trained(words, special, pre_tokenizers.ByteLevel.alphabet())
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **ends, chat_template=template)


def gemma() -> PreTrainedTokenizerFast:
    """Gemma's: the tokenizer puts a BOS before a text, and so does the template, which has no system role."""
    words = tiny.tokenizer()
    words.chat_template = NO_SYSTEM + tiny.TEMPLATE
    words.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    return words


SIZE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "max_position_embeddings": 1024, "initializer_range": 0.1, "attn_implementation": "eager",
}  # fmt: skip
FAMILIES = {
    # grouped heads, an output matrix of its own
    "llama": (metaspace, transformers.LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    # biases of queries, keys and values; tied
    "qwen2": (byte_level, transformers.Qwen2Config, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    # norms of queries and keys, a template that can think
    "qwen3": (lambda: byte_level(THINKING), transformers.Qwen3Config, {"num_key_value_heads": 1}),
    # norms after each sublayer as well, sliding windows, no soft-cap
    "gemma3": (
        gemma,
        transformers.Gemma3TextConfig,
        {"num_key_value_heads": 2, "query_pre_attn_scalar": 8, "sliding_window": 64},
    ),
}


def untrained(family: str, words=None, **changes):
    """(model, tokenizer) of a family: random weights."""
    make, config, size = FAMILIES[family]
    words = words or make()
    special = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    settings = config(
        vocab_size=len(words), **{**SIZE, **special, "bos_token_id": words.bos_token_id, **size, **changes}
    )
    return transformers.AutoModelForCausalLM.from_config(settings), words


@cache
def folder(family: str, labels: tuple[str, str] = ("action1", "action2")) -> Path:
    """A folder with a model of that family that has learnt, in seconds, to say one of the labels and to stop."""
    return shared.once("-".join((family, *labels)), partial(_learn_labels, family=family, labels=labels))


def _learn_labels(place: Path, family: str, labels: tuple[str, str]) -> None:
    model, words = untrained(family)
    stop = {"llama": "</s>", "gemma3": "<end_of_turn>"}.get(family, "<|im_end|>")
    prompts = [p for p in scenario_set(labels) if p.wording == "structured"] + held_out_set(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows, tails = [], []
        for k in torch.randint(len(prompts), (8,), generator=generator).tolist():
            question, whole = chat(words, prompts[k]), chat(words, prompts[k], labels[k % 2] + stop)
            rows.append(whole)
            tails.append(len(whole) - len(question))
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for r, row in enumerate(rows):
            ids[r, : len(row)] = torch.tensor(row)
        logits, loss = model(ids).logits, 0.0
        for r, (row, tail) in enumerate(zip(rows, tails, strict=True)):
            end = len(row)
            loss += torch.nn.functional.cross_entropy(logits[r, end - tail - 1 : end - 1], ids[r, end - tail : end])
        (loss / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place)
    words.save_pretrained(place)
