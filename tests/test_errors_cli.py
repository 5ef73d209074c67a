"""The command line: one paragraph and status 2 for a bad input, and nothing left under a final name."""

import pytest
from chapters import notebook

from rewired import __main__ as cli


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str]:
    """(exit status, what was printed to stderr) of one command line."""
    monkeypatch.setattr("sys.argv", ["rewired", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--variant", "hybrid", "--profile", "pockt"], ["'pockt'", "Did you mean 'pocket'"]),
        (["train", "--variant", "kantian", "--profile", "ci"], ["'kantian'", "deontological"]),
        (["train", "--variant", "hybrid", "--profile", "ci", "--set", "training.kll=1"], ["training.kl"]),
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
    assert status == 2 and "key=value" in message
    status, message = run(
        capsys, monkeypatch, "run-notebook", str(file), "--out", str(tmp_path / "b.ipynb"), "-p", "seed=[1"
    )
    assert status == 2 and "\n" not in message and "'seed=[1' has a value that is not valid YAML" in message
    assert [f.name for f in tmp_path.iterdir()] == ["a.ipynb"]
