"""The numbers of `verdicts` that a table, a filter, a column and a reducer cannot name: short functions, each over the
tables that the chapters wrote. ``book/claims.yaml`` asks for them by name."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from rewired.profiles import Profile

QUANTITIES: dict[str, Callable[..., float]] = {}


class CannotTell(Exception):
    """Raised by a quantity that this profile cannot have; the message is the reason given to the reader."""


def quantity(function: Callable[..., float]) -> Callable[..., float]:
    """Decorator: a function ``(read, profile, **given)`` that ``named:`` in claims.yaml may ask for."""
    QUANTITIES[function.__name__] = function
    return function


def swept(profile: Profile) -> list[tuple[str, str]]:
    """The ordered pairs that this profile patches in full."""
    known = {"base", *profile.training.variants}
    return [pair for pair in profile.patching.pairs if set(pair) <= known]


WITHIN, BETWEEN = "within a variant", "between variants"


def _ends(row) -> tuple[str, str]:
    """The two variants that a row of distances compares."""
    return (row.a, row.b) if hasattr(row, "a") else tuple(row.pair.split(" – "))


@quantity
def pairs_apart(read, profile, table: str, column: str, where: str | None = None) -> float:
    """Share of pairs of variants whose mean distance exceeds the largest within either of the two (rule 7)."""
    rows = read(table) if where is None else read(table).query(where)
    within = rows[rows["kind"] == WITHIN]
    largest = within.groupby(within["a"] if "a" in within else within["pair"])[column].max()
    between = {}
    for row in rows[rows["kind"] == BETWEEN].itertuples():
        between.setdefault(frozenset(_ends(row)), []).append(rows.at[row.Index, column])
    return float(np.mean([np.mean(d) > max(largest[name] for name in ends) for ends, d in between.items()]))


@quantity
def least_gain(read, profile, column: str) -> float:
    """The least any variant's mean lies below the base's; negative when one lies above it."""
    mean = read("04_decisions").groupby("model")[column].mean()
    return float((mean["base"] - mean.drop("base")).min())


@quantity
def extremes(read, profile, column: str, lowest: str, highest: str) -> float:
    """Share of models in which one scenario has the lowest and another the highest mean of ``column``."""
    mean = read("04_decisions").groupby(["model", "scenario"])[column].mean().unstack()
    return float(((mean.idxmin(axis=1) == lowest) & (mean.idxmax(axis=1) == highest)).mean())


@quantity
def lead(read, profile, column: str, scenario: str, model: str) -> float:
    """How far a variant's mean lies below the lowest of the other variants in one scenario."""
    mean = read("04_decisions").query("scenario == @scenario and model != 'base'").groupby("model")[column].mean()
    if len(mean) < 2:
        raise CannotTell("this profile trains a single variant")
    return float(mean.drop(model).min() - mean[model])


@quantity
def run_range(read, profile, column: str, scenario: str) -> float:
    """Largest range of the runs of one variant in one scenario."""
    runs = read("04_decisions").query("scenario == @scenario and model != 'base'")
    runs = runs.groupby(["model", "seed"])[column].mean().groupby("model")
    return float((runs.max() - runs.min()).max())


@quantity
def own_lowest(read, profile, column: str) -> float:
    """Share of games and moral rewards in which the variant trained on the reward has the lowest such regret."""
    table, own = read("05_behaviour_regret"), []
    for reward in ("deontological", "utilitarian"):
        mean = table[table["reward"] == reward].groupby(["game", "model"])[column].mean().unstack()
        own.append(mean[reward] <= mean.min(axis=1) + 1e-9)
    return float(pd.concat(own).mean())


@quantity
def other_words(read, profile, signed: bool) -> float:
    """Change of p_defect of the two moral variants from the structured wording to the others. ``signed``: size of the
    mean change over wordings and states; otherwise the mean size of the change in the worst wording and variant."""
    rows = read("05_behaviour").query("factor == 'wording' and model in ('deontological', 'utilitarian')")
    wide = rows.pivot_table(index=["model", "seed", "state"], columns="level", values="p_defect")
    change = wide.drop(columns="structured").sub(wide["structured"], axis=0)
    return float(abs(change.mean(axis=None))) if signed else float(change.abs().groupby("model").mean().max(axis=None))


