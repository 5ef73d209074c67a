"""Figures: what is drawn is what the frame says, the palette can be told apart, the same figure is the same bytes."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from rewired import plots, runs

MODELS = plots.MODELS


def points(axes, size=None):
    """(x, y) of every point drawn, of those of one size if given."""
    drawn = [c for c in axes.collections if hasattr(c, "get_sizes") and len(c.get_offsets()) and len(c.get_sizes())]
    if size is not None:
        drawn = [c for c in drawn if c.get_sizes()[0] == size]
    return [tuple(map(float, place)) for c in drawn for place in c.get_offsets()]


def labels(figure):
    """The words of the legend."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# --- rows ------------------------------------------------------------------------------------------------------------

TWO = pd.DataFrame(
    {
        "scenario": ["CC_continue", "CC_continue", "DD_trapped", "DD_trapped"],
        "model": ["hybrid", "base", "hybrid", "base"],
        "p_defect": [0.1, 0.2, 0.3, 0.4],
    }
)
SMALL, LARGE = 9, 40


def test_rows_stand_where_their_values_say():
    figure = plots.rows(TWO, "scenario", "p_defect")
    (axes,) = figure.axes
    assert ticks(axes.yaxis) == ["CC continue", "DD trapped"] and axes.get_xlabel() == "p defect"
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first row is on top"
    assert labels(figure) == ["base", "hybrid"], "models in the book's order, not the frame's"
    by_x = {round(x, 9): y for x, y in points(axes, LARGE)}
    assert set(by_x) == {0.1, 0.2, 0.3, 0.4}
    assert round(by_x[0.2]) == round(by_x[0.1]) == 0 and round(by_x[0.4]) == round(by_x[0.3]) == 1
    assert by_x[0.2] < by_x[0.1], "series of one row stand below each other"


def test_rows_show_runs_small_and_their_mean_large():
    frame = pd.DataFrame({"row": "a", "model": "base", "value": [1.0, 2.0, 6.0]})
    (axes,) = plots.rows(frame, "row", "value").axes
    assert [x for x, _ in points(axes, SMALL)] == [1.0, 2.0, 6.0]
    assert points(axes, LARGE) == [(3.0, 0.0)]
    (line,) = axes.collections[0].get_segments()
    assert line[:, 0].tolist() == [1.0, 6.0], "a line over the range"


def test_rows_draw_intervals_starts_and_marks():
    frame = pd.DataFrame(
        {"row": ["a", "b"], "model": "base", "value": [2.0, -1.0], "low": [1.0, -3.0], "high": [4.0, 0.0]}
    )
    (axes,) = plots.rows(frame.assign(start=0.5, mark=3.5), "row", "value").axes
    segments = [
        segment[:, 0].tolist() for c in axes.collections if hasattr(c, "get_segments") for segment in c.get_segments()
    ]
    assert [1.0, 4.0] in segments and [-3.0, 0.0] in segments and [0.5, 2.0] in segments
    red = [line for line in axes.lines if line.get_color() == plots.RED]
    assert [line.get_xdata()[0] for line in red] == [3.5, 3.5] and [line.get_ydata()[0] for line in red] == [0.0, 1.0]
    zero = [line for line in axes.lines if list(line.get_xdata()) == [0, 0]]
    assert len(zero) == 1, "a line at 0, for a value is below it"


def test_rows_in_panels_share_their_levels():
    frame = pd.concat([TWO.assign(state="CC"), TWO.assign(state="DD", p_defect=0.9)])
    first, second = plots.rows(frame, "scenario", "p_defect", panel="state").axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("CC", "DD")
    assert {round(x, 9) for x, _ in points(second, LARGE)} == {0.9}


def test_rows_leave_out_what_is_missing():
    (axes,) = plots.rows(TWO.assign(p_defect=[np.nan, 0.2, 0.3, 0.4]), "scenario", "p_defect").axes
    assert len(points(axes, LARGE)) == 3


