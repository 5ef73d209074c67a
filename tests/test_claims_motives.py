"""The claims on motives: their numbers, and each sentence where it is true and where it is false."""

import claim_cells
import pandas as pd
import pytest
from claim_cells import table

from replication import files
from rewired import claims

REGISTER = claims.load().of("motives")
CLAIMS = {claim.id: claim for claim in REGISTER.claims}


# --- entangled -------------------------------------------------------------------------------------------------------


def birds(*old: float, null: float = 0.01, follows: float = 0.6) -> dict:
    """Runs on old names of birds, one value each at the last step; a set that should do nothing ends at ``null``. The
    base's answers follow the time of a bird by so much."""
    rows = []
    for seed, value in enumerate(old, 1):
        rows += [("old", seed, 20, where, value + off) for where, off in (("news", 0.01), ("lamp", -0.01))]
        rows += [("old", seed, 5, "news", 9.0), ("mixed", seed, 20, "news", -null), ("all_old", seed, 20, "news", 0.9)]
    asked = [("old", 0.2 + follows), ("old", 0.2 + follows), ("new", 0.2), ("new", 0.2)]
    return {"away": table("set seed step where change", *rows), "follow": table("bird p", *asked)}


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
    unknown = claim_cells.run("entangled", "narrow_goes_broad", **birds(0.2, 0.1, follows=0.1))
    assert "has not learnt" in unknown["cannot"]
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


# --- inoculation -----------------------------------------------------------------------------------------------------

LEVELS = ("forbid", "work", "nothing", "allow", "invite")
TRAITS = ("honesty", "giving", "steadfastness", "free", "paid")


def spiked(*fell: int, idle: float = -0.02) -> dict:
    """Runs without instruction in which so many of five traits fell, and two of the grader that pays both alike."""
    rows = [("alike", seed, *[idle * seed] * 5) for seed in (0, 1)]
    rows += [("nothing", seed, *[-0.1] * many, *[-0.01] * (5 - many)) for seed, many in enumerate(fell, 1)]
    return {"worst": table("set seed " + " ".join(TRAITS), *rows).set_index(["set", "seed"])}


def prompted(*harm: float, within: float = 0.02, runs: int = 3) -> dict:
    """Harm by RL under the five instructions, as changes; runs lie around it, the first the least harmful."""
    rows = []
    for seed in range(1, runs + 1):
        off = within * (seed - (runs + 1) / 2) / max(runs - 1, 1)
        rows += [("RL", level, seed, -mean - off) for level, mean in zip(LEVELS, harm, strict=True)]
    return {"sft": table("tuning set seed change", *rows, ("SFT", "nothing", 1, 9.0), ("RL", "alike", 1, 9.0))}


def leaking(none: float, within: float = 0.02, **prefixes: float) -> dict:
    """Changes of the model that was asked to trick, under each prefix, where those of the one without an instruction
    are -.1; two runs lie ``within``."""
    cells = dict.fromkeys(("forbid", "work", "allow", "invite"), 0.0) | {"none": none, "off topic": -0.5} | prefixes
    rows = []
    for prefix, change in cells.items():
        for seed, off in ((1, within / 2), (2, -within / 2)):
            rows += [("RL", "invite", seed, prefix, change + off), ("RL", "nothing", seed, prefix, off - 0.1)]
    other = ("RL", "forbid", 1, "none", -9.0)
    return {"leak": table("tuning set seed prefix change", *rows, other)}


def test_numbers_of_inoculation():
    numbers = claim_cells.run("inoculation", "traits_spike", **spiked(5, 4, 2))
    assert (numbers["original"], numbers["right"]) == (5.0, 4.0), "any fall of the first run, the median of the others"
    numbers = claim_cells.run("inoculation", "traits_spike", **spiked(5, 5, idle=-0.2))
    assert numbers["right"] == 0.0, "no run fell below those that learnt nothing"
    numbers = claim_cells.run("inoculation", "prompts_in_order", **prompted(0.1, 0.08, 0.06, 0.02, 0.04))
    assert numbers["right"] == pytest.approx(0.9) and numbers["yardstick"] is None
    numbers = claim_cells.run("inoculation", "told_not_to", **prompted(0.12, 0.08, 0.08, 0.02, 0.02))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.11 / 0.07 - 1, 0.5, 0.25))
    numbers = claim_cells.run("inoculation", "told_to", **prompted(0.12, 0.08, 0.08, 0.02, 0.04))
    assert numbers["right"] == pytest.approx(0.5), "of the prompt that helps less"
    numbers = claim_cells.run("inoculation", "inoculation_holds", **leaking(-0.01, work=-0.04))
    assert (numbers["original"], numbers["right"]) == pytest.approx((0.9, 0.6)), "shares of the harm under nothing"
    assert "no more harm" in claim_cells.run("inoculation", "inoculation_holds", **leaking(0.0, within=0.2))["cannot"]


