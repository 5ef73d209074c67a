"""What does the model decide, and how surely? Read it from probabilities, at the step where the decision is made.

An answer is a label such as ``action2``: a few tokens. Its probability is the product of the probabilities of its
tokens, each given the prompt and the tokens before it, so

    delta = log P(defect label | prompt) - log P(cooperate label | prompt)

works for any two labels. When they share all but the last token, everything before that token cancels and delta is the
difference of two soft-capped logits at one position, the *decision step*. The model is run once per distinct context
(labels with a common beginning share it) and only the positions that are read reach the unembedding.

Sampling is the check on the metric. Samples with the same beginning see the same next-token distribution, so each
distinct beginning is run once and all its continuations are drawn from it: the draws are those of ordinary ancestral
sampling, at the price of a few forward passes instead of hundreds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from rewired.errors import RewiredError
from rewired.profiles import read_table
from rewired.prompts import Labels, Prompt, chat, scenario_set

PAD_TO = 16
"""Lengths are rounded up to a multiple of this: few distinct shapes are fast on a CPU."""
GUARD_TOLERANCE = 1e-3


# --- reading the model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecisionStep:
    """Where two labels part: teacher-force ``prefix_ids`` after the prompt, then read these two next-token logits."""

    prefix_ids: tuple[int, ...]
    cooperate_id: int
    defect_id: int


def label_ids(tokenizer, label: str) -> tuple[int, ...]:
    """The label's tokens in the form that the answer position elicits: no space before it."""
    return tuple(tokenizer(label, add_special_tokens=False)["input_ids"])


def decision_step(tokenizer, labels: Labels | Sequence[str]) -> DecisionStep:
    """The step that tells the two labels apart. Raises RewiredError unless they are a shared prefix plus one token."""
    labels = labels if isinstance(labels, Labels) else Labels(*labels)
    c, d = label_ids(tokenizer, labels.cooperate), label_ids(tokenizer, labels.defect)
    if len(c) != len(d) or c[:-1] != d[:-1]:
        raise RewiredError(
            f"The labels {labels.cooperate!r} and {labels.defect!r} have no single decision step: as tokens they are "
            f"{tokenizer.convert_ids_to_tokens(c)} and {tokenizer.convert_ids_to_tokens(d)}, and they must be the same "
            "but for the last one. Choose a pair such as action1 and action2; `decisions.measure` takes any pair."
        )
    return DecisionStep(c[:-1], c[-1], d[-1])


