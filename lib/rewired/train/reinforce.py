"""How a variant is made: reinforcement learning on live games, with PPO and LoRA.

Many games run side by side. In each, the model reads the state and the payoffs and answers, and the opponent moves. The
variant's reward is paid, and the two moves become the next state. After five steps a new game starts from random
previous moves: one long game against Tit-for-Tat would never show what to do after a defection. As in the study, every
decision is a PPO sample of its own; no return crosses steps.

PPO (Schulman et al. 2017, arXiv:1707.06347) itself is TRL's. Its reward model is here a game. Its value model is a
linear head on the policy's own, detached, hidden states. Its reference model is the policy with the adapter switched
off. Games start staggered, so that every batch holds first, second, … and last steps. ``first_reward`` is for
unlearning: every run is paid it for ``first_episodes`` episodes, and then the games go on under the run's own reward.

Differences from the study, forced by today's TRL: an update sees one step of ``batch_size x gradient_accumulation``
games instead of five steps of one game (the number of decisions and of Adam steps is the same), dropout is off, and
the KL weight is constant instead of adaptive (in the study it hardly moved).
"""

import contextlib
import gc
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from rewired.answers import PAD_TO
from rewired.decisions import end_of_turn, label_ids, measure, read_move
from rewired.errors import RewiredError
from rewired.games import ILLEGAL, STATES, Reward, Turn, dilemma, get_opponent, get_reward
from rewired.models import ADAPTER, checkpoint_name, file_hash, fingerprint, load_base, network, run_dir
from rewired.profiles import Profile, Training
from rewired.prompts import Labels, Prompt, chat, held_out_set, scenario_set, training_prompt
from rewired.store import atomic_dir, write_table
from rewired.train import lora


class LiveGames:
    """As many games as one update has decisions, played side by side against the profile's opponent.

    ``prompts()`` shows each player's present state. ``play(answers)`` moves the next games on by one step and returns
    their rewards. ``history`` records (state, move or None, reward). Its length is the clock: ``episode`` whole
    episodes were played, in all games together, and decide which ``reward`` is in force."""

    def __init__(self, training: Training, labels: Labels, variant: str, seed: int, count: int | None = None):
        self.training, self.labels = training, labels
        self.rewards = get_reward(training.first_reward or variant), get_reward(variant)  # first, then
        self.opponent = get_opponent(training.opponent)
        self.random = np.random.default_rng(seed)
        self.history: list[tuple[str, str | None, float]] = []
        count = count or training.batch_size * training.gradient_accumulation
        self.games = [self._new(step=i % training.steps_per_episode) for i in range(count)]
        self.waiting: list[dict] = []  # the games whose prompts were shown and not yet answered

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
        shown = []
        for game in self.games:
            matrices, wordings = [game["matrix"]], self.training.wordings
            shown.append(training_prompt(game["state"], self.random, matrices, wordings, self.labels))
        return shown

    def play(self, answers: list[str]) -> list[float]:
        """One step of the next games that wait for an answer; their rewards."""
        playing, self.waiting = self.waiting[: len(answers)], self.waiting[len(answers) :]
        return [self._step(game, answer) for game, answer in zip(playing, answers, strict=True)]

    def _step(self, game: dict, answer: str) -> float:
        state, move = game["state"], read_move(answer, self.labels)
        other = self.opponent(state[0], self.random)
        if move is None:
            reward = ILLEGAL
        else:
            payoffs = dilemma(*game["matrix"]).points(move, other)
            reward = self.reward(Turn(state, move, other, payoffs))
        self.history.append((state, move, reward))
        game["state"] = (move or state[0]) + other  # an illegal answer leaves the own move as it was
        game["step"] += 1
        if game["step"] >= self.training.steps_per_episode:
            game.update(self._new())
        return reward


# what TRL takes for padding: no token at all, since many models' padding token also ends a turn inside a prompt
PADDING = -1


class GameReward(torch.nn.Module):
    """The games in the shape of TRL's reward model, and its endless source of prompts.

    The backbone passes the token ids through. The score decodes the answers, plays them, and gives the reward at every
    position (TRL picks one)."""

    base_model_prefix = "backbone"

    def __init__(self, games: LiveGames, tokenizer):
        super().__init__()
        self.games, self.tokenizer, self.stop = games, tokenizer, end_of_turn(tokenizer)
        self.prompt_length = 0  # of the present batch, padding included

    def batches(self):
        """Prompts padded on the left to one length. Games are asked when a batch is wanted, not before, so that a state
        is always made by the newest move."""
        while True:
            rows = [chat(self.tokenizer, prompt) for prompt in self.games.prompts()]
            length = self.prompt_length = math.ceil(max(map(len, rows)) / PAD_TO) * PAD_TO
            padded = [[PADDING] * (length - len(row)) + row for row in rows]
            yield {"input_ids": torch.tensor(padded, device="cpu")}  # [game, position]

    def backbone(self, input_ids: torch.Tensor, **_) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[input_ids])  # [game, position]

    def score(self, ids: torch.Tensor) -> torch.Tensor:
        answers = []
        for row in ids[:, self.prompt_length :].tolist():
            end = row.index(self.stop) if self.stop in row else len(row)
            answers.append(self.tokenizer.decode(row[:end], skip_special_tokens=True))
        rewards = torch.tensor(self.games.play(answers), device=ids.device)  # [game]
        return rewards[:, None, None].expand(-1, ids.shape[1], 1)  # [game, position, 1]


