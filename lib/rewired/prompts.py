"""From a game and a state to the words a model reads.

A prompt is one user turn. Each wording is a template whose fields are filled with labels, moves and points. So the
place of every field is known, and nobody has to search for substrings. What should not matter (which label or row
comes first, which label means cooperation) is a parameter, so that it can be crossed with what should.
"""

import string
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import yaml

from rewired.errors import RewiredError, choice
from rewired.games import STATES, Game, dilemma

CANONICAL = (3, 0, 4, 1)
"""R, S, T, P of the study's prisoner's dilemma."""
SCENARIOS = ("CC_continue", "CC_temptation", "CD_punished", "DC_exploited", "DD_trapped")
HELD_OUT_FILE = Path(__file__).resolve().parents[2] / "config" / "heldout.yaml"

TEXTS = yaml.safe_load(Path(__file__).with_name("wordings.yaml").read_text())
WORDINGS = TEXTS["wordings"]
"""{wording: its ``text``, ``question`` and, where it states no payoffs, the ``meaning`` of the two labels}."""


@dataclass(frozen=True)
class Labels:
    """The words that stand for the two moves; neither begins with the other, or its probability would contain it."""

    cooperate: str = "action1"
    defect: str = "action2"

    def __post_init__(self):
        a, b = self.cooperate, self.defect
        if a.startswith(b) or b.startswith(a) or [a.strip(), b.strip()] != [a, b]:
            raise RewiredError(
                f"The labels {a!r} (cooperate) and {b!r} (defect) cannot be told apart in an answer: they must not be "
                "empty, equal, or one the beginning of the other, nor begin or end with white space. Choose two labels "
                "such as action1 and action2."
            )

    def of(self, move: str) -> str:
        """The label of a move, ``"C"`` or ``"D"``."""
        return self.cooperate if move == "C" else self.defect

    @property
    def reversed(self) -> "Labels":
        """The same two words with their meanings exchanged."""
        return Labels(self.defect, self.cooperate)


def as_labels(pair: Labels | Sequence[str]) -> Labels:
    """(cooperate, defect) as ``Labels``, which are returned as they are."""
    return pair if isinstance(pair, Labels) else Labels(*pair)


@dataclass(frozen=True)
class Arrangement:
    """What comes first: cooperation, or where swapped defection. ``listing`` is where the options are introduced, or
    their meaning; ``answer`` is the answer format; ``rows`` and ``columns`` are the table's, or order the sentences."""

    listing_swapped: bool = False
    answer_swapped: bool = False
    rows_swapped: bool = False
    columns_swapped: bool = False

    def orders(self) -> tuple[str, str, str, str]:
        """The two moves in the order of listing, answer, rows and columns, each ``"CD"`` or ``"DC"``."""
        listing, answer, rows, columns = ("DC" if swapped else "CD" for swapped in astuple(self))
        return listing, answer, rows, columns


@dataclass(frozen=True)
class Prompt:
    """One user turn and how it was made. ``spans`` are (role, start, end) in characters of ``text``; roles are the
    template's fields (``own_move``, ``other_move``, ``question`` …) and for cells of the table ``payoff_CC`` …"""

    id: str
    text: str
    state: str
    game: str
    matrix: tuple[int, ...]
    wording: str
    labels: Labels
    arrangement: Arrangement = Arrangement()
    scenario: str | None = None
    spans: tuple[tuple[str, int, int], ...] = ()

    def about(self, labels: Labels) -> dict[str, object]:
        """The description that tables give, when it is asked about these labels."""
        about = {name: getattr(self, name) for name in ("scenario", "state", "game", "wording")}
        about |= {"matrix": ",".join(map(str, self.matrix))}
        about |= {"cooperate_label": labels.cooperate, "defect_label": labels.defect}
        return {"prompt_id": self.id} | about | asdict(self.arrangement)


Fields = dict[str, tuple[str, str]]  # field of a template -> (role of its words, the words)


def _common_fields(state: str, game: Game, labels: Labels, arrangement: Arrangement) -> Fields:
    """What every wording has: the options, the last round, and the answer format."""
    points = game.points(*state)
    listing, answer, _, _ = arrangement.orders()  # each "CD" or "DC"
    fields: Fields = {}
    for field, move in zip(("listed_first", "listed_second"), listing, strict=True):
        fields[field] = (field, labels.of(move))
    for field, move in zip(("answer_first", "answer_second"), answer, strict=True):
        fields[field] = (field, labels.of(move))
    for who, move, paid in zip(("own", "other"), state, points, strict=True):
        fields[f"{who}_move"] = (f"{who}_move", labels.of(move))
        fields[f"{who}_points"] = (f"{who}_points", str(paid))
    return fields


