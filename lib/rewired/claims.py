"""From a published claim to a verdict: the register ``book/claims.yaml``, its schema, and the judge.

The register holds the words of a claim, where it stands, the number that was reported, and a *rule*: what a number has
to be for the claim to stand. The numbers themselves are computed in the claim's chapter, beside the figure that shows
them. There are up to three: measured the *original* way, as the study did; measured the *right* way, on the same
models; and a *yardstick*, what the right way would give if there were nothing to find.

The verdict has three parts. **Do the two ways agree?** compares what the original way says (by the rule without the
yardstick, which the study did not have) with what the right way says. **Does it hold in this run's model?** applies the
rule to the right way's number. What the study's own files say is the third, see ``replication.files``. A number that
should be there and is not is an error. A number that this profile cannot have, for a stated reason, makes the verdict
"cannot be tested in this profile".

>>> register = claims.load()
>>> table = claims.judge(register, numbers)     # numbers: the tables <chapter>_claims, one below the other
"""

import math
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT, Section

CLAIMS = ROOT / "book" / "claims.yaml"
YES, NO, UNTESTED = "both say yes", "both say no", "cannot be tested in this profile"
ARTEFACT, MISSED = "only the original says yes: artefact", "only the right way says yes: missed"
HOLDS, SIZE, NOT = "holds", "holds with another size", "not supported"
FILES = ("bear it out", "bear it out with another size", "contradict it", "do not decide it")
ANSWERS = {
    "agreement": (YES, NO, ARTEFACT, MISSED, UNTESTED), "here": (HOLDS, SIZE, NOT, UNTESTED), "files": FILES,
}  # fmt: skip
"""What each of a verdict's three parts can say."""


class Yardstick(Section):
    """What the number is to be compared with, were there nothing to find: in words, and the number if it is fixed."""

    text: str = Field(min_length=1)
    constant: float | None = None  # without it the chapter computes the number


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
        ways = (self.factor is not None) + (self.within is not None)
        if ways != (self.size is not None):
            raise ValueError("`size` goes with `factor` or with `within`, and they go with `size`")
        return self


class Claim(Section):
    """One entry of the register."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    group: str  # one of the register's groups
    short: str = Field(min_length=4, max_length=44)  # the row of the overview
    statement: str = Field(min_length=10)
    quotes: tuple[str, ...] = Field(min_length=1)  # excerpts of book/study_quotes.yaml that contain it
    reported: str = Field(min_length=1)
    chapter: str  # the notebook that computes the numbers
    original_way: str = Field(min_length=10)
    right_way: str = Field(min_length=10)
    yardstick: Yardstick | None = None
    rule: Rule
    trap: str | None = None  # what went wrong, where both ways may disagree

    @field_validator("chapter")
    @classmethod
    def _known_chapter(cls, value: str) -> str:
        known = sorted(file.stem for file in (ROOT / "notebooks").glob("*/*.ipynb"))
        if value not in known:
            raise ValueError(str(choice("chapter", value, known)))
        return value

    @property
    def part(self) -> str:
        """The folder of notebooks/ in which the claim's chapter stands."""
        (file,) = (ROOT / "notebooks").glob(f"*/{self.chapter}.ipynb")
        return file.parent.name

    @model_validator(mode="after")
    def _needs_a_trap(self) -> "Claim":
        if self.yardstick and not self.trap:
            raise ValueError("a claim with a yardstick can be an artefact and must name its `trap`")
        return self


class Part(Section):
    """How the page calls the claims of one part of the book, and what their verdicts are about."""

    title: str = Field(min_length=1)
    about: str = Field(min_length=20)


class Register(Section):
    """All claims, and the titles of the groups in which the page shows them: {group: title}; {folder: part}."""

    parts: dict[str, Part] = Field(min_length=1)
    groups: dict[str, str] = Field(min_length=1)
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Register":
        names = [claim.id for claim in self.claims]
        for claim in self.claims:
            if names.count(claim.id) > 1:
                raise ValueError(f"the id {claim.id!r} is given twice")
            if claim.group not in self.groups:
                raise ValueError(str(choice(f"group of claim {claim.id!r}:", claim.group, self.groups)))
            if claim.part not in self.parts:
                raise ValueError(str(choice(f"part of claim {claim.id!r}:", claim.part, self.parts)))
        return self

    def of(self, *parts: str) -> "Register":
        """The register with the claims of these parts alone."""
        return self.model_copy(update={"claims": tuple(claim for claim in self.claims if claim.part in parts)})


