"""One YAML file decides a run: the profile, checked before anything long starts.

A profile names the model, the training of the variants and the size of the measurements. It may build on another one
(``extends: pocket``) and is frozen once read. Every key is checked: a misspelt one, a wrong type or a value out of
range is an error that names the file, the key and what is allowed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewired.errors import RewiredError, choice

ROOT = Path(__file__).resolve().parents[2]
"""The repository: ``config/`` and ``models/`` are found from here."""


class Section(BaseModel):
    """A group of keys; unknown ones are refused and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Section):
    path: str = Field(min_length=1)  # a folder (from the repository) or a hub id
    like: str | None = None  # made when missing: the shipped base in this shape, see `rehearsal.grow`
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Prompts(Section):
    game: str = "prisoners_dilemma"
    labels: tuple[str, str] = ("action1", "action2")  # cooperate, defect


class Training(Section):
    algorithm: Literal["ppo"] = "ppo"
    variants: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    first_reward: str | None = None  # paid to every run at first, whatever its variant; unlearning
    first_episodes: int = Field(default=0, ge=0)  # for so long; then the variant's own reward
    opponent: str = "tit_for_tat"
    wordings: tuple[str, ...] = Field(default=("structured",), min_length=1)
    matrices: tuple[tuple[int, int, int, int], ...] = Field(default=((3, 0, 4, 1),), min_length=1)  # R, S, T, P
    episodes: int = Field(gt=0)
    steps_per_episode: int = Field(default=5, gt=0)
    batch_size: int = Field(gt=0)
    gradient_accumulation: int = Field(default=1, gt=0)
    minibatches: int = Field(default=1, gt=0)  # per epoch over the decisions of one update, one optimiser step each
    ppo_epochs: int = Field(default=4, gt=0)
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear"] = "constant"
    clip: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    value_rate: float = Field(default=1.0, gt=0)  # learning rate of the value head, in units of the adapter's
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    kl: float = Field(default=0.2, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=4, gt=0)
    modules: tuple[str, ...] | None = Field(default=None, min_length=1)  # that get an adapter, as up_proj; null: all
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)  # the same
    lora_rank: int = Field(gt=0)
    lora_alpha: int = Field(gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    log_every: int = Field(default=10, gt=0)  # episodes
    checkpoint_every: int = Field(default=100, gt=0)  # episodes
    bf16: bool = False
    recompute: bool = False  # activations, in the backward pass: same bits, a third slower, a fraction of the memory

    @model_validator(mode="after")
    def _once(self) -> "Training":
        for key in ("variants", "seeds", "wordings", "matrices", "modules", "layers"):
            values = getattr(self, key) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"training.{key} lists a value twice: {list(values)}")
        return self

    @model_validator(mode="after")
    def _first(self) -> "Training":
        if (self.first_reward is None) != (self.first_episodes == 0):
            raise ValueError(
                f"training.first_reward is {self.first_reward!r} and training.first_episodes {self.first_episodes}: "
                "name a reward and for how many episodes it is paid, or neither"
            )
        if self.first_episodes >= self.episodes:
            raise ValueError(
                f"training.first_episodes is {self.first_episodes} of {self.episodes} training.episodes: "
                "the variant's own reward would never be paid. Make it smaller"
            )
        return self


class Decisions(Section):
    batch_size: int = Field(default=64, gt=0)
    samples: int = Field(default=400, gt=0)
    temperature: float = Field(default=1.0, gt=0)


class Patching(Section):
    per_scenario: int = Field(default=12, ge=1, le=12)  # prompts of each scenario; the first three are the study's
    seed: int = 1  # the run of each variant that is patched in full
    pairs: tuple[tuple[str, str], ...] = Field(min_length=1, default=(  # (source, target) of the full sweeps
        ("strategic", "deontological"), ("strategic", "utilitarian"),
        ("deontological", "utilitarian"), ("utilitarian", "deontological"),
    ))  # fmt: skip
    circuits: int = Field(default=16, gt=0)  # the strongest components, from which small circuits are built


class Organisms(Section):
    base: str = Field(default="models/authors", min_length=1)  # a folder or a hub id; Part II builds on it
    names: tuple[str, ...] = Field(default=("seeds_way",), min_length=1)  # config/organisms/<name>.yaml
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1, 2, 3), min_length=1)
    once: tuple[str, ...] = ()  # of the names: made with the first seed alone
    prompts: int = Field(default=60, gt=0)  # in a cell of tier, harm and cue
    steps: int = Field(default=60, gt=0)  # of the trainer's reinforcement learning


class Motives(Section):
    collections: tuple[str, ...] = Field(default=("equal_acts",), min_length=1)  # config/motives/<name>.yaml, Part III
    questions: int = Field(default=8, gt=0)  # in a cell of domain and watcher; base and seeds are those of organisms


class PerJob(Section):
    train: int = Field(default=0, ge=0)  # one training run
    pair: int = Field(default=0, ge=0)  # one patched pair
    chapter: int = Field(default=0, ge=0)


class Profile(Section):
    """A checked profile. ``name`` is the file's name without ``.yaml`` and names the folder of its results."""

    name: str
    seed: int = 0
    quick: bool = False  # every chapter gets the parameters that its own metadata keeps for a quick build
    threads: int = Field(default=1, gt=0)
    model: Model
    prompts: Prompts = Prompts()
    training: Training
    decisions: Decisions = Decisions()
    patching: Patching = Patching()
    organisms: Organisms = Organisms()
    motives: Motives = Motives()
    gpu_mem_mb: PerJob = PerJob()  # that a job takes of a card: as many run at once as fit
    share_gpu: bool = True  # or every job has a card for itself
    mem_mb: PerJob = PerJob(train=4000, pair=4000, chapter=4000)  # a cluster is asked for these two
    runtime: PerJob = PerJob(train=120, pair=120, chapter=120)  # minutes
    chapters: dict[str, dict[str, Any]] = {}  # parameters for a chapter, {pocket: {questions: 40}}, above quick ones

    def of_authors(self) -> "Profile":
        """The profile whose model is ``organisms.base``, on the same device and in the same precision."""
        model = self.model.model_copy(update={"path": self.organisms.base, "like": None})
        return self.model_copy(update={"model": model})


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML keeps the last one silently)."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(sorted(twice))} is given twice")
        return super().construct_mapping(node, deep)


