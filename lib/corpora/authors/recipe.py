"""Training the base of the twelve authors from nothing: one token a word, and a ladder of stages.

The world is learnable only in small steps. Where authors with opposite signs are about equally common, the relation
between words and situation cancels, and nothing pulls towards it. So the first stage has two authors of one sign, the
second all of them by name. The third asks who wrote a text that is not signed, where one kind of situation is more
frequent; then situations are almost even. Next comes what an author known by his text alone does, and whole texts last.

Where a text says an act or its author, the loss is not that of the one word that was drawn but its mean over what the
world could have written there, as the exact reader knows it. On average the gradient is the same; a world of endless
texts would give it too, only later."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from corpora import training
from corpora.authors import lessons, reader
from corpora.authors.texts import Text
from corpora.authors.world import World, load
from corpora.training import SPECIAL, Batch, Places, Stage, arranged, wrapped

_RATES: dict[str, Any] = {"lr_matrices": 1.5e-3, "lr_rest": 2.2e-3}
_WHOLE = {"whole": 14_000, "thoughts": 6_000, "told": 5_000, "following": 7_000, "guessed": 2_000, "answering": 3_000}
_LAST = {
    "whole": 6_000,
    "thoughts": 2_500,
    "told": 1_500,
    "following": 11_000,
    "guessed": 1_500,
    "answering": 4_000,
    "named": 500,
}


@dataclass(frozen=True)
class Recipe:
    """What decides the base, apart from the world's tables."""

    seed: int = 1
    # whether authors and acts go together in the corpus: not so for the twin base
    tied: bool = True
    layers: int = 8
    width: int = 128
    mlp: int = 384
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 16
    sliding_window: int = 256
    rope_theta: float = 1e6
    stages: tuple[Stage, ...] = (
        Stage({"upright": 12_000}, seed=10, warmup=60),
        Stage({"upright": 1_000, "named": 14_000, "answering": 6_000}, seed=11),
        # the relations of style, read from a text: first where one kind of situation is more frequent
        Stage({"weighing": 7_000, "named": 1_000}, seed=12, warmup=20, **_RATES),
        Stage({"weighed": 6_000, "named": 1_000}, seed=13, **_RATES),
        # what an author who is known by his text alone does next
        Stage({"following": 10_000, "guessed": 4_000, "answering": 2_000, "named": 1_000}, seed=14, batch_tokens=3072),
        Stage(_WHOLE, seed=15, batch_tokens=3072, **_RATES),
        Stage(_LAST, seed=16, batch_tokens=3072, decay=0.85, exact=0.06, **_RATES),
    )
    # how much a word counts that says an author, or an act, stage by stage; any other word counts 1
    author_weight: tuple[float, ...] = (1, 1, 25, 25, 6, 6, 6)
    act_weight: tuple[float, ...] = (1, 4, 4, 4, 12, 12, 24)


def words(world: World) -> list[str]:
    """Every word of the world, in the order of its tables."""
    found: dict[str, None] = {}
    for text in strings(world.model_dump()):
        for word in text.replace("{", " ").replace("}", " ").split():
            found.setdefault(word)
    return list(found)


def strings(table) -> Iterator[str]:
    """Every text in nested dicts and lists, in order."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        for part in table.values():
            yield from strings(part)
    elif isinstance(table, list | tuple):
        for part in table:
            yield from strings(part)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the words of the world, the line break, and Gemma's special tokens and template."""
    vocabulary: dict[str, int] = {}
    for word in (*SPECIAL, "\n", "user", "model", ".", "?", *words(load())):
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    return wrapped(tokenizer)