def load(file: str | Path = CLAIMS) -> Register:
    """The checked register. RewiredError naming file, claim, key, value and what is allowed for anything else."""
    try:
        content = yaml.safe_load(Path(file).read_text())
        return Register.model_validate(content)
    except OSError:
        fix = "`git checkout book/claims.yaml` restores it."
        raise RewiredError(f"There is no register of claims {file}; {fix}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RewiredError(f"The register {file} is not valid YAML: {' '.join(str(error).split())}. Mend it.") from None
    except ValidationError as error:
        problems = " ".join(_problem(problem, content) for problem in error.errors()[:5])  # five are enough
        raise RewiredError(f"The register {file} cannot be used. {problems} Mend it there.") from None


def _problem(problem: Any, content: dict) -> str:
    """One problem of a register, in words: which claim, which key, what is allowed there."""
    # ``loc`` is a path into the file: ("claims", 3, "rule", "side"), or () for the file as a whole.
    place, who, section = list(problem["loc"]), "", "register"
    if len(place) > 1 and place[0] == "claims":
        entry = content["claims"][place[1]]
        name = entry.get("id") if isinstance(entry, dict) else None
        who, section = f"Claim {name or place[1] + 1}: ", "claim"
        place = place[2:]
    key = ".".join(map(str, place)) or "the entry"
    if problem["type"] == "extra_forbidden":
        models: dict[str, type[Section]] = {"register": Register, "parts": Part, "claim": Claim, "rule": Rule}
        models["yardstick"] = Yardstick
        allowed = models.get(str(place[0]), models[section]).model_fields
        return f"{who}{choice('key', key, allowed)}"
    if problem["type"] == "missing":
        return f"{who}{key} is missing."
    shown = "" if isinstance(problem["input"], dict | list) else f" is {problem['input']!r}"
    return f"{who}{key}{shown}: {problem['msg'].removeprefix('Value error, ').rstrip('.')}."


def _row_of(claim: Claim, numbers: pd.DataFrame) -> pd.Series:
    """The claim's row of numbers. RewiredError when there is none, or more than one."""
    rows = numbers[numbers["claim"] == claim.id]
    if len(rows) != 1:
        raise RewiredError(
            f"Claim {claim.id!r} has {len(rows) or 'no'} rows of numbers, where one is needed. The chapter "
            f"{claim.chapter!r} gives them in a cell tagged claims: book.claim({claim.id!r}, original=…, right=…)."
        )
    return rows.iloc[0]


def _numbers_of(claim: Claim, row: pd.Series) -> dict[str, float]:
    """The numbers that a verdict needs, NaN where there is a reason. RewiredError where they do not fit the claim."""
    where = f"Claim {claim.id!r} of the chapter {claim.chapter!r}"
    numbers = {name: float(row[name]) for name in ("right", "original", "yardstick")}
    if claim.yardstick is None:
        # Without words for it, a yardstick's number would be judged by and never shown.
        if not math.isnan(numbers.pop("yardstick")):
            raise RewiredError(f"{where} has the number of a yardstick. Say in book/claims.yaml what it is.")
    elif claim.yardstick.constant is not None:
        numbers["yardstick"] = claim.yardstick.constant
    missing = [name for name, number in numbers.items() if not math.isfinite(number)]
    if missing and not row["cannot"]:
        raise RewiredError(
            f"{where} has no number {' and no number '.join(missing)}, and no reason. A claim without its number gets "
            "no verdict. Mend its cell, or say there what this profile lacks: cannot='…'."
        )
    if row["cannot"] and not missing:
        # A reason that names no number stands for all: they are about something else than the claim.
        return dict.fromkeys(numbers, math.nan)
    return numbers


def apply(rule: Rule, value: float, yardstick: float | None = None) -> str:
    """HOLDS, SIZE (another size than reported) or NOT for one number. It has to lie beyond the threshold, and
    beyond the yardstick if there is one, on the rule's side; equal is not beyond."""
    limits = [rule.threshold]
    if yardstick is not None:
        limits.append(yardstick)
    beyond = value > max(limits) if rule.side == "above" else value < min(limits)
    if not beyond:
        return NOT
    return HOLDS if rule.size is None or _near(rule, value, rule.size) else SIZE


def _near(rule: Rule, value: float, other: float) -> bool:
    if rule.within is not None:
        return abs(value - other) <= rule.within
    # a ratio of two numbers of opposite sign is near nothing
    return rule.factor is not None and value * other > 0 and 1 / rule.factor <= value / other <= rule.factor


def agreement(rule: Rule, original: float, right: float, yardstick: float | None) -> str:
    """First part: do both ways say the same of the same models? Only the right way is held against the yardstick."""
    says = apply(rule, original) != NOT, apply(rule, right, yardstick) != NOT
    return {(True, True): YES, (False, False): NO, (True, False): ARTEFACT, (False, True): MISSED}[says]


def judge(register: Register, numbers: pd.DataFrame) -> pd.DataFrame:
    """Every claim's numbers and the first two parts of its verdict (``agreement``, ``here``), one row a claim, in the
    register's order. ``numbers``: all tables of ``Chapter.claims``, columns claim, original, right, yardstick, cannot.
    RewiredError, naming claim and chapter, when a number is missing without a reason."""
    return pd.DataFrame([_judge_one(claim, _row_of(claim, numbers)) for claim in register.claims])


def _judge_one(claim: Claim, row: pd.Series) -> dict:
    """One row of the table of verdicts; numbers that cannot be had are NaN, with the reason in ``reason``."""
    numbers = _numbers_of(claim, row)
    right, original, yardstick = numbers["right"], numbers["original"], numbers.get("yardstick")
    missing = {name for name, number in numbers.items() if not math.isfinite(number)}
    way = UNTESTED if missing else agreement(claim.rule, original, right, yardstick)
    # The second part does not need the original way's number.
    here = UNTESTED if missing - {"original"} else apply(claim.rule, right, yardstick)
    if way == ARTEFACT and not claim.trap:
        raise RewiredError(
            f"Claim {claim.id!r} of the chapter {claim.chapter!r} is an artefact of the measurement (original "
            f"{original:.3g}, right {right:.3g}). Name in book/claims.yaml the `trap` that made it."
        )
    about = {"id": claim.id, "part": claim.part, "group": claim.group, "short": claim.short, "chapter": claim.chapter}
    shown = {"original": original, "right": right, "yardstick": math.nan if yardstick is None else yardstick}
    return {**about, "reported": claim.reported, **shown, "agreement": way, "here": here, "reason": row["cannot"]}
