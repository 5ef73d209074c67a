"""Settings in YAML files of one folder of ``config/``, every key of them checked.

A misspelt key, a wrong type or a value out of range is an error that names the file, the key and what is allowed.
"""

from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT

Model = TypeVar("Model", bound=BaseModel)


def known(folder: Path) -> list[str]:
    """Names of the YAML files in a folder."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def load(kind: str, model: type[Model], folder: Path, name_or_path: str | Path) -> Model:
    """The settings of that name in the folder, or those in that YAML file; their field ``name`` is the file's name.

    ``kind`` is the word for such a thing, as "organism". Raises RewiredError for a name that no file has, a key that
    does not exist, and a value of the wrong type or range."""
    text = str(name_or_path)
    file = Path(text) if text.endswith((".yaml", ".yml")) else folder / f"{text}.yaml"
    if not file.is_file():
        raise choice(kind, text, known(folder), f"Name one of them, or write {folder.name}/{file.name} in config/.")
    short = file.resolve().relative_to(ROOT) if file.resolve().is_relative_to(ROOT) else file
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RewiredError(f"The {kind} {short} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or "name" in content:
        raise RewiredError(f"The {kind} {short} must hold `key: value` lines, and no `name`: the file names it.")
    try:
        return model.model_validate({**content, "name": file.stem})
    except ValidationError as error:
        raise RewiredError(f"The {kind} {short} cannot be used. {_explain(model, error)} Mend it there.") from None


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """All problems of a file, one sentence or two each."""
    problems = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            problems.append(str(choice("key", place, _beside(model, problem["loc"]))))
        elif problem["type"] == "missing":
            problems.append(f"{place} is missing.")
        else:
            value = "" if problem["type"] == "value_error" else f"{place} is {problem['input']!r}: "
            problems.append(f"{value}{problem['msg'].removeprefix('Value error, ')}.")
    return " ".join(problems)


def _beside(model: Any, place: tuple) -> list[str]:
    """The keys that may stand where ``place`` does, dotted as it is."""
    for key in place[:-1]:
        fields = getattr(model, "model_fields", {})
        # a field of a section, or an entry of a mapping to sections
        model = fields[key].annotation if key in fields else get_args(model)[-1]
    parent = [str(key) for key in place[:-1]]
    return [".".join([*parent, key]) for key in getattr(model, "model_fields", {}) if key != "name"]
