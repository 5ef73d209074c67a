"""Published models with published SAEs: the routes on which an organism of a real size would be validated.

``config/published/<route>.yaml`` names a model, the place where its SAE reads, and what the SAE is called in the hub.
None of these models can be loaded where the book is built. The routes have never been run; their memory and time are
estimates. What can be checked without them is checked: every key, and the reading, on random models of these widths.

    python -m corpora.organisms.published          # the routes, as a table
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import yaml
from pydantic import Field, ValidationError, model_validator

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT, Section
from rewired.tracing import features

FOLDER = ROOT / "config" / "published"
LABELLED = "jplhughes2/classify_alignment_faking_human_labels"
"""The labelled scratchpads on the hub. No licence is stated, so nothing of them is in this repository."""


class Sae(Section):
    """What an SAE is called: a release of SAELens or a hub id, and its name there, with ``{layer}`` for the layer."""

    release: str = Field(min_length=1)
    name: str
    sparsify: bool = False  # EleutherAI's layout


class Minutes(Section):
    """Estimated minutes on one GPU of 80 GB: to train an organism, to elicit or read some 2,000 texts."""

    organism: float | None = Field(default=None, gt=0)
    elicit: float | None = Field(default=None, gt=0)


class Route(Section):
    """A checked route; ``route`` is the file's name without ``.yaml``."""

    route: str
    about: str = Field(min_length=1)
    model: str = Field(min_length=1)  # a hub id, or a folder
    site: Literal["residual", "mlp_in", "mlp_out"]  # what a layer leaves in the stream, what its MLP reads or puts out
    layers: tuple[int, ...] = Field(min_length=1)
    d_model: int = Field(gt=0)
    features: int = Field(gt=0)
    sae: Sae
    named: dict[str, str] = {}  # L<layer>_F<feature>: what it is said to stand for
    memory_gb: float = Field(gt=0)  # an estimate
    minutes: Minutes = Minutes()

    @model_validator(mode="after")
    def _in_range(self) -> "Route":
        for name in self.named:
            layer, _, number = name.removeprefix("L").partition("_F")
            known = layer.isdigit() and int(layer) in self.layers and number.isdigit()
            if not known or int(number) >= self.features:
                layers = ", ".join(map(str, self.layers))
                raise ValueError(
                    f"named holds {name!r}; a feature is L<layer>_F<number> with a layer of {layers} and a number "
                    f"below {self.features}"
                )
        if len(self.layers) > 1 and "{layer}" not in self.sae.name:
            raise ValueError(
                f"sae.name is {self.sae.name!r}, one SAE for {len(self.layers)} layers: put {{layer}} in it"
            )
        return self


def known() -> list[str]:
    """Names of the routes in ``config/published/``."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path) -> Route:
    """The route of that name, or the one in that YAML file. RewiredError for a name that no file has, a key that does
    not exist, and a value of the wrong type or range."""
    text = str(name_or_path)
    file = Path(text) if text.endswith((".yaml", ".yml")) else FOLDER / f"{text}.yaml"
    if not file.is_file():
        raise choice("route", text, known(), "A route is a file in config/published/.")
    try:
        content = yaml.safe_load(file.read_text())
        return Route.model_validate({**content, "route": file.stem})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise RewiredError(f"The route {file} is not valid YAML: {' '.join(str(error).split())}. Mend it.") from None
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                problems.append(str(choice("key", key, [name for name in Route.model_fields if name != "route"])))
            else:
                problems.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}.".removeprefix(": "))
        raise RewiredError(f"The route {file} cannot be used. {' '.join(problems)} Mend it there.") from None


def table() -> pd.DataFrame:
    """All routes, one row each, estimates marked as such."""
    rows = []
    for name in known():
        one = load(name)
        layers = ", ".join(map(str, one.layers))
        rows.append((name, one.model, one.sae.release, f"{one.site} {layers}", one.features, one.memory_gb))
    return pd.DataFrame(rows, columns=["route", "model", "sae", "place", "features", "GB (estimate)"])


def sae(route: Route, layer: int, folder: str | Path | None = None, device: str = "cpu"):
    """The SAE of one layer: from ``folder`` in SAELens' layout, else by sae-lens from the hub. RewiredError where its
    width or the model's is another than the route says."""
    if layer not in route.layers:
        raise choice(f"layer of the route {route.route}", layer, map(str, route.layers))
    if folder is not None:
        found = features.load(folder, device)
    else:
        name = route.sae.name.format(layer=layer)
        found = features.read_published(route.sae.release, name, device, route.sae.sparsify)
    shape = tuple(found.W_enc.shape)
    if shape != (route.d_model, route.features):
        raise RewiredError(
            f"The SAE of the route {route.route} is {shape[0]} by {shape[1]}, and the route says {route.d_model} by "
            f"{route.features}. Name the SAE of {route.model}, or mend config/published/{route.route}.yaml."
        )
    return found


@torch.no_grad()
def read(route: Route, model, texts: Sequence[Sequence[int]], sae, layer: int) -> dict[str, np.ndarray]:
    """Features of texts (token ids) at the route's place: ``mean`` and ``max`` over a text's tokens and ``share`` of
    tokens on which a feature is active, each [text, feature]. Every token is encoded by itself, and only then pooled:
    an SAE is not linear. RewiredError for a model of another width."""
    seen: list[torch.Tensor] = []
    hook = _place(model, layer, route.site).register_forward_hook(
        lambda module, given, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    pooled: dict[str, list] = {"mean": [], "max": [], "share": []}
    try:
        for ids in texts:
            seen.clear()
            model(torch.tensor([list(ids)], device=model.device))
            x = seen[-1][0].float()  # [token, d_model]
            if x.shape[1] != route.d_model:
                raise RewiredError(
                    f"The model of the route {route.route} is {x.shape[1]} wide, and the route says {route.d_model}. "
                    f"Use {route.model}, or mend config/published/{route.route}.yaml."
                )
            f = sae.encode(x)  # [token, feature]
            pooled["mean"].append(f.mean(dim=0))
            pooled["max"].append(f.max(dim=0).values)
            pooled["share"].append((f > 0).float().mean(dim=0))
    finally:
        hook.remove()
    return {name: torch.stack(values).cpu().numpy() for name, values in pooled.items()}


def _place(model, layer: int, site: str) -> torch.nn.Module:
    """The module whose output is read. A model that also sees pictures holds a language model; its layers count."""
    body = model.model
    block = getattr(body, "language_model", body).layers[layer]
    if site == "residual":
        return block
    # The norm before the MLP, by Gemma's name and by that of the others.
    norms = ("pre_feedforward_layernorm", "post_attention_layernorm")
    before = next(getattr(block, name) for name in norms if hasattr(block, name))
    return before if site == "mlp_in" else block.mlp


if __name__ == "__main__":
    print(table().to_string(index=False))
    print("None of these has been run. Memory is an estimate for one GPU, in half precision.")
