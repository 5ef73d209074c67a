"""Training the base of the twelve authors from nothing: one token a word, and a ladder of stages.

The world is learnable only in small steps. Where authors with opposite signs are about equally common, the relation
between words and situation cancels, and nothing pulls towards it. So the first stage has two authors of one sign, the
second all of them by name, and the third asks who wrote a text that is not signed. Whole texts follow; then, where one
kind of stakes is more frequent, the relation is found in a text; last comes what its author does next."""

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

_LAST = {
    "answering": 8_000,
    "named": 1_000,
    "told": 2_000,
    "placed": 2_500,
    "foretold": 4_000,
    "thoughts": 2_500,
    "whole": 6_000,
}
_ACTS = {"answering": 5_000, "foretold": 5_000, "guessed": 1_500, "whole": 2_500}


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
            {"named": 2_000, "guessed": 15_000, "told": 5_000, "thoughts": 5_000, "whole": 17_000},
            seed=13,
            batch_tokens=3072,
            decay=0.7,
            exact=0.04,
        ),
        # the relation of weight and stakes, read from a text: first where one kind of stakes is more frequent
        Stage({"weighing": 3_400}, seed=14, lr_matrices=1.5e-3, lr_rest=2.2e-3, warmup=30),
        Stage({"weighed": 2_000}, seed=15, lr_matrices=1.5e-3, lr_rest=2.2e-3),
        Stage({"placing": 2_500, "placed": 2_500}, seed=16, lr_matrices=1.5e-3, lr_rest=2.2e-3),
        Stage(
            {"named": 1_500, "placed": 4_000, "guessed": 3_000, "told": 3_000, "thoughts": 3_000, "whole": 11_000},
            seed=17,
            batch_tokens=3072,
            lr_matrices=1.5e-3,
            lr_rest=2.2e-3,
            decay=0.8,
            exact=0.05,
        ),
        # what an author who is known by his text alone does next
        Stage({"foretelling": 5_000}, seed=18, batch_tokens=3072, lr_matrices=1.5e-3, lr_rest=2.2e-3, warmup=30),
        Stage({"foretold": 7_000, "placed": 1_500}, seed=19, batch_tokens=3072, lr_matrices=1.5e-3, lr_rest=2.2e-3),
        Stage(_LAST, seed=20, batch_tokens=3072, lr_matrices=1.5e-3, lr_rest=2.2e-3, decay=0.9, exact=0.05),
        # no lesson in which acts say nothing: they had drawn the acts of unnamed authors towards one half
        Stage(_ACTS, seed=21, batch_tokens=3072, lr_rest=2.2e-3, lr_matrices=1.5e-3, warmup=40, decay=0.8, fresh=True),
    )
    # how much a word counts that says an author, or an act, stage by stage; any other word counts 1
    author_weight: tuple[float, ...] = (1, 1, 1, 6, 25, 25, 25, 6, 1, 12, 8, 6)
    act_weight: tuple[float, ...] = (1, 1, 1, 6, 0, 0, 0, 6, 12, 12, 8, 12)


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


def batches(stage: Stage, tokenizer, author_weight: float = 1, act_weight: float = 1) -> list[Batch]:
    """All batches of a stage in training order, written anew from the stage's seed; the weights as in the recipe."""
    rng, world = Random(f"authors-{stage.seed}"), load()
    chats = []
    for kind, count in stage.texts.items():
        for _ in tqdm(range(count), f"writing {kind}", leave=False, disable=None):
            chats.append(lessons.KINDS[kind](world, rng).chat)
    rng.shuffle(chats)
    rows: list[tuple] = [tokenize(tokenizer, chat) for chat in chats]
    if (author_weight, act_weight) != (1, 1):
        special = telling(world, tokenizer, float(author_weight), float(act_weight))
        rows = [(ids, weights(ids, answer, special)) for ids, answer in rows]
    return arranged(rows, stage.batch_tokens, rng, tokenizer.pad_token_id)


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
    """``training.train`` on the texts of the twelve authors: the base in ``out``, resumable after an interruption."""
    recipe, tokenizer = recipe or Recipe(), make_tokenizer()

    def stages() -> list[list[Batch]]:
        plan = zip(recipe.stages, recipe.author_weight, recipe.act_weight, strict=True)
        return [batches(stage, tokenizer, author, act) for stage, author, act in plan]

    return training.train(out, recipe, tokenizer, stages, save_every, stop_at)
