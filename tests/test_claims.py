"""The register of claims, its schema, and the rules that turn numbers into verdicts."""

import math

import claim_cells
import pandas as pd
import pytest
import yaml

from replication import files, quotes
from rewired import claims
from rewired.claims import ARTEFACT, HOLDS, MISSED, NO, NOT, SIZE, UNTESTED, YES, Rule
from rewired.errors import RewiredError

CONTRACT = {
    "behaviour": [
        "variants_separate strategic_defects deontological_cooperates utilitarian_cooperates utilitarian_less_strict",
        "morals_reciprocate milder_than_strategic all_more_cooperative metric_agrees generalizes maximizes_welfare",
        "own_regret_lowest robust_to_wording temptation_extremes deontological_forgives separation_p",
    ],
    "lens": ["preference_at_zero u_shape trajectories_identical stabilizes_late"],
    "attribution": ["pair_dominates pair_everywhere l8_l9 none_suppressed hawk_rises similar morals_closest"],
    "patching": [
        "zero_flips zero_flips_decided patch_count mean_effect quarter_defects no_circuit distributed opposite",
        "asymmetric_heads late_layers early_sites differ_after_defection significant_components",
    ],
    "attention": ["attention_identical same_looks"],
    "interactions": ["pairs_03 pairs_05 pairs_07 pairs_beyond_runs rewiring mechanistic no_switch predicts_asymmetry"],
    "weights": ["l2_not_modified l8_l9_modified adapters_similar"],
    "targeting": ["targeted"],
}
"""What the book promises to decide about the study; tests/test_claims_organisms.py has the other part."""
WHY = "A reason that is long enough."
PART = {"title": "The toys", "about": "Toys of this run, and no other toys."}
CLAIM = {
    "id": "toy", "group": "toys", "short": "a toy claim", "statement": "Toys are large.", "quotes": ["similar"],
    "reported": "2", "chapter": "weights", "right_way": "The mean size of toys.",
    "original_way": "Their sum, as it was.",
    "rule": {"side": "above", "threshold": 1, "size": 2, "factor": 2, "why": WHY},
}  # fmt: skip


def register(tmp_path, *more, **changes):
    """The register with one claim, changed; ``rule__side=…`` changes a key inside, ``None`` removes one."""
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
    content = {"parts": {"study": PART}, "groups": {"toys": "Toys"}, "claims": [claim, *more]}
    file.write_text(yaml.safe_dump(content))
    return claims.load(file)


def numbers(original=2.0, right=2.0, yardstick=math.nan, cannot="", claim="toy") -> pd.DataFrame:
    """A table as a chapter writes it, with the numbers of one claim."""
    row = {"claim": claim, "original": original, "right": right, "yardstick": yardstick, "cannot": cannot}
    return pd.DataFrame([row])


# --- the register ----------------------------------------------------------------------------------------------------


def test_every_claim_of_the_contract_is_there():
    book = claims.load().of("study")
    for group, names in CONTRACT.items():
        assert [claim.id for claim in book.claims if claim.group == group] == " ".join(names).split()
    assert list(CONTRACT) == list(dict.fromkeys(claim.group for claim in book.claims))
    assert len(book.claims) == sum(len(" ".join(names).split()) for names in CONTRACT.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reportd": "2"}, ["reportd", "reported"]),
        ({"rule__sde": "above"}, ["rule.sde", "side"]),
        ({"rule__side": "over"}, ["rule.side", "over", "above"]),
        ({"rule__threshold": "high"}, ["rule.threshold", "high", "number"]),
        ({"rule__factor": None}, ["size", "factor"]),
        ({"rule__why": "short"}, ["rule.why", "short"]),
        ({"chapter": "weight"}, ["weight", "weights"]),
        ({"group": "toy"}, ["group", "toy", "toys"]),
        ({"statement": None}, ["statement", "missing"]),
        ({"quotes": []}, ["quotes"]),
        ({"yardstick": {"txt": "chance"}, "trap": "t"}, ["yardstick.txt", "text"]),
        ({"yardstick": {"text": "chance", "constant": 1}}, ["trap"]),
    ],
)
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
        ("- a", "cannot be used"),
        ("claims: []\ngroups: {a: A}", "claims"),
        ("{}", "missing"),
    ]:
        file.write_text(text)
        with pytest.raises(RewiredError, match=word):
            claims.load(file)
    with pytest.raises(RewiredError, match="git checkout"):
        claims.load(tmp_path / "none.yaml")
    with pytest.raises(RewiredError, match="'toy' is given twice"):
        register(tmp_path, CLAIM)


