"""Training a base from nothing: model, loop and schedule, whatever the corpus.

A base is an ordinary ``Gemma2ForCausalLM``, only small, so every chapter runs the same code on it as on Gemma-2-2b. A
corpus brings its recipe (a frozen dataclass: sizes and stages), its tokenizer and its texts as token rows. Two things
make two CPU cores enough: bf16 autocast, and attention without the soft-cap for most of the way (scores stay small
against the cap of 50, so the two hardly differ); the last part trains the exact model.
"""

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedTokenizerFast,
)

from rewired.answers import softcap
from rewired.errors import RewiredError
from rewired.models import RoundedProducts
from rewired.train.lora import half_precision
from rewired.train.sft import answer_loss

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
# Gemma's template: no system role, assistant is called model, contents are trimmed.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
    "else message['role']) + '\n' + (message['content'] | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Stage:
    """A stretch of training: how many ``texts`` of each kind of lesson, drawn from ``seed`` and shuffled; how many
    tokens a step; two learning rates.

    The rates rise over the first ``warmup`` steps and fall to zero over the last part ``decay`` of the stage. Its last
    part ``exact`` has the soft-cap in attention. A ``fresh`` stage starts its optimiser anew."""

    texts: dict[str, int]
    seed: int
    batch_tokens: int = 2048
    lr_matrices: float = 2e-3
    lr_rest: float = 3e-3
    warmup: int = 0
    decay: float = 0.0
    exact: float = 0.0
    fresh: bool = False


