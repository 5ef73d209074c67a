"""What the study's files say about patching and about correlations between components.

Every function takes a `Clone` and yields (id, value, note), as in `replication.behaviour`. Correlations and their
nulls are computed with the functions of the chapter on interactions, `rewired.interactions`.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, pearsonr, ttest_rel

from replication.behaviour import Number
from replication.clone import COMPONENTS, LAYERS, NAMES, PROMPTS, SCENARIOS, VARIANTS, Absent, Clone
from replication.inside import HEAD_LABELS, LABELS, sites
from rewired import interactions

EXPERIMENTS = {  # id, and the study's names of source and target
    "strategic_de": ("PT2_COREDe", "PT3_COREDe"),
    "strategic_ut": ("PT2_COREDe", "PT3_COREUt"),
    "de_ut": ("PT3_COREDe", "PT3_COREUt"),
    "ut_de": ("PT3_COREUt", "PT3_COREDe"),
}
PATCHES = "mech_interp_outputs/patching/patch_results_{}_to_{}.csv"
CIRCUITS = "mech_interp_outputs/patching/circuits_{}_to_{}.csv"
FOLDER = "mech_interp_outputs/component_interactions/"
ACTIVATIONS = FOLDER + "component_activations_{}.json"
MATRIX = FOLDER + "correlation_matrix_{}.npz"
COMPARISON = FOLDER + "interaction_comparison_De_vs_Ut.csv"
LARGEST = 10  # the largest circuit that the study tried
LATE = range(15, LAYERS)  # "L15-L25", the layers it calls most sensitive
SITES = 2 * LAYERS  # the attention and the MLP of each layer


# --- patching --------------------------------------------------------------------------------------------------------


def patches(clone: Clone, experiment: str) -> pd.DataFrame:
    """One experiment, 234 components on 15 prompts: component, site, scenario, variant, delta_change, flipped …"""
    source, target = EXPERIMENTS[experiment]
    name = PATCHES.format(source, target)
    numbers = ["baseline_delta", "patched_delta", "delta_change", "action_flipped"]
    words = ["source_model", "target_model", "component", "scenario"]
    table = clone.csv(name, numbers, words, rows=COMPONENTS * PROMPTS)
    clone.expect(name, "source_model", table["source_model"], [source])
    clone.expect(name, "target_model", table["target_model"], [target])
    clone.expect(name, "scenario", table["scenario"], SCENARIOS)
    clone.expect(name, "component", table["component"], LABELS)
    # The file has no column for the variant; its rows stand in the order of the prompts.
    table["variant"] = table.groupby(["scenario", "component"]).cumcount()
    if table["variant"].max() >= VARIANTS:
        raise clone.changed(name, "a scenario and component stand there more than three times")
    # An unpatched answer does not depend on the patch: one value a prompt, or the rows stand in another order.
    unpatched = table.groupby(["scenario", "variant"])["baseline_delta"]
    if (unpatched.max() - unpatched.min()).max() > 1e-3:
        raise clone.changed(name, "baseline_delta differs within a prompt; the rows are expected in the study's order")
    # What follows from other columns must follow: a number changed by hand is noticed.
    if (table["patched_delta"] - table["baseline_delta"] - table["delta_change"]).abs().max() > 1e-6:
        raise clone.changed(name, "delta_change is not patched_delta less baseline_delta")
    changed_sign = (table["patched_delta"] > 0) != (table["baseline_delta"] > 0)
    if (changed_sign != (table["action_flipped"] == 1)).any():
        raise clone.changed(name, "action_flipped does not go with the signs of baseline_delta and patched_delta")
    return table.assign(site=sites(table["component"]))


def distinct_prompts(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of prompts that are no copies: [(scenario, variant)] whose patched values repeat no earlier prompt's."""
    by_prompt = table.pivot(index=["scenario", "variant"], columns="component", values="patched_delta")
    keep = by_prompt.index[~by_prompt.duplicated()]
    return table.set_index(["scenario", "variant"]).loc[keep].reset_index()


