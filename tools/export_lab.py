"""The files of the page on which readers patch models: the models, the book's own numbers, how a run learnt.

    python tools/export_lab.py models FOLDER      # lab.js, base.js and an adapter a run; the folder appears whole
    python tools/export_lab.py courses FOLDER     # learnt-<variant>-<seed>.js of a run of each variant, likewise

The profile is the Snakefile's: REWIRED_PROFILE and REWIRED_OVERRIDES, as YAML and JSON."""

import ast
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import yaml
from papermill import inspect_notebook
from transformers import AutoConfig, AutoTokenizer

from rewired import lab
from rewired.decisions import decision_step, measure
from rewired.errors import RewiredError, command_line
from rewired.execute import start
from rewired.games import STATES
from rewired.models import Variants
from rewired.profiles import ROOT, Profile
from rewired.prompts import CANONICAL, Prompt, as_labels, held_out, held_out_matrices, scenario_set, study_set
from rewired.store import atomic_dir, read_table, results_dir
from rewired.tracing import attribution, lens
from rewired.tracing.recording import components

GOLDEN = 3
"""Patches of each pair of models that the page recomputes: the one with the largest effect, and drawn ones."""
CHAPTER = str(ROOT / "notebooks" / "study" / "reciprocator.ipynb")
ABOUT = ["source", "target", "prompt_id"]
PATCH = ["component", "positions", "mode"]
DELTAS = ["delta_source", "delta_target", "delta_patched"]


def spec(prompt: Prompt) -> dict:
    """What the page needs to build an evaluation prompt anew."""
    labels = [prompt.labels.cooperate, prompt.labels.defect]
    told = {"state": prompt.state, "matrix": prompt.matrix, "wording": prompt.wording, "labels": labels}
    return told | {"temptation": prompt.scenario == "CC_temptation", "arrangement": asdict(prompt.arrangement)}


def golden(patches: pd.DataFrame, seed: int) -> list[dict]:
    """Some patches of a pair of models: the head or MLP with the largest effect, and others that ``seed`` draws."""
    parts = patches[patches["kind"].isin(["head", "mlp"])]
    largest = parts["effect"].abs().idxmax()
    others = patches.drop(largest).sample(GOLDEN - 1, random_state=seed)
    return pd.concat([patches.loc[[largest]], others])[ABOUT + PATCH + DELTAS].to_dict("records")


def puzzles(circuits: pd.DataFrame) -> list[dict]:
    """The small sets of a pair of models that change a decision: one for each prompt that has one."""
    solved = []
    for _, steps in circuits.groupby("prompt_id", sort=False):
        last = steps.iloc[-1]
        if last["flip"]:
            solved.append(last[ABOUT + DELTAS].to_dict() | {"components": steps["component"].tolist()})
    return solved


def unfit(profile: Profile) -> str | None:
    """Why a page cannot run the profile's model, by its config and its tokenizer alone."""
    folder = ROOT / profile.model.path  # a path from the root stays as it is; what is no folder is a hub id
    source = str(folder) if folder.is_dir() else profile.model.path
    return lab.unfit(AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source))


def offered_labels(tokenizer, own: Sequence[str]) -> list[list[str]]:
    """Pairs of labels with a decision step: the profile's, the same exchanged, and those that no training saw."""
    pairs = []
    for pair in (own, own[::-1], *held_out()["labels"]["pairs"]):
        try:
            decision_step(tokenizer, as_labels(pair))
        except RewiredError:
            continue
        pairs.append(list(pair))
    return pairs


def numbers(profile: Profile) -> dict:
    """The evaluation prompts, patches to be recomputed, and puzzles, from the tables of the run."""
    specs = {prompt.id: spec(prompt) for prompt in scenario_set(profile.prompts.labels)}
    made: dict = {"golden": [], "puzzles": []}
    for k, pair in enumerate(sorted(results_dir(profile).glob("pairs/[!.]*-to-*"))):
        made["golden"] += golden(read_table(pair / "patches.parquet", profile), profile.seed + k)
        made["puzzles"] += puzzles(read_table(pair / "circuits.parquet", profile))
    for row in made["golden"] + made["puzzles"]:
        row["spec"] = specs[row["prompt_id"]]
    scenarios = [{"id": name, "spec": asked} for name, asked in specs.items()]
    return made | {"scenarios": scenarios, "matrices": [CANONICAL, *held_out_matrices()]}


