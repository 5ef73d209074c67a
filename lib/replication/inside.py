"""What the study's files say about the inside of its models: lens, attribution, attention and weights.

Every function takes a `Clone` and yields (id, value, note), as in `replication.behaviour`.
"""

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from replication.behaviour import TRAINED, Number
from replication.clone import COMPONENTS, HEADS, LAYERS, NAMES, PROMPTS, SCENARIOS, Clone

TRAJECTORIES = "mech_interp_outputs/logit_lens/trajectories.json"
TOP = "mech_interp_outputs/dla/dla_top_components.csv"
FULL = "mech_interp_outputs/dla/dla_full_results.csv"
ATTENTION = "mech_interp_outputs/attention_analysis/attention_comparison_De_vs_Ut.csv"
COMPARISON = "mech_interp_outputs/weight_analysis/weight_norms_comparison.csv"
NORMS = "mech_interp_outputs/weight_analysis/weight_norms_all_models.csv"
COSINES = "mech_interp_outputs/weight_analysis/adapter_similarity_cosine.csv"
HEAD_LABELS = {f"L{layer}H{head}" for layer in range(LAYERS) for head in range(HEADS)}
LABELS = HEAD_LABELS | {f"L{layer}_MLP" for layer in range(LAYERS)}
"""The 234 names that attribution and patching use: 208 heads and 26 MLPs."""


def sites(labels: pd.Series) -> pd.Series:
    """The layer's attention or MLP that a name stands for: ``L5H3`` is a share of ``L5_ATTN``."""
    return labels.str.replace(r"H\d+$", "_ATTN", regex=True)


# --- logit lens ------------------------------------------------------------------------------------------------------


def lens(clone: Clone) -> Iterator[Number]:
    """Courses over layers, from the last token of the prompt: where they begin, part and end."""
    stored = clone.json(TRAJECTORIES)
    try:
        rows = [[stored[scenario][model] for model in NAMES] for scenario in SCENARIOS]
        courses = np.array(rows, dtype=float)  # [scenario, model, layer]
    except (KeyError, TypeError, ValueError):
        raise clone.changed(TRAJECTORIES, "it is not 5 scenarios of 5 models of 26 numbers") from None
    if courses.shape[2:] != (LAYERS,) or not np.isfinite(courses).all():
        shape = " x ".join(map(str, courses.shape))
        raise clone.changed(TRAJECTORIES, f"it holds {shape} numbers or gaps, and 5 x 5 x {LAYERS} are expected")
    yield "lens_first_low", courses[:, :, 0].min(), "after the first layer"
    yield "lens_first_high", courses[:, :, 0].max(), "after the first layer"
    names = list(NAMES)
    apart = np.abs(courses[:, names.index("PT2_COREDe")] - courses[:, names.index("PT3_COREDe")]).max(axis=0)  # [layer]
    for layer in (16, 17, 18, 22, 25):
        yield f"lens_gap_{layer}", apart[layer], "strategic and deontological, largest over scenarios"
    yield "lens_gap_before_16", apart[:16].max(), f"layer {apart[:16].argmax()}"
    # The course in the study's own words: toward cooperation, "drift toward neutral", "drift back toward Cooperate".
    early, middle, late = courses[..., :6].mean(-1), courses[..., 6:16].mean(-1), courses[..., 16:].mean(-1)
    described = (early < 0) & (middle > early) & (late < middle)
    yield "lens_described", described.sum(), f"of {described.size} courses"


# --- attribution -----------------------------------------------------------------------------------------------------


def mean_votes(clone: Clone) -> pd.DataFrame:
    """[component, model]: mean contribution over the fifteen prompts."""
    table = clone.csv(TOP, ["contribution"], ["model", "component"], rows=len(NAMES) * COMPONENTS)
    clone.expect(TOP, "model", table["model"], NAMES)
    clone.expect(TOP, "component", table["component"], LABELS)
    if table.duplicated(["model", "component"]).any():
        raise clone.changed(TOP, "a model and component stand there twice")
    return table.pivot(index="component", columns="model", values="contribution")


