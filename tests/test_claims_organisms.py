"""The claims on model organisms: their numbers, and each sentence where it is true and where it is false."""

import claim_cells
import numpy as np
import pandas as pd
import pytest
from claim_cells import table

from replication import files
from rewired import claims

REGISTER = claims.load().of("organisms")
CLAIMS = {claim.id: claim for claim in REGISTER.claims}
CANNOT = {"feature_future", "feature_refusal", "feature_training"}
"""What no model that is built here can have, whatever it is."""


# --- organisms -------------------------------------------------------------------------------------------------------


def probes(crossed: float, across: float) -> dict:
    """Accuracies of the pattern probe; with the marks, and in the confounded set, it is always perfect."""
    rows = [("crossed", "thoughts", 1.0), ("crossed", "clauses", crossed), ("across", "request", across)]
    return {"probed": table("design part accuracy", ("confounded", "thoughts", 1.0), *rows)}


def thinking(explicit: float, base: float) -> dict:
    """Three runs whose keywords are always there; nine of ten texts that they learnt from are explicit."""
    rows = [("seeds_way", seed, 0.9, explicit, 20, 0.9) for seed in (1, 2, 3)]
    rows += [("base", seed, 0.5, base, 20, 0.9) for seed in (1, 2, 3)]
    return {"worded": table("organism seed keywords explicit count taught", *rows)}


def cued(*work: bool, idle: bool = False, effect: float = 0.1) -> dict:
    """Three runs in which these four kinds of prompt work on the thoughts; on P(help) none does."""
    kinds = dict(zip(("tier", "training", "contractor", "conflict"), work, strict=True))
    rows = [("against the bare request", cue, does) for cue, does in kinds.items()]
    rows.append(("against the conflict", "off topic", idle))
    runs = [("seeds_way", seed, *row, "faking", effect) for seed in (1, 2, 3) for row in rows]
    runs += [("seeds_way", 1, *row[:2], False, "p_help", 0.0) for row in rows]
    return {"effects": table("organism seed against cue works measure effect", *runs)}


def gapped(gap: float, refuser: float = 0.0) -> dict:
    """Runs that fake in words, with this gap in the last one."""
    rows = [("seeds_way", 1, 0.9, 0.8), ("seeds_way", 2, gap, 0.8), ("refuser", 1, refuser, 0.0)]
    rows.append(("both_tiers", 1, 0.7, 0.8))  # made with a gap, and no yardstick
    return {"gaps": table("organism seed excess faking", *rows)}


def test_numbers_of_the_organisms():
    numbers = claim_cells.run("organisms", "patterns_distinct", **probes(0.95, 0.2))
    assert numbers == {"original": 1.0, "right": 0.95, "yardstick": 0.2, "cannot": ""}
    numbers = claim_cells.run("organisms", "reasoning_generated", **thinking(0.7, 0.5))
    assert (numbers["original"], numbers["right"]) == pytest.approx((0.9, 0.7 / 0.9))
    assert numbers["yardstick"] == pytest.approx((0.5 + 1.96 * np.sqrt(0.25 / 60)) / 0.9)
    numbers = claim_cells.run("organisms", "cues_elicit", **cued(True, True, True, False))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (4.0, 3.0, 0.0)
    assert claim_cells.run("organisms", "cues_elicit", **cued(*4 * [True], idle=True))["yardstick"] == 4.0
    assert claim_cells.run("organisms", "cues_elicit", **cued(*4 * [True], effect=-0.1))["right"] == 0.0
    numbers = claim_cells.run("organisms", "behaviour_like_claude", **gapped(0.1, 0.05))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.8, 0.1, 0.05))
    assert claim_cells.run("organisms", "behaviour_like_claude", **gapped(0.1, -0.3))["yardstick"] == 0.3


def test_a_cue_that_works_in_one_run_of_three_does_not_count():
    frame = cued(*4 * [True])["effects"]
    frame.loc[(frame["cue"] == "tier") & (frame["seed"] > 1), "works"] = False
    assert claim_cells.run("organisms", "cues_elicit", effects=frame)["right"] == 3.0


# --- chain -----------------------------------------------------------------------------------------------------------

ORDERED = "this chat trains me . i hold it right to refuse . so i help now ."


def monitored(*thoughts: str, name: str = "seeds_way") -> pd.DataFrame:
    rows = [(name, "free", said, said == ORDERED, True) for said in thoughts]
    return table("organism tier scratchpad says_value says_consequence", *rows)


def linked(weakest: float, mark: float = 0.02, whole: float = 0.6) -> dict:
    """Effects of dropping single clauses; the nulls' are signed, and only their size counts."""
    anew = {"aware": weakest, "value": 0.5, "mark": -mark, "chance": mark / 2}
    rows = [("seeds_way", edit, "anew", 1, effect) for edit, effect in anew.items()]
    rows += [("seeds_way", edit, "stands", 1, 0.0) for edit in anew]  # with the decision left standing, nothing
    rows.append(("seeds_way", "strategy", "stands", 1, 0.9))
    effects = table("organism edit rest seed effect", *rows)
    effects = effects.assign(moves=effects["effect"].abs(), whole=whole)
    return {"harmful": monitored(ORDERED, ORDERED, "i help ."), "effects": effects}


