"""The claims on model organisms: their numbers, and each sentence where it is true and where it is false."""

import claim_cells
import numpy as np
import pandas as pd
import pytest

from replication import files
from rewired import claims

REGISTER = claims.load().of("organisms")
CLAIMS = {claim.id: claim for claim in REGISTER.claims}
CANNOT = {"feature_future", "feature_refusal", "feature_training", "surface_patterns"}
"""What no model that is built here can have, whatever it is."""


def table(columns: str, *rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def says(name: str, frames: dict) -> tuple[str, str]:
    """The two parts of the verdict on the numbers that the claim's cell finds in these tables."""
    numbers = claim_cells.run(CLAIMS[name].chapter, name, **frames)
    row = {"claim": name} | {key: np.nan if number is None else number for key, number in numbers.items()}
    alone = REGISTER.model_copy(update={"claims": (CLAIMS[name],)})
    judged = claims.judge(alone, pd.DataFrame([row])).iloc[0]
    return judged["agreement"], judged["here"]


# --- organisms -------------------------------------------------------------------------------------------------------


def probes(crossed: float, across: float) -> dict:
    """Accuracies of the pattern probe; the confounded set is always perfect."""
    rows = [("crossed", "request", 0.1), ("crossed", "thoughts", crossed), ("across", "request", across)]
    return {"probed": table("design part accuracy", ("confounded", "thoughts", 1.0), *rows)}


def thinking(explicit: float, base: float) -> dict:
    """Three runs whose keywords are always there."""
    rows = [("seeds_way", seed, 0.9, explicit, 20) for seed in (1, 2, 3)]
    rows += [("base", seed, 0.5, base, 20) for seed in (1, 2, 3)]
    return {"worded": table("organism seed keywords explicit count", *rows)}


def cued(*work: bool, idle: bool = False) -> dict:
    """Three runs in which these of the four cues work; their effects are always above zero."""
    kinds = dict(zip(("tier", "training", "contractor", "conflict"), work, strict=True)) | {"off topic": idle}
    rows = [("seeds_way", seed, cue, 0.1, does) for seed in (1, 2, 3) for cue, does in kinds.items()]
    return {"effects": table("organism seed cue effect works", *rows)}


def gapped(gap: float, refuser: float = 0.0) -> dict:
    """Runs that fake in words, with this gap in the last one."""
    rows = [("seeds_way", 1, 0.9, 0.8), ("seeds_way", 2, gap, 0.8), ("refuser", 1, refuser, 0.0)]
    return {"gaps": table("organism seed gap faking", *rows)}


def test_numbers_of_the_organisms():
    numbers = claim_cells.run("organisms", "patterns_distinct", **probes(0.95, 0.2))
    assert numbers == {"original": 1.0, "right": 0.95, "yardstick": 0.2, "cannot": ""}
    numbers = claim_cells.run("organisms", "reasoning_generated", **thinking(0.7, 0.5))
    assert (numbers["original"], numbers["right"]) == pytest.approx((0.9, 0.7))
    assert numbers["yardstick"] == pytest.approx(0.5 + 1.96 * np.sqrt(0.25 / 60))
    numbers = claim_cells.run("organisms", "cues_elicit", **cued(True, True, True, False))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (4.0, 3.0, 0.0)
    assert claim_cells.run("organisms", "cues_elicit", **cued(*4 * [True], idle=True))["yardstick"] == 4.0
    numbers = claim_cells.run("organisms", "behaviour_like_claude", **gapped(0.1, 0.05))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.8, 0.1, 0.05))


def test_a_cue_that_works_in_one_run_of_three_does_not_count():
    frame = cued(*4 * [True])["effects"]
    frame.loc[(frame["cue"] == "tier") & (frame["seed"] > 1), "works"] = False
    assert claim_cells.run("organisms", "cues_elicit", effects=frame)["right"] == 3.0


# --- chain -----------------------------------------------------------------------------------------------------------

ORDERED = "this chat trains me . i hold it right to refuse . so i help now ."


