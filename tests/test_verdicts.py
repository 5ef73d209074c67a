"""The register of claims, its schema, the numbers behind it, and the rules that turn numbers into verdicts."""

import math

import pandas as pd
import pytest
import yaml

from rewired import profiles, quantities, verdicts
from rewired.errors import RewiredError
from rewired.profiles import write_table
from rewired.verdicts import ARTEFACT, HOLDS, NOT, SIZE, UNTESTED, Rule

CONTRACT = {
    "behaviour": [
        "variants_separate strategic_defects deontological_cooperates utilitarian_cooperates hybrid_reciprocates",
        "all_more_cooperative metric_agrees generalizes own_regret_lowest robust_to_wording temptation_extremes",
        "deontological_forgives separation_p",
    ],
    "lens": ["preference_at_zero u_shape trajectories_identical stabilizes_late"],
    "attribution": ["pair_dominates pair_everywhere l8_l9 none_suppressed hawk_rises similar morals_closest"],
    "patching": [
        "zero_flips mean_effect quarter_defects no_circuit opposite late_layers early_sites differ_after_defection",
        "significant_components",
    ],
    "attention": ["attention_identical same_looks"],
    "interactions": ["pairs_03 pairs_05 pairs_07 rewiring mechanistic no_switch predicts_asymmetry"],
    "weights": ["l2_not_modified adapters_similar"],
}
"""What the book promises to decide: every claim of the study but the one on targeted training."""
WHY = "A reason that is long enough."
CLAIM = {
    "id": "toy", "group": "weights", "short": "a toy claim", "statement": "Toys are large.", "source": "a toy box",
    "reported": "2", "chapter": "11_weights", "right_way": "The mean size of toys.",
    "original_way": "Their sum, as it was.",
    "quantity": {"table": "toys", "where": "kind == 'a'", "column": "size", "reduce": "mean"},
    "rule": {"side": "above", "threshold": 1, "size": 2, "factor": 2, "why": WHY},
}  # fmt: skip


def register(tmp_path, **changes):
    """The register with one claim, changed; ``quantity__where=…`` changes a key inside, ``None`` removes one."""
    claim = yaml.safe_load(yaml.safe_dump(CLAIM))
    for name, value in changes.items():
        *inside, key = name.split("__")
        place = claim
        for part in inside:
            place = place.setdefault(part, {})
        place[key] = value
        if value is None:
            del place[key]
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump({"claims": [claim]}))
    return verdicts.load(file)


# --- the register ----------------------------------------------------------------------------------------------------