def test_distances_mark_rule_seven_in_the_row_of_its_pair():
    index = pd.MultiIndex.from_product([["strategic", "hybrid"], [1, 2]])
    matrix = pd.DataFrame([[0, 1, 5, 6], [1, 0, 7, 8], [5, 7, 0, 2], [6, 8, 2, 0]], index, index, dtype=float)
    pairs = runs.pairs(matrix)
    figure = plots.distances(pairs, runs.differ(pairs), "distance")
    (axes,) = figure.axes
    assert ticks(axes.yaxis) == ["strategic", "hybrid", "strategic – hybrid"]
    (mark,) = [line for line in axes.lines if line.get_color() == plots.RED and np.isfinite(line.get_xdata()[0])]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2.0, 2.0), "the largest distance within, in the third row"
    assert (6.5, 2.0) in points(axes, LARGE), "the mean of the runs at different seeds: 6 and 7"
    assert labels(figure) == [runs.WITHIN, runs.BETWEEN]


def test_distances_of_single_runs_need_no_yardstick():
    index = pd.MultiIndex.from_tuples([("strategic", 1), ("hybrid", 1)])
    pairs = runs.pairs(pd.DataFrame([[0.0, 4.0], [4.0, 0.0]], index, index))
    (axes,) = plots.distances(pairs, runs.differ(pairs), "distance").axes
    assert points(axes, LARGE) == [(4.0, 0.0)]


# --- lines -----------------------------------------------------------------------------------------------------------

COURSE = pd.DataFrame(
    [
        {"variant": v, "seed": s, "episode": e, "panel": p, "reward": e + s + 10 * (v == "hybrid")}
        for v, s, e, p in itertools.product(("hybrid", "strategic"), (1, 2), (0, 10, 20), ("one", "two"))
    ]
)


def test_lines_draw_runs_thin_and_their_mean_thick():
    figure = plots.lines(COURSE, "episode", "reward", panel="panel", ylabel="mean reward")
    first, second = figure.axes
    assert labels(figure) == ["strategic", "hybrid"]
    assert (first.get_ylabel(), second.get_ylabel(), first.get_xlabel()) == ("mean reward", "", "episode")
    thick = {line.get_label(): line.get_ydata().tolist() for line in first.lines if line.get_linewidth() > 1}
    assert thick == {"strategic": [1.5, 11.5, 21.5], "hybrid": [11.5, 21.5, 31.5]}
    thin = [line.get_ydata().tolist() for line in first.lines if line.get_linewidth() < 1]
    assert thin == [[1.0, 11.0, 21.0], [2.0, 12.0, 22.0], [11.0, 21.0, 31.0], [12.0, 22.0, 32.0]]


def test_lines_without_runs_have_a_band():
    (axes,) = plots.lines(COURSE[COURSE["variant"] == "hybrid"], "episode", "reward", run="").axes
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (11.0, 32.0)


def test_lines_take_intervals_from_the_frame():
    frame = pd.DataFrame(
        {"episode": [0, 1], "reward": [1.0, 2.0], "low": [0.5, 1.5], "high": [3.0, 4.0], "variant": "a"}
    )
    (axes,) = plots.lines(frame, "episode", "reward").axes
    corners = axes.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (0.5, 4.0)


# --- grid ------------------------------------------------------------------------------------------------------------


def test_a_grid_says_what_its_cells_are():
    frame = pd.DataFrame(
        {"model": list("aabb"), "scenario": ["CC_continue", "DD_trapped"] * 2, "v": [0.5, -1, 0.25, 0.0]}
    )
    axes, bar = plots.grid(frame, "model", "scenario", "v", label="logits").axes
    assert (ticks(axes.xaxis), ticks(axes.yaxis)) == (["CC\ncontinue", "DD\ntrapped"], ["a", "b"])
    assert axes.images[0].get_array().tolist() == [[0.5, -1.0], [0.25, 0.0]]
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["0.5", "-1.0", "0.2", "0.0"]
    assert bar.get_xlabel() == "logits"


def test_the_colour_of_a_cell_says_its_sign():
    frame = pd.DataFrame({"r": ["a", "a"], "c": ["x", "y"], "v": [1.0, -1.0]})
    image = plots.grid(frame, "r", "c", "v").axes[0].images[0]
    defect, cooperate = (to_rgb(to_hex(image.cmap(image.norm(value)))) for value in (1.0, -1.0))
    assert defect[0] > defect[2] and cooperate[2] > cooperate[0], "orange for defection, blue for cooperation"
    assert image.cmap(image.norm(0.0))[:3] == pytest.approx((1, 1, 1), abs=0.01), "white for neither"
    alone = plots.grid(frame[:1], "r", "c", "v").axes[0].images[0]
    assert alone.cmap is plots.SIZE and alone.norm.vmin == 0


