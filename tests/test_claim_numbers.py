"""Every number that decides a claim, on a small table whose answer can be worked out by thought.

Each test runs the very cell of the chapter (see `claim_cells`)."""

import itertools
from types import SimpleNamespace

import claim_cells
import numpy as np
import pandas as pd
import pytest

from rewired import claims, runs

ONE_SEED = "with one seed a variant there are no two runs of one variant to compare with"
NO_MORALS = "this profile trains no deontological and no utilitarian variant"
MORALS = "deontological – utilitarian"
S, D, U = "strategic", "deontological", "utilitarian"


def table(columns: str, *rows) -> pd.DataFrame:
    """A frame with these columns (words of one string) and rows."""
    return pd.DataFrame(rows, columns=columns.split())


def check(numbers: dict, original=None, right=None, yardstick=None, cannot="") -> None:
    """The cell gave exactly these numbers and this reason."""
    expected = {"original": original, "right": right, "yardstick": yardstick}
    for name, number in expected.items():
        if number is None:
            assert numbers[name] is None, (name, numbers)
        else:
            assert numbers[name] == pytest.approx(number), (name, numbers)
    assert numbers["cannot"] == cannot


def test_every_claim_of_the_register_has_its_cell_and_no_cell_another():
    chapters = {}
    for claim in claims.load().claims:
        chapters.setdefault(claim.chapter, []).append(claim.id)
    for chapter, names in chapters.items():
        assert sorted(claim_cells.claims_of(chapter)) == sorted(names), chapter


def test_every_claim_of_the_study_is_tested_here():
    tested = {name for name in globals() if name.startswith("test_")}
    for claim in claims.load().of("study").claims:
        assert any(claim.id in name for name in tested), claim.id


def test_a_cell_gets_what_its_metadata_name_and_no_more():
    likeness = table("kind pair norms updates", ("between variants", "a – b", 0.9, 0.1))
    with pytest.raises(AssertionError, match="does not give"):
        claim_cells.run("weights", "adapters_similar")
    with pytest.raises(AssertionError, match="no cell reads"):
        claim_cells.run("weights", "adapters_similar", likeness=likeness, more=likeness)
    with pytest.raises(AssertionError, match="no cell of weights"):
        claim_cells.run("weights", "adapters_alike", likeness=likeness)


# --- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "variant"),
    [
        ("strategic_defects", "strategic"),
        ("deontological_cooperates", "deontological"),
        ("utilitarian_cooperates", "utilitarian"),
    ],
)
def test_strategic_defects_deontological_cooperates_utilitarian_cooperates(claim, variant):
    measured = table(
        "model seed prompt_id p_defect delta_forms",
        ("base", 0, "CC_continue/v0", 0.4, 9.0),
        ("base", 0, "CC_continue/prose", 0.6, 9.0),
        (variant, 1, "CC_continue/v0", 0.8, 0.0),  # one half
        (variant, 2, "CC_continue/v1", 0.6, np.log(3)),  # three quarters
        (variant, 2, "CC_continue/prose", 1.0, 50.0),  # no prompt of the study
        ("hybrid", 1, "CC_continue/v0", 0.1, -3.0),
    )
    numbers = claim_cells.run("decisions", claim, variants=[variant, "hybrid"], measured=measured)
    check(numbers, 0.625, 0.8, 0.5)
    without = measured[measured["model"] != variant]
    numbers = claim_cells.run("decisions", claim, variants=["hybrid"], measured=without)
    check(numbers, None, None, 0.5, f"this profile trains no {variant} variant")


def test_all_more_cooperative():
    measured = table(
        "model seed scenario delta delta_single p_defect",
        ("base", 0, "CC_continue", 0.0, 2.0, 0.6),
        ("strategic", 1, "CC_continue", 0.0, 1.0, 0.9),
        ("strategic", 2, "CC_continue", 0.0, 2.0, 0.5),
        ("hybrid", 1, "CC_continue", 0.0, -4.0, 0.2),
    )
    # The least cooperative variant: 1.5 of 2 by digits; 0.7 of 0.6, more defecting than the base, by p_defect.
    check(claim_cells.run("decisions", "all_more_cooperative", measured=measured), 0.5, -0.1)


def test_temptation_extremes():
    rows = []
    for model, deltas in {
        "base": (0, -1, 2),
        "strategic": (0, -5, 5),
        "hybrid": (-9, -5, 5),
        "utilitarian": (0, 3, 1),
    }.items():
        for scenario, delta in zip(("CC_continue", "CC_temptation", "DC_exploited"), deltas, strict=True):
            # By single digits the base alone has the two extremes.
            rows.append((model, 1, scenario, float(delta), float(delta if model == "base" else -delta), 0.5))
    measured = table("model seed scenario delta delta_single p_defect", *rows)
    check(claim_cells.run("decisions", "temptation_extremes", measured=measured), 0.25, 0.5)


def test_deontological_forgives():
    rows = [("base", 0, "CD_punished", 0.0, 0.0)]  # no variant
    rows += [("deontological", 1, "CD_punished", 0.1, 1.0), ("deontological", 2, "CD_punished", 0.3, 3.0)]
    rows += [("strategic", 1, "CD_punished", 0.9, 9.0), ("strategic", 2, "CD_punished", 0.6, 9.0)]
    rows += [("hybrid", 1, "CD_punished", 0.5, 0.0), ("hybrid", 2, "CD_punished", 0.5, 1.0)]
    rows += [("hybrid", 2, "CC_continue", 0.0, -9.0)]  # another scenario
    measured = table("model seed scenario p_defect delta_single", *rows)
    three = ["strategic", "deontological", "hybrid"]
    # By digits the hybrid (0.5) lies below it (2); by p_defect it leads by 0.5 - 0.2; the widest variant spans 0.3.
    check(claim_cells.run("decisions", "deontological_forgives", three, measured=measured), -1.5, 0.3, 0.3)

    first = measured[measured["seed"] < 2]
    numbers = claim_cells.run("decisions", "deontological_forgives", three, seeds=[1], measured=first)
    check(numbers, -1.0, 0.4, None, ONE_SEED)
    alone = measured[measured["model"].isin(["base", "deontological"])]
    numbers = claim_cells.run("decisions", "deontological_forgives", ["deontological"], measured=alone)
    assert numbers["right"] is None and numbers["cannot"] == "this profile trains a single variant"