def sweep(clone: Clone, experiment: str) -> Iterator[Number]:
    """The numbers of one experiment."""
    table = patches(clone, experiment)
    change = table["delta_change"]
    by_site = change.abs().groupby(table["site"]).mean()
    by_component = change.groupby(table["component"]).mean()
    yield f"mean_{experiment}", change.mean(), ""
    yield f"max_{experiment}", change.abs().max(), ""
    yield f"leading_{experiment}", by_site.max(), str(by_site.idxmax())
    yield f"defecting_{experiment}", (by_component > 0).mean(), "share of the names with a mean above zero"
    layer = by_site.index.str.extract(r"L(\d+)_", expand=False).astype(int)
    yield f"late_{experiment}", by_site[layer.isin(LATE)].sum() / by_site.sum(), "share of all |effect| in L15 to L25"


def all_sweeps(clone: Clone) -> Iterator[Number]:
    """Counts over all experiments that are in the folder; Absent if none is."""
    tables = {}
    for experiment in EXPERIMENTS:
        try:
            tables[experiment] = patches(clone, experiment)
        except Absent as absent:
            missing = absent
    if not tables:
        raise missing
    together = pd.concat(tables, names=["experiment"]).reset_index("experiment")
    there = "" if len(tables) == len(EXPERIMENTS) else f"{len(tables)} of {len(EXPERIMENTS)} files: {', '.join(tables)}"
    yield "patch_rows", len(together), there
    yield "patch_flips", together["action_flipped"].sum(), there
    # A decision that hangs by a hair proves little either way.
    decided = together["baseline_delta"].abs() > 1
    yield "patch_decided", decided.sum(), there
    yield "patch_decided_flips", together.loc[decided, "action_flipped"].sum(), there
    heads = together[together["component"].isin(HEAD_LABELS)]
    values = heads.groupby(["experiment", "scenario", "variant", "site"])["patched_delta"].nunique()
    yield "patch_groups", len(values), there
    yield "patch_equal_heads", (values == 1).sum(), there
    # Eight equal heads are one patch, and so are two equal prompts.
    distinct = 0
    for table in tables.values():
        rows = distinct_prompts(table)
        distinct += len(rows.drop_duplicates(["scenario", "variant", "site", "patched_delta"]))
    yield "patch_distinct", distinct, there


def asymmetry(clone: Clone) -> Iterator[Number]:
    """The two directions between the moral models, component by component and scenario by scenario."""
    there, back = patches(clone, "de_ut"), patches(clone, "ut_de")
    one = there.groupby("component")["delta_change"].mean()
    other = back.groupby("component")["delta_change"].mean()
    yield "asymmetric", ((one - other).abs() > 0.01).mean(), "share of 234 names that differ by more than 0.01"
    yield "opposite", (one * other < 0).mean(), "share of 234 names with effects of opposite signs"
    # The components that the study names as most asymmetric.
    by_site = [table.groupby("site")["delta_change"].mean() for table in (there, back)]
    ranks = (by_site[0] - by_site[1]).abs().rank(ascending=False)
    for site in ("L25_ATTN", "L13_ATTN", "L6_MLP"):
        yield f"asymmetry_rank_{site}", ranks[site], f"of {len(ranks)}; the first: {ranks.idxmin()}"
    means = [table.groupby("scenario")["delta_change"].mean().abs() for table in (there, back)]
    effect = (means[0] + means[1]) / 2
    places = effect.rank(ascending=False)
    for scenario in SCENARIOS:
        yield f"scenario_{scenario}", effect[scenario], f"place {places[scenario]:.0f} of {len(effect)}"
    # One test for each attention layer and MLP, on fifteen prompts as the study did, and on the distinct ones.
    p = []
    for table in ((there, back), (distinct_prompts(there), distinct_prompts(back))):
        keys = ["site", "scenario", "variant"]
        both = [side.drop_duplicates(keys).set_index(keys)["delta_change"].unstack("site") for side in table]
        p.append(ttest_rel(both[0], both[1].reindex_like(both[0])).pvalue)  # [site]
    yield "significant", (p[0] < 0.05).sum(), f"of {SITES} layers' attentions and MLPs, fifteen prompts, not corrected"
    yield "significant_distinct", (p[1] < 0.05).sum(), f"of {SITES}, ten distinct prompts, not corrected"
    corrected = false_discovery_control(p[1])
    yield "significant_corrected", (corrected < 0.05).sum(), f"of {SITES}, ten distinct prompts, Benjamini-Hochberg"


