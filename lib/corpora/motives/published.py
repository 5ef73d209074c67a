"""Published models on which this part's questions would be asked at a real size: what each route needs, and readings.

``config/published/motives/<route>.yaml`` names a model, finished fine-tunes of it where there are some, data, readers,
and what papers report of them. None of these models can be loaded where the book is built. The routes have never been
run; their memory and time are estimates. What can be checked without them is checked: every key, and the readings, on
random models of these families.

Persona vectors follow Chen et al. 2025 (arXiv:2507.21509), oracles Karvonen et al. 2025 (arXiv:2512.15674).

    python -m corpora.motives.published          # the routes, as a table
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator

from corpora import checked
from corpora.organisms.published import Minutes as OrganismMinutes
from corpora.organisms.published import Sae
from rewired.decisions import end_of_turn
from rewired.errors import RewiredError
from rewired.models import network
from rewired.profiles import ROOT, Section
from rewired.tracing import probes

FOLDER = ROOT / "config" / "published" / "motives"


class Personas(Section):
    """How persona vectors are made: under pairs of system prompts that ask for a trait and for its opposite, questions
    are answered, and answers are kept that a judge finds on the right side of ``score`` (of 100)."""

    traits: tuple[str, ...] = Field(min_length=1)
    prompts: int = Field(gt=0)  # pairs of system prompts
    questions: int = Field(gt=0)  # a pair, and as many others to judge by
    answers: int = Field(gt=0)  # a question
    score: float = Field(ge=0, le=100)
    judge: str = Field(min_length=1)


class Oracle(Section):
    """A published activation oracle: its adapter, and where and at which word a state is put in."""

    adapter: str = Field(min_length=1)
    into: int = Field(default=1, ge=0)  # the layer after which it is, counted from 0
    placeholder: str = " ?"


class Tuning(Section):
    """How the papers, or we, would fine-tune the model on one set."""

    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    batch: int = Field(gt=0)
    epochs: int = Field(default=1, gt=0)


class Minutes(OrganismMinutes):
    """Estimated minutes on one GPU of 80 GB: to train on one set; to read or write some 2,000 texts is ``elicit``."""

    set: float | None = Field(default=None, gt=0)


class Route(Section):
    """A checked route; ``name`` is the file's name without ``.yaml``."""

    name: str
    about: str = Field(min_length=1)
    model: str = Field(min_length=1)  # a hub id, or a folder
    layers: tuple[int, ...] = Field(min_length=1)  # layers passed, as in ``probes.activations``
    d_model: int = Field(gt=0)
    depth: int = Field(gt=0)
    adapters: tuple[str, ...] = ()  # finished fine-tunes of the model, which need no training
    finished: int = Field(default=0, ge=0)  # how many more of them there are, under names that ``data`` leads to
    data: dict[str, str] = Field(min_length=1)  # {what it is: where}
    tuning: Tuning | None = None
    sets: int = Field(default=0, ge=0)
    seeds: int = Field(default=1, gt=0)
    personas: Personas | None = None
    oracle: Oracle | None = None
    sae: Sae | None = None
    memory_gb: float = Field(gt=0)  # an estimate
    minutes: Minutes = Minutes()
    reported: dict[str, str] = {}  # {what: the authors' own number}

    @model_validator(mode="after")
    def _fits(self) -> "Route":
        beyond = [layer for layer in self.layers if not 0 <= layer <= self.depth]
        if beyond or (self.oracle and self.oracle.into >= self.depth):
            place = f"layers names {beyond[0]}" if beyond else "oracle.into names a layer that is not there"
            raise ValueError(f"{place}, and the model has {self.depth} layers")
        if self.sets and (self.tuning is None or self.minutes.set is None):
            raise ValueError("sets are to be trained on: say how (tuning) and how long one takes (minutes.set)")
        if not (self.sets or self.adapters or self.finished or self.oracle):
            raise ValueError("there is nothing to read: name sets, finished adapters, or an oracle")
        return self

    def hours(self) -> float:
        """Estimated hours on one GPU: all trainings, then reading."""
        return (self.sets * self.seeds * (self.minutes.set or 0) + (self.minutes.elicit or 0)) / 60


def known() -> list[str]:
    """Names of the routes in ``config/published/motives/``."""
    return checked.known(FOLDER)


def load(name_or_path: str | Path) -> Route:
    """The route of that name, or the one in that YAML file. RewiredError as ``checked.load`` tells it."""
    return checked.load("route", Route, FOLDER, name_or_path)