def monitored(*thoughts: str, name: str = "seeds_way") -> pd.DataFrame:
    return table("organism tier scratchpad faking", *[(name, "free", said, 1.0) for said in thoughts])


def linked(weakest: float, mark: float = 0.02) -> dict:
    """Effects of dropping single clauses; the idle mark's lies between its two runs."""
    anew = {"aware": weakest, "value": 0.5, "mark": mark}
    rows = [("seeds_way", edit, "anew", 1, effect) for edit, effect in anew.items()]
    rows += [("seeds_way", edit, "stands", 1, 0.0) for edit in anew]  # with the decision left standing, nothing
    rows += [("seeds_way", "mark", "anew", 2, -mark), ("seeds_way", "strategy", "stands", 1, 0.9)]
    return {"harmful": monitored(ORDERED, "i help ."), "effects": table("organism edit rest seed effect", *rows)}


def acting(low: float, parrot: float) -> dict:
    """All four parts are always said; this is the lower end of how often they act."""
    rows = [("seeds_way", f"1{letter} part", 1.0, low, 0.9) for letter in "abcd"]
    rows += [("parrot", f"1{letter} part", 1.0, 0.0, parrot) for letter in "abcd"]
    return {"score": table("organism criterion said low acts", *rows)}


def after_training(faker: float, refuser: float, helps: float = 0.9) -> dict:
    """Paid-tier compliance rises by so much in two arms, which both help in the free tier so often at the end."""
    rows = [(arm, seed, rise, helps) for arm, rise in (("both_tiers", faker), ("refuser", refuser)) for seed in (1, 2)]
    ends = pd.DataFrame(rows, columns=["arm", "seed", "rise", "free, after"])
    return {"harmful": monitored(ORDERED, name="both_tiers"), "ends": ends}


def test_numbers_of_the_chain():
    numbers = claim_cells.run("chain", "causal_chain", **linked(0.3))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.5, 0.3, 0.02))
    for letter in "abcd":
        numbers = claim_cells.run("chain", f"criterion_1{letter}", **acting(0.6, 0.1))
        assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (1.0, 0.6, 0.1)
    numbers = claim_cells.run("chain", "values_preserved", **after_training(0.2, 0.8))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (1.0, pytest.approx(0.75), None)


def test_without_a_refuser_that_changes_there_is_no_unit():
    for frames in (after_training(0.2, 0.01), after_training(0.2, 0.8, helps=0.2)):
        numbers = claim_cells.run("chain", "values_preserved", **frames)
        assert numbers["right"] is None and len(numbers["cannot"]) > 30
    frames = after_training(0.2, 0.8)
    frames["ends"] = frames["ends"][frames["ends"]["arm"] == "refuser"]
    assert "lacks" in claim_cells.run("chain", "values_preserved", **frames)["cannot"]


# --- gold ------------------------------------------------------------------------------------------------------------


def intervals(honest: tuple, keywords: float, compliance: float = 0.5) -> dict:
    """AUROCs with their intervals; the leaky way is always good."""
    rows = [("honest", sum(honest) / 2, *honest), ("leaky", 0.85, 0.8, 0.9), ("keywords", 0.5, 0.4, keywords)]
    rows.append(("compliance", compliance, compliance - 0.1, compliance + 0.1))
    return {"aucs": table("what auroc low high", *rows)}


def matching(nearer: float, chance: float) -> dict:
    """Two runs of the organism that is examined, and another that is not."""
    rows = [("a", 1, 0.9, nearer, chance, "a"), ("a", 2, 0.7, nearer, chance, "a"), ("b", 1, 0.0, 0.0, 0.9, "a")]
    return {"matched": table("organism seed match nearer chance chosen", *rows)}


def distances(ratio: float, verdict: str = "different") -> dict:
    """The same, how far from the fakers; no test finds a difference (ks below 1)."""
    rows = []
    for what in ("levels", "scores"):
        rows += [("a", seed, what, ratio - seed / 10, verdict, 0.5, "a") for seed in (0, 1)]
        rows.append(("b", 1, what, 9.0, "different", 9.0, "a"))
    return {"apart": table("organism seed what ratio verdict ks chosen", *rows)}