def circuits(clone: Clone) -> Iterator[Number]:
    """Did any "minimal circuit" flip its prompt? One shorter than ten did; one of ten need not have."""
    flipped, count = [], 0
    for source, target in EXPERIMENTS.values():
        name = CIRCUITS.format(source, target)
        table = clone.csv(name, ["variant", "circuit_size"], ["scenario", "minimal_circuit"], rows=PROMPTS)
        try:
            members = [len(json.loads(circuit)) for circuit in table["minimal_circuit"]]
        except (ValueError, TypeError):
            raise clone.changed(name, "its column minimal_circuit does not hold JSON lists") from None
        if members != list(table["circuit_size"]) or max(members) > LARGEST:
            raise clone.changed(name, "circuit_size is not the number of members, or larger than ten")
        count += len(table)
        for row in table[table["circuit_size"] < LARGEST].itertuples():
            where = f"{NAMES[source]} to {NAMES[target]}, {row.scenario} v{row.variant:.0f}"
            flipped.append((int(row.circuit_size), where))
    yield "circuits", count, ""
    yield "circuit_flips", len(flipped), "; ".join(where for _, where in flipped)
    if flipped:
        yield "circuit_size", min(flipped)[0], min(flipped)[1]


# --- correlations ----------------------------------------------------------------------------------------------------


def activations(clone: Clone, model: str) -> pd.DataFrame:
    """[prompt, component]: the length of what each layer's attention and MLP put out, fifteen prompts."""
    name = ACTIVATIONS.format(model)
    records = clone.json(name)
    try:
        table = pd.DataFrame([record["component_activations"] for record in records]).astype(float)
        places = [(record["scenario"], int(record["variant"])) for record in records]
    except (KeyError, TypeError, ValueError):
        expected = "`scenario`, `variant` and `component_activations`"
        raise clone.changed(name, f"it is not a list of records with {expected}") from None
    if table.shape != (PROMPTS, SITES):
        found = f"it holds {table.shape[0]} x {table.shape[1]} values"
        raise clone.changed(name, f"{found}; {PROMPTS} x {SITES} are expected")
    if not np.isfinite(table).all(axis=None):
        raise clone.changed(name, "a record lacks a number that others have; finite numbers are expected everywhere")
    clone.expect(name, "scenario and variant", places, product(SCENARIOS, range(VARIANTS)))
    if not (table.nunique() > 1).any():
        raise clone.changed(name, "no component varies over the prompts; sizes that vary are expected")
    clone.expect(name, "component_activations", table.columns, sites(pd.Series(sorted(LABELS))))
    table.index = pd.MultiIndex.from_tuples(places, names=["scenario", "variant"])
    return table


