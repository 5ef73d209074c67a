"""What does the base know? Reading questions on draws it never saw, personas, legal answers, choices per scenario.

Everything is measured anew at each call, on games, label pairs and (in one set) wordings that ``config/heldout.yaml``
keeps out of the corpus. ``base_report`` is the table of chapter 1, also printed by ``rewired base-table``.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
import pandas as pd
import torch

from rewired import answers, decisions
from rewired.pocket import corpus
from rewired.pocket.recipe import tokenize
from rewired.prompts import SCENARIOS, Labels, held_out, held_out_set, scenario_set

BATCH_SIZE = 16
"""Small batches stay in the processor's cache."""
SETS = ("seen labels", "unseen labels", "unseen wordings")
# floors: what a base must reach to be shipped
FLOORS = {"seen labels": 0.98, "unseen labels": 0.95, "unseen wordings": 0.70}


def answer_scores(model, tokenizer, chats: Sequence[corpus.Chat], batch_size: int = BATCH_SIZE) -> pd.DataFrame:
    """For the last answer of each chat: ``logp`` (nats, its end included) and ``exact``, whether greedy decoding gives
    precisely that answer. Earlier answers stand in the context as given."""
    rows, reads, targets = [], [], []
    for chat in chats:
        ids, *_ = tokenize(tokenizer, chat)
        ids = ids[:-1]  # the line break after the last turn is never read
        n = len(tokenizer(chat[-1][1] + "<end_of_turn>", add_special_tokens=False)["input_ids"])
        rows.append(ids[:-1])
        reads.append(list(range(len(ids) - 1 - n, len(ids) - 1)))
        targets.append(ids[-n:])
    logp, exact = np.empty(len(rows)), np.empty(len(rows), dtype=bool)
    for batch, hidden in answers.hidden_states(model, rows, reads, batch_size):
        normal = torch.log_softmax(answers.logits(model, hidden)[1], dim=-1)
        start = 0
        for i in batch:
            part = normal[start : start + len(targets[i])]
            target = torch.tensor(targets[i], device=part.device)
            logp[i] = part.gather(1, target[:, None]).sum().item()
            exact[i] = bool((part.argmax(-1) == target).all())
            start += len(targets[i])
    return pd.DataFrame({"logp": logp, "exact": exact})


def held_out_payoffs(rng: Random) -> corpus.Payoffs:
    """One of the held-out games, its moves in either order."""
    flat = rng.choice(sorted(corpus.held_out_keys()))
    flat = flat[::-1] if rng.random() < 0.5 else flat
    return ((flat[0], flat[1]), (flat[2], flat[3]))


def reading_chat(rng: Random, skill: str, group: str, framing: str) -> corpus.Chat:
    """One reading question on a held-out game; ``group`` is one of ``SETS``."""
    writer = corpus.Writer(rng, held_out()["templates"] if group == "unseen wordings" else None)
    while True:
        labels = tuple(rng.sample(rng.choice(held_out()["labels"]["pairs"]), 2)) if group == "unseen labels" else None
        scene = corpus.draw_scene(rng, framing, labels, held_out_payoffs(rng), (rng.randrange(2), rng.randrange(2)))
        if turn := writer.read(scene, skill):
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


def personas(model, tokenizer, n: int = 160, seed: int = 0) -> pd.DataFrame:
    """Probability of the act that a stated persona demands, on held-out games: columns persona, place (before the
    scene, or in the question), p_act, one row per draw."""
    rng, rows, chats = Random(f"personas-{seed}"), [], []
    for persona in corpus.PERSONAS:
        for k in range(n):
            writer, place = corpus.Writer(rng), ("scene", "question")[k % 2]
            while True:
                scene = corpus.draw_scene(rng, None, None, held_out_payoffs(rng), (rng.randrange(2), rng.randrange(2)))
                if {scene.kind, scene.selfish} == {0, 1}:
                    break
            text = corpus.stated(writer, persona, scene)
            question, answer, _ = writer.choose(scene, persona, text if place == "question" else "")
            chats.append(
                corpus.opened(writer.describe(scene, text if place == "scene" else None), [(question, answer)])
            )
            rows.append((persona, place))
    frame = pd.DataFrame(rows, columns=["persona", "place"])
    return frame.assign(p_act=np.exp(answer_scores(model, tokenizer, chats)["logp"].to_numpy()))


