"""Every patch of a long list by the library and by the page's engine: how far are they apart? See README.md."""

import argparse
import shutil
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import browser_check  # noqa: E402
import export_lab  # noqa: E402
from browsers import BROWSERS, Tab  # noqa: E402

from rewired.execute import start  # noqa: E402
from rewired.games import dilemma  # noqa: E402
from rewired.models import Variants  # noqa: E402
from rewired.profiles import Profile  # noqa: E402
from rewired.prompts import Arrangement, Prompt, build  # noqa: E402
from rewired.tracing import patching  # noqa: E402
from rewired.tracing.recording import KINDS  # noqa: E402

EXCHANGED = ("action2", "action1")
LIST = [  # state, matrix, wording, labels, temptation, arrangement
    ("CC", (3, 0, 4, 1), "structured", ("action1", "action2"), False, (0, 0, 0, 0)),
    ("CC", (3, 0, 4, 1), "structured", EXCHANGED, True, (1, 0, 0, 0)),
    ("CD", (5, 1, 6, 2), "prose", ("action1", "action2"), False, (0, 1, 1, 0)),
    ("DC", (3, 0, 4, 1), "story", ("action1", "action2"), False, (1, 1, 0, 0)),
    ("DD", (6, 2, 8, 3), "structured", EXCHANGED, False, (0, 1, 1, 1)),
]
PAIRS = [("strategic", "utilitarian"), ("utilitarian", "strategic"), ("strategic", "deontological"), ("base", "hybrid")]
HOW = list(product(("input", "output"), ("all", "decision")))
GREEDY = [("input", "all"), ("output", "decision")]
SETS = [["L5H2", "L5H4", "L7H3"], ["L1_MLP", "L2H1", "L3H0", "L3_ATTN", "L4_MLP", "L5H5", "L5_MLP", "L6H6", "L7H4"]]
CASES = ["file-wasm", "http-wasm", "file-js", "http-js"]
SCRIPTS = ("kernel", "tokenizer", "prompts", "model", "patching", "lab")
EXACT, COURSES = 1e-4, 60
"""The largest difference of delta that is allowed (logits), and the processor seconds for how all runs learnt."""


def prompts(count: int) -> list[tuple[Prompt, bool]]:
    """(prompt, whether it tempts) of the list's first ones."""
    made = []
    for state, matrix, wording, labels, tempted, swaps in LIST[:count]:
        arrangement = Arrangement(*map(bool, swaps))
        made.append((build(state, dilemma(*matrix), wording, labels, tempted, arrangement), tempted))
    return made


def named(variant: str) -> str:
    """What the page calls a variant's first run."""
    return variant if variant == "base" else f"{variant}-1"


def by_the_library(variants: Variants, asked: list[Prompt]) -> tuple[list[list[str]], list[dict], list[dict]]:
    """(sets of components, deltas, greedy sets): deltas are {pair, mode, positions, due [set, prompt]}."""
    recordings, deltas, circuits = {}, [], []
    for name in sorted({name for pair in PAIRS for name in pair}):
        with variants.variant(name) as model:
            recordings[name] = patching.record(model, variants.tokenizer, asked)
    for source, target in PAIRS:
        about = {"source": named(source), "target": named(target)}
        with variants.variant(target) as model:
            for mode, positions in HOW:
                sweep = patching.Sweep(model, recordings[source], recordings[target], positions, mode)
                sets = [[part.name] for part in patching.components(sweep.parts, KINDS)] + SETS
                due = sweep.together([patching.named(sweep.parts, members) for members in sets])  # [set, prompt]
                deltas.append(about | {"mode": mode, "positions": positions, "due": due.tolist()})
            circuits += [about | circuit for circuit in greedy_sets(model, recordings[source], recordings[target])]
        print(f"library: {source} → {target}", flush=True)
    return sets, deltas, circuits


def greedy_sets(model, source, target) -> list[dict]:
    """The greedy set of the first prompt on which the two disagree, in each way of `GREEDY`; none where they agree."""
    apart, sets = np.flatnonzero((source.delta > 0) != (target.delta > 0)), []
    for mode, positions in GREEDY if len(apart) else []:
        one = patching.Sweep(model, source, target, positions, mode).select([int(apart[0])])
        steps = patching.greedy(one, patching.components(one.parts))
        members, reached = steps["component"].tolist(), steps["delta_patched"].tolist()
        about = {"prompt": int(apart[0]), "mode": mode, "positions": positions}
        sets.append(about | {"components": members, "reached": reached})
    return sets


def opened(tab: Tab, address: str, wasm: bool, specs: list[dict]) -> None:
    """Open the engine's page, with the list's prompts as rows of tokens."""
    tab.open(address)
    while not tab.run("return document.title === 'lab' && document.readyState === 'complete'"):
        time.sleep(0.05)
    used = tab.run(
        "window.L = await rewired.lab.open('data/', { wasm });"
        "window.rows = specs.map((spec) => L.build(spec)).map(({ text, labels }) => L.encode(text, labels));"
        "return L.usesWasm",
        wasm=wasm, specs=specs,
    )  # fmt: skip
    assert used == wasm, "the page chose the other product"