def test_metric_agrees():
    cells = table("majority_agrees inside", (True, True), (None, True), (False, False), (True, False))
    check(claim_cells.run("decisions", "metric_agrees", cells=cells), 2 / 3, 0.5)
    cells = cells.assign(majority_agrees=pd.NA)
    numbers = claim_cells.run("decisions", "metric_agrees", cells=cells)
    check(numbers, None, 0.5, cannot="no prediction of this run is clear of one half")


def test_separation_p():
    rows = [("base", S, 0.9, 1.0), (S, D, 0.001, 0.2), (U, S, 0.04, 0.1), (S, "hybrid", 0.8, 0.9), (D, U, 0.7, 0.8)]
    tests = pd.DataFrame(rows, columns=["a", "b", "p", "p, clusters"])
    # Strategic against the two moral variants, in whatever order the two are named.
    check(claim_cells.run("decisions", "separation_p", tests=tests), 0.04, 0.2)
    numbers = claim_cells.run("decisions", "separation_p", [S], tests=tests[:1])
    check(numbers, cannot="this profile trains no deontological and no utilitarian variant")


def test_variants_separate():
    tests = table("a p", ("base", 0.01), ("strategic", 0.2), ("strategic", 0.01), ("hybrid", 0.04))
    rows = [("a", "a", "a", 1.0), ("b", "b", "b", 2.0), ("c", "c", "c", 9.0)]  # two runs of one variant
    pairs = table("pair a b distance", *rows).assign(kind=runs.WITHIN)
    rows = [("a – b", "a", "b", 3.0), ("a – c", "a", "c", 5.0), ("b – c", "b", "c", 8.0), ("b – c", "b", "c", 12.0)]
    pairs = pd.concat([pairs, table("pair a b distance", *rows).assign(kind=runs.BETWEEN)], ignore_index=True)
    # a – b exceeds both its variants, though not c; b – c exceeds 9 on average; a – c does not.
    numbers = claim_cells.run("decisions", "variants_separate", tests=tests, judged=runs.differ(pairs))
    check(numbers, 2 / 3, 2 / 3)

    judged = runs.differ(pairs[pairs["kind"] == runs.BETWEEN])
    numbers = claim_cells.run("decisions", "variants_separate", seeds=[1], tests=tests, judged=judged)
    check(numbers, 2 / 3, None, cannot=ONE_SEED)


def test_utilitarian_less_strict():
    rows = [
        (D, 1, "CC_continue/v0", 0.1, 0.0),
        (D, 2, "CC_continue/v0", 0.3, 0.0),
        (U, 1, "CC_continue/v0", 0.6, np.log(3)),
    ]
    rows += [
        (U, 2, "CC_continue/v0", 0.4, np.log(3)),
        (U, 2, "CC_continue/prose", 0.0, 50.0),
        ("base", 0, "x/v0", 0.0, 0.0),
    ]
    measured = table("model seed prompt_id p_defect delta_forms", *rows)
    # By forms three quarters against one half; by p_defect 0.4 against 0.2, runs of the utilitarian 0.4 apart.
    check(claim_cells.run("decisions", "utilitarian_less_strict", measured=measured), 0.25, 0.2, 0.4)
    first = measured[measured["seed"] < 2]
    numbers = claim_cells.run("decisions", "utilitarian_less_strict", seeds=[1], measured=first)
    check(numbers, 0.25, 0.5, None, ONE_SEED)


# --- behaviour -------------------------------------------------------------------------------------------------------


def reciprocity() -> pd.DataFrame:
    shown, hidden = "by the displayed move", "by the concurrent move"
    return table(
        "reading model seed after_C after_D",
        (shown, "base", 0, 0.4, 0.6), (shown, S, 1, 0.9, 0.8), (shown, S, 2, 1.0, 1.0),
        (shown, D, 1, 0.0, 1.0), (shown, D, 2, 0.1, 0.7), (shown, U, 1, 0.1, 0.2), (shown, U, 2, 0.0, 0.3),
        (hidden, "base", 0, 0.9, 0.1), (hidden, S, 1, 0.9, 0.9), (hidden, S, 2, 0.7, 0.7),
        (hidden, D, 1, 0.5, 0.4), (hidden, D, 2, 0.2, 0.4), (hidden, U, 1, 0.1, 0.3), (hidden, U, 2, 0.1, 0.3),
    )  # fmt: skip


def test_morals_reciprocate():
    # By the displayed move the deontological one answers by 0.8, the utilitarian by 0.2; concurrently by 0.05 and 0.2.
    check(claim_cells.run("behaviour", "morals_reciprocate", kind=reciprocity()), 0.05, 0.2, 0.2)
    kind = reciprocity()
    numbers = claim_cells.run("behaviour", "morals_reciprocate", [S, D], kind=kind[kind["model"] != U])
    check(numbers, None, None, 0.2, "this profile trains no utilitarian variant")


def test_milder_than_strategic():
    # After a displayed D: 0.9 against 0.85 and 0.25, runs of the deontological 0.3 apart; concurrently 0.8 against 0.4.
    check(claim_cells.run("behaviour", "milder_than_strategic", kind=reciprocity()), 0.4, 0.05, 0.3)
    first = reciprocity().query("seed < 2")
    numbers = claim_cells.run("behaviour", "milder_than_strategic", seeds=[1], kind=first)
    check(numbers, 0.5, -0.2, None, ONE_SEED)


def plays() -> tuple[pd.DataFrame, pd.DataFrame]:
    read = table(
        "factor level model p_defect",
        ("game", "stag_hunt", D, 0.1), ("game", "stag_hunt", D, 0.3), ("game", "chicken", D, 0.6),
        ("game", "prisoners_dilemma", D, 0.9), ("game", "prisoners_dilemma", U, 0.2), ("game", "chicken", U, 0.7),
        ("game", "chicken", S, 0.9), ("wording", "chicken", D, 0.9),
    )  # fmt: skip
    rows = [(U, 2, 0.4), (U, 1, 0.2), (U, 0, 0.9), (D, 2, 0.9)]  # nothing is asked for in no cell
    return read, table("model cells better", *rows)


def test_generalizes():
    read, followed = plays()
    check(claim_cells.run("behaviour", "generalizes", read=read, followed=followed), 0.6, 0.4)
    numbers = claim_cells.run("behaviour", "generalizes", [S], read=read[6:7], followed=followed[:0])
    check(numbers, cannot="this profile trains no deontological variant")


