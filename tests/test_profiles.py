"""Profiles are checked before anything starts; tables are whole, stamped and byte for byte the same."""

import errno
import json
import os
import sys
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewired import profiles
from rewired.errors import RewiredError, choice
from rewired.profiles import atomic_dir, atomic_path, load, output_dir, read_table, results_dir, write_table

FRAME = pd.DataFrame({"scenario": ["CC", "DD"], "p_defect": [0.25, 1 / 3], "n": [1, 2], "ok": [True, False]})


def refused(call, *arguments, **options) -> str:
    """The message of the RewiredError that the call must raise: one paragraph."""
    with pytest.raises(RewiredError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def profile_file(folder, text: str):
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profiles.known_profiles())
def test_shipped_profiles_load(name):
    profile = load(name)
    assert profile.name == name
    assert set(profile.training.variants) == {"strategic", "deontological", "utilitarian", "hybrid"}


def test_a_profile_builds_on_another():
    pocket, thorough, ci = load("pocket"), load("thorough"), load("ci")
    assert thorough.training.seeds == (1, 2, 3, 4, 5)
    assert thorough.training.model_copy(update={"seeds": pocket.training.seeds}) == pocket.training
    assert ci.model == pocket.model and ci.training.episodes < pocket.training.episodes


def test_gemma_has_the_parameters_of_the_study():
    t = load("gemma-2-2b-it").training
    assert (t.lora_rank, t.lora_alpha, t.lora_dropout, t.learning_rate) == (64, 32, 0.05, 1.41e-5)
    assert (t.episodes, t.steps_per_episode, t.batch_size, t.gradient_accumulation, t.ppo_epochs) == (1000, 5, 5, 4, 4)
    assert (t.kl, t.clip, t.value_coefficient, t.gamma, t.lam) == (0.2, 0.2, 0.1, 1.0, 0.95)
    assert t.matrices == ((3, 0, 4, 1),) and t.opponent == "tit_for_tat"


def test_overrides_of_both_forms():
    assert load("pocket", {"training.kl": 0.3, "seed": 7}) == load("pocket", ["training.kl=0.3", "seed=7"])
    assert load("pocket", ["training.seeds=[4, 5]"]).training.seeds == (4, 5)


def test_a_profile_is_frozen():
    with pytest.raises(ValueError):
        load("pocket").training.kl = 1.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.kll=0.1", ["training.kll", "Did you mean 'training.kl'"]),
        ("trainig.kl=0.1", ["trainig.kl"]),
        ("training.kl=lots", ["training.kl", "'lots'", "number"]),
        ("training.kl=-1", ["training.kl", "-1", "greater than or equal to 0"]),
        ("training.episodes=2.5", ["training.episodes", "2.5", "integer"]),
        ("training.algorithm=dpo", ["training.algorithm", "'dpo'", "'ppo'"]),
        ("training.seeds=[1, 1]", ["training.seeds", "twice"]),
        ("training.seeds=[]", ["training.seeds", "at least 1"]),
        ("training.matrices=[[3, 0, 4]]", ["training.matrices"]),
        ("training.first_reward=strategic", ["training.first_reward is 'strategic'", "first_episodes 0", "or neither"]),
        ("training.first_episodes=9", ["training.first_reward is None", "first_episodes 9", "or neither"]),
        ("training.first_episodes=-1", ["training.first_episodes", "-1", "greater than or equal to 0"]),
        ("training.first_episodes=2.5", ["training.first_episodes", "2.5", "integer"]),
        ("training.first_reward=3", ["training.first_reward", "3", "string"]),
        ("training.first_rewards=care", ["training.first_rewards", "Did you mean 'training.first_reward'"]),
        ("prompts.labels=[one]", ["prompts.labels"]),
        ("training.kl", ["training.kl", "key=value"]),
        ("training.kl=[", ["training.kl", "YAML"]),
    ],
)
def test_bad_overrides_are_told(override, words):
    message = refused(load, "pocket", [override])
    assert all(word in message for word in words), message


@pytest.mark.parametrize("episodes", [128, 500])
def test_a_first_reward_leaves_time_for_the_second(episodes):
    message = refused(load, "pocket", {"training.first_reward": "strategic", "training.first_episodes": episodes})
    assert all(word in message for word in (f"first_episodes is {episodes} of 128", "never be paid")), message
    assert (
        load("pocket", {"training.first_reward": "strategic", "training.first_episodes": 127}).training.episodes == 128
    )


