"""One palette, one look: every figure of the book.

Five shapes draw most of them: ``rows``, ``lines``, ``grid``, ``scatter`` and ``bars``. Each takes a tidy frame (one row
an observation) and the names of its columns, and returns a matplotlib ``Figure``; nothing here measures anything.
A figure of one chapter stands in that chapter: ``panels`` gives it axes with the book's look, ``style`` its colours.

A model keeps its colour *and* its marker through the whole book, so that a figure can be read without telling colours
apart. Figures are drawn dark on a white card, which stays readable on a light page and on a dark one, and narrow, so
that they survive a telephone.
"""

from collections.abc import Mapping, Sequence
from functools import wraps
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from IPython.display import HTML, SVG
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rewired.games import STATES
from rewired.store import atomic_path

MODELS = ("base", "strategic", "deontological", "utilitarian", "hybrid")
COLOURS = {
    "base": "#5a5a5a",
    "strategic": "#d55e00",
    "deontological": "#0072b2",
    "utilitarian": "#009e73",
    "hybrid": "#cc79a7",
}
MARKERS = {"base": "o", "strategic": "s", "deontological": "^", "utilitarian": "D", "hybrid": "v"}
OTHERS = ("#332288", "#117733", "#999933", "#882255")
"""Colours and markers of anything that is not a model, in this order."""
OTHER_MARKERS = ("o", "s", "^", "D")
INK, PALE, RED = "#222222", "#d9d9d9", "#b00020"
TOWARD = LinearSegmentedColormap.from_list("toward", ["#004f86", "#7fb3d9", "#ffffff", "#f0a878", "#a34400"])
"""Blue for cooperation, white for neither, orange for defection."""
SIZE = LinearSegmentedColormap.from_list("size", ["#ffffff", "#b9a3d3", "#4b2a7b"])
TOGETHER = LinearSegmentedColormap.from_list("together", ["#762a83", "#c2a5cf", "#ffffff", "#a6dba0", "#1b7837"])
"""Violet where one goes down as the other goes up, green where both go together: signs that are no decisions."""
WIDTH = 6.4
"""Inches. Two panels side by side still read at 390 pixels."""

LOOK = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.markersize": 6,
    "svg.fonttype": "path",
    "svg.hashsalt": "rewired",
}


def look(function):
    """Decorator: draw with the book's settings and leave everybody else's alone."""

    @wraps(function)
    def drawn(*args, **kwargs):
        with mpl.rc_context(LOOK):
            return function(*args, **kwargs)

    return drawn


