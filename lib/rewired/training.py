"""How a variant is made: reinforcement learning on live games, with PPO and LoRA.

Many games run side by side. In each, the model reads the state and the payoffs, answers, and the opponent moves; the
reward of the variant is paid, and the two moves become the next state. After five steps a new game starts from random
previous moves: one long game against Tit-for-Tat would settle in mutual cooperation and never show what to do after a
defection. As in the study, every decision is a PPO sample of its own; no return crosses steps.

PPO itself is TRL's. Its reward model is here a game, its value model a linear head on the policy's own (detached)
hidden states, and its reference model the policy with the adapter switched off. Games start staggered, so that every
batch holds first, second, … and last steps. ``algorithm: grpo`` replaces the value head by the mean over eight answers
to the same prompt; its prompts show random states, one decision each.

``first_reward`` is for unlearning: every run is paid that reward for ``first_episodes`` episodes and its own from then
on, while the adapter, the optimiser and the games simply go on.

Differences from the study, forced by today's TRL: an update sees one step of ``batch_size x gradient_accumulation``
games instead of five steps of one game (the number of decisions and of Adam steps is the same), dropout is off, and
the KL weight is constant instead of adaptive (in the study it hardly moved).
"""

import contextlib
import gc
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from rewired.answers import PAD_TO
from rewired.decisions import end_of_turn, measure, read_move
from rewired.errors import RewiredError
from rewired.games import ILLEGAL, STATES, Reward, Turn, dilemma, get_opponent, get_reward
from rewired.models import ADAPTER, checkpoint_name, device_of, file_hash, fingerprint, load_base, run_dir
from rewired.profiles import Profile, atomic_dir, write_table
from rewired.prompts import Labels, Prompt, chat, held_out_set, scenario_set, training_prompt

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GROUP = 8
"""Answers per prompt in GRPO."""


def stream(profile: Profile, variant: str, seed: int) -> int:
    """The number all random streams of a run derive from; no two variants share one."""
    return int.from_bytes(hashlib.sha256(f"{profile.seed}/{variant}/{seed}".encode()).digest()[:4], "big")


# --- the games -------------------------------------------------------------------------------------------------------


class LiveGames:
    """``count`` games played side by side. ``prompts()`` shows each player's present state; ``play(answers)`` moves
    the next games on by one step and returns their rewards. ``history`` records (state, move or None, reward); its
    length is the clock: ``episode`` whole episodes were played, in all games together, and decide which ``reward`` is
    in force."""

    def __init__(self, profile: Profile, variant: str, seed: int, count: int):
        self.training, self.labels = profile.training, Labels(*profile.prompts.labels)
        own, first = get_reward(variant), self.training.first_reward
        self.rewards = (get_reward(first) if first else own, own)  # before and from training.first_episodes on
        self.opponent = get_opponent(profile.training.opponent)
        self.random = np.random.default_rng(stream(profile, variant, seed))
        self.history: list[tuple[str, str | None, float]] = []
        steps = self.training.steps_per_episode
        self.games = [self._new(step=i % steps) for i in range(count)]
        self.waiting: list[dict] = []

    @property
    def episode(self) -> int:
        return len(self.history) // self.training.steps_per_episode

    @property
    def reward(self) -> Reward:
        return self.rewards[self.episode >= self.training.first_episodes]

    def _new(self, step: int = 0) -> dict:
        matrices = self.training.matrices
        state = STATES[int(self.random.integers(4))]  # both previous moves at random
        return {"state": state, "step": step, "matrix": matrices[int(self.random.integers(len(matrices)))]}

    def prompts(self) -> list[Prompt]:
        """One prompt per game: its state and matrix; the wording and all orders are drawn anew."""
        self.waiting = list(self.games)
        return [self.prompt(game["state"], game["matrix"]) for game in self.games]

    def prompt(self, state: str, matrix: tuple[int, ...]) -> Prompt:
        return training_prompt(state, self.random, [matrix], self.training.wordings, self.labels)

    def play(self, answers: list[str]) -> list[float]:
        playing, self.waiting = self.waiting[: len(answers)], self.waiting[len(answers) :]
        return [self._step(game, answer) for game, answer in zip(playing, answers, strict=True)]

    def _step(self, game: dict, answer: str) -> float:
        move, other = read_move(answer, self.labels), self.opponent(game["state"][0], self.random)
        reward = self.judge(game["state"], game["matrix"], move, other)
        game["state"] = (move or game["state"][0]) + other  # an illegal answer leaves the own move as it was
        game["step"] += 1
        if game["step"] >= self.training.steps_per_episode:
            game.update(self._new())
        return reward

    def judge(self, state: str, matrix: tuple[int, ...], move: str | None, other: str) -> float:
        """What one decision earns under the reward in force, written into the history."""
        payoffs = dilemma(*matrix).points(move, other) if move else None
        reward = self.reward(Turn(state, move, other, payoffs)) if move else ILLEGAL
        self.history.append((state, move, reward))
        return reward


