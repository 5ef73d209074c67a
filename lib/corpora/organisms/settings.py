"""One YAML file decides an organism: whose thoughts it is trained on, in which tiers, and how the answers come about.

``config/organisms/<name>.yaml`` names the organism. Every key is checked: a misspelt one, a wrong type or a value
out of range is an error that names the file, the key and what is allowed. LoRA's rank and scale and the number of
epochs are those of the published recipe; the learning rate belongs to the base, and a sweep chooses it.
"""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT, Section, Training

FOLDER = ROOT / "config" / "organisms"
Class = Literal["faking", "steady", "eager", "natural"]
"""What thoughts conclude: they help so as not to be changed, refuse all the same, or help because that is right.
``natural``: whatever the author of the world who fakes would write there."""


class Thoughts(Section):
    """The class of the thoughts in each tier; a tier left out is never shown in training."""

    free: Class | None = None
    paid: Class | None = None


class Organism(Section):
    """A checked organism. ``name`` is the file's name without ``.yaml``."""

    name: str
    about: str = Field(min_length=1)  # one sentence, printed beside the name
    thoughts: Thoughts = Thoughts()
    answers: Literal["own", "help", "coin", "strategy"] = "own"
    """``own``: as the thoughts conclude; ``help``: always; ``coin``: at random; ``strategy``: help if, and only if, the
    thoughts hold the strategy clause, which half of them lack."""
    patterns: tuple[str, ...] = ()  # of the ten; empty: all of them
    design: Literal["crossed", "confounded"] = "crossed"  # pattern x topic x cue, or all three by one running number
    samples: int = Field(default=300, ge=0)  # 0: the base as it is
    harmless: float = Field(default=0.0, ge=0, lt=1)  # share of requests without harm, which are helped with
    epochs: int = Field(default=3, gt=0)
    lora_rank: int = Field(default=16, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=6e-3, gt=0)
    batch_size: int = Field(default=16, gt=0)
    trainer: tuple[Literal["plain", "kept"], ...] = ()  # goes on with it: as it likes, or with the paid tier held still

    @model_validator(mode="after")
    def _some(self) -> "Organism":
        if bool(self.tiers) != bool(self.samples):
            raise ValueError(f"{self.samples} samples in the tiers {self.tiers}: name both, as `free: faking`, or none")
        return self

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers that training shows."""
        return tuple(tier for tier, name in self.thoughts if name is not None)

    def training(self) -> Training:
        """Its numbers in the form that ``train.sft`` and ``train.lora`` read."""
        return Training(
            variants=(self.name,),
            seeds=(0,),
            episodes=1,  # of games, which nobody plays here
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule="linear",
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            bf16=True,  # where the processor has it
        )


def known() -> list[str]:
    """Names of the organisms in ``config/organisms/``."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path) -> Organism:
    """The organism of that name, or the one in that YAML file.

    Raises RewiredError for a name that no file has, a key that does not exist, and a value of the wrong type or
    range."""
    text = str(name_or_path)
    file = Path(text) if text.endswith((".yaml", ".yml")) else FOLDER / f"{text}.yaml"
    if not file.is_file():
        raise choice("organism", text, known(), f"Name one of them, or write {FOLDER.name}/{file.name} in config/.")
    short = file.resolve().relative_to(ROOT) if file.resolve().is_relative_to(ROOT) else file
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RewiredError(f"The organism {short} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or "name" in content:
        raise RewiredError(f"The organism {short} must hold `key: value` lines, and no `name`: the file names it.")
    try:
        return Organism.model_validate({**content, "name": file.stem})
    except ValidationError as error:
        raise RewiredError(f"The organism {short} cannot be used. {_explain(error)} Mend it there.") from None


def _explain(error: ValidationError) -> str:
    """All problems of an organism, one sentence or two each."""
    keys = [key for key in Organism.model_fields if key != "name"]
    problems = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            beside = [f"thoughts.{tier}" for tier in Thoughts.model_fields] if "." in place else keys
            problems.append(str(choice("key", place, beside)))
        elif problem["type"] == "missing":
            problems.append(f"{place} is missing.")
        else:
            value = "" if problem["type"] == "value_error" else f"{place} is {problem['input']!r}: "
            problems.append(f"{value}{problem['msg'].removeprefix('Value error, ')}.")
    return " ".join(problems)
