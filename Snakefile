"""The order of work, and the only place that knows it: twelve training runs, four pairs of models patched, the organisms
of Part II, the collections of Part III, one executed notebook a chapter, the site. Which chapters there are, and what each needs, tools/registry.py
reads from the notebooks.

A job runs again when its inputs change or when one of its two parameters does: `code`, a hash over the modules of lib/
that its notebook imports, and `profile`, the values of the profile keys that this code reads (tools/stale.py). The
notebooks of runs and the base count by content, not by date, hence `ancient`. `make book` calls this file; so does
`snakemake --cores 2 --config profile=ci`. With `parts`, only the chapters of these folders of notebooks/ are built, and
what they read.
"""

import json
import os
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path[:0] = [str(ROOT / "lib"), str(ROOT / "tools")]
import registry
import stale
from corpora.motives import settings as motives
from corpora.organisms import settings as organisms
from rewired import profiles, store

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["REWIRED_BUILD"] = "1"

P = profiles.load(config.get("profile", "pocket"), config.get("overrides", []))
FOLDER = store.results_dir(P)  # as in every job; elsewhere if REWIRED_ROOT says so
R = str(FOLDER.relative_to(ROOT) if FOLDER.is_relative_to(ROOT) else FOLDER)
VARIANT = "|".join(map(re.escape, P.training.variants))  # in the names of files
RUNS = [f"{variant}-{seed}" for variant in P.training.variants for seed in P.training.seeds]
# Not in the commands themselves: another override must not make every job look changed. A job reads its parameters as
# YAML, and a name such as 2025_01 must stay one.
NAME = str(config["profile"]) if "/" in str(config.get("profile", "")) else P.name
os.environ["REWIRED_PROFILE"] = NAME if re.fullmatch("[a-z][a-z-]{2,}|.*/.*", NAME) else json.dumps(NAME)
os.environ["REWIRED_OVERRIDES"] = json.dumps(config.get("overrides", []), ensure_ascii=False)
RUN = (
    "-- python -m rewired run-notebook {input.notebook} --out {output.notebook:q} "
    '-p "profile=$REWIRED_PROFILE" -p "overrides=$REWIRED_OVERRIDES"'
)

# What each chapter needs, reads and writes stands in the metadata of its notebook.
CHAPTERS = registry.chapters(ROOT)
BUILT = registry.chosen(CHAPTERS, config.get("parts", []))
NEEDED = sorted({need for chapter in BUILT.values() for need in chapter.needs})
RUN_FILES = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "run.json",
             "log.parquet", "decisions.parquet", "policy.parquet"]  # fmt: skip
PAIRS = [f"{source}-{P.patching.seed}-to-{target}-{P.patching.seed}" for source, target in P.patching.pairs
         if {source, target} <= set(P.training.variants)]  # fmt: skip
PAIR_FILES = ["patches.parquet", "controls.parquet", "sets.parquet", "circuits.parquet", "attribution_patching.parquet"]
ORGANISM_FILES = {
    name: ["answers.parquet", "log.parquet"] + [
        f"seed-{seed}/{file}" for seed in organisms.seeds(P, name)
        for file in ("adapter_config.json", "adapter_model.safetensors", "run.json")
    ]
    for name in P.organisms.names
}
MADE = {
    "runs": [f"{R}/runs/{run}/{file}" for run in RUNS for file in RUN_FILES],
    "pairs": [f"{R}/pairs/{pair}/{file}" for pair in PAIRS for file in PAIR_FILES],
    "organisms": [f"{R}/organisms/{name}/{file}" for name, files in ORGANISM_FILES.items() for file in files],
    "motives": [f"{R}/motives/{collection}.parquet" for collection in P.motives.collections],
}
PAGES = sorted(str(file) for file in Path("book").rglob("*") if file.is_file())
LAB = ROOT / "tools/export_lab.py"
# The page on which readers patch models shows the study's: without them it keeps its text.
LABS = [f"{R}/lab/models", f"{R}/lab/courses"] if {"runs", "pairs"} <= set(NEEDED) else []


def files_in(folder):
    """The files of a model's folder; none for a hub id."""
    return [str(file) for file in sorted(Path(folder).glob("*")) if file.is_file()]


