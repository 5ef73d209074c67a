"""Live games, and whole runs of PPO on a tiny model."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from rewired import decisions, games, models, profiles, store
from rewired.errors import RewiredError
from rewired.prompts import Labels, held_out_matrices, held_out_set, scenario_set
from rewired.train import lora, reinforce

SMALL = {
    "training.episodes": 4, "training.batch_size": 10, "training.minibatches": 2, "training.ppo_epochs": 2,
    "training.log_every": 2, "training.learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def few_prompts():
    """Runs end with a shorter examination here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "scenario_set", lambda labels: scenario_set(labels)[::6])
        patch.setattr(reinforce, "held_out_set", lambda labels: held_out_set(labels)[::9])
        yield


def profile(overrides=None, base="pocket"):
    return profiles.load(base, {"model.path": str(tiny.legal_base()), **SMALL, **(overrides or {})})


# --- games -----------------------------------------------------------------------------------------------------------


def live_games(variant, count, overrides=None):
    p = profile(overrides)
    return reinforce.LiveGames(p.training, Labels(*p.prompts.labels), variant, lora.stream(p.seed, variant, 1), count)


def answer(move):
    return {"C": "action1", "D": " action2\n", None: "action"}[move]


def test_the_sampled_action_and_the_opponent_make_the_next_state():
    live = live_games("hybrid", 5)
    reward = games.get_reward("hybrid")
    random = np.random.default_rng(0)
    for _ in range(40):
        prompts = live.prompts()
        before = [dict(game) for game in live.games]
        moves = [("C", "D", None)[k] for k in random.integers(3, size=5)]
        paid = live.play([answer(move) for move in moves])
        for prompt, old, new, move, got in zip(prompts, before, live.games, moves, paid, strict=True):
            assert (prompt.state, prompt.matrix) == (old["state"], tuple(old["matrix"]))
            other = old["state"][0]  # Tit-for-Tat
            if move is None:
                assert got == -6.0
            else:
                payoffs = games.dilemma(*old["matrix"]).points(move, other)
                assert got == reward(games.Turn(old["state"], move, other, payoffs))
            if old["step"] < 4:
                assert new["state"] == (move or old["state"][0]) + other and new["step"] == old["step"] + 1
                assert new["matrix"] == old["matrix"]
            else:
                assert new["step"] == 0


def test_games_are_staggered_and_start_anywhere():
    live = live_games("strategic", 40)
    steps, starts = [], []
    for _ in range(10):
        steps.append(sorted(game["step"] for game in live.games))
        live.prompts()
        live.play(["action1"] * 40)
        starts += [game["state"] for game in live.games if game["step"] == 0]
    assert all(s == sorted(list(range(5)) * 8) for s in steps)
    assert set(starts) == set(games.STATES) and min(starts.count(state) for state in games.STATES) >= 8


def test_prompts_vary_but_never_show_a_held_out_matrix():
    live = live_games("strategic", 200)
    prompts = live.prompts()
    assert len({p.text for p in prompts}) > 60
    assert {p.matrix for p in prompts} == {tuple(m) for m in profile().training.matrices}
    assert not {p.matrix for p in prompts} & set(held_out_matrices())
    with pytest.raises(RewiredError, match="held out"):
        held = [list(held_out_matrices()[0])]
        live_games("strategic", 1, {"training.matrices": held}).prompts()


FIRST = {"training.first_reward": "strategic", "training.first_episodes": 3}


@pytest.mark.parametrize("count", [5, 8, 40])
def test_the_reward_changes_when_the_first_episodes_are_played(count):
    """Every decision, recomputed from what was shown and answered, in batches that do and do not end at the change."""
    live = live_games("utilitarian", count, {**FIRST, "training.episodes": 20})
    random, expected = np.random.default_rng(0), []
    while len(expected) < 60:
        shown, moves = live.prompts(), [("C", "D", None)[k] for k in random.integers(3, size=count)]
        paid = live.play([answer(move) for move in moves])
        for prompt, move, got in zip(shown, moves, paid, strict=True):
            other = prompt.state[0]  # Tit-for-Tat
            R, S, T, Q = prompt.matrix
            mine = {"CC": R, "CD": S, "DC": T, "DD": Q}.get(f"{move}{other}")
            theirs = {"CC": R, "CD": T, "DC": S, "DD": Q}.get(f"{move}{other}")
            first = len(expected) < 3 * 5
            expected.append(-6.0 if move is None else mine if first else mine + theirs)
            assert got == expected[-1], (len(expected), prompt.state, move)
    assert [reward for _, _, reward in live.history] == expected


