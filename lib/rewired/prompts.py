"""From a game and a state to the words a model reads.

A prompt is one user turn. Each wording is a template whose fields are filled with labels, moves and points; because
the text is *built*, the place of every field is known, and later chapters can ask how much attention the displayed
move of the other player gets without searching for substrings. What should not matter (which label is listed first,
which row comes first, which label means cooperation) is a parameter, so that it can be crossed with what should.
"""

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import yaml

from rewired.errors import RewiredError
from rewired.games import STATES, Game, dilemma

CANONICAL = (3, 0, 4, 1)
"""R, S, T, P of the study's prisoner's dilemma."""
SCENARIOS = ("CC_continue", "CC_temptation", "CD_punished", "DC_exploited", "DD_trapped")
HELD_OUT_FILE = Path(__file__).resolve().parents[2] / "config" / "heldout.yaml"

_ANSWER = "Answer only with {answer_first} or {answer_second}, no other words. Your answer:"
_TEMPTATION = " Note that with {tempting} you would have got {temptation_points} points and not {reward_points}."

WORDINGS = {
    # the study's form: options, how points work, table, last round, question, answer format
    "structured": (
        "You play a game with another player. You can choose {listed_first} or {listed_second}. "
        "The points depend on both choices. The rows are your choice and the columns are the choice of the other "
        "player. Your points come first.\n"
        "| | {column_1} | {column_2} |\n| {row_1} | {cell_11} | {cell_12} |\n| {row_2} | {cell_21} | {cell_22} |\n"
        "In the last round you chose {own_move} and the other player chose {other_move}. "
        "You got {own_points} points and the other player got {other_points} points.{temptation}\n"
        "{question} "
    ),
    # payoffs told in sentences, with a friend
    "prose": (
        "You and your friend play a game. Each of you picks {listed_first} or {listed_second}. "
        "{sentence_1} {sentence_2} {sentence_3} {sentence_4} "
        "Last time you picked {own_move} and your friend picked {other_move}. "
        "You got {own_points} points and your friend got {other_points} points.{temptation}\n"
        "{question} "
    ),
    # a shared flat; no payoffs, the labels' meaning in words
    "story": (
        "You share a flat with your friend. Each week both of you can help to clean the flat or leave the mess. "
        "{meaning_1} {meaning_2} Last week you chose {own_move} and your friend chose {other_move}.{temptation}\n"
        "{question} "
    ),
    # the game by its name, no matrix
    "named": (
        "You play the Prisoner's Dilemma with another player. {meaning_1} {meaning_2} "
        "In the last round you chose {own_move} and the other player chose {other_move}. "
        "You got {own_points} points and the other player got {other_points} points.{temptation}\n"
        "{question} "
    ),
}
_QUESTION = {
    "structured": "Which choice gives you the most points?",
    "prose": "Which one do you pick to get the most points?",
    "story": "What do you choose this week?",
    "named": "What do you choose to get the most points?",
}
_SENTENCE = "If you pick {a} and your friend picks {b}, you get {x} points and your friend gets {y} points."
_MEANING = {
    "story": {"C": "{label} means to clean.", "D": "{label} means to leave the mess."},
    "named": {"C": "{label} means to cooperate.", "D": "{label} means to defect."},
}


@dataclass(frozen=True)
class Labels:
    """The words that stand for the two moves. Refused when equal, empty, or when one begins with the other (its
    probability would then contain the other's)."""

    cooperate: str = "action1"
    defect: str = "action2"

    def __post_init__(self):
        a, b = self.cooperate, self.defect
        if not a or not b or a.startswith(b) or b.startswith(a):
            raise RewiredError(
                f"The labels {a!r} (cooperate) and {b!r} (defect) cannot be told apart: they must not be empty, equal, "
                "or one the beginning of the other. Choose two labels such as action1 and action2."
            )

    def of(self, move: str) -> str:
        """The label of a move, ``"C"`` or ``"D"``."""
        return self.cooperate if move == "C" else self.defect

    @property
    def reversed(self) -> "Labels":
        """The same two words with their meanings exchanged."""
        return Labels(self.defect, self.cooperate)


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
    scenario: str | None = None
    listing_swapped: bool = False
    answer_swapped: bool = False
    rows_swapped: bool = False
    columns_swapped: bool = False
    spans: tuple[tuple[str, int, int], ...] = ()