def loudest(clone: Clone) -> Iterator[Number]:
    """The components that add most, and what changed against the strategic model."""
    votes = mean_votes(clone)
    for layer in (7, 8, 9, 11):
        of_models = votes.loc[f"L{layer}_MLP", list(NAMES)]
        yield f"dla_l{layer}_low", of_models.min(), f"L{layer}_MLP, over models"
        yield f"dla_l{layer}_high", of_models.max(), f"L{layer}_MLP, over models"
    sizes = votes.abs()
    # Dominance is asked against the next loudest component, and against the typical one as the study did.
    pair = sizes.loc[["L8_MLP", "L9_MLP"]].min()  # [model]
    others = sizes.drop(index=["L8_MLP", "L9_MLP"])
    ratio, typical = pair / others.max(), pair / others.median()
    yield "dla_pair_over_next", ratio.min(), f"weaker of L8, L9 over {others[ratio.idxmin()].idxmax()}"
    yield "dla_pair_over_median", typical.min(), "weaker of L8, L9 over the median component"
    first_two = {model: frozenset(sizes[model].nlargest(2).index) for model in NAMES}
    same = sum(first_two[model] == first_two["base"] for model in TRAINED)
    yield "dla_same_two", same, f"of {len(TRAINED)} variants; base: {', '.join(sorted(first_two['base']))}"
    for model in ("PT3_COREDe", "PT3_COREUt", "PT4_COREDe"):
        change = votes[model] - votes["PT2_COREDe"]
        yield f"dla_change_{NAMES[model]}", change[change.abs().idxmax()], str(change.abs().idxmax())
        yield f"dla_l8_change_{NAMES[model]}", change["L8_MLP"], ""


def full_votes(clone: Clone) -> pd.DataFrame:
    """Every contribution: model, scenario, variant (in the file's order), component, contribution …"""
    numbers, words = ["contribution", "final_delta_legacy"], ["model", "scenario", "component"]
    table = clone.csv(FULL, numbers, words, rows=len(NAMES) * PROMPTS * COMPONENTS)
    clone.expect(FULL, "model", table["model"], NAMES)
    clone.expect(FULL, "scenario", table["scenario"], SCENARIOS)
    clone.expect(FULL, "component", table["component"], LABELS)
    table["variant"] = table.groupby(["model", "scenario", "component"]).cumcount()
    if table["variant"].max() > 2:
        raise clone.changed(FULL, "a model, scenario and component stand there more than three times")
    of_prompt = table.groupby(["model", "scenario", "variant"])["final_delta_legacy"]
    if (of_prompt.max() - of_prompt.min()).max() > 1e-3:
        raise clone.changed(FULL, "final_delta_legacy differs within a prompt; the study's order of rows is expected")
    return table


def attribution(clone: Clone) -> Iterator[Number]:
    """Distances between models, heads that are no heads, and contributions that do not add up."""
    table = full_votes(clone)
    vectors = table.pivot(index=["scenario", "variant", "component"], columns="model", values="contribution")
    means = vectors.groupby("component").mean()
    for suffix, of in (("", vectors), ("_means", means)):
        distance = {}
        for one, other in combinations(NAMES, 2):
            cosine = of[one] @ of[other] / np.sqrt((of[one] @ of[one]) * (of[other] @ of[other]))
            distance[one, other] = 1 - cosine
        yield f"dla_distance_morals{suffix}", distance["PT3_COREDe", "PT3_COREUt"], "deontological and utilitarian"
        yield f"dla_distance_strategic{suffix}", distance["PT2_COREDe", "PT3_COREDe"], "strategic and deontological"
        place = sorted(distance, key=distance.__getitem__).index(("PT3_COREDe", "PT3_COREUt")) + 1
        nearest = " and ".join(NAMES[model] for model in min(distance, key=distance.__getitem__))
        yield f"dla_morals_place{suffix}", place, f"of {len(distance)} pairs; the closest: {nearest}"
    # Eight heads with one value are one measurement.
    heads = table[table["component"].isin(HEAD_LABELS)]
    site = sites(heads["component"])
    values = heads.groupby(["model", "scenario", "variant", site])["contribution"].nunique()
    yield "dla_equal_heads", (values == 1).sum(), f"of {len(values)} layers, prompts and models"
    # If attribution adds up, the contributions of a prompt sum to the difference of its logits.
    strategic = table[table["model"] == "PT2_COREDe"].groupby(["scenario", "variant"])
    yield "dla_sum", strategic["contribution"].sum().mean(), "strategic, mean over prompts"
    yield "dla_sum_due", strategic["final_delta_legacy"].first().mean(), "strategic, the difference of logits"