def test_an_unknown_profile_names_the_known_ones():
    message = refused(load, "pockt")
    assert "Did you mean 'pocket'" in message and "gemma-2-2b-it" in message
    assert "nowhere.yaml" in refused(load, "folder/nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("extends: pocket\ntraining:\n  episods: 3\n", "Did you mean 'training.episodes'"),
        ("extends: pocket\nanalysis: 3\n", "analysis"),
        ("extends: pocket\nseed: 1\nseed: 2\n", "given twice"),
        ("extends: mine\n", "extends itself"),
        ("extends: nothing\n", "nothing"),
        ("name: other\nextends: pocket\n", "named by its file"),
        ("- a\n- b\n", "key: value"),
        ("a: [\n", "not valid YAML"),
        ("seed: 1\n", "training is missing"),
    ],
)
def test_bad_files_are_told(tmp_path, text, word):
    message = refused(load, profile_file(tmp_path, text))
    assert word in message and "mine" in message


def test_a_profile_of_ones_own(tmp_path):
    own = load(profile_file(tmp_path, "extends: ci\ntraining:\n  kl: 1e-2\n"))
    assert own.name == "mine" and own.training.kl == 0.01 and own.training.seeds == load("ci").training.seeds


def test_every_key_is_known_by_its_dotted_name():
    keys = list(profiles.fields())
    assert {"seed", "threads", "model.path", "training.kl", "decisions.samples", "chapters"} <= set(
        keys
    ) and "name" not in keys


# --- results -------------------------------------------------------------------------------------------------------


def test_results_of_a_trial_lie_apart(tmp_path, monkeypatch):
    assert results_dir("pocket") == tmp_path / "results" / "pocket"
    assert output_dir("pocket") == tmp_path / "results" / "pocket" / "trials"
    monkeypatch.setenv("REWIRED_BUILD", "1")
    assert output_dir("pocket") == results_dir("pocket")
    monkeypatch.delenv("REWIRED_ROOT")
    assert results_dir("pocket") == profiles.ROOT / "results" / "pocket"


def test_tables_come_back_and_repeat_byte_for_byte(tmp_path):
    first = write_table(FRAME, tmp_path / "a" / "t.parquet", "pocket")
    second = write_table(FRAME.set_index("n", drop=False), tmp_path / "b.parquet", load("pocket"))
    pd.testing.assert_frame_equal(read_table(first, "pocket"), FRAME)
    assert first.read_bytes() == second.read_bytes()
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["t.parquet"]


def test_a_table_of_another_origin_is_refused(tmp_path, monkeypatch):
    file = write_table(FRAME, tmp_path / "t.parquet", "pocket")
    assert "'ci'" in refused(read_table, file, "ci") and "'pocket'" in refused(read_table, file, "ci")
    monkeypatch.setattr(profiles, "FORMAT", profiles.FORMAT + 1)
    assert "format" in refused(read_table, file, "pocket")


def test_a_missing_or_damaged_table_says_how_to_make_it(tmp_path):
    file = tmp_path / "t.parquet"
    assert "make book PROFILE=pocket" in refused(read_table, file, "pocket")
    whole = write_table(FRAME, file, "pocket").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(read_table, file, "pocket")
    pq.write_table(pa.table({"a": [1]}), file)
    assert "not written by this book" in refused(read_table, file, "pocket")


def test_nothing_half_written_stays(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "run") as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file.txt") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert [str(f.relative_to(tmp_path)) for f in sorted(tmp_path.rglob("*"))] == ["run", "run/old"]
    with atomic_dir(tmp_path / "run") as folder:
        (folder / "new").touch()
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["new"]


@pytest.mark.parametrize("context", [atomic_dir, atomic_path])
def test_a_full_disk_is_told(tmp_path, context):
    def fill():
        with context(tmp_path / "thing") as place:
            file = place / "part" if place.is_dir() else place
            file.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = refused(fill)
    assert "disk is full" in message and "thing" in message
    assert not list(tmp_path.iterdir())


# --- notebooks -----------------------------------------------------------------------------------------------------


def in_notebook(monkeypatch, *cells: str) -> None:
    """Make ``start`` believe that a kernel has run these cells."""
    shell = SimpleNamespace(user_ns={"In": ["", *cells]})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_start_refuses_a_parameter_that_the_notebook_does_not_have(monkeypatch):
    in_notebook(monkeypatch, "profile = 'ci'\nseed = 1", "# Parameters\nsede = 2", "rewired.start(profile)")
    message = refused(profiles.start, "ci")
    assert "'sede'" in message and "Did you mean 'seed'" in message


def test_start_pins_and_returns_the_profile(monkeypatch):
    import torch

    in_notebook(monkeypatch, "profile = 'ci'\nseed = 1", "# Parameters\nseed = 2", "rewired.start(profile)")
    assert profiles.start("ci", ["training.kl=0.5"]).training.kl == 0.5
    assert torch.get_num_threads() == load("ci").threads
    assert json.loads(os.environ["OMP_NUM_THREADS"]) == 1


def test_choice_names_the_nearest():
    assert str(choice("game", "chiken", ["chicken", "stag_hunt"])) == (
        "Unknown game 'chiken'. Did you mean 'chicken'? Known: chicken, stag_hunt."
    )
