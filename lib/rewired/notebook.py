"""What a chapter's notebook starts with, and where everything that it makes goes.

A notebook calls ``chapter`` once. The object it gets knows the profile, the models and the runs, and takes care of
everything that a chapter makes: tables, figures, the small results tables and sentences that the page shows, and the
numbers that the register of claims is judged by.

>>> book = rewired.chapter("attribution", profile, overrides, seed=seed)
>>> with book.variants.variant("utilitarian", seed) as model: ...
>>> book.table("closure", frame)                         # <results>/tables/attribution_closure.parquet
>>> book.figure("top", figure)                           # on the page: {glue:figure} figure_top
>>> book.results("loudest", [("loudest component", "L7_MLP", "", "yes")])    # {glue} results_loudest
>>> book.say("alike", "{n} of {total} pairs differ.", n=2, total=6)          # {glue:text}`alike`
>>> book.claim("zero_flips", original=0.0, right=0.12)   # collected, and written by book.claims()
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rewired.errors import RewiredError
from rewired.execute import start
from rewired.profiles import ROOT, Profile
from rewired.store import output_dir, read_table, results_dir, write_table


def chapter(
    name: str, profile: str | Path = "pocket", overrides: Mapping[str, Any] | Iterable[str] | None = None, **parameters
) -> "Chapter":
    """The chapter's object; ``parameters`` are the notebook's own, named in the captions of its figures.

    Raises RewiredError for an unknown profile or key, and for a parameter that the notebook does not have."""
    book = Chapter(name, start(profile, overrides))
    import matplotlib

    from rewired import plots

    matplotlib.rcParams.update(plots.LOOK)  # a chapter's own figures have the book's look too
    listed = [f"{key} {value}" for key, value in parameters.items() if value not in ("", [], (), None)]
    if overrides:
        listed.append(f"overrides {overrides}")
    files = [file.relative_to(ROOT) for file in ROOT.glob(f"notebooks/*/{name}.ipynb")]  # one: names are unique
    place = files[0] if files else f"{name}.ipynb"
    _glue("made_by", ", ".join([f"{place}, profile {book.profile.name}", *listed]))
    return book


class Chapter:
    """A chapter while it runs: what it reads and where it writes. ``name`` is the notebook's, without its folder."""

    def __init__(self, name: str, profile: Profile):
        self.name, self.profile = name, profile
        self.seeds = profile.training.seeds
        self.trained = list(profile.training.variants)
        self.names = ["base", *self.trained]
        self.runs = [("base", 0)] + [(variant, seed) for variant in self.trained for seed in self.seeds]
        self._claims: dict[str, dict] = {}

    @cached_property
    def variants(self):
        """The base and its trained variants (``models.Variants``), loaded on first use."""
        from rewired.models import Variants

        return Variants(self.profile)

    @property
    def tokenizer(self):
        """The base's tokenizer."""
        return self.variants.tokenizer

    @cached_property
    def authors(self) -> tuple[Any, Any]:
        """(model, tokenizer) of the base that knows who writes how, which Part II builds on."""
        from rewired.models import load_base

        return load_base(self.profile.of_authors())

    def guard(self) -> pd.DataFrame:
        """Check that every trained run decides as training recorded, and print one line that says so.

        Returns what they decide now, one row per run and prompt. Raises RewiredError for a run that does not."""
        from rewired import decisions

        frames = []
        for variant, seed in self.runs[1:]:
            frame = decisions.guard(self.variants, variant, seed)
            frames.append(frame.assign(model=variant, seed=seed))
        checked = pd.concat(frames, ignore_index=True)
        worst = 1 - checked["legal_mass"].min()
        print(f"{len(frames)} runs decide as recorded; at most {worst:.1e} of an answer is neither label")
        return checked

    def read(self, table: str) -> pd.DataFrame:
        """A table of this profile's results by its full name. RewiredError when it is missing or of another profile."""
        return read_table(results_dir(self.profile) / "tables" / f"{table}.parquet", self.profile)

    def read_pairs(self, table: str) -> pd.DataFrame:
        """That table of every patched pair, with the columns ``source`` and ``target`` in front."""
        frames, number = [], self.profile.patching.seed
        for source, target in self.profile.patching.pairs:
            if not {source, target} <= set(self.trained):
                continue
            pair = f"{source}-{number}-to-{target}-{number}"
            frame = read_table(results_dir(self.profile) / "pairs" / pair / f"{table}.parquet", self.profile)
            others = [column for column in frame.columns if column not in ("source", "target")]
            frames.append(frame.assign(source=source, target=target)[["source", "target", *others]])
        if not frames:
            raise RewiredError("This profile patches no pair of its variants. Name one in patching.pairs.")
        return pd.concat(frames, ignore_index=True)

    def table(self, suffix: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Write ``tables/<chapter>_<suffix>.parquet`` (``""``: ``<chapter>.parquet``) and return the frame."""
        stem = f"{self.name}_{suffix}" if suffix else self.name
        write_table(frame, output_dir(self.profile) / "tables" / f"{stem}.parquet", self.profile)
        return frame

    def figure(self, name: str, figure) -> None:
        """Save the figure as ``<chapter>_<name>``, show it, and hand it to the page as ``figure_<name>``."""
        from rewired import plots

        picture = plots.save(figure, output_dir(self.profile) / "figures", f"{self.name}_{name}")
        _glue(f"figure_{name}", picture, display=True)

    def results(self, name: str, rows: Sequence[Sequence]) -> None:
        """Hand a small table to the page as ``results_<name>``.

        A row is (quantity, value, yardstick, verdict); columns that stay empty are left out."""
        from rewired import plots

        columns = ["quantity", "this run", "yardstick", "verdict"]
        frame = pd.DataFrame([[_cell(value) for value in row] for row in rows])
        frame.columns = columns[: frame.shape[1]]
        frame = frame.fillna("")
        filled = [column for column in frame.columns if (frame[column] != "").any()]
        _glue(f"results_{name}", plots.table(frame[filled]))

    def say(self, name: str, template: str, /, **values) -> None:
        """Hand one sentence to the page as ``name``: a template with numbers and words in it, see ``word``."""
        _glue(name, template.format(**values))

    def show(self, name: str, thing) -> None:
        """Hand any object that can be displayed to the page as ``name``."""
        _glue(name, thing)

    def lacks(self, *variants: str, several: bool = False, seeds: int = 1, pairs: Sequence[tuple] = ()) -> str:
        """Why this profile cannot have the numbers of a claim, or "" if it can.

        They may need these ``variants``, ``several`` variants of any name, so many ``seeds`` a variant, or ``pairs``
        (source, target) that are patched in full."""
        absent = [name for name in variants if name not in self.trained]
        if absent:
            return f"this profile trains no {' and no '.join(absent)} variant"
        if several and len(self.trained) < 2:
            return "this profile trains a single variant"
        if len(self.seeds) < seeds:
            return "with one seed a variant there are no two runs of one variant to compare with"
        # A profile may name pairs of variants that it does not train: those are not patched.
        patched = [pair for pair in self.profile.patching.pairs if set(pair) <= set(self.trained)]
        missing = [f"{source} → {target}" for source, target in pairs if (source, target) not in patched]
        if missing:
            return f"this profile does not patch {' nor '.join(missing)} in full"
        return ""

    def claim(self, name: str, original=None, right=None, yardstick=None, cannot: str = "") -> None:
        """Note the numbers of one claim of ``book/claims.yaml``: measured the ``original`` way, the ``right`` way, and
        what the right way would give if there were nothing to find (``yardstick``); each a number or None. Or say why
        this profile ``cannot`` have them. RewiredError for a number that is missing although it could be had."""
        numbers = {"original": original, "right": right, "yardstick": yardstick}
        for key, number in numbers.items():
            if number is not None and not np.isfinite(float(number)) and not cannot:
                raise RewiredError(
                    f"Claim {name!r} of chapter {self.name!r} has no number {key} ({number}) and no reason why. "
                    "Mend the cell that computes it, or say there what this profile lacks: cannot='...'."
                )
        values = {key: float("nan") if number is None else float(number) for key, number in numbers.items()}
        self._claims[name] = {"claim": name, **values, "cannot": cannot}

    def claims(self) -> pd.DataFrame:
        """Write ``tables/<chapter>_claims.parquet``: one row a claim with its numbers and its reason, if any."""
        columns = ["claim", "original", "right", "yardstick", "cannot"]
        return self.table("claims", pd.DataFrame(list(self._claims.values()), columns=columns))


def word(condition: bool, yes: str, no: str) -> str:
    """``yes`` if the condition holds, else ``no``: the one word of a sentence that the run decides."""
    return yes if condition else no


def _cell(value) -> str:
    """A number to three digits, anything else as text."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.3g}"
    return str(value)


def _glue(name: str, thing, display: bool = False) -> None:
    """An output that MyST-NB finds again under ``name``. It reads these keys; it need not be installed here."""
    from IPython.core.formatters import format_display_data
    from IPython.display import display as show

    data, metadata = format_display_data(thing)
    prefix = "" if display else "application/papermill.record/"  # a type that no page shows by itself
    metadata["scrapbook"] = {"name": name, "mime_prefix": prefix}
    show({prefix + kind: value for kind, value in data.items()}, metadata=metadata, raw=True)
