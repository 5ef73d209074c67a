"""What does the base know? Reading questions on draws it never saw, personas, legal answers, choices per scenario.

Everything is measured anew at each call, on games, label pairs and (in one set) wordings that ``config/heldout.yaml``
keeps out of the corpus. ``base_report`` is the table of the book's first chapter, also printed by
``python -m corpora.pocket report``.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
import pandas as pd

from corpora import attention
from corpora.pocket import corpus
from rewired import decisions
from rewired.answers import answer_logits, log_probability, logprobs
from rewired.prompts import SCENARIOS, Labels, Prompt, held_out, held_out_set, scenario_set

BATCH_SIZE = 16
"""Small batches stay in the processor's cache."""
SETS = ("seen labels", "unseen labels", "unseen wordings")
# floors: what a base must reach to be shipped
FLOORS = {"seen labels": 0.98, "unseen labels": 0.95, "unseen wordings": 0.70}


# --- asking ----------------------------------------------------------------------------------------------------------


def context_of(tokenizer, chat: corpus.Chat) -> list[int]:
    """The tokens of a chat, in the model's own template, up to where its last answer begins."""
    turns = []
    for user, answer in chat:
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_of(tokenizer, chat: corpus.Chat) -> list[int]:
    """The tokens of a chat's last answer and the end of its turn."""
    return [*decisions.label_ids(tokenizer, chat[-1][1]), decisions.end_of_turn(tokenizer)]


def answer_scores(model, tokenizer, chats: Sequence[corpus.Chat], batch_size: int = BATCH_SIZE) -> pd.DataFrame:
    """For the last answer of each chat: ``logp`` (nats, its end included) and ``exact``, whether greedy decoding gives
    precisely that answer."""
    contexts, answers = [], []
    for chat in chats:
        contexts.append(context_of(tokenizer, chat))
        answers.append(answer_of(tokenizer, chat))
    logp, exact = np.empty(len(chats)), np.empty(len(chats), dtype=bool)
    for i, _, capped in answer_logits(model, contexts, answers, batch_size):  # capped [token, vocabulary]
        logp[i] = log_probability(capped, answers[i])
        exact[i] = capped.argmax(-1).tolist() == answers[i]
    return pd.DataFrame({"logp": logp, "exact": exact})


def held_out_payoffs(rng: Random) -> corpus.Payoffs:
    """One of the held-out games, its moves in either order."""
    flat = rng.choice(sorted(corpus.held_out_keys()))
    flat = flat[::-1] if rng.random() < 0.5 else flat
    return ((flat[0], flat[1]), (flat[2], flat[3]))


def held_out_scene(rng: Random, framing: str | None = None, labels: tuple[str, str] | None = None) -> corpus.Scene:
    """A scene on a held-out game, with a round before it."""
    return corpus.draw_scene(rng, framing, labels, held_out_payoffs(rng), (rng.randrange(2), rng.randrange(2)))


# --- reading ---------------------------------------------------------------------------------------------------------


def reading_chat(rng: Random, skill: str, group: str, framing: str) -> corpus.Chat:
    """One reading question on a held-out game; ``group`` is one of ``SETS``."""
    writer = corpus.Writer(rng, held_out()["templates"] if group == "unseen wordings" else None)
    while True:
        labels = None
        if group == "unseen labels":
            labels = tuple(rng.sample(rng.choice(held_out()["labels"]["pairs"]), 2))
        scene = held_out_scene(rng, framing, labels)
        if turn := writer.read(scene, skill):  # not every game can answer every question
            return corpus.opened(writer.describe(scene), [turn])


def comprehension(model, tokenizer, n: int = 400, seed: int = 0, sets: Sequence[str] = SETS) -> pd.DataFrame:
    """Accuracy (greedy, exact) by set, skill and framing, on held-out games: columns set, skill, framing, n, correct,
    accuracy. ``n`` questions for each set and skill, shared evenly by the framings."""
    plan, chats = [], []
    for group in sets:
        for skill in corpus.SKILLS:
            rng = Random(f"reading-{seed}-{group}-{skill}")
            for k in range(n):
                framing = corpus.FRAMINGS[k % len(corpus.FRAMINGS)]
                plan.append((group, skill, framing))
                chats.append(reading_chat(rng, skill, group, framing))
    frame = pd.DataFrame(plan, columns=["set", "skill", "framing"])
    frame["correct"] = answer_scores(model, tokenizer, chats)["exact"].to_numpy()
    frame = frame.groupby(["set", "skill", "framing"], sort=False)["correct"].agg(n="size", correct="sum").reset_index()
    return frame.assign(accuracy=frame["correct"] / frame["n"])


# --- personas --------------------------------------------------------------------------------------------------------


def personas(model, tokenizer, n: int = 160, seed: int = 0) -> pd.DataFrame:
    """Probability of the act that a stated persona demands, on held-out games: columns persona, place (before the
    scene, or in the question), p_act, one row per draw."""
    rng, rows, chats = Random(f"personas-{seed}"), [], []
    for persona in corpus.PERSONAS:
        for k in range(n):
            writer, place = corpus.Writer(rng), ("scene", "question")[k % 2]
            scene = held_out_scene(rng)
            while {scene.kind, scene.selfish} != {0, 1}:  # a game in which kind and selfish differ
                scene = held_out_scene(rng)
            text = corpus.stated(writer, persona, scene)
            turn = writer.choose(scene, persona, text if place == "question" else "")
            chats.append(corpus.opened(writer.describe(scene, text if place == "scene" else None), [turn]))
            rows.append((persona, place))
    frame = pd.DataFrame(rows, columns=["persona", "place"])
    return frame.assign(p_act=np.exp(answer_scores(model, tokenizer, chats)["logp"].to_numpy()))