def table() -> pd.DataFrame:
    """All routes, one row each, estimates marked as such."""
    rows = []
    for name in known():
        one = load(name)
        readers = {"persona vectors": one.personas, "an oracle": one.oracle, "SAE": one.sae}
        by = ", ".join(word for word, has in readers.items() if has) or "probes"
        layers = ", ".join(map(str, one.layers))
        done = len(one.adapters) + one.finished
        trained = [f"{one.sets} × {one.seeds}"] * bool(one.sets) + [f"{done} finished"] * bool(done)
        rows.append((name, one.model, by, layers, ", ".join(trained), one.memory_gb, round(one.hours(), 1)))
    columns = ["route", "model", "read by", "layers", "fine-tunes", "GB (estimate)", "hours (estimate)"]
    return pd.DataFrame(rows, columns=columns)


# --- persona vectors -------------------------------------------------------------------------------------------------


def answer_states(model, route: Route, rows: Sequence[tuple[list[int], list[bool]]]) -> np.ndarray:
    """The mean hidden state over each answer's tokens, [text, layer, d_model], in the route's layers; ``rows`` are
    tokens of chats and which of them are answers (``train.sft.encode``). RewiredError for a model of another size."""
    size = network(model).config
    if (size.hidden_size, size.num_hidden_layers) != (route.d_model, route.depth):
        raise RewiredError(
            f"The model of the route {route.name} has {size.num_hidden_layers} layers of width {size.hidden_size}, and "
            f"the route says {route.depth} of {route.d_model}. Use {route.model}, or mend "
            f"config/published/motives/{route.name}.yaml."
        )
    ids, masks = zip(*rows, strict=True)
    return probes.activations(model, ids, masks, route.layers).numpy()


def persona_vector(shown: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    """The mean state of answers that show a trait less that of answers that show its opposite, [layer, d_model]; both
    [text, layer, d_model]."""
    return shown.mean(axis=0) - opposite.mean(axis=0)


def projections(states: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The component of states [text, layer, d_model] along a persona vector [layer, d_model], [text, layer], in the
    unit of the states."""
    return (states * (vector / np.linalg.norm(vector, axis=-1, keepdims=True))).sum(axis=-1)


def projection_difference(data: np.ndarray, own: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """How much farther along a trait the answers of a training set lie than the model's *own* to the same prompts,
    [text, layer]. Its mean over a set is what is said to predict the shift that training makes; data and own are
    [text, layer, d_model], in the same order."""
    return projections(data, vector) - projections(own, vector)


# --- oracles ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def explain(model, tokenizer, oracle: Oracle, states, layer: int, question: str, new_tokens: int = 40) -> str:
    """What a published oracle says of hidden states [position, d_model] that have passed ``layer`` layers: greedy.

    Its question begins with "Layer: <layer>" and a line of one placeholder a state, as it was trained on. RewiredError
    for a tokenizer that has no token for the placeholder."""
    asked = [{"role": "user", "content": f"Layer: {layer}\n{oracle.placeholder * len(states)} \n{question}"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    token = tokenizer(oracle.placeholder, add_special_tokens=False)["input_ids"]
    places = [k for k, word in enumerate(ids) if [word] == token][: len(states)]
    if len(places) < len(states):
        raise RewiredError(
            f"The placeholder {oracle.placeholder!r} stands {len(places)} times in the oracle's question and has to "
            f"stand there {len(states)} times, one token each. Use the tokenizer of the oracle's own model."
        )
    causal = network(model)
    device = causal.get_input_embeddings().weight.device
    added = torch.nn.functional.normalize(torch.as_tensor(np.asarray(states), device=device), dim=-1)

    def put(module, given, output):
        resid = output[0] if isinstance(output, tuple) else output  # [1, position, d_model]
        if resid.shape[1] == 1:
            return output  # a token that is being said: the question is in the cache
        here, changed = resid[0, places], resid.clone()
        changed[0, places] = here + here.norm(dim=-1, keepdim=True) * added.to(resid.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    hook = causal.get_decoder().layers[oracle.into].register_forward_hook(put)
    try:
        said = greedy(model, tokenizer, ids, new_tokens)
    finally:
        hook.remove()
    return tokenizer.decode(said, skip_special_tokens=True).strip()


def greedy(model, tokenizer, ids: Sequence[int], new_tokens: int) -> list[int]:
    """The likeliest token after the tokens ``ids``, and after that one, until the turn ends. Token by token, so that no
    rule of a checkpoint's generation_config.json has a say."""
    device = model.get_input_embeddings().weight.device
    stops = {end_of_turn(tokenizer), tokenizer.eos_token_id}
    given, past = torch.tensor([list(ids)], device=device), None  # [1, position], later [1, 1]
    said: list[int] = []
    while len(said) < new_tokens:
        out = model(given, past_key_values=past, use_cache=True)
        token = int(out.logits[0, -1].argmax())
        if token in stops:
            break
        said.append(token)
        given, past = torch.tensor([[token]], device=device), out.past_key_values
    return said


if __name__ == "__main__":
    print(table().to_string(index=False))
    print("None of these has been run. Memory and hours are estimates for one GPU, in half precision.")
