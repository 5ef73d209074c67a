"""Build the site from executed notebooks, with every Sphinx warning an error.

A staging folder mirrors the repository (prose, settings, and the executed notebooks in the place of the empty ones), so
that a link to ``notebooks/…`` resolves on the page as it does in the repository. The finished site takes its place in
``_build/html`` in one step; a build that fails leaves the old one standing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import registry
import yaml

import stale
from rewired import profiles
from rewired.profiles import ROOT
from rewired.store import atomic_dir

SCRAP = "application/papermill.record/"
"""What marks an output as glued."""


def stage(executed: Path, folder: Path) -> None:
    """Fill ``folder`` with the settings, the prose and the executed notebooks."""
    settings = with_repository(yaml.safe_load((ROOT / "_config.yml").read_text()))
    (folder / "_config.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    shutil.copy(ROOT / "_toc.yml", folder)
    shutil.copytree(ROOT / "book", folder / "book")
    prose = "\n".join(page.read_text() for page in sorted((ROOT / "book").rglob("*.md")))
    for chapter in registry.chapters(ROOT).values():
        place, notebook = folder / chapter.notebook, executed / f"{chapter.path}.ipynb"
        place.parent.mkdir(parents=True, exist_ok=True)
        if notebook.is_file():
            content = json.loads(notebook.read_text())
            if '"name": "made_by"' in notebook.read_text():
                content["cells"].append(made(chapter, executed.parent.name))
            place.write_text(json.dumps(content))
        else:
            place.write_text(json.dumps(stub(ROOT / chapter.notebook, prose)))
    stage_lab(executed.parent / "lab", folder / "book" / "_static" / "lab" / "data")


def stage_lab(made: Path, folder: Path) -> None:
    """Put the models that readers patch beside the page that runs them; a build without them says so there."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(made.glob("*/*.js")):
        shutil.copy(file, folder)
    if not (folder / "lab.js").is_file():
        reason = "This build holds no trained models; `make book` without `PARTS` trains them."
        (folder / "lab.js").write_text(f'rewired.data("lab", {json.dumps({"available": False, "reason": reason})});\n')


LIBRARIES = ("torch", "transformers", "peft", "trl", "numpy", "pandas")


def made(chapter: registry.Chapter, profile: str) -> dict:
    """A chapter's last cell: what made the page, so that somebody else can make it again.

    The commit is the one that the site is built from; every chapter whose code differs from it has run again."""
    lines = ["{glue:text}`made_by`"]
    if profile in profiles.known_profiles():
        chosen = profiles.load(profile)
        seeds = {"runs": chosen.training.seeds, "pairs": [chosen.patching.seed]}
        lines += [f"{need} of seed {', '.join(map(str, seeds[need]))}" for need in chapter.needs if need in seeds]
        base = [file for file in Path(chosen.model.path).glob("*") if file.is_file()]
        lines.append(f"base {chosen.model.path}" + (f" with the hash {stale.file_hash(base)}" if base else ""))
    lines.append(f"commit {commit()}")
    lines += [f"{name} {version(name)}" for name in LIBRARIES]
    text = "````{admonition} How this page was made\n:class: dropdown\n" + "; ".join(lines) + ".\n````"
    return {"cell_type": "markdown", "id": "how-this-page-was-made", "metadata": {}, "source": text}


def commit() -> str:
    """The commit that stands in the folder, and whether anything was changed since; "unknown" without git."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=, with changes that are not committed"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def stub(stored: Path, prose: str) -> dict:
    """A chapter that was not built: its title, a word of why it is empty, and a dash for what ``prose`` takes from it.

    So every link leads somewhere when only some of the parts are built."""
    notebook = json.loads(stored.read_text())
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    page = f"{texts[0].splitlines()[0]}\n\nThis chapter is not part of this build; `make book` without `PARTS` has it."
    keys = re.findall(rf"/{re.escape(stored.name)}::(\w+)", prose)
    keys += re.findall(rf"\{{glue(?::\w+)?\}} (\w+)\n:doc: \S+/{re.escape(stored.name)}", prose)
    outputs = []
    for key in sorted(set(keys)):
        scrap = {"scrapbook": {"name": key, "mime_prefix": SCRAP}}
        outputs.append({"output_type": "display_data", "data": {f"{SCRAP}text/plain": "'–'"}, "metadata": scrap})
    cells = [{"cell_type": "markdown", "id": "not-built", "metadata": {}, "source": page}]
    code = {"cell_type": "code", "id": "scraps", "source": "", "execution_count": 1, "outputs": outputs}
    cells.append(code | {"metadata": {"tags": ["remove-cell"]}})
    return notebook | {"cells": cells}


def with_repository(settings: dict) -> dict:
    """Edit and Colab buttons, when ``repository: url`` is set; none otherwise."""
    known = bool((settings.get("repository") or {}).get("url"))
    settings.setdefault("html", {}).update(use_repository_button=known, use_edit_page_button=known)
    settings["html"]["use_issues_button"] = known
    settings["launch_buttons"] = {"colab_url": "https://colab.research.google.com"} if known else {}
    if not known:
        settings.pop("repository", None)
    return settings


def build(source: Path, out: Path) -> int:
    """Run jupyter-book on ``source``; its page tree ends up in ``out``. Returns the exit status."""
    work = source.parent / "jupyter-book"
    shutil.rmtree(work, ignore_errors=True)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(source), "--path-output", str(work), "-W", "--keep-going"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"})  # fmt: skip
    (source.parent / "jupyter-book.log").write_text(done.stdout)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "WARNING" in line or "ERROR" in line]
        print("\n".join(lines or done.stdout.splitlines()[-20:]), file=sys.stderr)
        print(f"The site was not built; the whole log is {source.parent / 'jupyter-book.log'}.", file=sys.stderr)
        return 1
    with atomic_dir(out) as page_tree:
        shutil.copytree(work / "_build" / "html", page_tree, dirs_exist_ok=True)
        (page_tree / ".built").touch()
    shutil.rmtree(work)
    return 0


def main(executed: Path) -> int:
    work = ROOT / "_build"
    shutil.rmtree(work / "stage", ignore_errors=True)
    (work / "stage").mkdir(parents=True)
    stage(executed, work / "stage")
    return build(work / "stage", work / "html")


if __name__ == "__main__":
    sys.exit(main(ROOT / sys.argv[1]))
