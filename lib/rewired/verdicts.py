"""From a published claim to a verdict: the register ``book/claims.yaml``, its schema, and the judge.

A claim names the number that decides it, as a *quantity*: a results table, a filter, a column and a reducer, or one of
the functions in `quantities`. Most claims name two, measured on the same models: the *original* way, as the study
measured, and the right way. A *rule*, taken from the claim's words and written down with its reasons, says what a
number has to be for the claim to stand, and a *yardstick* what it would be if there were nothing to find.

The verdict has two parts. **Does the way of measuring support such a claim?** compares what the original way says (the
rule without the yardstick, which the study did not have) with what the right way says. **Does it hold in this run's
model?** applies the rule to the right way's number. A number that should be there and is not is an error; one that this
profile cannot have, for a stated reason, makes the verdict "cannot be tested in this profile".

>>> register = verdicts.load()
>>> table = verdicts.judge(register, rewired.load("pocket"))     # one row a claim
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT, Profile, Section, read_table, results_dir
from rewired.quantities import QUANTITIES, CannotTell, swept

CLAIMS = ROOT / "book" / "claims.yaml"
HOLDS, SIZE, ARTEFACT = "holds", "holds with another size", "artefact of the measurement"
NOT, UNTESTED = "not supported", "cannot be tested in this profile"
VERDICTS = (HOLDS, SIZE, ARTEFACT, NOT, UNTESTED)
GROUPS = ("behaviour", "lens", "attribution", "patching", "attention", "interactions", "weights")
REDUCERS: dict[str, Callable[[pd.Series], float]] = {
    "mean": lambda x: x.mean(),
    "median": lambda x: x.median(),
    "min": lambda x: x.min(),
    "max": lambda x: x.max(),
    "sum": lambda x: x.sum(),
    "largest size": lambda x: x.abs().max(),
    "range": lambda x: x.max() - x.min(),
    "share": lambda x: (x.astype(float) > 0).mean(),
}
"""Name -> one number of a column; ``share`` is the part of its values above zero, or true."""


# --- the schema ------------------------------------------------------------------------------------------------------


class Needs(Section):
    """What a profile must have; anything missing is a reason why a claim cannot be tested."""

    variants: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1)
    pairs: tuple[tuple[str, str], ...] = ()  # (source, target), patched in full
    layers: int = Field(default=1, ge=1)


class Quantity(Section):
    """One number: rows of ``table`` that match ``where`` (a pandas query), ``column`` (a name or an expression),
    averaged within the groups ``by`` if given, then reduced; or ``named``, a registered function, with ``given``."""

    table: str | None = None  # 04_decisions, or pairs/controls: that table of every patched pair
    where: str | None = None
    column: str | None = None
    by: tuple[str, ...] = ()
    reduce: str | None = None
    named: str | None = None
    given: dict[str, Any] = {}
    empty: str | None = None  # why there may be no value in some profiles; without it, no value is an error
    needs: Needs = Needs()

    @field_validator("reduce")
    @classmethod
    def _reducer(cls, value):
        return _known("reducer", value, REDUCERS)

    @field_validator("named")
    @classmethod
    def _function(cls, value):
        return _known("named quantity", value, QUANTITIES)

    @model_validator(mode="after")
    def _one_form(self) -> "Quantity":
        taken = [self.table, self.column, self.reduce]
        if self.named and (any(taken) or self.where or self.by):
            raise ValueError("`named` goes with `given`, and not with table, where, column, by or reduce")
        if not self.named and (not all(taken) or self.given):
            raise ValueError(
                "a quantity is table, column and reduce (where and by if needed), or `named` (and `given`)"
            )
        return self


class Yardstick(Section):
    """What the number is to be compared with, were there nothing to find: a quantity, or a constant."""

    text: str = Field(min_length=1)
    quantity: Quantity | None = None
    constant: float | None = None

    @model_validator(mode="after")
    def _one(self) -> "Yardstick":
        if (self.quantity is None) == (self.constant is None):
            raise ValueError("a yardstick is either a quantity or a constant")
        return self


class Rule(Section):
    """When the claim stands: the number lies ``above`` or ``below`` a threshold, and on the same side of the yardstick
    if the claim has one. It has the reported size if it lies within ``factor`` times, or ``within`` so much of, it."""

    side: Literal["above", "below"]
    threshold: float
    size: float | None = None
    factor: float | None = Field(default=None, gt=1)
    within: float | None = Field(default=None, gt=0)
    why: str = Field(min_length=20)

    @model_validator(mode="after")
    def _sized(self) -> "Rule":
        if (self.factor is not None) + (self.within is not None) != (self.size is not None):
            raise ValueError("`size` goes with `factor` or with `within`, and they go with `size`")
        return self


class Claim(Section):
    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    group: Literal["behaviour", "lens", "attribution", "patching", "attention", "interactions", "weights"]
    short: str = Field(min_length=4, max_length=44)  # the row of the overview
    statement: str = Field(min_length=10)
    source: str = Field(min_length=4)
    reported: str = Field(min_length=1)
    chapter: str
    right_way: str = Field(min_length=10)
    quantity: Quantity
    original_way: str = Field(min_length=10)
    original: Quantity | None = None  # none: the same quantity, read without the yardstick
    yardstick: Yardstick | None = None
    rule: Rule
    trap: str | None = None

    @field_validator("chapter")
    @classmethod
    def _chapter(cls, value):
        known = [file.stem for file in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
        return _known("chapter", value, known)

    @model_validator(mode="after")
    def _trap(self) -> "Claim":
        if (self.original or self.yardstick) and not self.trap:
            raise ValueError("a claim with an original way or a yardstick can be an artefact and must name its `trap`")
        return self


class Register(Section):
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> "Register":
        twice = [name for name, n in Counter(claim.id for claim in self.claims).items() if n > 1]
        if twice:
            raise ValueError(f"the id {twice[0]!r} is given twice")
        return self


def _known(what: str, value: str | None, allowed: Iterable[str]) -> str | None:
    if value is not None and value not in allowed:
        raise ValueError(str(choice(what, value, allowed)))
    return value


def load(file: str | Path = CLAIMS) -> Register:
    """The checked register. RewiredError naming file, claim, key, value and what is allowed for anything else."""
    file = Path(file)
    try:
        data = yaml.safe_load(file.read_text())
    except OSError:
        raise RewiredError(
            f"There is no register of claims {file}; `git checkout book/claims.yaml` restores it."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RewiredError(f"The register {file} is not valid YAML: {' '.join(str(error).split())}. Mend it.") from None
    if not isinstance(data, dict):
        raise RewiredError(f"The register {file} must hold one key, `claims:`, with a list under it.")
    try:
        return Register.model_validate(data)
    except ValidationError as error:
        raise RewiredError(f"The register {file} cannot be used. {_explain(error, data)} Mend it there.") from None


def _explain(error: ValidationError, data: dict) -> str:
    """The first problems of a register, in words."""
    told = []
    for problem in error.errors()[:5]:
        place = list(problem["loc"])
        who, claims = "", data.get("claims")
        if len(place) > 1 and place[0] == "claims" and isinstance(claims, list):
            entry = claims[place[1]]
            name = entry.get("id") if isinstance(entry, dict) else None
            who, place = f"Claim {name or place[1] + 1}: ", place[2:]
        key = ".".join(map(str, place)) or "the entry"
        if problem["type"] == "extra_forbidden":
            told.append(f"{who}{choice('key', key, _keys(place[:-1]))}")
        elif problem["type"] == "missing":
            told.append(f"{who}{key} is missing.")
        else:
            value = "" if isinstance(problem["input"], dict | list) else f" is {problem['input']!r}"
            told.append(f"{who}{key}{value}: {problem['msg'].removeprefix('Value error, ').rstrip('.')}.")
    return " ".join(told)


def _keys(place: list) -> list[str]:
    """The keys allowed at a place inside a claim."""
    inside = {"quantity": Quantity, "original": Quantity, "yardstick": Yardstick, "rule": Rule, "needs": Needs}
    names = [name for name in place if name in inside]
    return list((inside[names[-1]] if names else Claim).model_fields)


# --- the numbers -----------------------------------------------------------------------------------------------------


class Tables:
    """``tables("07_attribution")``: a table of this profile's results, read once; ``tables("pairs/controls")``: that
    table of every patched pair, with columns source and target."""

    def __init__(self, profile: Profile, folder: Path | None = None):
        self.profile, self.folder, self._kept = profile, folder or results_dir(profile), {}

    def __call__(self, name: str) -> pd.DataFrame:
        if name not in self._kept:
            self._kept[name] = self._pairs(name) if name.startswith("pairs/") else self._read(f"tables/{name}")
        return self._kept[name]

    def _read(self, path: str) -> pd.DataFrame:
        return read_table(self.folder / f"{path}.parquet", self.profile)

    def _pairs(self, name: str) -> pd.DataFrame:
        seed, table = self.profile.patching.seed, name.partition("/")[2]
        folders = {(a, b): f"pairs/{a}-{seed}-to-{b}-{seed}/{table}" for a, b in swept(self.profile)}
        if not folders:
            raise CannotTell("this profile patches no pair of its variants")
        return pd.concat(self._read(path).assign(source=a, target=b) for (a, b), path in folders.items())


def lacking(needs: Needs, tables: Tables) -> str | None:
    """Why this profile cannot have a quantity, or None."""
    profile = tables.profile
    absent = [name for name in needs.variants if name not in profile.training.variants]
    if absent:
        return f"this profile trains no {' and no '.join(absent)} variant"
    if len(profile.training.seeds) < needs.seeds:
        return "with one seed a variant there are no two runs of one variant to compare with"
    missing = [f"{a} → {b}" for a, b in needs.pairs if (a, b) not in swept(profile)]
    if missing:
        return f"this profile does not patch {' nor '.join(missing)} in full"
    if needs.layers > 1:
        layers = int(tables("07_attribution")["layer"].max()) + 1
        if layers < needs.layers:
            return f"the model has {layers} layers, and the claim is about {needs.layers} of them"
    return None


def value_of(asked: Quantity, tables: Tables, where: str) -> float:
    """The number. CannotTell when this profile cannot have it; RewiredError, naming ``where`` (the claim and the part
    of it), when it should be there and is not."""
    reason = lacking(asked.needs, tables)
    if reason:
        raise CannotTell(reason)
    fix = f"Mend {where} in book/claims.yaml, or the chapter that writes the table."
    try:
        if asked.named:
            found = QUANTITIES[asked.named](tables, tables.profile, **asked.given)
        else:
            found = _taken(asked, tables(asked.table))
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, SyntaxError, NameError) as error:
        source = asked.named or asked.table
        raise RewiredError(
            f"The quantity of {where} cannot be computed from {source!r}: {type(error).__name__}: "
            f"{' '.join(str(error).split())}. {fix}"
        ) from None
    if found is None or not math.isfinite(found):
        if asked.empty:
            raise CannotTell(asked.empty)
        form = asked.named or f"{asked.reduce} of {asked.column} in {asked.table}, where {asked.where or 'anything'}"
        raise RewiredError(f"The quantity of {where} is missing: {form} has no value in profile "
                           f"{tables.profile.name!r}. A claim without its number gets no verdict. {fix}")  # fmt: skip
    return float(found)


def _taken(asked: Quantity, frame: pd.DataFrame) -> float | None:
    rows = frame.query(asked.where, engine="python") if asked.where else frame
    if rows.empty:
        return None
    column = rows[asked.column] if asked.column in rows else rows.eval(asked.column, engine="python")
    if asked.by:
        column = column.astype(float).groupby([rows[name] for name in asked.by]).mean()
    column = column.dropna()
    return None if column.empty else float(REDUCERS[asked.reduce](column))


# --- the judge -------------------------------------------------------------------------------------------------------


def apply(rule: Rule, value: float, yardstick: float | None = None) -> str:
    """HOLDS, SIZE (another size than reported) or NOT for one number."""
    limits = [rule.threshold] if yardstick is None else [rule.threshold, yardstick]
    if not all(value > limit if rule.side == "above" else value < limit for limit in limits):
        return NOT
    return HOLDS if rule.size is None or _near(rule, value, rule.size) else SIZE


def _near(rule: Rule, value: float, other: float) -> bool:
    if rule.within is not None:
        return abs(value - other) <= rule.within
    return value * other > 0 and 1 / rule.factor <= value / other <= rule.factor


def measuring(rule: Rule, original: float, right: float, yardstick: float | None) -> str:
    """First part: what the way of measuring is worth, judged by both ways on the same models.

    NOT when the original way does not say so here; ARTEFACT when it does and the right way, or the yardstick that it
    lacked, says otherwise; HOLDS when both say so; SIZE when both do and their numbers differ by more than the rule's
    factor (or distance)."""
    if apply(rule, original) == NOT:
        return NOT
    if apply(rule, right, yardstick) == NOT:
        return ARTEFACT
    return HOLDS if rule.size is None or _near(rule, original, right) else SIZE


def judge_one(claim: Claim, tables: Tables) -> dict[str, Any]:
    """One row of the table of verdicts; numbers that cannot be had are NaN, with the reason in ``reason``."""
    found, reasons = {}, []
    asked = {"right": claim.quantity, "original": claim.original or claim.quantity}
    if claim.yardstick:
        asked["yardstick"] = claim.yardstick.quantity or claim.yardstick.constant
    for part, what in asked.items():
        try:
            key = "quantity" if part == "right" else part
            found[part] = what if isinstance(what, float) else value_of(what, tables, f"claim {claim.id!r} ({key})")
        except CannotTell as reason:
            found[part] = math.nan
            reasons.append((part, str(reason)))
    missing = {part for part, _ in reasons}
    right, original, yardstick = found["right"], found["original"], found.get("yardstick")
    return {
        "id": claim.id, "group": claim.group, "short": claim.short, "chapter": claim.chapter,
        "reported": claim.reported, "original": original, "right": right,
        "yardstick": math.nan if yardstick is None else yardstick,
        "measuring": UNTESTED if missing else measuring(claim.rule, original, right, yardstick),
        "here": UNTESTED if missing - {"original"} else apply(claim.rule, right, yardstick),
        "reason": "; ".join(dict.fromkeys(text for _, text in reasons)),
    }  # fmt: skip


def judge(register: Register, profile: Profile, folder: Path | None = None) -> pd.DataFrame:
    """Every claim's numbers and both parts of its verdict, one row a claim, in the register's order.

    Reads the tables and patched pairs of ``profile`` (in ``folder``, by default where its results live). RewiredError
    when a table, or a claim's number, is missing."""
    tables = Tables(profile, folder)
    return pd.DataFrame([judge_one(claim, tables) for claim in register.claims])