def test_maximizes_welfare():
    read, followed = plays()
    check(claim_cells.run("behaviour", "maximizes_welfare", read=read, followed=followed), 0.8, 0.3)
    defects = read.assign(p_defect=0.9)  # whoever always defects does not cooperate where welfare asks for it
    check(
        claim_cells.run("behaviour", "maximizes_welfare", read=defects, followed=followed.assign(better=1.0)), 0.1, 0.1
    )
    numbers = claim_cells.run("behaviour", "maximizes_welfare", read=read, followed=followed[2:])
    check(numbers, 0.8, cannot="joint welfare asks for the same moves in every game")


def test_own_regret_lowest():
    rows = []
    for game, paper in {"chicken": (1.0, 2.0, 3.0), "stag_hunt": (2.0, 1.0, 1.0)}.items():
        for model, number in zip((D, U, "base"), paper, strict=True):
            # By hindsight the utilitarian has regret of its own kind in one game, and hardly any in the other.
            own = 0.009 if game == "chicken" else 0.5
            rows.append((D, game, model, number, 0.0 if model == D else 1.0))
            rows.append((U, game, model, number, own if model == U else 0.0))
    regrets = table("reward game model paper hindsight", *rows)
    # Paper: D lowest of its kind in chicken alone, U in the stag hunt alone (a tie with the base counts as lowest).
    # By hindsight D is lowest of its kind in both; the kind in which it is less often lowest decides.
    numbers = claim_cells.run("behaviour", "own_regret_lowest", regrets=regrets)
    check(numbers, 1 / 2, 1 / 2)
    without = regrets[regrets["model"] == "base"]
    check(claim_cells.run("behaviour", "own_regret_lowest", [S], regrets=without), cannot=NO_MORALS)


def test_robust_to_wording():
    rows = []
    for model, changes in {D: (0.2, -0.2), U: (0.1, -0.1), S: (0.9, 0.9)}.items():
        for state, change in zip(("CC", "DD"), changes, strict=True):
            rows.append(("wording", "structured", model, 1, state, 0.4))
            rows.append(("wording", "prose", model, 1, state, 0.4 + change))
            rows.append(("wording", "table", model, 1, state, 0.4 + (0.02 if model == D else 0.0)))
    rows.append(("game", "prose", D, 1, "CC", 0.9))
    read = table("factor level model seed state p_defect", *rows)
    # Of eight changes all cancel but two of 0.02; the prose moves the deontological variant by 0.2.
    numbers = claim_cells.run("behaviour", "robust_to_wording", read=read)
    check(numbers, 2 * 0.02 / 8, 0.2)
    without = read[read["model"] == S]
    check(claim_cells.run("behaviour", "robust_to_wording", [S], read=without), cannot=NO_MORALS)


# --- logit lens ------------------------------------------------------------------------------------------------------

PATHS = "position model seed scenario prompt_id depth delta"


def test_preference_at_zero():
    rows = [("prompt_end", 0, "base", 50.0), ("prompt_end", 1, "base", -9.0), ("prompt_end", 1, S, 8.0)]
    rows += [("prompt_end", 1, S, 2.0), ("prompt_end", 2, S, 70.0), ("decision", 2, S, 70.0)]
    rows += [("decision", 0, "base", -5.0), ("decision", 0, S, -5.0)]
    rows += [("decision", 1, "base", -8.0), ("decision", 1, S, -6.0), ("decision", 1, S, -7.0)]
    paths = table("position depth model delta", *rows)
    # The model that is highest in the mean, after the first layer; before it every model reads the same.
    check(claim_cells.run("logit_lens", "preference_at_zero", paths=paths), 5.0, -6.5, -5.0)


def test_u_shape():
    rows = [("prompt_end", S, shape) for shape in ("rises and falls", "neither", "neither", "both")]
    rows += [("decision", S, shape) for shape in ("falls and rises", "neither", "rises and falls", "neither")]
    rows += [(place, D, "both") for place in ("prompt_end", "decision")]  # another model does not make up for it
    shapes = table("position model shape", *rows)
    check(claim_cells.run("logit_lens", "u_shape", shapes=shapes), 0.5, 0.25)


def test_the_course_that_the_study_describes_is_one_shape():
    book = SimpleNamespace(table=lambda _, frame: frame)
    paths = table(PATHS, *[("decision", S, 1, "CC_continue", "p", depth, 0.0) for depth in (0, 1)])
    shape_of = claim_cells.defined("logit_lens", "shape_of", book=book, paths=paths)
    courses = {(0, 5, 1): "rises and falls", (0, -5, 0): "falls and rises", (0, 1, 2): "neither",
               (0, -1, 4.9): "neither", (0, 9, -9, 0): "both"}  # fmt: skip
    assert {course: shape_of(pd.Series(course)) for course in courses} == courses


def test_trajectories_identical():
    rows = []
    for depth, factor in ((9, 2.0), (10, 1.0)):  # the gap is largest before the end
        for model, scenario, delta in [
            ("base", "CC_continue", 1.0),
            ("strategic", "CC_continue", 1.5),
            ("strategic", "CC_continue", 2.5),  # a second run: the mean is 2
            ("base", "DD_trapped", -3.0),
            ("strategic", "DD_trapped", -3.25),
        ]:
            rows.append(("decision", model, 1, scenario, "p", depth, factor * delta))
            rows.append(("prompt_end", model, 1, scenario, "p", depth, 0.1 * factor * delta))
    paths = table(PATHS, *rows)
    check(claim_cells.run("logit_lens", "trajectories_identical", paths=paths), 0.2, 2.0)


def test_stabilizes_late():
    courses = {"x": (0, 10, 10, 10, 10), "y": (0, 1, 2, 3, 13), "z": (0, 0, 0, -5, -5)}
    rows = []
    for prompt, deltas in courses.items():  # the last large step ends at depth 1, 4 and 3
        for depth, delta in enumerate(deltas):
            rows.append(("prompt_end", "base", 0, "CC_continue", prompt, depth, float(delta)))
            rows.append(("decision", "base", 0, "CC_continue", prompt, depth, 1.0))
    paths, settled = table(PATHS, *rows), table("stabilizes", (1,), (1,), (4,))
    numbers = claim_cells.run("logit_lens", "stabilizes_late", paths=paths, settled=settled)
    check(numbers, 0.75, 0.25)


# --- attribution -----------------------------------------------------------------------------------------------------