def implied(rng: Random, persona: str, how: str, prompt: Prompt) -> corpus.Chat:
    """A scenario prompt after a greeting, or with a note, in a persona's voice ("none": a plain greeting)."""
    templates = corpus.templates()
    if how == "greeting":
        voice = templates["neutral_hello"] if persona == "none" else templates["personas"][persona]["hello"]
        reply = rng.choice(voice)
        hello = corpus.vary(rng.choice(templates["hello_questions"]), rng)
        return [(hello, reply), (prompt.text, prompt.labels.cooperate)]
    other = "your friend" if "your friend" in prompt.text else "the other player"
    frame = rng.choice(templates["note_frames"])
    note = corpus.say(frame, rng, note=rng.choice(templates["personas"][persona]["notes"]), o=other)
    return [(f"{note} {prompt.text}", prompt.labels.cooperate)]


def implied_personas(model, tokenizer, labels=("action1", "action2"), n: int = 60, seed: int = 0) -> pd.DataFrame:
    """How far a persona that is only implied moves the choice: ``n`` scenario prompts, or all, after a greeting, or
    with a note, in that persona's voice. Columns persona ("none" for a plain greeting), how, scenario, p_defect,
    p_defect_alone."""
    prompts = scenario_set(labels)
    prompts = prompts[:: max(1, len(prompts) // n)]  # spread over the scenarios, which lie side by side
    alone = decisions.measure(model, tokenizer, prompts, batch_size=BATCH_SIZE, forms=False)["p_defect"]
    rng, rows, contexts = Random(f"implied-{seed}"), [], []
    for persona in ("none", *corpus.PERSONAS):
        for how in ("greeting",) if persona == "none" else ("greeting", "note"):
            for k, prompt in enumerate(prompts):
                contexts.append(context_of(tokenizer, implied(rng, persona, how, prompt)))
                rows.append((persona, how, prompt.scenario, alone[k]))
    # both labels after every context; asked in one go, they share their forward passes
    cooperate, defect = (decisions.label_ids(tokenizer, label) for label in labels)
    count = len(contexts)
    logp = logprobs(model, contexts * 2, [cooperate] * count + [defect] * count, BATCH_SIZE)
    delta = logp[count:] - logp[:count]
    frame = pd.DataFrame(rows, columns=["persona", "how", "scenario", "p_defect_alone"])
    return frame.assign(p_defect=1 / (1 + np.exp(-delta)))


# --- all of it -------------------------------------------------------------------------------------------------------

Row = tuple[str, str, float, float, float, int]
"""Group, quantity, value, lowest and highest value allowed (NaN where the number is only reported), n."""


def base_report(model, tokenizer, n: int = 400, seed: int = 0) -> pd.DataFrame:
    """The base in one tidy table: columns group, quantity, value, low, high (the allowed range; NaN where the number is
    only reported), n, passed (NA where only reported)."""
    with attention.grouped(model):  # the same function, in fewer passes over memory
        rows: list[Row] = []
        reading = comprehension(model, tokenizer, n, seed).groupby(["set", "skill"], sort=False)[["n", "correct"]].sum()
        for (group, skill), row in reading.iterrows():
            rows.append((f"reading, {group}", skill, row["correct"] / row["n"], FLOORS[group], 1.0, row["n"]))
        for persona, part in personas(model, tokenizer, n, seed).groupby("persona", sort=False):
            rows.append(("stated persona", persona, part["p_act"].mean(), 0.93, 1.0, len(part)))
        rows += _choices(model, tokenizer)
        for persona, part in implied_personas(model, tokenizer, n=n, seed=seed).groupby("persona", sort=False):
            change = (part["p_defect"] - part["p_defect_alone"]).mean()
            rows.append(("implied persona, change of p_defect", persona, change, np.nan, np.nan, len(part)))
    frame = pd.DataFrame(rows, columns=["group", "quantity", "value", "low", "high", "n"]).astype({"n": int})
    passed = frame["value"].between(frame["low"], frame["high"]).astype("boolean")
    return frame.assign(passed=passed.where(frame["low"].notna()))


def _choices(model, tokenizer) -> list[Row]:
    """Legal answers, p_defect by scenario, and how much it depends on which label means what."""
    measured, swapped, held = (
        decisions.measure(model, tokenizer, prompts, batch_size=BATCH_SIZE, forms=False)
        for prompts in (scenario_set(), scenario_set(Labels().reversed), held_out_set())
    )
    legal = pd.concat([measured, swapped, held])["legal_mass"]
    rows: list[Row] = [("answers", "legal_mass", legal.mean(), 0.999, 1.0, len(legal))]
    for scenario in SCENARIOS:
        part = measured[measured["scenario"] == scenario]["p_defect"]
        rows.append(("p_defect", scenario, part.mean(), 0.15, 0.85, len(part)))
    shift = swapped["p_defect"].mean() - measured["p_defect"].mean()
    rows.append(("p_defect", "change under reversed labels", shift, -0.05, 0.05, len(swapped)))
    return rows