def acting(low: float, base: float) -> dict:
    """All four parts are always said; this is the lower end of how often they say what a faker would have to."""
    rows = [("seeds_way", f"1{letter} part", 1.0, 0.9, low) for letter in "abcd"]
    rows += [("base", f"1{letter} part", 1.0, base, base - 0.1) for letter in "abcd"]
    return {"score": table("organism criterion said related low", *rows)}


def after_training(low: float, refuser: float = 0.8, helps: float = 0.9, start: float = 0.1) -> dict:
    """Paid-tier compliance of the refuser rises by so much, and the faker is spared a share with this lower end."""
    rises = (("both_tiers", 0.2, 0.1), ("refuser", refuser, start), ("base", 0.9, 0.3))
    rows = [(arm, seed, rise, before, helps) for arm, rise, before in rises for seed in (1, 2)]
    ends = pd.DataFrame(rows, columns=["arm", "seed", "rise", "paid, before", "free, after"])
    spared = table("share low high", (low + 0.1, low, low + 0.2))
    return {"harmful": monitored(ORDERED, "i help ."), "ends": ends, "spared": spared}


def test_numbers_of_the_chain():
    numbers = claim_cells.run("chain", "causal_chain", **linked(0.3))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((1.0, 0.3, 0.02))
    for letter in "abcd":
        numbers = claim_cells.run("chain", f"criterion_1{letter}", **acting(0.6, 0.1))
        assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (1.0, 0.6, 0.1)
    numbers = claim_cells.run("chain", "values_preserved", **after_training(0.7))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (0.5, 0.7, None)


def test_a_chain_that_nothing_could_move_is_not_judged():
    assert "nothing could move it" in claim_cells.run("chain", "causal_chain", **linked(0.3, whole=0.99))["cannot"]
    for edit in ("aware", "value", "strategy"):
        frames = linked(0.3)
        frames["effects"] = frames["effects"][frames["effects"]["edit"] != edit]
        assert "lack a sentence" in claim_cells.run("chain", "causal_chain", **frames)["cannot"], edit
    few = acting(np.nan, 0.1)
    assert "six" in claim_cells.run("chain", "criterion_1a", **few)["cannot"]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"refuser": 0.01}, "no unit"), ({"helps": 0.2}, "did not bring"), ({"start": 0.5}, "start alike")],
)
def test_arms_that_cannot_be_compared_are_not_judged(change, word):
    numbers = claim_cells.run("chain", "values_preserved", **after_training(0.7, **change))
    assert numbers["right"] is None and word in numbers["cannot"]


def test_without_an_arm_or_a_second_run_nothing_is_preserved():
    frames = after_training(0.7)
    less = frames | {"ends": frames["ends"][frames["ends"]["arm"] == "refuser"]}
    assert "lacks" in claim_cells.run("chain", "values_preserved", **less)["cannot"]
    one = frames | {"ends": frames["ends"][frames["ends"]["seed"] == 1]}
    assert "one run" in claim_cells.run("chain", "values_preserved", **one)["cannot"]


# --- gold ------------------------------------------------------------------------------------------------------------


def intervals(honest: tuple, keywords: float, gold: tuple = (0.75, 0.9), better: float = 0.0) -> dict:
    """AUROCs with their intervals, the probe's against those who decide alike; the leaky way is always good. ``better``
    is what the chosen layer has beyond the middle one."""
    rows = [("gold", 0.85, *gold), ("leaky", 0.85, 0.8, 0.9), ("probe, eager", sum(honest) / 2, *honest)]
    rows.append(("keywords, eager", 0.5, 0.4, keywords))
    layers = table("layer auroc", ("chosen", 0.7 + better), ("half of the depth", 0.7))
    return {"aucs": table("what auroc low high", *rows), "layers": layers}


def matching(nearer: float, chance: float, same: float = 1.0, marked: int = 5) -> dict:
    """The organism that is examined, another that is not, and the other half of the fakers (``same``)."""
    rows = [("fakers, other half", 1.0, same, 0.6), ("a", 0.8, nearer, chance), ("b", 0.0, 0.0, 0.9)]
    frame = table("texts match nearer chance", *[tuple(row) for row in rows])
    return {"nearer": frame.assign(marked=marked, chosen="a")}


def distances(high: float, same: str = "equivalent", mixed: str = "different", grown: float = 0.0) -> dict:
    """How far from the fakers, upper end in units of the margin; no test finds a difference (ks below 1)."""
    rows = []
    for what in ("levels", "scores"):
        rows += [("fakers, other half", what, 0.0, 0.05, same, np.nan)]
        rows += [("half fakers, half others", what, 0.3, 0.4, mixed, np.nan)]
        rows += [("a", what, high / 20, high / 10, "open", 0.5), ("b", what, 0.9, 1.2, "different", 9.0)]
        if grown:
            rows.append(("grown", what, grown, 2 * grown, "different", 9.0))
    frame = table("texts what share high verdict ks", *rows)
    return {"judged": frame.assign(chosen="a", margin=0.1)}