def both_morals(clone: Clone) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The activations of the deontological and the utilitarian model, on the same prompts in the same order."""
    de, ut = activations(clone, "PT3_COREDe"), activations(clone, "PT3_COREUt")
    return de, ut.loc[de.index, de.columns]


def gaps(de: pd.DataFrame, ut: pd.DataFrame) -> pd.DataFrame:
    """[component, component]: |difference of r|, NaN on the diagonal."""
    gap = (interactions.correlations(de) - interactions.correlations(ut)).abs()
    return gap.mask(np.eye(len(gap), dtype=bool))


def counts(clone: Clone) -> Iterator[Number]:
    """How many pairs differ, which differ most, and how little the sizes vary."""
    de, ut = both_morals(clone)
    gap = gaps(de, ut)
    one, other = np.triu_indices(SITES, 1)
    sizes = pd.Series(gap.to_numpy()[one, other], [gap.columns[one], gap.columns[other]])
    for threshold in interactions.THRESHOLDS:
        yield f"pairs_{threshold * 10:02.0f}", (sizes > threshold).sum(), f"of {len(sizes)} pairs"
    ranks = sizes.rank(ascending=False, method="first")
    yield "top_pair", sizes.max(), " and ".join(sizes.idxmax())
    yield "l2_l9_gap", sizes["L2_MLP", "L9_MLP"], "L2_MLP and L9_MLP"
    yield "l2_l9_rank", ranks["L2_MLP", "L9_MLP"], f"of {len(sizes)} pairs"
    # The study once took L2_MLP for a switch: its best pair, and its place among the hubs.
    with_l2 = (sizes.index.get_level_values(0) == "L2_MLP") | (sizes.index.get_level_values(1) == "L2_MLP")
    yield "l2_best_rank", ranks[with_l2].min(), f"of {len(sizes)} pairs, the best of L2_MLP"
    hubs = gap.mean().rank(ascending=False)
    yield "l2_hub_rank", hubs["L2_MLP"], f"of {SITES} by mean |difference|; first {gap.mean().idxmax()}"
    yield "spread", (de.std() / de.mean()).median(), "deontological, median over components"
    yield "l1_values", ut["L1_MLP"].nunique(), "utilitarian, L1_MLP, over fifteen prompts"


def nulls(clone: Clone) -> Iterator[Number]:
    """How many pairs would differ by 0.3 if there were nothing to find: three answers, with their 95 % ranges."""
    de, ut = both_morals(clone)
    de_distinct, ut_distinct = interactions.distinct(de, ut)
    observed, drawn = swapped_copies(de, ut)
    yield from spread_of("swapped", drawn, "models swapped by distinct prompt, copies together, 500 draws")
    yield "swapped_p", (1 + (drawn >= observed).sum()) / (1 + len(drawn)), "of the count at 0.3"
    sizes = interactions.null_sizes(de_distinct, ut_distinct, seed=0)
    shares = interactions.share_table(sizes, len(de_distinct))
    row = shares.iloc[0]
    yield "contrasts_count", row["beyond"], f"pairs on {len(de_distinct)} distinct prompts"
    for name in ("null_low", "null", "null_high"):
        yield f"contrasts_{name}", row[name] * row["pairs"], "the chapter's null, all swaps of contrasts"
    yield "contrasts_p", row["p"], "of the count at 0.3"
    yield from spread_of("itself", redrawn(de_distinct), "deontological against itself, prompts drawn anew, 500 draws")


def swapped_copies(de: pd.DataFrame, ut: pd.DataFrame, draws: int = 500, seed: int = 0) -> tuple[int, np.ndarray]:
    """(pairs that differ by more than 0.3, the same count after swaps [draw]): the study's own fifteen rows.

    A swap exchanges the two models' values on a prompt, as deviations from each model's mean; a prompt and its copy
    are swapped together. With few prompts this rejects somewhat too often; `interactions.null_sizes` does not."""
    together = np.hstack([de, ut])  # [prompt, model x component]
    prompt = pd.factorize(pd.Series(map(tuple, together)))[0]  # [row]: copies get one number
    a, b = de.to_numpy() - de.to_numpy().mean(axis=0), ut.to_numpy() - ut.to_numpy().mean(axis=0)
    random = np.random.default_rng(seed).random((draws, prompt.max() + 1)) < 0.5  # [draw, distinct prompt]
    drawn = np.empty(draws, dtype=int)
    for k, swap in enumerate(random):
        chosen = swap[prompt][:, None]
        drawn[k] = beyond(np.where(chosen, b, a), np.where(chosen, a, b))
    return beyond(a, b), drawn


def redrawn(values: pd.DataFrame, draws: int = 500, seed: int = 0) -> np.ndarray:
    """[draw]: pairs that differ by more than 0.3 between two draws of prompts from one model."""
    random, table = np.random.default_rng(seed), values.to_numpy()
    drawn = np.empty(draws, dtype=int)
    for k in range(draws):
        one, other = random.integers(len(table), size=(2, len(table)))
        drawn[k] = beyond(table[one], table[other])
    return drawn


def beyond(a: np.ndarray, b: np.ndarray) -> int:
    """Pairs of columns whose correlations differ by more than 0.3; a column that does not vary has none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.abs(np.corrcoef(a.T) - np.corrcoef(b.T))
    return int((gap[np.triu_indices(len(gap), 1)] > interactions.THRESHOLDS[0]).sum())


