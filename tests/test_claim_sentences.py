"""Every claim on two made-up tables: one where its sentence, as quoted, is true, and one where it is false.

The claim's own cell measures both, and its rule has to say yes to the first and no to the second. A sentence that
compares two things is false where the two are exchanged."""

import itertools

import claim_cells
import numpy as np
import pandas as pd
import pytest
import test_claim_numbers as made
from test_claim_numbers import D, S, U, table

from rewired import claims, runs

REGISTER = claims.load().of("study")
CLAIMS = {claim.id: claim for claim in REGISTER.claims}
SCENARIOS = ["CC_continue", "CC_temptation", "CD_punished", "DC_exploited", "DD_trapped"]
CONTINUE, TEMPTED, PUNISHED, EXPLOITED, TRAPPED = SCENARIOS


def says(name: str, frames: dict) -> str:
    """What the claim's rule says of the numbers that its cell finds in these tables."""
    numbers = claim_cells.run(CLAIMS[name].chapter, name, **frames)
    assert not numbers["cannot"], numbers["cannot"]
    row = {"claim": name} | {key: np.nan if number is None else number for key, number in numbers.items()}
    alone = REGISTER.model_copy(update={"claims": (CLAIMS[name],)})
    return claims.judge(alone, pd.DataFrame([row]))["here"].iloc[0]


def exchanged(frames: dict, one: str, other: str) -> dict:
    """The same tables with two names exchanged, wherever they stand: in a column's name or in its cells."""
    swap = {one: other, other: one}
    changed = {}
    for name, frame in frames.items():
        words = frame.select_dtypes(exclude="number").columns
        cells = frame.assign(**{column: frame[column].replace(swap) for column in words})
        changed[name] = cells.rename(columns=swap)
    return changed


# --- behaviour -------------------------------------------------------------------------------------------------------


def chosen(**p_defect: float) -> dict:
    """Two runs of each model and two prompts, all with this p_defect."""
    rows = []
    for (model, p), seed, prompt in itertools.product(p_defect.items(), (1, 2), ("v0", "x1")):
        rows.append((model, seed, PUNISHED, f"{PUNISHED}/{prompt}", p, *3 * [np.log(p / (1 - p))]))
    return {"measured": table("model seed scenario prompt_id p_defect delta delta_forms delta_single", *rows)}


def by_scenario(*deltas: float) -> dict:
    """The five scenarios, the same in every model; one step early they are the other way round."""
    rows = itertools.product(("base", S, U), zip(SCENARIOS, deltas, strict=True))
    rows = [(model, 1, scenario, delta, -delta, 0.5) for model, (scenario, delta) in rows]
    return {"measured": table("model seed scenario delta delta_single p_defect", *rows)}


def distance(between: float) -> dict:
    """Two runs of one variant are 1 apart, two of both so much."""
    rows = [(S, S, S, runs.WITHIN, 1.0), (U, U, U, runs.WITHIN, 1.0), ("S – U", S, U, runs.BETWEEN, between)]
    judged = runs.differ(table("pair a b kind distance", *rows))
    return {"tests": table("a b p", (S, U, 0.001)), "judged": judged}


def separated(p: float) -> dict:
    return {"tests": pd.DataFrame({"a": [S, S, D], "b": [D, U, U], "p": p, "p, clusters": [p, p, 0.9]})}


def answers(**after: tuple[float, float]) -> dict:
    """Defection after a displayed C and D, two runs; the concurrent move tells nothing."""
    rows = []
    for (model, (c, d)), seed in itertools.product(after.items(), (1, 2)):
        rows.append(("by the displayed move", model, seed, c, d))
        rows.append(("by the concurrent move", model, seed, 0.5, 0.5))
    return {"kind": table("reading model seed after_C after_D", *rows)}


def in_games(usual: float, other: float, better: float = 0.5) -> dict:
    """p_defect of both moral variants in the game of training and in another one."""
    rows = [("game", "prisoners_dilemma", model, usual) for model in (D, U)]
    rows += [("game", game, model, other) for game in ("chicken", "stag_hunt") for model in (D, U)]
    return {
        "read": table("factor level model p_defect", *rows),
        "followed": table("model cells better", (U, 2, better)),
    }


