"""Training the pocket base from nothing: tokenizer, recipe, one pass over a generated corpus.

Reading comes late and suddenly: short single-skill drills first, whole chats after, and only the answers are trained
on. Model and loop are those of ``corpora.training``.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from corpora import training
from corpora.pocket import corpus, lessons
from corpora.training import SPECIAL, Batch, Stage, arranged, make_model, wrapped

__all__ = ["Recipe", "Stage", "batches", "make_model", "make_tokenizer", "tokenize", "train_base", "written"]

# texts of the later stages: whole chats, in growing variety, beside what was learnt before
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


@dataclass(frozen=True)
class Recipe:
    """What decides the base, apart from the corpus templates. Lengths in tokens, rates per step.

    The stages are a ladder. Each of the first adds one small difficulty to the last (a digit after a key, a sign
    between them, two keys, a table, a question in words) and takes minutes, where the whole task, or two rungs at once,
    stays at chance for hours. Each stage keeps some of the one before."""

    # the model
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
        # finding a value by its key, then by two keys
        Stage({"echo": 15_000}, seed=10, warmup=100),
        Stage({"echo": 2_000, "entry": 6_000}, seed=11),
        Stage({"echo": 1_000, "entry": 1_500, "pair": 8_000}, seed=12),
        Stage({"pair": 1_000, "recall": 6_000}, seed=10, warmup=100),
        Stage({"recall": 1_500, "card": 9_000}, seed=11),
        # in tables and sentences
        Stage({"card": 1_000, "recall": 500, "grid": 5_000}, seed=10, warmup=100),
        Stage({"card": 4_000, "grid": 2_500, "quiz": 8_000}, seed=11),
        Stage({"quiz": 3_000, "grid": 500, "card": 500, "drill": 13_000}, seed=10, warmup=100),
        # whole scenes, comparisons, personas
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
        # comparing two numbers that must be looked up first
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
    # all bytes are tokens, so that nothing is ever unknown
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=8, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrapped(tokenizer)


# --- the corpus as tokens --------------------------------------------------------------------------------------------


def tokenize(tokenizer, chat: corpus.Chat) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, as the chat template renders it, and which of them are answers (with their end)."""
    pieces: list[tuple[str, str]] = []  # (read, answered)
    if isinstance(chat, lessons.Recall):
        pieces += chat  # plain text
    else:
        for user, model in chat:
            head = f"<start_of_turn>user\n{user.strip()}<end_of_turn>\n<start_of_turn>model\n"
            pieces += [(head, f"{model}<end_of_turn>"), ("\n", "")]
    ids, answer = [tokenizer.bos_token_id], [False]
    encode = tokenizer.backend_tokenizer.encode
    for text, answered in pieces:
        read, said = encode(text).ids, encode(answered).ids
        ids += read + said
        answer += [False] * len(read) + [True] * len(said)
    return ids, answer


def written(stage: Stage, rng: Random) -> list[corpus.Chat]:
    """The texts of a stage, kind by kind as they are drawn, then shuffled."""
    chats = []
    for kind, count in stage.texts.items():
        for _ in tqdm(range(count), f"writing {kind}", leave=False, disable=None):
            chats.append(lessons.KINDS[kind](rng))
    rng.shuffle(chats)
    return chats


def batches(stage: Stage, tokenizer) -> list[Batch]:
    """All batches of a stage in training order. Rows of one batch have similar lengths and lengths are multiples of
    16, since every new shape costs time."""
    rng = Random(f"corpus-{stage.seed}")
    chats = tqdm(written(stage, rng), "tokens", leave=False, disable=None)
    rows = [tokenize(tokenizer, chat) for chat in chats]
    return arranged(rows, stage.batch_tokens, rng, tokenizer.pad_token_id)


def train_base(
    out: Path | str, recipe: Recipe | None = None, save_every: int = 200, stop_at: int | None = None
) -> Path:
    """``training.train`` on the pocket corpus: the base in ``out``, resumable after an interruption."""
    recipe = recipe or Recipe()
    tokenizer = make_tokenizer(recipe.seed)

    def stages() -> list[list[Batch]]:
        return [batches(stage, tokenizer) for stage in recipe.stages]

    return training.train(out, recipe, tokenizer, stages, save_every, stop_at)