# --- in words --------------------------------------------------------------------------------------------------------


def is_study_model(profile: Profile) -> bool:
    """Whether this profile runs the study's model, so that the second part decides the study's claims."""
    return "gemma-2-2b" in profile.model.path.lower()


def scope(profile: Profile) -> str:
    """What was judged, and what the second part of the verdicts is about."""
    variants, seeds = ", ".join(profile.training.variants), len(profile.training.seeds)
    judged = f"Judged are the base and its variants {variants}, with {seeds} run{'s' * (seeds > 1)} of each. "
    if is_study_model(profile):
        return judged + (
            f"These verdicts are about {profile.model.path}, the study's own model: the second part decides "
            "the study's claims, on adapters trained anew."
        )
    return judged + (
        f"These verdicts are about the small model {profile.model.path}. They decide nothing about Gemma-2-2b: the "
        "first part can show that a way of measuring fails, since one counter-example is enough, and the second part "
        "is true of the small model only. With the profile gemma-2-2b-it this page decides the study's claims."
    )


def tell_counts(table: pd.DataFrame, column: str) -> str:
    """How often each verdict was given in ``measuring`` or ``here``, in one sentence."""
    counts = table[column].value_counts()
    listed = ", ".join(f"{name} ({counts[name]})" for name in VERDICTS if name in counts)
    asked = "Does the way of measuring support it" if column == "measuring" else "Does it hold in this run's model"
    return f"{asked}? Of {len(table)} claims: {listed}."


