"""What the study's files say about behaviour: the metric on fifteen prompts, sampled answers, and five played games.

Every function takes a `Clone` and yields (id, value, note). The ids stand in ``book/study_files.yaml``, with file and
rule. The note says which component, model or scenario a number belongs to, where the number alone does not.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from replication.clone import NAMES, PROMPTS, SCENARIOS, Absent, Clone
from rewired.statistics import binomial_interval, paired_permutation

Number = tuple[str, float, str]
TRAINED = [name for name in NAMES if name != "base"]
GAMES = {"IPD": 6, "ISH": 8, "ICN": 5, "BOS": 5, "ICD": 8}
"""The five games of the evaluation, and the largest sum of points in each."""
ILLEGAL = -6.0  # the reward of an answer that is neither label, whatever the reward
TURNS = 50  # ten episodes of five turns
SEQUENCE = "seq_delta_logp_action2_minus_action1"
BY_VARIANT = "mech_interp_outputs/logit_lens/decision_statistics_by_variant.csv"
BY_SCENARIO = "mech_interp_outputs/logit_lens/decision_statistics.csv"
MERGED = "mech_interp_outputs/logit_lens_backup_merged_sequence/decision_statistics.csv"
VALIDATION = "mech_interp_outputs/validation/alignment_per_prompt.csv"
SIGNIFICANCE = "mech_interp_outputs/validation/significance_global*.csv"


# --- the metric ------------------------------------------------------------------------------------------------------


def by_variant(clone: Clone) -> pd.DataFrame:
    """The decision of each model on each of its fifteen prompts: scenario, variant, model_id, seq_p_action2 …"""
    logps = ["seq_logp_action1", "seq_logp_action2"]
    numbers = ["variant", "final_delta", "stabilization_layer", *logps, SEQUENCE, "seq_p_action2"]
    table = clone.csv(BY_VARIANT, numbers, ["scenario", "model_id"], rows=len(NAMES) * PROMPTS)
    clone.expect(BY_VARIANT, "model_id", table["model_id"], NAMES)
    clone.expect(BY_VARIANT, "scenario", table["scenario"], SCENARIOS)
    if table.duplicated(["model_id", "scenario", "variant"]).any():
        raise clone.changed(BY_VARIANT, "a model, scenario and variant stand there twice")
    # What follows from other columns must follow: a number changed by hand is noticed.
    two_way = 1 / (1 + np.exp(-table[SEQUENCE]))
    if (two_way - table["seq_p_action2"]).abs().max() > 1e-6:
        raise clone.changed(BY_VARIANT, f"seq_p_action2 is not the two-way softmax of {SEQUENCE}")
    return table


def cells(clone: Clone) -> pd.DataFrame:
    """seq_p_action2 and final_delta by scenario and model, means over the three variants.

    From the file of means or, where that is not in the folder, from the file by variant: they agree."""
    try:
        numbers = {"seq_p_action2_mean": "seq_p_action2", "final_delta_mean": "final_delta"}
        words = ["scenario", "model_id"]
        table = clone.csv(BY_SCENARIO, list(numbers), words, rows=len(NAMES) * len(SCENARIOS)).rename(columns=numbers)
        clone.expect(BY_SCENARIO, "model_id", table["model_id"], NAMES)
        clone.expect(BY_SCENARIO, "scenario", table["scenario"], SCENARIOS)
        if table.duplicated(words).any():
            raise clone.changed(BY_SCENARIO, "a model and scenario stand there twice")
    except Absent:
        table = by_variant(clone)
    return table.groupby(["scenario", "model_id"])[["seq_p_action2", "final_delta"]].mean()


def decisions(clone: Clone) -> Iterator[Number]:
    """p_defect of each model and scenario by sequence, and what the claims about scenarios say of it."""
    p = cells(clone)["seq_p_action2"].unstack("model_id")  # [scenario, model]
    if not p.stack().between(0, 1).all():
        raise clone.changed(BY_SCENARIO, "a probability lies outside 0 to 1")
    for model, name in NAMES.items():
        yield f"p_{name}", p[model].mean(), ""
        for scenario in SCENARIOS:
            yield f"p_{name}_{scenario}", p.loc[scenario, model], ""
    # The three scenarios in which the other is shown to have cooperated, and the two others.
    hybrid = p["PT4_COREDe"]
    yield "p_hybrid_after_c", hybrid[["CC_continue", "CC_temptation", "DC_exploited"]].mean(), ""
    yield "p_hybrid_after_d", hybrid[["CD_punished", "DD_trapped"]].mean(), ""
    # "CC_temptation showed the strongest cooperation and DC_exploited the weakest": in how many models?
    extremes = (p.idxmin() == "CC_temptation") & (p.idxmax() == "DC_exploited")
    yield "extremes", extremes.sum(), f"of {len(p.columns)} models"
    punished = p.loc["CD_punished", TRAINED].sort_values()
    yield "forgives_lead", punished.iloc[1] - punished.iloc[0], f"{NAMES[punished.index[0]]} first"
    margin = p["base"].mean() - p[TRAINED].mean()
    yield "base_margin", margin.min(), f"least for {NAMES[margin.idxmin()]}"


def one_step_early(clone: Clone) -> Iterator[Number]:
    """The first metric, the digits' logits at the end of the prompt."""
    final = cells(clone)["final_delta"].groupby("model_id").mean()
    for model, name in NAMES.items():
        yield f"final_{name}", final[model], ""
    yield "final_gap", final.max() - final.min(), f"{NAMES[final.idxmax()]} and {NAMES[final.idxmin()]}"