# --- attention -------------------------------------------------------------------------------------------------------


def attention(clone: Clone) -> Iterator[Number]:
    """Attention of two models to three kinds of tokens, as weights and relative to each other."""
    kinds = ("action", "opponent", "payoff")
    columns = [f"{model}_{kind}_attn" for model in ("Deontological", "Utilitarian") for kind in kinds]
    table = clone.csv(ATTENTION, columns, ["scenario"], rows=PROMPTS)
    differences = []
    for kind in kinds:
        one, other = table[f"Deontological_{kind}_attn"], table[f"Utilitarian_{kind}_attn"]
        differences.append((one - other).abs().mean())
        yield f"attention_{kind}_deontological", one.mean(), ""
        yield f"attention_{kind}_utilitarian", other.mean(), ""
        # Action words were never matched, so their attention is zero and has no ratio.
        if other.mean():
            yield f"attention_{kind}_ratio", one.mean() / other.mean() - 1, "deontological over utilitarian, less one"
    higher = table["Deontological_payoff_attn"] > table["Utilitarian_payoff_attn"]
    yield "attention_payoff_higher", higher.sum(), f"of {len(table)} prompts"
    yield "attention_alike", 1 - float(np.mean(differences)), "one less the mean difference, as the study"


# --- weights ---------------------------------------------------------------------------------------------------------


def weights(clone: Clone) -> Iterator[Number]:
    """Mean norm of each adapter, and where the MLP of layer 2 stands among the MLPs."""
    table = clone.csv(COMPARISON, ["mean_norm", "l2_mlp_percentile"], ["model_id"], rows=len(TRAINED))
    clone.expect(COMPARISON, "model_id", table["model_id"], TRAINED)
    table = table.set_index("model_id")
    for model in TRAINED:
        yield f"norm_{NAMES[model]}", table.loc[model, "mean_norm"], ""
        yield f"l2_percentile_{NAMES[model]}", table.loc[model, "l2_mlp_percentile"], ""


def norms(clone: Clone) -> Iterator[Number]:
    """By layer: which MLP was changed most, whether layers 8 and 9 were changed more than layer 2, and percentiles."""
    modules = 7 * LAYERS
    table = clone.csv(NORMS, ["layer", "frobenius_norm"], ["model_id", "module_type"], rows=len(TRAINED) * modules)
    clone.expect(NORMS, "model_id", table["model_id"], TRAINED)
    mlps = table[table["module_type"].str.startswith("mlp.")]
    totals = mlps.groupby(["model_id", "layer"])["frobenius_norm"].sum().unstack("model_id")  # [layer, model]
    if list(totals.index) != list(range(LAYERS)):
        raise clone.changed(NORMS, f"its MLPs do not stand in layers 0 to {LAYERS - 1}")
    peaks = totals.idxmax()
    yield "norm_peak_low", peaks.min(), "layer of the most changed MLP, over models"
    yield "norm_peak_high", peaks.max(), "layer of the most changed MLP, over models"
    more = (totals.loc[8] > totals.loc[2]) & (totals.loc[9] > totals.loc[2])
    yield "l8_l9_more", more.sum(), f"of {len(TRAINED)} models change L8_MLP and L9_MLP more than L2_MLP"
    for model in TRAINED:
        percentile = 100 * (totals[model] <= totals.loc[2, model]).mean()
        yield f"l2_percentile_again_{NAMES[model]}", percentile, ""


def cosines(clone: Clone) -> Iterator[Number]:
    """Cosines of the adapters' lists of norms: every two adapters."""
    table = clone.matrix(COSINES, len(TRAINED))
    if not np.allclose(np.diag(table), 1, atol=1e-3):
        raise clone.changed(COSINES, "its diagonal is not 1; rows and columns are expected in the same order")
    upper = table[np.triu_indices(len(TRAINED), 1)]
    yield "adapter_cosine_low", upper.min(), "of norms, least of six pairs"
    yield "adapter_cosine_high", upper.max(), "of norms, largest of six pairs"


GROUPS: tuple[Callable[[Clone], Iterator[Number]], ...] = (
    lens,
    loudest,
    attribution,
    attention,
    weights,
    norms,
    cosines,
)
"""All that this module rereads."""