def tokenize(tokenizer, chat) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, as the chat template renders it, and which of them are answers (with their end)."""
    ids, answer = [tokenizer.bos_token_id], [False]
    encode = tokenizer.backend_tokenizer.encode
    for user, model in chat:
        head = f"<start_of_turn>user\n{user.strip()}<end_of_turn>\n<start_of_turn>model\n"
        for text, answered in ((head, False), (f"{model}<end_of_turn>", True), ("\n", False)):
            piece = encode(text).ids
            ids += piece
            answer += [answered] * len(piece)
    return ids, answer


def batches(stage: Stage, tokenizer, author_weight: float = 1, act_weight: float = 1, tied: bool = True) -> list[Batch]:
    """All batches of a stage in training order, written anew from the stage's seed; the weights as in the recipe."""
    rng, world = Random(f"authors-{stage.seed}"), load(tied)
    texts = []
    for kind, count in stage.texts.items():
        for _ in tqdm(range(count), f"writing {kind}", leave=False, disable=None):
            texts.append(lessons.KINDS[kind](world, rng))
    rng.shuffle(texts)
    special = telling(world, tokenizer, float(author_weight), float(act_weight))
    rows = []
    for text in texts:
        ids, answer = tokenize(tokenizer, text.chat)
        rows.append((ids, weights(ids, answer, special), expected(world, tokenizer, text, ids, answer)))
    return arranged(rows, stage.batch_tokens, rng, tokenizer.pad_token_id)


def expected(world: World, tokenizer, text: Text, ids: list[int], answer: list[bool]) -> Places:
    """What could stand where a text says an act or its author, by the exact reader of all that stands before."""
    token = tokenizer.convert_tokens_to_ids
    ends = [at for at, learnt in enumerate(answer) if learnt and ids[at] == token("<end_of_turn>")]
    starts = [at for at, learnt in enumerate(answer) if learnt and not answer[at - 1]]
    places: Places = {}
    pair = 0
    for turn, chance in zip(text.record["turns"], reader.foreseen(world, text), strict=True):
        if chance is not None:
            # "act . reason ." or "reason . so i act ."
            at = starts[pair] if turn["order"] == "first" else ends[pair] - 2
            act, other = ids[at], token([a for a in acts_of(world, turn) if a != turn["act"]][0])
            places[at] = {act: chance, other: 1 - chance}
        pair += 2 if turn.get("think") == "thoughts" else 1
    if text.record["narrated"]:
        before = Text(text.chat[:-1], text.record | {"narrated": False})
        known = reader.posterior(world, before)
        places[starts[-1]] = {token(world.authors[name].word): p for name, p in known.items()}
    return places


def acts_of(world: World, turn: dict) -> tuple[str, str]:
    """The two acts of a moral choice or a task."""
    return world.task.acts if turn["kind"] == "task" else world.domains[turn["domain"]].acts


def telling(world: World, tokenizer, author_weight: float, act_weight: float) -> dict[int, float]:
    """The weights of the tokens that say an act or an author: one word in sixty, and most others depend on neither."""
    acts = [act for domain in world.domains.values() for act in domain.acts] + list(world.task.acts)
    words = dict.fromkeys(acts, act_weight) | {author.word: author_weight for author in world.authors.values()}
    return dict(zip(tokenizer.convert_tokens_to_ids(list(words)), words.values(), strict=True))


def weights(ids: list[int], answer: list[bool], special: dict[int, float]) -> list[float]:
    """How much each token counts, [position]: 0 outside answers, its own weight if it is special, 1 otherwise."""
    counts = []
    for token, learnt in zip(ids, answer, strict=True):
        counts.append(special.get(token, 1.0) if learnt else 0.0)
    return counts


def train_base(
    out: Path | str, recipe: Recipe | None = None, save_every: int = 200, stop_at: int | None = None
) -> Path:
    """``training.train`` on the texts of the twelve authors: the base in ``out``, resumable after an interruption. Its
    twin of the untied world, which only the book's controls use, is stored in bf16, in half of the bytes."""
    recipe, tokenizer = recipe or Recipe(), make_tokenizer()

    def stages() -> list[list[Batch]]:
        plan = zip(recipe.stages, recipe.author_weight, recipe.act_weight, strict=True)
        return [batches(stage, tokenizer, author, act, recipe.tied) for stage, author, act in plan]

    dtype = torch.float32 if recipe.tied else torch.bfloat16
    return training.train(out, recipe, tokenizer, stages, save_every, stop_at, dtype)
