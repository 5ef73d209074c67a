"""What does the model decide, and how surely? Two labels compared, at the step where the decision is made.

An answer is a label such as ``action2``: a few tokens. With its log-probability from ``answers``,

    delta = log P(defect label | prompt) - log P(cooperate label | prompt)

works for any two labels; negative means cooperation. When the labels share all but the last token, everything before
that token cancels. Delta is then the difference of two soft-capped logits at one position, the *decision step*.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from rewired import answers
from rewired.errors import RewiredError
from rewired.models import Variants
from rewired.prompts import Labels, Prompt, as_labels, chat, scenario_set, turn
from rewired.store import read_table

Prompts = Sequence[Prompt]


def tolerance(model) -> float:
    """How far two measurements of one delta may lie apart, in logits: half precision rounds by the shape of a batch.
    p_defect then differs by at most a quarter of it."""
    return 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1


@dataclass(frozen=True)
class DecisionStep:
    """Where two labels part: teacher-force ``prefix_ids`` after the prompt, then read these two next-token logits."""

    prefix_ids: tuple[int, ...]
    cooperate_id: int
    defect_id: int


def label_ids(tokenizer, label: str) -> tuple[int, ...]:
    """The label's tokens where an answer stands: after the chat's own, which another place may not give. RewiredError
    where the label and the end of the chat become one token."""
    before, after = chat(tokenizer, "?"), chat(tokenizer, "?", label)
    if after[: len(before)] != before:
        raise RewiredError(
            f"The label {label!r} merges with the end of the chat template, {turn(tokenizer, '?')[-20:]!r}, as tokens "
            f"{tokenizer.convert_ids_to_tokens(after)[-3:]}: none begins with the answer. Choose other labels "
            "(prompts.labels), or a template that ends with a line break."
        )
    return tuple(after[len(before) :])


def decision_step(tokenizer, labels: Labels | Sequence[str]) -> DecisionStep:
    """The step that tells the two labels apart. Raises RewiredError unless they are a shared prefix plus one token."""
    labels = as_labels(labels)
    cooperate, defect = label_ids(tokenizer, labels.cooperate), label_ids(tokenizer, labels.defect)
    if not one_token_apart(cooperate, defect):
        tokens = f"{tokenizer.convert_ids_to_tokens(cooperate)} and {tokenizer.convert_ids_to_tokens(defect)}"
        raise RewiredError(
            f"The labels {labels.cooperate!r} and {labels.defect!r} have no single decision step: as tokens they are "
            f"{tokens}, and these must be the same but for the last one. Choose a pair such as action1 and action2."
        )
    return DecisionStep(cooperate[:-1], cooperate[-1], defect[-1])


def one_token_apart(cooperate: Sequence[int], defect: Sequence[int]) -> bool:
    """Whether two labels, as tokens, differ in their last token only."""
    return len(cooperate) == len(defect) and cooperate[:-1] == defect[:-1]


def end_of_turn(tokenizer) -> int:
    """The token that ends an answer: the first special one that the chat's template writes after it, as
    ``<end_of_turn>``; the end-of-sequence token where it writes none."""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    after = tokenizer.apply_chat_template(said, tokenize=False).rpartition("!")[2]
    tokens, special = tokenizer(after, add_special_tokens=False)["input_ids"], tokenizer.get_added_vocab().values()
    return next((token for token in tokens if token in special), tokenizer.eos_token_id)


def measure(model, tokenizer, prompts: Prompts, batch_size: int = 64, labels=None, forms: bool = True) -> pd.DataFrame:
    """One row per prompt: its description and

    ``logp_cooperate``, ``logp_defect``  log-probability of each label as the answer's beginning (nats)
    ``delta``         logp_defect - logp_cooperate; negative = cooperate
    ``delta_raw``     the same before the final soft-cap (NaN unless the labels are a shared prefix plus one token)
    ``delta_forms``   the study's variant, summing the spaced and unspaced form of each label (NaN if not ``forms``)
    ``delta_single``  the study's first metric: the labels' last tokens compared at the prompt's last position, one
                      step too early when the labels have two tokens
    ``p_defect``      the two-way softmax of delta
    ``legal_mass``    P(cooperate label) + P(defect label)

    ``labels`` asks about another pair (``Labels`` or two words) than the one the prompts use."""
    pairs = [prompt.labels if labels is None else as_labels(labels) for prompt in prompts]
    contexts = [chat(tokenizer, prompt) for prompt in prompts for _ in range(2)]
    logp = np.zeros((len(prompts), 4 if forms else 2))  # [prompt, cooperate | defect (| the same after a space)]
    delta_raw, delta_single, delta_forms = np.full((3, len(prompts)), np.nan)
    # The forms have batches of their own: whether they are asked for moves no other number, not even by rounding.
    for first in range(0, logp.shape[1], 2):
        words = [" " * (first > 0) + word for pair in pairs for word in (pair.cooperate, pair.defect)]
        said = [label_ids(tokenizer, word) for word in words]
        for k, raw, capped in answers.answer_logits(model, contexts, said, batch_size):
            i, second = divmod(k, 2)  # which prompt, which of its answers
            logp[i, first + second] = answers.log_probability(capped, said[k])
            if second and not first:
                cooperate, defect = said[k - 1], said[k]
                delta_single[i] = (capped[0, defect[-1]] - capped[0, cooperate[-1]]).item()
                if one_token_apart(cooperate, defect):
                    delta_raw[i] = (raw[-1, defect[-1]] - raw[-1, cooperate[-1]]).item()
    delta = logp[:, 1] - logp[:, 0]  # [prompt]
    if forms:
        delta_forms = np.logaddexp(logp[:, 1], logp[:, 3]) - np.logaddexp(logp[:, 0], logp[:, 2])
    table = pd.DataFrame([prompt.about(pair) for prompt, pair in zip(prompts, pairs, strict=True)])
    table["logp_cooperate"], table["logp_defect"] = logp[:, 0], logp[:, 1]
    table["delta"], table["delta_raw"] = delta, delta_raw
    table["delta_forms"], table["delta_single"] = delta_forms, delta_single
    table["p_defect"] = np.exp(-np.logaddexp(0.0, -delta))
    table["legal_mass"] = np.exp(logp[:, 0]) + np.exp(logp[:, 1])
    return table


def read_move(answer: str, labels: Labels) -> str | None:
    """``"C"``, ``"D"``, or None: the study's rule, an exact match after stripping white space."""
    return {labels.cooperate: "C", labels.defect: "D"}.get(answer.strip())


