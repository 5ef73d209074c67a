"""The stored notebooks, their parts, and how a test runs one."""

import atexit
import gc
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from rewired import decisions
from rewired.execute import execute
from rewired.store import atomic_path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import registry  # noqa: E402

CHAPTERS = registry.chapters(ROOT)
"""{name: chapter}, as the notebooks' own metadata describes them."""
RUNS = ["runs/train", "runs/patch_pair", "runs/organism", "runs/motive"]
NOTEBOOKS = [chapter.path for chapter in CHAPTERS.values()] + RUNS
"""Every stored notebook, as seen from ``notebooks/``."""
LITTLE = {"episodes": 4, "batch_size": 10, "checkpoint_every": 2, "log_every": 2}
"""As little training as leaves every file; no model learns anything from it."""
SAMPLES = 4
GLUE = re.compile(r"\{glue(?::(?P<kind>\w+))?\}(?:`(?P<role>[^`]+)`| +(?P<directive>\S+))")
HIDDEN = {"hide-input", "hide-cell", "remove-cell", "remove-input"}
"""Tags of cells whose code a reader does not see at once."""


def read_by(name: str) -> list[str]:
    """The chapters whose tables this one reads."""
    tables = set(registry.tables_read(CHAPTERS[name], CHAPTERS))
    return [other.name for other in CHAPTERS.values() if tables & set(other.writes)]


def notebook(file, *cells: str):
    """Write a notebook of these code cells, the first tagged ``parameters``, and return its file."""
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    code[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), file)
    return file


def stored(path: str) -> dict:
    """A notebook by its path in ``notebooks/``, without ending."""
    return json.loads((ROOT / "notebooks" / f"{path}.ipynb").read_text())


def cells(path: str, kind: str) -> list[dict]:
    return [cell for cell in stored(path)["cells"] if cell["cell_type"] == kind]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def source(cell: dict) -> str:
    return "".join(cell["source"])


def outputs(executed: dict) -> list[dict]:
    return [output for cell in executed["cells"] for output in cell.get("outputs", [])]


def glued(executed: dict) -> dict[str, str]:
    """{key: its data as JSON} of everything the executed notebook hands to a text."""
    scraps = [o for o in outputs(executed) if o.get("metadata", {}).get("scrapbook")]
    return {scrap["metadata"]["scrapbook"]["name"]: json.dumps(scrap["data"]) for scrap in scraps}


def pasted(markdown: str) -> Iterator[tuple[str, str]]:
    """(document or "", key) of everything that a text takes from a run."""
    for match in GLUE.finditer(markdown):
        key = match["role"] or match["directive"]
        document = re.search(rf"\{{glue\}} {re.escape(key)}\n:doc: (\S+)", markdown) if match["directive"] else None
        before, _, after = key.rpartition("::")
        yield before or (document[1] if document else ""), after.removesuffix(":s")


GUARD = decisions.guard
GUARDED = (
    Path(tempfile.gettempdir())
    / f"rewired-guarded-{os.getppid() if 'PYTEST_XDIST_WORKER' in os.environ else os.getpid()}"
)
"""What the guard returned in the processes of this test run; the folder goes when they end."""
atexit.register(shutil.rmtree, GUARDED, ignore_errors=True)


def guard_once(variants, variant: str, seed: int = 1, forms: bool = False):
    """`decisions.guard`, once in a test run for a run whose files have the same bytes: every chapter asks for it. The
    forms are measured in batches of their own, so whoever does not ask for them gets the same table without."""
    folder, digest = variants.run_dir(variant, seed), hashlib.sha256(variant.encode())
    for name in ("run.json", "decisions.parquet", "adapter/adapter_model.safetensors"):
        if not (folder / name).is_file():
            return GUARD(variants, variant, seed, forms)
        digest.update((folder / name).read_bytes())
    file = GUARDED / f"{digest.hexdigest()}.pickle"
    if not file.is_file():
        checked = GUARD(variants, variant, seed, forms=True)
        file.parent.mkdir(exist_ok=True)
        with atomic_path(file) as path:
            checked.to_pickle(path)
    checked = pd.read_pickle(file)
    return checked if forms else checked.assign(delta_forms=float("nan"))


def run(path: str, out: Path, root: Path, build: bool = True, **parameters) -> dict:
    """The notebook executed in this process with its results in ``root``; ``build``: as in `make book`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setattr(decisions, "guard", guard_once)
        environment.setenv("REWIRED_ROOT", str(root))
        if build:
            environment.setenv("REWIRED_BUILD", "1")
        gc.freeze()  # at the end of a notebook IPython looks for garbage: among its own objects, not among all
        execute(ROOT / "notebooks" / f"{path}.ipynb", out, parameters, here=True)
    return json.loads(out.read_text())