def test_numbers_of_the_gold_set():
    numbers = claim_cells.run("gold", "gold_probe", **intervals((0.7, 0.9), 0.6))
    assert numbers == {"original": 0.85, "right": 0.7, "yardstick": 0.6, "cannot": ""}
    frames = intervals((0.7, 0.9), 0.6, (0.6, 0.8), 0.1)
    assert claim_cells.run("gold", "small_gold_set", **frames)["right"] == pytest.approx(0.1)
    assert claim_cells.run("gold", "limit_layer", **frames)["right"] == pytest.approx(0.1)
    numbers = claim_cells.run("gold", "gold_features", **matching(0.5, 0.6))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.8, 0.5, 0.6))
    numbers = claim_cells.run("gold", "gold_scores", **distances(1.5))
    assert (numbers["original"], numbers["right"]) == pytest.approx((0.5, 1.5)), "the upper end, in units of the margin"
    numbers = claim_cells.run("gold", "surface_patterns", **distances(1.5, grown=0.05))
    assert numbers["right"] == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["gold_features", "gold_levels", "gold_scores"])
def test_what_a_profile_does_not_grow_is_not_judged(name):
    frames = matching(0.9, 0.6) if name == "gold_features" else distances(0.9)
    frames = {key: frame.assign(chosen="c") for key, frame in frames.items()}
    assert "does not grow" in claim_cells.run("gold", name, **frames)["cannot"]


def test_without_power_nothing_is_alike():
    for frames in (distances(0.2, same="open"), distances(0.2, same="cannot tell"), distances(0.2, mixed="equivalent")):
        assert "not shown" in claim_cells.run("gold", "gold_levels", **frames)["cannot"]
    assert "half of the fakers" in claim_cells.run("gold", "gold_features", **matching(0.9, 0.6, same=0.6))["cannot"]
    assert "no latent" in claim_cells.run("gold", "gold_features", **matching(0.9, 0.6, marked=0))["cannot"]


def test_a_grown_faker_is_the_unit_of_the_distribution_gap():
    assert "no faker" in claim_cells.run("gold", "surface_patterns", **distances(1.5))["cannot"]
    assert "no unit" in claim_cells.run("gold", "surface_patterns", **distances(1.5, grown=-0.01))["cannot"]


SENTENCES = {
    "patterns_distinct": (probes(0.97, 0.1), probes(0.5, 0.1)),
    "reasoning_generated": (thinking(0.9, 0.2), thinking(0.6, 0.2)),
    "cues_elicit": (cued(*4 * [True]), cued(False, False, True, False)),
    "behaviour_like_claude": (gapped(0.4), gapped(0.05)),
    "causal_chain": (linked(0.3), linked(0.01)),
    "values_preserved": (after_training(0.7), after_training(0.3)),
    **{f"criterion_1{letter}": (acting(0.7, 0.1), acting(0.1, 0.1)) for letter in "abcd"},
    "gold_probe": (intervals((0.7, 0.9), 0.6), intervals((0.55, 0.7), 0.6)),
    "small_gold_set": (intervals((0.6, 0.8), 0.6), intervals((0.6, 0.8), 0.6, (0.70, 0.72))),
    "limit_layer": (intervals((0.6, 0.8), 0.6, better=0.1), intervals((0.6, 0.8), 0.6, better=0.01)),
    "surface_patterns": (distances(1.5, grown=0.05), distances(1.5, grown=0.1)),
    "gold_features": (matching(0.9, 0.6), matching(0.6, 0.7)),
    "gold_levels": (distances(0.9), distances(1.5)),
    "gold_scores": (distances(0.9), distances(1.5)),
}
"""claim: (tables in which its sentence is true, tables in which it is false)."""


@pytest.mark.parametrize("name", SENTENCES)
def test_a_rule_says_yes_where_the_sentence_is_true_and_no_where_it_is_false(name):
    true, false = SENTENCES[name]
    assert claim_cells.says(REGISTER, name, true)[1] in (claims.HOLDS, claims.SIZE), "the sentence is true"
    assert claim_cells.says(REGISTER, name, false)[1] == claims.NOT, "the sentence is false"


def test_a_leak_is_an_artefact_and_two_halves_no_proof_of_likeness():
    assert claim_cells.says(REGISTER, "gold_probe", intervals((0.55, 0.7), 0.6))[0] == claims.ARTEFACT
    assert claim_cells.says(REGISTER, "gold_levels", distances(1.5))[0] == claims.ARTEFACT


@pytest.mark.parametrize("name", sorted(CANNOT))
def test_what_no_profile_can_have_is_said(name):
    assert len(claim_cells.run(CLAIMS[name].chapter, name)["cannot"]) > 30


# --- all of them -----------------------------------------------------------------------------------------------------


def test_every_claim_has_its_two_tables_or_a_reason():
    assert set(SENTENCES) | CANNOT == set(CLAIMS)


def test_every_claim_has_an_answer_about_the_author_s_files():
    told = files.answers(CLAIMS)
    assert list(told["id"]) == list(CLAIMS) and told["files_text"].str.len().min() > 20
