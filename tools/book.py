"""Make the book: one build at a time, whatever the last one left behind, and no traceback for a bad profile.

``make book`` ends here. The order of work is the Snakefile's; this wrapper owns the folder while Snakemake runs (an
flock, which the system releases when the process dies, so that no stale lock can stand in the way), sweeps up the
temporary files of a build that was killed, and checks the profile's names before anything starts.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
from pathlib import Path

import cards
import registry
import yaml

from corpora.motives import settings as motives
from corpora.organisms import settings as organisms
from rewired import games, profiles, prompts, store
from rewired.errors import RewiredError, choice

ROOT = profiles.ROOT
PROFILES = ROOT / "profiles"
"""How Snakemake reaches a cluster: a folder each, with a config.yaml."""


def check(profile: profiles.Profile) -> None:
    """Raise RewiredError when a name in the profile means nothing to the library, or its model folder is missing."""
    for variant in profile.training.variants:
        games.get_reward(variant)
        if not re.fullmatch(r"[^\W\d][\w.+-]*", variant) or yaml.safe_load(variant) != variant:
            raise RewiredError(
                f"The reward {variant!r} names folders and is a value in command lines: it must begin with a letter, "
                "hold letters, digits, '_', '-', '.' and '+' only, and not be a word such as yes or null. Rename it."
            )
    games.get_reward(profile.training.first_reward or profile.training.variants[0])
    games.get_game(profile.prompts.game)
    games.get_opponent(profile.training.opponent)
    prompts.Labels(*profile.prompts.labels)
    for variant in {name for pair in profile.patching.pairs for name in pair}:
        games.get_reward(variant)
    if not any(set(pair) <= set(profile.training.variants) for pair in profile.patching.pairs):
        raise RewiredError(
            f"None of the pairs in patching.pairs of profile {profile.name!r} has both its models among the trained "
            f"variants {', '.join(profile.training.variants)}. Name one, for example "
            f'SET="patching.pairs=[[{profile.training.variants[0]},{profile.training.variants[-1]}]]".'
        )
    if profile.patching.seed not in profile.training.seeds:
        raise choice("seed in patching.seed:", str(profile.patching.seed), map(str, profile.training.seeds))
    known = registry.chapters(ROOT)
    for chapter in profile.chapters:
        if chapter not in known:
            raise choice("chapter", chapter, known)
    for organism in (*profile.organisms.names, *profile.organisms.once):
        organisms.load(organism)
    for collection in profile.motives.collections:
        motives.load(collection)
    for wording in profile.training.wordings:
        if wording not in prompts.WORDINGS:
            raise choice("wording", wording, prompts.WORDINGS)


def hand_on_cards(profile: profiles.Profile) -> list[int]:
    """The cards that jobs may use, handed on to them with what each kind of job takes (see tools/cards.py).

    Raises RewiredError for a kind that declares more than any card has."""
    found = json.loads(os.environ.get("REWIRED_CARDS", "null")) or cards.here()
    found = [] if profile.model.device == "cpu" else found
    takes = profile.gpu_mem_mb.model_dump()
    for kind, need in takes.items():
        if found and need > max(found):
            raise RewiredError(
                f"gpu_mem_mb.{kind} of profile {profile.name!r} is {need}, but no card of this machine has more than "
                f"{max(found)} MB. Use a larger card, or lower it if the job really needs less."
            )
    if found and not profile.share_gpu:  # a card is one place, and a job takes it
        found, takes = [1] * len(found), dict.fromkeys(takes, 1)
    os.environ.update(REWIRED_CARDS=json.dumps(found), REWIRED_GPU_MEM=json.dumps(takes))
    return found


def separated(text: str) -> list[str]:
    """The overrides of one text, each as it would stand in a profile: ``key=value`` with blanks, quotes and brackets in
    the value. A new one begins after a blank that is outside quotes and brackets, and before a key."""
    starts, depth, quote, position = [0], 0, "", 0
    while position < len(text):
        letter, before = text[position], text[position - 1 : position]
        if quote:
            position += letter == "\\" and quote == '"'  # and what it escapes
            quote = "" if letter == quote else quote
        elif letter in "\"'" and before in ("", *"=[{,: \t"):
            quote = letter
        elif not depth and letter.isspace() and re.match(r"\s+['\"]?[A-Za-z_][\w.]*=", text[position:]):
            starts.append(position)
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        position += 1
    pieces = [text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    # one that is quoted as a whole, as a shell would have it
    pieces = [p[1:-1] if p[:1] in ("'", '"') and p[-1] == p[0] else p for p in pieces]
    return [piece for piece in pieces if piece]


def own_the_folder() -> int:
    """Hold the build lock; waits, and says so, while another build runs here."""
    handle = os.open(ROOT / ".rewired.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another build runs in this folder; waiting for it to end.", flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def sweep() -> None:
    """Remove temporary files and folders (``.name.partial-<process>``) whose process is gone."""
    for folder in (store.results_dir("").parent, ROOT / "_build"):
        for left in sorted(folder.rglob(".*.partial-*"), reverse=True):
            if not cards.works(int(re.search(r"partial-(\d+)", left.name)[1])):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def grow_base(profile: profiles.Profile) -> None:
    """Make the base of a profile that sets ``model.like``, unless it is there."""
    folder = ROOT / profile.model.path
    if profile.model.like and not folder.is_dir():
        from rehearsal import grow

        print(f"{profile.model.path} is made: the shipped base in the shape of {profile.model.like}", flush=True)
        grow.grow(ROOT / "models" / "pocket", folder, profile.model.like, profile.model.dtype)


def run_snakemake(*arguments: str) -> int:
    """The status of Snakemake's own command line, run in this process: what the tools have loaded serves both."""
    from snakemake import cli as snakemake  # a second, which a refusal need not take

    try:
        snakemake.main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="pocket")
    parser.add_argument("--set", help="overrides, separated by blanks: training.kl=0.1 seed=3; default: $REWIRED_SET")
    parser.add_argument("--parts", default="", help="folders of notebooks/, separated by blanks: study; default all")
    parser.add_argument("--cores", default=str(min(2, os.cpu_count() or 1)))
    parser.add_argument("--cluster", default="", help="slurm or kubernetes; default: this machine")
    parser.add_argument("snakemake", nargs="*", help="targets and options for Snakemake")
    chosen, more = parser.parse_known_args()
    parts = chosen.parts.split()
    try:
        overrides = separated(os.environ.get("REWIRED_SET", "") if chosen.set is None else chosen.set)
        profile = profiles.load(chosen.profile, overrides)
        check(profile)
        found = hand_on_cards(profile)
        if chosen.cluster and not (PROFILES / chosen.cluster / "config.yaml").is_file():
            raise choice("cluster", chosen.cluster, sorted(file.parent.name for file in PROFILES.glob("*/config.yaml")))
        registry.chosen(registry.chapters(ROOT), parts)
    except RewiredError as error:
        print(error, file=sys.stderr)
        return 2
    lock = own_the_folder()  # until this process ends
    sweep()
    try:
        grow_base(profile)
    except RewiredError as error:
        print(error, file=sys.stderr)
        return 2
    status = run_snakemake(
        *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(ROOT)),
        *(("--workflow-profile", str(PROFILES / chosen.cluster)) if chosen.cluster else ("--cores", chosen.cores)),
        *("--nolock", "--rerun-incomplete", "--quiet", "rules", "host", *more),
        *(("--resources", f"gpu_mem_mb={sum(found)}") if found else ()),
        # Snakemake reads these as YAML: a profile named 2025_01 stays a name in quotes
        *("--config", f"profile={json.dumps(chosen.profile)}"),
        *(f"overrides={json.dumps(overrides, ensure_ascii=False)}", f"parts={json.dumps(parts)}"),
        *("--", *chosen.snakemake),
    )
    os.close(lock)
    page = Path("_build/html/index.html")
    if status == 0 and not chosen.snakemake and not more:
        print(f"The book is at {page}")
    return status


if __name__ == "__main__":
    sys.exit(main())