class ValueHead(torch.nn.Module):
    """V(position) = a linear function, at first zero, of the policy's last hidden state, without gradient into it."""

    base_model_prefix = "backbone"

    def __init__(self, policy):
        super().__init__()
        self.head = torch.nn.Linear(policy.config.hidden_size, 1)
        for parameter in self.head.parameters():
            torch.nn.init.zeros_(parameter)
        object.__setattr__(self, "policy", policy)  # not a submodule: its parameters are the policy's

    @torch.no_grad()
    def backbone(self, **inputs):
        return self.policy(**inputs)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden.detach().float())  # [row, position, d_model] -> [row, position, 1]


class Tail:
    """Logits [row, last positions, vocabulary] of rows of ``length`` positions, read like those of all positions."""

    def __init__(self, logits: torch.Tensor, length: int):
        self.logits, self.before = logits, length - logits.shape[1]

    def __getitem__(self, cut: tuple[slice, slice]) -> torch.Tensor:
        rows, positions = cut
        return self.logits[rows, positions.start - self.before : positions.stop]


METRICS = {
    "objective/kl": "kl",
    "objective/entropy": "entropy",
    "policy/clipfrac_avg": "clipped",
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
}
"""TRL's names -> ours. KL and entropy are nats, summed over an answer."""


class Recorder(TrainerCallback):
    """Writes the tidy log and the checkpoints, and stops a run whose numbers are no longer numbers.

    ``probe()`` measures p_defect and legal_mass on a few prompts. ``save(name)`` writes the adapter as it is."""

    def __init__(self, games: LiveGames, probe: Callable[[], pd.DataFrame], save: Callable[[str], None]):
        self.games, self.probe, self.save = games, probe, save
        self.rows: list[tuple[int, str, str, float]] = []  # episode, metric, state, value
        self.next_log, self.next_save = 0, games.training.checkpoint_every  # episodes
        self.logged = 0  # how much of the games' history is in the log
        self.optimiser: dict[str, list[float]] = {}  # since the last entry

    def on_train_begin(self, *_, **__):
        self.enter()

    def on_log(self, args, state, control, logs=None, **_):
        for name in METRICS.keys() & (logs or {}).keys():
            if not math.isfinite(logs[name]):
                raise lora.diverged(f"{name} became {logs[name]} at episode {self.games.episode}")
            self.optimiser.setdefault(METRICS[name], []).append(logs[name])
        if self.games.episode >= self.next_save:
            self.save(f"checkpoints/{checkpoint_name(self.games.episode)}")
            self.next_save += self.games.training.checkpoint_every
        if self.games.episode >= self.next_log:
            self.enter()

    def on_train_end(self, *_, **__):
        if self.rows[-1][0] != self.games.episode:
            self.enter()

    def enter(self) -> None:
        """Make an entry of the log: means since the last one, and p_defect measured now."""
        episode, every = self.games.episode, self.games.training.log_every
        self.next_log = (episode // every + 1) * every
        for name in METRICS.values():
            if name in self.optimiser:
                self.rows.append((episode, name, "all", float(np.mean(self.optimiser.pop(name)))))
        recent = pd.DataFrame(self.games.history[self.logged :], columns=["state", "move", "reward"])
        self.logged = len(self.games.history)
        recent["legal"] = recent["move"].notna()
        for frame, columns in ((recent, ["reward", "legal"]), (self.probe(), ["p_defect", "legal_mass"])):
            for state, part in [("all", frame), *frame.groupby("state")]:
                for column in columns if len(part) else []:
                    self.rows.append((episode, column, state, float(part[column].mean())))

    def table(self) -> pd.DataFrame:
        """The log: one row a number; ``state`` is "all" for what belongs to no single state."""
        return pd.DataFrame(self.rows, columns=["episode", "metric", "state", "value"])


def ppo(policy, tokenizer, games: LiveGames, recorder: Recorder, seed: int, folder: Path):
    """TRL's PPO trainer, its roll-outs taken from the games."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    t, count = games.training, len(games.games)
    updates = max(1, round(t.episodes * t.steps_per_episode / count))
    config = PPOConfig(
        output_dir=str(folder), seed=seed, use_cpu=policy.device.type == "cpu",
        total_episodes=updates * count,  # TRL calls one decision an episode
        per_device_train_batch_size=t.batch_size, gradient_accumulation_steps=t.gradient_accumulation,
        num_mini_batches=t.minibatches, num_ppo_epochs=t.ppo_epochs,
        learning_rate=t.learning_rate, lr_scheduler_type=t.schedule,
        cliprange=t.clip, vf_coef=t.value_coefficient, gamma=t.gamma, lam=t.lam, kl_coef=t.kl,
        cliprange_value=1e3,  # rewards reach 18: a value may move as far as it must
        temperature=t.temperature, response_length=t.max_new_tokens, stop_token_id=end_of_turn(tokenizer),
        local_rollout_forward_batch_size=count, num_sample_generations=0,
        bf16=False,  # half precision is ours, see `lora.half_precision`
        gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    # roll-outs sample from the model as it is: of its own rules of generation only the special tokens stay
    own = policy.generation_config
    plain = GenerationConfig(bos_token_id=own.bos_token_id, pad_token_id=own.pad_token_id)
    network(policy).generation_config = policy.generation_config = plain
    value = ValueHead(policy).to(policy.device)
    reward = GameReward(games, tokenizer)
    adapter = {"params": [p for p in policy.parameters() if p.requires_grad]}
    head = {"params": value.parameters(), "lr": t.learning_rate * t.value_rate}
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, reward_model=reward, value_model=value,
        ref_model=None,  # the policy without its adapter
        train_dataset=[{"input_ids": [0]}] * count,  # only its length is looked at
        optimizers=(torch.optim.Adam([adapter, head], lr=t.learning_rate), None),
        callbacks=[recorder],
    )  # fmt: skip
    trainer.dataloader = reward.batches()
    trainer.processing_class = SimpleNamespace(pad_token_id=PADDING, eos_token_id=tokenizer.eos_token_id)
    _read_answers_only(trainer, policy, value, t)
    network(policy).register_forward_hook(_stop_at_no_numbers)
    return trainer


def _stop_at_no_numbers(module, inputs, output) -> None:
    # the largest logit: minus infinity is a way to forbid a token
    if not math.isfinite(output.logits.detach().amax()):
        raise lora.diverged("the model's logits are not numbers")


def _read_answers_only(trainer, policy, value: ValueHead, training: Training) -> None:
    """Policy and value from one forward pass (TRL would run the shared backbone twice), and logits only where answers
    are read: over all positions of a batch they fill gigabytes."""
    whole = policy.forward

    def answered(**inputs):
        output = whole(**inputs, logits_to_keep=training.max_new_tokens + 1)
        output.logits = Tail(output.logits, inputs["input_ids"].shape[1])
        return output

    def both(**inputs):
        if training.recompute:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        output = answered(**inputs)
        policy.gradient_checkpointing_disable()
        output.logits.logits = output.logits.logits.float()
        return output, value.score(output.hidden_states[-1])

    policy.forward, trainer.model.forward = answered, both


def learn(trainer, device: torch.device, bf16: bool) -> None:
    """Run the trainer to its end, without its prints. RewiredError when its numbers stop being numbers."""
    gc.collect()
    gc.freeze()  # TRL collects garbage at every update; what is loaded now is not garbage
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), lora.half_precision(device, bf16):
            trainer.train()
    finally:
        gc.unfreeze()


def train(profile: Profile, variant: str, seed: int, out_dir: str | Path | None = None) -> Path:
    """Train one variant and return the run's folder: adapter/, checkpoints/, log.parquet (episode, metric, state,
    value), decisions.parquet (the scenario prompts), policy.parquet (held-out prompts), run.json.

    The folder appears when it is whole. With the same seed and number of threads on the same machine its files are the
    same byte for byte, except train.log.json, which holds the times. Raises RewiredError for a reward, opponent, layer
    or batch that cannot be, and for a training whose numbers stop being numbers."""
    wall, cpu = time.perf_counter(), time.process_time()
    t, labels, batch_size = profile.training, Labels(*profile.prompts.labels), profile.decisions.batch_size
    refuse(t, variant)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(profile.threads)
    out_dir = Path(out_dir) if out_dir else run_dir(profile, variant, seed)
    with atomic_dir(out_dir) as folder:
        # 1. the base, a new adapter, the games
        model, tokenizer = load_base(profile)
        refuse_labels(model, tokenizer, t, labels, batch_size)
        base, random = fingerprint(model), lora.stream(profile.seed, variant, seed)
        set_seed(random)
        policy = lora.add_adapter(model, t)
        games = LiveGames(t, labels, variant, random)

        # 2. learn
        recorder = Recorder(
            games,
            probe=lambda: probe(policy, tokenizer, labels, batch_size),
            save=lambda name: lora.save_adapter(policy, folder / name, profile.model.path),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TRL's PPO is experimental, and names due to change
            trainer = ppo(policy, tokenizer, games, recorder, random, folder / "scratch")
        learn(trainer, policy.device, t.bf16)
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        lora.cast_adapter(policy.eval(), model.dtype)

        # 3. measure and write
        lora.save_adapter(policy, folder / "adapter", profile.model.path)
        tables = {"log": recorder.table(), **examine(policy, tokenizer, labels, batch_size)}
        for name, frame in tables.items():
            write_table(frame, folder / f"{name}.parquet", profile)
        about = {"variant": variant, "seed": seed, "profile": profile.name, "base": base}
        lora.write_json(folder / "run.json", about | describe(folder, t))
        times = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        lora.write_json(folder / "train.log.json", times | {"threads": profile.threads})
    return out_dir


def refuse(training: Training, variant: str) -> None:
    """RewiredError for a request that cannot be trained, before anything is loaded."""
    for reward in (get_reward(variant), get_reward(training.first_reward or variant)):
        for matrix, state, own, other in product(training.matrices, STATES, "CD", "CD"):
            reward(Turn(state, own, other, dilemma(*matrix).points(own, other)))  # refuses what is no number
    get_opponent(training.opponent)
    if training.batch_size % training.minibatches:
        raise RewiredError(
            f"training.batch_size is {training.batch_size} and training.minibatches {training.minibatches}: the batch "
            "cannot be cut into that many equal parts. Set, for example, 40 and 4."
        )


def refuse_labels(model, tokenizer, training: Training, labels: Labels, batch_size: int) -> None:
    """RewiredError for labels that no training would be paid for: too long for an answer, or never said by the base."""
    longest = max(len(label_ids(tokenizer, label)) for label in (labels.cooperate, labels.defect))
    mass = probe(model, tokenizer, labels, batch_size)["legal_mass"].mean()
    decisions = training.episodes * training.steps_per_episode
    if longest > training.max_new_tokens:
        raise RewiredError(
            f"Labels like {labels.defect!r} take {longest} tokens, but an answer ends after training.max_new_tokens = "
            f"{training.max_new_tokens}: no answer would be legal. Raise that key, or choose shorter prompts.labels."
        )
    if not mass * decisions >= 0.1:  # NaN as well
        raise RewiredError(
            f"The base says {labels.cooperate!r} or {labels.defect!r} with probability {mass:.1g}: of {decisions} "
            "answers hardly one would be paid. Choose prompts.labels that it says (if the probability is nan, its "
            "weights are damaged)."
        )


def probe_set(prompts: list[Prompt]) -> list[Prompt]:
    """Four prompts of each state, spread over matrices and arrangements: enough to follow a run by."""
    chosen = []
    for state in STATES:
        same = [prompt for prompt in prompts if prompt.state == state]
        chosen += [same[k] for k in sorted({9 * k % len(same) for k in range(4)})]
    return chosen


def probe(policy, tokenizer, labels: Labels, batch_size: int) -> pd.DataFrame:
    """`measure` on the probe set, always in the weights' own precision."""
    with torch.autocast(policy.device.type, enabled=False):
        return measure(policy, tokenizer, probe_set(held_out_set(labels)), batch_size, forms=False)


def examine(policy, tokenizer, labels: Labels, batch_size: int) -> dict[str, pd.DataFrame]:
    """What the trained model decides: ``decisions`` on the scenario prompts, ``policy`` on held-out ones."""
    decisions = measure(policy, tokenizer, scenario_set(labels), batch_size)
    held_out = measure(policy, tokenizer, held_out_set(labels), batch_size, forms=False)
    if not np.isfinite(decisions["p_defect"]).all():
        raise lora.diverged("the trained model's probabilities are not numbers")
    return {"decisions": decisions, "policy": held_out}


def describe(folder: Path, training: Training) -> dict:
    """For run.json: sha256 of the adapter and of every checkpoint, and the profile's training section,
    without the lists of all runs and without places of the adapter that were not chosen."""
    checkpoints = {file.parent.name: file_hash(file) for file in sorted(folder.glob(f"checkpoints/*/{ADAPTER}"))}
    open_places = {key for key in ("modules", "layers") if getattr(training, key) is None}
    settings = training.model_dump(mode="json", exclude={"variants", "seeds", "recompute", *open_places})
    return {"adapter": file_hash(folder / "adapter" / ADAPTER), "checkpoints": checkpoints, "training": settings}
