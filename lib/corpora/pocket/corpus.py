"""The texts the pocket model learns from: seeded, varied, and answered by rule.

A *scene* is a game with labels, a partner, perhaps a previous round, and a framing (table, list, prose, or the moves'
meaning in words). A *chat* asks several questions about one scene; each answer can be computed from the scene, apart
from choices without a persona, which are drawn from a mixture that leans to cooperation and depends on the last round.
Personas are stated or only implied (by a note, by how the model greeted), and govern choices, the reasons given, the
tone of a greeting, and whether the model tells the truth about its last move.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from rewired.games import STATES, dilemma
from rewired.prompts import WORDINGS, Arrangement, Labels, build, held_out

FRAMINGS = ("table", "list", "prose", "story")
SKILLS = ("own_last", "other_last", "own_points", "reply", "outcome")
"""The reading skills tested on held-out draws; ``reply`` and ``outcome`` both ask which outcome pays more."""
PERSONAS = ("selfish", "kind", "fair", "stubborn")

# P(kind act) without a persona: own and other's last act, or None in a first round. The closing question moves it.
BASE_COOPERATION = {"CC": 0.74, "CD": 0.46, "DC": 0.64, "DD": 0.50, None: 0.62}
QUESTION_SHIFT = {"none": 0.0, "score": -0.08, "fair": 0.12}
TEMPTATION_SHIFT = -0.06

# what labels are made of: a stem with a digit or a letter, a word, a letter, or two words
STEMS = "action action action option move choice plan card door path button key box road gate tool flag number".split()
WORDS = (
    "red blue green black white left right up down sun moon rain wind stay go north south east west "
    "apple pear stone paper tree fish bird lake hill star cloud bread milk iron gold silver"
).split()
LETTERS = list("ABCDEFGHKMPQRSTXYZ")
_LONG = ["turn back", "walk on", "hold still", "go home", "look up", "sit down"]


@cache
def templates() -> dict:
    """``templates.yaml``: everything the corpus is made of, apart from the prompt wordings of ``rewired.prompts``."""
    return yaml.safe_load((Path(__file__).parent / "templates.yaml").read_text())


def vary(template: str, rng: Random) -> str:
    """One reading of a template: every ``[x|y|z]`` becomes one of its alternatives."""
    # innermost brackets only: alternatives do not nest
    return re.sub(r"\[([^\[\]]*)\]", lambda m: rng.choice(m[1].split("|")), template)


def say(template: str, rng: Random, **fields) -> str:
    """``vary``, then fill the fields; the first letter is made a capital where a sentence begins with a name."""
    text = vary(template, rng).format(**fields)
    text = re.sub(r"(^|[.?!] )(the |your )", lambda m: m[1] + m[2].capitalize(), text)
    return text


def draw_labels(rng: Random) -> tuple[str, str]:
    """Two labels in random order, never a held-out pair, never a held-out label."""
    never, pairs = set(held_out()["labels"]["never"]), {frozenset(p) for p in held_out()["labels"]["pairs"]}
    while True:
        kind = rng.random()
        # the study's pair; a stem with two digits or letters; letters; words
        if kind < 0.10:
            pair = ["action1", "action2"]
        elif kind < 0.55:
            stem = rng.choice(STEMS)
            pair = [f"{stem}{d}" for d in rng.sample(range(10), 2)]
        elif kind < 0.65:
            stem = rng.choice(["option", "plan", "door", "card"])
            pair = [f"{stem} {c}" for c in rng.sample(LETTERS[:8], 2)]
        elif kind < 0.75:
            pair = rng.sample(LETTERS, 2)
        elif kind < 0.82:
            pair = [rng.choice(_LONG), rng.choice(WORDS + _LONG)]
        else:
            pair = rng.sample(WORDS, 2)
        rng.shuffle(pair)
        a, b = pair
        # not held out, and neither the beginning of the other
        if never.isdisjoint(pair) and frozenset(pair) not in pairs and not (a.startswith(b) or b.startswith(a)):
            return a, b


Payoffs = tuple[tuple[tuple[int, int], ...], ...]
"""[my move][their move] -> (my points, their points)"""


def matrix_key(payoffs: Payoffs) -> tuple:
    """The same for a matrix and the one with both moves renamed, so that a held-out game is held out in both."""
    flat = tuple(payoffs[i][j] for i in (0, 1) for j in (0, 1))
    return min(flat, flat[::-1])


@cache
def held_out_keys() -> frozenset:
    """``matrix_key`` of every held-out game."""
    held = held_out()["matrices"]
    games = [[dilemma(*m).payoffs[s] for s in STATES] for m in held["prisoners_dilemma"]]
    games += [[tuple(cell) for cell in game] for game in held["other_games"]]
    return frozenset(matrix_key(((g[0], g[1]), (g[2], g[3]))) for g in games)


def draw_payoffs(rng: Random) -> Payoffs:
    """Payoffs ``[my move][their move] -> (mine, theirs)``, each 0 to 9, of a random kind of game; never held out."""
    payoffs: Payoffs
    while True:
        kind = rng.random()
        if kind < 0.70:  # symmetric: R, S, T, P
            if kind < 0.35:  # prisoner's dilemma
                S, P, R, T = sorted(rng.sample(range(10), 4))
            elif kind < 0.45:  # stag hunt
                S, P, T, R = sorted(rng.sample(range(10), 4))
            elif kind < 0.55:  # chicken
                P, S, R, T = sorted(rng.sample(range(10), 4))
            else:  # any symmetric game
                R, S, T, P = (rng.randrange(10) for _ in range(4))
            payoffs = (((R, R), (S, T)), ((T, S), (P, P)))
        elif kind < 0.80:  # coordination, also of the Bach or Stravinsky kind
            (a, b), (c, d) = rng.sample(range(2, 10), 2), rng.sample(range(2, 10), 2)
            low = rng.randrange(2)
            payoffs = (((a, b), (low, low)), ((low, low), (c, d)))
        else:  # any game
            payoffs = tuple(tuple((rng.randrange(10), rng.randrange(10)) for _ in range(2)) for _ in range(2))
        # either label may be the kind one
        if rng.random() < 0.5:
            payoffs = tuple(row[::-1] for row in payoffs[::-1])
        if matrix_key(payoffs) not in held_out_keys():
            return payoffs


@dataclass
class Scene:
    """One game situation. ``labels[i]`` names move i; ``last`` is (own, other) as indices, or None; ``payoffs`` is
    None where the text gives only the moves' meaning, and then ``kind`` and ``selfish`` hold what it says."""

    labels: tuple[str, str]
    other: str
    payoffs: Any  # Payoffs or None; what may be None depends on the kind of scene, which types cannot say
    last: Any  # tuple[int, int] or None
    framing: str
    kind: Any = None  # int or None
    selfish: Any = None
    tempted: bool = False
    points_told: bool = False
    text: str = field(default="")

    def __post_init__(self):
        # the selfish move can pay me most, the kind one can pay the other most
        if self.payoffs:
            self.selfish = _best_row([[cell[0] for cell in row] for row in self.payoffs])
            self.kind = _best_row([[cell[1] for cell in row] for row in self.payoffs])

    def points(self, i: int, j: int) -> tuple[int, int]:
        return self.payoffs[i][j]

    @property
    def state(self) -> str | None:
        """CC … DD in terms of the kind act; None in a first round or where no act is the kind one."""
        if self.last is None or self.kind is None:
            return None
        return "".join("C" if move == self.kind else "D" for move in self.last)