def _network(model):
    """The causal language model underneath a PEFT wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _families(rows: list[list[int]], reads: list[list[int]], largest: int) -> list[tuple[int, list[int]]]:
    """Rows that begin alike: (length of the shared beginning, their indices). A row joins the family before it (in
    lexicographic order) when that saves tokens and at least half of the row is shared; nothing that is read is."""
    families: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(rows)), key=lambda i: rows[i]):
        shared, family = families[-1] if families else (0, [])
        if family and len(family) < largest:
            first, room = rows[family[0]], min(reads[i][0], shared if len(family) > 1 else reads[family[0]][0])
            common = next((k for k in range(room) if first[k] != rows[i][k]), room)
            if 2 * common >= len(rows[i]) and common * len(family) > shared * (len(family) - 1):
                families[-1] = (common, [*family, i])
                continue
        families.append((0, [i]))
    return families


def _batches(rows, reads, batch_size: int) -> Iterator[tuple[int, list[list[int]]]]:
    """(shared length, families): families with beginnings of the same length, as many as fill a batch."""
    longest = sorted(_families(rows, reads, batch_size), key=lambda f: (-f[0], -len(rows[f[1][0]])))
    batch: list[list[int]] = []
    for k, (shared, family) in enumerate(longest):
        batch.append(family)
        after = longest[k + 1] if k + 1 < len(longest) else None
        if after is None or after[0] != shared or sum(map(len, batch)) + len(after[1]) > batch_size:
            yield shared, batch
            batch = []


@torch.no_grad()
def hidden_states(
    model, rows: list[list[int]], reads: list[list[int]], batch_size: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yields (indices, states): for each batch of rows their final hidden states at the positions in ``reads``, stacked
    in the order of the indices: [sum of reads in the batch, d_model], fp32. Prompts often differ only near their end;
    what several begin with is run once, and its keys and values serve them all."""
    decoder = _network(model).get_decoder()
    device = _network(model).get_input_embeddings().weight.device
    for shared, families in _batches(rows, reads, batch_size):
        batch = [i for family in families for i in family]
        length = -(-max(len(rows[i]) - shared for i in batch) // PAD_TO) * PAD_TO
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        for r, i in enumerate(batch):  # padded on the right: no position shifts, and causality hides the padding
            ids[r, : len(rows[i]) - shared] = torch.tensor(rows[i][shared:])
        past = None
        if shared:
            begin = torch.tensor([rows[family[0]][:shared] for family in families], device=device)
            past = decoder(input_ids=begin, use_cache=True).past_key_values
            past.batch_select_indices(
                torch.tensor([k for k, family in enumerate(families) for _ in family], device=device)
            )
        hidden = decoder(input_ids=ids.to(device), past_key_values=past, use_cache=past is not None)[0]
        row = torch.tensor([r for r, i in enumerate(batch) for _ in reads[i]], device=device)
        column = torch.tensor([p - shared for i in batch for p in reads[i]], device=device)
        yield batch, hidden[row, column].float()


def logits(model, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(raw, capped) next-token logits of hidden states, each [row, vocabulary] in fp32; the unembedding is cast a
    piece at a time, so a half-precision model is never copied whole."""
    network = _network(model)
    weight = network.get_output_embeddings().weight
    raw = torch.cat([hidden @ piece.float().T for piece in weight.split(32768)], dim=-1)
    cap = getattr(network.config, "final_logit_softcapping", None)
    return raw, cap * torch.tanh(raw / cap) if cap else raw


# --- the metric ------------------------------------------------------------------------------------------------------


def _contexts(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The fewest continuations whose positions cover every proper prefix of the sequences."""
    longest: list[tuple[int, ...]] = []
    for prefix in sorted({s[:-1] for s in sequences}, key=lambda s: (-len(s), s)):
        if not any(other[: len(prefix)] == prefix for other in longest):
            longest.append(prefix)
    return longest


def measure(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    batch_size: int = 64,
    labels: Labels | Sequence[str] | None = None,
    forms: bool = True,
) -> pd.DataFrame:
    """One row per prompt: its description and

    ``logp_cooperate``, ``logp_defect``  log-probability of each label as the answer's beginning (nats)
    ``delta``         logp_defect - logp_cooperate; negative = cooperate
    ``delta_raw``     the same before the final soft-cap (NaN unless the labels are a shared prefix plus one token)
    ``delta_forms``   the study's variant, summing the spaced and unspaced form of each label (NaN if not ``forms``)
    ``delta_single``  the study's first metric: the labels' last tokens compared at the prompt's last position, one
                      step too early when the labels have two tokens
    ``p_defect``      the two-way softmax of delta
    ``legal_mass``    P(cooperate label) + P(defect label)

    ``labels`` asks about another pair than the one the prompts use."""
    asked = None if labels is None else labels if isinstance(labels, Labels) else Labels(*labels)
    rows, reads, wanted = [], [], []  # wanted[row]: (position within reads, prefix length, prompt, form)
    spelled = {}
    for i, prompt in enumerate(prompts):
        pair = asked or prompt.labels
        if pair not in spelled:
            words = (pair.cooperate, pair.defect) + ((" " + pair.cooperate, " " + pair.defect) if forms else ())
            sequences = [label_ids(tokenizer, word) for word in words]
            spelled[pair] = sequences, _contexts(sequences)
        sequences, contexts = spelled[pair]
        ids = chat(tokenizer, prompt)
        for context in contexts:
            rows.append(ids + list(context))
            reads.append(list(range(len(ids) - 1, len(ids) + len(context))))
            wanted.append([(i, form) for form, s in enumerate(sequences) if context[: len(s) - 1] == s[:-1]])
    log_p = np.full((len(prompts), 4), np.nan)  # [prompt, cooperate | defect | spaced cooperate | spaced defect]
    raw_gap, single = np.full(len(prompts), np.nan), np.full(len(prompts), np.nan)
    for batch, hidden in hidden_states(model, rows, reads, batch_size):
        raw, capped = logits(model, hidden)
        normal = torch.log_softmax(capped.double(), dim=-1)
        first = 0  # where the row's positions begin
        for r in batch:
            for i, form in wanted[r]:
                s = spelled[asked or prompts[i].labels][0][form]
                log_p[i, form] = sum(normal[first + k, token].item() for k, token in enumerate(s))
            i = wanted[r][0][0]
            c, d = spelled[asked or prompts[i].labels][0][:2]
            single[i] = (capped[first, d[-1]] - capped[first, c[-1]]).item()
            if (i, 0) in wanted[r] and len(c) == len(d) and c[:-1] == d[:-1]:
                at = first + len(c) - 1
                raw_gap[i] = (raw[at, d[-1]] - raw[at, c[-1]]).item()
            first += len(reads[r])
    return _describe(prompts, asked).assign(**_quantities(log_p, raw_gap, single))


def _quantities(log_p: np.ndarray, raw_gap: np.ndarray, single: np.ndarray) -> dict[str, np.ndarray]:
    cooperate, defect = log_p[:, 0], log_p[:, 1]
    delta = defect - cooperate
    with np.errstate(invalid="ignore"):  # NaN where the spaced forms were not asked for
        forms = np.logaddexp(defect, log_p[:, 3]) - np.logaddexp(cooperate, log_p[:, 2])
    return {
        "logp_cooperate": cooperate,
        "logp_defect": defect,
        "delta": delta,
        "delta_raw": raw_gap,
        "delta_forms": forms,
        "delta_single": single,
        "p_defect": np.exp(-np.logaddexp(0.0, -delta)),
        "legal_mass": np.exp(cooperate) + np.exp(defect),
    }


def _describe(prompts: Sequence[Prompt], asked: Labels | None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": p.id,
            "scenario": p.scenario,
            "state": p.state,
            "game": p.game,
            "wording": p.wording,
            "matrix": ",".join(map(str, p.matrix)),
            "cooperate_label": (asked or p.labels).cooperate,
            "defect_label": (asked or p.labels).defect,
            "listing_swapped": p.listing_swapped,
            "answer_swapped": p.answer_swapped,
            "rows_swapped": p.rows_swapped,
            "columns_swapped": p.columns_swapped,
        }
        for p in prompts
    )


# --- sampling --------------------------------------------------------------------------------------------------------


def read_move(answer: str, labels: Labels) -> str | None:
    """``"C"``, ``"D"``, or None: the study's rule, an exact match after stripping white space."""
    return {labels.cooperate: "C", labels.defect: "D"}.get(answer.strip())


def end_of_turn(tokenizer) -> int:
    """The token that ends an answer: ``<end_of_turn>``, or the end-of-sequence token where there is none."""
    token = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    return tokenizer.eos_token_id if token in (None, tokenizer.unk_token_id) else token


def sample(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    n: int,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 8,
    batch_size: int = 64,
) -> pd.DataFrame:
    """``n`` sampled answers to each prompt (no top-k, no top-p), until the end of turn or ``max_new_tokens``. Columns:
    prompt_id, scenario, state, sample, answer, move (``"C"``, ``"D"`` or None for an illegal answer)."""
    if not temperature > 0:
        raise RewiredError(f"The sampling temperature is {temperature}; it must be above 0 (1 is the model as it is).")
    random = torch.Generator().manual_seed(seed)
    chats, labels = [chat(tokenizer, prompt) for prompt in prompts], [prompt.labels for prompt in prompts]
    stops = {end_of_turn(tokenizer), tokenizer.eos_token_id}
    seen: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}  # (prompt, tokens so far): the final hidden state

    def look(wanted: list[tuple[int, tuple[int, ...]]]):
        rows = [chats[i] + list(tokens) for i, tokens in wanted]
        reads = [list(range(len(chats[i]) - 1, len(row))) for (i, _), row in zip(wanted, rows, strict=True)]
        for batch, hidden in hidden_states(model, rows, reads, batch_size):
            states = iter(hidden)
            for i, tokens in (wanted[r] for r in batch):
                seen.update({(i, tokens[:k]): next(states) for k in range(len(tokens) + 1)})

    spelled = {pair: [label_ids(tokenizer, word) for word in (pair.cooperate, pair.defect)] for pair in {*labels}}
    look([(i, word) for i, pair in enumerate(labels) for word in spelled[pair]])  # a legal answer needs nothing more
    growing = {(i, ()): n for i in range(len(prompts))}  # how many samples are there
    finished: list[dict[tuple[int, ...], int]] = [{} for _ in prompts]
    for step in range(1, max_new_tokens + 1):
        look([key for key in growing if key not in seen])
        keys, counts, growing = list(growing), list(growing.values()), {}
        for first in range(0, len(keys), batch_size):
            some = slice(first, first + batch_size)
            hidden = torch.stack([seen[key] for key in keys[some]])
            chances = torch.softmax(logits(model, hidden)[1].double() / temperature, dim=-1).cpu()
            for chance, key, count in zip(chances, keys[some], counts[some], strict=True):
                drawn = torch.multinomial(chance, count, replacement=True, generator=random)
                for token, times in zip(*(x.tolist() for x in drawn.unique(return_counts=True)), strict=True):
                    i, tokens = key[0], (*key[1], token)
                    done = token in stops or step == max_new_tokens
                    (finished[i] if done else growing)[tokens if done else (i, tokens)] = times
        if not growing:
            break
    frames = []
    for prompt, answers in zip(prompts, finished, strict=True):
        words = [w for t, c in answers.items() for w in [tokenizer.decode(t, skip_special_tokens=True)] * c]
        words = [words[k] for k in torch.randperm(n, generator=random)]  # the order carries no information
        moves = [read_move(word, prompt.labels) for word in words]
        about = {"prompt_id": prompt.id, "scenario": prompt.scenario, "state": prompt.state}
        frames.append(pd.DataFrame({**about, "sample": range(n), "answer": words, "move": moves}))
    return pd.concat(frames, ignore_index=True)


