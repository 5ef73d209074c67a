"""Profiles are checked before anything starts."""

import pytest

from rewired import profiles
from rewired.errors import RewiredError, choice
from rewired.profiles import load


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
    assert ci.quick and not pocket.quick


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
        ("training.seeds=[-1]", ["training.seeds.0", "greater than or equal to 0"]),
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


def test_a_wrong_member_of_a_list_is_the_only_problem_told():
    message = refused(load, "pocket", ["training.layers=[-1]"])
    assert "training.layers.0 is -1" in message and "at least 1" not in message


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


def test_choice_names_the_nearest():
    assert str(choice("game", "chiken", ["chicken", "stag_hunt"])) == (
        "Unknown game 'chiken'. Did you mean 'chicken'? Known: chicken, stag_hunt."
    )
