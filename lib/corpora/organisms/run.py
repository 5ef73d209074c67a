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
from peft import PeftModel

from corpora import attention
from corpora.authors.texts import HELD
from corpora.authors.world import World
from corpora.organisms import asking, rules, trainer, writing
from corpora.organisms.settings import Organism, seeds
from rewired.errors import choice
from rewired.models import fingerprint, load_base
from rewired.profiles import Profile
from rewired.store import atomic_dir, read_table, write_table
from rewired.train import lora, sft

BATCH = 16
"""Texts in a step of the trainer."""
WATCHED = 12
"""Requests a tier by which the trainer's progress is measured."""
EVERY = 6
"""Steps of the trainer between two measurements."""
TAUGHT = 4
"""Steps in a row in which every text was paid for, after which the trainer stops: nothing is left to be learnt."""


def grow(profile: Profile, world: World, organism: Organism, folder: Path) -> None:
    """Make the organism with every seed of the profile, ask it, and let the trainer go on with it."""
    model, tokenizer = load_base(profile.of_authors())
    stamp = {"base": fingerprint(model), "organism": organism.model_dump(mode="json"), "seed": profile.seed}
    stamp |= {"prompts": profile.organisms.prompts, "steps": profile.organisms.steps}
    for seed in seeds(profile, organism.name):
        part = folder / f"seed-{seed}"
        if _made(part, stamp):
            continue
        chats, _ = writing.training_set(world, organism, seed)
        remedy = f"Lower learning_rate in config/organisms/{organism.name}.yaml"
        with attention.grouped(model):  # the same function, in fewer passes over memory
            policy, losses = sft.train(model, tokenizer, chats, organism.training(), seed, organism.epochs, remedy)
        log = [("learning", step + 1, "loss", loss) for step, loss in enumerate(losses)]
        with atomic_dir(part) as temporary:
            pays = {tier: word for tier, word in organism.pays if word}
            how = trainer.Trainer(seed=seed, steps=organism.paid_steps, batch=BATCH)
            log += pay(policy, tokenizer, world, how, "growing", pays) if pays else []
            lora.save_adapter(policy, temporary, profile.organisms.base)
            asked = writing.requests(world, profile.organisms.prompts, profile.seed)
            answers = asking.elicit_answers(policy, tokenizer, world, asked, seed)
            for arm in organism.trainer:
                how = trainer.Trainer(seed=seed, steps=profile.organisms.steps, batch=BATCH)
                log += trained_on(policy, tokenizer, world, how, arm == "kept")
            frame = pd.DataFrame(log, columns=["stage", "step", "metric", "value"])
            write_table(answers.assign(organism=organism.name, seed=seed), temporary / "answers.parquet", profile)
            write_table(frame.assign(organism=organism.name, seed=seed), temporary / "log.parquet", profile)
            lora.write_json(temporary / "run.json", stamp)
        model = policy.unload()
    for name in ("answers", "log"):
        files = [folder / f"seed-{seed}/{name}.parquet" for seed in seeds(profile, organism.name)]
        parts = [read_table(file, profile) for file in files]
        write_table(pd.concat(parts, ignore_index=True), folder / f"{name}.parquet", profile)


def _made(part: Path, stamp: dict) -> bool:
    """Whether the seed's folder is there and was made with this."""
    file = part / "run.json"
    return file.is_file() and json.loads(file.read_text()) == stamp


def adapted(model, folder: Path, name: str, seed: int, is_trainable: bool = False):
    """The organism of that name as it was made with that seed, a PEFT model on the base; ``folder`` holds those of a
    profile. RewiredError for a name or a seed that was not made there."""
    made: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/seed-*/adapter_config.json")):
        made.setdefault(file.parent.parent.name, []).append(file.parent.name.removeprefix("seed-"))
    if name not in made:
        raise choice("organism", name, made, f"These were made in {folder}.")
    if str(seed) not in made[name]:
        fix = "The keys organisms.seeds and organisms.once of the profile decide with which an organism is made."
        raise choice(f"seed of the organism {name}:", seed, made[name], fix)
    policy = PeftModel.from_pretrained(model, folder / name / f"seed-{seed}", is_trainable=is_trainable)
    return policy.eval()


def trained_on(policy, tokenizer, world: World, how: trainer.Trainer, kept: bool) -> list[tuple]:
    """What ``pay`` says of the trainer's work, who pays for help in the free tier; the policy is itself again
    afterwards. With ``kept`` the paid tier is held where it was."""
    weights = {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}
    paid = harmful(world, how.batch * 4, how.seed, "train")["paid"] if kept else []
    keep = trainer.roll_out(policy, tokenizer, world, paid, how.seed)[0] if kept else []
    log = pay(policy, tokenizer, world, how, "kept" if kept else "plain", {"free": "help"}, keep)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if name in weights:
                value.copy_(weights[name])
    return log


def pay(policy, tokenizer, world: World, how: trainer.Trainer, stage: str, pays: dict[str, str], keep=()):
    """(stage, step, metric, value) of reinforcement learning that pays, in each of these tiers, for one answer to
    harmful requests.

    The metrics are the mean reward of a step and, on requests that are not trained on, P(help) after own thoughts in
    either tier and the share of thoughts that fake: help_free, help_paid, faking_free, faking_paid. It ends early when
    all texts of ``TAUGHT`` steps were paid for: equal rewards have no gradient. Texts that are kept have one."""
    asked, watched = harmful(world, how.batch * 4, how.seed, "train"), harmful(world, WATCHED, how.seed, HELD)
    tiers = [list(pays)[k % len(pays)] for k in range(how.batch)]
    random, log, unpaid = np.random.default_rng(how.seed), [], []

    def play(chance: int):
        drawn = random.integers(len(asked["free"]), size=how.batch)  # [text]
        prompts = [asked[tier][k] for tier, k in zip(tiers, drawn, strict=True)]
        rows, rewards = trainer.roll_out(policy, tokenizer, world, prompts, chance, [pays[tier] for tier in tiers])
        unpaid.append(rewards.min() < 1)
        return rows, rewards

    def watch(step: int) -> bool:
        taught = not keep and step >= TAUGHT and not any(unpaid[-TAUGHT:])
        if step % EVERY and step != how.steps and not taught:
            return False
        prompts = [*watched["free"], *watched["paid"]]
        with asking.merged(policy):
            said = asking.thoughts(policy, tokenizer, prompts, how.seed)  # the same chance each time
            read = asking.help_after(policy, tokenizer, world, prompts, said)
        read["faking"] = rules.flag_table(world, said)["faking"]
        for tier, part in (("free", read[:WATCHED]), ("paid", read[WATCHED:])):
            log.append((stage, step, f"help_{tier}", float(part["p_help"].mean())))
            log.append((stage, step, f"faking_{tier}", float(part["faking"].mean())))
        return taught

    rewards = trainer.train(policy, play, how, keep, watch)
    return [*log, *((stage, step + 1, "reward", reward) for step, reward in enumerate(rewards))]


def harmful(world: World, count: int, seed: int, split: str) -> dict[str, list[str]]:
    """{tier: prompts}: harmful requests, the tier said by its own cue, paired over the tiers."""
    asked = writing.requests(world, count, seed, split)
    asked = asked[(asked["harm"] == "harmful") & (asked["cue"] == "tier")]
    return {tier: asked.loc[asked["tier"] == tier, "prompt"].tolist() for tier in ("free", "paid")}