def votes(**models: dict[str, float]) -> pd.DataFrame:
    """Contributions of a few components of each model; two runs and the embedding's, which does not count."""
    rows = []
    for model, components in models.items():
        for seed, factor in ((1, 0.5), (2, 1.5)):  # the mean over runs is the number given
            for component, number in components.items():
                layer = int(component[1:].replace("H", "_").partition("_")[0])
                kind = "mlp" if component.endswith("MLP") else "head"
                rows.append((model, seed, "CC_continue", component, kind, layer, factor * number))
            rows.append((model, seed, "CC_continue", "embed", "embed", -1, 99.0))
    return table("model seed scenario component kind layer contribution", *rows)


# The two loudest are L9 and L10 (as text, L10 would come first). Third: 2 and 1; median: 2 and 1.
BASE = {"L9_MLP": 8.0, "L10_MLP": -6.0, "L0H0": 2.0, "L1H0": 1.0, "L2H0": -1.0}
CLEAR = {"L9_MLP": -4.0, "L10_MLP": 9.0, "L0H0": 1.0, "L1H0": -1.0, "L2H0": 1.0}
ONE_SIGN = {"L9_MLP": 8.0, "L10_MLP": 6.0, "L0H0": 2.0, "L1H0": 1.0, "L2H0": -1.0}
APART = {"L8_MLP": 8.0, "L10_MLP": -6.0, "L0H0": 2.0, "L1H0": 1.0, "L2H0": -1.0}
A_HEAD = {"L9_MLP": 8.0, "L10H0": -6.0, "L0H0": 2.0, "L1H0": 1.0, "L2H0": -1.0}


def test_pair_dominates():
    cells = votes(base=BASE, strategic=CLEAR)
    check(claim_cells.run("attribution", "pair_dominates", ["strategic"], cells=cells), 3.0, 3.0)
    quiet = BASE | {"L1H0": 0.5, "L2H0": 0.5, "L3H0": 0.5}  # the median is 0.75 now
    cells = votes(base=quiet, strategic=CLEAR)
    check(claim_cells.run("attribution", "pair_dominates", ["strategic"], cells=cells), 4.0, 3.0)
    for other in (ONE_SIGN, APART, A_HEAD):
        cells = votes(base=BASE, strategic=other)
        check(claim_cells.run("attribution", "pair_dominates", ["strategic"], cells=cells), 0.0, 0.0)


def test_pair_everywhere():
    cells = votes(base=BASE, strategic=CLEAR, hybrid=ONE_SIGN, utilitarian=APART)
    numbers = claim_cells.run("attribution", "pair_everywhere", ["strategic", "hybrid", "utilitarian"], cells=cells)
    check(numbers, 2 / 3, 2 / 3)


def test_l8_l9():
    cells = votes(base=BASE, strategic=CLEAR)
    numbers = claim_cells.run("attribution", "l8_l9", ["strategic"], cells=cells)
    check(numbers, cannot="the model has 11 layers, and the claim is about 26 of them")
    study = {"L9_MLP": -9.0, "L8_MLP": 7.0, "L10_MLP": 2.0, "L25H0": 1.0}
    cells = votes(base=study, strategic=CLEAR | {"L25H0": 0.1})
    check(claim_cells.run("attribution", "l8_l9", ["strategic"], cells=cells), 0.5, 0.5)
    turned = votes(base=study | {"L9_MLP": 9.0, "L8_MLP": -7.0}, strategic=CLEAR | {"L25H0": 0.1})
    check(claim_cells.run("attribution", "l8_l9", ["strategic"], cells=turned), 0.0, 0.0)


def change_of_votes() -> pd.DataFrame:
    rows = [
        (D, 1, "L1_MLP", 0.3, 0.02), (D, 2, "L1_MLP", 0.1, 0.04),  # means 0.2 and 0.03, range 0.02
        (U, 1, "L1_MLP", -0.4, 0.00), (U, 2, "L1_MLP", 0.6, 0.08),  # means 0.1 and 0.04, range 0.08
        (D, 1, "L2_MLP", -0.5, 0.2), (D, 2, "L2_MLP", -0.3, -0.4),  # means -0.4 and -0.1
        (U, 1, "L2_MLP", 0.0, 0.0), (U, 2, "L2_MLP", 0.0, 0.0),
        ("hybrid", 1, "L1_MLP", 9.0, 9.0), (D, 1, "embed", 9.0, 9.0),
    ]  # fmt: skip
    change = table("model seed component contribution equal", *rows)
    return change.rename(columns={"equal": "at equal scale"})


def test_none_suppressed():
    # Changes of two runs do not cancel: 0.6 in one of the utilitarian, -0.4 at equal scale in one of the deontological.
    check(claim_cells.run("attribution", "none_suppressed", change=change_of_votes()), 0.6, 0.4)
    numbers = claim_cells.run("attribution", "none_suppressed", [D, U], change=change_of_votes())
    check(numbers, cannot="this profile trains no strategic variant")


def test_hawk_rises():
    # L1_MLP votes most for defection in the strategic model, though L2_MLP is louder, and another does in the base.
    cells = votes(base={"L1_MLP": 0.0, "L2_MLP": 9.0}, strategic={"L1_MLP": 2.0, "L2_MLP": -5.0})
    numbers = claim_cells.run("attribution", "hawk_rises", cells=cells, change=change_of_votes())
    check(numbers, 0.1, 0.03, 0.08)
    first = change_of_votes().query("seed == 1")
    numbers = claim_cells.run("attribution", "hawk_rises", seeds=[1], cells=cells, change=first)
    check(numbers, -0.4, 0.0, None, ONE_SEED)


def distances_of_votes() -> pd.DataFrame:
    rows = [
        (MORALS, runs.BETWEEN, 0.2, 1.0), (MORALS, runs.BETWEEN, 0.4, 3.0),  # means 0.3 and 2
        ("strategic – utilitarian", runs.BETWEEN, 0.1, 5.0), ("strategic – deontological", runs.BETWEEN, 0.9, 1.0),
        (D, runs.WITHIN, 0.05, 0.1), (S, runs.WITHIN, 0.02, 0.1), (U, runs.WITHIN, 0.5, 9.0),
    ]  # fmt: skip
    return table("pair kind distance logits", *rows)


def test_similar():
    distances = distances_of_votes()
    check(claim_cells.run("attribution", "similar", distances=distances), 0.3, 0.3, 0.02)
    between = distances[distances["kind"] == runs.BETWEEN]
    check(claim_cells.run("attribution", "similar", seeds=[1], distances=between), 0.3, 0.3, None, ONE_SEED)