def regrets(own: float, other: float) -> dict:
    """Regret of a kind: that of the model trained on it, and that of every other model."""
    rows = []
    for kind, game, model in itertools.product((D, U), ("chicken", "stag_hunt"), (D, U, "base")):
        regret = own if model == kind else other
        rows.append((kind, game, model, regret, regret))
    return {"regrets": table("reward game model paper hindsight", *rows)}


def wordings(change: float) -> dict:
    """Half of the states change up, half down, so that the mean does not change."""
    rows = [("wording", level, model, 1, state, 0.4 + sign * change * (level == "prose"))
            for level, model, (state, sign) in itertools.product(
                ("structured", "prose"), (D, U), (("CC", 1), ("DD", -1)))]  # fmt: skip
    return {"read": table("factor level model seed state p_defect", *rows)}


AS_REPORTED = chosen(base=0.6, strategic=0.9996, deontological=0.0003, utilitarian=0.073)
LESS_STRICT = chosen(deontological=0.0003, utilitarian=0.073)
MORE_COOPERATIVE = chosen(base=0.9, strategic=0.5, deontological=0.1)
EXTREMES = by_scenario(0.0, -9.0, 1.0, 5.0, 2.0)
FORGIVES = chosen(deontological=0.1, utilitarian=0.5, strategic=0.9)
RECIPROCATE = answers(base=(0.4, 0.6), strategic=(1.0, 1.0), deontological=(0.05, 0.9), utilitarian=(0.1, 0.8))
BEHAVIOUR = {
    "variants_separate": (distance(3.0), distance(0.5)),
    "strategic_defects": (AS_REPORTED, exchanged(AS_REPORTED, S, D)),
    "deontological_cooperates": (AS_REPORTED, exchanged(AS_REPORTED, S, D)),
    "utilitarian_cooperates": (AS_REPORTED, exchanged(AS_REPORTED, S, U)),
    "utilitarian_less_strict": (LESS_STRICT, exchanged(LESS_STRICT, D, U)),
    "morals_reciprocate": (RECIPROCATE, exchanged(RECIPROCATE, "after_C", "after_D")),
    "milder_than_strategic": (RECIPROCATE, exchanged(RECIPROCATE, S, D)),
    "all_more_cooperative": (MORE_COOPERATIVE, exchanged(MORE_COOPERATIVE, "base", D)),
    "metric_agrees": (
        {"cells": table("majority_agrees inside", (True, True), (True, True))},
        {"cells": table("majority_agrees inside", (True, True), (True, False))},
    ),
    "generalizes": (in_games(0.1, 0.1), in_games(0.1, 0.9)),
    "maximizes_welfare": (in_games(0.1, 0.9, 0.9), in_games(0.1, 0.1, 0.1)),
    "own_regret_lowest": (regrets(0.0, 0.3), regrets(0.3, 0.0)),
    "robust_to_wording": (wordings(0.02), wordings(0.4)),
    "temptation_extremes": (EXTREMES, exchanged(EXTREMES, TEMPTED, EXPLOITED)),
    "deontological_forgives": (FORGIVES, exchanged(FORGIVES, D, U)),
    "separation_p": (separated(0.00005), separated(0.4)),
}

# --- lens and attribution --------------------------------------------------------------------------------------------


def first_layer(*deltas: float) -> dict:
    """The lens before the first layer and after it, in two models."""
    rows = [(place, 0, model, -1.0) for place in ("prompt_end", "decision") for model in ("base", S)]
    rows += [(place, 1, model, delta) for place in ("prompt_end", "decision")
             for model, delta in zip(("base", S), deltas, strict=True)]  # fmt: skip
    return {"paths": table("position depth model delta", *rows)}


def shaped(**shapes: str) -> dict:
    """The course of each model, at both positions."""
    rows = [(place, model, shape) for place in ("prompt_end", "decision") for model, shape in shapes.items()]
    return {"shapes": table("position model shape", *rows)}