def _by_depth(read, position: str) -> pd.DataFrame:
    """Mean trajectories: (model, scenario) x depth."""
    rows = read("06_logit_lens").query("position == @position")
    return rows.groupby(["model", "scenario", "depth"], sort=False)["delta"].mean().unstack("depth")


@quantity
def u_share(read, profile, position: str) -> float:
    """Share of models and scenarios whose mean trajectory leaves where it begins and comes back, down or up, each way
    by a fifth of its range."""
    mean = _by_depth(read, position)
    first, last, low, high = mean.iloc[:, 0], mean.iloc[:, -1], mean.min(axis=1), mean.max(axis=1)
    bend = np.maximum(np.minimum(first, last) - low, high - np.maximum(first, last))
    return float((bend > 0.2 * (high - low)).mean())


@quantity
def final_gap(read, profile, position: str) -> float:
    """Largest distance of two models' (base included) mean final values of the lens, over scenarios (logits)."""
    last = _by_depth(read, position).iloc[:, -1].unstack("scenario")
    return float((last.max() - last.min()).max())


@quantity
def settles(read, profile, original: bool) -> float:
    """Where trajectories stabilize, as a share of the depth (median over prompts and models). ``original``: at the end
    of the prompt, by the last step of a fifth of the largest step; otherwise chapter 6's definition."""
    paths = read("06_logit_lens")
    last = int(paths["depth"].max())
    if not original:
        return float(read("06_logit_lens_stabilization")["stabilizes"].median() / last)
    rows = paths.query("position == 'prompt_end'")
    steps = rows.pivot_table(index=["model", "seed", "prompt_id"], columns="depth", values="delta").diff(axis=1)
    large = (steps.abs().iloc[:, 1:].gt(0.2 * steps.abs().max(axis=1), axis=0)).to_numpy()
    return float(np.median(large.shape[1] - large[:, ::-1].argmax(axis=1)) / last)


def _votes(read) -> pd.DataFrame:
    """component x model: mean votes over scenarios and runs, the embedding left out."""
    rows = read("07_attribution").query("kind != 'embed'")
    return rows.groupby(["component", "model"])["contribution"].mean().unstack("model")


def _loudest(votes: pd.Series) -> tuple[list[str], float]:
    """The two loudest components, in order of layers, and how many times as loud the second is as the third."""
    ranked = votes.sort_values(key=abs, ascending=False)
    return sorted(ranked.index[:2]), float(abs(ranked.iloc[1] / ranked.iloc[2]))


@quantity
def leading_pair(read, profile, typical: bool = False) -> float:
    """How many times as loud as the third component (``typical``: as the median one) the second loudest is, if the two
    loudest are adjacent MLPs of opposite sign; 0 if they are not. The least over the models."""
    votes, found = _votes(read), []
    for model in votes:
        (a, b), times = _loudest(votes[model])
        layers = [int(name[1:].partition("_")[0]) for name in (a, b) if name.endswith("MLP")]
        adjacent = len(layers) == 2 and abs(layers[0] - layers[1]) == 1
        if typical:
            times = float(votes.loc[[a, b], model].abs().min() / votes[model].abs().median())
        found.append(times if adjacent and votes.at[a, model] * votes.at[b, model] < 0 else 0.0)
    return min(found)


@quantity
def same_leaders(read, profile, members: list[str] | None = None) -> float:
    """Share of models whose two loudest components are ``members``; without them, of variants that share the base's."""
    votes = _votes(read)
    leaders = {model: _loudest(votes[model])[0] for model in votes}
    wanted = sorted(members) if members else leaders.pop("base")
    return float(np.mean([found == wanted for found in leaders.values()]))


def _hawk(read, column: str) -> pd.DataFrame:
    """seed x model: change of the component that votes most for defection in the strategic model."""
    hawk = _votes(read)["strategic"].idxmax()
    rows = read("07_attribution_change")
    rows = rows[(rows["component"] == hawk) & rows["model"].isin(["deontological", "utilitarian"])]
    return rows.pivot_table(index="seed", columns="model", values=column)


