"""Every chapter runs by itself: papermill, the shipped base, the profile `ci` with very little training."""

import ast
import json
import re
from pathlib import Path

import papermill
import pytest

from rewired import profiles, training
from rewired.__main__ import sockets

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = {
    "01_pocket": {"questions": 8},
    "02_training": {"checkpoints": 1, "components": 2},
    "03_prompts": {"label_pairs": [["action1", "action2"], ["red", "green"]]},
    "04_decisions": {},
    "05_behaviour": {"plays": 20, "rounds": 4},
    "06_logit_lens": {"per_scenario": 1},
    "07_attribution": {"per_scenario": 1},
    "08_patching": {"few": 1},
    "09_attention": {"per_scenario": 2, "few": 1},
    "10_interactions": {"per_scenario": 1, "strongest": 3, "few": 1, "draws": 100},
    "11_weights": {},
    "13_synthesis": {"per_scenario": 2},
}
NOTEBOOKS = [*CHAPTERS, "runs/train", "runs/patch_pair"]
LITTLE = ["training.episodes=8", "training.batch_size=20", "training.checkpoint_every=4", "decisions.samples=40"]
GLUE = re.compile(r"\{glue(?::(?P<kind>\w+))?\}(?:`(?P<role>[^`]+)`| +(?P<directive>\S+))")


def cells(name: str, kind: str) -> list[dict]:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def pasted(markdown: str) -> list[tuple[str, str]]:
    """(document or "", key) of everything that a text takes from a run."""
    found = []
    for match in GLUE.finditer(markdown):
        key = match["role"] or match["directive"]
        document = re.search(rf"\{{glue\}} {re.escape(key)}\n:doc: (\S+)", markdown) if match["directive"] else None
        before, _, after = key.rpartition("::")
        found.append((before or (document[1] if document else ""), after.removesuffix(":s")))
    return found


# --- as they are stored ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_without_outputs(name):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(name, "code"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short(name):
    for cell in cells(name, "code"):
        assert len(source(cell).splitlines()) <= 20, source(cell)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_holds_literal_parameters(name):
    first = cells(name, "code")[0]
    assert first["metadata"]["tags"] == ["parameters"]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source(first)).body}
    assert values["profile"] == "pocket" and values["overrides"] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_its_parts(name):
    text = "\n\n".join(source(cell) for cell in cells(name, "markdown"))
    parts = "Before you start, Prerequisites, Time to read, Needs, :class: results, Exercise, Solution"
    for part in [*parts.split(", "), "papermill notebooks/"]:
        assert part in text, f"{name} lacks {part!r}"
    figures = re.findall(r"```\{glue:figure\} (\w+)\n(.*?)```", text, re.S)
    assert figures
    for key, body in figures:
        assert re.search(r":alt: .{40}", body), f"{key} in {name} has no alternative text"
        assert "{glue:text}`made_by`" in body, f"{key} in {name} does not say what made it"


# --- as they run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results root that holds one barely trained run of every variant."""
    root = tmp_path_factory.mktemp("root")
    profile = profiles.load("ci", LITTLE)
    for variant in profile.training.variants:
        training.train(profile, variant, 1, root / "results" / "ci" / "runs" / f"{variant}-1")
    return root


@pytest.fixture
def pairs(kernel, tmp_path):
    """The patched pairs of the profile, for the chapters that gather them; made once."""
    for source, target in profiles.load("ci", LITTLE).patching.pairs:
        if not (kernel / "results" / "ci" / "pairs" / f"{source}-1-to-{target}-1" / "screen.parquet").is_file():
            run("runs/patch_pair", tmp_path, source=source, target=target)


@pytest.fixture
def tables(kernel, pairs, tmp_path):
    """The tables that the synthesis reads; made once."""
    for name in ("06_logit_lens", "08_patching"):
        if not (kernel / "results" / "ci" / "tables" / f"{name}.parquet").is_file():
            run(name, tmp_path, **CHAPTERS[name])


@pytest.fixture
def kernel(results, monkeypatch):
    """The environment a notebook's kernel gets."""
    for name, value in profiles.environment(profiles.load("ci")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("REWIRED_ROOT", str(results))
    monkeypatch.setenv("REWIRED_BUILD", "1")
    return results


def run(name: str, folder: Path, **parameters) -> dict:
    given = {"profile": "ci", "overrides": LITTLE, **parameters}
    with sockets() as config:
        executed = papermill.execute_notebook(
            str(ROOT / "notebooks" / f"{name}.ipynb"), str(folder / "out.ipynb"), given, cwd=str(ROOT),
            config=config, progress_bar=False,
        )  # fmt: skip
    return json.loads(json.dumps(executed))


def outputs(executed: dict) -> list[dict]:
    return [output for cell in executed["cells"] for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs_alone(name, kernel, tmp_path, request):
    if name in ("08_patching", "11_weights"):
        request.getfixturevalue("pairs")
    if name == "13_synthesis":
        request.getfixturevalue("tables")
    executed = run(name, tmp_path, **CHAPTERS[name])
    written = kernel / "results" / "ci"
    assert (written / "tables" / f"{name}.parquet").is_file()
    drawn = sorted(file.stem for file in (written / "figures").glob(f"{name}_*.svg"))
    assert drawn == sorted(file.stem for file in (written / "figures").glob(f"{name}_*.png")) != []
    about = [output.get("metadata", {}).get("scrapbook") for output in outputs(executed)]
    made = {scrap["name"] for scrap in about if scrap}
    prose = "\n\n".join(source(cell) for cell in executed["cells"] if cell["cell_type"] == "markdown")
    assert {key for document, key in pasted(prose) if not document} <= made
    pages = "\n".join(file.read_text() for file in (ROOT / "book").glob("*.md"))
    assert {key for document, key in pasted(pages) if document.endswith(f"{name}.ipynb")} <= made
    assert not any("Traceback" in output.get("text", "") for output in outputs(executed))


@pytest.mark.slow
def test_chapter_2_tells_of_a_change_of_reward(kernel, tmp_path):
    changed = [*LITTLE, "training.first_reward=strategic", "training.first_episodes=4"]
    executed = run("02_training", tmp_path, overrides=changed, checkpoints=1)
    scraps = [o for o in outputs(executed) if o.get("metadata", {}).get("scrapbook", {}).get("name") == "told_paid"]
    told = json.dumps(scraps[0]["data"])
    assert "For 4 of 8 episodes every run was paid the strategic reward" in told
    assert "The utilitarian runs defect after CC, CD, DC, DD" in told
    assert "For the strategic runs the change of reward asks for no other move" in told


@pytest.mark.slow
def test_a_run_runs_alone(kernel, tmp_path, monkeypatch):
    monkeypatch.delenv("REWIRED_BUILD")
    run("runs/train", tmp_path, variant="hybrid", seed=9)
    assert (kernel / "results" / "ci" / "trials" / "runs" / "hybrid-9" / "run.json").is_file(), "a trial stays apart"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_unknown_parameter_is_refused(name, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        run(name, tmp_path, sead=3)
    known = [node.targets[0].id for node in ast.parse(source(cells(name, "code")[0])).body]
    assert refused.value.ename == "RewiredError"
    assert "sead" in refused.value.evalue and all(parameter in refused.value.evalue for parameter in known)
