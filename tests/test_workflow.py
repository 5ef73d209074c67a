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
from chapters import CHAPTERS, ROOT, read_by
from copies import built, command, copy, ran
from filelock import FileLock

from rewired import profiles
from rewired.errors import RewiredError

sys.path.insert(0, str(ROOT / "tools"))
import book
import stale

SITE = """
from pathlib import Path
Path("_build/html").mkdir(parents=True, exist_ok=True)
Path("_build/html/.built").touch()
"""
ALL = set(CHAPTERS)
USING_RUNS = {name for name, chapter in CHAPTERS.items() if "runs" in chapter.needs}
USING_PAIRS = {name for name, chapter in CHAPTERS.items() if "pairs" in chapter.needs}
RUNS = {f"{variant}-1" for variant in ("strategic", "deontological", "utilitarian", "hybrid")}
PAIRS = {"deontological-1-to-utilitarian-1"}
USING_ORGANISMS = {name for name, chapter in CHAPTERS.items() if "organisms" in chapter.needs}
ORGANISMS = {f"organism-{name}" for name in profiles.load("ci").organisms.names if USING_ORGANISMS}
USING_MOTIVES = {name for name, chapter in CHAPTERS.items() if "motives" in chapter.needs}
MOTIVES = {f"motive-{name}" for name in profiles.load("ci").motives.collections if USING_MOTIVES}