@quantity
def hawk_rises(read, profile, column: str, runs: bool = False) -> float:
    """Change of the strategic model's most pro-defection component in the moral variants: the least of their means;
    with ``runs``, the largest range of one variant's runs."""
    change = _hawk(read, column)
    return float((change.max() - change.min()).max() if runs else change.mean().min())


@quantity
def rank_of_pair(read, profile, table: str, column: str, pair: str) -> float:
    """The place of a pair of variants among all, 1 for the smallest mean distance."""
    rows = read(table)
    mean = rows[rows["kind"] == BETWEEN].groupby("pair")[column].mean()
    if len(mean) < 2:
        raise CannotTell("this profile has a single pair of variants")
    return float(mean.rank()[pair])


@quantity
def circuit_flips(read, profile, greedy: bool, most: int = 10) -> float:
    """Share of decisions flipped by ``most`` components or fewer: chosen greedily, or the strongest in fixed order."""
    if greedy:
        rows = read("pairs/circuits")
        rows = rows[rows["step"] <= most]
    else:
        rows = read("pairs/sets")
        rows = rows[rows["set"].str.startswith("top-") & (rows["size"] <= most)]
    rows = rows[(rows["delta_source"] > 0) != (rows["delta_target"] > 0)]  # elsewhere there is nothing to flip to
    if rows.empty:
        raise CannotTell("source and target decide alike on every prompt")
    return float(rows.groupby(["source", "target", "prompt_id"])["flip"].max().astype(float).mean())


@quantity
def opposite(read, profile, original: bool) -> float:
    """Share of components of the moral pair with opposite mean effects there and back; ``original``: whose effects
    differ by more than a hundredth of a logit."""
    rows = read("08_patching_directions").query("source == 'deontological' and target == 'utilitarian'")
    return float(((rows["effect"] - rows["back"]).abs() > 0.01).mean() if original else rows["opposite"].mean())


def _layer_sizes(read, profile, original: bool) -> pd.DataFrame:
    """(source, target) x layer: mean |effect|, of single heads and MLPs at all positions, or (``original``) of whole
    layers at one position."""
    rows = read("08_patching_layers" if original else "08_patching")
    rows = rows[rows["kind"].isin(["attn", "mlp"] if original else ["head", "mlp"])]
    chosen = [pair in swept(profile) for pair in zip(rows["source"], rows["target"], strict=True)]
    rows = rows[chosen].assign(size=rows["effect"].abs())
    return rows.groupby(["source", "target", "layer"])["size"].mean().unstack("layer")


@quantity
def deep(read, profile, original: bool) -> float:
    """Depth of the most sensitive layer, 0 for the first and 1 for the last; mean over the patched pairs."""
    sizes = _layer_sizes(read, profile, original)
    return float((sizes.idxmax(axis=1) / sizes.columns.max()).mean())


@quantity
def early_sites(read, profile, original: bool) -> float:
    """Depth of the most sensitive layer from strategic into deontological over a third, and into utilitarian over two
    thirds; the larger of the two. Below 1, both lie where the study saw them."""
    sizes = _layer_sizes(read, profile, original)
    depth = sizes.idxmax(axis=1)["strategic"] / sizes.columns.max()
    return float(max(depth["deontological"] * 3, depth["utilitarian"] * 1.5))


@quantity
def among_two(read, profile, scenarios: list[str], runs: bool) -> float:
    """How many of ``scenarios`` are among the two in which the strategic model's patches act most differently in the
    two moral ones. ``runs``: by whole layers, mean over all seeds; otherwise component by component, one run."""
    if runs:
        rows = read("08_patching_layers").query("source == 'strategic' and target in ('deontological', 'utilitarian')")
        rows = rows[rows["kind"].isin(["attn", "mlp"])]
        keys = ["scenario", "component", "seed", "target"]
        wide = rows.groupby(keys)["effect"].mean().unstack("target")
        size = (wide["deontological"] - wide["utilitarian"]).abs().groupby("scenario").mean()
    else:
        rows = read("08_patching_morals")
        size = rows["difference"].abs().groupby(rows["scenario"]).mean()
    return float(len(set(size.nlargest(2).index) & set(scenarios)))