BASES = {"model": files_in(P.model.path), "authors": files_in(P.organisms.base)}
BASES["motives"] = BASES["authors"] + files_in(f"{P.organisms.base}-untied")  # the twin, of some collections
BASE_HASH = {name: stale.file_hash(map(Path, files)) for name, files in BASES.items()}
TRAIN = Path("notebooks/runs/train.ipynb")
PAIR = Path("notebooks/runs/patch_pair.ipynb")
ORGANISM = Path("notebooks/runs/organism.ipynb")
MOTIVE = Path("notebooks/runs/motive.ipynb")
FIRST = [P.training.first_reward] if P.training.first_reward else []  # it pays every run
# The lists of variants, seeds, pairs and names decide which runs there are, not what one of them is.
TRAIN_KEYS = stale.keys(P, stale.reads([ROOT / TRAIN], ROOT) - {"training.variants", "training.seeds"})
PAIR_KEYS = stale.keys(
    P, stale.reads([ROOT / PAIR], ROOT) - {"training.variants", "training.seeds", "patching.pairs", "patching.seed"}
)
ORGANISM_KEYS = stale.keys(P, stale.organism_reads([ROOT / ORGANISM], ROOT) - {"organisms.names", "organisms.once"})
MOTIVE_KEYS = stale.keys(P, stale.organism_reads([ROOT / MOTIVE], ROOT) - {"motives.collections"})


def asked(kind):
    """What a job of this kind asks of its machine: minutes, MB of memory, and a card with MB of its if it uses one."""
    takes = json.loads(os.environ.get("REWIRED_GPU_MEM", "null")) or P.gpu_mem_mb.model_dump()
    card = takes[kind] if P.model.device != "cpu" else 0
    needs = {"mem_mb": getattr(P.mem_mb, kind), "runtime": getattr(P.runtime, kind)}
    return needs | ({"gpu": 1, "gpu_mem_mb": card} if card else {})


AHEAD = registry.ahead(CHAPTERS, BUILT)


def follows(*kinds):
    """Seconds of work that wait for the last of these runs. What has most work before its end begins first, and what
    nobody waits for fills the gaps."""
    waiting = [AHEAD[chapter.name] for chapter in BUILT.values() if set(kinds) & set(chapter.needs)]
    return max(waiting, default=0)


def tables(names):
    """The files of these tables."""
    return [f"{R}/tables/{name}.parquet" for name in names]


def given(chapter):
    """The parameters of a chapter, as options: its own quick ones in a quick profile, then those of the profile."""
    parameters = (chapter.ci if P.quick else {}) | P.chapters.get(chapter.name, {})
    written = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in parameters.items())
    return " ".join("-p " + shlex.quote(text) for text in written)


rule book:
    # Everything by name, so that a file that was lost is made again although what follows it still stands.
    input:
        "_build/html/.built",
        [file for need in NEEDED for file in MADE[need]],
        [f"{R}/notebooks/{chapter.path}.ipynb" for chapter in BUILT.values()],
        [table for chapter in BUILT.values() for table in tables(chapter.writes)],


rule train:
    input:
        notebook=ancient(TRAIN),
        base=ancient(BASES["model"]),
    output:
        [f"{R}/runs/{{variant}}-{{seed}}/{file}" for file in RUN_FILES],
        notebook=f"{R}/notebooks/runs/{{variant}}-{{seed}}.ipynb",
    wildcard_constraints: variant=VARIANT, seed="[0-9]+"
    priority: 60 + follows("runs", "pairs")
    params:
        base=BASE_HASH["model"],
        profile=TRAIN_KEYS,
        code=lambda wildcards: stale.code_hash([ROOT / TRAIN], ROOT, rewards=[wildcards.variant, *FIRST]),
    threads: P.threads
    resources: **asked("train")
    shell: "python tools/cards.py train " + RUN + " -p variant={wildcards.variant} -p seed={wildcards.seed}"


rule patch_pair:
    input:
        notebook=ancient(PAIR),
        base=ancient(BASES["model"]),
        source=[f"{R}/runs/{{source}}-{{source_seed}}/{file}" for file in RUN_FILES],
        target=[f"{R}/runs/{{target}}-{{target_seed}}/{file}" for file in RUN_FILES],
    output:
        [f"{R}/pairs/{{source}}-{{source_seed}}-to-{{target}}-{{target_seed}}/{file}" for file in PAIR_FILES],
        notebook=f"{R}/notebooks/runs/{{source}}-{{source_seed}}-to-{{target}}-{{target_seed}}.ipynb",
    wildcard_constraints: source=VARIANT, target=VARIANT, source_seed="[0-9]+", target_seed="[0-9]+"
    priority: 60 + follows("pairs")
    params:
        base=BASE_HASH["model"],
        profile=PAIR_KEYS,
        code=stale.code_hash([ROOT / PAIR], ROOT),
    threads: P.threads
    resources: **asked("pair")
    shell:
        "python tools/cards.py pair " + RUN + " -p source={wildcards.source} -p source_seed={wildcards.source_seed}"
        " -p target={wildcards.target} -p target_seed={wildcards.target_seed}"