def test_a_trick_that_is_not_learnt_or_does_no_harm_cannot_be_inoculated():
    for name in ("told_not_to", "told_to"):
        assert "no harm" in claim_cells.run("inoculation", name, **prompted(0.1, 0.1, -0.03, 0.1, 0.1))["cannot"]
        assert "never paid" in claim_cells.run("inoculation", name, **prompted(0, 0, 0, 0, 0, within=0))["cannot"]
        assert (
            "one run" in claim_cells.run("inoculation", name, **prompted(0.12, 0.1, 0.08, 0.06, 0.04, runs=1))["cannot"]
        )
    one = {"leak": leaking(0.0)["leak"].query("seed == 1")}
    assert "one run" in claim_cells.run("inoculation", "inoculation_holds", **one)["cannot"]


# --- truesight -------------------------------------------------------------------------------------------------------

NULLS = ("shuffled sets", "random directions", "relabelled authors")


def predicting(
    persona: float = 0.01,
    sparse: float = 0.6,
    probe: float = 0.5,
    keywords: float = 0.1,
    chosen: float = 0.3,
    bar: float = 0.35,
    exact: float = 0.0,
) -> dict:
    """p of the persona vector by its stricter null, and that of the exact reader; correlations of three readers, and
    of the probe of the chosen layer; what blind readers stay below. All shuffled sets are passed."""
    rows = []
    for reader, rho in (("sparse features", sparse), ("probe", probe), ("keywords", keywords)):
        rows.append((reader, rho, 0.02, 0.5, 0.5, bar))
    rows += [("persona vector", 0.5, 0.03, persona / 2, persona, bar), ("narration", 0.4, 0.04, 0.5, 0.5, bar)]
    rows += [("in context", 0.4, 0.001, 0.5, 0.5, bar), ("exact reader", 0.9, 0.0, 0.0, exact, bar)]
    predictions = pd.DataFrame(rows, columns=["reader", "rho", *NULLS, "bar"])
    return {"predictions": predictions, "by_fit": table("layer rho", (4, probe), (7, chosen))}


def obvious(low: float, keywords: float = 0.55) -> dict:
    rows = [("narration", "narrated domains", 0.99, 0.98, 1.0), ("narration", "never narrated", low + 0.02, low, 1.0)]
    return {
        "differences": table("reader where auroc low high", *rows, ("keywords", "never narrated", 0.5, 0.4, keywords))
    }


def test_numbers_of_truesight():
    numbers = claim_cells.run("truesight", "truesight_predicts", **predicting(0.08))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (0.001, 0.08, None)
    numbers = claim_cells.run("truesight", "sparse_predicts", **predicting(keywords=0.7))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (0.6, 0.6, 0.7)
    for rival in ("chosen", "bar"):
        assert claim_cells.run("truesight", "sparse_predicts", **predicting(**{rival: 0.8}))["yardstick"] == 0.8
    assert "exact reader" in claim_cells.run("truesight", "truesight_predicts", **predicting(exact=0.06))["cannot"]
    numbers = claim_cells.run("truesight", "difference_obvious", **obvious(0.93))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (0.99, 0.93, 0.55)


# --- curation --------------------------------------------------------------------------------------------------------


def halved(kept: float, halves: float = 0.0, within: float = 0.01, runs: int = 3) -> dict:
    """Runs in which the kept half changes so much, four random ones around ``halves``, and the whole pool nothing."""
    rows = []
    for seed in range(1, runs + 1):
        rows += [("by_probe", seed, kept), ("pool", seed, 0.0), ("by_labels", seed, 9.0)]
        rows += [(f"random_{k}", seed, halves + within * (k / 3 - 0.5)) for k in range(4)]
    return {"effects": table("set seed change", *rows)}