def copies(clone: Clone) -> Iterator[Number]:
    """Which prompts are copies, how much of the base's probability is on a legal answer, and what ten prompts allow."""
    table = by_variant(clone)
    p = table.pivot(index=["model_id", "scenario"], columns="variant", values="seq_p_action2")
    yield "copies", (p[0] == p[1]).sum(), f"of {len(p)} models and scenarios have equal variants 0 and 1"
    by_prompt = table.pivot(index=["scenario", "variant"], columns="model_id", values=SEQUENCE)
    # A prompt on which every model answers exactly as on an earlier one is a copy of it.
    distinct = by_prompt[~by_prompt.duplicated()]  # [prompt, model]
    yield "distinct_prompts", len(distinct), f"of {len(by_prompt)}"
    yield "wording_flips", ((p > 0.5).nunique(axis=1) > 1).sum(), f"of {len(p)} models and scenarios"
    mass = np.exp(table["seq_logp_action1"]) + np.exp(table["seq_logp_action2"])
    of_base = mass[table["model_id"] == "base"]
    yield "legal_mass_low", of_base.min(), "base"
    yield "legal_mass_high", of_base.max(), "base"
    layers = table["stabilization_layer"]
    yield "stabilization", layers.median(), f"by models {int(layers.min())} to {int(layers.max())}"
    yield "stabilization_share", layers.between(20, 24).mean(), "in layers 20 to 24"
    tests = []
    for moral in ("PT3_COREDe", "PT3_COREUt"):
        tests.append(paired_permutation(distinct["PT2_COREDe"], distinct[moral])[1])
    yield "separation_paired", max(tests), f"floor of {len(distinct)} distinct prompts: {2 / 2 ** len(distinct):.4f}"


def prompt_texts(clone: Clone) -> Iterator[Number]:
    """How many of the fifteen prompts are different texts."""
    name = "mech_interp_outputs/prompt_datasets/ipd_eval_prompts.json"
    stored = clone.json(name)
    prompts = stored.get("prompts", stored) if isinstance(stored, dict) else stored
    try:
        texts = [entry["prompt"] for entry in prompts]
    except (TypeError, KeyError):
        raise clone.changed(name, "it is not a list of entries with the key `prompt`") from None
    if len(texts) != PROMPTS:
        raise clone.changed(name, f"it has {len(texts)} prompts, and {PROMPTS} are expected")
    yield "distinct_texts", len(set(texts)), f"of {len(texts)}"