def tell_artefacts(table: pd.DataFrame, register: Register) -> str:
    """Which claims the original way supports and the right way does not."""
    traps = {claim.id: claim.trap for claim in register.claims}
    rows = table[table["measuring"] == ARTEFACT]
    if rows.empty:
        return "On these models no claim is supported by the original way of measuring and refused by the right one."
    listed = "; ".join(f"{row.short} ({traps[row.id]})" for row in rows.itertuples())
    return f"Supported by the original way and refused by the right one, on the same models: {listed}."


def tell_missed(table: pd.DataFrame) -> str:
    """Which claims hold here although the original way would have denied them."""
    rows = table[(table["measuring"] == NOT) & table["here"].isin([HOLDS, SIZE])]
    if rows.empty:
        return "No claim holds in this run's model that the original way of measuring would have missed."
    return "They hold here, and the original way of measuring would have missed them: " + "; ".join(rows["short"]) + "."


def tell_untested(table: pd.DataFrame) -> str:
    """What this profile could not test, and why."""
    rows = table[table["here"] == UNTESTED]
    if rows.empty:
        return "Every claim could be tested in this profile."
    listed = "; ".join(f"{', '.join(part['short'])} ({why})" for why, part in rows.groupby("reason", sort=False))
    return f"Not tested: {listed}."