def save(figure: Figure, folder: str | Path, name: str) -> SVG:
    """Write ``folder/name.svg`` and ``.png`` (same figure, same bytes; whole or not at all) and return the picture
    for display."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(LOOK):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            with atomic_path(folder / f"{name}.{kind}") as path:
                figure.savefig(path, format=kind, bbox_inches="tight", pad_inches=0.12, **options)
    return SVG(data=(folder / f"{name}.svg").read_text())


def table(frame: pd.DataFrame, decimals: int = 2) -> HTML:
    """The frame as a plain HTML table without its index; numbers to ``decimals`` places, missing ones as a dash. Cells
    that are text may hold HTML."""
    number = f"{{:.{decimals}f}}".format
    text = frame.to_html(index=False, border=0, float_format=number, na_rep="–", classes="rewired-table", escape=False)
    return HTML(f'<div class="rewired-scroll" style="overflow-x:auto">{text}</div>')


def quote(*texts: str) -> HTML:
    """Texts as the model reads them, long lines wrapped."""
    style = (
        "white-space:pre-wrap;overflow-wrap:anywhere;background:#fff;color:#222;border:1px solid #d9d9d9;"
        "border-radius:6px;padding:.8em;margin:0 0 .5em"
    )
    return HTML("".join(f'<pre class="rewired-quote" style="{style}">{escape(text)}</pre>' for text in texts))


# --- what a chapter's own figure is made of --------------------------------------------------------------------------


def panels(n: int, height: float = 2.3, columns: int = 2, **options) -> tuple[Figure, list[Axes]]:
    """An empty figure with ``n`` panels in rows of ``columns``, in the book's look.

    ``height`` is inches for one row of panels; ``options`` go to ``Figure.subplots`` (``sharex``, ``sharey``)."""
    columns = min(columns, n)
    lines_of_panels = -(-n // columns)  # division, rounded up
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, height * lines_of_panels + 0.6), layout="constrained")
        axes = list(figure.subplots(lines_of_panels, columns, squeeze=False, **options).flat)
    for unused in axes[n:]:
        unused.set_visible(False)
    return figure, axes[:n]


def present(names, order: Sequence[str] = MODELS) -> list[str]:
    """The distinct names: those of ``order`` first and in that order, the others as they appear."""
    distinct = list(dict.fromkeys(names))
    known = [name for name in order if name in distinct]
    return known + [name for name in distinct if name not in order]


def style(name: str, names: Sequence[str] = ()) -> dict[str, str]:
    """Colour and marker of a model; of anything else by its place among ``names``."""
    if name in COLOURS:
        return {"color": COLOURS[name], "marker": MARKERS[name]}
    place = list(names).index(name) if name in names else 0
    return {"color": OTHERS[place % len(OTHERS)], "marker": OTHER_MARKERS[place % len(OTHERS)]}


def spread(count: int, width: float) -> np.ndarray:
    """``count`` places between ``-width`` and ``width``, so that series of one row do not cover each other."""
    return np.linspace(-width, width, count) if count > 1 else np.zeros(count)


@look
def legend(figure: Figure, axes: Axes, **options) -> None:
    """One legend above all panels, made of the labelled artists of ``axes``."""
    handles, labels = axes.get_legend_handles_labels()
    columns = options.pop("ncols", min(len(labels), 3))
    if labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, **options)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write the names at the left of a figure whose rows stand at y = 0, 1, 2 …, the first on top."""
    axes.set_yticks(range(len(names)), [str(name).replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for line in range(1, len(names)):
        axes.axhline(line - 0.5, color=PALE, linewidth=0.6)


def probability(axes: Axes, which: str = "x", label: str = "p_defect") -> None:
    """Let the axis ``which`` run from 0 to 1 and mark its middle."""
    axis, line = (axes.xaxis, axes.axvline) if which == "x" else (axes.yaxis, axes.axhline)
    axis.set_view_interval(-0.03, 1.03, ignore=True)
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axis.set_label_text(label)
    line(0.5, color=INK, linewidth=0.7, linestyle=":")


def split(frame: pd.DataFrame, panel: str | None) -> dict[str, pd.DataFrame]:
    """Title of each panel and its part of the frame; without ``panel`` one part without a title."""
    if panel is None:
        return {"": frame}
    return {str(name): frame[frame[panel] == name] for name in present(frame[panel])}


# --- the shapes ------------------------------------------------------------------------------------------------------


@look
def rows(
    frame: pd.DataFrame,
    row: str,
    value: str,
    series: str = "model",
    panel: str | None = None,
    xlabel: str = "",
    **options,
) -> Figure:
    """Names in rows, values on the x axis, one colour and marker a ``series``, one panel for each level of ``panel``.

    Several values of a series in a row are small points with a line over their range; the large point is their mean.
    Optional columns: ``low`` and ``high`` (the line's ends), ``start`` (an open point from which a line leads to the
    value), ``mark`` (an upright red tick, such as the bar of rule 7). ``options`` go to ``panels``."""
    names, levels, parts = present(frame[series]), list(dict.fromkeys(frame[row])), split(frame, panel)
    # Series that share a row stand below each other, close together where each is a single point.
    most = frame.groupby(row)[series].nunique().max() if len(frame) else 1
    points = frame.groupby([row, series]).size().max() if panel is None and "low" not in frame else 2
    offsets = spread(len(names), 0.22 if points == 1 else 0.36) if most > 1 else np.zeros(len(names))
    height = 0.34 if points == 1 or most == 1 else 0.13 * len(names) + 0.22
    figure, axes = panels(len(parts), **({"height": height * len(levels) + 0.5, "sharey": True} | options))
    for ax, (title, part) in zip(axes, parts.items(), strict=True):
        for name, offset in zip(names, offsets, strict=True):
            own = part[part[series] == name].dropna(subset=value)
            for place, level in enumerate(levels):
                _points_in_row(ax, own[own[row] == level], value, place + offset, style(name, names))
            ax.scatter([], [], s=40, label=name, **style(name, names))
        name_rows(ax, levels)
        ax.set_title(title)
        ax.set_xlabel(xlabel if ax.get_subplotspec().is_last_row() else "")
        if (frame[value] < 0).any():
            ax.axvline(0, color=INK, linewidth=0.8)
    if len(names) > 1:
        legend(figure, axes[0])
    return figure


def _points_in_row(ax: Axes, frame: pd.DataFrame, value: str, y: float, look_of: dict) -> None:
    """One series at one level of ``rows``: its points, their range or interval, their mean, and a mark."""
    if frame.empty:
        return
    values, colour = frame[value], look_of["color"]
    low, high = (frame["low"].min(), frame["high"].max()) if "low" in frame else (values.min(), values.max())
    ax.hlines(y, low, high, color=colour, linewidth=1.1, alpha=0.7)
    if "start" in frame:
        ax.hlines([y] * len(frame), frame["start"], values, color=colour, linewidth=1.1)
        ax.scatter(frame["start"], [y] * len(frame), s=26, facecolor="white", edgecolor=INK, zorder=3)
    if len(frame) > 1:
        ax.scatter(values, [y] * len(frame), s=9, alpha=0.45, linewidths=0, **look_of)
    ax.scatter(values.mean(), y, s=40, edgecolor="white", linewidth=0.6, zorder=3, **look_of)
    if "mark" in frame:
        ax.plot(frame["mark"].iloc[0], y, marker="|", markersize=11, markeredgewidth=1.6, color=RED, zorder=4)


@look
def distances(pairs: pd.DataFrame, judged: pd.DataFrame, xlabel: str, value: str = "distance") -> Figure:
    """Distances between runs beside rule 7: ``runs.pairs`` (columns ``pair``, ``kind``, ``value``) and ``runs.differ`` of
    them (``pair``, ``within``). A red tick in the row of two variants is the largest distance of two runs of either."""
    marked = pairs.merge(judged[["pair", "within"]].rename(columns={"within": "mark"}), on="pair", how="left")
    figure = rows(marked, "pair", value, "kind", xlabel=xlabel)
    figure.axes[0].set_xlim(left=0)
    return figure


@look
def lines(frame: pd.DataFrame, x: str, value: str, series: str = "variant", panel: str | None = None,
          run: str = "seed", ylabel: str = "", **options) -> Figure:  # fmt: skip
    """Courses along ``x``, one thick line a ``series`` (the mean at each x), one panel for each level of ``panel``.

    With the columns ``low`` and ``high`` a band lies between them; else a thin line shows each level of the column
    ``run``; else a band shows the range. ``options`` go to ``panels``."""
    names, parts = present(frame[series]), split(frame, panel)
    figure, axes = panels(len(parts), **({"sharex": True, "sharey": True} | options))
    for ax, (title, part) in zip(axes, parts.items(), strict=True):
        draw_lines(ax, part, x, value, series, run, names)
        ax.set_title(title)
        ax.set_xlabel(x if ax.get_subplotspec().is_last_row() else "")
        ax.set_ylabel(ylabel if ax.get_subplotspec().is_first_col() else "")
    if len(names) > 1 and panel != series:
        legend(figure, axes[0], ncols=min(len(names), 4))
    return figure


def draw_lines(ax: Axes, frame: pd.DataFrame, x: str, value: str, series: str, run: str, names: Sequence[str]) -> None:
    """One panel of ``lines``, on axes that a chapter made itself."""
    for name in names:
        own = frame[frame[series] == name].dropna(subset=value)
        if own.empty:
            continue
        at_x, look_of = own.groupby(x), style(name, names)
        mean = at_x[value].mean()
        if "low" in own:
            ax.fill_between(mean.index, at_x["low"].min(), at_x["high"].max(), color=look_of["color"], alpha=0.18)
        elif run in own:
            single = own.pivot_table(index=x, columns=run, values=value)
            ax.plot(single.index, single.to_numpy(), color=look_of["color"], linewidth=0.7, alpha=0.45)
        else:
            low, high = at_x[value].min(), at_x[value].max()
            ax.fill_between(mean.index, low, high, color=look_of["color"], alpha=0.18, linewidth=0)
        every = max(1, len(mean) // 6)
        ax.plot(mean.index, mean, linewidth=1.8, markevery=every, markersize=5, label=name, **look_of)
    if (frame[value] < 0).any():
        ax.axhline(0, color=INK, linewidth=0.7)


@look
def grid(frame: pd.DataFrame, row: str, column: str, value: str, panel: str | None = None, label: str = "",
         columns: int = 2, **image) -> Figure:  # fmt: skip
    """Coloured cells: the mean ``value`` by ``row`` and ``column`` in order of appearance, one panel for each level of
    ``panel``, a bar named ``label``.

    Blue is below 0 (cooperation), orange above it; violet where nothing is below 0. Cells carry their number where
    there is room, and the text of the column ``note``, if the frame has one, below it. ``image`` goes to ``imshow``
    (``cmap``, ``vmin``, ``vmax``; default: the largest absolute cell is the full colour)."""
    parts = split(frame, panel)
    tables = {title: _cells(part, row, column, value) for title, part in parts.items()}
    columns = min(columns, len(parts))
    widest = max(table.shape[1] for table in tables.values())
    tallest = max(table.shape[0] for table in tables.values())
    numbers = widest * columns <= 12
    image = _colours(tables) | image
    height = 0.34 if "note" in frame and numbers else 0.27 if numbers else 0.21
    figure, axes = panels(len(parts), height=height * tallest + 0.75, columns=columns)
    for ax, (title, cells) in zip(axes, tables.items(), strict=True):
        drawn = ax.imshow(cells.to_numpy(dtype=float), aspect="auto", **image)
        ax.set_title(short(title), fontsize=9.5)
        _name_cells(ax, cells, row, column, columns, named=numbers)
        notes = _cells(parts[title], row, column, "note", "first") if "note" in frame else None
        _write_cells(ax, cells, notes, image["vmax"], numbers)
    bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.02)
    bar.set_label(label, fontsize=9.5)
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    return figure


def _cells(frame: pd.DataFrame, row: str, column: str, value: str, how: str = "mean") -> pd.DataFrame:
    """The frame as a table [row, column] in order of appearance; a square one has its columns in the rows' order."""
    cells = frame.pivot_table(
        index=row, columns=column, values=value, aggfunc=how, sort=False, observed=True, dropna=False
    )
    if set(cells.index) == set(cells.columns):
        cells = cells[cells.index]
    return cells


def _colours(tables: Mapping[str, pd.DataFrame]) -> dict:
    """Colours and limits that fit all panels."""
    values = np.concatenate([table.to_numpy(dtype=float).ravel() for table in tables.values()])
    reach = max(float(np.nanmax(np.abs(values))), 1e-9)
    if np.nanmin(values) < 0:
        return {"cmap": TOWARD, "vmin": -reach, "vmax": reach}
    return {"cmap": SIZE, "vmin": 0, "vmax": reach}


def _name_cells(ax: Axes, cells: pd.DataFrame, row: str, column: str, across: int, named: bool) -> None:
    """Tick labels of one grid: at most 18 a side, slanted where they are long."""
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    x, y = (range(0, count, -(-count // 18)) for count in (cells.shape[1], cells.shape[0]))
    size = 8.5 if named or max(len(x), len(y)) < 12 else 6.5
    ax.set_xticks(x, [short(cells.columns[k]) for k in x], fontsize=size)
    ax.set_yticks(y, [str(cells.index[k]).replace("_", " ") for k in y], fontsize=size)
    longest = max(len(line) for name in cells.columns for line in short(name).split("\n"))
    if longest * len(x) * across > 64:
        for tick in ax.get_xticklabels():
            tick.set(rotation=50, ha="right", rotation_mode="anchor")
    if not named:
        ax.set_xlabel(str(column).replace("_", " "), fontsize=9)
        ax.set_ylabel(str(row).replace("_", " ") if ax.get_subplotspec().is_first_col() else "", fontsize=9)


def _write_cells(ax: Axes, cells: pd.DataFrame, notes: pd.DataFrame | None, reach: float, numbers: bool) -> None:
    """Write number and note into each cell; to two digits at the largest, a dash where there is none."""
    decimals = int(np.clip(1 - np.floor(np.log10(reach)), 0, 3))
    for (i, j), number in np.ndenumerate(cells.to_numpy(dtype=float)):
        colour = "white" if abs(number) > 0.65 * reach else INK
        note = "" if notes is None else str(notes.iloc[i, j]).replace("nan", "")
        if numbers:
            text = "–" if np.isnan(number) else f"{round(number, decimals) + 0:.{decimals}f}"
            up = 0.13 if note else 0
            ax.text(j, i - up, text, ha="center", va="center", fontsize=8.5, color=colour)
            ax.text(j, i + 0.26, note, ha="center", va="center", fontsize=7, color=colour)
        elif note:
            ax.text(j, i, note, ha="center", va="center", fontsize=10, color=colour)


@look
def bars(frame: pd.DataFrame, x: str, value: str, series: str = "model", panel: str | None = None, ylabel: str = "",
         **options) -> Figure:  # fmt: skip
    """Grouped bars at each ``x`` (numbers, such as layers), one colour a ``series``, one panel for each level of
    ``panel``. One row of the frame a bar; ``options`` go to ``panels``."""
    names, parts = present(frame[series]), split(frame, panel)
    figure, axes = panels(len(parts), **({"height": 1.9, "sharex": True, "sharey": True} | options))
    width = 0.8 / len(names)
    for ax, (title, part) in zip(axes, parts.items(), strict=True):
        for place, name in enumerate(names):
            own = part[part[series] == name]
            left = own[x] + (place - (len(names) - 1) / 2) * width
            ax.bar(left, own[value], width=width, color=style(name, names)["color"], label=name)
        ax.axhline(0, color=INK, linewidth=0.7)
        ax.set_title(title.replace("_", " "))
        ax.grid(axis="x", visible=False)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.tick_params(labelbottom=True)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    if len(names) > 1:
        legend(figure, axes[0])
    return figure


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


# Old names, until the chapters have moved.
_panels, _present, _style, _legend, _rows, _probability = panels, present, style, legend, name_rows, probability


# --- chapter 1 -----------------------------------------------------------------------------------------------------


@look
def loss_curve(log: pd.DataFrame, title: str = "") -> Figure:
    """Training loss over tokens seen. Columns ``tokens`` and ``loss`` (nats per answer token)."""
    figure, (axes,) = _panels(1, height=2.5)
    log = log.dropna(subset=["loss"])
    axes.plot(log["tokens"] / 1e6, log["loss"], color=PALE, linewidth=0.8)
    smooth = log["loss"].rolling(max(1, len(log) // 40), center=True, min_periods=1).mean()
    axes.plot(log["tokens"] / 1e6, smooth, color=INK, linewidth=1.6)
    axes.set(xlabel="tokens seen (millions)", ylabel="loss on answers (nats)", title=title)
    axes.set_yscale("log")
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    axes.set_yticks([], minor=True)
    if len(log):
        axes.set_ylim(0.85 * log["loss"].min(), 1.1 * log["loss"].max())
    return figure


@look
def dots(frame: pd.DataFrame, row: str, series: str, value: str, floor: str | None = None, xlabel: str = "") -> Figure:
    """One dot per row and series: columns ``row``, ``series``, ``value`` (0 to 1), and optionally ``floor``, drawn as
    a thin upright bar: the least that is asked for."""
    rows, kinds = list(dict.fromkeys(frame[row])), list(dict.fromkeys(frame[series]))
    figure, (axes,) = _panels(1, height=0.38 * len(rows) + 0.7)
    offsets = np.linspace(-0.25, 0.25, len(kinds)) if len(kinds) > 1 else [0.0]
    for kind, offset in zip(kinds, offsets, strict=True):
        part = frame[frame[series] == kind]
        y = [rows.index(r) + offset for r in part[row]]
        axes.scatter(part[value], y, s=34, label=kind, zorder=3, **_style(kind, kinds))
        if floor is not None:
            axes.scatter(part[floor], y, marker="|", s=60, color=INK, linewidths=1, zorder=2)
    _rows(axes, rows)
    axes.set(xlim=(-0.03, 1.03), xlabel=xlabel)
    _legend(figure, axes)
    return figure


@look
def dumbbells(frame: pd.DataFrame, xlabel: str = "p_defect") -> Figure:
    """How far a change moves a probability. Columns ``row`` (its name), ``before``, ``after`` and ``kind`` (what was
    changed; one colour each); the arrow runs from before to after."""
    kinds = list(dict.fromkeys(frame["kind"]))
    figure, (axes,) = _panels(1, height=0.34 * len(frame) + 0.7)
    for place, line in enumerate(frame.itertuples()):
        style = _style(line.kind, kinds)
        axes.annotate(
            "", (line.after, place), (line.before, place), arrowprops={"arrowstyle": "-", "color": style["color"]}
        )
        axes.scatter(line.before, place, s=26, facecolor="white", edgecolor=INK, zorder=3)
        axes.scatter(line.after, place, s=38, zorder=3, **style)
    for kind in kinds:
        axes.scatter([], [], s=38, label=kind, **_style(kind, kinds))
    axes.scatter([], [], s=26, facecolor="white", edgecolor=INK, label="without")
    _rows(axes, list(frame["row"]))
    _probability(axes, label=xlabel)
    _legend(figure, axes)
    return figure


# --- choices -------------------------------------------------------------------------------------------------------


def _clouds(axes: Axes, frame: pd.DataFrame, row: str, value: str, series: str, spread: float = 0.36) -> list[str]:
    """Small points for single values, a large one for their mean, per row and series; returns the series."""
    rows, names = list(dict.fromkeys(frame[row])), _present(frame[series], MODELS)
    offsets = np.linspace(-spread, spread, len(names)) if len(names) > 1 else [0.0] * len(names)
    for name, offset in zip(names, offsets, strict=True):
        style = _style(name, names)
        for place, where in enumerate(rows):
            values = frame.loc[(frame[series] == name) & (frame[row] == where), value].to_numpy()
            axes.scatter(values, np.full(len(values), place + offset), s=9, alpha=0.35, linewidths=0, **style)
            if len(values):
                axes.scatter(values.mean(), place + offset, s=46, edgecolor="white", linewidth=0.6, zorder=3, **style)
        axes.scatter([], [], s=46, label=name, **style)
    _rows(axes, rows)
    return names


@look
def by_scenario(frame: pd.DataFrame, row: str = "scenario") -> Figure:
    """p_defect per scenario. Columns ``model``, ``scenario`` (or the column named by ``row``), ``p_defect``, one row
    a prompt; small points are prompts, large ones their mean."""
    figure, (axes,) = _panels(1, height=(0.19 * frame["model"].nunique() + 0.3) * frame[row].nunique() + 0.4)
    models = _clouds(axes, frame, row, "p_defect", "model")
    _probability(axes)
    if len(models) > 1:
        _legend(figure, axes)
    return figure


@look
def strips(frame: pd.DataFrame, row: str, value: str, xlabel: str, series: str = "model", zero: bool = True) -> Figure:
    """Values of any size per row. Columns ``row``, ``series``, ``value``: small points are single rows of the frame,
    large ones their mean; ``zero`` marks 0. Rows are narrow where there is one value for each."""
    narrow = frame.groupby([row, series]).size().max() == 1
    height = 0.3 if narrow else 0.13 * frame[series].nunique() + 0.16
    figure, (axes,) = _panels(1, height=height * frame[row].nunique() + 0.5)
    names = _clouds(axes, frame, row, value, series, 0.2 if narrow else 0.36)
    if zero:
        axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel(xlabel)
    if len(names) > 1:
        _legend(figure, axes)
    return figure


@look
def curves(
    frame: pd.DataFrame,
    panel: str,
    ylabel: str = "",
    probability: bool = False,
    sharey: bool = True,
    x: str = "episode",
    mark: float = 0,
) -> Figure:
    """A course over episodes (or ``x``). Columns ``variant``, ``seed``, ``episode``, ``value`` and the one named by
    ``panel``: one thin line a run, the mean over seeds thick. An upright line at ``mark``, unless that is 0."""
    names, variants = list(dict.fromkeys(frame[panel])), _present(frame["variant"], MODELS)
    figure, axes = _panels(len(names), sharex=True, sharey=sharey)
    for ax, name in zip(axes, names, strict=True):
        for variant in variants:
            part = frame[(frame[panel] == name) & (frame["variant"] == variant)]
            if part.empty:
                continue
            runs = part.pivot_table(index=x, columns="seed", values="value")
            mean, style = runs.mean(axis=1), _style(variant, variants)
            ax.plot(runs.index, runs.to_numpy(), color=style["color"], linewidth=0.7, alpha=0.4)
            every = max(1, len(mean) // 6)
            ax.plot(runs.index, mean, linewidth=1.9, markevery=every, markersize=5, label=variant, **style)
        ax.set_title(str(name))
        if mark:
            ax.axvline(mark, color=INK, linewidth=0.9, linestyle="--")
        if probability:
            _probability(ax, "y", ylabel)
    for ax in axes:
        ax.set_ylabel(ylabel if ax.get_subplotspec().is_first_col() else "")
        ax.set_xlabel(x if ax.get_subplotspec().is_last_row() else "")
    if panel != "variant":
        _legend(figure, axes[0], ncols=4)
    return figure


@look
def bands(frame: pd.DataFrame, x: str, series: str, xlabel: str = "", ylabel: str = "", mark: float = 0) -> Figure:
    """Quantities of at most 1 along ``x`` with their intervals. Columns ``x``, ``series`` (one line each), ``value``,
    ``low``, ``high`` (missing: no band). An upright line at ``mark``, unless that is 0."""
    figure, (axes,) = _panels(1, height=2.9)
    kinds = list(dict.fromkeys(frame[series]))
    for kind in kinds:
        part, style = frame[frame[series] == kind].sort_values(x), _style(kind, kinds)
        axes.fill_between(part[x], part["low"], part["high"], color=style["color"], alpha=0.18, linewidth=0)
        axes.plot(part[x], part["value"], linewidth=1.8, markersize=5, label=kind, **style)
    if mark:
        axes.axvline(mark, color=INK, linewidth=0.9, linestyle="--")
    axes.axhline(1, color=INK, linewidth=0.7, linestyle=":")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(top=1.04)
    _legend(figure, axes)
    return figure


@look
def policy(frame: pd.DataFrame, optimum: Mapping[str, Mapping[str, str | None]]) -> Figure:
    """Final policy per state. Columns ``model``, ``seed``, ``state``, ``p_defect`` (one row a run and state; the
    mean of its prompts). ``optimum[model][state]`` is ``"C"``, ``"D"`` or None (the reward does not say), drawn as a
    thick black bar, or as a grey band where both moves earn the same."""
    states, models = list(dict.fromkeys(frame["state"])), _present(frame["model"], MODELS)
    figure, axes = _panels(len(states), height=2.5, sharex=True, sharey=True)
    for ax, state in zip(axes, states, strict=True):
        for place, model in enumerate(models):
            values = frame.loc[(frame["state"] == state) & (frame["model"] == model), "p_defect"].to_numpy()
            best = optimum.get(model, {}).get(state)
            if model in optimum and best is None:
                ax.bar(place, 1, width=0.7, color=PALE, alpha=0.6, zorder=0)
            elif best is not None:
                ax.plot([place - 0.36, place + 0.36], [float(best == "D")] * 2, color=INK, linewidth=3, zorder=1)
            x = place + np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else [place]
            ax.scatter(x, values, s=36, zorder=3, edgecolor="white", linewidth=0.5, **_style(model, models))
        ax.set_title(f"after {state}")
        ax.set_xticks(range(len(models)), [m[:6] + "." if len(m) > 7 else m for m in models], rotation=35, ha="right")
        ax.grid(axis="x", visible=False)
        _probability(ax, "y", "p_defect" if ax.get_subplotspec().is_first_col() else "")
    axes[0].plot([], [], color=INK, linewidth=3, label="the reward's optimum")
    axes[0].bar([0], [0], color=PALE, alpha=0.6, label="the reward does not say")
    _legend(figure, axes[0], ncols=2)
    return figure


@look
def differences(frame: pd.DataFrame, xlabel: str) -> Figure:
    """A change per row and model with its range. Columns ``row``, ``model``, ``difference``, ``low``, ``high`` (or
    NaN)."""
    rows, models = list(dict.fromkeys(frame["row"])), _present(frame["model"], MODELS)
    figure, (axes,) = _panels(1, height=(0.15 * len(models) + 0.3) * len(rows) + 0.4)
    offsets = np.linspace(-0.33, 0.33, len(models)) if len(models) > 1 else [0.0]
    for model, offset in zip(models, offsets, strict=True):
        part = frame[frame["model"] == model]
        y, style = [rows.index(r) + offset for r in part["row"]], _style(model, models)
        axes.hlines(y, part["low"], part["high"], color=style["color"], linewidth=1.1, alpha=0.7)
        axes.scatter(part["difference"], y, s=30, zorder=3, label=model, **style)
    axes.axvline(0, color=INK, linewidth=0.8)
    _rows(axes, rows)
    axes.set_xlabel(xlabel)
    reach = 1.1 * max(0.05, float(np.nanmax(np.abs(frame[["difference", "low", "high"]].to_numpy(dtype=float)))))
    axes.set_xlim(-reach, reach)
    _legend(figure, axes)
    return figure


@look
def by_state(frame: pd.DataFrame, x: str, xlabel: str = "") -> Figure:
    """p_defect over the levels of ``x``, one panel a state. Columns ``state``, ``model``, ``p_defect`` and ``x``; one
    row a prompt, drawn as means with the range over prompts."""
    states, levels = list(dict.fromkeys(frame["state"])), list(dict.fromkeys(frame[x]))
    models = _present(frame["model"], MODELS)
    figure, axes = _panels(len(states), height=2.4, sharex=True, sharey=True)
    offsets = np.linspace(-0.28, 0.28, len(models)) if len(models) > 1 else [0.0]
    for ax, state in zip(axes, states, strict=True):
        for model, offset in zip(models, offsets, strict=True):
            part = frame[(frame["state"] == state) & (frame["model"] == model)].groupby(x, sort=False)["p_defect"]
            places, style = np.array([levels.index(level) for level in part.groups]) + offset, _style(model, models)
            ax.vlines(places, part.min(), part.max(), color=style["color"], linewidth=1, alpha=0.6)
            ax.scatter(places, part.mean(), s=28, zorder=3, label=model, **style)
        ax.set_title(f"after {state}")
        ax.set_xticks(range(len(levels)), levels, rotation=20, ha="right")
        ax.set_xlabel(xlabel if ax.get_subplotspec().is_last_row() else "")
        ax.grid(axis="x", visible=False)
        _probability(ax, "y", "p_defect" if ax.get_subplotspec().is_first_col() else "")
    _legend(figure, axes[0])
    return figure


# --- games ---------------------------------------------------------------------------------------------------------

ANSWERS = {
    "C after C": ("#332288", None),
    "C after D": ("#a89fd6", None),
    "D after C": ("#882255", None),
    "D after D": ("#d9a3bd", None),
    "illegal": ("#ffffff", "////"),
}
"""Colour and hatching of an answer to the other player's displayed move."""


@look
def answers(frame: pd.DataFrame) -> Figure:
    """What is answered to what, one panel a game. Columns ``panel``, ``model``, ``seed``, ``answer`` (of ``ANSWERS``)
    and ``share``; bars are means over runs, the line is where the border between C and D lies in single runs."""
    panels, models = list(dict.fromkeys(frame["panel"])), _present(frame["model"], MODELS)
    figure, axes = _panels(len(panels), height=0.24 * len(models) + 0.7, sharex=True, sharey=True)
    for ax, panel in zip(axes, panels, strict=True):
        part = frame[frame["panel"] == panel]
        mean = part.groupby(["model", "seed", "answer"])["share"].sum().groupby(["model", "answer"]).mean()
        left = np.zeros(len(models))
        for answer, (colour, hatch) in ANSWERS.items():
            share = np.array([mean.get((model, answer), 0.0) for model in models])
            style = {"color": colour, "hatch": hatch, "edgecolor": INK if hatch else colour, "linewidth": 0.4}
            ax.barh(range(len(models)), share, left=left, height=0.7, label=answer, **style)
            left += share
        cooperation = part[part["answer"].str.startswith("C")].groupby(["model", "seed"])["share"].sum()
        for place, model in enumerate(models):
            runs = cooperation.get(model, pd.Series([0.0]))
            ax.hlines(place, runs.min(), runs.max(), color="white", linewidth=3.4)
            ax.hlines(place, runs.min(), runs.max(), color=INK, linewidth=1.6)
        _rows(ax, models)
        ax.set(xlim=(0, 1), title=panel)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.set_xlabel("share of answers" if ax.get_subplotspec().is_last_row() else "")
    _legend(figure, axes[0], ncols=3)
    return figure


@look
def ranges(
    frame: pd.DataFrame, row: str, value: str, panel: str | None = None, xlabel: str = "", share: bool = False
) -> Figure:
    """A quantity per row and model, one panel for each level of ``panel``. Columns ``model``, ``row``, ``value``; one
    line of the frame a run, drawn as a small point; the large point is their mean, the line their range. ``share``
    fixes the axis from 0 to 1."""
    rows, models = list(dict.fromkeys(frame[row])), _present(frame["model"], MODELS)
    panels = list(dict.fromkeys(frame[panel])) if panel else [""]
    height = (0.13 * len(models) + 0.22) * len(rows) + 0.5
    figure, axes = _panels(len(panels), height=height, sharey=True)
    offsets = np.linspace(-0.34, 0.34, len(models)) if len(models) > 1 else [0.0]
    for ax, name in zip(axes, panels, strict=True):
        part = frame[frame[panel] == name] if panel else frame
        for model, offset in zip(models, offsets, strict=True):
            style = _style(model, models)
            for place, level in enumerate(rows):
                runs = part.loc[(part["model"] == model) & (part[row] == level), value].dropna()
                if len(runs):
                    ax.hlines(place + offset, runs.min(), runs.max(), color=style["color"], linewidth=1.1, alpha=0.7)
                    ax.scatter(runs, np.full(len(runs), place + offset), s=7, alpha=0.6, linewidths=0, **style)
                    ax.scatter(runs.mean(), place + offset, s=30, edgecolor="white", linewidth=0.4, zorder=3, **style)
            ax.scatter([], [], s=30, label=model, **style)
        _rows(ax, rows)
        ax.set(title=name, xlabel=xlabel)
        if share:
            ax.set_xlim(-0.04, 1.04)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    _legend(figure, axes[0])
    return figure


@look
def reciprocity(frame: pd.DataFrame) -> Figure:
    """Each player as a point: columns ``model``, ``after_C``, ``after_D`` (its share of defections after either move of
    the other player) and ``reading``, one panel each. Small points are runs, joined to the large one, their mean;
    crosses are the scripted players."""
    readings, models = list(dict.fromkeys(frame["reading"])), _present(frame["model"], MODELS)
    figure, axes = _panels(len(readings), height=3.2, sharex=True, sharey=True)
    corners = {"always C": (0, 0), "Tit-for-Tat": (0, 1), "always D": (1, 1), "random": (0.5, 0.5)}
    for ax, reading in zip(axes, readings, strict=True):
        ax.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
        for name, (x, y) in corners.items():
            ax.scatter(x, y, marker="+", s=70, color=INK, linewidths=1)
            above, right = (6 if y < 1 else -6), x == 1
            place = {"ha": "right" if right else "left", "va": "bottom" if y < 1 else "top"}
            ax.annotate(name, (x, y), (-6 if right else 6, above), textcoords="offset points", fontsize=8.5, **place)
        for model in models:
            part = frame[(frame["model"] == model) & (frame["reading"] == reading)]
            style = _style(model, models)
            mean = part[["after_C", "after_D"]].mean()
            for x, y in part[["after_C", "after_D"]].to_numpy():
                ax.plot([x, mean.iloc[0]], [y, mean.iloc[1]], color=style["color"], linewidth=1, alpha=0.7)
            ax.scatter(part["after_C"], part["after_D"], s=18, alpha=0.8, linewidths=0, zorder=2.5, **style)
            ax.scatter(*mean, s=70, edgecolor="white", linewidth=0.8, zorder=3, label=model, **style)
        ax.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), title=reading, xlabel="p_defect after C")
        ax.set_ylabel("p_defect after D" if ax.get_subplotspec().is_first_col() else "")
        ax.set_aspect("equal")
    _legend(figure, axes[0])
    return figure


@look
def matrix(
    frame: pd.DataFrame,
    row: str,
    column: str,
    value: str,
    note: str | None = None,
    high: float = 1.0,
    decimals: int = 2,
) -> Figure:
    """Numbers in coloured cells, white at 0 and darkest at ``high``. Columns ``row``, ``column``, ``value`` and, under
    each number, the text in ``note``; an empty cell is a dash."""
    wide = frame.pivot(index=row, columns=column, values=value)
    wide = wide.loc[list(dict.fromkeys(frame[row])), list(dict.fromkeys(frame[column]))]
    notes = frame.set_index([row, column])[note] if note else {}
    figure, (axes,) = _panels(1, height=(0.5 if note else 0.36) * len(wide) + 0.7)
    axes.imshow(wide, cmap="Purples", vmin=0, vmax=1.15 * high, aspect="auto")
    for y, name in enumerate(wide.index):
        for x, other in enumerate(wide.columns):
            number = wide.iloc[y, x]
            colour = "white" if number > 0.7 * high else INK
            text = "–" if np.isnan(number) else f"{number:.{decimals}f}"
            axes.text(x, y - (0.14 if note else 0), text, ha="center", va="center", color=colour, fontsize=10)
            axes.text(x, y + 0.27, notes.get((name, other), ""), ha="center", va="center", color=colour, fontsize=7.5)
    axes.set_xticks(range(wide.shape[1]), [str(c).replace("_", " ") for c in wide.columns], rotation=38, ha="left")
    axes.set_yticks(range(len(wide)), [str(r).replace("_", " ") for r in wide.index])
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


# --- the metric ----------------------------------------------------------------------------------------------------


@look
def scatter(
    frame: pd.DataFrame, x: str, y: str, series: str, xlabel: str, ylabel: str, panel: str | None = None,
    shade: bool = False, diagonal: bool = False,
) -> Figure:  # fmt: skip
    """Two readings of the same things against each other. Columns ``x``, ``y``, ``series`` (colour and marker) and
    optionally ``panel``; ``shade`` marks the quadrants of opposite sign, ``diagonal`` the line where both are equal."""
    panels = [None] if panel is None else list(dict.fromkeys(frame[panel]))
    figure, axes = _panels(len(panels), height=3.9 if len(panels) == 1 else 2.6, sharex=True, sharey=True)
    names = _present(frame[series], MODELS)
    for ax, where in zip(axes, panels, strict=True):
        own = frame if where is None else frame[frame[panel] == where]
        for name in names:
            part = own[own[series] == name]
            ax.scatter(part[x], part[y], s=20, alpha=0.75, linewidths=0, label=name, **_style(name, names))
        ax.margins(0.08)
        ax.set_title("" if where is None else str(where), fontsize=9.5)
    limits = (axes[0].get_xlim(), axes[0].get_ylim())
    (left, right), (low, high) = ((min(a, -0.05 * b), max(b, -0.05 * a)) for a, b in limits)  # 0 is always inside
    for ax in axes:
        if shade:
            ax.fill_between([left, 0], 0, high, color=PALE, alpha=0.5, linewidth=0, zorder=0)
            ax.fill_between([0, right], low, 0, color=PALE, alpha=0.5, linewidth=0, zorder=0)
        if diagonal:
            ax.axline((0, 0), slope=1, color=INK, linewidth=0.7, linestyle=":")
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set(xlim=(left, right), ylim=(low, high))
    figure.supxlabel(xlabel, fontsize=10.5)
    figure.supylabel(ylabel, fontsize=10.5)
    _legend(figure, axes[0])
    return figure


@look
def two_metrics(frame: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """Two readings of the same prompts against each other. Columns ``model``, ``x``, ``y`` (logit differences);
    shaded where the two disagree about the choice."""
    return scatter(frame, x, y, "model", xlabel, ylabel, shade=True)


@look
def agreement(frame: pd.DataFrame, series: str = "model", title: str = "") -> Figure:
    """What the metric says against what was sampled. Columns ``expected`` (from p_defect), ``sampled`` with its
    interval ``lower`` to ``upper``, and the one named by ``series``; on the diagonal both say the same."""
    figure, (axes,) = _panels(1, height=4.3)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
    names = _present(frame[series], MODELS)
    for name in names:
        part, style = frame[frame[series] == name], _style(name, names)
        axes.vlines(part["expected"], part["lower"], part["upper"], color=style["color"], linewidth=1)
        axes.scatter(part["expected"], part["sampled"], s=28, zorder=3, linewidths=0, label=name, **style)
    _probability(axes, "x", "p_defect, from the model's probabilities")
    _probability(axes, "y", "sampled share of defection")
    axes.set_aspect("equal")
    axes.set_title(title)
    if len(names) > 1:
        _legend(figure, axes)
    return figure


# --- inside the model ------------------------------------------------------------------------------------------------


@look
def trajectories(frame: pd.DataFrame, row: str, column: str = "scenario") -> Figure:
    """Delta over depth, a grid of ``row`` by ``column``. Columns ``depth``, ``delta``, ``model``, ``seed`` and these
    two, one row a prompt: one thin line a run (the mean of its prompts), the mean of a model's runs thick, and, where a
    panel holds one model, a band over its prompts and runs."""
    rows, columns = (_present(frame[name], MODELS) for name in (row, column))
    height = (1.05 if len(rows) > 3 else 1.7) * len(rows) + 0.8
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(
        len(rows), len(columns), squeeze=False, sharex=True, sharey=True if row == "model" else "row"
    )
    for (i, r), (j, c) in [(a, b) for a in enumerate(rows) for b in enumerate(columns)]:
        ax, part = grid[i, j], frame[(frame[row] == r) & (frame[column] == c)]
        models = _present(part["model"], MODELS)
        for model in models:
            own, style = part[part["model"] == model], _style(model, models)
            if len(models) == 1:
                low, high = (own.groupby("depth")["delta"].agg(end) for end in ("min", "max"))
                ax.fill_between(low.index, low, high, color=style["color"], alpha=0.18, linewidth=0)
            runs = own.pivot_table(index="depth", columns="seed", values="delta")
            ax.plot(runs.index, runs.to_numpy(), color=style["color"], linewidth=0.6, alpha=0.6)
            every = max(1, len(runs) // 4)
            ax.plot(runs.index, runs.mean(axis=1), linewidth=1.5, markersize=3.5, markevery=every, label=model, **style)
        ax.axhline(0, color=INK, linewidth=0.7)
        ax.tick_params(labelsize=8.5)
        if i == 0:
            ax.set_title(short(c), fontsize=9, loc="center")
        if j == 0:
            ax.set_ylabel(short(r), fontsize=9, color=COLOURS.get(r, INK))
    figure.supxlabel("depth (layers passed)", fontsize=10)
    figure.supylabel("Δ by the lens (logits)", fontsize=10)
    if row != "model":
        _legend(figure, grid[0, 0])
    return figure


@look
def heatmap(
    frame: pd.DataFrame, row: str, column: str, value: str, label: str, panel: str | None = None, decimals: int = 1,
    columns: int = 2, reach: float | None = None,
) -> Figure:  # fmt: skip
    """Cells of mean ``value`` by ``row`` and ``column``, in the order in which they appear, one panel for each value of
    ``panel``. Blue is below 0 (cooperation), orange above, violet where nothing is below 0; ``reach`` is the value of
    the full colour (default: the largest cell). Cells carry their number where there is room."""
    names = [None] if panel is None else _present(frame[panel], MODELS)
    parts = [frame if name is None else frame[frame[panel] == name] for name in names]
    cells = [
        p.pivot_table(index=row, columns=column, values=value, sort=False, observed=True, dropna=False) for p in parts
    ]
    across = min(columns, len(cells))
    numbers = max(c.shape[1] for c in cells) * across <= 12
    most = max(c.shape[0] for c in cells)
    figure, axes = _panels(len(cells), height=(0.27 if numbers else 0.21) * most + 0.75, columns=across)
    least = min(float(np.nanmin(c.to_numpy(dtype=float))) for c in cells)
    colours, bottom = (TOWARD, -1) if least < 0 else (SIZE, 0)
    reach = reach or max(max(float(np.nanmax(np.abs(c.to_numpy(dtype=float)))) for c in cells), 1e-9)
    for ax, name, cell in zip(axes, names, cells, strict=True):
        values = cell.to_numpy(dtype=float)
        image = ax.imshow(values, cmap=colours, vmin=bottom * reach, vmax=reach, aspect="auto")
        ax.set_xticks(range(cell.shape[1]), [short(c) for c in cell.columns], fontsize=8.5)
        ax.set_yticks(range(cell.shape[0]), [str(r).replace("_", " ") for r in cell.index], fontsize=8.5)
        if not ax.get_subplotspec().is_first_col() and list(cell.index) == list(cells[0].index):
            ax.tick_params(labelleft=False)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        longest = max(len(line) for c in cell.columns for line in short(c).split("\n"))
        if longest * cell.shape[1] * across > 64:
            ax.tick_params(axis="x", labelrotation=50)
            for tick in ax.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
        if not numbers:
            ax.set_ylabel(row if ax.get_subplotspec().is_first_col() else "", fontsize=9)
            ax.set_xlabel(column, fontsize=9)
        if name is not None:
            ax.set_title(short(name), fontsize=9.5)
        for (i, j), number in np.ndenumerate(values) if numbers else ():
            pale = abs(number) < 0.65 * reach
            text = "–" if np.isnan(number) else f"{round(number, decimals) + 0:.{decimals}f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8.5, color=INK if pale else "white")
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.02)
    bar.set_label(label, fontsize=9.5)
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    return figure


@look
def bars_by_layer(frame: pd.DataFrame, panel: str, value: str, ylabel: str) -> Figure:
    """Grouped bars over layers, one colour a model, one panel for each value of ``panel``. Columns ``model``,
    ``layer``, ``value`` and ``panel``, one row a bar."""
    names, models = list(dict.fromkeys(frame[panel])), _present(frame["model"], MODELS)
    figure, axes = _panels(len(names), height=1.9, sharex=True, sharey=True)
    width = 0.8 / len(models)
    layers = sorted(frame["layer"].unique())
    for ax, name in zip(axes, names, strict=True):
        for k, model in enumerate(models):
            part = frame[(frame[panel] == name) & (frame["model"] == model)]
            x = part["layer"] + (k - (len(models) - 1) / 2) * width
            ax.bar(x, part[value], width=width, color=COLOURS.get(model, OTHERS[k % len(OTHERS)]), label=model)
        ax.axhline(0, color=INK, linewidth=0.7)
        ax.set_title(str(name).replace("_", " "))
        ax.grid(axis="x", visible=False)
        ax.set_xticks(layers[:: max(1, len(layers) // 8)])
        ax.tick_params(labelbottom=True)
    figure.supxlabel("layer", fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    _legend(figure, axes[0])
    return figure


@look
def steps(
    frame: pd.DataFrame, x: str, value: str, series: str, panel: str, xlabel: str, ylabel: str, doubling: bool = False
) -> Figure:
    """Means along ``x`` with the range as a band. Columns ``x``, ``value``, ``series`` (one line each) and ``panel``.
    ``doubling`` spaces powers of two evenly; 0 (nothing) and 1 (the source's decision) are marked."""
    names, kinds = list(dict.fromkeys(frame[panel])), list(dict.fromkeys(frame[series]))
    figure, axes = _panels(len(names), height=2.2, sharex=True, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for kind in kinds:
            part, style = frame[(frame[panel] == name) & (frame[series] == kind)].groupby(x)[value], _style(kind, kinds)
            middle = part.mean()
            ax.fill_between(middle.index, part.min(), part.max(), color=style["color"], alpha=0.18, linewidth=0)
            ax.plot(middle.index, middle, linewidth=1.6, markersize=4, label=kind, **style)
        for level in (0, 1):
            ax.axhline(level, color=INK, linewidth=0.7, linestyle=":" if level else "-")
        ax.set_title(str(name), fontsize=9.5)
        if doubling:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:.0f}")
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    _legend(figure, axes[0])
    return figure


@look
def gap_by_depth(frame: pd.DataFrame, ylabel: str) -> Figure:
    """Distances between runs, depth by depth. Columns ``depth``, ``pair``, ``kind`` (``within a variant`` or
    ``between variants``), ``distance``, one row a pair of runs: a line for the mean of each pair of variants, a grey
    area up to the largest distance within a variant."""
    figure, (axes,) = _panels(1, height=3.4)
    within = frame[frame["kind"] == "within a variant"].groupby("depth")["distance"].max()
    between = frame[frame["kind"] == "between variants"]
    if len(within):
        axes.fill_between(within.index, 0, within, color=PALE, linewidth=0, label="largest within a variant")
    styles = ("-", "--", ":")
    for k, (pair, part) in enumerate(between.groupby("pair", sort=False)):
        mean, colour = part.groupby("depth")["distance"].mean(), OTHERS[k % len(OTHERS)]
        marker = OTHER_MARKERS[k % len(OTHERS)]
        every = max(1, len(mean) // 8)
        line = styles[k // len(OTHERS) % len(styles)]
        axes.plot(mean.index, mean, line, color=colour, marker=marker, markersize=4, markevery=every, label=pair)
    axes.set(xlabel="depth (layers passed)", ylabel=ylabel)
    axes.set_ylim(bottom=0)
    _legend(figure, axes, ncols=2)
    return figure


# --- between components ----------------------------------------------------------------------------------------------


@look
def matrices(frame: pd.DataFrame, value: str, label: str, panel: str, mark: str | None = None, reach: float = 1.0):
    """Square matrices of pairs of components, one panel for each value of ``panel``. Columns ``one``, ``other`` (one
    row a pair, in either order), ``value``, ``panel`` and optionally ``mark``: a pair where that is true carries a dot.
    ``reach`` is the value of the full colour."""
    panels = _present(frame[panel], MODELS)
    figure, axes = _panels(
        len(panels), height=3.3 if len(panels) in (1, 2, 4) else 2.45, columns=2 if len(panels) == 4 else 3
    )
    for ax, where in zip(axes, panels, strict=True):
        part = frame[frame[panel] == where]
        names = list(dict.fromkeys([*part["one"], *part["other"]]))
        cells = np.full((len(names), len(names)), np.nan)
        for pair in part.itertuples():
            i, j = names.index(pair.one), names.index(pair.other)
            cells[i, j] = cells[j, i] = getattr(pair, value)
            if mark and getattr(pair, mark):
                ax.scatter([i, j], [j, i], s=5, color=INK, linewidths=0)
        image = ax.imshow(cells, cmap=TOGETHER, vmin=-reach, vmax=reach)
        shown = range(0, len(names), max(1, -(-len(names) // 16)))
        ax.set_xticks(shown, [_plain(names[k]) for k in shown], fontsize=6.5, rotation=90)
        ax.set_yticks(shown, [_plain(names[k]) for k in shown], fontsize=6.5)
        ax.set_title(str(where), fontsize=9.5)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.02)
    bar.set_label(label, fontsize=9.5)
    bar.outline.set_visible(False)
    return figure


def _plain(component: str) -> str:
    """``L3 attn``, ``L3 MLP``."""
    return str(component).replace("_ATTN", " attn").replace("_", " ")


@look
def yardsticks(frame: pd.DataFrame, xlabel: str) -> Figure:
    """A measured value beside what it would be if there were nothing to find. Columns ``row``, ``panel``, ``kind`` and
    ``value`` with the range ``low`` to ``high`` (NaN: no range); the first kind is the measured one, drawn large."""
    rows, panels = list(dict.fromkeys(frame["row"])), list(dict.fromkeys(frame["panel"]))
    kinds = list(dict.fromkeys(frame["kind"]))
    figure, axes = _panels(len(panels), height=(0.15 * len(kinds) + 0.2) * len(rows) + 0.6, sharey=True, columns=3)
    offsets = np.linspace(-0.3, 0.3, len(kinds)) if len(kinds) > 1 else [0.0]
    for ax, name in zip(axes, panels, strict=True):
        for k, (kind, offset) in enumerate(zip(kinds, offsets, strict=True)):
            part = frame[(frame["panel"] == name) & (frame["kind"] == kind)]
            y, style = [rows.index(r) + offset for r in part["row"]], _style(kind, kinds)
            ax.hlines(y, part["low"], part["high"], color=style["color"], linewidth=1.3, alpha=0.7)
            ax.scatter(part["value"], y, s=26 if k else 52, zorder=3, label=kind, linewidths=0, **style)
        _rows(ax, rows)
        ax.set_title(name, fontsize=9.5)
        ax.set_xlim(-0.03, max(0.06, 1.08 * float(frame[["value", "high"]].max(axis=None))))
    figure.supxlabel(xlabel, fontsize=10)
    _legend(figure, axes[0], ncols=2)
    return figure


@look
def pathways(nodes: Sequence[str], edges: pd.DataFrame, panel: str, label: str) -> Figure:
    """Components by layer, attention and MLPs on two lines, with a curve for each pair in ``edges``: columns ``one``,
    ``other``, ``difference`` (colour by sign, width by size), ``clear`` (drawn solid; dashed otherwise) and ``panel``.
    ``nodes`` are names such as ``L3_ATTN`` and ``L3_MLP``."""
    names = list(dict.fromkeys(edges[panel]))
    figure, axes = _panels(len(names), height=2.4, columns=1 if len(names) == 1 else 2, sharex=True, sharey=True)
    place = {n: (int(n.split("_")[0][1:]), float(n.endswith("ATTN"))) for n in nodes}
    colours = {"rises": "#1b7837", "falls": "#762a83"}
    for ax, name in zip(axes, names, strict=True):
        for edge in edges[edges[panel] == name].itertuples():
            style = {"arrowstyle": "-", "linestyle": "-" if edge.clear else (0, (2, 2))}
            style |= {"color": colours["rises" if edge.difference > 0 else "falls"], "shrinkA": 7, "shrinkB": 7}
            bend = 0.28 if place[edge.one][1] == place[edge.other][1] == 1 else -0.28
            bend = bend if place[edge.one][1] == place[edge.other][1] else 0.0
            style |= {"linewidth": 0.5 + 2 * abs(edge.difference), "connectionstyle": f"arc3,rad={-bend}"}
            ax.annotate("", place[edge.one], place[edge.other], arrowprops=style)
        touched = {*edges.loc[edges[panel] == name, "one"], *edges.loc[edges[panel] == name, "other"]}
        for node, (x, y) in place.items():
            ax.scatter(x, y, s=60, zorder=3, color=INK if node in touched else PALE, marker="o" if y else "s")
        ax.set(ylim=(-0.7, 1.7), title=str(name))
        ax.set_yticks([0, 1], ["MLP", "attention"])
        layers = sorted({x for x, _ in place.values()})
        ax.set_xticks(layers[:: max(1, len(layers) // 9)])
        ax.grid(visible=False)
    for kind, colour in colours.items():
        axes[0].plot([], [], color=colour, label=f"{label} {kind}")
    axes[0].plot([], [], color=INK, linestyle=(0, (2, 2)), label="not clear of chance")
    figure.supxlabel("layer", fontsize=10)
    _legend(figure, axes[0], ncols=3)
    return figure


# --- the whole cascade -----------------------------------------------------------------------------------------------


def _colour(name: str, names: Sequence[str]) -> str:
    """The colour of a variant, or one of the others'."""
    others = [n for n in names if n not in COLOURS]
    return COLOURS.get(name) or OTHERS[others.index(name) % len(OTHERS)]


@look
def cascade(frame: pd.DataFrame, xlabel: str, unit: str = "runs of one variant") -> Figure:
    """Where variants part: one row for each ``level``, one dot for each ``pair`` of the variants ``a`` and ``b`` (in
    both their colours) and a black diamond for all of them (``a`` is "all"), at ``value``. Thick lines are ``low`` to
    ``high``, thin ones ``run_low`` to ``run_high``, a tick stands at ``bar``; any of them may be NaN. Dots whose
    ``differ`` is false are pale. A line marks 1 and is named ``unit``. Rows without a value are left out."""
    frame = frame.dropna(subset="value")
    levels, pairs = list(dict.fromkeys(frame["level"])), list(dict.fromkeys(frame["pair"]))
    names = list(dict.fromkeys([*frame["a"], *frame["b"]]))
    figure, (axes,) = _panels(1, height=(0.1 * len(pairs) + 0.12) * max(len(levels), 1) + 0.9)
    offsets = dict(
        zip(pairs, np.linspace(-0.36, 0.36, len(pairs)) if len(pairs) > 1 else [0.0] * len(pairs), strict=True)
    )
    for r in frame.itertuples():
        whole, y = r.a == "all", levels.index(r.level) + offsets[r.pair]
        pale = 1.0 if r.differ else 0.4
        axes.hlines(y, r.run_low, r.run_high, color="#777777", linewidth=0.8, alpha=pale)
        axes.hlines(y, r.low, r.high, color=INK, linewidth=2.2 if whole else 1.7, alpha=0.75 * pale)
        axes.plot(r.bar, y, marker="|", markersize=8, markeredgewidth=1.3, color="#b00020", zorder=4)
        axes.plot(r.value, y, alpha=pale, zorder=5, **_two_coloured(r.a, r.b, names))
    for r in frame.drop_duplicates("pair").itertuples():
        axes.plot([], [], linestyle="", label=r.pair, **_two_coloured(r.a, r.b, names))
    if frame["bar"].notna().any():
        axes.plot([], [], linestyle="", marker="|", markersize=8, markeredgewidth=1.3, color="#b00020", label="rule 7")
    axes.axvline(1, color=INK, linewidth=1, linestyle="--", label=unit)
    _rows(axes, levels)
    if len(frame):
        axes.set_xscale("log")
        ends = frame[["value", "low", "high", "run_low", "run_high", "bar"]].to_numpy(dtype=float)
        least, most = min(0.8, 0.9 * np.nanmin(ends)), max(2, 1.1 * np.nanmax(ends))
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if least <= t <= most]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_xlim(least, most)
    axes.set_xlabel(xlabel)
    _legend(figure, axes, ncols=2)
    return figure


def _two_coloured(a: str, b: str, names: Sequence[str]) -> dict:
    """A dot in the colours of two variants, or a black diamond for all."""
    if a == "all":
        return {"marker": "D", "markersize": 7, "color": INK, "markeredgecolor": "white", "markeredgewidth": 0.6}
    sides = {"markerfacecolor": _colour(a, names), "markerfacecoloralt": _colour(b, names)}
    return {"marker": "o", "markersize": 7, "fillstyle": "left", "markeredgewidth": 0, **sides}


@look
def run_distances(frame: pd.DataFrame, label: str) -> Figure:
    """How far apart every two runs are: one square panel for each ``level``, runs in order of their variants, columns
    ``variant_a``, ``seed_a``, ``variant_b``, ``seed_b`` and ``distance`` (each pair once; darkest = the level's
    largest). Lines part the variants."""
    levels = list(dict.fromkeys(frame["level"]))
    figure, axes = _panels(max(len(levels), 1), height=2.5, columns=3)
    for ax, level in zip(axes, levels, strict=False):
        part = frame[frame["level"] == level]
        ends = [part[["variant_a", "seed_a"]].to_numpy().tolist(), part[["variant_b", "seed_b"]].to_numpy().tolist()]
        runs = list(dict.fromkeys(map(tuple, [*ends[0], *ends[1]])))
        cells = np.zeros((len(runs), len(runs)))
        for u, v, distance in zip(*ends, part["distance"], strict=True):
            i, j = runs.index(tuple(u)), runs.index(tuple(v))
            cells[i, j] = cells[j, i] = distance
        image = ax.imshow(cells / max(cells.max(), 1e-12), cmap=SIZE, vmin=0, vmax=1)
        first = [k for k in range(len(runs)) if k == 0 or runs[k][0] != runs[k - 1][0]]
        middle = [(a + b - 1) / 2 for a, b in zip(first, [*first[1:], len(runs)], strict=True)]
        for k in first[1:]:
            ax.axhline(k - 0.5, color=INK, linewidth=0.8)
            ax.axvline(k - 0.5, color=INK, linewidth=0.8)
        names = [n if len(n) < 10 else f"{n[:6]}." for n in (str(runs[k][0]) for k in first)]
        ax.set_xticks(middle, names, fontsize=7.5, rotation=90)
        ax.set_yticks(middle, names, fontsize=7.5)
        ax.set_title(level, fontsize=9.5)
        ax.tick_params(length=0)
        ax.grid(visible=False)
    if levels:
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.02)
        bar.set_label(label, fontsize=9.5)
        bar.outline.set_visible(False)
    return figure


@look
def verdicts(frame: pd.DataFrame, values: Sequence[str]) -> Figure:
    """Claims in rows and the two parts of their verdict in columns. Columns ``group``, ``short`` (the row's name),
    ``measuring`` and ``here``, each one of ``values``; every value has its own colour and its own marker."""
    colours = ("#117733", "#2b8cbe", "#d55e00", "#6b6b6b", "#b3b3b3")
    style = {v: {"color": c, "marker": m} for v, c, m in zip(values, colours, "oDXs_", strict=True)}
    groups = list(dict.fromkeys(frame["group"]))
    heights = [(frame["group"] == name).sum() + 0.9 for name in groups]
    figure = Figure(figsize=(WIDTH, 0.235 * sum(heights) + 0.9), layout="constrained")
    axes = list(figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False).flat)
    for ax, name in zip(axes, groups, strict=True):
        part = frame[frame["group"] == name]
        for column, key in enumerate(("measuring", "here")):
            for value, at in part.reset_index(drop=True).groupby(key).groups.items():
                ax.scatter(np.full(len(at), column), at, s=62, zorder=3, **style[value])
        _rows(ax, part["short"].tolist())
        ax.set(xlim=(-0.5, 1.5), title=name)
        ax.set_xticks([0, 1], ["does the way of\nmeasuring support it?", "does it hold in\nthis run's model?"])
        ax.tick_params(length=0, labelbottom=False, labeltop=ax is axes[0])
        ax.tick_params(axis="y", labelsize=9.5)
        ax.spines[:].set_visible(False)
        ax.grid(axis="x", visible=False)
    for value in values:
        axes[0].scatter([], [], s=62, label=value, **style[value])
    _legend(figure, axes[0], ncols=2)
    return figure


def made_by(notebook: str, profile, **parameters) -> str:
    """What made a figure, in one line, for the caption: the notebook, the profile and the parameters given."""
    given = ", ".join(f"{name} {value}" for name, value in parameters.items() if value not in ("", [], (), None))
    return f"notebooks/{notebook}.ipynb, profile {profile.name}{', ' + given if given else ''}"


def span(values: Sequence[float], decimals: int = 2) -> str:
    """Runs in words: "0.31 (0.28 to 0.35)" is their mean with the lowest and the highest; one run is just its number,
    and no number at all is "undefined"."""
    runs = pd.Series(values, dtype=float).dropna()
    if runs.empty:
        return "undefined"
    mean, low, high = (f"{x:.{decimals}f}" for x in (runs.mean(), runs.min(), runs.max()))
    return mean if len(runs) == 1 else f"{mean} ({low} to {high})"


# --- text ----------------------------------------------------------------------------------------------------------


def token_view(tokens: Sequence[str], roles: Sequence[str], marked: Mapping[int, str]) -> HTML:
    """A prompt cut into tokens, as HTML. ``roles[i]`` is the role of token i (``""`` for none; hovering shows it) and
    ``marked`` gives positions a name that is written on the page: the decision step, the end of the prompt."""
    pieces = []
    for place, (token, role) in enumerate(zip(tokens, roles, strict=True)):
        kind = "marked" if place in marked else "role" if role else "plain"
        text = escape(token).replace("\n", "↵").replace(" ", "·")
        name = f"<sup>{escape(marked[place])}</sup>" if place in marked else ""
        hint = escape(f"{place}: {role}" if role else str(place))
        pieces.append(f'<span class="token token-{kind}" title="{hint}">{text or "∅"}{name}</span>')
        if "\n" in token:
            pieces.append("<br>")
    opening = '<div class="token-view" role="group" aria-label="The prompt, token by token">'
    return HTML(f"{TOKEN_STYLE}{opening}{''.join(pieces)}</div>")


TOKEN_STYLE = (
    "<style>.token-view{background:#fff;color:#222;padding:.8em;border-radius:6px;line-height:2;"
    "overflow-wrap:anywhere;font-family:monospace;font-size:.85em}"
    ".token{border:1px solid #d9d9d9;border-radius:3px;padding:1px 2px;margin:1px;display:inline-block;white-space:pre}"
    ".token-role{background:#ddeeff;border-color:#0072b2}"
    ".token-marked{background:#ffe3cc;border:2px solid #d55e00;font-weight:bold}"
    ".token sup{margin-left:.4em;color:#a04000}</style>"
)