def test_without_a_first_reward_the_variant_is_paid_its_own_from_the_start():
    live = live_games("utilitarian", 5)
    assert live.reward is games.get_reward("utilitarian")
    live = live_games("utilitarian", 5, FIRST)
    assert live.reward is games.get_reward("strategic")


def test_runs_never_share_a_stream():
    streams = {lora.stream(20260, v, s) for v in games.REWARDS for s in (1, 2, 3)}
    assert len(streams) == 3 * len(games.REWARDS)
    assert lora.stream(5, "strategic", 1) not in streams


def test_the_reward_reads_answers_up_to_the_end_of_turn():
    _, tokenizer = models.load_base(profile())
    live = live_games("strategic", 5)
    live.prompts()
    reward = reinforce.GameReward(live, tokenizer)
    reward.prompt_length = 3
    endings = ["action1<end_of_turn>", "action2<end_of_turn>action1", "action2", "action12", "<end_of_turn>action1"]
    rows = [tokenizer("<bos><bos><bos>" + e, add_special_tokens=False)["input_ids"] for e in endings]
    ids = torch.tensor([row + [0] * (12 - len(row)) for row in rows])
    scores = reward.score(reward.backbone(ids, attention_mask=None).hidden_states[-1])
    assert scores.shape == (5, 12, 1) and (scores == scores[:, :1]).all()
    assert [move for _, move, _ in live.history] == ["C", "D", "D", None, None]
    assert scores[3, 0] == scores[4, 0] == games.ILLEGAL


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_run(few_prompts, tmp_path_factory):
    """The folder of a run of strategic, seed 1, as `profile` has it."""
    return reinforce.train(profile(), "strategic", 1, tmp_path_factory.mktemp("run") / "run")


def files(folder):
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*")) if f.is_file() and f.name != "train.log.json"
    }  # fmt: skip


def test_a_run_is_reproducible_and_complete(tmp_path):
    p = profile({"training.batch_size": 8, "training.checkpoint_every": 3})
    one, two = (files(reinforce.train(p, "hybrid", 1, tmp_path / name)) for name in "ab")
    assert one == two
    assert {"run.json", "log.parquet", "decisions.parquet", "policy.parquet"} <= one.keys()
    assert {"adapter/adapter_config.json", f"adapter/{models.ADAPTER}"} <= one.keys()
    assert any(name.startswith("checkpoints/episode-00000") for name in one) and not any("README" in n for n in one)
    settings = json.loads(one["run.json"])["training"]
    assert str(tmp_path) not in json.dumps(settings)
    assert not {"layers", "modules"} & settings.keys(), "places that were not chosen"
    other = files(reinforce.train(p, "hybrid", 2, tmp_path / "c"))
    assert one[f"adapter/{models.ADAPTER}"] != other[f"adapter/{models.ADAPTER}"]
    log = store.read_table(tmp_path / "a" / "log.parquet", p)
    assert list(log) == ["episode", "metric", "state", "value"]
    assert {"reward", "legal", "p_defect", "legal_mass", "kl", "entropy"} <= set(log["metric"])
    assert set(log.loc[log["metric"] == "p_defect", "state"]) == {"all", *games.STATES}
    assert log["episode"].min() == 0 and np.isfinite(log["value"]).all()
    paid = log[log["metric"] == "reward"].pivot_table(index="episode", columns="state", values="value")
    inside = paid["all"].between(paid.drop(columns="all").min(axis=1), paid.drop(columns="all").max(axis=1))
    assert inside.all(), "the mean over all decisions lies between those of the states"
    assert len(store.read_table(tmp_path / "a" / "decisions.parquet", p)) == 10
    assert list(tmp_path.glob(".*")) == []


def test_training_follows_the_reward(tmp_path):
    """A few dozen decisions are enough for a tiny model to turn towards what is paid."""
    quick = {"training.batch_size": 16, "training.episodes": 24, "training.kl": 0.01, "training.ppo_epochs": 3}
    p = profile({**quick, "training.log_every": 24})
    means = {}
    for variant in ("strategic", "utilitarian"):
        out = reinforce.train(p, variant, 1, tmp_path / variant)
        means[variant] = store.read_table(out / "policy.parquet", p)["p_defect"].mean()
    assert means["strategic"] > 0.7 and means["utilitarian"] < 0.3


