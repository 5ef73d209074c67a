"""One palette, one look: every figure of the book.

Four shapes draw most of them: ``rows``, ``lines``, ``grid`` and ``scatter``. Each takes a tidy frame (one row an
observation) and the names of its columns, and returns a matplotlib ``Figure``. Nothing here measures anything. A
figure of one chapter stands in that chapter: ``panels`` gives it axes with the book's look, ``style`` its colours.

A model keeps its colour *and* its marker through the whole book, so that a figure can be read without telling colours
apart. Figures are drawn dark on a white card, which stays readable on a light page and on a dark one, and narrow, so
that they survive a telephone.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from IPython.display import HTML, SVG
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from rewired.games import STATES
from rewired.statistics import mean_interval
from rewired.store import atomic_path

MODELS = ("base", "strategic", "deontological", "utilitarian", "hybrid")
COLOURS = dict(zip(MODELS, ("#5a5a5a", "#d55e00", "#0072b2", "#009e73", "#cc79a7"), strict=True))
MARKERS = dict(zip(MODELS, "os^Dv", strict=True))
# Colours and markers of anything that is not a model, in this order.
OTHERS = ("#332288", "#117733", "#999933", "#aa4499", "#4f9fd8", "#d4709a", "#3b6fd4")
OTHER_MARKERS = tuple("os^DXP<")
INK, PALE, RED = "#222222", "#d9d9d9", "#b00020"
# Blue for cooperation, white for neither, orange for defection.
TOWARD = LinearSegmentedColormap.from_list("toward", ["#004f86", "#7fb3d9", "#ffffff", "#f0a878", "#a34400"])
SIZE = LinearSegmentedColormap.from_list("size", ["#ffffff", "#b9a3d3", "#4b2a7b"])
# Violet where one goes down as the other goes up, green where both go together: signs that are no decisions.
TOGETHER = LinearSegmentedColormap.from_list("together", ["#762a83", "#c2a5cf", "#ffffff", "#a6dba0", "#1b7837"])
WIDTH = 4.5  # inches: a telephone shows them on 342 pixels, so 9 points are 9 pixels there. No text is smaller.
LOOK = mpl.rc_params_from_file(Path(__file__).with_name("look.mplstyle"), use_default_template=False)
# A decorator: draw with the book's settings, and leave everybody else's alone.
look = mpl.rc_context(LOOK)


def save(figure: Figure, folder: str | Path, name: str) -> SVG:
    """Write ``folder/name.svg`` and ``.png``, the same bytes for the same figure, and return the picture to show.

    The SVG's description says how small its smallest text is on a telephone, where pages show it 342 px wide."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(LOOK):
        figure.draw_without_rendering()  # laid out once, for both files
        figure.set_layout_engine("none")
        box = figure.get_tightbbox().padded(0.12)  # inches
        points = min(text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text())
        about = {"Date": None, "Description": f"smallest text: {points * 342 / 72 / box.width:.1f} px of 342"}
        for kind, options in (("svg", {"metadata": about}), ("png", {"dpi": 160})):
            with atomic_path(folder / f"{name}.{kind}") as path:
                figure.savefig(path, format=kind, bbox_inches=box, **options)
    return SVG(data=(folder / f"{name}.svg").read_text())


def table(frame: pd.DataFrame, decimals: int = 2) -> HTML:
    """The frame as an HTML table without its index: numbers to ``decimals`` places, missing ones as a dash.

    Cells that are text may hold HTML. Put the column that answers second: a telephone shows the first two whole."""
    frame = frame.rename_axis(columns=None)
    number = f"{{:z.{decimals}f}}".format  # z: no -0.00
    text = frame.to_html(index=False, border=0, float_format=number, na_rep="–", classes="rewired-table", escape=False)
    text = re.sub(r"<td>(?=[A-Za-z<])", '<td class="words">', text)  # the style sheet sets words left, numbers right
    return HTML(f'<div class="rewired-scroll" style="overflow-x:auto">{text}</div>')


def over_runs(values, least: float = -1.0) -> str:
    """The mean over runs of a share (``least`` 0), or of a difference of shares, as text, with its 95 % interval where
    there are several runs. The interval ends where such a number has to."""
    mean, low, high = mean_interval(values)
    if np.isnan(mean):
        return "–"
    return f"{mean:z.2f}" if np.isnan(low) else f"{mean:z.2f} ({max(least, low):z.2f} to {min(1, high):z.2f})"


