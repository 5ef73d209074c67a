"""Figures: the promised columns are enough, the palette can be told apart, the same figure gives the same bytes."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from rewired import games, plots

MODELS = plots.MODELS
RANDOM = np.random.default_rng(0)
CHOICES = pd.DataFrame(
    [
        {"model": m, "variant": m, "seed": s, "state": state, "scenario": f"{state}_x", "labels": pair}
        for m in MODELS for s in (1, 2) for state in games.STATES for pair in ("a/b", "b/a")
    ]
)  # fmt: skip
CHOICES["p_defect"] = RANDOM.random(len(CHOICES))
CURVES = pd.DataFrame(
    [
        {"variant": m, "seed": s, "episode": e, "panel": p, "value": RANDOM.random()}
        for m in MODELS[1:] for s in (1, 2) for e in (0, 10, 20) for p in ("one", "two", "three")
    ]
)  # fmt: skip
SHARES = pd.DataFrame(
    {"model": MODELS, "expected": 0.4, "sampled": 0.5, "lower": 0.3, "upper": 0.6, "x": 1.0, "y": -1.0}
)
PLAYED = pd.DataFrame(
    [
        {"panel": game, "model": m, "seed": s, "answer": answer, "share": 0.25}
        for game in ("one", "two", "three") for m in (*MODELS, "care") for s in (1, 2)
        for answer in ("C after C", "D after C", "D after D", "illegal")
    ]
)  # fmt: skip


DEEP = pd.DataFrame(
    [
        {"model": m, "seed": s, "scenario": c, "position": p, "depth": d, "layer": d, "head": h}
        for m in MODELS for s in (1, 2) for c in ("CC_continue", "DD_trapped") for p in ("early", "late")
        for d in range(3) for h in range(2)
    ]
)  # fmt: skip
DEEP["delta"] = RANDOM.normal(size=len(DEEP))
PATCHES = pd.DataFrame(
    [
        {"pair": p, "component": f"L{k}_MLP", "kind": kind, "size": 2**k, "effect": RANDOM.normal(), "back": 0.1}
        for p in ("A → B", "B → A") for k in range(4) for kind in ("head", "MLP", "attention layer")
    ]
)  # fmt: skip
BANDS = pd.DataFrame(
    [
        {"episode": e, "measure": m, "value": 0.5 + e / 40, "low": 0.4 + e / 40, "high": 1.0}
        for m in ("one", "two")
        for e in (0, 10, 20)
    ]
)
NODES = [f"L{layer}_{kind}" for layer in range(3) for kind in ("ATTN", "MLP")]
TIES = pd.DataFrame(
    [
        {"one": a, "other": b, "r": RANDOM.uniform(-1, 1), "difference": RANDOM.normal(), "panel": p, "clear": a < "L1"}
        for a, b in itertools.combinations(NODES, 2) for p in ("strategic", "hybrid")
    ]
)  # fmt: skip
RATIOS = pd.DataFrame(
    [
        {"level": level, "pair": f"{a} – {b}", "a": a, "b": b, "value": 0.5 + k, "low": 0.4, "high": 1.1 + k,
         "bar": 1.2, "run_low": np.nan, "run_high": 20.0, "differ": k > 0}
        for level in ("weights", "choice") for k, (a, b) in enumerate((("all", "all"), MODELS[1:3], ("care", "hybrid")))
    ]
)  # fmt: skip
APART = pd.DataFrame(
    [
        {"level": level, "variant_a": u[0], "seed_a": u[1], "variant_b": v[0], "seed_b": v[1], "distance": 1.0}
        for level in ("weights", "choice")
        for u, v in itertools.combinations([(m, s) for m in ("strategic", "care") for s in (1, 2)], 2)
    ]
)
KINDS = ["within a variant", "between variants"]
OPTIMUM = {name: games.REWARDS[name].optimum for name in ("strategic", "deontological", "utilitarian", "hybrid")}

FIGURES = {
    "loss_curve": lambda: plots.loss_curve(pd.DataFrame({"tokens": [0, 1e6, 2e6], "loss": [3.0, 1.0, 0.5]})),
    "loss_curve, no log": lambda: plots.loss_curve(pd.DataFrame({"tokens": [], "loss": []})),
    "dots": lambda: plots.dots(
        pd.DataFrame({"r": ["a", "b"], "s": ["x", "y"], "v": [0.1, 0.9], "f": [0.5, 0.5]}), "r", "s", "v", floor="f"
    ),
    "dumbbells": lambda: plots.dumbbells(
        pd.DataFrame({"row": ["a", "b"], "kind": ["x", "y"], "before": [0.1, 0.2], "after": [0.5, 0.1]})
    ),
    "by_scenario": lambda: plots.by_scenario(CHOICES),
    "by_scenario, one model": lambda: plots.by_scenario(CHOICES[CHOICES["model"] == "base"]),
    "by_state": lambda: plots.by_state(CHOICES, x="labels"),
    "curves": lambda: plots.curves(CURVES, panel="panel", ylabel="p", probability=True),
    "curves, a panel a variant": lambda: plots.curves(CURVES, panel="variant", sharey=False),
    "curves, with a mark": lambda: plots.curves(CURVES, panel="panel", mark=10),
    "bands": lambda: plots.bands(BANDS, "episode", "measure", "episode", "share", mark=10),
    "bands, no intervals": lambda: plots.bands(BANDS.assign(low=np.nan, high=np.nan), "episode", "measure"),
    "policy": lambda: plots.policy(CHOICES, OPTIMUM),
    "curves, over rounds": lambda: plots.curves(
        CURVES.rename(columns={"episode": "round"}), panel="panel", probability=True, x="round"
    ),
    "answers": lambda: plots.answers(PLAYED),
    "answers, one run and nothing but defection": lambda: plots.answers(
        pd.DataFrame({"panel": ["x"], "model": ["base"], "seed": [0], "answer": ["D after C"], "share": [1.0]})
    ),
    "ranges": lambda: plots.ranges(CHOICES, "state", "p_defect", panel="labels", share=True),
    "ranges, one panel": lambda: plots.ranges(CHOICES.assign(model="care"), "state", "p_defect", xlabel="points"),
    "reciprocity": lambda: plots.reciprocity(
        CHOICES.assign(reading=CHOICES["labels"], after_C=CHOICES["p_defect"], after_D=0.5)
    ),
    "matrix": lambda: plots.matrix(
        pd.DataFrame({"r": list("aabb"), "c": list("xyxy"), "v": [0, 1, 2, np.nan], "n": ["", "0–1", "", ""]}),
        "r",
        "c",
        "v",
        note="n",
        high=2.0,
    ),
    "differences": lambda: plots.differences(
        pd.DataFrame(
            {"row": ["a", "b"], "model": ["base", "hybrid"], "difference": [0.1, 0], "low": [0, 0], "high": [0.2, 0]}
        ),
        xlabel="change",
    ),
    "differences, no range": lambda: plots.differences(
        pd.DataFrame({"row": ["a"], "model": ["base"], "difference": [2.0], "low": [np.nan], "high": [np.nan]}), "x"
    ),
    "two_metrics": lambda: plots.two_metrics(SHARES, "x", "y", "x", "y"),
    "agreement": lambda: plots.agreement(SHARES),
    "strips": lambda: plots.strips(DEEP, "scenario", "delta", "delta"),
    "strips, one value each": lambda: plots.strips(
        DEEP.drop_duplicates(["model", "depth"]), "depth", "delta", "delta", zero=False
    ),
    "trajectories": lambda: plots.trajectories(DEEP, row="model"),
    "trajectories, all models in a panel": lambda: plots.trajectories(DEEP, row="position"),
    "heatmap": lambda: plots.heatmap(DEEP, "model", "scenario", "delta", "delta", panel="position", columns=1),
    "heatmap, many cells": lambda: plots.heatmap(DEEP, "layer", "head", "delta", "d", panel="model", columns=3),
    "heatmap, all zero and one missing": lambda: plots.heatmap(
        pd.DataFrame({"r": ["a", "a", "b"], "c": ["x", "y", "x"], "v": [0.0, 0.0, 0.0]}), "r", "c", "v", "value"
    ),
    "bars_by_layer": lambda: plots.bars_by_layer(DEEP, "scenario", "delta", "delta"),
    "gap_by_depth": lambda: plots.gap_by_depth(
        pd.DataFrame(
            [{"pair": k, "kind": k, "depth": d, "distance": d / 3} for k in KINDS for d in range(3) for _ in "ab"]
        ),
        "gap",
    ),
    "gap_by_depth, one seed": lambda: plots.gap_by_depth(
        pd.DataFrame({"pair": "a – b", "kind": KINDS[1], "depth": [0, 1], "distance": [0.0, 1.0]}), "gap"
    ),
    "steps": lambda: plots.steps(PATCHES, "size", "effect", "kind", "pair", "k", "share", doubling=True),
    "scatter": lambda: plots.scatter(PATCHES, "effect", "back", "kind", "x", "y", panel="pair", shade=True),
    "matrices": lambda: plots.matrices(TIES, "r", "r", "panel", mark="clear"),
    "matrices, with a pair that is missing": lambda: plots.matrices(
        TIES[TIES["panel"] == "hybrid"].assign(r=[np.nan, *[0.5] * 14]), "r", "r", "panel"
    ),
    "yardsticks": lambda: plots.yardsticks(
        pd.DataFrame(
            [
                {"row": r, "panel": p, "kind": k, "value": 0.4, "low": 0.1 if k == "null" else np.nan, "high": 0.5}
                for r in "ab"
                for p in ("0.3", "0.5")
                for k in ("measured", "null")
            ]
        ),
        "share",
    ),
    "cascade": lambda: plots.cascade(RATIOS, "ratio"),
    "cascade, one seed": lambda: plots.cascade(
        RATIOS.assign(low=np.nan, high=np.nan, run_low=np.nan, run_high=np.nan, bar=np.nan, differ=False), "d", "mean"
    ),
    "cascade, nothing to compare": lambda: plots.cascade(RATIOS.assign(value=np.nan), "ratio"),
    "run_distances": lambda: plots.run_distances(APART, "distance"),
    "run_distances, one run": lambda: plots.run_distances(APART[:0], "distance"),
    "pathways": lambda: plots.pathways(NODES, TIES, "panel", "r"),
    "scatter, one panel": lambda: plots.scatter(PATCHES, "effect", "back", "kind", "x", "y", diagonal=True),
}


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_drawn_from_the_promised_columns(name, tmp_path):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    plots.save(figure, tmp_path, "figure")
    assert {file.name for file in tmp_path.iterdir()} == {"figure.svg", "figure.png"}


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        plots.save(FIGURES["policy"](), tmp_path / folder, "figure")
    for kind in ("svg", "png"):
        assert (tmp_path / f"a/figure.{kind}").read_bytes() == (tmp_path / f"b/figure.{kind}").read_bytes()


def test_a_figure_stays_dark_on_a_white_card():
    figure = FIGURES["curves"]()
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert all(axes.get_facecolor() == (1, 1, 1, 1) for axes in figure.axes)


# How a colour looks without red (protan) or green (deutan) cones, in linear RGB; Machado et al. 2009, severity 1.
SIGHT = {
    "full": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def _lightness_and_colour(colour: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour seen through ``sight``."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(sight @ linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_models_can_be_told_apart_by_colour(sight):
    seen = {model: _lightness_and_colour(colour, SIGHT[sight]) for model, colour in plots.COLOURS.items()}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 12, f"{a} and {b} look alike to {sight} sight"


def test_models_can_be_told_apart_without_colour():
    assert set(plots.COLOURS) == set(plots.MARKERS) == set(MODELS)
    assert len(set(plots.MARKERS.values())) == len(MODELS)


def test_tables_show_missing_numbers_as_a_dash():
    html = plots.table(pd.DataFrame({"a": [0.123, np.nan]})).data
    assert "0.12" in html and "–" in html and "NaN" not in html


def test_the_token_view_escapes_and_marks():
    html = plots.token_view(["<bos>", " a", "\n"], ["", "own_move", ""], {1: "decision step"}).data
    assert "&lt;bos&gt;" in html and "decision step" in html and 'title="1: own_move"' in html
    assert html.count('class="token ') == 3


def test_runs_in_words():
    assert plots.span([0.3, 0.5]) == "0.40 (0.30 to 0.50)"
    assert plots.span([0.3, np.nan]) == "0.30" and plots.span([]) == "undefined"


def test_made_by_names_only_what_was_given():
    class Profile:
        name = "pocket"

    assert (
        plots.made_by("03_prompts", Profile, seed=2, overrides=[])
        == "notebooks/03_prompts.ipynb, profile pocket, seed 2"
    )