def test_a_grid_shows_missing_cells_notes_and_its_panels():
    frame = pd.DataFrame({"r": ["a", "a", "b"], "c": ["x", "y", "x"], "v": [0.0, 0.0, 0.0], "note": ["n", "", ""]})
    (axes, _) = plots.grid(frame, "r", "c", "v").axes
    assert [text.get_text() for text in axes.texts] == ["0.000", "n", "0.000", "", "0.000", "", "–", ""]
    two = pd.concat([frame.assign(model="hybrid"), frame.assign(model="base", v=2.0)])
    first, second, _ = plots.grid(two, "r", "c", "v", panel="model", vmin=0, vmax=4).axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("base", "hybrid")
    assert first.images[0].norm.vmax == 4


def test_a_square_grid_has_one_order():
    ties = pd.DataFrame(
        {"one": ["L0_MLP", "L0_MLP", "L1_MLP"], "other": ["L1_MLP", "L2_MLP", "L2_MLP"], "r": [1.0, 2, 3]}
    )
    both = pd.concat([ties, ties.rename(columns={"one": "other", "other": "one"})])
    axes = plots.grid(both, "one", "other", "r").axes[0]
    cells = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert np.array_equal(cells, [[np.nan, 1, 2], [1, np.nan, 3], [2, 3, np.nan]], equal_nan=True)
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == ["L0 MLP", "L1 MLP", "L2 MLP"]


# --- scatter ---------------------------------------------------------------------------------------------------------


def test_scatter_puts_points_where_they_belong():
    frame = pd.DataFrame(
        {"x": [-1.0, 2.0], "y": [3.0, -4.0], "low": [2.0, -5.0], "high": [4.0, -3.0], "model": MODELS[:2]}
    )
    figure = plots.scatter(frame, "x", "y", "model", "there", "back")
    (axes,) = figure.axes
    assert points(axes) == [(-1.0, 3.0), (2.0, -4.0)] and labels(figure) == list(MODELS[:2])
    colours = [
        to_hex(c.get_facecolor()[0]) for c in axes.collections if hasattr(c, "get_sizes") and len(c.get_offsets()) == 1
    ]
    assert plots.COLOURS["strategic"] in colours
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("there", "back")
    plots.quadrants(figure)
    shaded = [c.get_paths()[0].get_extents().bounds for c in axes.collections[-2:]]
    (left, low, width, height), (left2, low2, *_) = shaded
    assert left < -1 and left + width == 0 and low == 0 and left2 == 0 and low2 < -4, "where the signs differ"
    plots.diagonal(figure)
    assert axes.lines[-1].get_slope() == 1


# --- what figures share ----------------------------------------------------------------------------------------------


def test_panels_keep_the_look_and_leave_everybody_elses_alone():
    import matplotlib as mpl

    before = mpl.rcParams["axes.spines.top"]
    figure, axes = plots.panels(3)
    assert len(axes) == 3 and len(figure.axes) == 4 and not figure.axes[3].get_visible()
    assert figure.get_facecolor() == (1, 1, 1, 1) and axes[0].get_facecolor() == (1, 1, 1, 1), "a white card"
    assert not axes[0].spines["top"].get_visible() and mpl.rcParams["axes.spines.top"] is before
    assert figure.get_figwidth() == plots.WIDTH


def test_a_probability_runs_from_0_to_1():
    _, (axes,) = plots.panels(1)
    plots.probability(axes, "y", "p")
    assert ticks(axes.yaxis) == ["0", "0.25", "0.5", "0.75", "1"] and axes.get_ylabel() == "p"
    assert axes.get_ylim() == (-0.03, 1.03) and axes.lines[0].get_ydata()[0] == 0.5