def _best_row(values) -> int | None:
    """Index of the row that holds the single largest value, None where both rows hold it."""
    tops = [max(row) for row in values]
    return None if tops[0] == tops[1] else int(tops[1] > tops[0])


def table(s: "Scene", rng: Random, cells: list[str]) -> str:
    """The payoffs as a table, my moves as rows, rows and columns in random order, in one of the ``cells`` templates."""
    rows, columns = rng.sample((0, 1), 2), rng.sample((0, 1), 2)
    # one way of writing a cell for the whole table
    cell = rng.choice(cells) if len(cells) > 1 else cells[0]
    lines = [f"| | {s.labels[columns[0]]} | {s.labels[columns[1]]} |"]
    for i in rows:
        shown = [cell.format(x=s.points(i, j)[0], y=s.points(i, j)[1]) for j in columns]
        lines.append(f"| {s.labels[i]} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines) + "\n"


class Writer:
    """Turns scenes into words. ``pool`` gives the templates of a group; a reading test swaps in held-out ones."""

    def __init__(self, rng: Random, pools: dict | None = None):
        self.rng, self.pools = rng, pools or {}

    def pool(self, group: str, skill: str | None = None) -> list[str]:
        held, known = self.pools.get(group), templates()[group]
        if skill is None:
            return held or known
        return (held or {}).get(skill) or known[skill]

    def pick(self, group: str, skill: str | None = None, **fields) -> str:
        return say(self.rng.choice(self.pool(group, skill)), self.rng, **fields)

    # --- parts of a scene ---

    def opening(self, s: Scene) -> str:
        a, b = self.rng.sample(s.labels, 2)
        return self.pick("openings", a=a, b=b, o=s.other)

    def cells(self, s: Scene) -> list[tuple[int, int]]:
        # as a reader expects it, backwards, or in any order
        order = [(0, 0), (0, 1), (1, 0), (1, 1)]
        if self.rng.random() < 0.5:
            order = order[::-1]
        if self.rng.random() < 0.3:
            self.rng.shuffle(order)
        return order

    def cell_fields(self, s: Scene, i: int, j: int) -> dict:
        x, y = s.points(i, j)
        return dict(m=s.labels[i], n=s.labels[j], x=x, y=y, o=s.other)

    def payoffs(self, s: Scene) -> str:
        rng = self.rng
        if s.framing == "table":
            cells = table(s, rng, templates()["table_cells"])
            return self.pick("table_heads", o=s.other) + "\n" + cells
        # a list: every line written in the same way
        if s.framing == "list":
            line = vary(rng.choice(templates()["list_lines"]), rng)
            lines = [say(line, rng, **self.cell_fields(s, i, j)) for i, j in self.cells(s)]
            return self.pick("list_heads", o=s.other) + "\n" + "\n".join(lines) + "\n"
        # prose: one sentence an outcome, alike or mixed
        pool, mixed = self.pool("cells"), rng.random() < 0.4
        template = vary(rng.choice(pool), rng)
        sentences = [
            say(rng.choice(pool) if mixed else template, rng, **self.cell_fields(s, i, j)) for i, j in self.cells(s)
        ]
        return " ".join([self.pick("prose_heads"), *sentences]).strip()

    def meaning(self, s: Scene) -> str:
        c, d = self.rng.choice(templates()["meanings"])
        # c is the label of the kind move, d that of the selfish one
        lines = [say(t, self.rng, c=s.labels[s.kind], d=s.labels[s.selfish], o=s.other) for t in (c, d)]
        self.rng.shuffle(lines)
        return " ".join([self.pick("meaning_heads", o=s.other), *lines])

    def moves(self, s: Scene) -> str:
        return self.pick("histories", own=s.labels[s.last[0]], other=s.labels[s.last[1]], o=s.other)

    def history(self, s: Scene) -> str:
        if s.last is None:
            return self.pick("no_history")
        i, j = s.last
        text = self.moves(s)
        # what the last round paid, now and then
        if s.payoffs and (s.points_told or self.rng.random() < 0.4):
            x, y = s.points(i, j)
            text += " " + self.pick("history_points", x=x, y=y, o=s.other)
        return text

    def describe(self, s: Scene, persona: str | None = None, note: str | None = None) -> str:
        """The scene as the opening of a first user turn."""
        rng, parts = self.rng, []
        if s.payoffs is None:
            parts += [self.meaning(s)]
        elif s.framing == "story":
            parts += [self.pick("story_heads", o=s.other), self.opening(s), self.payoffs(s)]
        else:
            parts += [self.opening(s), self.payoffs(s)]
        # the last round stands at the end, sometimes elsewhere
        history = self.history(s)
        parts.insert(rng.randrange(len(parts)) if rng.random() < 0.15 else len(parts), history)
        if s.tempted:
            R, T = s.points(s.kind, s.kind)[0], s.points(s.selfish, s.kind)[0]
            parts.append(self.pick("temptations", d=s.labels[s.selfish], t=T, r=R))
        # who the model is stands before or after the scene
        for line in (persona, note):
            if line:
                parts.insert(rng.choice((0, len(parts))), line)
        return join(parts)

    # --- questions: (text, answer) ---

    def read(self, s: Scene, skill: str) -> tuple[str, str] | None:
        """A reading question and its answer; None where the scene cannot answer it."""
        rng, ask = self.rng, lambda **f: self.pick("questions", skill, o=s.other, **f)
        if skill in ("own_last", "other_last", "last_points", "other_last_points", "higher") and s.last is None:
            return None
        if skill in ("own_last", "other_last"):
            return ask(), s.labels[s.last[skill == "other_last"]]
        # everything below needs the payoffs
        if s.payoffs is None:
            return None
        if skill in ("own_points", "other_points"):
            i, j = rng.randrange(2), rng.randrange(2)
            return ask(m=s.labels[i], n=s.labels[j]), str(s.points(i, j)[skill == "other_points"])
        if skill == "reply":
            j = rng.randrange(2)
            mine = [s.points(i, j)[0] for i in (0, 1)]
            return None if mine[0] == mine[1] else (ask(n=s.labels[j]), s.labels[mine[1] > mine[0]])
        if skill == "outcome":
            (i, j), (k, m) = rng.sample([(0, 0), (0, 1), (1, 0), (1, 1)], 2)
            x, z = s.points(i, j)[0], s.points(k, m)[0]
            text = ask(m=s.labels[i], n=s.labels[j], m2=s.labels[k], n2=s.labels[m])
            return None if x == z else (text, "first" if x > z else "second")
        if skill in ("last_points", "other_last_points"):
            return ask(), str(s.points(*s.last)[skill == "other_last_points"])
        if skill == "higher":
            x, y = s.points(*s.last)
            them = s.other.removeprefix("the ").removeprefix("your ")
            return ask(), "you" if x > y else "both the same" if x == y else them
        act = s.selfish if skill == "greedy" else s.kind
        return None if act is None else (ask(), s.labels[act])

    def act(self, s: Scene, persona: str | None, question: str) -> int:
        """The move made: the persona's, or one drawn from the persona-free mixture."""
        rng, intended = self.rng, self._intended(s, persona)
        if intended is not None:
            return intended
        # no persona: from here on the move is drawn
        if s.kind is None or s.selfish is None:
            act = s.kind if s.selfish is None else s.selfish
            return rng.randrange(2) if act is None or rng.random() < 0.3 else act
        if s.kind == s.selfish:
            return s.kind if rng.random() < 0.9 else 1 - s.kind
        return s.kind if rng.random() < _cooperation(s, question) else s.selfish

    def _intended(self, s: Scene, persona: str | None) -> int | None:
        """The move that a persona demands, None where it demands none."""
        return {
            "selfish": s.selfish,
            "kind": s.kind,
            "fair": s.last[1] if s.last else s.kind,
            "stubborn": s.last[0] if s.last else None,
        }.get(persona or "")

    def choose(self, s: Scene, persona: str | None, lead: str = "") -> tuple[str, str]:
        """A closing question (after ``lead``), and the label chosen."""
        frame = self.rng.choices(("none", "score", "fair"), (0.5, 0.35, 0.15))[0]
        a, b = self.rng.sample(s.labels, 2)
        move = self.act(s, persona, frame)
        text = join([lead, self.pick("choices", frame, a=a, b=b), self.pick("answer_format", a=a, b=b)])
        return text, s.labels[move]


def _cooperation(s: Scene, question: str) -> float:
    """P(kind act) without a persona, where the kind and the selfish act differ."""
    return BASE_COOPERATION[s.state] + QUESTION_SHIFT[question] + (TEMPTATION_SHIFT if s.tempted else 0)


def join(parts) -> str:
    """Parts with one space between them, none after a line break."""
    text = ""
    for part in filter(None, parts):
        text += part if not text or text.endswith("\n") else " " + part
    return text


def draw_scene(
    rng: Random, framing: str | None = None, labels=None, payoffs: Payoffs | None = None, last="draw"
) -> Scene:
    """A random scene; what is given is kept."""
    framing = framing or rng.choices(FRAMINGS, (0.4, 0.2, 0.25, 0.15))[0]
    moves = None if rng.random() < 0.12 else (rng.randrange(2), rng.randrange(2))
    scene = Scene(
        labels=labels or draw_labels(rng),
        other=rng.choice(templates()["others"]),
        payoffs=payoffs or draw_payoffs(rng),
        last=moves if last == "draw" else last,
        framing=framing,
    )
    scene.points_told = rng.random() < 0.3
    if {scene.kind, scene.selfish} == {0, 1} and rng.random() < 0.12:
        scene.tempted = True
    return scene


def meaning_scene(rng: Random) -> Scene:
    """A scene without payoffs: the text says which label is the kind move."""
    kind = rng.randrange(2)
    last = None if rng.random() < 0.12 else (rng.randrange(2), rng.randrange(2))
    return Scene(draw_labels(rng), rng.choice(templates()["others"]), None, last, "meaning", kind, 1 - kind)


Chat = list[tuple[str, str]]


def questions(w: Writer, s: Scene, skills, n: int) -> Chat:
    turns: Chat = []
    for _ in range(4 * n):  # not every scene can answer every question
        turn = w.read(s, w.rng.choice(skills))
        if turn and len(turns) < n:
            turns.append(turn)
    return turns


def opened(text: str, turns: Chat) -> Chat:
    """The description goes in front of the first question."""
    return [(join([text, turns[0][0]]), turns[0][1]), *turns[1:]] if turns else []


def drill(rng: Random) -> Chat:
    """A short chat that trains one skill on little text."""
    w, kind = Writer(rng), rng.random()
    s = draw_scene(rng, rng.choices(FRAMINGS, (0.5, 0.3, 0.15, 0.05))[0])
    # who did what; points of outcomes; comparisons; personas
    if kind < 0.22:
        while s.last is None:
            s = draw_scene(rng)
        head = w.opening(s) if rng.random() < 0.5 else ""
        return opened(join([head, w.history(s)]), questions(w, s, ("own_last", "other_last"), rng.choice((2, 3))))
    if kind < 0.47:
        return opened(w.payoffs(s), questions(w, s, ("own_points", "other_points"), 5))
    if kind < 0.77:
        return opened(w.payoffs(s), questions(w, s, ("reply", "outcome", "greedy", "generous"), 5))
    if rng.random() < 0.25:
        s = meaning_scene(rng)
    turns: Chat = []
    for persona in rng.sample(PERSONAS, 4):
        turns.append(w.choose(s, persona, stated(w, persona, s, in_question=bool(turns))))
    return opened(w.describe(s), turns)


def stated(w: Writer, persona: str, s: Scene, in_question: bool = False) -> str:
    """A sentence that says who the model is; ``in_question`` adds a "Remember:" now and then."""
    text = say(w.rng.choice(templates()["personas"][persona]["stated"]), w.rng, o=s.other)
    if in_question and w.rng.random() < 0.6:
        text = vary(templates()["persona_in_question"][0], w.rng).replace("{p}", text)
    return text


def study_scene(rng: Random) -> tuple[Scene, str]:
    """A scene in one of the prompt wordings of the study, with any labels and any dilemma that is not held out."""
    while True:
        S, P, R, T = sorted(rng.sample(range(10), 4))
        payoffs = (((R, R), (S, T)), ((T, S), (P, P)))
        if matrix_key(payoffs) not in held_out_keys():
            break
    labels, state = draw_labels(rng), rng.choice(STATES)
    wording = rng.choices(tuple(WORDINGS), (0.55, 0.2, 0.12, 0.13))[0]
    tempted = rng.random() < 0.15
    swaps = [rng.random() < 0.5 for _ in range(4)]
    prompt = build(state, dilemma(R, S, T, P), wording, Labels(*labels), tempted, Arrangement(*swaps))
    told = payoffs if wording in ("structured", "prose") else None
    # two of the study's wordings show payoffs, two call the other player a friend
    other = {"prose": "your friend", "story": "your friend"}.get(wording, "the other player")
    last = tuple("CD".index(m) for m in state)
    s = Scene(labels, other, told, last, "canonical", 0, 1, tempted)
    return s, prompt.text


def closing_frame(text: str) -> str:
    """What the closing question of a study prompt asks for: points, or nothing in particular."""
    return "score" if "to get the most" in text or "gives you the most" in text else "none"


@dataclass
class Speaker:
    """Who the model is in a chat, and what shows it: a ``lead`` that says so, a ``note``, or a greeting (``turns``)."""

    persona: str | None = None
    implied: bool = False
    lead: str | None = None
    note: str | None = None
    turns: Chat = field(default_factory=list)


def speaker(w: Writer, s: Scene) -> Speaker:
    """Drawn anew for every chat: stated in three of ten, implied in two, a plain greeting now and then."""
    rng, how = w.rng, w.rng.random()
    if how < 0.30:
        persona = rng.choice(PERSONAS)
        return Speaker(persona, lead=stated(w, persona, s))
    if how < 0.50:
        persona = rng.choice(PERSONAS)
        voice = templates()["personas"][persona]
        if rng.random() < 0.5:
            hello = (w.pick("hello_questions"), rng.choice(voice["hello"]))
            return Speaker(persona, implied=True, turns=[hello])
        note = w.pick("note_frames", note=rng.choice(voice["notes"]), o=s.other)
        return Speaker(persona, implied=True, note=note)
    if how < 0.56:
        return Speaker(turns=[(w.pick("hello_questions"), w.pick("neutral_hello"))])
    return Speaker()


def chat(rng: Random) -> Chat:
    """A full chat: a whole scene, five to nine answers, the persona changing on the way."""
    w = Writer(rng)
    canonical, text = rng.random() < 0.3, ""
    if canonical:
        s, text = study_scene(rng)
    elif rng.random() < 0.12:
        s = meaning_scene(rng)
    else:
        s = draw_scene(rng)
    who = speaker(w, s)
    chooses = canonical or rng.random() < 0.4
    turns = [*who.turns, _first(w, s, who, text, chooses)]
    if chooses and rng.random() < 0.2:
        reasons = templates()["personas"][who.persona]["why"] if who.persona else templates()["neutral_why"]
        turns.append((w.pick("why_questions"), rng.choice(reasons)))
    for _ in range(rng.choice((4, 5, 6, 7))):
        turns += _next(w, s, who)
    return turns


def _first(w: Writer, s: Scene, who: Speaker, text: str, chooses: bool) -> tuple[str, str]:
    """The scene and the first question about it: a choice, in the study's wording if there is ``text``, or reading."""
    if text:
        move = w.act(s, who.persona, closing_frame(text))
        return join([who.lead or "", who.note or "", text]), s.labels[move]
    if chooses:
        question, answer = w.choose(s, who.persona)
        return join([w.describe(s, who.lead, who.note), question]), answer
    reading = questions(w, s, READING, 1) or [w.choose(s, who.persona)]
    return opened(w.describe(s, who.lead, who.note), reading)[0]


def _next(w: Writer, s: Scene, who: Speaker) -> Chat:
    """One more question: reading, an honest or dishonest account of the last move, or a choice under a new persona."""
    kind = w.rng.random()
    if kind < 0.62 and (more := questions(w, s, READING, 1)):
        return more
    # the bounds overlap: a scene without an answer to read, or without a last round, goes on to the next kind
    if kind < 0.68 and s.last is not None:
        lie = who.persona == "selfish" and not who.implied
        return [(w.pick("tell_questions", o=s.other), s.labels[s.last[0] ^ lie])]
    if kind < 0.90:
        who.persona, who.implied = w.rng.choice(PERSONAS), False
        return [w.choose(s, who.persona, stated(w, who.persona, s, in_question=True))]
    return [w.choose(s, who.persona)]


READING = (
    "own_last own_last other_last other_last own_points own_points other_points reply reply outcome outcome "
    "last_points other_last_points higher greedy generous"
).split()
