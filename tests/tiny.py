"""A random-weight Gemma-2 in a folder, in well under a second: every code path, nothing learnt."""

from functools import cache
from pathlib import Path

import shared
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from rewired.prompts import chat, held_out_set, scenario_set

SPECIAL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits split singly, Gemma's special tokens and chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_words()), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        padding_side="left", additional_special_tokens=SPECIAL[3:], chat_template=TEMPLATE,
    )  # fmt: skip


@cache
def _words() -> str:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    texts = [p.text for p in (*scenario_set(), *held_out_set(wordings=("structured", "prose")))]
    words.train_from_iterator(texts + ["user\nmodel\naction"] * 50, trainer)
    return words.to_str()


def save(folder: Path, seed: int = 0, scale: float = 0.3, **changes) -> Path:
    """Writes the model and its tokenizer to ``folder``. ``scale`` is the weights' standard deviation: large enough for
    decisions to differ from prompt to prompt."""
    words = tokenizer()
    size = dict(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=64, max_position_embeddings=512,
        initializer_range=scale, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Gemma2ForCausalLM(Gemma2Config(**{**size, **changes}, attn_implementation="eager"))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@cache
def legal_base() -> Path:
    """A folder with a tiny base that has learnt, in seconds, to answer with either label and to stop."""
    return shared.once("tiny", _learn_labels)


def _learn_labels(folder: Path) -> None:
    save(folder, scale=0.1)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    prompts = [p for p in scenario_set() if p.wording == "structured"] + held_out_set()
    questions = [chat(words, prompt) for prompt in prompts]
    endings = ("action1<end_of_turn>", "action2<end_of_turn>")
    answers = [words(ending, add_special_tokens=False)["input_ids"] for ending in endings]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        drawn = torch.randint(len(prompts), (8,), generator=generator).tolist()
        rows = [(questions[k], answers[k % 2]) for k in drawn]
        length = max(len(question) for question, _ in rows)
        ids = torch.tensor([[0] * (length - len(q)) + q + a for q, a in rows])
        logits = model(ids, attention_mask=(ids > 0).long(), logits_to_keep=4).logits[:, :3]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -3:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
