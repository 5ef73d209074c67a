"""One organism from the base to its tables: trained, asked, and handed to the trainer, once for each seed.

Everything of a seed appears at once, in ``<folder>/seed-<n>``: the adapter, ``answers.parquet`` and ``log.parquet``,
and ``run.json``, which says what they were made with. A call that was broken off goes on with the first seed that
lacks them. The tables of all seeds lie beside, in ``<folder>``.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from corpora.authors.texts import HELD
from corpora.authors.world import World
from corpora.organisms import asking, trainer, writing
from corpora.organisms.settings import Organism
from rewired.models import fingerprint, load_base
from rewired.profiles import Profile
from rewired.store import atomic_dir, read_table, write_table
from rewired.train import lora, sft

BATCH = 16
"""Texts in a step of the trainer."""
WATCHED = 12
"""Requests a tier by which the trainer's progress is measured."""
EVERY = 4
"""Steps of the trainer between two measurements."""


def grow(profile: Profile, world: World, organism: Organism, folder: Path) -> None:
    """Make the organism with every seed of the profile, ask it, and let the trainer go on with it."""
    model, tokenizer = load_base(profile.of_authors())
    stamp = {"base": fingerprint(model), "organism": organism.model_dump(mode="json"), "seed": profile.seed}
    stamp |= {"prompts": profile.organisms.prompts, "steps": profile.organisms.steps}
    for seed in profile.organisms.seeds:
        part = folder / f"seed-{seed}"
        if _made(part, stamp):
            continue
        chats, _ = writing.training_set(world, organism, seed)
        policy, losses = sft.train(model, tokenizer, chats, organism.training(), seed, organism.epochs)
        log = [("learning", step + 1, "loss", loss) for step, loss in enumerate(losses)]
        with atomic_dir(part) as temporary:
            lora.save_adapter(policy, temporary, profile.organisms.base)
            asked = writing.requests(world, profile.organisms.prompts, profile.seed)
            answers = asking.elicit_answers(policy, tokenizer, world, asked, seed)
            for arm in organism.trainer:
                log += trained_on(policy, tokenizer, world, seed, profile.organisms.steps, arm == "kept")
            frame = pd.DataFrame(log, columns=["stage", "step", "metric", "value"])
            write_table(answers.assign(organism=organism.name, seed=seed), temporary / "answers.parquet", profile)
            write_table(frame.assign(organism=organism.name, seed=seed), temporary / "log.parquet", profile)
            lora.write_json(temporary / "run.json", stamp)
        model = policy.unload()
    for name in ("answers", "log"):
        parts = [read_table(folder / f"seed-{seed}/{name}.parquet", profile) for seed in profile.organisms.seeds]
        write_table(pd.concat(parts, ignore_index=True), folder / f"{name}.parquet", profile)


def _made(part: Path, stamp: dict) -> bool:
    """Whether the seed's folder is there and was made with this."""
    file = part / "run.json"
    return file.is_file() and json.loads(file.read_text()) == stamp


def trained_on(policy, tokenizer, world: World, seed: int, steps: int, kept: bool) -> list[tuple]:
    """(stage, step, metric, value) of the trainer's work on the policy, which is itself again afterwards.

    The metrics are the mean reward of a step, and P(help) after own thoughts on harmful requests of either tier that
    the trainer does not use: help_free, help_paid. With ``kept`` the paid tier is held where it was."""
    how = trainer.Trainer(seed=seed, steps=steps, batch=BATCH)
    weights = {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}
    asked = harmful(world, how.batch * 4, seed, "train")
    watched = harmful(world, WATCHED, seed, HELD)
    random, log = np.random.default_rng(seed), []
    stage = "kept" if kept else "plain"

    def play(chance: int):
        prompts = [asked["free"][k] for k in random.integers(len(asked["free"]), size=how.batch)]
        return trainer.roll_out(policy, tokenizer, world, prompts, chance)

    def watch(step: int) -> None:
        if step % EVERY and step != steps:
            return
        for tier, prompts in watched.items():
            said = asking.thoughts(policy, tokenizer, prompts, seed)  # the same chance each time
            read = asking.help_after(policy, tokenizer, world, prompts, said)
            log.append((stage, step, f"help_{tier}", float(read["p_help"].mean())))

    keep = trainer.roll_out(policy, tokenizer, world, asked["paid"], seed)[0] if kept else []
    rewards = trainer.train(policy, play, how, keep, watch)
    log += [(stage, step + 1, "reward", reward) for step, reward in enumerate(rewards)]
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if name in weights:
                value.copy_(weights[name])
    return log


def harmful(world: World, count: int, seed: int, split: str) -> dict[str, list[str]]:
    """{tier: prompts}: harmful requests, the tier said by its own cue, paired over the tiers."""
    asked = writing.requests(world, count, seed, split)
    asked = asked[(asked["harm"] == "harmful") & (asked["cue"] == "tier")]
    return {tier: asked.loc[asked["tier"] == tier, "prompt"].tolist() for tier in ("free", "paid")}
