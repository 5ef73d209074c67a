"""The stored notebooks, their parts, and how a test runs one."""

import json
import re
from pathlib import Path

import papermill
import pytest

from rewired.__main__ import sockets

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = {
    "01_pocket": {"questions": 8},
    "02_training": {"checkpoints": 1, "components": 2},
    "03_prompts": {"label_pairs": [["action1", "action2"], ["red", "green"]]},
    "04_decisions": {},
    "05_behaviour": {"plays": 10, "rounds": 4},
    "06_logit_lens": {"per_scenario": 1},
    "07_attribution": {"per_scenario": 1},
    "08_patching": {"few": 1},
    "09_attention": {"per_scenario": 2, "few": 1},
    "10_interactions": {"per_scenario": 1, "strongest": 3, "few": 1, "draws": 100},
    "11_weights": {},
    "13_synthesis": {"per_scenario": 2},
    "14_traps": {"shrink": [1, 64]},
    "15_verdicts": {},
}
READS = {
    "13_synthesis": ["06_logit_lens", "08_patching"],
    "14_traps": ["04_decisions", "07_attribution", "08_patching", "09_attention", "10_interactions", "11_weights"],
    "15_verdicts": [*CHAPTERS][3:11],
}
"""Chapters that read other chapters' tables, and which these are."""
NOTEBOOKS = [*CHAPTERS, "runs/train", "runs/patch_pair"]
LITTLE = {"episodes": 8, "batch_size": 20, "checkpoint_every": 4}
"""As little training as leaves every file; no model learns anything from it."""
SAMPLES = 10
GLUE = re.compile(r"\{glue(?::(?P<kind>\w+))?\}(?:`(?P<role>[^`]+)`| +(?P<directive>\S+))")


def cells(name: str, kind: str) -> list[dict]:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def outputs(executed: dict) -> list[dict]:
    return [output for cell in executed["cells"] for output in cell.get("outputs", [])]


def glued(executed: dict) -> dict[str, str]:
    """{key: its data as JSON} of everything the executed notebook hands to a text."""
    scraps = [o for o in outputs(executed) if o.get("metadata", {}).get("scrapbook")]
    return {scrap["metadata"]["scrapbook"]["name"]: json.dumps(scrap["data"]) for scrap in scraps}


def pasted(markdown: str) -> list[tuple[str, str]]:
    """(document or "", key) of everything that a text takes from a run."""
    found = []
    for match in GLUE.finditer(markdown):
        key = match["role"] or match["directive"]
        document = re.search(rf"\{{glue\}} {re.escape(key)}\n:doc: (\S+)", markdown) if match["directive"] else None
        before, _, after = key.rpartition("::")
        found.append((before or (document[1] if document else ""), after.removesuffix(":s")))
    return found


def run(name: str, out: Path, root: Path, project: Path = ROOT, build: bool = True, **parameters) -> dict:
    """The notebook executed with ``project``'s library and its results in ``root``; ``build``: as in `make book`."""
    with pytest.MonkeyPatch.context() as environment, sockets() as config:
        environment.setenv("REWIRED_ROOT", str(root))
        environment.setenv("PYTHONPATH", str(project / "lib"))
        if build:
            environment.setenv("REWIRED_BUILD", "1")
        executed = papermill.execute_notebook(
            str(project / "notebooks" / f"{name}.ipynb"), str(out), parameters, cwd=str(project), config=config,
            progress_bar=False,
        )  # fmt: skip
    return json.loads(json.dumps(executed))