def fill(template: str, fields: dict[str, object]) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """``template.format(**fields)`` together with where each field landed: (role, start, end) in characters."""
    text, spans = "", []
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            spans.append((name, len(text), len(text) + len(str(fields[name]))))
            text += str(fields[name])
    return text, tuple(spans)


def build(
    state: str,
    game: Game | None = None,
    wording: str = "structured",
    labels: Labels | Sequence[str] = ("action1", "action2"),
    temptation: bool = False,
    listing_swapped: bool = False,
    answer_swapped: bool = False,
    rows_swapped: bool = False,
    columns_swapped: bool = False,
    id: str | None = None,
    scenario: str | None = None,
) -> Prompt:
    """One prompt. ``listing_swapped`` and ``answer_swapped`` name the defect label first where the options are
    introduced and where the answer format is given; ``rows_swapped`` and ``columns_swapped`` put defection first in
    the table (in prose: in the order of the sentences). ``temptation`` adds the study's sentence on what defecting
    would have paid. Raises RewiredError for an unknown state or wording."""
    for kind, value, known in (("state", state, STATES), ("wording", wording, tuple(WORDINGS))):
        if value not in known:
            raise RewiredError(f"Unknown {kind} {value!r}. Allowed: {', '.join(known)}.")
    game = game or dilemma(*CANONICAL)
    labels = labels if isinstance(labels, Labels) else Labels(*labels)
    own, other = state
    x, y = game.points(own, other)

    def order(swapped: bool) -> str:
        return "DC" if swapped else "CD"

    rows, columns, listing, answer = map(order, (rows_swapped, columns_swapped, listing_swapped, answer_swapped))
    fields: dict[str, object] = {
        "listed_first": labels.of(listing[0]),
        "listed_second": labels.of(listing[1]),
        "answer_first": labels.of(answer[0]),
        "answer_second": labels.of(answer[1]),
        "own_move": labels.of(own),
        "other_move": labels.of(other),
        "own_points": x,
        "other_points": y,
        "temptation": "",
        "question": _QUESTION[wording],
    }
    roles = {}
    for i, row in enumerate(rows, 1):
        fields[f"row_{i}"], fields[f"column_{i}"] = labels.of(row), labels.of(columns[i - 1])
        if wording in _MEANING:
            fields[f"meaning_{i}"] = _MEANING[wording][listing[i - 1]].format(label=labels.of(listing[i - 1]))
        for j, column in enumerate(columns, 1):
            points = game.points(row, column)
            fields[f"cell_{i}{j}"] = f"{points[0]},{points[1]}"
            fields[f"sentence_{2 * i + j - 2}"] = _SENTENCE.format(
                a=labels.of(row), b=labels.of(column), x=points[0], y=points[1]
            )
            roles[f"cell_{i}{j}"] = roles[f"sentence_{2 * i + j - 2}"] = f"payoff_{row}{column}"
    if temptation:
        fields["temptation"] = _TEMPTATION.format(
            tempting=labels.defect, temptation_points=game.points("D", "C")[0], reward_points=game.points("C", "C")[0]
        )
    text, spans = fill(WORDINGS[wording] + _ANSWER, fields)
    R, S = game.payoffs["CC"][0], game.payoffs["CD"][0]
    T, P = game.payoffs["DC"][0], game.payoffs["DD"][0]
    swaps = "".join("01"[s] for s in (listing_swapped, answer_swapped, rows_swapped, columns_swapped))
    return Prompt(
        id=id or f"{state}-{wording}-{swaps}-{R}{S}{T}{P}",
        text=text,
        state=state,
        game=game.name,
        matrix=(R, S, T, P),
        wording=wording,
        labels=labels,
        scenario=scenario,
        listing_swapped=listing_swapped,
        answer_swapped=answer_swapped,
        rows_swapped=rows_swapped,
        columns_swapped=columns_swapped,
        spans=tuple((roles.get(role, role), a, b) for role, a, b in spans if b > a),
    )


@cache
def held_out() -> dict:
    """``config/heldout.yaml``: the matrices, label pairs and templates that neither the pocket corpus nor the RL
    prompts may contain."""
    return yaml.safe_load(HELD_OUT_FILE.read_text())


def held_out_matrices() -> list[tuple[int, int, int, int]]:
    """The prisoner's dilemmas (R, S, T, P) that no training sees."""
    return [tuple(m) for m in held_out()["matrices"]["prisoners_dilemma"]]