def following(*names: str) -> set[str]:
    """These chapters and those that read their tables, directly or not."""
    reached = set(names)
    while more := {name for name in ALL - reached if reached & set(read_by(name))}:
        reached |= more
    return reached


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of what the workflow reads, with the stand-in, built. The processes that share the tests build it once,
    and each gets a copy of that, with the times of its files."""
    base = tmp_path_factory.getbasetemp()
    first = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    with FileLock(f"{first}.lock"):
        if not first.is_dir():
            folder = copy(tmp_path_factory.mktemp("repository"))
            (folder / "tools" / "build_site.py").write_text(SITE)
            assert built(folder) == RUNS | PAIRS | ORGANISMS | MOTIVES | ALL
            folder.rename(first)
    return Path(shutil.copytree(first, tmp_path_factory.mktemp("copies") / "repository", symlinks=True))


def edited(file: Path, old: str, new: str):
    text = file.read_text()
    assert old in text, f"{old!r} is no longer in {file.name}"
    file.write_text(text.replace(old, new, 1))


def test_a_parameter_repeats_what_reads_it(repository):
    """A key of the profile, and what the profile gives a chapter: in a quick profile it wins over the chapter's own
    quick parameters. The second build shows that no other chapter is touched."""
    attention = CHAPTERS["attention"].ci
    assert attention["few"] != 2
    assert "decisions" not in following("attention") and "attention" not in following("decisions")
    changed = ("--set", "decisions.samples=7 'chapters={attention: {few: 2}}'")
    assert built(repository, *changed) == following("attention", "decisions")
    (line,) = (line for line in ran(repository) if line.startswith("attention "))
    parameters = attention | {"few": 2}
    assert all(f"{key}={json.dumps(value)}" in line for key, value in parameters.items())
    assert built(repository) == following("attention", "decisions")
    (line,) = (line for line in ran(repository) if line.startswith("attention "))
    assert f"few={attention['few']}" in line


@pytest.mark.slow
def test_more_seeds_train_no_run_again(repository):
    more = built(repository, "--set", "training.seeds=[1, 2]".replace(" ", ""))
    assert more == {run.replace("-1", "-2") for run in RUNS} | following(*USING_RUNS)
    assert built(repository) == following(*USING_RUNS), "nothing is trained again"


def test_a_training_parameter_retrains(repository):
    profile = repository / "config" / "ci.yaml"
    edited(profile, "training:\n", "training:\n  kl: 0.123\n")
    assert built(repository) == RUNS | PAIRS | following(*USING_RUNS)


@pytest.mark.slow
def test_an_edit_repeats_what_it_can_change(repository):
    library = repository / "lib" / "rewired"
    (library / "plots.py").write_text((library / "plots.py").read_text() + "\nMORE = 1\n")
    (library / "games.py").write_text((library / "games.py").read_text() + "\n# a remark\n")
    assert built(repository) == ALL, "plots retrains nothing and patches no pair, and a comment changes nothing"
    source = (library / "games.py").read_text()
    body = re.search(r'@reward\(\s*"utilitarian".*?\n    return ([^\n]+)', source, re.S)
    edited(library / "games.py", f"return {body[1]}", f"return 2 * ({body[1]})")
    again = built(repository)
    assert again >= {"utilitarian-1"} | PAIRS | following(*USING_RUNS), "an edited reward retrains its variant"
    assert not again & (RUNS - {"utilitarian-1"}), "and no other"


def test_prose_a_claim_and_a_lost_result_repeat_what_they_concern(repository):
    """Prose repeats its own notebook and no training, the register of claims what reads it, a lost table its maker. The
    three begin at different chapters: if one of them repeated nothing, its chapter would be missing."""
    for name in (str(CHAPTERS["prompts"].notebook), "notebooks/runs/train.ipynb"):
        content = json.loads((repository / name).read_text())
        prose = next(cell for cell in content["cells"] if cell["cell_type"] == "markdown")
        prose["source"] = "# Another title"
        (repository / name).write_text(json.dumps(content))
    claims = repository / "book" / "claims.yaml"
    claims.write_text(claims.read_text() + "\n# a remark\n")
    (repository / "results" / "ci" / "tables" / "pocket.parquet").unlink()
    judging = {name for name, chapter in CHAPTERS.items() if "book/claims.yaml" in chapter.files}
    begin = [{"prompts"}, judging, {"pocket"}]
    assert all(a.isdisjoint(following(*b)) for a in begin for b in begin if a is not b)
    assert built(repository) == following("prompts", "pocket") | judging


@pytest.mark.slow
def test_one_part_is_built_with_what_it_reads(repository):
    """A chapter of another part that reads a table of the study: the part is built with that chapter, and no more. What
    sums up by a pattern is made anew, since it sums up the parts that are built."""
    summing_up = {name for name, chapter in CHAPTERS.items() if any("*" in table for table in chapter.reads)}
    assert summing_up
    (repository / "notebooks" / "others").mkdir()
    stored = json.loads((repository / CHAPTERS["prompts"].notebook).read_text())
    stored["metadata"]["rewired"] = {"reads": ["pocket"], "writes": ["nearby"]}
    (repository / "notebooks" / "others" / "nearby.ipynb").write_text(json.dumps(stored))
    (repository / "results" / "ci" / "tables" / "pocket.parquet").unlink()
    (repository / "results" / "ci" / "tables" / "prompts.parquet").unlink()
    assert built(repository, "--parts", "others") == {"pocket", "nearby"}
    assert (repository / "results" / "ci" / "notebooks" / "others" / "nearby.ipynb").is_file()
    assert built(repository, "--parts", "study") == following("prompts", "pocket") - {"pocket"} | summing_up
    shutil.rmtree(repository / "notebooks" / "others")
    assert built(repository) == summing_up
    assert built(repository) == set()


def test_a_second_build_waits_for_the_first_and_sweeps_up_after_a_killed_one(repository):
    locks = repository / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.input.lock").write_text("notebooks/study/pocket.ipynb\n")
    (locks / "0.output.lock").write_text("results/ci/notebooks/study/pocket.ipynb\n")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    unburied = subprocess.Popen([sys.executable, "-c", ""])  # ended, but nobody has asked how
    time.sleep(1)
    left = repository / "results" / "ci" / "runs" / f".hybrid-1.partial-{gone.stdout.strip()}"
    mine = left.with_name(f".hybrid-2.partial-{os.getpid()}")
    zombie = left.with_name(f".hybrid-3.partial-{unburied.pid}")
    for folder in (left, mine, zombie):
        folder.mkdir()
        (folder / "half.parquet").write_text("half")
    (repository / "ran.txt").unlink(missing_ok=True)
    with open(repository / ".rewired.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(**command(repository), stdout=subprocess.PIPE, text=True)
        assert "waiting" in second.stdout.readline()
        time.sleep(0.2)
        assert second.poll() is None and left.exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
        second.communicate()
    assert second.returncode == 0 and ran(repository) == []
    assert not left.exists() and not zombie.exists() and mine.exists(), "only what no process works on is swept up"
    shutil.rmtree(mine)
    unburied.wait()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("training.variants=[kantian]", "'kantian'"),
        ("training.first_reward=greed training.first_episodes=4", "'greed'"),
        ("training.first_reward=strategic", "first_episodes"),
        ("prompts.game=poker", "'poker'"),
        ("training.opponent=nobody", "'nobody'"),
        ("training.wordings=[rhyme]", "'rhyme'"),
        ("patching.pairs=[[strategic,kantian]]", "'kantian'"),
        ("patching.seed=7", "'7'"),
        ("prompts.labels=[go,gone]", "go"),
        ("chapters={none:{}}", "'none'"),
    ],
)
def test_a_bad_profile_is_refused(override, word):
    with pytest.raises(RewiredError) as refused:
        book.check(profiles.load("ci", override.split()))
    assert word in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--profile", "nothing"], "'nothing'"),
        (["--set", "patching.seed=7"], "'7'"),
        (["--parts", "studdy"], "Did you mean 'study'"),
    ],
)
def test_a_refusal_stops_before_anything_starts(options, word, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["book.py", "--profile", "ci", *options])
    monkeypatch.setattr(book, "own_the_folder", lambda: pytest.fail("the build began"))
    assert book.main() == 2
    told = capsys.readouterr().err.strip()
    assert word in told and len(told.splitlines()) == 1


# --- staleness, in detail --------------------------------------------------------------------------------------------


def test_imports_are_followed():
    names = {file.stem for file in stale.closure([ROOT / "notebooks" / "runs" / "train.ipynb"], ROOT)}
    assert {"reinforce", "lora", "models", "decisions", "prompts", "games", "profiles", "errors", "execute"} <= names
    assert not {"plots", "notebook"} & names, "a figure retrains nothing"
    data = {f.name for file in stale.closure([ROOT / "lib/rewired/prompts.py"], ROOT) for f in stale._data(file, ROOT)}
    assert {"heldout.yaml", "wordings.yaml"} <= data


def library(root: Path, **modules: str) -> Path:
    """A ``lib/`` with these modules; ``a__b`` is the module b of the package a. Returns the package rewired."""
    for name, text in modules.items():
        file = root / "lib" / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    return root / "lib" / "rewired"


def reached(file: Path, root: Path) -> set[str]:
    return {str(found.relative_to(root / "lib")) for found in stale.closure([file], root)} - {"rewired/__init__.py"}


def test_a_package_passes_on_only_what_is_asked_of_it(tmp_path):
    package = library(
        tmp_path,
        rewired__one="ONE = 1",
        rewired__two="from corpora import words\nTWO = 2",
        rewired__deep__three="def f():\n    from rewired import one",
        corpora__words="",
        rewired__a="from rewired import ONE",
        rewired__b="import rewired\nrewired.TWO",
        rewired__c="from rewired.deep import three",
        rewired__d="import numpy",
    )
    (package / "__init__.py").write_text("from rewired.one import ONE\nfrom rewired.two import TWO\n")
    assert reached(package / "a.py", tmp_path) == {"rewired/a.py", "rewired/one.py"}
    corpora = {"corpora/__init__.py", "corpora/words.py"}
    assert reached(package / "b.py", tmp_path) == {"rewired/b.py", "rewired/two.py"} | corpora
    deep = {"rewired/deep/__init__.py", "rewired/deep/three.py"}
    assert reached(package / "c.py", tmp_path) == {"rewired/c.py", "rewired/one.py"} | deep
    assert reached(package / "d.py", tmp_path) == {"rewired/d.py"}


def test_a_data_file_counts_as_code(tmp_path):
    package = library(tmp_path, rewired__one="from pathlib import Path\nTEXTS = Path(__file__).with_name('texts.yaml')")
    hashes = []
    for text in ("a: 1", "a: 2", "a: 1"):
        (package / "texts.yaml").write_text(text)
        hashes.append(stale.code_hash([package / "one.py"], tmp_path))
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_chapter_without_runs_does_not_depend_on_which_there_are():
    """Every chapter's object knows the runs; the lists count for chapters that need them or ask it for them."""
    lists = {"training.variants", "training.seeds"}
    assert lists <= stale.chapter_reads(ROOT / CHAPTERS["decisions"].notebook, ["runs"], ROOT)
    assert not lists & stale.chapter_reads(ROOT / CHAPTERS["pocket"].notebook, [], ROOT)
    assert lists <= stale.chapter_reads(ROOT / CHAPTERS["decisions"].notebook, [], ROOT), "it names them"
    organisms = stale.chapter_reads(ROOT / CHAPTERS["organisms"].notebook, ["organisms"], ROOT)
    assert "organisms.names" in organisms and not lists & organisms, "its own file says how an organism is trained"


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
    sizes = {"decisions.batch_size", "decisions.samples", "decisions.temperature"}
    assert found == {"threads", "training.kl", "seed"} | sizes
    before = stale.code_hash([package / "one.py"], tmp_path)
    (package / "two.py").write_text(
        '"""Another."""\n\n\ndef g(profile):  # why\n    d = profile.decisions\n    return profile.seed\n'
    )
    assert stale.code_hash([package / "one.py"], tmp_path) == before
    (package / "two.py").write_text("def g(profile):\n    return 0\n")
    assert stale.code_hash([package / "one.py"], tmp_path) != before
