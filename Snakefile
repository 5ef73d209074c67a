"""The order of work, and the only place that knows it: twelve training runs, four pairs of models patched, one executed
notebook a chapter, the site.

A job runs again when its inputs change or when one of its two parameters does: `code`, a hash over the rewired modules
that its notebook imports, and `profile`, the values of the profile keys that this code reads (tools/stale.py). Notebooks
and the base count by content, not by date, hence `ancient`. `make book` calls this file; so does
`snakemake --cores 2 --config profile=ci`.
"""

import json
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path[:0] = [str(ROOT / "lib"), str(ROOT / "tools")]
import stale
from rewired import profiles

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["REWIRED_BUILD"] = "1"

P = profiles.load(config.get("profile", "pocket"), config.get("overrides", []))
R = f"results/{P.name}"
RUNS = [f"{variant}-{seed}" for variant in P.training.variants for seed in P.training.seeds]
# Not in the commands themselves: another override must not make every job look changed.
os.environ["REWIRED_PROFILE"] = str(config.get("profile", "pocket"))
os.environ["REWIRED_OVERRIDES"] = json.dumps(config.get("overrides", []))
RUN = (
    "python -m rewired run-notebook {input.notebook} --out {output.notebook} "
    '-p "profile=$REWIRED_PROFILE" -p "overrides=$REWIRED_OVERRIDES"'
)

# What each chapter needs from the runs, whose tables it reads and which ones it leaves in results/<profile>/tables.
CHAPTERS = {
    "01_pocket": {"runs": False, "tables": ["01_pocket"]},
    "02_training": {"runs": True, "tables": ["02_training", "02_training_departures", "02_training_checkpoints"]},
    "03_prompts": {"runs": True, "tables": ["03_prompts"]},
    "04_decisions": {"runs": True, "tables": ["04_decisions", "04_decisions_agreement", "04_decisions_distances",
                                              "04_decisions_tests"]},
    "05_behaviour": {"runs": True, "tables": ["05_behaviour", "05_behaviour_tournament", "05_behaviour_regret",
                                              "05_behaviour_summary", "05_behaviour_reading", "05_behaviour_reciprocity"]},
    "06_logit_lens": {"runs": True, "tables": ["06_logit_lens", "06_logit_lens_stabilization",
                                               "06_logit_lens_distances"]},
    "07_attribution": {"runs": True, "tables": ["07_attribution", "07_attribution_closure", "07_attribution_change",
                                                "07_attribution_distances"]},
    "08_patching": {"runs": True, "pairs": True,
                    "tables": ["08_patching", "08_patching_layers", "08_patching_directions", "08_patching_morals"]},
    "09_attention": {"runs": True,
                     "tables": ["09_attention", "09_attention_prompts", "09_attention_tests", "09_attention_heads",
                                "09_attention_knockout", "09_attention_reach", "09_attention_use"]},
    "10_interactions": {"runs": True, "tables": ["10_interactions", "10_interactions_hubs", "10_interactions_shares",
                                                 "10_interactions_runs", "10_interactions_asymmetry",
                                                 "10_interactions_causal", "10_interactions_recipe"]},
    "11_weights": {"runs": True, "pairs": True,
                   "tables": ["11_weights", "11_weights_components", "11_weights_modules", "11_weights_likeness",
                              "11_weights_effects", "11_weights_prediction"]},
    "13_synthesis": {"runs": True, "reads": ["06_logit_lens", "08_patching"],
                     "tables": ["13_synthesis", "13_synthesis_runs", "13_synthesis_study"]},
    "14_traps": {"runs": True, "pairs": True, "tables": ["14_traps", "14_traps_merge", "14_traps_alarms"],
                 "reads": ["04_decisions", "07_attribution", "08_patching", "09_attention", "10_interactions",
                           "11_weights"]},
    "15_verdicts": {"runs": False, "pairs": True, "files": ["book/claims.yaml"], "tables": ["15_verdicts"],
                    "reads": ["04_decisions", "05_behaviour", "06_logit_lens", "07_attribution", "08_patching",
                              "09_attention", "10_interactions", "11_weights"]},
}  # fmt: skip
RUN_FILES = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "run.json",
             "log.parquet", "decisions.parquet", "policy.parquet"]  # fmt: skip
PAIRS = [f"{source}-{P.patching.seed}-to-{target}-{P.patching.seed}" for source, target in P.patching.pairs
         if {source, target} <= set(P.training.variants)]  # fmt: skip
PAIR_FILES = ["patches.parquet", "controls.parquet", "sets.parquet", "circuits.parquet", "screen.parquet"]
PAGES = sorted(str(file) for file in Path("book").rglob("*") if file.is_file())

