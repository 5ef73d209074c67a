"""How a notebook starts and is executed: what it refuses, and that only a whole one gets its name."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
from chapters import notebook

from rewired import execute
from rewired.errors import RewiredError
from rewired.execute import start
from rewired.profiles import load

# --- starting --------------------------------------------------------------------------------------------------------


def in_notebook(monkeypatch, *cells: str) -> None:
    """Make ``start`` believe that a kernel has run these cells."""
    shell = SimpleNamespace(user_ns={"In": ["", *cells]})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_start_refuses_a_parameter_that_the_notebook_does_not_have(monkeypatch):
    in_notebook(monkeypatch, "profile = 'ci'\nseed = 1", "# Parameters\nsede = 2", "rewired.start(profile)")
    with pytest.raises(RewiredError, match="'sede'.*Did you mean 'seed'"):
        start("ci")


def test_start_pins_and_returns_the_profile(monkeypatch):
    import torch

    in_notebook(monkeypatch, "profile = 'ci'\nseed = 1", "# Parameters\nseed = 2", "rewired.start(profile)")
    assert start("ci", ["training.kl=0.5"]).training.kl == 0.5
    assert torch.get_num_threads() == load("ci").threads
    assert json.loads(os.environ["OMP_NUM_THREADS"]) == 1


# --- executing -------------------------------------------------------------------------------------------------------

PARAMETERS = 'profile = "ci"\noverrides = []\nseed = 1'


@pytest.mark.parametrize("here", [False, True])
def test_an_executed_notebook_is_whole_and_tidy(tmp_path, here):
    file = notebook(tmp_path / "a.ipynb", PARAMETERS, "print(seed * 21)", "seed + 1", "seed;")
    execute.execute(file, tmp_path / "out" / "b.ipynb", {"seed": 2}, here=here)
    executed = json.loads((tmp_path / "out" / "b.ipynb").read_text())
    outputs = [cell["outputs"] for cell in executed["cells"]]
    assert [len(output) for output in outputs] == [0, 0, 1, 1, 0]
    assert "".join(outputs[2][0]["text"]) == "42\n" and "3" in outputs[3][0]["data"]["text/plain"]
    assert "papermill" not in executed["metadata"] and "remove-cell" in executed["cells"][1]["metadata"]["tags"]
    assert not any({"papermill", "execution"} & set(cell["metadata"]) for cell in executed["cells"])
    assert [cell["execution_count"] for cell in executed["cells"]] == [1, 2, 3, 4, 5]
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["b.ipynb"]


@pytest.mark.parametrize("here", [False, True])
def test_an_error_of_the_user_comes_out_of_the_notebook_alone(tmp_path, here):
    raising = "import rewired\nraise rewired.RewiredError('One paragraph.')"
    file = notebook(tmp_path / "a.ipynb", 'profile = "ci"\noverrides = []', raising)
    with pytest.raises(RewiredError, match="^One paragraph.$"):
        execute.execute(file, tmp_path / "b.ipynb", {}, here=here)
    assert [f.name for f in tmp_path.iterdir()] == ["a.ipynb"]


def test_another_error_names_the_notebook_and_the_cell(tmp_path):
    file = notebook(tmp_path / "a.ipynb", PARAMETERS, "1 / 0")
    with pytest.raises(RuntimeError, match=r"a\.ipynb failed in cell 2:(?s:.*)ZeroDivisionError"):
        execute.execute(file, tmp_path / "b.ipynb", {}, here=True)
    assert [f.name for f in tmp_path.iterdir()] == ["a.ipynb"]


def test_two_notebooks_in_one_process_share_no_name(tmp_path):
    first = notebook(tmp_path / "a.ipynb", PARAMETERS, "here = 1")
    second = notebook(tmp_path / "b.ipynb", PARAMETERS, "assert 'here' not in globals() and __name__ == 'notebook'")
    for file in (first, second):
        execute.execute(file, tmp_path / "out.ipynb", {}, here=True)


def test_what_a_cell_displays_is_kept(tmp_path):
    """What is glued in a process of our own reaches the page as it does from a kernel."""
    gluing = "import rewired\nbook = rewired.chapter('pocket', profile)\nbook.say('x', '{n} of 2', n=1)"
    file = notebook(tmp_path / "a.ipynb", PARAMETERS, gluing)
    execute.execute(file, tmp_path / "b.ipynb", {}, here=True)
    outputs = json.loads((tmp_path / "b.ipynb").read_text())["cells"][1]["outputs"]
    scraps = {output["metadata"]["scrapbook"]["name"]: output["data"] for output in outputs}
    assert scraps["x"] == {"application/papermill.record/text/plain": "'1 of 2'"} and "made_by" in scraps


def test_papermill_alone_refuses_an_unknown_parameter_too(tmp_path):
    import papermill

    starting = "import rewired\nP = rewired.start(profile, overrides)"
    file = notebook(tmp_path / "a.ipynb", 'profile = "ci"\noverrides = []\nseed = 1', starting)
    with pytest.raises(papermill.PapermillExecutionError, match="'sede'.*Did you mean 'seed'"):
        papermill.execute_notebook(str(file), str(tmp_path / "b.ipynb"), {"sede": 2}, progress_bar=False)
