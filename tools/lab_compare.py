"""Patches drawn at random, by the lab's page and by ``rewired.tracing.patching`` on the same runs."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace

from lab_page import LAB, TOLERANCE, Lab

from rewired.decisions import decision_step
from rewired.models import Variants
from rewired.prompts import Prompt, chat, scenario_set
from rewired.tracing import patching

GROUP = 20  # patches of one pair, prompt, mode and choice of positions
LONG = (300, 599)  # tokens: beyond two windows, and at the end of the room


def compared(lab: Lab, root: str, variants: Variants, count: int = 200, seed: int = 0) -> Iterator[str]:
    """Patches drawn at random, in the page and by the library; two groups of them are on long prompts."""
    lab.open(root + LAB)
    largest, number, lengths = 0.0, 0, []
    for k, group in enumerate(drawn(lab, count, seed)):
        prompt = asked(variants, group["prompt"], LONG[k] if k < len(LONG) else 0)
        there, here = in_page(lab, group, prompt), in_library(variants, group, prompt)
        lengths.append(there["tokens"])
        for names, page, library in zip(group["sets"], there["deltas"], here, strict=True):
            number, largest = number + 1, max(largest, abs(page - library))
            if not abs(page - library) <= TOLERANCE:
                where = {key: value for key, value in group.items() if key != "sets"}
                yield f"{' + '.join(names)} {where}: {page} in the page, {library} by the library"
    tokens = f"prompts of {min(lengths)} to {max(lengths)} tokens"
    print(f"{number} patches against the library, {tokens}: largest difference {largest:.0e} logits")


def asked(variants: Variants, name: str, tokens: int) -> Prompt:
    """A scenario prompt, after as many words more as make it ``tokens`` long (where that is more), or just shorter."""
    [prompt] = [one for one in scenario_set(variants.profile.prompts.labels) if one.id == name]
    prefix = decision_step(variants.tokenizer, prompt.labels).prefix_ids
    longer, text = prompt, prompt.text
    for _ in range(tokens):
        text = f"so {text}"
        if len(chat(variants.tokenizer, text)) + len(prefix) > tokens:
            break
        longer = replace(prompt, text=text, spans=())
    return longer


def drawn(lab: Lab, count: int, seed: int) -> list[dict]:
    """Groups of patches, each of one to four components."""
    chance, groups = random.Random(seed), []
    about = lab.js("""const lab = rewired.ui.lab();
        return [lab.runs.map(({name}) => name), lab.scenarios.map(({id}) => id),
                lab.components(['head', 'mlp', 'attn', 'resid'])];""")
    runs, prompts, components = about
    for start in range(0, count, GROUP):
        source, target = chance.sample(runs, 2)
        group = {"source": source, "target": target, "prompt": chance.choice(prompts)}
        group |= {"positions": chance.choice(["all", "decision"]), "mode": chance.choice(["input", "output"])}
        group["sets"] = []
        while len(group["sets"]) < min(GROUP, count - start):
            names = chance.sample(components, chance.choice([1, 1, 1, 2, 3, 4]))
            if _apart(names):
                group["sets"].append(names)
        groups.append(group)
    return groups


def _apart(names: list[str]) -> bool:
    """No head beside the attention of its layer, whose output would hide it, and no whole stream beside anything."""
    if len(names) > 1 and any(name.endswith("RESID") for name in names):
        return False
    layers = {name.split("_")[0] for name in names if name.endswith("ATTN")}
    return not any("H" in name and name.split("H")[0] in layers for name in names)


def in_page(lab: Lab, group: dict, prompt: Prompt) -> dict:
    """{tokens, deltas}: how long the prompt is, and delta of each set of a group, as the page computes it."""
    labels = [prompt.labels.cooperate, prompt.labels.defect]
    return lab.js(f"""const group = {json.dumps(group)}, lab = rewired.ui.lab();
        const encoded = lab.encode({json.dumps(prompt.text)}, {json.dumps(labels)});
        const source = await lab.model(group.source), target = await lab.model(group.target);
        const sweep = new rewired.Sweep(source.record(encoded), target.record(encoded), group);
        return {{tokens: encoded.ids.length, deltas: group.sets.map((names) => sweep.together(names).delta)}};""")


def in_library(variants: Variants, group: dict, prompt: Prompt) -> list[float]:
    """The same deltas by ``tracing.patching``."""
    runs, recordings = [], []
    for run in (group["source"], group["target"]):
        variant, _, seed = run.partition("-")
        runs.append((variant, int(seed or 0)))
        with variants.variant(*runs[-1]) as model:
            recordings.append(patching.record(model, variants.tokenizer, [prompt]))
    with variants.variant(*runs[1]) as model:
        sweep = patching.Sweep(model, *recordings, positions=group["positions"], mode=group["mode"])
        sets = [patching.named(sweep.parts, names) for names in group["sets"]]
        return sweep.together(sets)[:, 0].tolist()