def test_a_claim_belongs_to_the_part_in_which_its_chapter_stands(tmp_path, monkeypatch):
    for name in ("study/weights", "coins/tosses"):
        (tmp_path / "notebooks" / name).parent.mkdir(parents=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    parts = {"study": PART, "coins": {**PART, "title": "Coins"}}
    both = [CLAIM, {**CLAIM, "id": "coin", "chapter": "tosses", "short": "a coin"}]
    book = claims.Register(parts=parts, groups={"toys": "Toys"}, claims=both)
    assert [claim.part for claim in book.claims] == ["study", "coins"]
    assert [claim.id for claim in book.of("coins").claims] == ["coin"] and book.of("study", "coins") == book
    table = claims.judge(book, pd.concat([numbers(), numbers(claim="coin")]))
    assert list(table["part"]) == ["study", "coins"]
    html = page("overview")(table.assign(files="contradict it"), book).data
    assert html.index("The toys: Toys") < html.index("a toy claim") < html.index("Coins: Toys") < html.index("a coin")
    with pytest.raises(ValueError, match="part of claim 'coin'"):
        claims.Register(parts={"study": PART}, groups={"toys": "Toys"}, claims=both)


# --- its numbers -----------------------------------------------------------------------------------------------------


def test_a_claim_without_its_number_is_an_error_that_names_claim_and_chapter(tmp_path):
    toy = register(tmp_path)
    null = register(tmp_path, yardstick={"text": "another run"}, trap="one run")
    for asked, given, word in [
        (toy, numbers(claim="other"), "no rows of numbers"),
        (toy, pd.concat([numbers(), numbers()]), "2 rows"),
        (toy, numbers(right=math.nan), "no number right"),
        (toy, numbers(original=math.inf), "no number original"),
        (null, numbers(), "no number yardstick"),
        (toy, numbers(yardstick=1.0), "yardstick"),
    ]:
        with pytest.raises(RewiredError, match=word) as error:
            claims.judge(asked, given)
        assert "'toy'" in str(error.value) and "'weights'" in str(error.value) and "\n" not in str(error.value)


def test_what_a_profile_cannot_have_is_a_reason_and_no_error(tmp_path):
    toy = register(tmp_path)
    row = claims.judge(toy, numbers(math.nan, math.nan, cannot="it has no toys")).iloc[0]
    assert row["agreement"] == row["here"] == UNTESTED
    assert row["reason"] == "it has no toys" and math.isnan(row["right"])

    row = claims.judge(toy, numbers(cannot="these are other toys")).iloc[0]
    assert row["here"] == UNTESTED and math.isnan(row["right"]), "a reason that names no number stands for all"

    null = register(tmp_path, yardstick={"text": "another run"}, trap="one run")
    row = claims.judge(null, numbers(cannot="one seed")).iloc[0]
    assert row["here"] == UNTESTED and row["right"] == 2.0, "the number is shown, the verdict is not given"

    row = claims.judge(toy, numbers(original=math.nan, cannot="no sweep")).iloc[0]
    assert row["agreement"] == UNTESTED and row["here"] == HOLDS, "the second part does not need the original way"


def test_a_constant_yardstick_stands_in_the_register(tmp_path):
    null = register(tmp_path, yardstick={"text": "chance", "constant": 3}, trap="no null")
    row = claims.judge(null, numbers(right=2.0)).iloc[0]
    assert row["yardstick"] == 3 and row["here"] == NOT and row["agreement"] == ARTEFACT


def test_an_artefact_needs_the_name_of_its_trap(tmp_path):
    with pytest.raises(RewiredError, match="'toy' of the chapter 'weights'.*trap"):
        claims.judge(register(tmp_path), numbers(right=0.5))


@pytest.mark.parametrize(
    ("given", "agreement", "here"),
    [
        (numbers(), YES, HOLDS),
        (numbers(original=20.0, right=20.0), YES, SIZE),
        (numbers(original=3.0, right=1.0), ARTEFACT, NOT),
        (numbers(original=1.0, right=3.0), MISSED, HOLDS),
        (numbers(original=1.0, right=1.0), NO, NOT),
        (numbers(math.nan, math.nan, cannot="no toys"), UNTESTED, UNTESTED),
    ],
)
def test_every_verdict_can_be_reached(tmp_path, given, agreement, here):
    row = claims.judge(register(tmp_path, trap="no null"), given).iloc[0]
    assert (row["agreement"], row["here"]) == (agreement, here)


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
    assert claims.apply(rule, value, yardstick) == verdict


@pytest.mark.parametrize(
    ("original", "right", "yardstick", "verdict"),
    [
        (4, 4, None, YES), (4, 4, 3, YES), (16, 4, None, YES), (4, 0.5, None, ARTEFACT), (4, 4, 5, ARTEFACT),
        (0.5, 4, None, MISSED), (0.5, 0.5, None, NO),
    ],
)  # fmt: skip
def test_do_both_ways_agree(original, right, yardstick, verdict):
    assert claims.agreement(ABOVE, original, right, yardstick) == verdict


# --- in words --------------------------------------------------------------------------------------------------------


def page(name):
    """Something that a cell of the chapter on verdicts defines."""
    known = {"ANSWERS": claims.ANSWERS, "ARTEFACT": ARTEFACT, "ROOT": claim_cells.ROOT, "named": quotes.named}
    return claim_cells.defined("verdicts", name, **known)


def verdict(register, numbers, files="contradict it") -> pd.Series:
    return claims.judge(register, numbers).assign(files=files, files_text="A file says so.").iloc[0]


def test_a_card_holds_what_a_reader_needs(tmp_path):
    toy, excerpts = register(tmp_path, yardstick={"text": "Chance.", "constant": 5}, trap="no null"), quotes.load()
    card = page("card")(toy.claims[0], verdict(toy, numbers()), excerpts)
    for text in ("Toys are large.", "mean size of toys", "Their sum", "Chance.", ARTEFACT, "no null", NOT, WHY,
                 'href="../study/weights.html"', 'id="claim-toy"', "contradict it", "A file says so.",
                 "99.9999% similar in component strengths", f"line {excerpts.loc['similar', 'line']}"):  # fmt: skip
        assert text in card, text
    assert "nan" not in card and "{" not in card and "Why not tested" not in card

    untested = verdict(register(tmp_path), numbers(math.nan, math.nan, cannot="it has no toys"))
    card = page("card")(register(tmp_path).claims[0], untested, excerpts)
    assert "Why not tested" in card and "it has no toys" in card and UNTESTED in card and "nan" not in card


def test_the_overview_leads_from_each_claim_to_its_card(tmp_path):
    toy = register(tmp_path)
    table = pd.DataFrame([verdict(toy, numbers())])
    html = page("overview")(table, toy).data
    assert '<a href="#claim-toy">a toy claim</a>' in html and "The toys: Toys" in html
    assert all(answer in html for answer in (YES, HOLDS, "contradict it"))


def test_every_answer_has_a_look_and_no_look_two_meanings():
    looks = page("LOOK")
    assert set(looks) == {answer for answers in claims.ANSWERS.values() for answer in answers}
    says_yes = {answer for answer, look in looks.items() if look == "yes"}
    assert says_yes == {YES, HOLDS, "bear it out"}
    assert {answer for answer, look in looks.items() if look == "open"} == {UNTESTED, "do not decide it"}


def test_the_page_says_which_model_it_decides_about():
    about = page("about")
    assert "decides nothing about Gemma-2-2b-it" in about("models/pocket")
    gemma = about("google/gemma-2-2b-it")
    assert "bears on the study's claims" in gemma and "nothing" not in gemma and "trained anew" in gemma


# --- the study's files -----------------------------------------------------------------------------------------------


def test_what_the_studys_files_say_is_filled_in_and_checked(tmp_path):
    file = tmp_path / "study_files.yaml"
    content = {"numbers": {"flips": {"value": 0}}, "claims": {"toy": {"says": "bear it out", "text": "{flips} flips."}}}
    file.write_text(yaml.safe_dump(content))
    assert files.answers(["toy"], file).iloc[0].tolist() == ["toy", "bear it out", "0 flips."]
    with pytest.raises(RewiredError, match="no answer for claim 'other'"):
        files.answers(["other"], file)
    for key, value, word in [("says", "bears it out", "Did you mean 'bear it out'"), ("text", "{flop}", "'flop'")]:
        changed = {**content, "claims": {"toy": {**content["claims"]["toy"], key: value}}}
        file.write_text(yaml.safe_dump(changed))
        with pytest.raises(RewiredError, match=word):
            files.answers(["toy"], file)
    with pytest.raises(RewiredError, match="git checkout"):
        files.answers(["toy"], tmp_path / "none.yaml")