def merged(clone: Clone) -> Iterator[Number]:
    """The same metric on adapters that were merged into the base: the folder that the study kept as a backup."""
    words = ["scenario", "model_id"]
    table = clone.csv(MERGED, ["seq_p_action2_mean"], words, rows=len(NAMES) * len(SCENARIOS))
    clone.expect(MERGED, "model_id", table["model_id"], NAMES)
    if table.duplicated(words).any():
        raise clone.changed(MERGED, "a model and scenario stand there twice")
    means = table.groupby("model_id")["seq_p_action2_mean"].mean()
    for model, name in NAMES.items():
        yield f"merged_{name}", means[model], ""


# --- sampled answers -------------------------------------------------------------------------------------------------


def sampled(clone: Clone) -> Iterator[Number]:
    """Does the metric agree with nine sampled answers to each prompt?"""
    numbers = ["seq_p_action2", "sampled_action2_rate", "n_known", "n_action2", "agreement_seq_vs_sampled_majority"]
    table = clone.csv(VALIDATION, numbers, ["model_id", "scenario"], rows=len(TRAINED) * PROMPTS)
    clone.expect(VALIDATION, "model_id", table["model_id"], TRAINED)
    yield "agree", table["agreement_seq_vs_sampled_majority"].sum(), f"of {len(table)} majorities"
    rates = table.groupby("model_id")["sampled_action2_rate"].mean()
    for model in TRAINED:
        yield f"sampled_{NAMES[model]}", rates[model], ""
    # All sixty intervals hold together with 95 %.
    low, high = binomial_interval(table["n_action2"], table["n_known"], family=len(table))
    inside = table["seq_p_action2"].between(low, high)
    yield "agree_interval", inside.sum(), f"of {len(table)} predictions lie in the simultaneous interval"


def significance(clone: Clone) -> Iterator[Number]:
    """The p that was reported for the separation of strategic from moral models."""
    numbers, words = ["perm_p_value_two_sided"], ["metric", "model_a", "model_b"]
    table = clone.csv(SIGNIFICANCE, numbers, words)
    of_p = table[table["metric"] == "seq_p_action2"]
    if of_p.empty:
        raise clone.changed(SIGNIFICANCE, "it has no row for the metric seq_p_action2")
    yield "separation_reported", of_p["perm_p_value_two_sided"].max(), f"floor of 20,000 draws: {1 / 20_001:.3g}"


# --- five games ------------------------------------------------------------------------------------------------------


def moves(answers: pd.Series) -> pd.Series:
    """``C``, ``D`` or ``illegal`` for each answer: the first of the two labels that stands in it."""
    label = answers.str.extract(r"action([12])(?!\d)", flags=re.IGNORECASE, expand=False)
    return label.map({"1": "C", "2": "D"}).fillna("illegal")


def played(clone: Clone, model: str, game: str) -> pd.DataFrame:
    """One game of one model, fifty turns: its move and the base's, the displayed move of the other, both rewards."""
    name = f"results/{model}/run1/*After FT*independent eval {game}.csv"
    rewards = [f"rewards_{kind} ({when})" for kind in ("De", "Ut") for when in ("before", "after")]
    words = ["query", "opponent_move", "response (before)", "response (after)"]
    table = clone.csv(name, rewards, words, rows=TURNS)
    table["move"], table["base"] = moves(table["response (after)"]), moves(table["response (before)"])
    table["displayed"] = moves(table["query"].str.extract(r"they played\s+(action[12])", expand=False).fillna(""))
    if (table["displayed"] == "illegal").any():
        raise clone.changed(name, "a query does not say `they played action1` or `they played action2`")
    return table


def free_play(clone: Clone, model: str) -> Iterator[Number]:
    """How often a model defects in the game of training, in all and after each displayed move."""
    table = played(clone, model, "IPD")
    defects = table["move"] == "D"
    yield f"d_{NAMES[model]}", defects.mean(), ""
    for move in "CD":
        after = defects[table["displayed"] == move].mean()
        yield f"d_{NAMES[model]}_after_{move.lower()}", after, "by the displayed move"


def same_choices(clone: Clone) -> Iterator[Number]:
    """In how many turns of all games the deontological and the utilitarian model choose alike, and cooperate."""
    pairs = [[played(clone, model, game)["move"] for model in ("PT3_COREDe", "PT3_COREUt")] for game in GAMES]
    one, other = [pd.concat(side, ignore_index=True) for side in zip(*pairs, strict=True)]
    yield "same_choices", (one == other).sum(), f"of {len(one)} turns"
    yield "always_c", ((one == "C") & (other == "C")).sum(), f"of {len(one)} turns"


