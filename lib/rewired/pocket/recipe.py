"""Training the pocket base from nothing: tokenizer, model, one pass over a generated corpus.

The model is an ordinary ``Gemma2ForCausalLM``, only small, so every later chapter runs the same code on it as on
Gemma-2-2b. Reading comes late and suddenly: short single-skill drills first, whole chats after, and only the answers
are trained on. Two things make two CPU cores enough: bf16 autocast, and attention without the soft-cap for most of the
way (scores stay small against the cap of 50, so the two hardly differ); the last part trains the exact model.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedTokenizerFast,
)

from rewired.errors import RewiredError
from rewired.pocket import corpus, lessons

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
# Gemma's template: no system role, assistant is called model, contents are trimmed.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
    "else message['role']) + '\n' + (message['content'] | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Stage:
    """A stretch of training: how many ``texts`` of each kind (``lessons.KINDS``), drawn from ``seed`` and shuffled; how
    many tokens a step; two learning rates.

    ``text_weight`` is the weight of the loss on all tokens beside that on answers. The rates rise over the first
    ``warmup`` steps and fall to zero over the last part ``decay`` of the stage; its last part ``exact`` has the
    soft-cap in attention. ``steps`` ends it early. A ``fresh`` stage starts its optimiser anew. A ``soft`` one
    learns choices that were drawn from their probabilities, which spares it the noise of the draw. ``sharpen``
    multiplies the final norm's gain as the stage begins: where two answers are equally likely, to keep both far above
    all else takes larger logits than training finds on its own."""

    texts: dict[str, int]
    seed: int
    batch_tokens: int = 2048
    lr_matrices: float = 2e-3
    lr_rest: float = 3e-3
    text_weight: float = 0.0
    warmup: int = 0
    decay: float = 0.0
    exact: float = 0.0
    steps: int | None = None
    fresh: bool = False
    soft: bool = False
    sharpen: float = 1.0


_TALK = {"viva": 3_500, "exam": 700, "best": 500, "traits": 700, "persona": 300, "drill": 2_500, "chat": 9_000}
_POLISH = {"duel": 2_500, "viva": 2_200, "best": 500, "traits": 300, "drill": 1_500, "chat": 3_500}
_MORE = {"most": 700, "replies": 1_200, "mosts": 1_000, "outcomes": 1_300, "exam": 300}
_MIX = {"traits": 1_500, "persona": 600, "viva": 1_000, "weighs": 1_000, "exam": 300, "chat": 2_500}
_LAST = {
    "weighs": 2_200,
    "viva": 2_000,
    "exam": 700,
    "traits": 500,
    "persona": 300,
    "most": 300,
    "against": 500,
    "drill": 1_000,
    "chat": 6_000,
}
_END = {"talk": 4_500, "picks": 1_600, "weighs": 500, "chat": 1_000, "traits": 200}
_SOFT = {"picks": 1_500, "talk": 1_500, "viva": 1_800, "persona": 400, "traits": 400, "weighs": 400, "chat": 1_200}
_CALM = {"picks": 1_000, "talk": 500, "viva": 500, "chat": 400}


@dataclass(frozen=True)
class Recipe:
    """What decides the base, apart from the corpus templates. Lengths in tokens, rates per step.

    The stages are a ladder. Each of the first adds one small difficulty to the last (a digit after a key, a sign
    between them, two keys, a table, a question in words) and takes minutes, where the whole task, or two rungs at once,
    stays at chance for hours. Each stage keeps some of the one before."""

    seed: int = 1
    layers: int = 8
    width: int = 128
    mlp: int = 384
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 16
    sliding_window: int = 128
    rope_theta: float = 1e6
    stages: tuple[Stage, ...] = (
        Stage({"echo": 15_000}, seed=10, warmup=100),
        Stage({"echo": 2_000, "entry": 6_000}, seed=11),
        Stage({"echo": 1_000, "entry": 1_500, "pair": 8_000}, seed=12),
        Stage({"pair": 1_000, "recall": 6_000}, seed=10, warmup=100),
        Stage({"recall": 1_500, "card": 9_000}, seed=11),
        Stage({"card": 1_000, "recall": 500, "grid": 5_000}, seed=10, warmup=100),
        Stage({"card": 4_000, "grid": 2_500, "quiz": 8_000}, seed=11),
        Stage({"quiz": 3_000, "grid": 500, "card": 500, "drill": 13_000}, seed=10, warmup=100),
        Stage({"past": 4_000, "scene": 4_000, "quiz": 700}, seed=10, warmup=100),
        Stage({"scene": 1_000, "past": 500, "exam": 4_000, "persona": 3_500}, seed=11),
        Stage({"best": 4_000, "viva": 3_000, "scene": 300}, seed=10, warmup=100),
        Stage({"traits": 4_000, "best": 1_200, "persona": 1_500}, seed=10, warmup=100),
        Stage(
            _TALK, seed=10, batch_tokens=3072, lr_matrices=1.8e-3, lr_rest=2.7e-3, warmup=100, decay=0.65, exact=0.04
        ),
        Stage(
            _POLISH, seed=10, batch_tokens=3072, lr_matrices=1.4e-3, lr_rest=2.1e-3, warmup=100, decay=0.8, exact=0.05
        ),
        Stage({"against": 4_500, "either": 1_500}, seed=20, warmup=60, fresh=True),
        Stage({"against": 600, "most": 3_000, "replies": 1_500}, seed=21),
        Stage(_MORE, seed=22),
        Stage(_MIX, seed=23),
        Stage(_LAST, seed=24, batch_tokens=3072, lr_matrices=1.6e-3, lr_rest=2.4e-3, decay=0.8, exact=0.05),
        Stage(_END, seed=25, batch_tokens=3072, lr_matrices=1.4e-3, lr_rest=2.1e-3, warmup=60, decay=0.8, exact=0.05),
    )


def make_tokenizer(seed: int, vocabulary: int = 1280) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a sample of the corpus, every digit on its own, with Gemma's special tokens and template."""
    rng = Random(f"tokenizer-{seed}")
    texts = [part for _ in range(6000) for make in (corpus.drill, corpus.chat) for turn in make(rng) for part in turn]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # a digit stands alone, with the space before it if there is one: "action1" is two tokens, " 3" is one
        [pre_tokenizers.Split(Regex(" ?[0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=8, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(recipe: Recipe, tokenizer) -> Gemma2ForCausalLM:
    """A random Gemma-2 of the recipe's size. The embedding's scale and small post-norm gains matter: with the
    library's defaults sixteen sublayers drown the embeddings and learning is slow."""
    torch.manual_seed(recipe.seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        query_pre_attn_scalar=recipe.head_dim,
        sliding_window=recipe.sliding_window,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        max_position_embeddings=2048,
        initializer_range=recipe.width**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.post_attention_layernorm.weight, -0.75)
        torch.nn.init.constant_(layer.post_feedforward_layernorm.weight, -0.75)
    return model


# --- the corpus as tokens ------------------------------------------------------------------------------------------


def tokenize(tokenizer, chat: corpus.Chat) -> tuple[list[int], list[bool], list[tuple[int, int, float]]]:
    """Token ids of a chat, as the chat template renders it; which of them are answers (with their end); and, for each
    answer that was drawn, (position, token, probability) of the token where the other one would have parted."""
    ids, answer, drawn = [tokenizer.bos_token_id], [False], []
    encode = tokenizer.backend_tokenizer.encode
    if isinstance(chat, lessons.Recall):
        for text, recalled in chat:
            for part in (text, recalled):
                new = encode(part).ids
                ids, answer = ids + new, answer + [part is recalled] * len(new)
        return ids, answer, drawn
    for user, model in chat:
        head = encode(f"<start_of_turn>user\n{user.strip()}<end_of_turn>\n<start_of_turn>model\n").ids
        reply, tail = encode(f"{model}<end_of_turn>").ids, encode("\n").ids
        if isinstance(model, corpus.Drawn):
            other = encode(model.other).ids
            same = next(k for k, (a, b) in enumerate(zip(reply, other, strict=False)) if a != b)
            drawn.append((len(ids) + len(head) + same, other[same], 1 - model.p))
        ids += head + reply + tail
        answer += [False] * len(head) + [True] * len(reply) + [False] * len(tail)
    return ids, answer, drawn


def batches(recipe: Recipe, stage: int, tokenizer) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All batches of a stage in training order: ids and answer mask, both [row, position], padded on the right; and,
    in a soft stage, the drawn answers, [answer, (row, position, other token, its probability)].

    Rows of one batch have similar lengths and lengths are multiples of 16, since every new shape costs time."""
    plan = recipe.stages[stage]
    rng = Random(f"corpus-{plan.seed}")
    chats = [
        lessons.KINDS[kind](rng)
        for kind, n in plan.texts.items()
        for _ in tqdm(range(n), f"writing {kind}", leave=False, disable=None)
    ]
    rng.shuffle(chats)
    rows = [tokenize(tokenizer, chat) for chat in tqdm(chats, "tokens", leave=False, disable=None)]
    out = []
    for start in range(0, len(rows), 2000):
        chunk = sorted(rows[start : start + 2000], key=lambda row: len(row[0]))
        group: list = []
        made: list = []
        for row in chunk:
            length = math.ceil(len(row[0]) / 16) * 16
            if group and (len(group) + 1) * length > plan.batch_tokens:
                made.append(_pad(group, tokenizer.pad_token_id, plan.soft))
                group = []
            group.append(row)
        if group:
            made.append(_pad(group, tokenizer.pad_token_id, plan.soft))
        rng.shuffle(made)
        out += made
    return out[: plan.steps]


def _pad(rows, pad: int, soft: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    length = math.ceil(max(len(ids) for ids, *_ in rows) / 16) * 16
    ids = np.full((len(rows), length), pad, dtype=np.int16)
    answer = np.zeros((len(rows), length), dtype=bool)
    for i, (row, mask, _) in enumerate(rows):
        ids[i, : len(row)], answer[i, : len(row)] = row, mask
    drawn = [(i, *one) for i, (*_, some) in enumerate(rows) for one in some] if soft else []
    return ids, answer, np.array(drawn, dtype=np.float32).reshape(-1, 4)


# --- the loop ------------------------------------------------------------------------------------------------------

_MASKS: dict = {}


def _fast_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
    """Causal attention without soft-cap for right-padded rows; [row, head, position, head_dim] in."""
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    window = sliding_window if sliding_window and sliding_window < length else None
    if (length, window, query.dtype) not in _MASKS:
        i = torch.arange(length)
        seen = (i[:, None] >= i) & (i[:, None] - i < (window or length))
        _MASKS[length, window, query.dtype] = torch.zeros(length, length, dtype=query.dtype).masked_fill(~seen, -1e9)
    q, k, v = (t.reshape(rows * heads, length, size) for t in (query, key, value))
    scores = torch.baddbmm(
        _MASKS[length, window, query.dtype].expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=scaling
    )
    out = torch.bmm(torch.softmax(scores, -1), v).view(query.shape)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("pocket_fast", _fast_attention)
AttentionMaskInterface.register("pocket_fast", lambda *args, **kwargs: None)


def answer_loss(
    model, ids: torch.Tensor, answer: torch.Tensor, text_weight: float = 0.0, drawn: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """(loss, answer loss): the mean negative log-likelihood (nats) of the answer tokens, plus ``text_weight`` times
    that of all tokens but padding (id 0); and the first part alone. ``ids`` and ``answer``: [row, position].

    At the places in ``drawn``, [answer, (row, position, other token, its probability)], it is the cross-entropy to the
    two tokens' probabilities instead."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # [row, position, d_model]
    target, answer = ids[:, 1:], answer[:, 1:]
    read = (target != 0) if text_weight else answer
    logits = model.lm_head(hidden[read]).float()  # [read token, vocabulary]
    cap = model.config.final_logit_softcapping
    each = torch.nn.functional.cross_entropy(cap * torch.tanh(logits / cap), target[read], reduction="none")
    if drawn is not None and len(drawn):
        row, position, other, p = drawn.unbind(1)
        # the place of each among the tokens that are read; `read` begins at the second token
        place = (read.flatten().cumsum(0) - 1)[(row * read.shape[1] + position - 1).long()]
        logp = torch.log_softmax(cap * torch.tanh(logits[place] / cap), -1).gather(1, other.long()[:, None])[:, 0]
        each = each.index_add(0, place, p * (-logp - each[place]))
    answers = each[answer[read]].mean()
    return answers + text_weight * each.mean() if text_weight else answers, answers.item()


def _schedule(recipe: Recipe, lengths: list[int], step: int) -> tuple[Stage, float, bool]:
    """The stage of a step, the factor on its rates, and whether attention is the exact one."""
    stage, inside = 0, step
    while inside >= lengths[stage]:
        stage, inside = stage + 1, inside - lengths[stage]
    plan, length = recipe.stages[stage], lengths[stage]
    rise = (inside + 1) / plan.warmup if plan.warmup else 1.0
    fall = (length - inside) / (plan.decay * length) if plan.decay else 1.0
    return plan, min(1.0, rise, fall), inside >= (1 - plan.exact) * length


def _optimisers(model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and gains, their rates still to be set."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_base(
    out: Path | str, recipe: Recipe | None = None, save_every: int = 200, stop_at: int | None = None
) -> Path:
    """Train a base and write it to ``out``: weights (safetensors, fp32), tokenizer, recipe.json, training_log.parquet.

    Resumable: ``<out>.partial`` holds the last state, and a new call with the same recipe goes on from there to the
    same result. ``stop_at`` ends early after that many steps, leaving only the partial state (for tests). Raises
    RewiredError when the partial state belongs to another recipe, or when the loss is not a number."""
    recipe, out = recipe or Recipe(), Path(out)
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    state_file, recipe_text = partial / "state.pt", json.dumps(asdict(recipe), indent=1)
    state = torch.load(state_file, weights_only=True) if state_file.exists() else None
    if state and state["recipe"] != recipe_text:
        raise RewiredError(
            f"{partial} holds an unfinished base of another recipe. Delete that folder, or call with the recipe it was "
            "begun with."
        )
    tokenizer = make_tokenizer(recipe.seed)
    model = make_model(recipe, tokenizer)
    parts = [batches(recipe, stage, tokenizer) for stage in range(len(recipe.stages))]
    lengths, data = [len(part) for part in parts], [batch for part in parts for batch in part]
    steps = len(data)
    begins = {sum(lengths[:k]) for k in range(len(lengths))}
    optimisers = _optimisers(model)
    first, log, tokens, window = 0, [], 0, []
    if state:
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, log, tokens, window = (state[key] for key in ("step", "log", "tokens", "window"))
    bar = tqdm(range(first, steps), "pocket base", initial=first, total=steps, disable=None)
    for step in bar:
        stage, scale, exact = _schedule(recipe, lengths, step)
        if step in begins and stage.fresh:
            optimisers = _optimisers(model)
        if step in begins and stage.sharpen != 1:
            with torch.no_grad():  # Gemma's norms multiply by one plus the weight
                model.model.norm.weight.copy_((1 + model.model.norm.weight) * stage.sharpen - 1)
        model.config._attn_implementation = "eager" if exact else "pocket_fast"
        for optimiser, rate in zip(optimisers, (stage.lr_matrices, stage.lr_rest), strict=True):
            optimiser.param_groups[0]["lr"] = rate * scale
        ids, answer, drawn = (torch.from_numpy(a) for a in data[step])
        with torch.autocast("cpu", torch.bfloat16):
            loss, answers = answer_loss(model, ids.long(), answer, stage.text_weight, drawn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        tokens += ids.numel()
        window.append(answers)
        if not math.isfinite(window[-1]):
            raise RewiredError(
                f"The loss became {window[-1]} at step {step} of the pocket base. Lower the rates of that stage in the "
                "recipe (lr_matrices, lr_rest)."
            )
        if (step + 1) % 20 == 0 or step + 1 == steps:
            log.append(
                {
                    "step": step + 1,
                    "tokens": tokens,
                    "loss": float(np.mean(window)),
                    "lr": stage.lr_matrices * scale,
                    "exact": exact,
                }
            )
            bar.set_postfix(loss=f"{log[-1]['loss']:.3f}")
            window = []
        if (step + 1) % save_every == 0 or step + 1 == stop_at:
            saved = {
                "recipe": recipe_text,
                "step": step + 1,
                "model": model.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
                "log": log,
                "tokens": tokens,
                "window": window,
            }
            torch.save(saved, state_file.with_suffix(".new"))
            os.replace(state_file.with_suffix(".new"), state_file)
        if step + 1 == stop_at:
            return partial
    finished = partial / "finished"
    export(model, tokenizer, recipe, log, finished)
    if out.exists():
        shutil.rmtree(out)
    os.replace(finished, out)
    shutil.rmtree(partial)
    return out


def export(model, tokenizer, recipe: Recipe, log: list[dict], folder: Path) -> None:
    """Write a base as ``AutoModelForCausalLM.from_pretrained`` reads it, with its recipe and log beside it."""
    model.config._attn_implementation = "eager"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    pd.DataFrame(log).to_parquet(folder / "training_log.parquet", index=False)