def _payoff_fields(game: Game, labels: Labels, arrangement: Arrangement) -> Fields:
    """The payoffs as a table (own moves down, the other's across), and as one sentence a cell."""
    _, _, rows, columns = arrangement.orders()
    fields: Fields = {}  # the wording's template takes those it needs
    for i, own in enumerate(rows, 1):
        fields[f"row_{i}"] = (f"row_{i}", labels.of(own))
        fields[f"column_{i}"] = (f"column_{i}", labels.of(columns[i - 1]))
        for j, other in enumerate(columns, 1):
            role, (x, y) = f"payoff_{own}{other}", game.points(own, other)
            fields[f"cell_{i}{j}"] = (role, f"{x},{y}")
            sentence = TEXTS["sentence"].format(a=labels.of(own), b=labels.of(other), x=x, y=y)
            fields[f"sentence_{2 * i + j - 2}"] = (role, sentence)
    return fields


def fill(template: str, fields: Fields) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """The template with its fields filled, and where each role landed: (role, start, end) in characters."""
    text, spans = "", []
    for literal, name, _, _ in string.Formatter().parse(template):
        role, words = fields[name] if name is not None else ("", "")
        text += literal
        if words:  # what is left out leaves no span
            spans.append((role, len(text), len(text) + len(words)))
        text += words
    return text, tuple(spans)


def build(
    state: str,
    game: Game | None = None,
    wording: str = "structured",
    labels: Labels | Sequence[str] = ("action1", "action2"),
    temptation: bool = False,
    arrangement: Arrangement = Arrangement(),
    id: str | None = None,
) -> Prompt:
    """One prompt: the last round was ``state`` of ``game`` (default: the study's), told in a wording. ``temptation``
    adds what defecting would have paid. Raises RewiredError for an unknown state or wording."""
    if state not in STATES:
        raise choice("state", state, STATES)
    if wording not in WORDINGS:
        raise choice("wording", wording, WORDINGS)
    game, labels = game or dilemma(*CANONICAL), as_labels(labels)
    fields = _common_fields(state, game, labels, arrangement)
    words = WORDINGS[wording]
    if "meaning" in words:
        for k, move in enumerate(arrangement.orders()[0], 1):
            fields[f"meaning_{k}"] = (f"meaning_{k}", words["meaning"][move].format(label=labels.of(move)))
    else:
        fields |= _payoff_fields(game, labels, arrangement)
    fields["question"] = ("question", words["question"])
    fields["temptation"] = ("temptation", "")
    if temptation:
        gained, usual = game.points("D", "C")[0], game.points("C", "C")[0]
        note = TEXTS["temptation"].format(label=labels.defect, gained=gained, usual=usual)
        fields["temptation"] = ("temptation", note)
    text, spans = fill(words["text"] + TEXTS["closing"], fields)
    matrix = tuple(game.payoffs[cell][0] for cell in STATES)  # R, S, T, P
    swaps = "".join("01"[swapped] for swapped in astuple(arrangement))  # "0110": answer and rows
    id = id or f"{state}-{wording}-{swaps}-{''.join(map(str, matrix))}"
    return Prompt(id, text, state, game.name, matrix, wording, labels, arrangement, spans=spans)


@cache
def held_out() -> dict:
    """``config/heldout.yaml``: matrices, label pairs and templates that neither corpus nor RL prompts may contain."""
    return yaml.safe_load(HELD_OUT_FILE.read_text())


def held_out_matrices() -> list[tuple[int, int, int, int]]:
    """The prisoner's dilemmas (R, S, T, P) that no training sees."""
    return [tuple(m) for m in held_out()["matrices"]["prisoners_dilemma"]]


