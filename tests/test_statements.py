"""What the pages say follows from the run: the very cell that makes a sentence is given two tables with opposite
outcomes, and has to say two different things."""

import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from IPython.display import Markdown

from rewired import plots, statistics, verdicts

ROOT = Path(__file__).resolve().parents[1]
WITHIN, BETWEEN = "within a variant", "between variants"


def said(notebook: str, key: str, **names) -> str:
    """Run the one cell of a chapter that glues ``key``, with these names in its place of the run's; the sentence."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (source,) = [s for s in sources if f'"{key}"' in s and "glue(" in s]
    glued = {}
    given = {"pd": pd, "np": np, "plots": plots, "statistics": statistics, "combinations": combinations}
    given |= {
        "Markdown": Markdown,
        "verdicts": verdicts,
        "glue": lambda name, what, display=False: glued.update({name: what}),
    }
    exec(source, given | names)
    found = glued[key]
    return found.data if isinstance(found, Markdown) else found


def test_chapter_2_counts_who_cooperates_more():
    def told(strategic):
        rows = [("base", 0.4), ("strategic", strategic), ("deontological", 0.1)]
        policy = pd.DataFrame([{"model": m, "state": s, "p_defect": p, "legal_mass": 1.0}
                               for m, p in rows for s in ("CC", "CD", "DC", "DD")])  # fmt: skip
        variants = SimpleNamespace(training=SimpleNamespace(variants=["strategic", "deontological"]))
        return said("02_training", "more", policy=policy, P=variants)

    assert "1 of 2 variants cooperate more than the base: deontological" in told(0.9)
    assert "2 of 2 variants cooperate more than the base: strategic, deontological" in told(0.2)


def test_chapter_4_says_which_variants_differ():
    def told(gap):
        rows = [(v, s, p, base + 0.05 * s) for v, base in (("a", 0.1), ("b", 0.1 + gap)) for s in (1, 2) for p in "xy"]
        runs = pd.DataFrame(rows, columns=["variant", "seed", "prompt_id", "p_defect"])
        tests = pd.DataFrame({"p": [0.1], "p, adjusted": [0.1]})
        return said("04_decisions", "run_level", runs=runs, tests=tests, variants=["a", "b"], seeds=[1, 2])

    assert "1 of 1 pairs of variants differ. Not shown to differ: none" in told(0.5)
    assert "0 of 1 pairs of variants differ. Not shown to differ: a and b" in told(0.0)


def test_chapter_4_says_for_whom_one_step_early_misleads():
    def told(a, b):
        early = pd.DataFrame({"names the other choice": {"a": a, "b": b}})
        return said("04_decisions", "early", early=early, forms=early, gap=0.0)

    assert "most often for the a model (90%)" in told(0.9, 0.1)
    assert "most often for the b model (80%)" in told(0.2, 0.8)


def test_chapter_5_says_who_reads_the_payoffs():
    def told(chance):
        runs = pd.MultiIndex.from_tuples([("base", 0), ("a", 1)], names=["model", "seed"])
        moved, better = pd.Series(0.1, index=runs), pd.Series(chance, index=runs)
        names = {"payoffs": moved, "orders": moved, "asks": {"a": 3}, "better": better, "order": ["base", "a"]}
        return said("05_behaviour", "told_games", **names)

    assert "it reads the payoffs" in told(0.9) and "it ignores them" in told(0.1)


def test_chapter_6_says_whose_trajectories_part():
    def told(far):
        rows = [(d, x, "a – b", BETWEEN) for d, x in ((0, 0.0), (1, far))]
        rows += [(d, x, "a", WITHIN) for d, x in ((0, 0.0), (1, 1.0))]
        distances = pd.DataFrame(rows, columns=["depth", "distance", "pair", "kind"])
        settled = pd.DataFrame({"stabilizes": [1], "decided": [1]})
        return said("06_logit_lens", "apart", distances=distances, settled=settled, last=1, seeds=[1, 2])

    assert "a – b from depth 1 (1 of 1 pairs)" in told(2.0)
    assert "none (0 of 1 pairs)" in told(0.5)


def test_chapter_7_says_which_pairs_lie_apart():
    def told(far):
        rows = [("a", WITHIN, 0.2, 0.1), ("a – b", BETWEEN, far, 0.1), ("a – c", BETWEEN, 0.1, 0.1)]
        distances = pd.DataFrame(rows, columns=["pair", "kind", "distance", "logits"])
        yardstick = distances[distances["kind"] == WITHIN][["distance", "logits"]].max()
        return said("07_attribution", "yardstick", distances=distances, yardstick=yardstick, seeds=[1, 2])

    assert "1 of 2 pairs of variants lie farther apart than that: a – b" in told(0.9)
    assert "0 of 2 pairs of variants lie farther apart than that: none" in told(0.05)


def test_chapter_8_tells_opposite_signs_from_unlike_sizes():
    def told(back):
        directions = pd.DataFrame({"effect": [1.0, 2.0], "back": back})
        directions["opposite"] = np.sign(directions["effect"]) != np.sign(directions["back"])
        layers = pd.DataFrame({"kind": "mlp", "pair": "p", "seed": 1, "component": ["x", "y"], "effect": [1.0, 2.0]})
        names = {"null": pd.DataFrame({"effect": [0.1]}), "layers": layers, "summary": pd.DataFrame({"pair": ["p"]})}
        return said("08_patching", "opposite", directions=directions, seeds=[1], **names)

    assert "100% have truly opposite signs" in told([-1.0, -2.0])
    assert "0% have truly opposite signs" in told([3.0, 4.0])


def test_chapter_9_says_who_looks_elsewhere():
    def told(differ):
        tests = pd.DataFrame({"row": ["question", "labels"], "difference": [1.0, 0.1], "relative": [0.1, 0.1],
                              "p, adjusted": [0.5, 0.5], "differ": differ})  # fmt: skip
        single = pd.DataFrame(
            {"group": ["own move"], "layer": [0], "head": [0], "difference": [1.0], "p, adjusted": [1.0]}
        )
        names = {"one": "a", "other": "b", "wanted": ["own move"], "seeds": [1, 2]}
        return said("09_attention", "apart", tests=tests, single=single, **names)

    assert "two runs of one variant for: question (1 of 2)" in told([True, False])
    assert "two runs of one variant for: no part (0 of 2)" in told([False, False])


def test_chapter_10_says_whether_the_count_is_beyond_chance():
    def told(p):
        ways = pd.DataFrame([{"beyond": 50, "pairs": 120, "share": 0.42, "null": 0.4, "null_high": 0.5, "p": p}])
        return said("10_interactions", "recipe", ways=ways)

    assert "The count is beyond chance" in told(0.01) and "The count is not beyond chance" in told(0.4)


def test_chapter_10_names_the_hubs_that_are_clear_of_chance():
    def told(p):
        ranked = pd.DataFrame({"component": ["L1_MLP", "L2_MLP"], "strength": [0.4, 0.2], "null": 0.1,
                               "p_adjusted": [p, 0.9], "its best tie": [1, 7]})  # fmt: skip
        return said("10_interactions", "hubs", ranked=ranked)

    assert "Clear of chance: L1_MLP" in told(0.01) and "No component is clear of chance" in told(0.4)


def test_chapter_11_says_whose_updates_differ():
    def told(across):
        rows = [(WITHIN, "a", 0.3, 0.9), (WITHIN, "b", 0.2, 0.9), (BETWEEN, "a – b", across, 0.9)]
        likeness = pd.DataFrame(rows, columns=["kind", "pair", "updates", "norms"])
        return said("11_weights", "apart", likeness=likeness, same=0.1, order=["a", "b"])

    assert "Less alike than any two runs of one variant: a – b (1 of 1 pairs)" in told(0.0)
    assert "Less alike than any two runs of one variant: no pair (0 of 1 pairs)" in told(0.25)


def test_chapter_15_says_which_findings_were_in_the_instrument():
    register = verdicts.load()
    claim = next(claim for claim in register.claims if claim.trap)

    def told(key, measuring, here):
        row = {
            "id": claim.id,
            "group": claim.group,
            "short": claim.short,
            "measuring": measuring,
            "here": here,
            "reason": "",
        }
        return said("15_verdicts", key, table=pd.DataFrame([row]), register=register)

    assert f"{claim.short} ({claim.trap})" in told("artefacts", verdicts.ARTEFACT, verdicts.NOT)
    assert "no claim is supported by the original way" in told("artefacts", verdicts.HOLDS, verdicts.HOLDS)
    assert "would have missed them: " + claim.short in told("missed", verdicts.NOT, verdicts.HOLDS)
    assert "No claim holds" in told("missed", verdicts.NOT, verdicts.NOT)
    assert "claims: holds (1)" in told("here", verdicts.HOLDS, verdicts.HOLDS)
    assert "claims: not supported (1)" in told("here", verdicts.HOLDS, verdicts.NOT)
