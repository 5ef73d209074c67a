"""The command line: one paragraph and status 2 for a bad input, and nothing left under a final name."""

import json

import nbformat
import pytest

from rewired import __main__ as cli
from rewired.errors import RewiredError


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str]:
    """(exit status, what was printed to stderr) of one command line."""
    monkeypatch.setattr("sys.argv", ["rewired", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err.strip()


def notebook(file, *cells: str):
    """A notebook whose first code cell is tagged ``parameters``."""
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    code[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), file)
    return file


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["base-table", "--profile", "pockt"], ["'pockt'", "Did you mean 'pocket'"]),
        (["train", "--variant", "kantian", "--profile", "ci"], ["'kantian'", "deontological"]),
        (["train", "--variant", "hybrid", "--profile", "ci", "--set", "training.kll=1"], ["training.kl"]),
        (["policy-table", "--profile", "ci"], ["policy.parquet", "make book PROFILE=ci"]),
        (["run-notebook", "nowhere.ipynb", "--out", "x.ipynb"], ["nowhere.ipynb"]),
    ],
)
def test_bad_input_is_one_paragraph(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, message = run(capsys, monkeypatch, *arguments)
    assert status == 2 and "\n" not in message and all(word in message for word in words), message
    assert not list(tmp_path.rglob("*.*"))


def test_a_notebook_refuses_what_it_does_not_know(capsys, monkeypatch, tmp_path):
    file = notebook(tmp_path / "a.ipynb", 'profile = "ci"\noverrides = []\nseed = 1', "1 / 0")
    status, message = run(
        capsys, monkeypatch, "run-notebook", str(file), "--out", str(tmp_path / "b.ipynb"), "-p", "sed=2"
    )
    assert status == 2 and "'sed'" in message and "profile, overrides, seed" in message
    status, message = run(
        capsys, monkeypatch, "run-notebook", str(file), "--out", str(tmp_path / "b.ipynb"), "-p", "seed"
    )
    assert status == 2 and "name=value" in message
    assert [f.name for f in tmp_path.iterdir()] == ["a.ipynb"]


def test_an_executed_notebook_is_whole_and_tidy(tmp_path):
    file = notebook(tmp_path / "a.ipynb", 'profile = "ci"\noverrides = []\nseed = 1', "print(seed * 21)")
    cli.execute(file, tmp_path / "out" / "b.ipynb", {"seed": 2})
    done = json.loads((tmp_path / "out" / "b.ipynb").read_text())
    assert "".join(done["cells"][2]["outputs"][0]["text"]) == "42\n"
    assert "papermill" not in done["metadata"] and "remove-cell" in done["cells"][1]["metadata"]["tags"]
    assert not any({"papermill", "execution"} & set(cell["metadata"]) for cell in done["cells"])
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["b.ipynb"]


def test_an_error_of_the_user_comes_out_of_the_notebook_alone(tmp_path):
    raising = "import rewired\nraise rewired.RewiredError('One paragraph.')"
    file = notebook(tmp_path / "a.ipynb", 'profile = "ci"\noverrides = []', raising)
    with pytest.raises(RewiredError, match="^One paragraph.$"):
        cli.execute(file, tmp_path / "b.ipynb", {})
    assert [f.name for f in tmp_path.iterdir()] == ["a.ipynb"]


def test_papermill_alone_refuses_an_unknown_parameter_too(tmp_path):
    import papermill

    starting = "import rewired\nP = rewired.start(profile, overrides)"
    file = notebook(tmp_path / "a.ipynb", 'profile = "ci"\noverrides = []\nseed = 1', starting)
    with pytest.raises(papermill.PapermillExecutionError, match="'sede'.*Did you mean 'seed'"):
        papermill.execute_notebook(str(file), str(tmp_path / "b.ipynb"), {"sede": 2}, progress_bar=False)