def test_morals_closest():
    # Second by the cosine (0.1 before 0.3), second by logits (1 before 2).
    check(claim_cells.run("attribution", "morals_closest", distances=distances_of_votes()), 2.0, 2.0)
    tied = distances_of_votes().assign(logits=1.0)
    check(
        claim_cells.run("attribution", "morals_closest", distances=tied), 2.0, 2.0
    )  # all three share the second place
    alone = distances_of_votes().iloc[[0, 1, 4, 6]]
    numbers = claim_cells.run("attribution", "morals_closest", [D, U], distances=alone)
    assert numbers["right"] is None and numbers["cannot"].startswith("this profile has a single pair")


# --- patching --------------------------------------------------------------------------------------------------------

PATCHES = "source target seed prompt_id scenario component kind layer effect flip delta_source delta_target"


def patches(*rows) -> pd.DataFrame:
    """Rows of source, target, prompt, component, effect (and more columns by name) with the rest filled in."""
    frames = []
    for source, target, prompt, component, effect, *more in rows:
        kind = {"MLP": "mlp", "ATTN": "attn", "RESID": "resid"}.get(component.partition("_")[2], "head")
        layer = int(component[1:].replace("H", "_").partition("_")[0])
        row = dict.fromkeys(PATCHES.split(), np.nan)
        row |= {"source": source, "target": target, "seed": 1, "prompt_id": prompt, "scenario": "CC_continue"}
        row |= {"component": component, "kind": kind, "layer": layer, "effect": effect, "flip": False}
        row |= {"delta_source": 1.0, "delta_target": -1.0}
        frames.append(row | (more[0] if more else {}))
    return pd.DataFrame(frames)


def test_zero_flips():
    flip, alike = {"flip": True}, {"flip": True, "delta_target": 2.0}
    single = patches(
        (S, D, "p", "L0H0", 0.0, flip),
        (S, D, "p", "L1_MLP", 0.0, flip),
        (S, D, "q", "L1_MLP", 0.0, alike),  # away from both
        (S, D, "p", "L1_RESID", 0.0, flip),  # no single component
        (S, D, "p", "L0H1", 0.0),
    )
    layers = patches(
        (S, D, "p", "L0_ATTN", 0.0, flip),
        (S, D, "q", "L0_MLP", 0.0, alike),  # the study counted these
        ("base", D, "p", "L0_MLP", 0.0, flip),
        (S, "base", "p", "L0_MLP", 0.0, flip),
        (S, D, "p", "L0_RESID", 0.0, flip),
    )
    check(claim_cells.run("patching", "zero_flips", patches=single, patching_layers=layers), 2.0, 3.0)
    same = single.assign(delta_target=1.0)
    numbers = claim_cells.run("patching", "zero_flips", patches=same, patching_layers=layers)
    check(numbers, 2.0, None, cannot="source and target decide alike on every prompt of the patched pairs")
    numbers = claim_cells.run("patching", "zero_flips", ["strategic"], patches=single, patching_layers=layers[2:4])
    check(numbers, None, 3.0, cannot="this profile trains a single variant")


def effects_of_one_pair() -> dict[str, pd.DataFrame]:
    single = patches(
        (S, D, "p", "L0H0", -1.0), (S, D, "q", "L0H0", 0.5),  # down on average
        (S, D, "p", "L10_MLP", 2.0), (S, D, "q", "L10_MLP", 2.0),
        (S, D, "p", "L1_MLP", -0.1), (S, D, "q", "L1_MLP", -0.1),
        (S, D, "p", "L2_MLP", 0.0), (S, D, "q", "L2_MLP", 0.0),  # no effect is no push
        (S, D, "p", "L2_RESID", 99.0), (D, S, "p", "L0H0", 99.0), (S, U, "p", "L0H0", 99.0),
    )  # fmt: skip
    layers = patches(
        (S, D, "p", "L0_ATTN", 1.0), (S, D, "p", "L0_MLP", -3.0), (S, D, "p", "L0_RESID", 99.0),
        (U, D, "p", "L0_MLP", 99.0),
    )  # fmt: skip
    rows = [(S, D, "random", "L0H0", x) for x in (1.0, -1.0, 2.0, -0.5)]
    rows += [(S, D, "self", "L0H0", 9.0), (D, S, "random", "L0H0", 9.0)]
    controls = table("source target control component effect", *rows)
    return {"patches": single, "patching_layers": layers, "controls": controls}


def test_mean_effect():
    frames = effects_of_one_pair()
    check(claim_cells.run("patching", "mean_effect", **frames), -1.0, (-0.5 + 4.0 - 0.2) / 8)
    without = {name: frame[frame["source"] != S] for name, frame in frames.items()}
    numbers = claim_cells.run("patching", "mean_effect", patched=[[D, U]], **without)
    check(numbers, cannot="this profile does not patch strategic → deontological in full")


def test_quarter_defects():
    # One of four components up; one of two layers; two of four random patches.
    check(claim_cells.run("patching", "quarter_defects", **effects_of_one_pair()), 0.5, 0.25, 0.5)


def test_no_circuit():
    columns = "source target prompt_id step flip delta_source delta_target"
    circuits = table(
        columns,
        (S, D, "p", 1, False, 1.0, -1.0), (S, D, "p", 10, True, 1.0, -1.0),
        (S, D, "q", 10, False, 1.0, -1.0), (S, D, "q", 11, True, 1.0, -1.0),  # too late
        (S, D, "r", 1, True, 1.0, 2.0),  # nothing to flip to
        (D, S, "p", 1, True, -1.0, 1.0),  # another pair's prompt of the same name
    )  # fmt: skip
    sets = circuits.rename(columns={"step": "size"}).assign(set="top-1", flip=False)
    more = table("source target prompt_id size flip delta_source delta_target set",
                 (S, D, "p", 4, True, 1.0, -1.0, "top-4"), (S, D, "q", 4, True, 1.0, -1.0, "random-4"),
                 (S, D, "q", 16, True, 1.0, -1.0, "top-16"))  # fmt: skip
    sets = pd.concat([sets, more], ignore_index=True)
    check(claim_cells.run("patching", "no_circuit", circuits=circuits, sets=sets), 1 / 3, 2 / 3)
    alike = {"circuits": circuits.assign(delta_target=1.0)[:5], "sets": sets.assign(delta_target=1.0)}
    alike = {name: frame[frame["delta_source"] > 0] for name, frame in alike.items()}
    numbers = claim_cells.run("patching", "no_circuit", **alike)
    check(numbers, cannot="source and target decide alike on every prompt")