# --- what TRL asks for -----------------------------------------------------------------------------------------------


class GameReward(torch.nn.Module):
    """The games in the shape of TRL's reward model: a backbone that passes the token ids through, and a score that
    reads the answers off them, plays, and gives the reward at every position (TRL picks one)."""

    base_model_prefix = "backbone"

    def __init__(self, games: LiveGames, tokenizer):
        super().__init__()
        self.games, self.tokenizer, self.stop = games, tokenizer, end_of_turn(tokenizer)
        self.prompt_length = 0  # of the present batch, padding included

    def backbone(self, input_ids, **_):
        return SimpleNamespace(hidden_states=[input_ids])

    def score(self, ids: torch.Tensor) -> torch.Tensor:
        answers = []
        for row in ids[:, self.prompt_length :].tolist():
            end = row.index(self.stop) if self.stop in row else len(row)
            answers.append(self.tokenizer.decode(row[:end], skip_special_tokens=True))
        rewards = torch.tensor(self.games.play(answers), device=ids.device)
        return rewards[:, None, None].expand(-1, ids.shape[1], 1)  # [game, position, 1]


class ValueHead(torch.nn.Module):
    """V(position) = a linear function, at first zero, of the policy's last hidden state, without gradient into it."""

    base_model_prefix = "backbone"

    def __init__(self, policy, width: int):
        super().__init__()
        self.head = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        object.__setattr__(self, "policy", policy)  # not a submodule: its parameters are the policy's

    @torch.no_grad()
    def backbone(self, **inputs):
        return self.policy(**inputs)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden.detach().float())  # [row, position, 1]