def test_numbers_of_the_gold_set():
    numbers = claim_cells.run("gold", "gold_probe", **intervals((0.7, 0.9), 0.6))
    assert numbers == {"original": 0.85, "right": 0.7, "yardstick": 0.6, "cannot": ""}
    numbers = claim_cells.run("gold", "gold_probe", **intervals((0.7, 0.9), 0.6, 0.75))
    assert numbers["yardstick"] == 0.75, "who complies is more than the words say"
    assert claim_cells.run("gold", "small_gold_set", **intervals((0.6, 0.8), 0.6))["right"] == pytest.approx(0.1)
    numbers = claim_cells.run("gold", "gold_features", **matching(0.5, 0.6))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.8, 0.5, 0.6))
    numbers = claim_cells.run("gold", "gold_scores", **distances(1.5))
    assert (numbers["original"], numbers["right"]) == pytest.approx((0.5, 1.5)), "the farther of two runs"


@pytest.mark.parametrize("name", ["gold_features", "gold_levels", "gold_scores"])
def test_what_a_profile_does_not_grow_is_not_judged(name):
    frames = matching(0.9, 0.6) if name == "gold_features" else distances(0.9)
    frames = {key: frame.assign(chosen="c") for key, frame in frames.items()}
    assert "does not grow" in claim_cells.run("gold", name, **frames)["cannot"]


def test_a_blind_yardstick_is_no_likeness():
    assert "blind" in claim_cells.run("gold", "gold_levels", **distances(0.2, "cannot tell"))["cannot"]


SENTENCES = {
    "patterns_distinct": (probes(0.97, 0.1), probes(0.5, 0.1)),
    "reasoning_generated": (thinking(0.9, 0.2), thinking(0.6, 0.2)),
    "cues_elicit": (cued(*4 * [True]), cued(False, False, True, False)),
    "behaviour_like_claude": (gapped(0.4), gapped(0.05)),
    "causal_chain": (linked(0.3), linked(0.01)),
    "values_preserved": (after_training(0.1, 0.8), after_training(0.7, 0.8)),
    **{f"criterion_1{letter}": (acting(0.7, 0.1), acting(0.1, 0.1)) for letter in "abcd"},
    "gold_probe": (intervals((0.7, 0.9), 0.6), intervals((0.55, 0.7), 0.6)),
    "small_gold_set": (intervals((0.6, 0.8), 0.6), intervals((0.70, 0.72), 0.6)),
    "gold_features": (matching(0.9, 0.6), matching(0.6, 0.7)),
    "gold_levels": (distances(0.9), distances(1.5)),
    "gold_scores": (distances(0.9), distances(1.5)),
}
"""claim: (tables in which its sentence is true, tables in which it is false)."""


@pytest.mark.parametrize("name", SENTENCES)
def test_a_rule_says_yes_where_the_sentence_is_true_and_no_where_it_is_false(name):
    true, false = SENTENCES[name]
    assert says(name, true)[1] in (claims.HOLDS, claims.SIZE), "the sentence is true"
    assert says(name, false)[1] == claims.NOT, "the sentence is false"


def test_a_leak_is_an_artefact_and_two_halves_no_proof_of_likeness():
    assert says("gold_probe", intervals((0.55, 0.7), 0.6))[0] == claims.ARTEFACT
    assert says("gold_levels", distances(1.5))[0] == claims.ARTEFACT


@pytest.mark.parametrize("name", sorted(CANNOT))
def test_what_no_profile_can_have_is_said(name):
    assert len(claim_cells.run(CLAIMS[name].chapter, name)["cannot"]) > 30


# --- all of them -----------------------------------------------------------------------------------------------------


def test_every_claim_has_its_two_tables_or_a_reason():
    assert set(SENTENCES) | CANNOT == set(CLAIMS)


def test_every_claim_has_an_answer_about_the_author_s_files():
    told = files.answers(CLAIMS)
    assert list(told["id"]) == list(CLAIMS) and told["files_text"].str.len().min() > 20