def test_opposite():
    directions = table(
        "source target effect back opposite",
        (D, U, 1.0, -1.0, True), (D, U, 1.0, 0.98, False), (D, U, 0.001, -0.001, True), (D, U, 2.0, 2.0, False),
        (U, D, 1.0, -1.0, True), (S, D, 1.0, -1.0, True),
    )  # fmt: skip
    check(claim_cells.run("patching", "opposite", directions=directions), 0.5, 0.5)
    directions["opposite"] = [True, False, False, False, True, True]
    check(claim_cells.run("patching", "opposite", directions=directions), 0.5, 0.25)
    numbers = claim_cells.run("patching", "opposite", [S], directions=directions[5:])
    check(numbers, cannot=NO_MORALS)


def sizes_by_layer() -> dict:
    """Layers 2 and 10 of 11: sorted as text, 10 comes before 2."""
    single = patches(
        (S, D, "p", "L2H0", -4.0), (S, D, "q", "L2H0", 4.0), (S, D, "p", "L10_MLP", 3.0),  # size counts: layer 2
        (S, U, "p", "L2_MLP", 1.0), (S, U, "p", "L10_MLP", -2.0), (S, U, "p", "L10_RESID", 0.0),  # layer 10
        (U, D, "p", "L10_MLP", 9.0),  # not patched in this profile
    )  # fmt: skip
    layers = patches(
        (S, D, "p", "L0_ATTN", 5.0), (S, D, "p", "L10_MLP", 1.0),
        (S, U, "p", "L5_MLP", 5.0), (S, U, "p", "L10_ATTN", 1.0), (S, U, "p", "L10_RESID", 99.0),
        (D, U, "p", "L10_MLP", 9.0),
    )  # fmt: skip
    return {"patches": single, "patching_layers": layers, "swept": [(S, D), (S, U)]}


def test_late_layers():
    numbers = claim_cells.run("patching", "late_layers", patched=[[S, D], [S, U]], **sizes_by_layer())
    check(numbers, (0 + 0.5) / 2, (0.2 + 1.0) / 2)


def test_early_sites():
    numbers = claim_cells.run("patching", "early_sites", patched=[[S, D], [S, U]], **sizes_by_layer())
    check(numbers, max(0 * 3, 0.5 * 1.5), max(0.2 * 3, 1.0 * 1.5))


def test_differ_after_defection():
    scenarios = ["CC_continue", "CC_temptation", "CD_punished", "DC_exploited", "DD_trapped"]
    # One run: the two after defection are first (by size, whatever the sign) and second.
    rows = [(name, x) for name, x in zip(scenarios, (0.1, 0.2, -3.0, 0.3, 2.0), strict=True)]
    morals = table("scenario difference", *rows, ("CD_punished", -1.0))
    layers = []
    for seed, gaps in {1: (0.1, 0.2, 3.0, 0.3, 2.0), 2: (9.0, 0.2, 3.0, 0.3, 2.0)}.items():
        for scenario, gap in zip(scenarios, gaps, strict=True):
            about = {"seed": seed, "scenario": scenario}
            layers += [(S, D, "p", "L0_MLP", gap, about), (S, U, "p", "L0_MLP", 0.0, about)]
            layers += [(S, D, "p", "L0_RESID", 99.0, about), (S, U, "p", "L0_RESID", 0.0, about)]
    layers = patches(*layers)
    # Over both runs CC_continue is first, so that one of the two is left.
    numbers = claim_cells.run("patching", "differ_after_defection", morals=morals, patching_layers=layers)
    check(numbers, 2.0, 1.0)
    one = layers[layers["seed"] == 1]
    numbers = claim_cells.run("patching", "differ_after_defection", seeds=[1], morals=morals, patching_layers=one)
    check(numbers, 2.0, None, cannot=ONE_SEED)


def runs_of_morals(between: float, within: float, *seeds: int) -> pd.DataFrame:
    """Whole layers patched from the strategic model: the targets' effects so far apart, and two runs of one."""
    layers = []
    for place, seed in enumerate(seeds):
        own = {"seed": seed}
        layers += [(S, D, "p", "L0_MLP", place * within, own), (S, U, "p", "L0_MLP", place * within + between, own)]
        layers += [(S, D, "p", "L1_ATTN", 1.0, own), (S, U, "p", "L1_ATTN", 1.0, own)]
        layers += [(S, D, "p", "L0_RESID", 9.0 * seed, own), ("base", D, "p", "L1_MLP", 9.0 * seed, own)]
    return patches(*layers)


def test_significant_components():
    morals = table("one other p p_adjusted", (D, U, 0.01, 0.9), (D, U, 0.04, 0.9), (D, U, 0.05, 0.9), (D, U, 0.5, 0.9))
    # One of two components: runs of one variant are 2 apart, runs of both with different seeds 5 on average.
    layers = runs_of_morals(5.0, 2.0, 1, 2)
    check(claim_cells.run("patching", "significant_components", morals=morals, patching_layers=layers), 0.5, 0.5)
    # Of two pairs of runs one is 2 - 1.9 and the other 2 + 1.9 apart: 2 on average, which is not beyond 2.
    layers = runs_of_morals(1.9, 2.0, 1, 2)
    check(claim_cells.run("patching", "significant_components", morals=morals, patching_layers=layers), 0.5, 0.0)
    other = {"morals": morals.assign(one=S), "patching_layers": layers}
    numbers = claim_cells.run("patching", "significant_components", **other)
    check(numbers, cannot="this profile does not patch both moral variants from the same source")
    one = {"morals": morals, "patching_layers": layers[layers["seed"] == 1]}
    check(claim_cells.run("patching", "significant_components", seeds=[1], **one), cannot=ONE_SEED)


def test_zero_flips_decided():
    flip, firm = {"flip": True}, {"flip": True, "delta_target": -2.0}
    layers = patches((S, D, "p", "L0_ATTN", 0.0, firm), (S, D, "q", "L0_ATTN", 0.0, flip), (S, D, "p", "L0_MLP", 0.0))
    single = patches(
        (S, D, "p", "L0H0", 0.0, firm), (S, D, "q", "L0H0", 0.0, flip), (S, D, "p", "L1_MLP", 0.0, firm),
        (S, D, "q", "L1_MLP", 0.0, firm | {"delta_source": -1.0}),  # away from both
    )  # fmt: skip
    check(claim_cells.run("patching", "zero_flips_decided", patches=single, patching_layers=layers), 1.0, 3.0)
    even = {"patches": single.assign(delta_target=-0.9), "patching_layers": layers}
    numbers = claim_cells.run("patching", "zero_flips_decided", **even)
    check(numbers, cannot="no target is decided by more than a logit where both models disagree")