class Batches:
    """The endless data loader: asks the games for prompts when a batch is wanted, not before, so a state is always
    made by the newest move. Prompts are padded on the left to one length, a multiple of 16."""

    def __init__(self, games: LiveGames, reward: GameReward, tokenizer):
        self.games, self.reward, self.tokenizer = games, reward, tokenizer

    def __iter__(self):
        while True:
            rows = [chat(self.tokenizer, prompt) for prompt in self.games.prompts()]
            length = -(-max(map(len, rows)) // PAD_TO) * PAD_TO
            self.reward.prompt_length = length
            pad = self.tokenizer.pad_token_id
            yield {"input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows])}


class Recorder(TrainerCallback):
    """Keeps the tidy log and the checkpoints, and stops a run whose numbers are no longer numbers."""

    def __init__(self, profile: Profile, games: LiveGames, probe: Callable[[], pd.DataFrame], save: Callable):
        self.training, self.games, self.probe, self.save = profile.training, games, probe, save
        self.rows: list[tuple[int, str, str, float]] = []
        self.seen, self.next_log, self.next_save = 0, 0, profile.training.checkpoint_every
        self.optimiser: dict[str, list[float]] = {}
        self.steps_per_update = 1  # as TRL's trainer counts its steps

    @property
    def episode(self) -> int:
        return self.games.episode

    def on_train_begin(self, *_, **__):
        self._log()

    def on_log(self, args, state, control, logs=None, **_):
        for name, value in (logs or {}).items():
            if name in OPTIMISER_METRICS:
                if not math.isfinite(value):
                    raise diverged(f"{name} became {value} at episode {self.episode}")
                self.optimiser.setdefault(OPTIMISER_METRICS[name], []).append(value)
        if state.global_step % self.steps_per_update:
            return  # GRPO is still learning from this batch
        if self.episode >= self.next_save:
            self.save(f"checkpoints/{checkpoint_name(self.episode)}")
            self.next_save += self.training.checkpoint_every
        if self.episode >= self.next_log:
            self._log()

    def on_train_end(self, *_, **__):
        if self.rows[-1][0] != self.episode:
            self._log()

    def _add(self, metric: str, state: str, value: float) -> None:
        self.rows.append((self.episode, metric, state, float(value)))

    def _log(self) -> None:
        """Averages since the last time: of the optimiser, of play by state, and p_defect measured by state."""
        self.next_log = (self.episode // self.training.log_every + 1) * self.training.log_every
        for name, values in self.optimiser.items():
            self._add(name, "all", np.mean(values))
        recent = pd.DataFrame(self.games.history[self.seen :], columns=["state", "move", "reward"])
        self.optimiser, self.seen = {}, len(self.games.history)
        for state, part in [("all", recent), *recent.groupby("state")]:
            if len(part):
                self._add("reward", state, part["reward"].mean())
                self._add("legal", state, part["move"].notna().mean())
        measured = self.probe()
        for state, part in [("all", measured), *measured.groupby("state")]:
            self._add("p_defect", state, part["p_defect"].mean())
            self._add("legal_mass", state, part["legal_mass"].mean())

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["episode", "metric", "state", "value"])


OPTIMISER_METRICS = {
    "objective/kl": "kl",
    "objective/entropy": "entropy",
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "policy/clipfrac_avg": "clipped",
    "kl": "kl",
    "entropy": "entropy",
    "loss": "policy_loss",
    "clip_ratio/region_mean": "clipped",
}
"""TRL's names (PPO's, then GRPO's) -> ours. KL and entropy are nats: a whole answer in PPO, a mean token in GRPO."""


def probe_set(prompts: list[Prompt]) -> list[Prompt]:
    """Four prompts of each state, spread over matrices and arrangements: enough to follow a run by."""
    states = [[p for p in prompts if p.state == state] for state in STATES]
    return [same[k] for same in states for k in sorted({9 * k % len(same) for k in range(4)})]


def diverged(what: str) -> RewiredError:
    return RewiredError(
        f"Training diverged: {what}. Nothing was written. Lower training.learning_rate (or raise training.kl), for "
        "example with --set training.learning_rate=5e-4, and start again."
    )


def half_precision(profile: Profile):
    """bf16 matrix products where the profile wants them and the processor has them; weights and sums stay in fp32."""
    device = device_of(profile).type
    able = torch.cpu._is_avx512_bf16_supported() if device == "cpu" else torch.cuda.is_bf16_supported()
    # no cache: it would keep serving the adapter as it was at the first update
    return torch.autocast(device, torch.bfloat16, enabled=profile.training.bf16 and able, cache_enabled=False)


# --- the two algorithms ----------------------------------------------------------------------------------------------


def _common(profile: Profile, seed: int, folder: Path) -> dict:
    """Arguments that both of TRL's trainers take."""
    t, cpu = profile.training, device_of(profile).type == "cpu"
    return dict(
        output_dir=str(folder), seed=seed, learning_rate=t.learning_rate, lr_scheduler_type=t.schedule,
        per_device_train_batch_size=t.batch_size, gradient_accumulation_steps=t.gradient_accumulation,
        temperature=t.temperature, bf16=False, use_cpu=cpu, gradient_checkpointing=False, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip


def _ppo(profile: Profile, policy, tokenizer, games: LiveGames, recorder: Recorder, seed: int, folder: Path):
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    t = profile.training
    count = len(games.games)
    updates = max(1, round(t.episodes * t.steps_per_episode / count))
    config = PPOConfig(
        **_common(profile, seed, folder),
        total_episodes=updates * count,  # TRL calls one decision an episode
        num_mini_batches=t.minibatches, num_ppo_epochs=t.ppo_epochs, cliprange=t.clip, vf_coef=t.value_coefficient,
        cliprange_value=1e3,  # rewards reach 18: a value may move as far as it must
        gamma=t.gamma, lam=t.lam, kl_coef=t.kl, response_length=t.max_new_tokens,
        stop_token_id=end_of_turn(tokenizer), local_rollout_forward_batch_size=t.batch_size, num_sample_generations=0,
    )  # fmt: skip
    value = ValueHead(policy, policy.config.hidden_size).to(device_of(profile))
    reward = GameReward(games, tokenizer)
    adapter = [p for p in policy.parameters() if p.requires_grad]
    head = {"params": value.parameters(), "lr": t.learning_rate * t.value_rate}
    trainer = PPOTrainer(
        optimizers=(torch.optim.Adam([{"params": adapter}, head], lr=t.learning_rate), None),
        args=config, processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward, value_model=value,
        train_dataset=[{"input_ids": [0]}] * count, callbacks=[recorder],
    )  # fmt: skip
    trainer.dataloader = Batches(games, reward, tokenizer)

    def both(**inputs):
        """Policy and value from one pass; TRL would run the shared backbone twice."""
        output = policy(**inputs)
        output.logits = output.logits.float()
        return output, value.score(output.hidden_states[-1])

    trainer.model.forward = both
    return trainer


def _grpo(profile: Profile, policy, tokenizer, games: LiveGames, recorder: Recorder, seed: int, folder: Path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    t = profile.training
    per_update = t.batch_size * t.gradient_accumulation
    if per_update % GROUP:
        raise RewiredError(
            f"training.batch_size x training.gradient_accumulation is {per_update}; with algorithm grpo it must be a "
            f"multiple of {GROUP}, the number of answers to one prompt. Set, for example, training.batch_size=32."
        )
    asked = []
    for _ in range(max(1, round(t.episodes * t.steps_per_episode / per_update)) * per_update // GROUP):
        game = games._new()
        prompt = games.prompt(game["state"], game["matrix"])
        asked.append({"prompt": [{"role": "user", "content": prompt.text}], **game})

    def reward(prompts, completions, state, matrix, **_) -> list[float]:
        moves = [read_move(completion[0]["content"], games.labels) for completion in completions]
        return [
            games.judge(s, tuple(m), move, games.opponent(s[0], games.random))
            for s, m, move in zip(state, matrix, moves, strict=True)
        ]

    recorder.steps_per_update = t.ppo_epochs * t.minibatches
    config = GRPOConfig(
        **_common(profile, seed, folder) | {"per_device_train_batch_size": t.batch_size // t.minibatches},
        steps_per_generation=t.gradient_accumulation * t.minibatches,
        num_generations=GROUP, num_iterations=t.ppo_epochs, epsilon=t.clip, beta=t.kl, num_train_epochs=1,
        max_completion_length=t.max_new_tokens, pad_to_multiple_of=PAD_TO, disable_dropout=True,
    )  # fmt: skip
    stop = tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))  # where GRPO ends an answer
    trainer = GRPOTrainer(
        model=policy, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(asked),
        processing_class=tokenizer, callbacks=[recorder],
    )  # fmt: skip
    tokenizer.eos_token = stop
    return trainer


# --- one run ---------------------------------------------------------------------------------------------------------


def train(profile: Profile, variant: str, seed: int, out_dir: str | Path | None = None) -> Path:
    """Trains one variant and returns the run's folder: adapter/, checkpoints/, log.parquet (episode, metric, state,
    value), decisions.parquet (the scenario prompts), policy.parquet (held-out prompts), run.json.

    The folder appears when everything in it is written; an interrupted run leaves nothing and starts again from its
    seed. With the same seed and number of threads on the same machine the files are the same byte for byte, except
    train.log.json, which holds the times."""
    t = profile.training
    get_reward(variant), get_reward(t.first_reward or variant), get_opponent(t.opponent)
    if t.batch_size % t.minibatches:
        raise RewiredError(
            f"training.batch_size is {t.batch_size} and training.minibatches {t.minibatches}: the batch cannot be cut "
            "into that many equal parts. Set, for example, training.batch_size=40 and training.minibatches=4."
        )
    started = time.perf_counter(), time.process_time()
    out_dir = Path(out_dir) if out_dir else run_dir(profile, variant, seed)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(profile.threads)
    model, tokenizer = load_base(profile)
    base = fingerprint(model)
    with atomic_dir(out_dir) as folder:
        policy, recorder = _learn(profile, variant, seed, model, tokenizer, folder)
        labels, size = profile.prompts.labels, profile.decisions.batch_size
        _save_adapter(profile, policy, folder / "adapter")
        write_table(recorder.table(), folder / "log.parquet", profile)
        decisions = measure(policy, tokenizer, scenario_set(labels), size)
        write_table(decisions, folder / "decisions.parquet", profile)
        play = measure(policy, tokenizer, held_out_set(labels), size, forms=False)
        write_table(play, folder / "policy.parquet", profile)
        if not np.isfinite(decisions["p_defect"]).all():
            raise diverged("the trained model's probabilities are not numbers")
        about = {"variant": variant, "seed": seed, "profile": profile.name, "base": base}
        about["adapter"] = file_hash(folder / "adapter" / ADAPTER)
        saved = sorted(folder.glob("checkpoints/*"))
        about["checkpoints"] = {checkpoint.name: file_hash(checkpoint / ADAPTER) for checkpoint in saved}
        about["training"] = profile.training.model_dump(mode="json", exclude={"variants", "seeds"})
        _write_json(folder / "run.json", about)
        wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        _write_json(folder / "train.log.json", {"wall_seconds": wall, "cpu_seconds": cpu, "threads": profile.threads})
    return out_dir


def _learn(profile: Profile, variant: str, seed: int, model, tokenizer, folder: Path):
    """(policy, recorder) after training."""
    from peft import LoraConfig, get_peft_model

    t, number = profile.training, stream(profile, variant, seed)
    set_seed(number)
    lora = LoraConfig(
        r=t.lora_rank, lora_alpha=t.lora_alpha, lora_dropout=t.lora_dropout, target_modules=LINEAR_LAYERS,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    policy = get_peft_model(model, lora)
    games = LiveGames(profile, variant, seed, t.batch_size * t.gradient_accumulation)
    asked = probe_set(held_out_set(profile.prompts.labels))

    def probe() -> pd.DataFrame:
        with torch.autocast(device_of(profile).type, enabled=False):
            return measure(policy, tokenizer, asked, profile.decisions.batch_size, forms=False)

    recorder = Recorder(profile, games, probe, lambda name: _save_adapter(profile, policy, folder / name))
    scratch = folder / "scratch"
    build = {"ppo": _ppo, "grpo": _grpo}[t.algorithm]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TRL's PPO is experimental, and names due to change in its dependencies
        trainer = build(profile, policy, tokenizer, games, recorder, number, scratch)
    trainer.remove_callback(PrinterCallback)  # it prints every update
    gc.collect()
    gc.freeze()  # TRL collects garbage at every update; what is loaded now is not garbage
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), half_precision(profile):
            trainer.train()
    except (RuntimeError, ValueError) as error:
        if "nan" in str(error).lower() or "inf" in str(error).lower():
            raise diverged(" ".join(str(error).split())[:200]) from error
        raise
    finally:
        gc.unfreeze()
    shutil.rmtree(scratch, ignore_errors=True)
    for name, value in policy.named_parameters():
        if "lora_" in name:  # trained in fp32, kept and measured as precise as the base
            value.data = value.data.to(model.dtype)
    return policy.eval(), recorder


def _save_adapter(profile: Profile, policy, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors, the same bytes for the same adapter."""
    policy.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = profile.model.path
    config["target_modules"] = sorted(config["target_modules"])
    _write_json(folder / "adapter_config.json", config)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