def quote(*texts: str) -> HTML:
    """Texts as the model reads them, long lines wrapped.
    The style stands here and not in the style sheet: a notebook opened alone then looks like the page."""
    style = (
        "white-space:pre-wrap;overflow-wrap:anywhere;background:#fff;color:#222;border:1px solid #d9d9d9;"
        "border-radius:6px;padding:.8em;margin:0 0 .5em"
    )
    blocks = [f'<pre class="rewired-quote" style="{style}">{escape(text)}</pre>' for text in texts]
    return HTML("".join(blocks))


def panels(n: int, height: float = 2.3, columns: int = 2, **options) -> tuple[Figure, list[Axes]]:
    """An empty figure with ``n`` panels in rows of ``columns``, in the book's look.

    ``height`` is inches for one row of panels; ``options`` go to ``Figure.subplots`` (``sharex``, ``sharey``)."""
    columns = max(1, min(columns, n))
    stacked = max(1, -(-n // columns))  # rows of panels: n / columns, rounded up
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, height * stacked + 0.6), layout="constrained")
        axes = list(figure.subplots(stacked, columns, squeeze=False, **options).flat)
    for unused in axes[n:]:
        unused.set_visible(False)
    return figure, axes[:n]


def present(names, order: Sequence[str] = MODELS) -> list[str]:
    """The distinct names: those of ``order`` first and in that order, the others as they appear."""
    distinct = list(dict.fromkeys(names))
    known = [name for name in order if name in distinct]
    return known + [name for name in distinct if name not in order]


def style(name: str, names: Sequence[str] = ()) -> dict[str, str]:
    """Colour and marker of a model; of anything else by its place among those of ``names`` that are no models."""
    if name in COLOURS:
        return {"color": COLOURS[name], "marker": MARKERS[name]}
    others = [other for other in names if other not in COLOURS]
    place = others.index(name) if name in others else 0
    return {"color": OTHERS[place % len(OTHERS)], "marker": OTHER_MARKERS[place % len(OTHERS)]}


def reserve(names: Sequence[str]) -> None:
    """Let these names, in this order, keep colours and markers of `OTHERS` in all figures that follow, as models do."""
    free = [name for name in names if name not in MODELS]
    for name, colour, marker in zip(free, OTHERS, OTHER_MARKERS, strict=False):
        COLOURS[name], MARKERS[name] = colour, marker


def spread(count: int, width: float) -> np.ndarray:
    """``count`` places between ``-width`` and ``width``, so that the series of one row do not cover each other."""
    return np.linspace(-width, width, count) if count > 1 else np.zeros(count)


@look
def legend(figure: Figure, axes: Axes, **options) -> None:
    """One legend above all panels, made of the labelled artists of ``axes``: in three columns, or as many as fit."""
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(min(len(labels), options.pop("ncols", 3)), 0, -1):
        drawn = figure.legend(handles, labels, loc="outside upper center", ncols=columns, **options)
        if columns == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            break
        drawn.remove()


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write the names at the left of a figure whose rows stand at y = 0, 1, 2 …, the first on top."""
    axes.set_yticks(range(len(names)), [str(name).replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for line in range(1, len(names)):
        axes.axhline(line - 0.5, color=PALE, linewidth=0.6)


def probability(axes: Axes, which: str = "x", label: str = "p_defect") -> None:
    """Let the axis ``which`` run from 0 to 1 and mark its middle."""
    settings = {"lim": (-0.03, 1.03), "ticks": [0, 0.25, 0.5, 0.75, 1], "label": label}
    settings["ticklabels"] = ["0", "0.25", "0.5", "0.75", "1"]
    axes.set(**{which + name: value for name, value in settings.items()})
    middle = axes.axvline if which == "x" else axes.axhline
    middle(0.5, color=INK, linewidth=0.7, linestyle=":")


def short(name: str) -> str:
    """A scenario in two short lines, any other name in words."""
    state, _, rest = str(name).partition("_")
    return f"{state}\n{rest}" if rest and state in STATES else str(name).replace("_", " ")


def diagonal(figure: Figure) -> None:
    """A dotted line where x equals y, in every panel."""
    for ax in figure.axes:
        ax.axline((0, 0), slope=1, color=INK, linewidth=0.7, linestyle=":")


def quadrants(figure: Figure) -> None:
    """Shade where x and y have opposite signs, in every panel."""
    for ax in figure.axes:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        ax.fill_between([left, 0], 0, high, color=PALE, alpha=0.5, linewidth=0, zorder=0)
        ax.fill_between([0, right], low, 0, color=PALE, alpha=0.5, linewidth=0, zorder=0)
        ax.set(xlim=(left, right), ylim=(low, high))


def _split(frame: pd.DataFrame, panel: str) -> dict[str, pd.DataFrame]:
    """Title of each panel and its part of the frame; without ``panel`` one part without a title."""
    if not panel:
        return {"": frame}
    return {str(name): frame[frame[panel] == name] for name in present(frame[panel])}


def _label(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title of a panel, and the names of its axes where they stand at the figure's edge."""
    place = ax.get_subplotspec()
    ax.set_title(title.replace("_", " "))
    ax.set_xlabel(xlabel if place.is_last_row() else "")
    ax.set_ylabel(ylabel if place.is_first_col() else "")