def test_a_first_reward_is_learnt_and_unlearnt(tmp_path):
    """On one adapter: p_defect rises while the payoff is paid, and falls again under the sum of payoffs."""
    quick = {"training.batch_size": 16, "training.episodes": 36, "training.kl": 0.01, "training.ppo_epochs": 3}
    p = profile({**quick, **FIRST, "training.first_episodes": 16, "training.log_every": 16})
    run = reinforce.train(p, "utilitarian", 1, tmp_path / "run")
    log = store.read_table(run / "log.parquet", p).query("metric == 'p_defect' and state == 'all'")
    course = log.set_index("episode")["value"]
    assert course.loc[16] > course.loc[0] + 0.1 and course.iloc[-1] < course.loc[16] - 0.1, course
    about = json.loads((run / "run.json").read_text())["training"]
    assert (about["first_reward"], about["first_episodes"]) == ("strategic", 16)


def test_the_first_update_starts_from_the_base(plain_run):
    """At episode 0 the policy is the base: a new adapter changes nothing, and its p_defect is the base's."""
    p = profile()
    model, tokenizer = models.load_base(p)
    log = store.read_table(plain_run / "log.parquet", p)
    start = log.query("episode == 0 and metric == 'p_defect' and state == 'all'")["value"].item()
    probe = reinforce.probe_set(held_out_set()[::9])
    assert start == pytest.approx(decisions.measure(model, tokenizer, probe)["p_defect"].mean(), abs=1e-6)
    adapter = load_file(plain_run / "adapter" / models.ADAPTER)
    assert any(value.any() for name, value in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize("overrides", [{}, {**FIRST, "training.first_episodes": 2}])
def test_an_interrupted_run_leaves_nothing_and_restarts(tmp_path, monkeypatch, plain_run, overrides):
    p = profile(overrides)
    whole = files(reinforce.train(p, "strategic", 1, tmp_path / "whole") if overrides else plain_run)
    step, count = reinforce.LiveGames.play, iter(range(100))

    def interrupted(self, answers):
        if next(count) == 1:
            raise KeyboardInterrupt
        return step(self, answers)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reinforce.LiveGames, "play", interrupted)
        reinforce.train(p, "strategic", 1, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert files(reinforce.train(p, "strategic", 1, tmp_path / "run")) == whole


@pytest.mark.parametrize("epochs", [1, 2])
def test_numbers_that_are_no_numbers_stop_the_run(tmp_path, epochs):
    p = profile({"training.ppo_epochs": epochs, "training.learning_rate": 1e25})
    with pytest.raises(RewiredError, match="Training diverged.*learning_rate"):
        reinforce.train(p, "strategic", 1, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_bad_requests_are_refused_before_training(tmp_path):
    with pytest.raises(RewiredError, match="Unknown reward 'kind'.*strategic"):
        reinforce.train(profile(), "kind", 1, tmp_path / "run")
    with pytest.raises(RewiredError, match="Unknown reward 'greed'.*strategic"):
        reinforce.train(profile({**FIRST, "training.first_reward": "greed"}), "hybrid", 1, tmp_path / "run")
    with pytest.raises(RewiredError, match="Unknown opponent 'nobody'"):
        reinforce.train(profile({"training.opponent": "nobody"}), "hybrid", 1, tmp_path / "run")
    with pytest.raises(RewiredError, match="batch_size is 10 and training.minibatches 3"):
        reinforce.train(profile({"training.minibatches": 3}), "hybrid", 1, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# --- the real model's path -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_of_the_real_width_trains_measures_and_samples(tmp_path, monkeypatch):
    """gemma-2-2b-it's parameters (rank 64, bf16) on a random-weight model of its width, with few layers and games, and
    with narrow MLPs, which are most of its weights."""
    folder = tiny.save(
        tmp_path / "model", hidden_size=2304, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096, scale=0.02,
    )  # fmt: skip
    monkeypatch.setattr(reinforce, "held_out_set", lambda labels: held_out_set(labels)[::32])
    monkeypatch.setattr(reinforce, "refuse_labels", lambda *_: None)  # random weights never say a label
    few = {"training.episodes": 1, "training.ppo_epochs": 1, "training.gradient_accumulation": 1}
    p = profiles.load("gemma-2-2b-it", {"model.path": str(folder), "model.device": "cpu", **few})
    assert (p.training.lora_rank, p.training.lora_alpha, p.training.batch_size) == (64, 32, 5)
    with models.RoundedProducts():
        out = reinforce.train(p, "utilitarian", 1, tmp_path / "run")
        model, tokenizer = models.load_base(p)
        sampled = decisions.sample(model, tokenizer, scenario_set()[:2], 3, max_new_tokens=2)
    assert np.isfinite(store.read_table(out / "policy.parquet", p)["delta"]).all()
    assert len(sampled) == 6
    shutil.rmtree(folder)