def reciprocator(model) -> list[str]:
    """The heads that the reciprocator's chapter names, as far as the model has them."""
    known = {part.name for part in components(model)}
    return [head for head in ast.literal_eval(inspect_notebook(CHAPTER)["heads"]["default"]) if head in known]


def models(profile: Profile, folder: Path) -> None:
    """`lab.export` with the numbers of the run; ``lab.js`` alone, with the reason, for a model that no page can run."""
    if reason := unfit(profile):
        with atomic_dir(folder) as temporary:
            return lab.write(temporary, "lab", {"available": False, "reason": reason})
    variants = Variants(profile)
    about = {"learnt": [f"{variant}-{profile.patching.seed}" for variant in profile.training.variants]}
    about |= {"labels": offered_labels(variants.tokenizer, profile.prompts.labels)}
    about |= {"circuits": profile.patching.circuits, "reciprocator": reciprocator(variants.model)}
    lab.export(variants, folder, about | numbers(profile))


def moment(variants: Variants, variant: str, seed: int, episode: int) -> dict:
    """What a run decides after so many episodes (0: the base) on the `study_set`: means over a state's prompts.

    ``p_defect`` and ``legal_mass`` are [state], ``lens`` (delta at the decision step) is [state][depth],
    ``contribution`` (direct logit attribution, logits) [state][component]."""
    asked, tokenizer = study_set(variants.profile.prompts.labels), variants.tokenizer
    state_of = {prompt.id: prompt.state for prompt in asked}
    with variants.variant(variant if episode else "base", seed, episode or None) as model:
        table = measure(model, tokenizer, asked, variants.profile.decisions.batch_size, forms=False)
        curves = lens.trajectories(model, tokenizer, asked)
        shares, _ = attribution.contributions(model, tokenizer, asked)
    made: dict = {"episode": episode, "components": shares["component"].unique().tolist()}
    for number in ("p_defect", "legal_mass"):
        made[number] = table.groupby("state")[number].mean()[list(STATES)].round(6).tolist()
    curves = curves[curves["position"] == "decision"].rename(columns={"delta": "lens"})
    for number, frame, along in (("lens", curves, "depth"), ("contribution", shares, "component")):
        means = frame.groupby([frame["prompt_id"].map(state_of), along], sort=False)[number].mean()
        made[number] = [means[state].round(4).tolist() for state in STATES]
    return made


def course(variant: str, moments: Sequence[dict]) -> dict:
    """How a run learnt: the numbers of `moment`, each a list with an entry for every moment."""
    about = {"variant": variant, "states": STATES, "components": moments[0]["components"]}
    about["episodes"] = [moment["episode"] for moment in moments]
    for number in ("p_defect", "legal_mass", "lens", "contribution"):
        about[number] = [moment[number] for moment in moments]
    return about


def courses(profile: Profile, folder: Path) -> None:
    """The course of each variant's run that is patched, if a page can run the model; an empty folder otherwise."""
    with atomic_dir(folder) as temporary:
        if unfit(profile):
            return
        variants, seed = Variants(profile), profile.patching.seed
        base = moment(variants, "base", seed, 0)
        for variant in profile.training.variants:
            later = [moment(variants, variant, seed, episode) for episode in variants.checkpoints(variant, seed)]
            lab.write(temporary, f"learnt-{variant}-{seed}", course(variant, [base, *later]))


def main() -> None:
    """Write what the command line asks for."""
    made, folder = {"models": models, "courses": courses}[sys.argv[1]], Path(sys.argv[2])
    made(start(yaml.safe_load(os.environ["REWIRED_PROFILE"]), json.loads(os.environ["REWIRED_OVERRIDES"])), folder)


if __name__ == "__main__":
    command_line(main)