BASE = [str(file) for file in sorted(Path(P.model.path).glob("*")) if file.is_file()]
BASE_HASH = stale.file_hash(map(Path, BASE))
TRAIN = Path("notebooks/runs/train.ipynb")
PAIR = Path("notebooks/runs/patch_pair.ipynb")
FIRST = [P.training.first_reward] if P.training.first_reward else []  # it pays every run
# The lists of variants, seeds and pairs decide which runs and pairs there are, not what one of them is.
TRAIN_KEYS = stale.keys(P, stale.reads([ROOT / TRAIN], ROOT) - {"training.variants", "training.seeds"})
PAIR_KEYS = stale.keys(
    P, stale.reads([ROOT / PAIR], ROOT) - {"training.variants", "training.seeds", "patching.pairs", "patching.seed"}
)


rule book:
    # Everything by name, so that a file that was lost is made again although what follows it still stands.
    input:
        "_build/html/.built",
        [f"{R}/runs/{run}/{file}" for run in RUNS for file in RUN_FILES],
        [f"{R}/pairs/{pair}/{file}" for pair in PAIRS for file in PAIR_FILES],
        [f"{R}/notebooks/{name}.ipynb" for name in CHAPTERS],
        [f"{R}/tables/{table}.parquet" for about in CHAPTERS.values() for table in about["tables"]],


rule train:
    input:
        notebook=ancient(TRAIN),
        base=ancient(BASE),
    output:
        [f"{R}/runs/{{variant}}-{{seed}}/{file}" for file in RUN_FILES],
        notebook=f"{R}/notebooks/runs/{{variant}}-{{seed}}.ipynb",
    wildcard_constraints: seed="[0-9]+"
    params:
        base=BASE_HASH,
        profile=TRAIN_KEYS,
        code=lambda wildcards: stale.code_hash([ROOT / TRAIN], ROOT, rewards=[wildcards.variant, *FIRST]),
    threads: P.threads
    shell: RUN + " -p variant={wildcards.variant} -p seed={wildcards.seed}"


rule patch_pair:
    input:
        notebook=ancient(PAIR),
        base=ancient(BASE),
        source=[f"{R}/runs/{{source}}-{{source_seed}}/{file}" for file in RUN_FILES],
        target=[f"{R}/runs/{{target}}-{{target_seed}}/{file}" for file in RUN_FILES],
    output:
        [f"{R}/pairs/{{source}}-{{source_seed}}-to-{{target}}-{{target_seed}}/{file}" for file in PAIR_FILES],
        notebook=f"{R}/notebooks/runs/{{source}}-{{source_seed}}-to-{{target}}-{{target_seed}}.ipynb",
    wildcard_constraints: source="[a-z_]+", target="[a-z_]+", source_seed="[0-9]+", target_seed="[0-9]+"
    params:
        base=BASE_HASH,
        profile=PAIR_KEYS,
        code=stale.code_hash([ROOT / PAIR], ROOT),
    threads: P.threads
    shell:
        RUN + " -p source={wildcards.source} -p source_seed={wildcards.source_seed}"
        " -p target={wildcards.target} -p target_seed={wildcards.target_seed}"


for name, about in CHAPTERS.items():
    rule:
        name: f"chapter_{name}"
        input:
            notebook=f"notebooks/{name}.ipynb",
            base=ancient(BASE),
            runs=[f"{R}/runs/{run}/{file}" for run in RUNS for file in RUN_FILES] if about["runs"] else [],
            pairs=[f"{R}/pairs/{pair}/{file}" for pair in PAIRS for file in PAIR_FILES] if about.get("pairs") else [],
            tables_in=[f"{R}/tables/{t}.parquet" for other in about.get("reads", []) for t in CHAPTERS[other]["tables"]],
            files=about.get("files", []),
        output:
            notebook=f"{R}/notebooks/{name}.ipynb",
            tables=[f"{R}/tables/{table}.parquet" for table in about["tables"]],
        params:
            base=BASE_HASH,
            profile=stale.keys(P, stale.reads([ROOT / f"notebooks/{name}.ipynb"], ROOT)),
            code=stale.code_hash([ROOT / f"notebooks/{name}.ipynb"], ROOT),
            given=" ".join(
                "-p " + shlex.quote(f"{key}={json.dumps(value)}") for key, value in P.chapters.get(name, {}).items()
            ),
        threads: P.threads
        shell: RUN + " {params.given}"


rule site:
    input:
        chapters=[f"{R}/notebooks/{name}.ipynb" for name in CHAPTERS],
        pages=PAGES,
        settings=["_config.yml", "_toc.yml", "tools/build_site.py"],
    output: "_build/html/.built"  # a mark, so that the old pages stand until the new ones take their place
    params: name=P.name
    shell: f"python tools/build_site.py {R}/notebooks"


rule pocket_base:
    """The shipped base made anew, as a check of its recipe: two hours, into results/base."""
    output: directory("results/base")
    shell: "python -m rewired rebuild-base --out {output}"