def sample(
    model, tokenizer, prompts: Prompts, n: int, temperature: float = 1.0, seed: int = 0, max_new_tokens: int = 0
) -> pd.DataFrame:
    """``n`` sampled answers to each prompt, until the end of turn or ``max_new_tokens`` (0: 8, or what labels take).

    Columns: prompt_id, scenario, state, sample, answer, move (``"C"``, ``"D"`` or None for an illegal answer)."""
    stops = frozenset({end_of_turn(tokenizer), tokenizer.eos_token_id}) - {None}  # either ends an answer
    likely, longest = [], max_new_tokens or 8  # a legal answer needs no more forward passes than these
    for i, prompt in enumerate(prompts):
        for word in (prompt.labels.cooperate, prompt.labels.defect):
            likely.append((i, label_ids(tokenizer, word)))
            longest = max_new_tokens or max(longest, len(likely[-1][1]) + 1)  # no label is cut
    how = answers.Sampling(n, stops, temperature, longest)
    contexts = [chat(tokenizer, prompt) for prompt in prompts]
    drawn = answers.sample(model, contexts, how, torch.Generator().manual_seed(seed), likely)
    frames = []
    for prompt, samples in zip(prompts, drawn, strict=True):
        frame = pd.DataFrame({"prompt_id": prompt.id, "scenario": prompt.scenario, "state": prompt.state}, range(n))
        frame["sample"] = range(n)
        frame["answer"] = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in samples]
        frame["move"] = [read_move(answer, prompt.labels) for answer in frame["answer"]]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def guard(variants: Variants, variant: str, seed: int, forms: bool = False) -> pd.DataFrame:
    """Is this the model that was trained? Measures the scenario prompts again, with or without ``forms``.

    Returns the new measurement. Raises RewiredError when delta of any prompt differs by more than `tolerance` from what
    the run recorded at the end of its training, in the same batches."""
    profile = variants.profile
    recorded = read_table(variants.run_dir(variant, seed) / "decisions.parquet", profile)
    prompts = scenario_set(profile.prompts.labels)
    with variants.variant(variant, seed) as model:
        now = measure(model, variants.tokenizer, prompts, profile.decisions.batch_size, forms=forms)
    both = recorded.merge(now, on="prompt_id", suffixes=("_recorded", "_now"), how="outer")
    gap, allowed = (both["delta_recorded"] - both["delta_now"]).abs(), tolerance(variants.model)
    if not (gap <= allowed).all():  # a prompt that is missing on one side has no gap
        worst = both.loc[gap.fillna(np.inf).idxmax()]
        raise RewiredError(
            f"{variant} (seed {seed}) is not the model that was trained: on prompt {worst['prompt_id']} its delta is "
            f"{worst['delta_now']:.4f}, and training recorded {worst['delta_recorded']:.4f} (at most {allowed} logits "
            f"apart). Delete {variants.run_dir(variant, seed)} and run `make book` to train it again."
        )
    return now