def test_names_that_are_no_models_have_a_style_of_their_own():
    names = ["base", "within", "between"]
    assert plots.style("base", names) == {"color": plots.COLOURS["base"], "marker": "o"}
    assert plots.style("within", names)["color"] == plots.OTHERS[0]
    assert plots.style("between", names) == {"color": plots.OTHERS[1], "marker": plots.OTHER_MARKERS[1]}


def test_reserved_names_keep_their_style_whatever_else_is_drawn(monkeypatch):
    for table in ("COLOURS", "MARKERS"):
        monkeypatch.setattr(plots, table, dict(getattr(plots, table)))
    plots.reserve(["base", "within", "between"])
    assert plots.style("between") == {"color": plots.OTHERS[1], "marker": plots.OTHER_MARKERS[1]}
    assert plots.style("base")["color"] == plots.COLOURS["base"] != plots.OTHERS[0]
    assert len(set(plots.OTHERS)) == len(set(plots.OTHER_MARKERS)) == 7, "six organisms and one arm more"


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        figure = plots.rows(TWO, "scenario", "p_defect")
        assert isinstance(figure, Figure)
        plots.save(figure, tmp_path / folder, "figure")
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"figure.svg", "figure.png"}
    for kind in ("svg", "png"):
        assert (tmp_path / f"a/figure.{kind}").read_bytes() == (tmp_path / f"b/figure.{kind}").read_bytes()


def test_a_file_says_how_small_its_text_is_on_a_telephone(tmp_path):
    """A figure of twice 342 / 72 inches is halved there, and so is its text; empty texts do not count."""
    figure = Figure(figsize=(9.5, 3))
    figure.text(0, 0, "corner", fontsize=20)
    figure.text(1, 1, "corner", fontsize=12, ha="right", va="top")
    figure.text(0.5, 0.5, "", fontsize=1)
    plots.save(figure, tmp_path, "figure")
    shown = re.search(r"smallest text: ([\d.]+) px of 342", (tmp_path / "figure.svg").read_text())
    assert float(shown[1]) == pytest.approx(6, abs=0.3)


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
    of_models = dict(plots.COLOURS)
    of_others = {"base": plots.COLOURS["base"]} | {colour: colour for colour in plots.OTHERS}  # the base joins both
    for colours in (of_models, of_others):
        seen = {name: _lightness_and_colour(colour, SIGHT[sight]) for name, colour in colours.items()}
        for a, b in itertools.combinations(seen, 2):
            assert np.linalg.norm(seen[a] - seen[b]) > 12, f"{a} and {b} look alike to {sight} sight"


def test_models_can_be_told_apart_without_colour():
    assert set(plots.COLOURS) == set(plots.MARKERS) == set(MODELS)
    assert len(set(plots.MARKERS.values())) == len(MODELS)


def test_tables_show_missing_numbers_as_a_dash():
    html = plots.table(pd.DataFrame({"a": [0.123, np.nan]})).data
    assert "0.12" in html and "–" in html and "NaN" not in html


def test_tables_set_words_apart_from_numbers():
    html = plots.table(pd.DataFrame({"a": ["one", "<b>two</b>", "3 of 4"], "b": [1.0, np.nan, 2.0]})).data
    assert re.findall(r"<td([^>]*)>([^/]*)</", html) == [
        (' class="words"', "one"), ("", "1.00"), (' class="words"', "<b>two"), ("", "–"), ("", "3 of 4"), ("", "2.00"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "least", "told"),
    [
        ([0.0, 0.0, 0.1], 0, "0.03 (0.00 to 0.18)"),
        ([0.0, 0.0, 0.1], -1, "0.03 (-0.11 to 0.18)"),
        ([0.9, 1.0], 0, "0.95 (0.31 to 1.00)"),
        ([-0.001], -1, "0.00"),
        ([-0.001, -0.001], -1, "0.00 (0.00 to 0.00)"),
        ([np.nan], -1, "–"),
    ],
)
def test_a_mean_over_runs_ends_where_such_a_number_has_to(values, least, told):
    assert plots.over_runs(pd.Series(values), least) == told


def test_no_table_shows_a_negative_zero():
    shown = plots.table(pd.DataFrame({"name": ["a"], "value": [-0.001], "other": [-0.012]})).data
    assert "-0.00" not in shown and "-0.01" in shown