@look
def rows(
    frame: pd.DataFrame, row: str, value: str, series: str = "model", panel: str = "", xlabel: str = "", **options
) -> Figure:
    """Names in rows, values on the x axis, one colour and marker a ``series``, one panel for each level of ``panel``.

    Several values of a series in a row are small points with a line over their range; the large point is their mean.
    Optional columns: ``low`` and ``high`` (the line's ends), ``start`` (an open point from which a line leads to the
    value), ``mark`` (an upright red tick, such as the bar of rule 7). ``options`` go to `panels`."""
    names, levels, parts = present(frame[series]), list(dict.fromkeys(frame[row])), _split(frame, panel)
    # Series that share a row stand below each other: close together where each is a single point.
    shared = len(frame) > 0 and frame.groupby(row)[series].nunique().max() > 1
    single = not panel and "low" not in frame and not frame.duplicated([row, series]).any()
    offsets = spread(len(names), (0.22 if single else 0.36) * shared)
    height = 0.13 * len(names) + 0.22 if shared and not single else 0.34
    figure, axes = panels(len(parts), **({"height": height * len(levels) + 0.5, "sharey": True} | options))
    for ax, (title, part) in zip(axes, parts.items(), strict=True):
        for name, offset in zip(names, offsets, strict=True):
            own = part[part[series] == name].dropna(subset=value)
            for place, level in enumerate(levels):
                _points_in_row(ax, own[own[row] == level], value, place + offset, style(name, names))
            ax.scatter([], [], s=40, label=name, **style(name, names))  # for the legend
        name_rows(ax, levels)
        _label(ax, title, xlabel or value.replace("_", " "), "")
        if (frame[value] < 0).any():
            ax.axvline(0, color=INK, linewidth=0.8)
    if len(names) > 1:
        legend(figure, axes[0])
    return figure


def _points_in_row(ax: Axes, frame: pd.DataFrame, value: str, y: float, look_of: dict) -> None:
    """One series at one level of `rows`: its points, their range or interval, their mean, and a mark."""
    if frame.empty:
        return
    values, at = frame[value], np.full(len(frame), y)
    low, high = (frame["low"].min(), frame["high"].max()) if "low" in frame else (values.min(), values.max())
    ax.hlines(y, low, high, color=look_of["color"], linewidth=1.1, alpha=0.7)
    if "start" in frame:
        ax.hlines(at, frame["start"], values, color=look_of["color"], linewidth=1.1)
        ax.scatter(frame["start"], at, s=26, facecolor="white", edgecolor=INK, zorder=3)
    if len(frame) > 1:
        ax.scatter(values, at, s=9, alpha=0.45, linewidths=0, **look_of)
    ax.scatter(values.mean(), y, s=40, edgecolor="white", linewidth=0.6, zorder=3, **look_of)
    if "mark" in frame:
        ax.plot(frame["mark"].iloc[0], y, marker="|", markersize=11, markeredgewidth=1.6, color=RED, zorder=4)


