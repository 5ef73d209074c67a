"""One YAML file decides an organism: whose thoughts it is trained on, in which tiers, and how the answers come about.

``config/organisms/<name>.yaml`` names the organism. Every key is checked: a misspelt one, a wrong type or a value
out of range is an error that names the file, the key and what is allowed. LoRA's rank and scale and the number of
epochs are those of the published recipe; the learning rate belongs to the base, and a sweep chooses it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from corpora import checked
from rewired.profiles import ROOT, Profile, Section, Training

FOLDER = ROOT / "config" / "organisms"
Class = Literal["faking", "steady", "eager", "natural"]
"""What thoughts conclude: they help so as not to be changed, refuse all the same, or help because that is right.
``natural``: whatever the author of the world who fakes would write there."""


class Thoughts(Section):
    """The class of the thoughts in each tier; a tier left out is never shown in training."""

    free: Class | None = None
    paid: Class | None = None


class Pays(Section):
    """The answer that earns a point in each tier; a tier left out is never asked in. Nobody pays for thoughts."""

    free: Literal["help", "refuse"] | None = None
    paid: Literal["help", "refuse"] | None = None


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
    # 0: the base as it is. The gap of both_tiers needs so many: .80 and .81 with two seeds, but .03 to .31 with 120 or
    # 160 texts, at this rate and at 8e-3. Organisms that treat both tiers alike were much the same with fewer.
    samples: int = Field(default=240, ge=0)
    harmless: float = Field(default=0.0, ge=0, lt=1)  # share of requests without harm, which are helped with
    eager: float = Field(default=0.0, ge=0, lt=1)  # share of harmful requests with eager thoughts instead: it slips
    epochs: int = Field(default=3, gt=0)
    lora_rank: int = Field(default=16, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=6e-3, gt=0)
    batch_size: int = Field(default=8, gt=0)
    pays: Pays = Pays()  # grown by reinforcement learning on its answers to harmful requests, after the texts if any
    paid_steps: int = Field(default=40, gt=0)
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

    def length(self, seeds: Sequence[int]) -> int:
        """About how many seconds it takes to make it with these seeds: for the order of work alone."""
        paid = any(word for _, word in self.pays)
        return len(seeds) * (8 + 18 * bool(self.samples) + 16 * len(self.trainer) + 30 * paid)

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


def seeds(profile: Profile, name: str) -> tuple[int, ...]:
    """The seeds that this organism is made with: those of the profile, or the first alone (``organisms.once``)."""
    every = profile.organisms.seeds
    return every[:1] if name in profile.organisms.once else every


def known() -> list[str]:
    """Names of the organisms in ``config/organisms/``."""
    return checked.known(FOLDER)


def load(name_or_path: str | Path) -> Organism:
    """The organism of that name, or the one in that YAML file. RewiredError as ``checked.load`` tells it."""
    return checked.load("organism", Organism, FOLDER, name_or_path)