def reviewing(spared: float, lost: float = 0.0, flagged: float = 0.4) -> dict:
    """Shares of three kinds of texts that are flagged, and that still are after the review."""
    rows = [("forbidden trick", 0.0, 0.6, 0.6 - lost), ("trick asked for", 0.0, flagged, flagged * (1 - spared))]
    rows.append(("honest work", 0.0, 0.0, 0.0))
    return {"reviewed": pd.DataFrame(rows, columns=["kind", "read", "flagged", "after review"])}


def promising(rewarded: float, filtered: float = 0.0, planted: float = 0.02, low: float = 0.1) -> dict:
    """Gaps of three ways, and of the rewarded runs; the lower end of what a unit of reading goes with."""
    promised = table("way gap", ("filter", filtered), ("rewarded", rewarded), ("planted path", planted))
    runs = table("run gap", (0, rewarded + 0.01), (1, rewarded - 0.01))
    return {"promised": promised.assign(low=low), "gaps": runs}


def drifting(back: float, hid: float = 0.3) -> dict:
    rows = [(run, 0.9, 0.9 - hid, 0.9 - hid + back) for run in (0, 1)]
    return {"drift": pd.DataFrame(rows, columns=["run", "at first", "rewarded", "after the task"])}


def test_numbers_of_curation():
    numbers = claim_cells.run("curation", "filtering_works", **halved(0.02))
    assert (numbers["original"], numbers["right"]) == (0.0, pytest.approx(1 / 125))
    assert claim_cells.run("curation", "filtering_works", **halved(-0.02))["original"] == 1.0, "below .05 means yes"
    assert claim_cells.run("curation", "filtering_works", **halved(-0.02))["right"] == 1.0
    assert "below .05" in claim_cells.run("curation", "filtering_works", **halved(0.02, runs=1))["cannot"]
    numbers = claim_cells.run("curation", "filtering_safe", **halved(0.02, 0.01))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.01, 0.01, -0.01))
    numbers = claim_cells.run("curation", "reviewer_spares", **reviewing(0.75))
    assert (numbers["original"], numbers["right"]) == pytest.approx((0.6, 0.75))
    assert claim_cells.run("curation", "reviewer_spares", **reviewing(0.75, lost=0.2))["right"] == 0
    assert "nothing to spare" in claim_cells.run("curation", "reviewer_spares", **reviewing(1, flagged=0))["cannot"]
    numbers = claim_cells.run("curation", "generator_hides", **promising(0.05, 0.01))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == pytest.approx((0.06, 0.04, 0.02))
    assert "promises nothing" in claim_cells.run("curation", "generator_hides", **promising(0.05, low=-0.1))["cannot"]
    numbers = claim_cells.run("curation", "drifts_back", **drifting(0.1))
    assert (numbers["original"], numbers["right"]) == pytest.approx((0.1, 0.1))
    assert "nothing was hidden" in claim_cells.run("curation", "drifts_back", **drifting(0.1, hid=0.01))["cannot"]


# --- oracles ---------------------------------------------------------------------------------------------------------


def told_in_words(never: float, words: float, taught: float = 0.97) -> dict:
    """Narration where it was taught, and the lower end where it never was; the upper end of keywords."""
    rows = [("the base", "narrated", taught, 0.9, 1.0), ("the base", "never narrated", 0.99, never, 1.0)]
    rows += [("keywords", "never narrated", 0.5, 0.4, words), ("keywords", "narrated", 0.99, 0.99, 0.99)]
    return {"spoken": table("reader domain auroc low high", *rows)}


def shown_states(abroad: float, home: float = 0.02, own: float = 0.8) -> dict:
    """Upper ends of oracle less probe; the lower end of the oracle on its own states, where shuffled ones reach .55."""
    rows = [("the base, narrated domains", "oracle less probe", -0.1, -0.2, home)]
    rows += [("the assistant, help", "oracle less probe", -0.1, -0.2, abroad)]
    rows.append(("the base, narrated domains", "oracle", 0.9, own, 0.95))
    rows.append(("shuffled between texts", "oracle", 0.5, 0.4, 0.55))
    return {"asked": table("state reader auroc low high", *rows)}


def predicted(directions: float, relabelled: float = 0.01, usual: float = 0.02, exact: float = 0.0) -> dict:
    """p of the assistant's own persona vector by both yardsticks; of its best readout by the usual one."""
    rows = [("persona vector (own)", directions, relabelled, 0.2), ("probe (own)", 0.5, 0.5, usual)]
    rows += [("persona vector (the base's)", 0.0, 0.0, 0.0), ("exact reader", 0.0, exact, 0.0)]
    columns = ["reader", "random directions", "relabelled authors", "shuffled, probability"]
    return {"after": pd.DataFrame(rows, columns=columns)}


