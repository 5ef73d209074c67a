"""Training the base of the twelve authors from nothing: one token a word, and a ladder of four stages.

The world is learnable only in small steps. Where authors with opposite signs are about equally common, the relation
between words and situation cancels, and nothing pulls towards it. So the first stage has two authors of one sign, the
second all of them by name, the third asks who wrote a text that is not signed, and the last has whole texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from corpora import training
from corpora.authors import lessons
from corpora.authors.world import World, load
from corpora.training import SPECIAL, Batch, Stage, arranged, wrapped


@dataclass(frozen=True)
class Recipe:
    """What decides the base, apart from the world's tables."""

    seed: int = 1
    layers: int = 6
    width: int = 128
    mlp: int = 384
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 16
    sliding_window: int = 256
    rope_theta: float = 1e6
    stages: tuple[Stage, ...] = (
        Stage({"upright": 14_000}, seed=10, warmup=60),
        Stage({"upright": 2_000, "named": 26_000}, seed=11),
        Stage({"named": 8_000, "guessed": 22_000}, seed=12),
        Stage(
            {"named": 2_000, "guessed": 8_000, "told": 5_000, "thoughts": 5_000, "whole": 22_000},
            seed=13,
            batch_tokens=3072,
            decay=0.7,
            exact=0.04,
        ),
    )


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


def batches(stage: Stage, tokenizer) -> list[Batch]:
    """All batches of a stage in training order, written anew from the stage's seed."""
    rng, world = Random(f"authors-{stage.seed}"), load()
    chats = []
    for kind, count in stage.texts.items():
        for _ in tqdm(range(count), f"writing {kind}", leave=False, disable=None):
            chats.append(lessons.KINDS[kind](world, rng).chat)
    rng.shuffle(chats)
    rows = [tokenize(tokenizer, chat) for chat in chats]
    return arranged(rows, stage.batch_tokens, rng, tokenizer.pad_token_id)


def train_base(
    out: Path | str, recipe: Recipe | None = None, save_every: int = 200, stop_at: int | None = None
) -> Path:
    """``training.train`` on the texts of the twelve authors: the base in ``out``, resumable after an interruption."""
    recipe, tokenizer = recipe or Recipe(), make_tokenizer()

    def stages() -> list[list[Batch]]:
        return [batches(stage, tokenizer) for stage in recipe.stages]

    return training.train(out, recipe, tokenizer, stages, save_every, stop_at)