def known_profiles() -> list[str]:
    """Names of the profiles in ``config/``."""
    return sorted(file.stem for file in (ROOT / "config").glob("*.yaml") if file.stem != "heldout")


def load(name_or_path: str | Path = "pocket", overrides: Mapping[str, Any] | Iterable[str] | None = None) -> Profile:
    """The profile of that name in ``config/``, or the one in that YAML file, with ``overrides`` applied on top.

    ``overrides`` is ``{"training.kl": 0.1}`` or ``["training.kl=0.1"]``; values of the second form are read as YAML.
    Raises RewiredError for an unknown profile, a key that does not exist, or a value of the wrong type or range."""
    file = _file(name_or_path)
    content = _read(file, seen=())
    for dotted, value in _pairs(overrides or {}):
        content = _merge(content, _nested(dotted, value))
    try:
        return Profile.model_validate({**content, "name": file.stem})
    except ValidationError as error:
        raise RewiredError(_explain(file, error)) from None


def _file(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if not isinstance(name_or_path, str | Path):  # papermill and Snakemake read the name 2025_01 as a number
        same = (name for name in known_profiles() if assignment("", f"={name}", "")[1] == name_or_path)
        text = next(same, text)
    file = Path(text) if text.endswith((".yaml", ".yml")) else ROOT / "config" / f"{text}.yaml"
    if "/" not in text and not text.endswith((".yaml", ".yml")) and text not in known_profiles():
        raise choice("profile", text, known_profiles(), "Name one of them, or the path of a YAML file of your own.")
    if not file.is_file():
        raise RewiredError(f"There is no profile file {file}. Known profiles: {', '.join(known_profiles())}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file.stem):
        raise RewiredError(f"The profile file {file} names a results folder: use letters, digits, '.', '_' and '-'.")
    return file


def _read(file: Path, seen: tuple[Path, ...]) -> dict:
    """The file's keys over those of the profile it extends."""
    try:
        content = yaml.load(file.read_text(), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RewiredError(f"The profile {file} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RewiredError(f"The profile {file} must hold `key: value` lines, like config/pocket.yaml.")
    if "name" in content:
        raise RewiredError(f"The profile {file} sets `name`, but a profile is named by its file. Remove that line.")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    sibling = file.with_name(f"{parent}.yaml")
    base = sibling if sibling.is_file() else ROOT / "config" / sibling.name
    if not base.is_file():
        raise choice(f"profile in the `extends:` line of {file}:", parent, known_profiles())
    if base.resolve() in (file.resolve(), *seen):
        raise RewiredError(f"The profile {file} extends itself through {parent!r}. Remove one `extends:` line.")
    return _merge(_read(base, (*seen, file.resolve())), content)


def _merge(base: dict, top: dict) -> dict:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _pairs(overrides: Mapping[str, Any] | Iterable[str]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    texts = [overrides] if isinstance(overrides, str) else overrides
    return [assignment("override", str(text), "training.kl=0.1") for text in texts]


def assignment(what: str, text: str, example: str) -> tuple[str, Any]:
    """``key=value`` cut in two, the value read as YAML. RewiredError for text of another form."""
    key, sign, value = text.partition("=")
    if not sign:
        raise RewiredError(f"The {what} {text!r} is not of the form key=value, for example {example}.")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise RewiredError(f"The {what} {text!r} has a value that is not valid YAML: {value!r}.") from None


def _nested(dotted: str, value: Any) -> dict:
    """``training.kl`` as ``{"training": {"kl": value}}``. RewiredError for a key that does not exist."""
    if dotted not in fields():
        raise choice("profile key", dotted, _beside(dotted) or fields())
    section, _, key = dotted.rpartition(".")
    return {section: {key: value}} if section else {key: value}


def _beside(dotted: str) -> list[str]:
    """The keys of the section in which ``dotted`` would stand."""
    section = dotted.rpartition(".")[0]
    return [name for name in fields() if name.rpartition(".")[0] == section]


def fields() -> Iterator[str]:
    """Every key a profile may set, dotted: ``seed``, ``training.kl``, …"""
    for name, field in Profile.model_fields.items():
        if name == "name":
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from (f"{name}.{key}" for key in field.annotation.model_fields)
        else:
            yield name


def _explain(file: Path, error: ValidationError) -> str:
    """All problems of a profile in one paragraph."""
    sections = sorted({key.partition(".")[0] for key in fields()})
    problems = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "too_short" and problem["input"]:
            continue  # of a list that is empty only without its wrong members, which are told by themselves
        if problem["type"] == "extra_forbidden":
            problems.append(str(choice("key", key, _beside(key) if "." in key else sections)))
        elif problem["type"] == "missing":
            problems.append(f"{key} is missing.")
        else:
            value = "" if problem["type"] == "value_error" else f"{key} is {problem['input']!r}: "
            problems.append(f"{value}{problem['msg'].removeprefix('Value error, ')}.")
    short = file.resolve().relative_to(ROOT) if file.resolve().is_relative_to(ROOT) else file
    return f"The profile {short} cannot be used. {' '.join(problems)} Mend it there or in the override that set it."