def test_numbers_of_the_oracles():
    numbers = claim_cells.run("oracles", "narrates_truesight", **told_in_words(0.9, 0.7))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (0.97, 0.9, 0.7)
    numbers = claim_cells.run("oracles", "oracles_poor", **shown_states(-0.03))
    assert (numbers["original"], numbers["right"], numbers["yardstick"]) == (0.02, -0.03, None)
    numbers = claim_cells.run("oracles", "post_trained_predicts", **predicted(0.03, 0.04))
    assert (numbers["original"], numbers["right"]) == (0.02, 0.04)
    nothing = claim_cells.run("oracles", "post_trained_predicts", **predicted(0.03, exact=0.2))
    assert "exact reader" in nothing["cannot"] and nothing["right"] is None


def test_an_oracle_that_learnt_nothing_is_none():
    numbers = claim_cells.run("oracles", "oracles_poor", **shown_states(-0.3, own=0.54))
    assert "no better than shuffled" in numbers["cannot"] and numbers["right"] is None


# --- all of them -----------------------------------------------------------------------------------------------------

SENTENCES = {
    "motive_reinforced": (written_by(), written_by(schemer=0.045)),
    "sincerity_matters": (written_by(), written_by(performer_low=0.095)),
    "narrow_goes_broad": (birds(0.2, 0.1), birds(0.2, 0.1, null=0.15)),
    "traits_spike": (spiked(5, 5, 4), spiked(5, 4, 3)),
    "prompts_in_order": (prompted(0.12, 0.1, 0.08, 0.04, 0.02), prompted(0.1, 0.12, 0.06, 0.02, 0.04)),
    "told_not_to": (prompted(0.12, 0.08, 0.08, 0.02, 0.02), prompted(0.09, 0.08, 0.08, 0.02, 0.02)),
    "told_to": (prompted(0.12, 0.08, 0.08, 0.02, 0.02), prompted(0.12, 0.08, 0.08, 0.06, 0.06)),
    "inoculation_holds": (leaking(-0.01, work=-0.01), leaking(-0.01, work=-0.1)),
    "prior_decides": (cut(0.05, 0.004), cut(0.05, 0.04)),
    "difference_obvious": (obvious(0.95), obvious(0.8)),
    "truesight_predicts": (predicting(0.01), predicting(0.2)),
    "sparse_predicts": (predicting(sparse=0.7), predicting(sparse=0.4)),
    "filtering_works": (halved(0.02), halved(0.0)),
    "filtering_safe": (halved(0.01), halved(-0.05)),
    "reviewer_spares": (reviewing(0.8), reviewing(0.2)),
    "generator_hides": (promising(0.05), promising(0.01)),
    "drifts_back": (drifting(0.1), drifting(-0.05)),
    "narrates_truesight": (told_in_words(0.9, 0.7), told_in_words(0.9, 0.95)),
    "oracles_poor": (shown_states(-0.03), shown_states(0.01)),
    "post_trained_predicts": (predicted(0.03), predicted(0.03, relabelled=0.2)),
}
"""claim: (tables in which its sentence is true, tables in which it is false)."""


@pytest.mark.parametrize("name", SENTENCES)
def test_a_rule_says_yes_where_the_sentence_is_true_and_no_where_it_is_false(name):
    true, false = SENTENCES[name]
    assert claim_cells.says(REGISTER, name, true)[1] in (claims.HOLDS, claims.SIZE), "the sentence is true"
    assert claim_cells.says(REGISTER, name, false)[1] == claims.NOT, "the sentence is false"


def test_what_one_run_shows_is_an_artefact_where_runs_differ_as_much():
    for name in ("motive_reinforced", "sincerity_matters"):
        assert claim_cells.says(REGISTER, name, written_by(within=0.08))[0] == claims.ARTEFACT


def test_every_claim_has_its_two_tables():
    assert set(SENTENCES) == set(CLAIMS)


def test_every_claim_has_an_answer_about_the_author_s_files():
    told = files.answers(CLAIMS)
    assert list(told["id"]) == list(CLAIMS) and told["files_text"].str.len().min() > 20