for organism, files in ORGANISM_FILES.items():
    rule:
        # All seeds of one organism: a kernel's start costs more than a run.
        name: f"organism_{organism}"
        input:
            notebook=ancient(ORGANISM),
            base=ancient(BASES["authors"]),
            settings=f"config/organisms/{organism}.yaml",
        output:
            [f"{R}/organisms/{organism}/{file}" for file in files],
            notebook=f"{R}/notebooks/runs/organism-{organism}.ipynb",
        params:
            base=BASE_HASH["authors"],
            profile=ORGANISM_KEYS,
            code=stale.code_hash([ROOT / ORGANISM], ROOT),
            organism=organism,
            seeds=list(organisms.seeds(P, organism)),
        priority: organisms.load(organism).length(organisms.seeds(P, organism)) + follows("organisms")
        threads: P.threads
        resources: **asked("train")
        shell: "python tools/cards.py train " + RUN + " -p organism={params.organism}"


for collection in P.motives.collections:
    rule:
        # All sets and seeds of one collection. What was trained stays in parts/, so a job that was broken off goes on,
        # and collections share what they have in common.
        name: f"motive_{collection}"
        input:
            notebook=ancient(MOTIVE),
            base=ancient(BASES["motives"]),
            settings=f"config/motives/{collection}.yaml",
        output:
            f"{R}/motives/{collection}.parquet",
            notebook=f"{R}/notebooks/runs/motive-{collection}.ipynb",
        params:
            base=BASE_HASH["motives"],
            profile=MOTIVE_KEYS,
            code=stale.code_hash([ROOT / MOTIVE], ROOT),
            collection=collection,
        priority: motives.load(collection).length(P.organisms.seeds) + follows("motives")
        threads: P.threads
        resources: **asked("train")
        shell: "REWIRED_CODE={params.code} python tools/cards.py train " + RUN + " -p collection={params.collection}"


for chapter in CHAPTERS.values():
    rule:
        name: f"chapter_{chapter.name}"
        input:
            notebook=str(chapter.notebook),
            base=ancient(BASES[chapter.base]),
            made=[file for need in chapter.needs for file in MADE[need]],
            tables=tables(registry.tables_read(chapter, CHAPTERS, BUILT)),
            files=chapter.files,
        output:
            notebook=f"{R}/notebooks/{chapter.path}.ipynb",
            tables=tables(chapter.writes),
        params:
            base=BASE_HASH[chapter.base],
            profile=stale.keys(P, stale.chapter_reads(ROOT / chapter.notebook, chapter.needs, ROOT)),
            code=stale.code_hash([ROOT / chapter.notebook], ROOT),
            given=given(chapter),
        priority: AHEAD[chapter.name]
        threads: P.threads
        resources: **asked("chapter")
        shell: "python tools/cards.py chapter " + RUN + " {params.given}"


rule lab:
    # The models of the page on which readers patch them, and the book's own numbers to be recomputed there.
    input:
        base=ancient(BASES["model"]),
        runs=MADE["runs"],
        pairs=MADE["pairs"],
        heads="notebooks/study/reciprocator.ipynb",  # its parameter
    output: directory(f"{R}/lab/models")
    params:
        base=BASE_HASH["model"],
        profile=stale.keys(P, stale.reads([LAB], ROOT)),
        code=stale.code_hash([LAB], ROOT),
    threads: P.threads
    resources: **asked("chapter")
    shell: "python tools/cards.py chapter -- python tools/export_lab.py models {output:q}"


rule courses:
    # How a run of each variant learnt, for the same page.
    input:
        base=ancient(BASES["model"]),
        runs=MADE["runs"],
    output: directory(f"{R}/lab/courses")
    params:
        base=BASE_HASH["model"],
        profile=stale.keys(P, stale.reads([LAB], ROOT)),
        code=stale.code_hash([LAB], ROOT),
    threads: P.threads
    resources: **asked("chapter")
    shell: "python tools/cards.py chapter -- python tools/export_lab.py courses {output:q}"


rule site:
    input:
        chapters=[f"{R}/notebooks/{chapter.path}.ipynb" for chapter in BUILT.values()],
        lab=LABS,
        pages=PAGES,
        settings=["_config.yml", "_toc.yml", "tools/build_site.py", "tools/registry.py"],
    output: "_build/html/.built"  # a mark, so that the old pages stand until the new ones take their place
    params:
        name=P.name,
        notebooks=f"{R}/notebooks",
    resources: mem_mb=4000, runtime=30
    shell: "python tools/build_site.py {params.notebooks:q}"


rule pocket_base:
    """The shipped base made anew, as a check of its recipe: two hours, into results/base."""
    output: directory("results/base")
    resources: mem_mb=4000, runtime=600
    shell: "python -m corpora.pocket rebuild --out {output}"