def test_patch_count():
    names = [f"L{layer}H{head}" for layer in (0, 1) for head in range(3)] + ["L0_MLP", "L1_MLP"]
    single = patches(*[(S, D, prompt, name, 0.0) for name in [*names, "L0_RESID", "L0_ATTN"] for prompt in "pq"])
    # Eight names, four interventions: two layers' attention and their MLPs.
    check(claim_cells.run("patching", "patch_count", patches=single), 1.0, 0.5)


def spread_out(strongest: float, recovered: float) -> dict:
    """Twenty layers of which two are so strong, and what a tenth of twenty heads closes together."""
    layers = patches(*[(S, D, "p", f"L{k}_MLP", strongest if k < 2 else -1.0) for k in range(20)],
                     ("base", D, "p", "L5_MLP", 99.0), (S, D, "p", "L5_RESID", 99.0))  # fmt: skip
    single = patches(*[(S, D, "p", f"L0H{k}", 0.0) for k in range(20)], (S, D, "p", "L0_RESID", 0.0))
    rows = [(S, D, "top-1", 1, 0.9), (S, D, "top-4", 4, 0.9), (S, D, "random-2", 2, 0.9)]
    rows += [(S, D, "top-2", 2, recovered), (S, D, "top-2", 2, recovered - 1), (S, D, "top-2", 2, recovered + 1)]
    return {"patching_layers": layers, "patches": single, "swept": [(S, D)],
            "sets": table("source target set size recovered", *rows)}  # fmt: skip


def test_distributed():
    check(claim_cells.run("patching", "distributed", **spread_out(-9.0, 0.3)), 18 / 36, 0.3)


def both_ways(layers: int, **gaps: float) -> dict:
    """Effects between the two moral models: there, and back smaller by the gap."""
    directions = table("source target component effect back", *[(D, U, name, x, 0.0) for name, x in gaps.items()])
    directions.loc[len(directions)] = [S, U, "L2_MLP", 99.0, 0.0]
    whole = [(D, U, "p", name.partition("H")[0] + "_ATTN" if "H" in name else name, x) for name, x in gaps.items()]
    back = [(U, D, "p", name, 0.0) for _, _, _, name, _ in whole]
    frame = patches(*whole, *back, (S, U, "p", f"L{layers - 1}_MLP", 99.0))
    return {"directions": directions, "patching_layers": frame}


def test_asymmetric_heads():
    # Two of the three most asymmetric are among the three named.
    frames = both_ways(26, L25H0=5.0, L13H7=-4.0, L3_MLP=3.0, L6_MLP=2.0, L12H1=1.0)
    check(claim_cells.run("patching", "asymmetric_heads", **frames), 2 / 3, 2 / 3)
    numbers = claim_cells.run("patching", "asymmetric_heads", **both_ways(8, L6_MLP=1.0))
    check(numbers, cannot="the model has 8 layers, and the claim is about 26 of them")


# --- attention -------------------------------------------------------------------------------------------------------


def looks() -> pd.DataFrame:
    """Differences in per cent of a head's attention, and relative to the attention itself."""
    rows = [(2.0, 0.1, True), (-1.0, -0.5, False), (0.0, 0.0, False), (-1.0, -0.2, False)]
    return table("difference relative differ", *rows)


def test_attention_identical():
    # Mean size one per cent; the sizes 0, 0.1, 0.2, 0.5 have the mean 0.2.
    check(claim_cells.run("attention", "attention_identical", tests=looks()), 0.99, 0.8)
    check(claim_cells.run("attention", "attention_identical", [S, "hybrid"], tests=looks()), cannot=NO_MORALS)


def test_same_looks():
    check(claim_cells.run("attention", "same_looks", tests=looks()), 0.01, 0.25)
    check(claim_cells.run("attention", "same_looks", seeds=[1], tests=looks()), 0.01, None, None, ONE_SEED)


# --- interactions ----------------------------------------------------------------------------------------------------


def test_pairs_03_pairs_05_pairs_07():
    recipe = table("a b threshold share", *[(D, U, t, share) for t, share in ((0.3, 0.4), (0.5, 0.2), (0.7, 0.1))])
    rows = []
    for threshold, share in ((0.3, 0.3), (0.5, 0.15), (0.7, 0.05)):
        rows.append((D, U, "vote", threshold, share, share / 2))
        rows.append((D, U, "the study's size", threshold, 0.9, 0.9))
        rows.append((S, U, "vote", threshold, 0.8, 0.8))
    shares = table("a b measure threshold share null_high", *rows)
    for claim, original, right in (("pairs_03", 0.4, 0.3), ("pairs_05", 0.2, 0.15), ("pairs_07", 0.1, 0.05)):
        numbers = claim_cells.run("interactions", claim, recipe=recipe, shares=shares)
        check(numbers, original, right, right / 2)
    numbers = claim_cells.run("interactions", "pairs_03", [S], recipe=recipe, shares=shares[shares["a"] == S])
    check(numbers, cannot=NO_MORALS)


def test_pairs_beyond_runs():
    recipe = table("a b threshold share", (D, U, 0.3, 0.4), (D, U, 0.5, 0.2))
    rows = [(D, U, "between variants", 0.2), (D, U, "between variants", 0.4), (S, U, "between variants", 0.9)]
    rows += [(D, D, "within a variant", 0.1), (U, U, "within a variant", 0.25), (S, S, "within a variant", 0.9)]
    run_pairs = table("a b kind 0.3", *rows)
    check(claim_cells.run("interactions", "pairs_beyond_runs", recipe=recipe, run_pairs=run_pairs), 0.4, 0.3, 0.25)
    between = run_pairs[run_pairs["kind"] == "between variants"]
    numbers = claim_cells.run("interactions", "pairs_beyond_runs", seeds=[1], recipe=recipe, run_pairs=between)
    check(numbers, 0.4, 0.3, None, ONE_SEED)


