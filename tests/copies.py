"""A copy of the repository in which notebooks are not executed, for tests of the order of work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from chapters import ROOT

# The jobs' `python -m rewired` starts with the package; there `sys.argv[0]` is "-m", and nothing else is imported.
STAND_IN = """
import json, os, sys, time
from pathlib import Path

def stand_in(arguments):
    notebook, out = Path(arguments[1]), Path(arguments[3])
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    root = Path(os.environ.get("REWIRED_ROOT", "."))
    results, stored = root / "results" / given["profile"].strip('"'), json.loads(notebook.read_text())
    if notebook.name == "train.ipynb":
        run = results / "runs" / f"{given['variant']}-{given['seed']}"
        names = "run.json log.parquet decisions.parquet policy.parquet".split()
        files = [run / name for name in names]
        files += [run / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    elif notebook.name == "patch_pair.ipynb":
        pair = "{source}-{source_seed}-to-{target}-{target_seed}".format(**given)
        names = "patches controls sets circuits attribution_patching".split()
        files = [results / "pairs" / pair / f"{name}.parquet" for name in names]
    elif notebook.name == "organism.ipynb":
        organism = results / "organisms" / given["organism"]
        files = [organism / f"{name}.parquet" for name in ("answers", "log")]
        names = "adapter_config.json adapter_model.safetensors run.json".split()
        files += [organism / "seed-1" / name for name in names]
    elif notebook.name == "motive.ipynb":
        files = [results / "motives" / f"{given['collection']}.parquet"]
    else:
        files = [results / "tables" / f"{table}.parquet" for table in stored["metadata"]["rewired"]["writes"]]
    for file in [*files, out]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("done")
    title = "".join(stored["cells"][0]["source"]).splitlines()[0]
    cell = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": title}
    out.write_text(json.dumps(stored | {"cells": [cell]}))
    begun = time.time()
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
    with open("times.txt", "a") as log:
        log.write(f"{notebook.stem} {os.environ.get('CUDA_VISIBLE_DEVICES')} {begun} {time.time()}\\n")
    with open("ran.txt", "a") as log:
        log.write(" ".join([out.stem, *(a for a in arguments[4:] if a != "-p")]) + "\\n")

if sys.argv[0] == "-m" and Path(sys.argv[2]).stem not in REAL:
    stand_in(sys.argv[1:])
    raise SystemExit
"""
LAB = "import pathlib, sys\npathlib.Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)\n"
"""In the place of what exports models to the page that runs them."""


def copy(folder: Path, real: tuple[str, ...] = ()) -> Path:
    """What the workflow reads, in ``folder``; a stand-in writes the files of every notebook that is not ``real``: its
    tables, and its title as the executed notebook."""
    for name in ("Snakefile", "_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder)
    for name in ("lib", "tools", "config", "notebooks", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models" / "pocket").mkdir(parents=True)
    (folder / "models" / "pocket" / "config.json").write_text("{}")
    (folder / "tools" / "export_lab.py").write_text(LAB)
    package = folder / "lib" / "rewired" / "__init__.py"
    package.write_text(STAND_IN.replace("REAL", repr(real)) + package.read_text())
    return folder


def command(folder: Path, *options: str) -> dict:
    """How `make book PROFILE=ci` is called there, for `subprocess`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REWIRED")}
    words = [sys.executable, "tools/book.py", "--profile", "ci", *options]
    return {"args": words, "cwd": folder, "env": {**environment, "PYTHONPATH": str(folder / "lib")}}


def built(folder: Path, *options: str, **environment: str) -> set[str]:
    """Build, and say which notebooks the stand-in executed."""
    (folder / "ran.txt").unlink(missing_ok=True)
    called = command(folder, *options)
    called["env"] |= environment
    done = subprocess.run(**called, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split()[0] for line in ran(folder)}


def ran(folder: Path) -> list[str]:
    """One line a notebook that the last build executed: its name and its parameters."""
    return (folder / "ran.txt").read_text().splitlines() if (folder / "ran.txt").exists() else []