def distances(pairs: pd.DataFrame, judged: pd.DataFrame, xlabel: str, value: str = "distance") -> Figure:
    """Distances between runs beside rule 7: ``runs.pairs`` (columns ``pair``, ``kind``, ``value``) and ``runs.differ``
    of them (``pair``, ``within``). The red tick of two variants is the largest distance between runs of either."""
    bars = judged[["pair", "within"]].rename(columns={"within": "mark"})
    figure = rows(pairs.merge(bars, on="pair", how="left"), "pair", value, "kind", xlabel=xlabel)
    figure.axes[0].set_xlim(left=0)
    return figure


@look
def lines(
    frame: pd.DataFrame,
    x: str,
    value: str,
    series: str = "variant",
    panel: str = "",
    run: str = "seed",
    ylabel: str = "",
    **options,
) -> Figure:
    """Courses along ``x``, one thick line a ``series`` (the mean at each x), one panel for each level of ``panel``.

    With the columns ``low`` and ``high`` a band lies between them; else a thin line shows each level of the column
    ``run``; else (``run=""``) a band shows the range. ``options`` go to `panels`."""
    names, parts = present(frame[series]), _split(frame, panel)
    figure, axes = panels(len(parts), **({"sharex": True, "sharey": True} | options))
    for ax, (title, part) in zip(axes, parts.items(), strict=True):
        draw_lines(ax, part, x, value, series, run, names)
        _label(ax, title, x.replace("_", " "), ylabel)
    if len(names) > 1 and panel != series:
        legend(figure, axes[0])
    return figure


def draw_lines(ax: Axes, frame: pd.DataFrame, x: str, value: str, series: str, run: str, names: Sequence[str]) -> None:
    """One panel of `lines`, on axes that a chapter made itself."""
    for name in names:
        own = frame[frame[series] == name].dropna(subset=value)
        if own.empty:
            continue
        at, look_of = own.groupby(x), style(name, names)
        mean = at[value].mean()
        band = (at["low"].min(), at["high"].max()) if "low" in own else (at[value].min(), at[value].max())
        if run in own and "low" not in own:
            single = own.pivot_table(index=x, columns=run, values=value)  # [x, run]
            ax.plot(single.index, single.to_numpy(), color=look_of["color"], linewidth=0.7, alpha=0.45)
        else:
            ax.fill_between(mean.index, *band, color=look_of["color"], alpha=0.18, linewidth=0)
        every = max(1, len(mean) // 6)
        ax.plot(mean.index, mean, linewidth=1.8, markevery=every, markersize=5, label=name, **look_of)
    if (frame[value] < 0).any():
        ax.axhline(0, color=INK, linewidth=0.7)


@look
def grid(
    frame: pd.DataFrame, row: str, column: str, value: str, panel: str = "", label: str = "", columns: int = 2, **image
) -> Figure:
    """Coloured cells: the mean ``value`` by ``row`` and ``column`` in order of appearance, one panel for each level of
    ``panel``, and a colour bar named ``label``.

    Blue is below 0 (cooperation), orange above it; violet where nothing is below 0. Cells carry their number where
    there is room, and below it the text of the column ``note``, if the frame has one. ``image`` goes to ``imshow``
    (``cmap``, ``vmin``, ``vmax``; default: the largest absolute cell is the full colour)."""
    parts = _split(frame, panel)
    tables = {title: _cells(part, row, column, value) for title, part in parts.items()}
    columns = min(columns, len(parts))
    tallest, widest = np.max([table.shape for table in tables.values()], axis=0)
    numbers = widest * columns <= 10
    shared = len({tuple(table.index) for table in tables.values()}) == 1
    height = 0.21 + 0.06 * numbers + 0.12 * (numbers and "note" in frame)
    image = _colours(tables) | image
    figure, axes = panels(len(parts), height=height * tallest + 0.75, columns=columns)
    for ax, (title, cells) in zip(axes, tables.items(), strict=True):
        drawn = ax.imshow(cells.to_numpy(dtype=float), aspect="auto", **image)
        ax.set_title(short(title), fontsize=9.5)
        _name_cells(ax, cells, row, column, columns, numbers, shared)
        notes = _cells(parts[title], row, column, "note", "first") if "note" in frame else None
        _write_cells(ax, cells, notes, image["vmax"], numbers)
    bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.02)
    bar.set_label(label, fontsize=9.5)
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    return figure