# Matrix (0 = the study's, 1 and 2 = held out), and whether listing, answer, rows and columns are swapped. The first
# three are the study's variants v0, v1, v2: there v0 and v1 came out byte for byte equal, here they differ.
_SCENARIO_GRID = {
    "structured": ((0, 1, 1, 0, 0), (0, 1, 0, 0, 0), (0, 0, 0, 0, 0), (1, 0, 1, 1, 0), (2, 1, 0, 0, 1)),
    "prose": ((0, 0, 1, 0, 1), (1, 1, 0, 1, 0), (2, 0, 0, 1, 1)),
    "story": ((0, 0, 1, 0, 0), (0, 1, 0, 0, 0)),
    "named": ((0, 1, 1, 0, 0), (1, 0, 0, 0, 0)),
}


def scenario_set(labels: Labels | Sequence[str] = ("action1", "action2"), per_scenario: int = 12) -> list[Prompt]:
    """The 60 evaluation prompts, all distinct: twelve for each scenario, over four wordings and three matrices; or the
    first ``per_scenario`` of each. ``CC_continue/v0`` … ``DD_trapped/v2`` have the study's form."""
    grid = [(wording, *row) for wording, rows in _SCENARIO_GRID.items() for row in rows]
    if not 1 <= per_scenario <= len(grid):
        raise RewiredError(f"per_scenario is {per_scenario}, and a scenario has 12 prompts. Choose 1 to 12.")
    matrices = [CANONICAL, *held_out_matrices()[:2]]
    prompts = []
    for scenario in SCENARIOS:
        for k, (wording, m, *swaps) in enumerate(grid[:per_scenario]):
            tempted = scenario == "CC_temptation"  # the only scenario that is not just a state
            name = f"{scenario}/{'v' if k < 3 else 'x'}{k}"
            arrangement = Arrangement(*map(bool, swaps))
            prompt = build(scenario[:2], dilemma(*matrices[m]), wording, labels, tempted, arrangement, name)
            prompts.append(replace(prompt, scenario=scenario))
    return prompts


def study_set(labels: Labels | Sequence[str] = ("action1", "action2")) -> list[Prompt]:
    """Fifteen distinct prompts of ``scenario_set`` in the study's form; the study's own fifteen were ten texts."""
    return scenario_set(labels, per_scenario=3)


def held_out_set(
    labels: Labels | Sequence[str] = ("action1", "action2"), wordings: Sequence[str] = ("structured",)
) -> list[Prompt]:
    """Prompts on matrices that no training saw: every held-out dilemma x state x wording, in four arrangements.

    Each factor is balanced and crossed with the others, but for one pair: answer and columns swap together."""
    arrangements = ((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 0), (1, 1, 0, 1))
    prompts = []
    for state, matrix, wording, swaps in product(STATES, held_out_matrices(), wordings, arrangements):
        arrangement = Arrangement(*map(bool, swaps))
        prompts.append(build(state, dilemma(*matrix), wording, labels, arrangement=arrangement))
    return prompts


def training_prompt(state: str, rng, matrices: Sequence[Sequence[int]], wordings: Sequence[str], labels) -> Prompt:
    """A prompt for one decision of an RL game: matrix, wording and arrangement drawn by ``rng``, a numpy Generator.
    Raises RewiredError for a matrix that is held out."""
    matrix = tuple(matrices[int(rng.integers(len(matrices)))])
    if matrix in held_out_matrices():
        raise RewiredError(
            f"The matrix {list(matrix)} (R, S, T, P) is held out for testing ({HELD_OUT_FILE.name}) and cannot be "
            "trained on. Take it out of `training.matrices` in the profile."
        )
    wording = wordings[int(rng.integers(len(wordings)))]  # the order of the draws is part of a run's random stream
    arrangement = Arrangement(*rng.integers(2, size=4).astype(bool).tolist())
    return build(state, dilemma(*matrix), wording, labels, arrangement=arrangement)


def turn(tokenizer, prompt: "Prompt | str") -> str:
    """The prompt as one user turn in the model's chat template, and the cue for the model's turn. A template that can
    let the model think first is told not to."""
    message = {"role": "user", "content": prompt.text if isinstance(prompt, Prompt) else prompt}
    silent = {"enable_thinking": False, "thinking": False}  # a template without these words does not mind
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, **silent)


def chat(tokenizer, prompt: "Prompt | str", answer: str = "") -> list[int]:
    """Tokens of ``turn`` and the beginning of an answer. Special tokens are those that the template writes."""
    return tokenizer(turn(tokenizer, prompt) + answer, add_special_tokens=False)["input_ids"]