def number(value: float) -> str:
    """Three significant digits, plainly written; a dash for no value."""
    if value is None or not math.isfinite(value):
        return "–"
    return "0" if value == 0 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims got which verdict, one row a verdict, one column for each of the two questions."""
    both = {"the way of measuring": "measuring", "this run's model": "here"}
    return pd.DataFrame({"verdict": VERDICTS, **{name: [int((table[c] == v).sum()) for v in VERDICTS]
                                                 for name, c in both.items()}})  # fmt: skip


def cards(register: Register, table: pd.DataFrame, group: str) -> str:
    """The claims of one group as HTML, each folded under its statement and its two verdicts."""
    rows = table.set_index("id")
    return "\n".join(_card(claim, rows.loc[claim.id]) for claim in register.claims if claim.group == group)


def _card(claim: Claim, row: pd.Series) -> str:
    rule, reason = claim.rule, row["reason"]
    side = f"{rule.side} {number(rule.threshold)}" + (" and the yardstick" if claim.yardstick else "")
    near = f"; the reported size is {number(rule.size)}, " + (
        f"give or take {number(rule.within)}" if rule.within else f"within a factor of {number(rule.factor)}"
    ) if rule.size is not None else ""  # fmt: skip
    lines = {
        "Reported": f"{claim.reported} ({claim.source})",
        "Original way": f"{claim.original_way} Here: <b>{number(row['original'])}</b>.",
        "Right way": f"{claim.right_way} Here: <b>{number(row['right'])}</b>.",
        "Yardstick": f"{claim.yardstick.text} Here: <b>{number(row['yardstick'])}</b>." if claim.yardstick else "none",
        "Rule": f"The number is {side}{near}. {rule.why}",
        "Way of measuring": f"<b>{row['measuring']}</b>"
        + (f": {claim.trap} ({_link('14_traps', 'traps')})" if row["measuring"] == ARTEFACT else ""),
        "This run's model": f"<b>{row['here']}</b>",
        **({"Why not tested": reason} if reason else {}),
        "Measured in": _link(claim.chapter, f"chapter {int(claim.chapter[:2])}"),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines.items())
    first, second = (f'<span class="verdict v{VERDICTS.index(row[c])}">{row[c]}</span>' for c in ("measuring", "here"))
    return (
        f'<details class="rewired-claim" id="claim-{claim.id}"><summary>{escape(claim.statement)}<br>'
        f"<small>measuring: {first} this model: {second}</small></summary><dl>{listed}</dl></details>"
    )


def _link(chapter: str, text: str) -> str:
    """A link to a chapter's page, where the book has that chapter."""
    there = (ROOT / "notebooks" / f"{chapter}.ipynb").is_file()
    return f'<a href="{chapter}.html">{text}</a>' if there else text