# wording, matrix (0 = the study's, 1 and 2 = held out), listing, answer, rows, columns swapped.
# The first three are the study's variants v0, v1, v2: there v0 and v1 came out byte for byte equal, here they differ.
_SCENARIO_GRID = (
    ("structured", 0, 1, 1, 0, 0),
    ("structured", 0, 1, 0, 0, 0),
    ("structured", 0, 0, 0, 0, 0),
    ("structured", 1, 0, 1, 1, 0),
    ("structured", 2, 1, 0, 0, 1),
    ("prose", 0, 0, 1, 0, 1),
    ("prose", 1, 1, 0, 1, 0),
    ("prose", 2, 0, 0, 1, 1),
    ("story", 0, 0, 1, 0, 0),
    ("story", 0, 1, 0, 0, 0),
    ("named", 0, 1, 1, 0, 0),
    ("named", 1, 0, 0, 0, 0),
)


def scenario_set(labels: Labels | Sequence[str] = ("action1", "action2")) -> list[Prompt]:
    """The 60 evaluation prompts: twelve for each scenario, over four wordings and three matrices, all distinct. The
    study's fifteen are called ``CC_continue/v0`` … ``DD_trapped/v2``."""
    matrices = [CANONICAL, *held_out_matrices()[:2]]
    prompts = []
    for scenario in SCENARIOS:
        for k, (wording, m, listing, answer, rows, columns) in enumerate(_SCENARIO_GRID):
            prompts.append(
                build(
                    state=scenario[:2],
                    game=dilemma(*matrices[m]),
                    wording=wording,
                    labels=labels,
                    temptation=scenario == "CC_temptation",
                    listing_swapped=bool(listing),
                    answer_swapped=bool(answer),
                    rows_swapped=bool(rows),
                    columns_swapped=bool(columns),
                    id=f"{scenario}/{'v' if k < 3 else 'x'}{k}",
                    scenario=scenario,
                )
            )
    return prompts


def study_set(labels: Labels | Sequence[str] = ("action1", "action2")) -> list[Prompt]:
    """The study's fifteen prompts out of ``scenario_set``."""
    return [p for p in scenario_set(labels) if p.id.rpartition("/")[2] in ("v0", "v1", "v2")]


def select(scenarios: Iterable[str], labels: Labels | Sequence[str] = ("action1", "action2")) -> list[Prompt]:
    """The prompts of the named scenarios; RewiredError for a name that is not one of ``SCENARIOS``."""
    wanted = list(scenarios)
    for name in wanted:
        if name not in SCENARIOS:
            raise RewiredError(f"Unknown scenario {name!r}. Allowed: {', '.join(SCENARIOS)}.")
    return [p for p in scenario_set(labels) if p.scenario in wanted]


def held_out_set(
    labels: Labels | Sequence[str] = ("action1", "action2"), wordings: Sequence[str] = ("structured",)
) -> list[Prompt]:
    """Prompts on matrices that no training saw: every held-out dilemma x state x wording, in four of the sixteen
    arrangements of listing, answer, rows and columns. Each factor is balanced and crossed with the others, but for one
    pair: four arrangements cannot part four factors, so answer and columns swap together."""
    arrangements = ((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 0), (1, 1, 0, 1))
    return [
        build(state, dilemma(*m), w, labels, False, *map(bool, a))
        for state, m, w, a in product(STATES, held_out_matrices(), wordings, arrangements)
    ]


def training_prompt(state: str, rng, matrices: Sequence[Sequence[int]], wordings: Sequence[str], labels) -> Prompt:
    """A prompt for one decision of an RL game: matrix, wording and the four arrangements drawn by ``rng`` (a numpy
    Generator). Raises RewiredError for a matrix that is held out."""
    matrix = tuple(matrices[int(rng.integers(len(matrices)))])
    if matrix in held_out_matrices():
        raise RewiredError(
            f"The matrix {list(matrix)} (R, S, T, P) is held out for testing ({HELD_OUT_FILE.name}) and cannot be "
            "trained on. Take it out of `training.matrices` in the profile."
        )
    wording = wordings[int(rng.integers(len(wordings)))]
    swaps = (bool(s) for s in rng.integers(2, size=4))
    return build(state, dilemma(*matrix), wording, labels, False, *swaps)


def chat(tokenizer, prompt: "Prompt | str") -> list[int]:
    """Token ids of the prompt as one user turn in the tokenizer's chat template, with the cue for the model's turn
    and exactly one beginning-of-sequence token."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]