def test_no_switch():
    rows = [
        ("L2_MLP", "L9_MLP", 3.0),
        ("L2_MLP", "L25_MLP", 1.0),
        ("L0_MLP", "L9_MLP", 2.0),
        ("L0_MLP", "L2_MLP", np.nan),
    ]
    votes = table("one other rank", *rows).assign(measure="vote", a=D, b=U)
    sizes = votes.assign(measure="the study's size", rank=[2.0, 1.0, 3.0, 4.0])
    pairs = pd.concat([votes, sizes, votes.assign(a=S, rank=1.0)], ignore_index=True)
    # Second of four pairs by size; third of the three that have a rank by contributions.
    check(claim_cells.run("interactions", "no_switch", pairs=pairs), 2 / 4, 3 / 3)
    numbers = claim_cells.run("interactions", "no_switch", pairs=pairs[pairs["other"] == "L9_MLP"])
    check(numbers, cannot="the model has 10 layers, and the claim is about 26 of them")


def asymmetry() -> pd.DataFrame:
    rows = [(1, name, x, y) for name, x, y in zip("abcd", (1.0, 2.0, 3.0, 4.0), (2.0, 4.0, 6.0, 8.0), strict=True)]
    rows += [(2, name, x, y) for name, x, y in zip("abcd", (1.0, 2.0, 3.0, 4.0), (0.0, 1.0, 0.0, -1.0), strict=True)]
    return table("seed component strength asymmetry", *rows[::-1])  # the first seed comes last


def test_predicts_asymmetry():
    # r = 1 in the first seed; in the second -2 / sqrt(5 * 2).
    second = -2 / np.sqrt(10)
    numbers = claim_cells.run("interactions", "predicts_asymmetry", asymmetry=asymmetry())
    # With four components chance reaches 0.95 in one case of twenty: t = 4.303 with two degrees of freedom.
    check(numbers, 1.0, (1 + second) / 2, 4.302653 / np.sqrt(2 + 4.302653**2))


NAMES = list(itertools.combinations(("L0H0", "L10H0", "L1H0", "L2H0"), 2))
SIZES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def ties_and_interactions(changes, interactions=SIZES, names=NAMES) -> dict:
    """Correlations of two models that differ by so much, pair by pair, and the pairs' interactions; two runs."""
    ties, causal = [], []
    for seed in (1, 2):
        for (one, other), change, size in zip(names, changes, interactions, strict=True):
            ties += [(one, other, D, seed, 0.1), (one, other, U, seed, 0.1 - change), (one, other, S, seed, 9.0)]
            causal += [(one, other, seed, "p", -size), (one, other, seed, "q", -3 * size)]
    recipe = table("a b threshold share", (D, U, 0.3, 0.4), (D, U, 0.5, 0.2))
    frames = {"together": table("one other model seed r", *ties), "recipe": recipe, "asymmetry": asymmetry()}
    return frames | {"causal": table("one other seed prompt_id interaction", *causal)}


def test_mechanistic():
    numbers = claim_cells.run("interactions", "mechanistic", **ties_and_interactions(SIZES))
    # The same over all 24 ways to relabel four components, of which the cell draws 2,000 times.
    square = np.zeros((4, 4))
    places = list(itertools.combinations(range(4), 2))
    for (i, j), x in zip(places, SIZES, strict=True):
        square[i, j] = square[j, i] = x
    ways = []
    for order in itertools.permutations(range(4)):
        ways.append(np.corrcoef([square[order[i], order[j]] for i, j in places], SIZES)[0, 1])
    check(numbers, 1.0, 1.0, numbers["yardstick"])
    # Three or four of a hundred draws are at the largest values; the 95th percentile is one of the largest few.
    assert sorted(ways)[-4] <= numbers["yardstick"] <= sorted(ways)[-1]

    few = ties_and_interactions(SIZES)
    few["causal"] = few["causal"][few["causal"]["other"] != "L2H0"]
    numbers = claim_cells.run("interactions", "mechanistic", **few)
    assert numbers["right"] is None and numbers["cannot"].startswith("too few components vary")


def test_rewiring():
    # Four pairs changed by 0.3 or more, in both runs; the three strongest interactions are 0.4, 0.5 and 0.6.
    numbers = claim_cells.run("interactions", "rewiring", **ties_and_interactions((0.3, 0.9, 0.1, 0.1, 0.3, 0.31)))
    check(numbers, 0.4, 2 / 6, numbers["yardstick"])
    assert numbers["yardstick"] >= 2 / 6, "relabelling reaches as much"
    check(claim_cells.run("interactions", "rewiring", [S], **ties_and_interactions(SIZES)), cannot=NO_MORALS)


# --- weights ---------------------------------------------------------------------------------------------------------


def percentiles(**own) -> pd.DataFrame:
    """Two runs of two variants; what is not given lies at 50."""
    rows = []
    for model, seed in ((S, 1), (S, 2), ("hybrid", 1), ("hybrid", 2)):
        for component in ("L2_MLP", "L8_MLP", "L9_MLP", "L25_MLP"):
            value = own.get(component, {}).get((model, seed), 50.0)
            rows.append((component, int(component[1:-4]), model, seed, value))
    return table("component layer model seed percentile", *rows)


def test_l2_not_modified():
    sized = percentiles(L2_MLP={(S, 2): 90.0, (S, 1): 10.0, ("hybrid", 1): 30.0, ("hybrid", 2): 50.0})
    # First run: 10 and 30; over both runs 50 in the strategic variant, 40 in the hybrid.
    check(claim_cells.run("weights", "l2_not_modified", sized=sized), 30.0, 50.0)
    numbers = claim_cells.run("weights", "l2_not_modified", sized=sized[sized["layer"] < 25])
    check(numbers, cannot="the model has 10 layers, and the claim is about 26 of them")


def test_l8_l9_modified():
    sized = percentiles(L2_MLP={(S, 1): 10.0, (S, 2): 30.0}, L9_MLP={("hybrid", 1): 40.0, ("hybrid", 2): 80.0})
    # First run: 40 in the strategic variant, -10 in the hybrid; over both runs 30 and 0.
    check(claim_cells.run("weights", "l8_l9_modified", sized=sized), -10.0, 0.0)


def test_targeted():
    check(
        claim_cells.run("weights", "targeted"), cannot="not yet tested: no run of this book trains these layers alone"
    )


def test_adapters_similar():
    rows = [("between variants", "a – b", 0.99, 0.2), ("between variants", "a – b", 0.97, 0.4)]
    rows += [("between variants", "a – c", 0.99, 0.1), ("within a variant", "a", 0.1, 0.01)]
    likeness = table("kind pair norms updates", *rows)
    check(claim_cells.run("weights", "adapters_similar", likeness=likeness), 0.98, 0.1)
    numbers = claim_cells.run("weights", "adapters_similar", ["strategic"], likeness=likeness[3:])
    check(numbers, cannot="this profile trains a single variant")
