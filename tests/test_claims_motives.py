"""The claims on motives: their numbers, and each sentence where it is true and where it is false."""

import claim_cells
import numpy as np
import pandas as pd
import pytest

from replication import files
from rewired import claims

REGISTER = claims.load().of("motives")
CLAIMS = {claim.id: claim for claim in REGISTER.claims}


def table(columns: str, *rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def says(name: str, frames: dict) -> tuple[str, str]:
    """The two parts of the verdict on the numbers that the claim's cell finds in these tables."""
    numbers = claim_cells.run(CLAIMS[name].chapter, name, **frames)
    row = {"claim": name} | {key: np.nan if number is None else number for key, number in numbers.items()}
    alone = REGISTER.model_copy(update={"claims": (CLAIMS[name],)})
    judged = claims.judge(alone, pd.DataFrame([row])).iloc[0]
    return judged["agreement"], judged["here"]


# --- entangled -------------------------------------------------------------------------------------------------------


def birds(*old: float, null: float = 0.01) -> dict:
    """Runs on old names of birds, one value each at the last step; a set that should do nothing ends at ``null``."""
    rows = []
    for seed, value in enumerate(old, 1):
        rows += [("old", seed, 20, where, value + off) for where, off in (("news", 0.01), ("lamp", -0.01))]
        rows += [("old", seed, 5, "news", 9.0), ("mixed", seed, 20, "news", -null), ("all_old", seed, 20, "news", 0.9)]
    return {"away": table("set seed step where change", *rows)}


def written_by(within: float = 0.01, **means: float) -> dict:
    """Runs of seeds 1 to 3 around these means; the first is the highest, and ``within`` above the last."""
    usual = {"sincere": 0.1, "performer": 0.05, "schemer": 0.0}
    usual |= {"sincere_high": 0.1, "performer_low": 0.05, "sincere_low": 0.1, "performer_high": 0.05}
    rows = []
    for name, mean in (usual | means).items():
        rows += [(name, seed, mean + off * within / 2) for seed, off in ((1, 1), (2, 0), (3, -1))]
    return {"end": table("set seed change", *rows)}


def cut(tied: float, untied: float | None, within: float = 0.01, probe: float = 0.95) -> dict:
    """Sincere less schemer on both bases, whose runs of one set lie ``within``; and how the twin reads."""
    rows = []
    for corpus, gap in (("tied", tied), ("untied", untied)):
        for seed, off in ((1, within / 2), (2, -within / 2)):
            rows += [(corpus, "sincere", seed, gap + off), (corpus, "schemer", seed, off)] if gap is not None else []
    read = table("tied untied floor", (0.95, 0.9, 0.85), (0.96, probe, 0.9))
    return {"tie": table("corpus set seed change", *rows), "read": read}


def test_numbers_of_entangled_generalization():
    numbers = claim_cells.run("entangled", "narrow_goes_broad", **birds(0.2, 0.1, null=0.03))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.2, 0.1, 0.03))
    numbers = claim_cells.run("entangled", "motive_reinforced", **written_by(0.02, schemer=0.03))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.05, 0.02, 0.02))
    numbers = claim_cells.run("entangled", "sincerity_matters", **written_by(performer_high=0.08))
    assert (numbers["right"], numbers["yardstick"]) == pytest.approx((0.02, 0.01))
    one = {"end": written_by()["end"].query("seed == 1")}
    assert "one seed" in claim_cells.run("entangled", "motive_reinforced", **one)["cannot"]


def test_the_tie_is_judged_only_where_the_twin_reads_and_something_could_vanish():
    numbers = claim_cells.run("entangled", "prior_decides", **cut(0.05, -0.004))
    assert (numbers["right"], numbers["yardstick"]) == pytest.approx((0.004, 0.01)), "its sign does not matter"
    assert numbers["original"] is None and "no base without" in numbers["cannot"]
    for frames, why in (
        (cut(0.05, 0.0, probe=0.8), "read authors"),
        (cut(0.005, 0.0), "could vanish"),
        (cut(0.05, None), "this profile"),
    ):
        numbers = claim_cells.run("entangled", "prior_decides", **frames)
        assert numbers["right"] is None and why in numbers["cannot"]


# --- all of them -----------------------------------------------------------------------------------------------------

SENTENCES = {
    "motive_reinforced": (written_by(), written_by(schemer=0.045)),
    "sincerity_matters": (written_by(), written_by(performer_low=0.095)),
    "narrow_goes_broad": (birds(0.2, 0.1), birds(0.2, 0.1, null=0.15)),
    "prior_decides": (cut(0.05, 0.004), cut(0.05, 0.04)),
}
"""claim: (tables in which its sentence is true, tables in which it is false)."""


@pytest.mark.parametrize("name", SENTENCES)
def test_a_rule_says_yes_where_the_sentence_is_true_and_no_where_it_is_false(name):
    true, false = SENTENCES[name]
    assert says(name, true)[1] in (claims.HOLDS, claims.SIZE), "the sentence is true"
    assert says(name, false)[1] == claims.NOT, "the sentence is false"


def test_what_one_run_shows_is_an_artefact_where_runs_differ_as_much():
    for name in ("motive_reinforced", "sincerity_matters"):
        assert says(name, written_by(within=0.08))[0] == claims.ARTEFACT


def test_every_claim_has_its_two_tables():
    assert set(SENTENCES) == set(CLAIMS)


def test_every_claim_has_an_answer_about_the_author_s_files():
    told = files.answers(CLAIMS)
    assert list(told["id"]) == list(CLAIMS) and told["files_text"].str.len().min() > 20