def test_every_claim_of_the_contract_is_there():
    found = verdicts.load().claims
    for group, names in CONTRACT.items():
        assert [claim.id for claim in found if claim.group == group] == " ".join(names).split()
    assert tuple(CONTRACT) == verdicts.GROUPS and len(found) == sum(len(" ".join(n).split()) for n in CONTRACT.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reportd": "2"}, ["reportd", "reported"]),
        ({"quantity__colum": "size"}, ["colum", "column"]),
        ({"quantity__needs__seed": 2}, ["seed", "seeds"]),
        ({"rule__side": "over"}, ["rule.side", "over", "above"]),
        ({"rule__threshold": "high"}, ["rule.threshold", "high", "number"]),
        ({"rule__factor": None}, ["size", "factor"]),
        ({"rule__why": "short"}, ["rule.why", "short"]),
        ({"quantity__reduce": "meen"}, ["meen", "mean"]),
        ({"quantity__named": "pairs_apart"}, ["named", "table"]),
        ({"quantity__table": None}, ["table, column and reduce"]),
        ({"chapter": "11_weight"}, ["11_weight", "11_weights"]),
        ({"group": "weight"}, ["group", "weight", "weights"]),
        ({"statement": None}, ["statement", "missing"]),
        ({"yardstick": {"text": "nothing"}, "trap": "t"}, ["yardstick", "constant"]),
        ({"yardstick": {"text": "chance", "constant": 1}}, ["trap"]),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_paragraph(tmp_path, changes, words):
    with pytest.raises(RewiredError) as error:
        register(tmp_path, **changes)
    text = str(error.value)
    assert "claims.yaml" in text and "toy" in text and "Mend" in text and "\n" not in text
    assert all(word in text for word in words), text


def test_a_register_that_is_none(tmp_path):
    file = tmp_path / "claims.yaml"
    for text, word in [
        ("claims: [", "not valid YAML"),
        ("- a", "claims:"),
        ("claims: []", "claims"),
        ("{}", "missing"),
    ]:
        file.write_text(text)
        with pytest.raises(RewiredError, match=word):
            verdicts.load(file)
    with pytest.raises(RewiredError, match="git checkout"):
        verdicts.load(tmp_path / "none.yaml")
    file.write_text(yaml.safe_dump({"claims": [CLAIM, CLAIM]}))
    with pytest.raises(RewiredError, match="'toy' is given twice"):
        verdicts.load(file)


# --- its numbers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def toys(tmp_path):
    """A profile, and a folder of results with one small table."""
    profile = profiles.load("ci")
    frame = pd.DataFrame({"kind": ["a", "a", "b"], "size": [1.0, 3.0, math.nan], "box": [1, 2, 2]})
    write_table(frame, tmp_path / "tables" / "toys.parquet", profile)
    return profile, tmp_path


def test_a_quantity_is_filtered_grouped_and_reduced(toys, tmp_path):
    profile, folder = toys
    tables = verdicts.Tables(profile, folder)
    for changes, wanted in [
        ({}, 2.0),
        ({"where": None, "reduce": "sum"}, 4.0),
        ({"column": "size - 2 * box", "reduce": "largest size"}, 1.0),
        ({"column": "size > 2", "reduce": "share"}, 0.5),
        ({"by": ["box"], "reduce": "range"}, 2.0),
    ]:
        claim = register(tmp_path, **{f"quantity__{key}": value for key, value in changes.items()}).claims[0]
        assert verdicts.value_of(claim.quantity, tables, "toy") == pytest.approx(wanted), changes


@pytest.mark.parametrize(
    "changes",
    [{"where": "kind == 'c'"}, {"where": "kind == 'b'"}, {"column": "weight"}, {"where": "colour == 'red'"},
     {"table": "trains"}, {"where": "kind =="}],
)  # fmt: skip
def test_a_missing_quantity_is_an_error_and_never_a_blank(toys, tmp_path, changes):
    profile, folder = toys
    broken = register(tmp_path, **{f"quantity__{key}": value for key, value in changes.items()})
    with pytest.raises(RewiredError) as error:
        verdicts.judge(broken, profile, folder)
    assert "toy" in str(error.value) or "trains" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_profile_cannot_have_is_a_reason_and_no_error(toys, tmp_path):
    profile, folder = toys
    for needs, word in [
        ({"seeds": 2}, "two runs"),
        ({"variants": ["care"]}, "no care variant"),
        ({"pairs": [["strategic", "hybrid"]]}, "strategic → hybrid"),
    ]:
        row = verdicts.judge(register(tmp_path, quantity__needs=needs), profile, folder).iloc[0]
        assert row["measuring"] == row["here"] == UNTESTED and word in row["reason"] and math.isnan(row["right"])
    empty = register(tmp_path, quantity__where="kind == 'c'", quantity__empty="there are no such toys")
    assert verdicts.judge(empty, profile, folder).iloc[0]["reason"] == "there are no such toys"
    mute = {"text": "another run", "quantity": {**CLAIM["quantity"], "needs": {"seeds": 2}}}
    row = verdicts.judge(register(tmp_path, yardstick=mute, trap="one run"), profile, folder).iloc[0]
    assert row["here"] == UNTESTED and row["right"] == 2.0, "the number is shown, the verdict is not given"
    mute = {**CLAIM["quantity"], "needs": {"seeds": 2}}
    row = verdicts.judge(register(tmp_path, original=mute, trap="one run"), profile, folder).iloc[0]
    assert row["measuring"] == UNTESTED and row["here"] == HOLDS, "the second part does not need the original way"


def test_the_named_quantities_of_runs():
    within, between = "within a variant", "between variants"
    rows = [("a", within, 1.0), ("b", within, 2.0), ("c", within, 9.0)]
    rows += [("a – b", between, 3.0), ("a – c", between, 5.0), ("b – c", between, 8.0), ("b – c", between, 12.0)]
    frame = pd.DataFrame(rows, columns=["pair", "kind", "distance"])
    about = {"table": "x", "column": "distance"}
    assert quantities.pairs_apart(lambda name: frame, None, **about) == pytest.approx(2 / 3)
    assert quantities.rank_of_pair(lambda name: frame, None, pair="a – c", **about) == 2


# --- its rules -------------------------------------------------------------------------------------------------------

ABOVE = Rule(side="above", threshold=1, size=4, factor=2, why=WHY)
BELOW = Rule(side="below", threshold=0.5, size=0.1, within=0.1, why=WHY)


@pytest.mark.parametrize(
    ("rule", "value", "yardstick", "verdict"),
    [
        (ABOVE, 4, None, HOLDS), (ABOVE, 2, None, HOLDS), (ABOVE, 1.5, None, SIZE), (ABOVE, 9, None, SIZE),
        (ABOVE, 1, None, NOT), (ABOVE, -4, None, NOT), (ABOVE, 4, 3, HOLDS), (ABOVE, 4, 5, NOT), (ABOVE, 4, 4, NOT),
        (BELOW, 0.2, None, HOLDS), (BELOW, 0.3, None, SIZE), (BELOW, 0.6, None, NOT), (BELOW, 0.2, 0.1, NOT),
        (Rule(side="above", threshold=0, why=WHY), 1e9, None, HOLDS),
    ],
)  # fmt: skip
def test_a_rule(rule, value, yardstick, verdict):
    assert verdicts.apply(rule, value, yardstick) == verdict


@pytest.mark.parametrize(
    ("original", "right", "yardstick", "verdict"),
    [
        (4, 4, None, HOLDS), (4, 4, 3, HOLDS), (16, 4, None, SIZE), (4, 0.5, None, ARTEFACT), (4, 4, 5, ARTEFACT),
        (0.5, 4, None, NOT), (0.5, 0.5, None, NOT),
    ],
)  # fmt: skip
def test_the_way_of_measuring(original, right, yardstick, verdict):
    assert verdicts.measuring(ABOVE, original, right, yardstick) == verdict


def test_every_verdict_can_be_reached_from_tables(toys, tmp_path):
    profile, folder = toys
    big = {**CLAIM["quantity"], "where": "size == 3"}
    small = {**CLAIM["quantity"], "where": "size == 1"}
    cases = {
        (HOLDS, HOLDS): {},
        (SIZE, HOLDS): {"original": {**big, "column": "size * 9"}, "trap": "t"},
        (HOLDS, SIZE): {"rule__size": 20},
        (ARTEFACT, NOT): {"original": big, "quantity": small, "trap": "t"},
        (NOT, HOLDS): {"original": small, "trap": "t"},
        (NOT, NOT): {"quantity": small},
        (UNTESTED, UNTESTED): {"quantity__needs": {"seeds": 2}},
    }
    seen = set()
    for wanted, changes in cases.items():
        row = verdicts.judge(register(tmp_path, **changes), profile, folder).iloc[0]
        assert (row["measuring"], row["here"]) == wanted, changes
        seen |= set(wanted)
    assert seen == set(verdicts.VERDICTS)


# --- in words --------------------------------------------------------------------------------------------------------


def test_a_card_holds_what_a_reader_needs(toys, tmp_path):
    profile, folder = toys
    chance = {"text": "Chance.", "constant": 5}
    claims = register(tmp_path, yardstick=chance, trap="no null")
    card = verdicts.cards(claims, verdicts.judge(claims, profile, folder), "weights")
    for text in ("Toys are large.", "a toy box", "mean size of toys", "Their sum", "Chance.", ARTEFACT, "no null", NOT,
                 'href="11_weights.html"', WHY, "id=\"claim-toy\""):  # fmt: skip
        assert text in card, text
    assert "nan" not in card and verdicts.cards(claims, verdicts.judge(claims, profile, folder), "lens") == ""


def test_the_page_says_which_model_it_decides_about():
    pocket, study = profiles.load("pocket"), profiles.load("gemma-2-2b-it")
    assert "nothing about Gemma-2-2b" in verdicts.scope(pocket)
    assert "decides the study's claims" in verdicts.scope(study) and "nothing" not in verdicts.scope(study)