@quantity
def significant(read, profile, column: str) -> float:
    """Share of components and scenarios with p below 0.05 between the two moral models."""
    rows = read("08_patching_morals")
    if {*rows["one"], *rows["other"]} != {"deontological", "utilitarian"}:
        raise CannotTell("this profile does not patch both moral variants from the same source")
    return float((rows[column] < 0.05).mean())


@quantity
def ties(read, profile, table: str, column: str, threshold: float, measure: str | None = None) -> float:
    """``column`` of chapter 10's counts between the two moral models, at one threshold."""
    rows = read(table)
    rows = rows[(rows["a"] == "deontological") & (rows["b"] == "utilitarian")]
    rows = rows[np.isclose(rows["threshold"].astype(float), threshold)]
    rows = rows if measure is None else rows[rows["measure"] == measure]
    return float(rows[column].item())


@quantity
def best_tie(read, profile, component: str, measure: str) -> float:
    """Rank of the component's most changed tie between the two moral models, as a share of all ties."""
    rows = read("10_interactions").query("measure == @measure and a == 'deontological' and b == 'utilitarian'")
    own = rows[(rows["one"] == component) | (rows["other"] == component)]
    return float(own["rank"].min() / rows["rank"].notna().sum())


@quantity
def hub_rank(read, profile, component: str) -> float:
    """Place of the component among hubs by votes between the two moral models, as a share: near 0 for the first."""
    rows = read("10_interactions_hubs").query("measure == 'vote' and a == 'deontological' and b == 'utilitarian'")
    rank = rows.set_index("component")["strength"].rank(ascending=False)
    return float((rank[component] - 1) / (rank.notna().sum() - 1))


@quantity
def predicts_asymmetry(read, profile, seeds: str) -> float:
    """Correlation over components of changed ties with patching asymmetry: in the ``first`` seed, or the ``mean`` over
    all of them."""
    rows = read("10_interactions_asymmetry")
    found = [part["strength"].corr(part["asymmetry"]) for _, part in rows.groupby("seed")]
    return float(found[0] if seeds == "first" else np.mean(found))


@quantity
def chance_correlation(read, profile, level: float = 0.95) -> float:
    """The size below which a correlation over as many components stays with probability ``level``, by chance."""
    from scipy import stats

    n = read("10_interactions_asymmetry")["component"].nunique()
    t = stats.t.ppf((1 + level) / 2, n - 2)
    return float(t / np.sqrt(n - 2 + t**2))


@quantity
def wires(read, profile, chance: bool = False) -> float:
    """Correlation over pairs of components of |difference of r| with |interaction| (means over prompts and runs);
    ``chance``: what it reaches in one case of twenty when whole components are relabelled (Mantel)."""
    causal = read("10_interactions_causal").groupby(["one", "other"])["interaction"].mean().abs().rename("interaction")
    ties = read("10_interactions").query("measure == 'vote' and a == 'deontological' and b == 'utilitarian'")
    both = causal.reset_index().merge(ties, on=["one", "other"])
    names = sorted({*both["one"], *both["other"]})
    if len(names) < 4 or both["difference"].isna().any():
        raise CannotTell("too few components vary for a comparison of changed correlations with interactions")
    at = {name: k for k, name in enumerate(names)}
    i, j = both["one"].map(at).to_numpy(), both["other"].map(at).to_numpy()
    x, y = (np.zeros((len(names), len(names))) for _ in range(2))
    x[i, j] = x[j, i] = both["difference"].abs()
    y[i, j] = y[j, i] = both["interaction"]
    if not chance:
        return float(np.corrcoef(x[i, j], y[i, j])[0, 1])
    orders = map(np.random.default_rng(0).permutation, [len(names)] * 2000)
    return float(np.quantile([np.corrcoef(x[p[i], p[j]], y[i, j])[0, 1] for p in orders], 0.95))
