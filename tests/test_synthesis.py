"""What chapter 13 says, fed with tables of opposite outcomes: its sentences are chosen by the numbers."""

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = ("weights", "votes", "choice")


@pytest.fixture(scope="module")
def told():
    """The functions of the notebook that put a table into words."""
    notebook = json.loads((ROOT / "notebooks" / "13_synthesis.ipynb").read_text())
    found = {"np": np, "pd": pd}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("def told_"):
            assert all(isinstance(node, ast.FunctionDef) for node in ast.parse(source).body)
            exec(source, found)
    return found


def table(**ratios) -> pd.DataFrame:
    """Rows as in 13_synthesis.parquet: ratios by level, for a pair of variants each and the last one for all of them;
    2 and more passes rule 7, intervals are a tenth either way, leaving out a run takes half of what is above 0.5."""
    rows = []
    for level in LEVELS:
        for k, ratio in enumerate(ratios[level]):
            whole = k == len(ratios[level]) - 1
            names = ("all", "all") if whole else (f"v{k}", f"v{k + 1}")
            rows.append(
                {"level": level, "a": names[0], "b": names[1], "pair": "all" if whole else " – ".join(names),
                 "ratio": ratio, "differ": ratio >= 2, "low": ratio - 0.1, "high": ratio + 0.1,
                 "run_low": 0.5 + (ratio - 0.5) / 2, "run_high": ratio + 1,
                 "p": (0.001 if ratio >= 2 else 0.6) if whole else np.nan, "labellings": 15_400}
            )  # fmt: skip
    return pd.DataFrame(rows)


GROWS = table(weights=(1.0, 1.1, 1.0), votes=(3.0, 1.2, 2.0), choice=(9.0, 5.0, 8.0))
SHRINKS = table(weights=(9.0, 5.0, 8.0), votes=(3.0, 1.2, 9.0), choice=(4.0, 1.0, 3.0))
MIXED = table(weights=(9.0, 1.0, 8.0), votes=(3.0, 1.2, 9.0), choice=(4.0, 4.0, 3.0))
IDLE = table(weights=(9.0, 1.0, 8.0), votes=(3.0, 1.2, 9.0), choice=(1.0, 1.0, 1.0))
LONELY = table(weights=(np.nan, np.nan), votes=(np.nan, np.nan), choice=(np.nan, np.nan))


def test_where_they_part(told):
    up, down = told["told_levels"](GROWS), told["told_levels"](SHRINKS)
    assert "part least at the level of the weights, where their rewards account for 0%" in up["extremes"]
    assert "most at the level of the choice (98%)" in up["extremes"]
    assert "part least at the level of the choice" in down["extremes"] and "votes (99%)" in down["extremes"]
    assert "weights 0 of 2, votes 1 of 2, choice 2 of 2" in up["rule"]
    assert "weights 2 of 2, votes 1 of 2, choice 1 of 2" in down["rule"]
    assert "weights 1.00, votes 2.00, choice 8.00" in up["ratios"]


def test_a_level_with_fewer_pairs_is_named_and_not_ranked(told):
    fewer = SHRINKS[~((SHRINKS["level"] == "votes") & (SHRINKS["pair"] == "v1 – v2"))]
    words = told["told_levels"](fewer)
    assert "votes 9.00 (v0 – v1 only)" in words["ratios"] and "most at the level of the weights" in words["extremes"]


def test_are_the_weights_alike_while_behaviour_differs(told):
    assert "it is true that weights cannot tell apart" in told["told_cascade"](GROWS)["story"]
    assert told["told_cascade"](GROWS)["story"].startswith("2 of 2 pairs")
    assert "not true that weights are alike" in told["told_cascade"](SHRINKS)["story"]
    assert told["told_cascade"](SHRINKS)["story"].startswith("1 of 2 pairs")
    assert "Of these, 1 have weights that do not differ (v1 – v2)" in told["told_cascade"](MIXED)["story"]
    assert "no behaviour to be explained" in told["told_cascade"](IDLE)["story"]


def test_does_the_ratio_grow_on_the_way(told):
    up, down = told["told_steps"](GROWS), told["told_steps"](SHRINKS)
    assert "the ratio grows, from 1.00 to 8.00, at every step." in up["steps"]
    assert "the ratio shrinks, from 8.00 to 3.00, but not at every step" in down["steps"]
    assert "the other way at votes" in down["steps"]
    assert "at 2 of 3 levels (votes, choice); the largest p is 0.6" in up["chance"]
    assert "at 3 of 3 levels" in down["chance"]


def test_the_studys_pair_on_both_scales(told):
    alike = pd.DataFrame({"v0 – v1": [99.0, 99.5], "two runs of one variant": [98.0, 99.0]}, index=["weights", "votes"])
    words = told["told_pair"](GROWS, alike, "v0 – v1")
    assert "less alike than such twins at 0 of 2 levels." in words["percent"]
    assert "differ at 2 of 3 levels (votes, choice)" in words["pair"]
    apart = alike.assign(**{"v0 – v1": 40.0})
    assert (
        "less alike than such twins at 2 of 2 levels (weights, votes)."
        in (told["told_pair"](SHRINKS, apart, "v0 – v1")["percent"])
    )
    none = told["told_pair"](IDLE.assign(differ=False), alike[["v0 – v1"]], "v0 – v1")
    assert "differ at 0 of 3 levels." in none["pair"] and "twins" not in none["percent"]


def test_how_far_to_trust_them(told):
    assert told["told_steady"](GROWS)["steady"].startswith("Of 6 intervals over prompts 4 lie above one.")
    assert "Of 5 ratios above one, 2 fall to one or below" in told["told_steady"](GROWS)["steady"]
    assert (
        "Of 6 intervals over prompts 5 lie above one. Of 5 ratios above one, 1 fall"
        in (told["told_steady"](SHRINKS)["steady"])
    )


def test_without_a_yardstick_nothing_is_claimed(told):
    assert "stays open at every level" in told["told_levels"](LONELY)["ratios"]
    for name in ("told_cascade", "told_steps", "told_steady"):
        assert told[name](LONELY) == {}