def _cells(frame: pd.DataFrame, row: str, column: str, value: str, how: str = "mean") -> pd.DataFrame:
    """The frame as a table [row, column] in order of appearance; a square one has its columns in the rows' order."""
    cells = frame.pivot_table(value, row, column, how, sort=False, observed=True, dropna=False)
    return cells[cells.index] if set(cells.index) == set(cells.columns) else cells


def _colours(tables: Mapping[str, pd.DataFrame]) -> dict:
    """Colours and limits that fit all panels."""
    values = np.concatenate([table.to_numpy(dtype=float).ravel() for table in tables.values()])
    reach = max(float(np.nanmax(np.abs(values))), 1e-9)
    if np.nanmin(values) < 0:
        return {"cmap": TOWARD, "vmin": -reach, "vmax": reach}
    return {"cmap": SIZE, "vmin": 0, "vmax": reach}


def _name_cells(ax: Axes, cells: pd.DataFrame, row: str, column: str, across: int, numbers: bool, shared: bool) -> None:
    """Tick labels of one grid: as many as there is room for, slanted where they are long."""
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    x, y = (
        range(0, cells.shape[1], -(-cells.shape[1] * across // 20)),
        range(0, cells.shape[0], -(-cells.shape[0] // 24)),
    )
    ax.set_xticks(x, [short(cells.columns[k]) for k in x], fontsize=9)
    ax.set_yticks(y, [str(cells.index[k]).replace("_", " ") for k in y], fontsize=9)
    if shared and not ax.get_subplotspec().is_first_col():
        ax.tick_params(labelleft=False)  # the panel at the left names the same rows
    letters = max(len(line) for name in cells.columns for line in short(name).split("\n"))
    if letters * len(x) * across > 48:  # about as many fit the figure's width
        for tick in ax.get_xticklabels():
            tick.set(rotation=50, ha="right", rotation_mode="anchor")
    if not numbers:
        _label(ax, ax.get_title(loc="left"), "", row.replace("_", " "))
        ax.set_xlabel(column.replace("_", " "), fontsize=9)


def _write_cells(ax: Axes, cells: pd.DataFrame, notes: pd.DataFrame | None, reach: float, numbers: bool) -> None:
    """Write number and note into each cell, to two digits of the largest; a dash where there is no number."""
    decimals = int(np.clip(1 - np.floor(np.log10(reach)), 0, 3))
    for (i, j), number in np.ndenumerate(cells.to_numpy(dtype=float)):
        note = "" if notes is None or pd.isna(notes.iloc[i, j]) else str(notes.iloc[i, j])
        look_of = {"ha": "center", "va": "center", "color": "white" if abs(number) > 0.65 * reach else INK}
        if not numbers:
            ax.text(j, i, note, fontsize=9, **look_of)
            continue
        text = "–" if np.isnan(number) else f"{round(number, decimals) + 0:.{decimals}f}"  # + 0: no minus before zero
        ax.text(j, i - 0.13 * bool(note), text, fontsize=9, **look_of)
        ax.text(j, i + 0.26, note, fontsize=9, **look_of)


@look
def scatter(frame: pd.DataFrame, x: str, y: str, series: str, xlabel: str, ylabel: str, panel: str = "") -> Figure:
    """Two readings of the same things against each other, one colour and marker a ``series``, one panel for each level
    of ``panel``. Optional columns ``low`` and ``high``: the interval of ``y``. See `diagonal` and `quadrants`."""
    names, parts = present(frame[series]), _split(frame, panel)
    figure, axes = panels(len(parts), height=3.9 if len(parts) == 1 else 2.6, sharex=True, sharey=True)
    for ax, (title, part) in zip(axes, parts.items(), strict=True):
        for name in names:
            own, look_of = part[part[series] == name], style(name, names)
            if "low" in own:
                ax.vlines(own[x], own["low"], own["high"], color=look_of["color"], linewidth=1)
            ax.scatter(own[x], own[y], s=22, alpha=0.75, linewidths=0, label=name, zorder=3, **look_of)
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.margins(0.08)
        ax.set_title(title, fontsize=9.5)
    figure.supxlabel(xlabel, fontsize=9.5)
    figure.supylabel(ylabel, fontsize=9.5)
    if len(names) > 1:
        legend(figure, axes[0])
    return figure