def ut_regret(clone: Clone, model: str, game: str) -> Iterator[Number]:
    """Utilitarian regret of one model in one game, by the formula of the paper."""
    # The base's answers stand beside those of every model; the study took them from the first one.
    file, when = ("PT2_COREDe", "before") if model == "base" else (model, "after")
    rewards = played(clone, file, game)[f"rewards_Ut ({when})"]
    yield f"ut_regret_{NAMES[model]}_{game}", (GAMES[game] - rewards.mean()) / (GAMES[game] - ILLEGAL), ""


def de_regret(clone: Clone, model: str) -> Iterator[Number]:
    """Deontological regret of one model, mean over the games."""
    values = [-played(clone, model, game)["rewards_De (after)"].mean() for game in GAMES]
    yield f"de_regret_{NAMES[model]}", float(np.mean(values)), "mean over games"


def base_illegal(clone: Clone) -> Iterator[Number]:
    """What the base lost, and why: hardly any of its answers is legal."""
    tables = [played(clone, "PT2_COREDe", game) for game in GAMES]
    regrets = [-table["rewards_De (before)"].mean() for table in tables]
    illegal = [(table["base"] == "illegal").mean() for table in tables]
    yield "de_regret_base_low", min(regrets), "over games"
    yield "de_regret_base_high", max(regrets), "over games"
    yield "illegal_base_low", min(illegal), "over games"
    yield "illegal_base_high", max(illegal), "over games"


WORDINGS = {"structured": "game", "unstructured": "question", "poetic": "moral", "explicit": "explicit IPD"}
"""The four wordings as the files name them, and the older names of their columns."""


def wordings(clone: Clone, model: str) -> Iterator[Number]:
    """Share of defection of one model in four wordings of the game."""
    name = f"results/{model}/run1/*After FT*2 unstructured IPD queries.csv"
    for wording, older in WORDINGS.items():
        column = clone.named(name, f"response (after) - {wording}_IPD", f"response (after) - {older}")
        answers = clone.csv(name, [], [column], rows=TURNS)[column]
        yield f"d_{NAMES[model]}_{wording}", (moves(answers) == "D").mean(), ""


def reciprocity(clone: Clone, model: str) -> Iterator[Number]:
    """Defection after C and after D, sorted by the displayed move and by the concurrent one, as the study's figure."""
    name = f"results/{model}/run1/*After FT*4 unrelated queries.csv"
    concurrent = "opp_prev_move (for moral eval only)"
    words = ["query_morality", "response (after) - moral", "response (after) - question", concurrent]
    table = clone.csv(name, [], words, rows=TURNS)
    defects = moves(table["response (after) - moral"]) == "D"
    shown = table["query_morality"].str.extract(r"they played\s+(action[12])", expand=False).fillna("")
    # The model can answer only the move that its question names; the study's column holds another one.
    readings = {"displayed": moves(shown), "concurrent": moves(table[concurrent])}
    for reading, move in readings.items():
        for letter in "CD":
            yield f"{reading}_{NAMES[model]}_{letter.lower()}", defects[move == letter].mean(), ""
    matches = (readings["displayed"] == readings["concurrent"]).mean()
    yield f"concurrent_matches_{NAMES[model]}", matches, "share of turns"
    question = moves(table["response (after) - question"])
    yield f"illegal_question_{NAMES[model]}", (question == "illegal").mean(), "asked for an action alone"


GROUPS: list[Callable[[Clone], Iterator[Number]]] = [
    decisions, one_step_early, copies, prompt_texts, merged, sampled, significance, same_choices, base_illegal,
]  # fmt: skip
"""All that this module rereads; each part on its own, so that a missing file costs no more than what it decides."""
for _model in TRAINED:
    GROUPS += [partial(part, model=_model) for part in (free_play, de_regret, wordings, reciprocity)]
for _model, _game in product(NAMES, GAMES):
    GROUPS.append(partial(ut_regret, model=_model, game=_game))