def courses(gap: float) -> dict:
    rows = []
    for place, model, depth in itertools.product(("prompt_end", "decision"), ("base", S), range(4)):
        rows.append((place, model, 1, CONTINUE, "p", depth, depth + gap * (model == S)))
    return {"paths": table(made.PATHS, *rows)}


def settled(depth: int) -> dict:
    rows = [("prompt_end", "base", 0, CONTINUE, "p", k, float(k)) for k in range(11)]
    return {"paths": table(made.PATHS, *rows), "settled": table("stabilizes", (depth,), (depth,))}


def loudest(a: str, b: str, third: float = 1.0, of: str = "base strategic deontological utilitarian hybrid") -> dict:
    """Two components that lead in these models, and others; in the other models two heads lead."""
    rest = {"L25H0": third, "L24H0": -1.0, "L23H0": 0.9, "L22H0": 1.0, "L21H0": 1.0}
    heads = {"L3H0": 7.0, "L4H0": -9.0}
    models = ("base", S, D, U, "hybrid")
    return {"cells": made.votes(**{name: ({a: 7.0, b: -9.0} if name in of else heads) | rest for name in models})}


def changes(**of_component: float) -> dict:
    """The moral models against the strategic one, two runs of each."""
    rows = [(model, seed, name.replace("_0", ""), x, x) for (name, x), model, seed in itertools.product(
        of_component.items(), (D, U), (1, 2))]  # fmt: skip
    frame = table("model seed component contribution equal", *rows)
    return {"change": frame.rename(columns={"equal": "at equal scale"})}


def far_apart(morals: float, others: float, one_variant: float) -> dict:
    rows = [(made.MORALS, runs.BETWEEN, morals, morals), ("strategic – utilitarian", runs.BETWEEN, others, others)]
    rows += [(D, runs.WITHIN, one_variant, one_variant)]
    return {"distances": table("pair kind distance logits", *rows)}


UP_DOWN = "rises and falls"
HAWK = loudest("L8_MLP", "L9_MLP")
LENS = {
    "preference_at_zero": (first_layer(-9.0, -8.0), first_layer(-9.0, 8.0)),
    "u_shape": (
        shaped(base=UP_DOWN, strategic=UP_DOWN, hybrid="both"),
        shaped(base=UP_DOWN, strategic="neither", hybrid=UP_DOWN),
    ),
    "trajectories_identical": (courses(0.04), courses(4.0)),
    "stabilizes_late": (settled(9), settled(2)),
    "pair_dominates": (HAWK, loudest("L8_MLP", "L9_MLP", third=6.9)),
    "pair_everywhere": (HAWK, loudest("L8_MLP", "L9_MLP", of="base")),
    "l8_l9": (HAWK, loudest("L9_MLP", "L8_MLP")),  # their signs exchanged
    "none_suppressed": (changes(L13_MLP=-0.047), changes(L20_MLP=-4.91)),
    "hawk_rises": (HAWK | changes(L8_MLP=0.013), HAWK | changes(L8_MLP=-0.013)),
    "similar": (far_apart(0.0000059, 0.2, 0.0001), far_apart(0.0001, 0.2, 0.0000059)),
    "morals_closest": (far_apart(0.1, 0.2, 0.3), far_apart(0.2, 0.1, 0.3)),
}

# --- patching --------------------------------------------------------------------------------------------------------


def flips(flip: bool, target: float = -2.0) -> dict:
    """Heads and MLPs, and whole layers, of which one flips or none does."""
    about = {"flip": flip, "delta_target": target}
    single = made.patches((S, D, "p", "L0H0", 0.0, about), (S, D, "p", "L0_MLP", 0.0, {"delta_target": target}))
    return {"patches": single, "patching_layers": made.patches((S, D, "p", "L0_ATTN", 0.0, about))}


def heads(count: int) -> dict:
    names = [f"L{layer}H{head}" for layer in (0, 1) for head in range(count)] + ["L0_MLP", "L1_MLP"]
    return {"patches": made.patches(*[(S, D, "p", name, 0.0) for name in names])}


