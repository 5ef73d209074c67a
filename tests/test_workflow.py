"""What `make book` repeats after a change, and that nothing a killed build left behind stands in its way.

The real Snakefile, notebooks and library run in a copy of the repository; only the execution of a notebook is replaced
by a stand-in that writes the files which the notebook would write and notes its name.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import stale  # noqa: E402

STAND_IN = """
import json, re, sys
from pathlib import Path
arguments = sys.argv[1:]
notebook, out = Path(arguments[1]), Path(arguments[3])
given = dict(a.split("=", 1) for a in arguments if "=" in a)
results = Path("results") / given["profile"]
if notebook.name == "train.ipynb":
    run = results / "runs" / f"{given['variant']}-{given['seed']}"
    names = "run.json log.parquet decisions.parquet policy.parquet".split()
    files = [run / name for name in names]
    files += [run / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors")]
elif notebook.name == "patch_pair.ipynb":
    pair = "{source}-{source_seed}-to-{target}-{target_seed}".format(**given)
    names = "patches controls sets circuits attribution_patching".split()
    files = [results / "pairs" / pair / f"{name}.parquet" for name in names]
else:
    code = "".join("".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"])
    files = [results / "tables" / f"{t}.parquet" for t in re.findall(r'TABLES / "([^"]+)[.]parquet"', code)]
for file in [*files, out]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("done")
with open("ran.txt", "a") as log:
    log.write(out.stem + "\\n")
"""
SITE = """
from pathlib import Path
Path("_build/html").mkdir(parents=True, exist_ok=True)
Path("_build/html/.built").touch()
"""
CHAPTERS = {"01_pocket", "02_training", "03_prompts", "04_decisions", "05_behaviour"}
CHAPTERS |= {"06_logit_lens", "07_attribution", "08_patching", "09_attention", "10_interactions", "11_weights"}
CHAPTERS |= {"13_synthesis", "14_traps", "15_verdicts"}
USING_RUNS = CHAPTERS - {"01_pocket"}
RUNS = {f"{variant}-1" for variant in ("strategic", "deontological", "utilitarian", "hybrid")}
PAIRS = {"deontological-1-to-utilitarian-1"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of what the workflow reads, with the stand-in, built once."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("Snakefile", "_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder)
    for name in ("lib", "tools", "config", "notebooks", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_static"))
    (folder / "models" / "pocket").mkdir(parents=True)
    (folder / "models" / "pocket" / "config.json").write_text("{}")
    (folder / "lib" / "rewired" / "__main__.py").write_text(STAND_IN)
    (folder / "tools" / "build_site.py").write_text(SITE)
    assert built(folder) == RUNS | PAIRS | CHAPTERS
    return folder


def command(folder: Path, *options: str) -> dict:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REWIRED")}
    words = [sys.executable, "tools/book.py", "--profile", "ci", *options]
    return {"args": words, "cwd": folder, "env": {**environment, "PYTHONPATH": str(folder / "lib")}}


def built(folder: Path, *options: str) -> set[str]:
    """Build, and say which notebooks were executed."""
    (folder / "ran.txt").unlink(missing_ok=True)
    done = subprocess.run(**command(folder, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return set((folder / "ran.txt").read_text().split()) if (folder / "ran.txt").exists() else set()


def edited(file: Path, old: str, new: str):
    text = file.read_text()
    assert old in text, f"{old!r} is no longer in {file.name}"
    file.write_text(text.replace(old, new, 1))


def test_nothing_changed_nothing_runs(repository):
    assert built(repository) == set()


def test_a_parameter_repeats_what_reads_it(repository):
    following = {"04_decisions", "14_traps", "15_verdicts"}  # traps and verdicts read chapter 4's tables
    assert built(repository, "--set", "decisions.samples=7") == following
    assert built(repository) == following
    more = built(repository, "--set", "training.seeds=[1, 2]".replace(" ", ""))
    assert more == {run.replace("-1", "-2") for run in RUNS} | USING_RUNS


def test_a_training_parameter_retrains(repository):
    profile = repository / "config" / "ci.yaml"
    edited(profile, "training:\n", "training:\n  kl: 0.123\n")
    assert built(repository) == RUNS | PAIRS | USING_RUNS


def test_an_edit_repeats_what_it_can_change(repository):
    library = repository / "lib" / "rewired"
    (library / "plots.py").write_text((library / "plots.py").read_text() + "\nMORE = 1\n")
    assert built(repository) == CHAPTERS, "plots retrains nothing and patches no pair"
    (library / "games.py").write_text((library / "games.py").read_text() + "\n# a remark\n")
    assert built(repository) == set(), "a comment changes nothing"
    source = (library / "games.py").read_text()
    body = re.search(r'@reward\(\s*"utilitarian".*?\n    return ([^\n]+)', source, re.S)
    edited(library / "games.py", f"return {body[1]}", f"return 2 * ({body[1]})")
    assert built(repository) == {"utilitarian-1"} | PAIRS | CHAPTERS, "an edited reward retrains its variant"


def test_prose_of_a_notebook_repeats_that_notebook_and_no_training(repository):
    for name in ("notebooks/03_prompts.ipynb", "notebooks/runs/train.ipynb"):
        content = json.loads((repository / name).read_text())
        prose = next(cell for cell in content["cells"] if cell["cell_type"] == "markdown")
        prose["source"] = "# Another title"
        (repository / name).write_text(json.dumps(content))
    assert built(repository) == {"03_prompts"}


def test_a_claim_repeats_the_verdicts(repository):
    edited(repository / "book" / "claims.yaml", "the four variants separate", "four variants separate")
    assert built(repository) == {"15_verdicts"}


def test_a_lost_result_is_made_again(repository):
    (repository / "results" / "ci" / "tables" / "03_prompts.parquet").unlink()
    assert built(repository) == {"03_prompts"}


def test_what_a_killed_build_left_is_no_obstacle(repository):
    locks = repository / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.input.lock").write_text("notebooks/01_pocket.ipynb\n")
    (locks / "0.output.lock").write_text("results/ci/notebooks/01_pocket.ipynb\n")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    unburied = subprocess.Popen([sys.executable, "-c", ""])  # ended, but nobody has asked how
    time.sleep(1)
    left = repository / "results" / "ci" / "runs" / f".hybrid-1.partial-{gone.stdout.strip()}"
    mine = left.with_name(f".hybrid-2.partial-{os.getpid()}")
    zombie = left.with_name(f".hybrid-3.partial-{unburied.pid}")
    for folder in (left, mine, zombie):
        folder.mkdir()
        (folder / "half.parquet").write_text("half")
    assert built(repository) == set()
    assert not left.exists() and not zombie.exists() and mine.exists(), "only what no process works on is swept up"
    shutil.rmtree(mine)
    unburied.wait()


def test_a_second_build_waits_for_the_first(repository):
    with open(repository / ".rewired.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(**command(repository), stdout=subprocess.PIPE, text=True)
        assert "waiting" in second.stdout.readline()
        time.sleep(0.2)
        assert second.poll() is None
        fcntl.flock(lock, fcntl.LOCK_UN)
        second.communicate()
    assert second.returncode == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--profile", "nothing"], "'nothing'"),
        (["--set", "training.variants=[kantian]"], "'kantian'"),
        (["--set", "training.first_reward=greed training.first_episodes=4"], "'greed'"),
        (["--set", "training.first_reward=strategic"], "first_episodes"),
        (["--set", "prompts.game=poker"], "'poker'"),
        (["--set", "training.opponent=nobody"], "'nobody'"),
        (["--set", "training.wordings=[rhyme]"], "'rhyme'"),
        (["--set", "patching.pairs=[[strategic,kantian]]"], "'kantian'"),
        (["--set", "patching.seed=7"], "'7'"),
        (["--set", "prompts.labels=[go,gone]"], "go"),
        (["--set", "chapters={99_none:{}}"], "'99_none'"),
    ],
)
def test_a_bad_profile_stops_before_anything_starts(repository, options, word):
    done = subprocess.run(**command(repository, *options), capture_output=True, text=True)
    assert done.returncode == 2 and word in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


# --- staleness, in detail ------------------------------------------------------------------------------------------


def test_imports_are_followed():
    names = {file.stem for file in stale.closure([ROOT / "notebooks" / "runs" / "train.ipynb"], ROOT)}
    assert {"training", "models", "decisions", "prompts", "games", "profiles", "errors"} <= names
    assert "plots" not in names
    data = {f.name for file in stale.closure([ROOT / "lib/rewired/prompts.py"], ROOT) for f in stale._data(file, ROOT)}
    assert "heldout.yaml" in data


def test_a_run_depends_on_the_rewards_that_pay_it(tmp_path):
    package = tmp_path / "lib" / "rewired"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()

    def hashes(own=1, called=1, other=1, rest=1):
        (package / "games.py").write_text(
            f"REST = {rest}\n\n@reward('a', title='A')\ndef a(turn):\n    return {own} + b(turn)\n\n"
            f"@reward('b', title='B')\ndef b(turn):\n    return {called}\n\n"
            f"@reward('c', title='C')\ndef c(turn):\n    return {other}\n"
        )
        return [stale.code_hash([package / "games.py"], tmp_path, rewards=rewards) for rewards in ("a", "b", "ac")]

    def changed(**edit):
        return [new != old for new, old in zip(hashes(**edit), hashes(), strict=True)]

    assert changed(own=2) == [True, False, True]
    assert changed(called=2) == [True, True, True], "a calls b"
    assert changed(other=2) == [False, False, True], "c is paid first"
    assert changed(rest=2) == [True, True, True]


def test_keys_are_found_by_use(tmp_path):
    package = tmp_path / "lib" / "rewired"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "one.py").write_text("def f(p):\n    from rewired import two\n    return p.training.kl + two.g(p)\n")
    (package / "two.py").write_text('"""Doc."""\ndef g(profile):\n    d = profile.decisions\n    return profile.seed\n')
    found = stale.reads([package / "one.py"], tmp_path)
    assert found == {
        "threads",
        "training.kl",
        "seed",
        "decisions.batch_size",
        "decisions.samples",
        "decisions.temperature",
    }
    before = stale.code_hash([package / "one.py"], tmp_path)
    (package / "two.py").write_text(
        '"""Another."""\n\n\ndef g(profile):  # why\n    d = profile.decisions\n    return profile.seed\n'
    )
    assert stale.code_hash([package / "one.py"], tmp_path) == before
    (package / "two.py").write_text("def g(profile):\n    return 0\n")
    assert stale.code_hash([package / "one.py"], tmp_path) != before