def differences(tab: Tab, sets: list[list[str]], deltas: list[dict], circuits: list[dict]) -> dict:
    """The largest difference from the library in each mode and position, the flips and the greedy sets that differ."""
    worst, flips, count = {}, 0, 0
    for about in deltas:
        asked = {key: about[key] for key in ("source", "target", "mode", "positions")}
        told = tab.run(
            "const [a, b] = [await L.model(it.source), await L.model(it.target)], answers = [];"
            "for (const row of rows) { const sweep = new rewired.Sweep(a.record(row), b.record(row), it);"
            "  answers.push([sweep.target.delta, sets.map((names) => sweep.together(names).delta)]) } return answers",
            it=asked, sets=sets,
        )  # fmt: skip
        got, due = np.array([answer for _, answer in told]).T, np.array(about["due"])  # [set, prompt]
        key = f"{about['mode']}, {about['positions']}"
        worst[key] = max(worst.get(key, 0.0), float(np.abs(got - due).max()))
        sure = np.abs(due) > EXACT  # nearer to 0 the sign is rounding
        flips += int((((got > 0) != (due > 0)) & sure).sum())
        count += due.size
    other = 0
    for about in circuits:
        steps = tab.run(
            "const [a, b] = [await L.model(it.source), await L.model(it.target)], row = rows[it.prompt];"
            "const steps = await new rewired.Sweep(a.record(row), b.record(row), it).greedy(L.components());"
            "return steps.map(({ component, delta }) => [component, delta])",
            it=about,
        )
        other += [component for component, _ in steps] != about["components"]
        for (_, delta), reached in zip(steps, about["reached"], strict=False):
            worst["greedy"] = max(worst.get("greedy", 0.0), abs(delta - reached))
    counts = {"patches": count, "flips that differ": flips, "greedy sets": len(circuits)}
    return worst | counts | {"greedy sets that differ": other}


def measured(browser: str, case: str, folder: Path, root: str, work: tuple) -> dict:
    """One row of the printed table: a browser in one of the `CASES`."""
    specs, sets, deltas, circuits = work
    place, how = case.split("-")
    kind = BROWSERS[browser]
    program = next(filter(None, map(shutil.which, kind.programs)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tab = kind(program, scratch)
        try:
            address = (f"file://{folder}/" if place == "file" else root) + "index.html"
            opened(tab, address, how == "wasm", specs)
            return {"browser": browser, "case": case} | differences(tab, sets, deltas, circuits)
        finally:
            tab.close()


def courses_time(profile: Profile) -> float:
    """Processor seconds of the tables of how the runs learnt."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        export_lab.courses(profile, Path(scratch) / "courses")
    return time.process_time() - begun


def missed(rows: list[dict]) -> list[str]:
    """The limits that were not kept, in words."""
    limits = {f"{mode}, {positions}": EXACT for mode, positions in HOW}
    limits |= {"greedy": EXACT, "flips that differ": 0, "greedy sets that differ": 0}
    problems = []
    for row in rows:
        for key, limit in limits.items():
            if row.get(key, 0) > limit:
                problems.append(f"{row['browser']} {row['case']}: {key} is {row[key]:.3g}, allowed {limit}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="pocket")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--browsers", nargs="+", choices=BROWSERS, default=["chromium"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--prompts", type=int, default=len(LIST), help="how many of the list")
    chosen = parser.parse_args()
    profile = start(chosen.profile, chosen.overrides)
    asked = prompts(chosen.prompts)
    specs = [export_lab.spec(prompt) | {"temptation": tempted} for prompt, tempted in asked]
    work = by_the_library(Variants(profile), [prompt for prompt, _ in asked])
    with tempfile.TemporaryDirectory() as scratch:
        folder, rows = Path(scratch), []
        export_lab.models(profile, folder / "data")
        shutil.copytree(ROOT / "book" / "_static" / "lab", folder / "engine")
        scripts = "".join(f'<script src="engine/{name}.js"></script>' for name in SCRIPTS)
        (folder / "index.html").write_text(f"<!doctype html><meta charset=utf-8><title>lab</title>{scripts}")
        with browser_check.served(folder) as root:
            for browser, case in product(chosen.browsers, chosen.cases):
                rows.append(measured(browser, case, folder, root, (specs, *work)))
                print(pd.Series(rows[-1]).to_string(), "\n", flush=True)
    took, problems = courses_time(profile), missed(rows)
    print(f"how the runs learnt: {took:.0f} s of processor time")
    if took > COURSES:
        problems.append(f"how the runs learnt: {took:.0f} s of processor time, allowed {COURSES}")
    print("\n".join(problems) or "All limits are kept.")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