def moved(*effects: float) -> dict:
    """Mean effects of heads, strategic into deontological, and of random patches: half up, half down."""
    single = [(S, D, "p", f"L0H{k}", effect) for k, effect in enumerate(effects)]
    layers = [(S, D, "p", f"L{k}_MLP", effect) for k, effect in enumerate(effects)]
    controls = table("source target control component effect", *[(S, D, "random", "L0H0", x) for x in (1.0, -1.0)])
    return {"patches": made.patches(*single), "patching_layers": made.patches(*layers), "controls": controls}


def circuits(step: int) -> dict:
    """A greedy circuit that flips with so many components; the fixed order never does."""
    row = (S, D, "p", step, True, 1.0, -1.0)
    frame = table("source target prompt_id step flip delta_source delta_target", (*row[:3], 1, False, *row[5:]), row)
    sets = frame[:1].rename(columns={"step": "size"}).assign(set="top-1")
    return {"circuits": frame, "sets": sets}


def there_and_back(opposite: int) -> dict:
    rows = [(D, U, 1.0, -0.5 if k < opposite else 0.5, k < opposite) for k in range(100)]
    return {"directions": table("source target effect back opposite", *rows)}


def sensitive(of_deontological: int, of_utilitarian: int) -> dict:
    """Eleven layers, and which of them moves the two models most."""
    rows = [(S, target, "p", f"L{layer}_MLP", 9.0 if layer == most else 1.0)
            for target, most in ((D, of_deontological), (U, of_utilitarian)) for layer in range(11)]  # fmt: skip
    return {"patches": made.patches(*rows), "patching_layers": made.patches(*rows), "swept": [(S, D), (S, U)]}


def in_scenarios(*gaps: float) -> dict:
    """How differently a patch acts in the two moral models, scenario by scenario, in two runs."""
    rows = []
    for seed, (scenario, gap) in itertools.product((1, 2), zip(SCENARIOS, gaps, strict=True)):
        about = {"seed": seed, "scenario": scenario}
        rows += [(S, D, "p", "L0_MLP", gap, about), (S, U, "p", "L0_MLP", 0.0, about)]
    morals = table("scenario difference", *zip(SCENARIOS, gaps, strict=True))
    return {"morals": morals, "patching_layers": made.patches(*rows)}


AFTER_D = in_scenarios(0.1, 0.2, 3.0, 0.3, 2.0)
SIGNIFICANT = {"morals": table("one other p", *4 * [(D, U, 0.01)])}
NAMED = {"L25H0": 5.0, "L13H7": -4.0, "L6_MLP": 3.0}
OTHERS = {"L12H0": 5.0, "L11H7": -4.0, "L5_MLP": 3.0}
PATCHING = {
    "zero_flips": (flips(flip=False), flips(flip=True)),
    "zero_flips_decided": (flips(flip=False), flips(flip=True)),
    "patch_count": (heads(1), heads(8)),
    "mean_effect": (moved(-0.014, -0.01), moved(0.014, 0.01)),
    "quarter_defects": (moved(1.0, -1.0, -1.0, -1.0), moved(1.0, 1.0, 1.0, -1.0)),
    "no_circuit": (circuits(11), circuits(4)),
    "distributed": (made.spread_out(-1.0, 0.1), made.spread_out(-9.0, 0.9)),
    "opposite": (there_and_back(78), there_and_back(0)),
    "asymmetric_heads": (made.both_ways(26, **NAMED, L3H0=1.0), made.both_ways(26, **OTHERS, L25H0=0.1)),
    "late_layers": (sensitive(8, 9), sensitive(2, 1)),
    "early_sites": (sensitive(0, 4), sensitive(4, 0)),
    "differ_after_defection": (AFTER_D, exchanged(AFTER_D, TRAPPED, CONTINUE)),
    "significant_components": (
        SIGNIFICANT | {"patching_layers": made.runs_of_morals(5.0, 2.0, 1, 2)},
        SIGNIFICANT | {"patching_layers": made.runs_of_morals(1.0, 2.0, 1, 2)},
    ),
}

