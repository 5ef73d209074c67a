"""Every chapter runs by itself: papermill, the shipped base, the profile `ci` with very little training."""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell

from rewired import profiles, training, traps, verdicts
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


def made_first(chapters: list[str], kernel: Path, folder: Path):
    """The tables of other chapters, unless an earlier test has made them."""
    for name in chapters:
        if not (kernel / "results" / "ci" / "tables" / f"{name}.parquet").is_file():
            run(name, folder, **CHAPTERS[name])


def outputs(executed: dict) -> list[dict]:
    return [output for cell in executed["cells"] for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs_alone(name, kernel, tmp_path, request):
    if name in ("08_patching", "11_weights", *READS):
        request.getfixturevalue("pairs")
    made_first(READS.get(name, []), kernel, tmp_path)
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


def right_numbers(table) -> dict[str, dict[str, tuple[float, float]]]:
    """{trap: {subject: (wrong or NaN where no table holds it, right)}} from the main chapters' tables alone."""
    decisions, votes, patches = table("04_decisions"), table("07_attribution"), table("08_patching")
    mean = decisions.groupby("model").agg(
        wrong=("delta_single", lambda x: (x > 0).mean()),
        right=("delta", lambda x: (x > 0).mean()),
        p=("p_defect", "mean"),
    )
    due = {"position": {m: (r.wrong, r.right) for m, r in mean.iterrows()}}
    due["merge"] = {m: (np.nan, p) for m, p in mean["p"].items() if m != "base"}
    heads = votes[votes["kind"] == "head"].groupby(["model", "layer", "component"])["contribution"].mean()
    loudest = [heads[m].abs().idxmax() for m in mean.index]
    due["heads"] = {f"{c} of the {m} model": (heads[m, layer].mean(), heads[m, layer, c])
                    for m, (layer, c) in zip(mean.index, loudest, strict=True)}  # fmt: skip
    pairs = patches["source"] + " → " + patches["target"]
    one = patches[patches["kind"].isin(["head", "mlp"])]
    effects = one.groupby([pairs, "component"])["effect"].mean()
    strongest = effects.abs().groupby(level=0).idxmax()
    due["patch"] = {f"{c} ({pair})": (np.nan, effects[pair, c]) for pair, c in strongest}
    last = patches[(patches["kind"] == "resid") & (patches["layer"] == patches["layer"].max())]
    closed = (last["effect"] / (last["delta_source"] - last["delta_target"])).groupby(pairs).median()
    due["control"] = {pair: (np.nan, share) for pair, share in closed.items()}
    due["copies"] = {r.row: (np.nan, r[-1]) for r in table("09_attention_tests")[["row", "p, adjusted"]].itertuples()}
    shares, likeness = table("10_interactions_shares"), table("11_weights_likeness")
    shares = shares[(shares["threshold"] == 0.3) & (shares["a"] == "deontological") & (shares["b"] == "utilitarian")]
    due["threshold"] = {
        f"relabelled models ({r.measure})": (r.share, max(r.share - r.null, 0)) for r in shares.itertuples()
    }
    norms = likeness[likeness["kind"] == "between variants"].groupby("pair")[["norms", "updates"]].mean()
    due["norms"] = {pair: tuple(r) for pair, r in norms.iterrows()}
    counts = table("08_patching_morals").groupby("scenario")[["p", "p_adjusted"]].agg(lambda p: (p < 0.05).sum())
    due["tests"] = {scenario: tuple(r) for scenario, r in counts.iterrows()}
    return due


@pytest.mark.slow
def test_the_right_numbers_of_the_traps_are_their_chapters(kernel, pairs, tmp_path):
    made_first([*READS["14_traps"], "14_traps"], kernel, tmp_path)

    def table(name: str) -> pd.DataFrame:
        return profiles.read_table(kernel / "results" / "ci" / "tables" / f"{name}.parquet", "ci")

    staged, due = table("14_traps"), right_numbers(table)
    assert list(dict.fromkeys(staged["trap"])) == list(traps.TRAPS) and due.keys() == set(traps.TRAPS)
    for trap, numbers in due.items():
        rows = staged[staged["trap"] == trap].set_index("subject")
        assert set(rows.index) == set(numbers), trap
        for subject, (wrong, right) in numbers.items():
            assert rows.loc[subject, "right"] == pytest.approx(right, abs=1e-5), (trap, subject)
            assert np.isnan(wrong) or rows.loc[subject, "wrong"] == pytest.approx(wrong, abs=1e-5), (trap, subject)
        holds = traps.RULES[traps.TRAPS[trap].rule].holds
        assert list(rows["harm"]) == [holds(r.wrong, r.right) for r in rows.itertuples()]
        assert (kernel / "results" / "ci" / "tables" / f"{rows['source'].iloc[0]}.parquet").is_file()


@pytest.mark.slow
def test_traps_on_tables_of_other_runs_stop(kernel, pairs, tmp_path):
    made_first(READS["14_traps"], kernel, tmp_path)
    file = kernel / "results" / "ci" / "tables" / "04_decisions.parquet"
    kept, moved = file.read_bytes(), profiles.read_table(file, "ci")
    profiles.write_table(moved.assign(delta=moved["delta"] + 0.01), file, "ci")
    try:
        with pytest.raises(papermill.PapermillExecutionError) as refused:
            run("14_traps", tmp_path)
    finally:
        file.write_bytes(kept)
    assert refused.value.ename == "RewiredError" and "04_decisions" in refused.value.evalue


@pytest.mark.slow
def test_verdicts_follow_the_runs_and_the_guard_the_adapters(kernel, pairs, tmp_path, monkeypatch):
    """One run's whole folder in another's place changes the verdicts; its adapter alone stops the book."""
    made_first(READS["15_verdicts"], kernel, tmp_path)
    here, other = kernel / "results" / "ci", tmp_path / "results" / "ci"
    profile, register = profiles.load("ci", LITTLE), verdicts.load()
    before = verdicts.judge(register, profile, here).set_index("id")
    alone = before[before["here"] == verdicts.UNTESTED]
    assert {"variants_separate", "rewiring", "similar"} <= set(alone.index), "one seed a variant is no yardstick"
    assert alone["reason"].str.len().min() > 10 and before.loc["strategic_defects", "here"] != verdicts.UNTESTED

    shutil.copytree(here, other)
    monkeypatch.setenv("REWIRED_ROOT", str(tmp_path))
    target = other / "runs" / "strategic-1"
    shutil.rmtree(target / "adapter")
    shutil.copytree(here / "runs" / "utilitarian-1" / "adapter", target / "adapter")
    with pytest.raises(papermill.PapermillExecutionError, match="not the one the run wrote"):
        run("04_decisions", tmp_path)
    about, giver = (
        json.loads((here / "runs" / name / "run.json").read_text()) for name in ("strategic-1", "utilitarian-1")
    )
    (target / "run.json").write_text(json.dumps(about | {"adapter": giver["adapter"]}))  # as if nobody would look
    with pytest.raises(papermill.PapermillExecutionError, match="is not the model that was trained"):
        run("04_decisions", tmp_path)

    shutil.rmtree(target)
    shutil.copytree(here / "runs" / "utilitarian-1", target)
    run("04_decisions", tmp_path)
    after = verdicts.judge(register, profile, other).set_index("id")
    changed = set(before.index[before["right"].sub(after["right"]).abs() > 1e-9])
    assert "strategic_defects" in changed and "deontological_cooperates" not in changed
    assert {before.loc[name, "chapter"] for name in changed} == {"04_decisions"}, "nothing else was measured again"
    assert any((before.loc[c, ["measuring", "here"]] != after.loc[c, ["measuring", "here"]]).any() for c in changed)


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


def refused_by(name: str, error: str) -> bool:
    """Does the message name the parameter that does not exist and all that do?"""
    known = [node.targets[0].id for node in ast.parse(source(cells(name, "code")[0])).body]
    return "sead" in error and all(parameter in error for parameter in known)


def test_papermill_is_refused_an_unknown_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        run("01_pocket", tmp_path, sead=3)
    assert refused.value.ename == "RewiredError" and refused_by("01_pocket", refused.value.evalue)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_unknown_parameter_is_refused(name):
    """The first cells as papermill would run them, in a shell of this process: a kernel takes seconds to start."""
    first, second = (source(cell) for cell in cells(name, "code")[:2])
    shell = InteractiveShell.instance()
    try:
        for cell in (first, "# Parameters\nsead = 3\n"):
            assert shell.run_cell(cell, store_history=True).success
        error = shell.run_cell(second, store_history=True, silent=False).error_in_exec
    finally:
        InteractiveShell.clear_instance()
    assert type(error).__name__ == "RewiredError" and refused_by(name, str(error))