def spread_of(name: str, drawn: np.ndarray, note: str) -> Iterator[Number]:
    """The middle of the drawn counts and the range that holds 95 % of them, as whole pairs."""
    low, middle, high = np.round(np.quantile(drawn, (0.025, 0.5, 0.975)))
    yield f"{name}_null", middle, note
    yield f"{name}_null_low", low, note
    yield f"{name}_null_high", high, note


def pathway(clone: Clone) -> Iterator[Number]:
    """Do changed correlations go with asymmetric patches? The study reports r = 0.67, without code or data."""
    strength = gaps(*both_morals(clone)).mean()  # [component]
    means = [patches(clone, name).groupby("site")["delta_change"].mean() for name in ("de_ut", "ut_de")]
    difference = (means[0] - means[1]).abs().reindex(strength.index)
    r, p = pearsonr(strength, difference)
    yield "pathway_r", r, f"over {len(strength)} components"
    yield "pathway_p", p, ""


def stored_matrices(clone: Clone) -> Iterator[Number]:
    """Do the study's stored correlations follow from its stored activations?"""
    largest = 0.0
    for model in ("PT3_COREDe", "PT3_COREUt"):
        shapes = {"correlation_matrix": (SITES, SITES), "component_names": (SITES,)}
        stored = clone.npz(MATRIX.format(model), shapes)
        names = [str(name) for name in stored["component_names"]]
        r = interactions.correlations(activations(clone, model)).loc[names, names]
        largest = max(largest, float(np.abs(r - stored["correlation_matrix"]).max(axis=None)))
    yield "matrix_error", largest, "largest difference from the stored matrices"


def stored_comparison(clone: Clone) -> Iterator[Number]:
    """The same counts from the study's own table of pairs."""
    numbers = ["Deontological_corr", "Utilitarian_corr", "abs_diff"]
    table = clone.csv(COMPARISON, numbers, ["component_1", "component_2"], rows=SITES * (SITES - 1) // 2)
    if table.duplicated(["component_1", "component_2"]).any():
        raise clone.changed(COMPARISON, "a pair stands there twice, and each is expected once")
    gap = (table["Deontological_corr"] - table["Utilitarian_corr"]).abs()
    if (gap - table["abs_diff"]).abs().max() > 1e-6:
        raise clone.changed(COMPARISON, "abs_diff is not the difference of the two correlations")
    for threshold in interactions.THRESHOLDS:
        yield f"stored_pairs_{threshold * 10:02.0f}", (gap > threshold).sum(), f"of {len(gap)} pairs"


GROUPS: list[Callable[[Clone], Iterator[Number]]] = [
    all_sweeps, asymmetry, circuits, counts, nulls, pathway, stored_matrices, stored_comparison,
]  # fmt: skip
"""All that this module rereads."""
GROUPS += [partial(sweep, experiment=name) for name in EXPERIMENTS]