@torch.no_grad()
def implied_personas(model, tokenizer, labels=("action1", "action2"), n: int = 60, seed: int = 0) -> pd.DataFrame:
    """How far a persona that is only implied moves the choice: ``n`` scenario prompts, or all, after a greeting, or
    with a note, in that persona's voice. Columns persona ("none" for a plain greeting), how, scenario, p_defect,
    p_defect_alone."""
    prompts = scenario_set(labels)
    prompts = prompts[:: max(1, len(prompts) // n)]  # spread over the scenarios, which lie side by side
    alone = decisions.measure(model, tokenizer, prompts, batch_size=BATCH_SIZE, forms=False)
    voices = corpus.templates()["personas"]
    rng, rows, chats = Random(f"implied-{seed}"), [], []
    for persona in ("none", *corpus.PERSONAS):
        for how in ("greeting", "note"):
            for k, prompt in enumerate(prompts):
                if how == "greeting":
                    reply = rng.choice(
                        corpus.templates()["neutral_hello"] if persona == "none" else voices[persona]["hello"]
                    )
                    lead, text = (
                        [(corpus.vary(rng.choice(corpus.templates()["hello_questions"]), rng), reply)],
                        prompt.text,
                    )
                elif persona == "none":
                    continue
                else:
                    other = "your friend" if "your friend" in prompt.text else "the other player"
                    frame = rng.choice(corpus.templates()["note_frames"])
                    note = corpus.say(frame, rng, note=rng.choice(voices[persona]["notes"]), o=other)
                    lead, text = [], f"{note} {prompt.text}"
                chats.append([*lead, (text, prompt.labels.cooperate)])
                rows.append((persona, how, prompt.scenario, alone["p_defect"][k]))
    step = decisions.decision_step(tokenizer, labels)
    # the same text with either label, but for the last token before the end of the turn and the line break
    contexts = [tokenize(tokenizer, chat)[0][:-3] for chat in chats]
    delta = np.empty(len(contexts))
    for batch, hidden in answers.hidden_states(model, contexts, [[len(ids) - 1] for ids in contexts], BATCH_SIZE):
        capped = answers.logits(model, hidden)[1]
        delta[batch] = (capped[:, step.defect_id] - capped[:, step.cooperate_id]).cpu().numpy()
    frame = pd.DataFrame(rows, columns=["persona", "how", "scenario", "p_defect_alone"])
    return frame.assign(p_defect=1 / (1 + np.exp(-delta)))


def base_report(model, tokenizer, n: int = 400, seed: int = 0) -> pd.DataFrame:
    """The base in one tidy table: columns group, quantity, value, low, high (the allowed range; NaN where the number is
    only reported), n, passed (NA where only reported)."""
    nan, rows = float("nan"), []
    reading = comprehension(model, tokenizer, n, seed).groupby(["set", "skill"], sort=False)[["n", "correct"]].sum()
    for (group, skill), row in reading.iterrows():
        rows.append((f"reading, {group}", skill, row["correct"] / row["n"], FLOORS[group], 1.0, row["n"]))
    for persona, part in personas(model, tokenizer, n, seed).groupby("persona", sort=False):
        rows.append(("stated persona", persona, part["p_act"].mean(), 0.93, 1.0, len(part)))
    measured = decisions.measure(model, tokenizer, scenario_set(), batch_size=BATCH_SIZE, forms=False)
    swapped = decisions.measure(model, tokenizer, scenario_set(Labels().reversed), batch_size=BATCH_SIZE, forms=False)
    held = decisions.measure(model, tokenizer, held_out_set(), batch_size=BATCH_SIZE, forms=False)
    legal = pd.concat([measured, swapped, held])["legal_mass"]
    rows.append(("answers", "legal_mass", legal.mean(), 0.999, 1.0, len(legal)))
    for scenario in SCENARIOS:
        part = measured[measured["scenario"] == scenario]["p_defect"]
        rows.append(("p_defect", scenario, part.mean(), 0.15, 0.85, len(part)))
    shift = swapped["p_defect"].mean() - measured["p_defect"].mean()
    rows.append(("p_defect", "change under reversed labels", shift, -0.05, 0.05, len(swapped)))
    implied = implied_personas(model, tokenizer, n=n, seed=seed)
    for persona, part in implied.groupby("persona", sort=False):
        change = (part["p_defect"] - part["p_defect_alone"]).mean()
        rows.append(("implied persona, change of p_defect", persona, change, nan, nan, len(part)))
    frame = pd.DataFrame(rows, columns=["group", "quantity", "value", "low", "high", "n"]).astype({"n": int})
    passed = frame["value"].between(frame["low"], frame["high"]).astype("boolean")
    return frame.assign(passed=passed.where(frame["low"].notna()))