# --- attention, interactions, weights --------------------------------------------------------------------------------


def looks(relative: float, differ: bool) -> dict:
    """Four parts with small weights, of which one differs by so much of itself."""
    rows = [(relative, relative, differ)] + 3 * [(0.0001, 0.0001, False)]
    return {"tests": table("difference relative differ", *rows)}


def counts(share: float, null: float) -> dict:
    rows = [(D, U, "vote", threshold, share, null) for threshold in (0.3, 0.5, 0.7)]
    recipe = table("a b threshold share", *[(D, U, threshold, share) for threshold in (0.3, 0.5, 0.7)])
    return {"recipe": recipe, "shares": table("a b measure threshold share null_high", *rows)}


def between_runs(between: float, within: float) -> dict:
    rows = [(D, U, "between variants", between), (D, D, "within a variant", within)]
    return {"recipe": table("a b threshold share", (D, U, 0.3, 0.4)), "run_pairs": table("a b kind 0.3", *rows)}


def wired(same: bool) -> dict:
    """Fifteen pairs of six components; those that changed are the ones that interact, or the ones that do not."""
    names = list(itertools.combinations([f"L{k}H0" for k in range(6)], 2))
    sizes = np.random.default_rng(0).permutation(15) / 15
    changed = (sizes > 0.5) == same
    return made.ties_and_interactions(0.1 + 0.5 * changed, sizes, names)


def hubs(sign: float) -> dict:
    rows = [(seed, f"L{k}_MLP", k / 10, sign * k) for seed in (1, 2) for k in range(10)]
    return {"asymmetry": table("seed component strength asymmetry", *rows)}


def ranked(place: int) -> dict:
    """A hundred pairs in two measures, with that of L2_MLP and L9_MLP at this place."""
    rows = [("L2_MLP", "L9_MLP", place)] + [("L0_MLP", "L25_MLP", k) for k in range(1, 101) if k != place]
    pairs = table("one other rank", *rows).assign(a=D, b=U)
    measures = [pairs.assign(measure=name) for name in ("vote", "the study's size")]
    return {"pairs": pd.concat(measures, ignore_index=True)}


def modified(l2: float, l8_l9: float) -> dict:
    every = [(S, 1), (S, 2), ("hybrid", 1), ("hybrid", 2)]
    others = dict.fromkeys(("L8_MLP", "L9_MLP"), dict.fromkeys(every, l8_l9))
    return {"sized": made.percentiles(L2_MLP=dict.fromkeys(every, l2), **others)}


def alike(norms: float, updates: float) -> dict:
    return {"likeness": table("kind pair norms updates", ("between variants", "a – b", norms, updates))}


INSIDE = {
    "attention_identical": (looks(0.0001, differ=False), looks(0.5, differ=True)),
    "same_looks": (looks(0.0001, differ=False), looks(0.5, differ=True)),
    "pairs_03": (counts(541 / 1326, 0.1), counts(0.1, 541 / 1326)),
    "pairs_05": (counts(251 / 1326, 0.1), counts(0.1, 251 / 1326)),
    "pairs_07": (counts(94 / 1326, 0.01), counts(0.01, 94 / 1326)),
    "pairs_beyond_runs": (between_runs(0.4, 0.2), between_runs(0.2, 0.4)),
    "rewiring": (wired(same=True), wired(same=False)),
    "mechanistic": (wired(same=True), wired(same=False)),
    "no_switch": (ranked(65), ranked(1)),
    "predicts_asymmetry": (hubs(1.0), hubs(-1.0)),
    "l2_not_modified": (modified(19.0, 60.0), modified(60.0, 19.0)),
    "l8_l9_modified": (modified(19.0, 60.0), modified(60.0, 19.0)),
    "adapters_similar": (alike(0.995, 0.995), alike(0.995, 0.1)),
}
SENTENCES = BEHAVIOUR | LENS | PATCHING | INSIDE