def wrapped(tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of the tokenizers library with the special tokens and the chat template of ``SPECIAL``."""
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


def make_model(recipe, tokenizer) -> Gemma2ForCausalLM:
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


# --- texts as batches ------------------------------------------------------------------------------------------------

Batch = tuple[np.ndarray, ...]
"""Token ids and answer mask, or a weight for each token, both [row, position], padded on the right. A corpus that knows
what could stand in a place gives more: those ``Places``, the tokens they may hold and their probabilities."""

Places = dict[int, dict[int, float]]
"""By position: the tokens that may stand there, with their probabilities."""


def arranged(rows: list, batch_tokens: int, rng: Random, filler: int) -> list[Batch]:
    """Rows (ids, answer mask) as batches in training order. Rows of one batch have similar lengths and lengths are
    multiples of 16, since every new shape costs time."""
    ordered = []
    for start in range(0, len(rows), 2000):
        # similar lengths lie together only within a chunk: each stretch of training sees all kinds of text
        chunk = sorted(rows[start : start + 2000], key=lambda row: len(row[0]))
        made = [pad(group, filler) for group in grouped(chunk, batch_tokens)]
        rng.shuffle(made)
        ordered += made
    return ordered


def padded(length: int) -> int:
    """The next multiple of 16."""
    return math.ceil(length / 16) * 16


def grouped(rows: list, batch_tokens: int) -> Iterator[list]:
    """Rows, in ascending length, in groups that fill a batch of so many tokens."""
    group: list = []
    for row in rows:  # the longest so far: it decides the batch's length
        if group and (len(group) + 1) * padded(len(row[0])) > batch_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def pad(rows: list, filler: int) -> Batch:
    """Rows (ids, answer mask), or (ids, weights, places), as one batch."""
    length = padded(max(len(row[0]) for row in rows))
    ids = np.full((len(rows), length), filler, dtype=np.int16)
    weighted = isinstance(rows[0][1][0], float)
    answer = np.zeros((len(rows), length), dtype=np.float32 if weighted else bool)
    for i, (row, mask, *_) in enumerate(rows):
        ids[i, : len(row)] = row
        answer[i, : len(mask)] = mask
    if len(rows[0]) == 2:
        return ids, answer
    return ids, answer, *open_places([places for _, _, places in rows])


def open_places(rows: list[Places]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of a batch: where [place, (row, position)], the tokens that may stand there [place, option] and their
    probabilities [place, option], 0 for what fills up."""
    found = [(i, at, options) for i, places in enumerate(rows) for at, options in places.items()]
    widest = max((len(options) for _, _, options in found), default=1)
    where = np.array([(i, at) for i, at, _ in found], dtype=np.int64).reshape(-1, 2)
    tokens, chances = np.zeros((len(found), widest), np.int64), np.zeros((len(found), widest), np.float32)
    for k, (_, _, options) in enumerate(found):
        tokens[k, : len(options)] = list(options)
        chances[k, : len(options)] = list(options.values())
    return where, tokens, chances


# --- attention without its soft-cap ----------------------------------------------------------------------------------

_MASKS: dict[tuple, torch.Tensor] = {}  # made once for every shape


def _mask(length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """[query, key]: 0 where a position may look, -1e9 at later positions and at those beyond the sliding window."""
    key = (length, window, dtype)
    if key not in _MASKS:
        i = torch.arange(length, device="cpu")
        visible = (i[:, None] >= i) & (i[:, None] - i < (window or length))
        _MASKS[key] = torch.zeros(length, length, dtype=dtype, device="cpu").masked_fill(~visible, -1e9)
    return _MASKS[key]


def _fast_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
    """Causal attention without soft-cap for right-padded rows; [row, head, position, head_dim] in."""
    rows, heads, length, size = query.shape
    # every KV head serves several query heads
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    window = sliding_window if sliding_window and sliding_window < length else None
    # rows and heads as one dimension: [row x head, position, head_dim]
    q, k, v = (t.reshape(rows * heads, length, size) for t in (query, key, value))
    mask = _mask(length, window, query.dtype).expand(len(q), -1, -1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling)  # [row x head, query, key]
    out = torch.bmm(torch.softmax(scores, -1), v).view(query.shape)
    return out.transpose(1, 2).contiguous(), None  # [row, position, head, head_dim]


AttentionInterface.register("corpora_fast", _fast_attention)
AttentionMaskInterface.register("corpora_fast", lambda *args, **kwargs: None)


# --- the loop --------------------------------------------------------------------------------------------------------


def make_optimisers(model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and gains, their rates still to be set."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@dataclass(frozen=True)
class Step:
    """How one step is trained: its stage and the ``place`` of it in the recipe, the factor on the stage's rates, and
    whether attention is the exact one. The ``fresh`` step is the first of a stage that starts its optimiser anew."""

    stage: Stage
    place: int
    scale: float
    exact: bool
    fresh: bool


def schedule(recipe: Any, lengths: list[int]) -> Iterator[Step]:
    """Every step of the training, for stages of so many batches."""
    for place, (stage, length) in enumerate(zip(recipe.stages, lengths, strict=True)):
        for inside in range(length):
            rise = (inside + 1) / stage.warmup if stage.warmup else 1.0
            fall = (length - inside) / (stage.decay * length) if stage.decay else 1.0
            exact = inside >= (1 - stage.exact) * length
            yield Step(stage, place, min(1.0, rise, fall), exact, stage.fresh and inside == 0)


@dataclass
class State:
    """Where a training stands: everything that the next step depends on."""

    recipe: Any
    model: Gemma2ForCausalLM
    optimisers: list[torch.optim.Optimizer]
    step: int = 0  # done so far
    tokens: int = 0
    log: list[dict] = field(default_factory=list)
    window: list[float] = field(default_factory=list)  # losses since the last entry of the log

    def save(self, file: Path) -> None:
        """Write the state, whole or not at all."""
        content = {
            "recipe": _text(self.recipe),
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            **{name: getattr(self, name) for name in ("step", "tokens", "log", "window")},
        }
        torch.save(content, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)

    def load(self, file: Path) -> None:
        """Go on from a state that ``save`` wrote. RewiredError when it belongs to another recipe."""
        content = torch.load(file, weights_only=True)
        if content["recipe"] != _text(self.recipe):
            raise RewiredError(
                f"{file.parent} holds an unfinished base of another recipe. Delete that folder, or call with the "
                "recipe it was begun with."
            )
        self.model.load_state_dict(content["model"])
        for optimiser, saved in zip(self.optimisers, content["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name in ("step", "tokens", "log", "window"):
            setattr(self, name, content[name])


def _text(recipe: Any) -> str:
    return json.dumps(asdict(recipe), indent=1)


def weighted_loss(model, ids: torch.Tensor, weight: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
    """As ``sft.answer_loss``, in nats, but a mean with a ``weight`` [row, position] for each token; 0: not learnt.

    At ``places`` (as ``open_places`` gives them) the loss is the mean over what may stand there, which is the loss over
    many texts that are alike up to that place: the same gradient on average, without the noise of one draw."""
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # [row, position, d_model]
    target, share = ids[:, 1:], weight[:, 1:]  # what follows each position
    read = share > 0
    logits = model.get_output_embeddings()(states[:, :-1][read]).float()  # [learnt token, vocabulary]
    logits = softcap(logits, model.config.final_logit_softcapping)
    each = torch.nn.functional.cross_entropy(logits, target[read], reduction="none")  # [learnt token]
    if places and len(places[0]):
        where, tokens, chances = places
        rank = torch.full(read.shape, -1, device=ids.device)  # [row, position]: which of the learnt tokens it is
        rank[read] = torch.arange(len(each), device=ids.device)
        rank = rank[where[:, 0], where[:, 1] - 1]  # [place]
        where, tokens, chances = rank[rank >= 0], tokens[rank >= 0], chances[rank >= 0]
        expected = -(torch.log_softmax(logits[where], -1).gather(1, tokens) * chances).sum(1)  # [place]
        each = each.index_copy(0, where, expected)
    return (each * share[read]).sum() / share[read].sum()


def update(state: State, batch: Batch, now: Step) -> None:
    """One optimiser step. RewiredError when the loss is not a number."""
    if now.fresh:
        state.optimisers = make_optimisers(state.model)
    for optimiser, rate in zip(state.optimisers, (now.stage.lr_matrices, now.stage.lr_rest), strict=True):
        optimiser.param_groups[0]["lr"] = rate * now.scale
    state.model.config._attn_implementation = "eager" if now.exact else "corpora_fast"
    ids, answer, *places = (torch.as_tensor(array, device="cpu") for array in batch)  # the first two [row, position]
    with half_precision(torch.device("cpu"), True):
        measure = weighted_loss if answer.is_floating_point() else answer_loss
        loss = measure(state.model, ids.long(), answer, *places)
    if not math.isfinite(loss.item()):
        raise RewiredError(
            f"The loss became {loss.item()} at step {state.step} of the training. Lower the rates of that stage in "
            "the recipe (lr_matrices, lr_rest)."
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    for optimiser in state.optimisers:
        with RoundedProducts():  # Muon takes its products in bf16
            optimiser.step()
        optimiser.zero_grad()
    state.step += 1
    state.tokens += ids.numel()
    state.window.append(loss.item())


def enter(state: State, now: Step) -> None:
    """An entry of the log: the mean loss since the last one."""
    entry = {"step": state.step, "tokens": state.tokens, "loss": float(np.mean(state.window))}
    entry |= {"lr": now.stage.lr_matrices * now.scale, "exact": now.exact, "stage": now.place}
    state.log.append(entry)
    state.window = []


def train(
    out: Path | str,
    recipe,
    tokenizer,
    stages,
    save_every: int = 200,
    stop_at: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Train a base and write it to ``out``: weights (safetensors, rounded to ``dtype``), tokenizer, recipe.json,
    training_log.parquet. ``stages()`` gives the batches of each stage of the recipe.

    Resumable: ``<out>.partial`` holds the last state, and a new call with the same recipe goes on from there to the
    same result. ``stop_at`` ends early after that many steps, leaving only the partial state (for tests). Raises
    RewiredError when the partial state belongs to another recipe, or when the loss is not a number."""
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)

    # 1. the model, and where an earlier call stopped
    model = make_model(recipe, tokenizer)
    state = State(recipe, model, make_optimisers(model))
    if (partial / "state.pt").exists():
        state.load(partial / "state.pt")

    # 2. the whole corpus as batches, in training order
    made = stages()
    plan = list(schedule(recipe, [len(stage) for stage in made]))
    data = list(itertools.chain.from_iterable(made))

    # 3. learn; the last state is whole at any moment
    for step in tqdm(range(state.step, len(data)), "training", initial=state.step, total=len(data), disable=None):
        update(state, data[step], plan[step])
        if state.step % 20 == 0 or state.step == len(data):
            enter(state, plan[step])
        if state.step % save_every == 0 or state.step == stop_at:
            state.save(partial / "state.pt")
        if state.step == stop_at:
            return partial

    # 4. the finished base takes its place
    export(model.to(dtype), tokenizer, recipe, state.log, partial / "finished")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial / "finished", out)
    shutil.rmtree(partial)
    return out


def export(model, tokenizer, recipe: Any, log: list[dict], folder: Path) -> None:
    """Write a base as ``AutoModelForCausalLM.from_pretrained`` reads it, with its recipe and log beside it."""
    model.config._attn_implementation = "eager"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(_text(recipe) + "\n")
    pd.DataFrame(log).to_parquet(folder / "training_log.parquet", index=False)