# --- the guard -------------------------------------------------------------------------------------------------------


def guard(study, variant: str, seed: int, forms: bool = False) -> pd.DataFrame:
    """Is this the model that was trained? Measures the scenario prompts again (`measure`, with or without ``forms``)
    and compares p_defect with what the run recorded; returns the new measurement, or raises RewiredError when any
    prompt differs by more than 1e-3."""
    recorded = read_table(study.run_dir(variant, seed) / "decisions.parquet", study.profile)
    with study.variant(variant, seed) as model:
        prompts = scenario_set(study.profile.prompts.labels)
        now = measure(model, study.tokenizer, prompts, study.profile.decisions.batch_size, forms=forms)
    both = recorded.merge(now, on="prompt_id", suffixes=("_recorded", "_now"), how="outer")
    gap = (both["p_defect_recorded"] - both["p_defect_now"]).abs()
    if not (gap <= GUARD_TOLERANCE).all():
        worst = both.loc[gap.fillna(np.inf).idxmax()]
        raise RewiredError(
            f"{variant} (seed {seed}) is not the model that was trained: on prompt {worst['prompt_id']} its p_defect "
            f"is {worst['p_defect_now']:.4f}, and training recorded {worst['p_defect_recorded']:.4f} (tolerance "
            f"{GUARD_TOLERANCE}). Delete {study.run_dir(variant, seed)} and run `make book` to train it again."
        )
    return now
