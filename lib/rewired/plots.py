"""One palette, one look: every figure of the book.

Four shapes draw most of them: ``rows``, ``lines``, ``grid`` and ``scatter``. Each takes a tidy frame (one row
an observation) and the names of its columns, and returns a matplotlib ``Figure``; nothing here measures anything.
A figure of one chapter stands in that chapter: ``panels`` gives it axes with the book's look, ``style`` its colours.

A model keeps its colour *and* its marker through the whole book, so that a figure can be read without telling colours
apart. Figures are drawn dark on a white card, which stays readable on a light page and on a dark one, and narrow, so
that they survive a telephone.
"""

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

LOOK = mpl.rc_params_from_file(Path(__file__).with_name("look.mplstyle"), use_default_template=False)
look = mpl.rc_context(LOOK)
"""A decorator: draw with the book's settings, and leave everybody else's alone."""


def save(figure: Figure, folder: str | Path, name: str) -> SVG:
    """Write ``folder/name.svg`` and ``.png``, whole or not at all, and return the picture for display.

    The same figure gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(LOOK):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            with atomic_path(folder / f"{name}.{kind}") as path:
                figure.savefig(path, format=kind, bbox_inches="tight", pad_inches=0.12, **options)
    return SVG(data=(folder / f"{name}.svg").read_text())


def table(frame: pd.DataFrame, decimals: int = 2) -> HTML:
    """The frame as an HTML table without its index: numbers to ``decimals`` places, missing ones as a dash.

    Cells that are text may hold HTML."""
    frame = frame.rename_axis(columns=None)
    number = f"{{:.{decimals}f}}".format
    text = frame.to_html(index=False, border=0, float_format=number, na_rep="–", classes="rewired-table", escape=False)
    return HTML(f'<div class="rewired-scroll" style="overflow-x:auto">{text}</div>')


def quote(*texts: str) -> HTML:
    """Texts as the model reads them, long lines wrapped."""
    # Here and not in the style sheet, so that a notebook opened alone looks like the page.
    style = (
        "white-space:pre-wrap;overflow-wrap:anywhere;background:#fff;color:#222;border:1px solid #d9d9d9;"
        "border-radius:6px;padding:.8em;margin:0 0 .5em"
    )
    blocks = [f'<pre class="rewired-quote" style="{style}">{escape(text)}</pre>' for text in texts]
    return HTML("".join(blocks))


def span(values: Sequence[float], decimals: int = 2) -> str:
    """Runs in words: "0.31 (0.28 to 0.35)" is their mean with the lowest and the highest; one run is just its number,
    and no number at all is "undefined"."""
    runs = pd.Series(values, dtype=float).dropna()
    if runs.empty:
        return "undefined"
    mean, low, high = (f"{x:.{decimals}f}" for x in (runs.mean(), runs.min(), runs.max()))
    return mean if len(runs) == 1 else f"{mean} ({low} to {high})"


# --- what a chapter's own figure is made of --------------------------------------------------------------------------


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


def spread(count: int, width: float) -> np.ndarray:
    """``count`` places between ``-width`` and ``width``, so that the series of one row do not cover each other."""
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


# --- the shapes ------------------------------------------------------------------------------------------------------


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
        legend(figure, axes[0], ncols=min(len(names), 4))
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
    numbers = widest * columns <= 12
    height = 0.21 + 0.06 * numbers + 0.07 * (numbers and "note" in frame)
    image = _colours(tables) | image
    figure, axes = panels(len(parts), height=height * tallest + 0.75, columns=columns)
    for ax, (title, cells) in zip(axes, tables.items(), strict=True):
        drawn = ax.imshow(cells.to_numpy(dtype=float), aspect="auto", **image)
        ax.set_title(short(title), fontsize=9.5)
        _name_cells(ax, cells, row, column, columns, numbers)
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
    return cells[cells.index] if set(cells.index) == set(cells.columns) else cells


def _colours(tables: Mapping[str, pd.DataFrame]) -> dict:
    """Colours and limits that fit all panels."""
    values = np.concatenate([table.to_numpy(dtype=float).ravel() for table in tables.values()])
    reach = max(float(np.nanmax(np.abs(values))), 1e-9)
    if np.nanmin(values) < 0:
        return {"cmap": TOWARD, "vmin": -reach, "vmax": reach}
    return {"cmap": SIZE, "vmin": 0, "vmax": reach}


def _name_cells(ax: Axes, cells: pd.DataFrame, row: str, column: str, across: int, numbers: bool) -> None:
    """Tick labels of one grid: at most 20 a side, slanted where they are long."""
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    x, y = (range(0, count, -(-count // 20)) for count in (cells.shape[1], cells.shape[0]))
    size = 8.5 if numbers or max(len(x), len(y)) < 12 else 6.5
    ax.set_xticks(x, [short(cells.columns[k]) for k in x], fontsize=size)
    ax.set_yticks(y, [str(cells.index[k]).replace("_", " ") for k in y], fontsize=size)
    letters = max(len(line) for name in cells.columns for line in short(name).split("\n"))
    if letters * len(x) * across > 64:  # about as many fit the figure's width
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
            ax.text(j, i, note, fontsize=10, **look_of)
            continue
        text = "–" if np.isnan(number) else f"{round(number, decimals) + 0:.{decimals}f}"  # + 0: no minus before zero
        ax.text(j, i - 0.13 * bool(note), text, fontsize=8.5, **look_of)
        ax.text(j, i + 0.26, note, fontsize=7, **look_of)


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
    figure.supxlabel(xlabel, fontsize=10.5)
    figure.supylabel(ylabel, fontsize=10.5)
    if len(names) > 1:
        legend(figure, axes[0])
    return figure


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


# --- games ---------------------------------------------------------------------------------------------------------



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


# --- inside the model ------------------------------------------------------------------------------------------------


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


# --- the whole cascade -----------------------------------------------------------------------------------------------


@look
def bars(
    frame: pd.DataFrame,
    x: str,
    value: str,
    series: str = "model",
    panel: str = "",
    ylabel: str = "",
    **options,
) -> Figure:
    """Grouped bars at each ``x`` (numbers, such as layers), one colour a ``series``, one panel for each level of
    ``panel``. One row of the frame a bar; ``options`` go to `panels`."""
    names, parts = present(frame[series]), _split(frame, panel)
    figure, axes = panels(len(parts), **({"height": 1.9, "sharex": True, "sharey": True} | options))
    width = 0.8 / len(names)
    for ax, (title, part) in zip(axes, parts.items(), strict=True):
        for place, name in enumerate(names):
            own = part[part[series] == name]
            middle = own[x] + (place - (len(names) - 1) / 2) * width
            ax.bar(middle, own[value], width=width, color=style(name, names)["color"], label=name)
        ax.axhline(0, color=INK, linewidth=0.7)
        _label(ax, title, x, "")
        ax.grid(axis="x", visible=False)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.tick_params(labelbottom=True)
    figure.supylabel(ylabel, fontsize=10)
    if len(names) > 1:
        legend(figure, axes[0])
    return figure