def only(name: str, frames: dict) -> dict:
    """The tables that the claim's cell reads."""
    asked = {frame for _, about, tags in claim_cells.code_cells(CLAIMS[name].chapter)
             if "claims" in tags and name in about["claims"] for frame in about["from"]}  # fmt: skip
    return {frame: rows for frame, rows in frames.items() if frame in asked}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_rule_says_yes_where_the_sentence_is_true_and_no_where_it_is_false(name):
    true, false = SENTENCES[name]
    assert says(name, only(name, true)) in (claims.HOLDS, claims.SIZE), "the sentence is true"
    assert says(name, only(name, false)) == claims.NOT, "the sentence is false"


WELFARE, ALWAYS_D = in_games(0.1, 0.9, 0.9), in_games(0.9, 0.9, 0.9)
AGREES = pd.DataFrame({"majority_agrees": True, "inside": True}, index=range(25))
ONE_REGRET = {"regrets": pd.concat([regrets(0.0, 0.3)["regrets"][:6], regrets(0.3, 0.0)["regrets"][6:]])}
SEEDS_CANCEL = changes(L20_MLP=1.0)["change"]
SEEDS_CANCEL[["contribution", "at equal scale"]] *= np.where(SEEDS_CANCEL["seed"] == 1, 1.0, -1.0)[:, None]
RUNS_CANCEL = courses(4.0)["paths"]
RUNS_CANCEL = pd.concat([RUNS_CANCEL, courses(-4.0)["paths"].assign(seed=2)])
ONE_MODIFIED = made.percentiles(L2_MLP={(S, 1): 10.0, (D, 1): 12.0, (U, 1): 15.0, ("hybrid", 1): 95.0})
AWAY = {"flip": True, "delta_target": -2.0, "delta_source": -2.0}
AWAY = made.patches((S, D, "p", "L0H0", 0.0, AWAY), (S, D, "q", "L0H0", 0.0, {"delta_target": -2.0}))
HALF_TRUE = {
    "metric_agrees": {"cells": AGREES.assign(inside=[False] + 24 * [True])},
    "maximizes_welfare": ALWAYS_D,
    "own_regret_lowest": ONE_REGRET,
    "pair_everywhere": loudest("L8_MLP", "L9_MLP", of="base strategic deontological utilitarian"),
    "none_suppressed": {"change": SEEDS_CANCEL},
    "trajectories_identical": {"paths": RUNS_CANCEL},
    "preference_at_zero": {"paths": first_layer(-9.0, -0.5)["paths"].replace({"delta": {-1.0: 0.0}})},
    "l2_not_modified": {"sized": ONE_MODIFIED},
    "zero_flips": flips(flip=False) | {"patches": AWAY},
    "zero_flips_decided": flips(flip=False) | {"patches": AWAY},
}


@pytest.mark.parametrize("name", HALF_TRUE)
def test_a_sentence_about_all_is_false_where_one_is_not_so(name):
    """One cell, one kind, one model or one prompt is otherwise, or two runs are otherwise in opposite ways."""
    assert says(name, only(name, HALF_TRUE[name])) == claims.NOT


@pytest.mark.parametrize("name", ["similar", "morals_closest", "pairs_03", "no_switch"])
def test_the_order_in_which_a_profile_names_its_variants_does_not_matter(name):
    frames = dict(SENTENCES[name][0])
    if name in ("similar", "morals_closest"):
        frames["distances"] = frames["distances"].replace({"pair": {made.MORALS: f"{U} – {D}"}})
    else:
        table_of = "pairs" if name == "no_switch" else "shares"
        frames[table_of] = frames[table_of].rename(columns={"a": "b", "b": "a"})
    assert says(name, only(name, frames)) in (claims.HOLDS, claims.SIZE)


def test_every_claim_has_its_two_tables():
    untested = "not yet tested"  # its numbers do not exist, its rule does
    rule = CLAIMS["targeted"].rule
    assert untested in claim_cells.run("weights", "targeted")["cannot"]
    assert claims.apply(rule, 0.02) == claims.HOLDS and claims.apply(rule, 0.6) == claims.NOT
    assert set(SENTENCES) | {"targeted"} == set(CLAIMS)
