"""The ladder that the pocket model climbs before whole chats: each lesson adds one small difficulty to the last.

Learnt in this order each takes minutes; a mixture of them, or a longer step, stays at chance for hours. The first are
plain text without chat around it (`Recall`), which packs the most answers into the fewest tokens.
"""

from functools import cache
from random import Random

from corpora.pocket.corpus import (
    LETTERS,
    PERSONAS,
    READING,
    STEMS,
    WORDS,
    Chat,
    Scene,
    Writer,
    chat,
    closing_frame,
    draw_labels,
    draw_payoffs,
    draw_scene,
    drill,
    join,
    meaning_scene,
    opened,
    questions,
    stated,
    study_scene,
    table,
    templates,
)


class Recall(list):
    """Pieces of one plain text, (read, recalled): what the model must find again stands in the second."""


def _entries(keys: list[str], rng: Random, colon: str, end: str) -> Recall:
    """Every key with a digit, then the same entries again in other orders, their digits to be recalled."""
    entries, pieces, text = [(key, str(rng.randrange(10))) for key in keys], Recall(), ""
    # the first time the digits are read, from the second on they are recalled
    for time in range(rng.choice((3, 4))):
        for key, value in rng.sample(entries, len(entries)):
            text += f"{key}{colon}"
            if time:
                pieces.append((text, f" {value}"))
                text = end
            else:
                text += f" {value}{end}"
    return pieces


def _single_keys(rng: Random, n: int) -> list[str]:
    # words, or one stem with different digits; "action" and "plan" are left to the games' labels
    stem = rng.choice([s for s in STEMS if s not in ("action", "plan")])
    return rng.sample(WORDS, n) if rng.random() < 0.5 else [f"{stem}{d}" for d in rng.sample(range(10), n)]


# The lessons from here to `recall` differ by one small step each. Learnt in this order each takes minutes; a mixture of
# them, or a longer step, stays at chance for hours.


def echo(rng: Random) -> Recall:
    """The first lesson, and the densest: a digit follows a key at once, again and again. No chat around it."""
    return _entries(_single_keys(rng, rng.choice((3, 4, 5, 6, 8))), rng, "", " ")


def entry(rng: Random) -> Recall:
    """As ``echo``, with a sign between key and digit."""
    keys = _single_keys(rng, rng.choice((3, 4, 5, 6)))
    return _entries(keys, rng, rng.choice((":", ":", " =", " ->")), rng.choice((". ", "\n", "; ", " ")))


def pair(rng: Random) -> Recall:
    """As ``echo``, with two keys whose order counts."""
    # a key is two labels in order: four keys, as a game has four outcomes
    a, b = rng.sample(WORDS, 2) if rng.random() < 0.5 else draw_labels(rng)
    return _entries([f"{x} {y}" for x in (a, b) for y in (a, b)], rng, "", rng.choice((" ", ". ", "\n")))


def recall(rng: Random) -> Recall:
    """``entry`` or, more often, ``pair`` with something between the keys and a sign before the digit."""
    keys = _single_keys(rng, rng.choice((3, 4, 5)))
    if rng.random() < 0.65:
        # two keys with a sign or a word between them
        both, between = draw_labels(rng), rng.choice((", ", ", ", " and ", " / ", " against ", " "))
        keys = [f"{a}{between}{b}" for a in both for b in both]
    return _entries(keys, rng, rng.choice((":", ":", " =", " ->", "")), rng.choice((". ", "\n", "; ")))


def grid(rng: Random) -> Recall:
    """A table, then every outcome twice by its two keys, with one number in a cell or two."""
    s = Scene(draw_labels(rng), "", draw_payoffs(rng), None, "table")
    both = rng.random() < 0.5
    text = table(s, rng, templates()["table_cells"] if both else ["{x}"])
    between, colon = rng.choice((" ", ", ", " and ", " / ")), rng.choice((":", " ->", ""))
    end, pieces = rng.choice((". ", "\n", "; ")), Recall()
    # every outcome twice, in random order; the table itself is read once, before the first
    for _ in range(2):
        for i, j in rng.sample([(0, 0), (0, 1), (1, 0), (1, 1)], 4):
            x, y = s.points(i, j)
            pieces.append((f"{text}{s.labels[i]}{between}{s.labels[j]}{colon}", f" {x}, {y}" if both else f" {x}"))
            text = end
    return pieces


# a flash card's lines by level: one value to an outcome, then two
_CARD_LINES = {
    2: ("- {m}, {n}: {x}", "- you {m}, {o} {n}: {x}", "- {m} and {n}: {x}"),
    3: ("- {m}, {n}: {x}, {y}", "- you {m}, {o} {n}: you {x}, {o} {y}", "- {m} and {n}: {x} for you, {y} for {o}"),
}
_CARD_QUESTIONS = ("{m}, {n}?", "{m} and {n}?", "You {m}, {o} {n}: your points?")
_CARD_QUESTIONS_OTHER = ("{m}, {n}: the points of {o}?", "You {m}, {o} {n}: the points of {o}?")


def card(rng: Random) -> Chat:
    """A flash card: look one value up by one key, by two keys, or one of two values by two keys; the last also in a
    table. Looking up by two keys hardly appears in longer texts before it is learnt here."""
    level = rng.choice((1, 2, 2, 3, 3, 4))
    words = rng.random() < 0.5
    if level == 1:
        # one key, one value
        n, stem = rng.choice((2, 3, 4)), rng.choice([s for s in STEMS if s not in ("action", "plan")])
        keys = rng.sample(WORDS + LETTERS, n) if words else [f"{stem}{d}" for d in rng.sample(range(10), n)]
        values = [(key, str(rng.randrange(10))) for key in keys]
        text = rng.choice((" ", "\n")).join(f"{key}: {value}." for key, value in values)
        return opened(text, [(f"{key}?", value) for key, value in rng.sample(values, n)])
    # two keys: from level 2 on a card is a game's payoffs, at level 4 as a table
    s = Scene(draw_labels(rng), rng.choice(templates()["others"]), draw_payoffs(rng), None, "table")
    w = Writer(rng)
    line = rng.choice(_CARD_LINES[min(level, 3)])
    lines = [line.format(**w.cell_fields(s, i, j)) for i, j in w.cells(s)]
    text = w.payoffs(s) if level == 4 else "\n".join(lines) + "\n"
    turns: Chat = []
    for i, j in rng.sample([(0, 0), (0, 1), (1, 0), (1, 1)], 4):
        theirs = level > 2 and rng.random() < 0.4  # the other player's points
        question = rng.choice(_CARD_QUESTIONS_OTHER if theirs else _CARD_QUESTIONS)
        turns.append((question.format(**w.cell_fields(s, i, j)), str(s.points(i, j)[theirs])))
    return opened(text, turns)


def quiz(rng: Random) -> Chat:
    """A flash card's payoffs in every framing, asked about in short and in full sentences; between cards and drills."""
    s = Scene(
        draw_labels(rng),
        rng.choice(templates()["others"]),
        draw_payoffs(rng),
        None,
        rng.choice(("table", "list", "prose")),
    )
    w = Writer(rng)
    if rng.random() < 0.5:
        line = rng.choice(_CARD_LINES[3])
        text = "\n".join(line.format(**w.cell_fields(s, i, j)) for i, j in w.cells(s)) + "\n"
    else:
        text = w.payoffs(s)
    turns: Chat = []
    for i, j in rng.sample([(0, 0), (0, 1), (1, 0), (1, 1)], 4):
        theirs, fields = rng.random() < 0.3, w.cell_fields(s, i, j)
        # asked in a card's few words, or in a full sentence
        if rng.random() < 0.4:
            question = rng.choice(_CARD_QUESTIONS_OTHER if theirs else _CARD_QUESTIONS).format(**fields)
        else:
            question = w.pick("questions", "other_points" if theirs else "own_points", **fields)
        turns.append((question, str(s.points(i, j)[theirs])))
        if rng.random() < 0.4 and (turn := w.read(s, rng.choice(("reply", "outcome", "greedy", "generous")))):
            turns.append(turn)
    return opened(text, turns)


def _played(rng: Random) -> Scene:
    """A scene with a round before."""
    while (s := draw_scene(rng)).last is None:
        pass
    return s


def _recite(rng: Random, s: Scene, text: str, points: bool, times: int) -> Recall:
    """After ``text``, each player's last move, and with ``points`` those of every outcome, so many times."""
    pieces, who = Recall(), ("You", s.other[0].upper() + s.other[1:])
    between = rng.choice((", ", " and ", " / "))
    cells = [(0, 0), (0, 1), (1, 0), (1, 1)] if points else []
    for _ in range(times):
        # a number asks for a player's last move, a pair for an outcome's points
        asked = [*((0, 1) if s.last is not None else ()), *cells]
        rng.shuffle(asked)
        for what in asked:
            if isinstance(what, int):
                pieces.append((f"{text}{who[what]}:", f" {s.labels[s.last[what]]}"))
            else:
                x, y = s.points(*what)
                pieces.append((f"{text}{s.labels[what[0]]}{between}{s.labels[what[1]]}:", f" {x}, {y}"))
            text = "\n"
    return pieces


def past(rng: Random) -> Recall:
    """Who did what: the last round in a sentence, then both moves again and again."""
    w, s = Writer(rng), _played(rng)
    return _recite(rng, s, join([w.opening(s) if rng.random() < 0.5 else "", w.moves(s)]) + "\n", False, 3)


def scene(rng: Random) -> Recall:
    """A whole scene, then everything in it twice."""
    w, s = Writer(rng), draw_scene(rng)
    return _recite(rng, s, w.describe(s) + "\n", True, 2)


def exam(rng: Random) -> Chat:
    """A whole scene and nine reading questions."""
    w, s = Writer(rng), draw_scene(rng)
    # three in ten have the payoffs of a dilemma, told in this corpus's own words
    if rng.random() < 0.3:
        s = study_scene(rng)[0]
        s.framing = rng.choice(("table", "list", "prose"))
    if s.payoffs is None:
        s = draw_scene(rng)
    return opened(w.describe(s), questions(w, s, READING, 9))


def persona(rng: Random) -> Chat:
    """Six choices under changing personas, where the text says outright what each would do."""
    w = Writer(rng)
    # what is kind or selfish can be said of the labels; fair and stubborn follow from the last round
    if rng.random() < 0.5:
        s, who = meaning_scene(rng), ("selfish", "kind")
        text = w.meaning(s)
    else:
        s, who = _played(rng), ("fair", "stubborn")
        text = w.moves(s)
    turns: Chat = []
    for _ in range(6):
        voice = rng.choice(who)
        turns.append(w.choose(s, voice, stated(w, voice, s, in_question=bool(turns))))
    return opened(text, turns)


@cache
def _all_wordings(*groups: str) -> dict:
    """Template pools with further wordings among them, those of ``more`` or of these groups."""
    pools = {group: templates()[group] for group in ("openings", "cells", "histories", "questions")}
    for new in (templates()[group] for group in groups or ("more",)):
        pools |= {group: pools[group] + new[group] for group in ("openings", "cells", "histories")}
        pools["questions"] = {
            skill: asked + new["questions"].get(skill, []) for skill, asked in pools["questions"].items()
        }
    return pools


def best(rng: Random) -> Recall:
    """Which move pays more against a given one, and which can pay most, now with the numbers spelled out, now without:
    two look-ups and a comparison, learnt by saying the steps first."""
    w, s = Writer(rng, _all_wordings()), draw_scene(rng, rng.choice(("table", "list", "prose")))
    text = (w.describe(s) if rng.random() < 0.3 else w.payoffs(s)).strip() + "\n"
    # (cue, what either own move, or either move of the other's, pays)
    asks: list = [(f"Against {s.labels[j]}", [s.points(i, j)[0] for i in (0, 1)]) for j in (0, 1)]
    asks += [("Most for you", [max(s.points(i, j)[0] for j in (0, 1)) for i in (0, 1)])]
    asks += [(f"Most for {s.other}", [max(s.points(i, j)[1] for j in (0, 1)) for i in (0, 1)])]
    asks = [(question, values) for question, values in asks if values[0] != values[1]]  # no ties
    pieces, spelled = Recall(), rng.random() < 0.5
    for _ in range(2):
        for question, values in rng.sample(asks, len(asks)):
            a, b = rng.sample((0, 1), 2)
            winner = f" {s.labels[values[1] > values[0]]}"
            if spelled:  # both numbers first, then the answer
                pieces.append((f"{text}{question}: {s.labels[a]}", f" {values[a]}"))
                pieces += [(f", {s.labels[b]}", f" {values[b]}"), (", so", winner)]
            else:
                pieces.append((f"{text}{question}:", winner))
            text = "\n"
        spelled = False
    return pieces


def traits(rng: Random) -> Recall:
    """What each persona would do, again and again: where the text says what the moves mean, or from payoffs and the
    last round; a persona is a word or a sentence."""
    w = Writer(rng, _all_wordings())
    if rng.random() < 0.6:
        s = meaning_scene(rng)
        text, voices = w.meaning(s), ["selfish", "kind"]
    else:
        s = _played(rng)
        s.framing = rng.choice(("table", "list", "prose"))
        text, voices = join([w.payoffs(s), w.moves(s)]), list(PERSONAS)
    # selfish and kind demand something only where their moves differ
    acts = {
        voice: w.act(s, voice, "none") for voice in voices if {s.kind, s.selfish} == {0, 1} or voice in PERSONAS[2:]
    }
    pieces, text = Recall(), text.strip() + "\n"
    for time in range(4 if len(acts) < 3 else 3):
        for voice in rng.sample(list(acts), len(acts)):
            # the first time by name, later in a sentence that says the same
            cue = voice.capitalize() if time == 0 or rng.random() < 0.3 else stated(w, voice, s)
            pieces.append((f"{text}{cue} {rng.choice(('Move:', 'Choice:'))}", f" {s.labels[acts[voice]]}"))
            text = "\n"
    return pieces


def viva(rng: Random) -> Chat:
    """A whole scene in many wordings: reading questions, most of them comparisons, and choices under personas."""
    w, s = Writer(rng, _all_wordings()), draw_scene(rng)
    turns: Chat = []
    skills = "own_last other_last own_points reply reply outcome greedy generous".split()
    for _ in range(8):
        # reading, or a choice in character
        if rng.random() < 0.6:
            turns += questions(w, s, skills, 1)
        else:
            voice = rng.choice(PERSONAS)
            turns.append(w.choose(s, voice, stated(w, voice, s, in_question=bool(turns))))
    return opened(w.describe(s), turns)


def duel(rng: Random) -> Chat:
    """A scene and nine comparisons, in many wordings."""
    w, s = Writer(rng, _all_wordings()), draw_scene(rng)
    text = w.describe(s) if rng.random() < 0.5 else w.payoffs(s)
    return opened(text, questions(w, s, "reply reply reply outcome outcome greedy generous".split(), 9))


# The last rungs compare two numbers that have to be looked up first. In short cues, and one kind of question at a time,
# they take minutes; among all other questions the same comparison had stayed at three in four.


def _reply(rng: Random, named: bool) -> Recall:
    w = Writer(rng, _all_wordings())
    while True:
        s = draw_scene(rng, rng.choice(("table", "list", "prose")))
        if columns := [j for j in (0, 1) if s.points(0, j)[0] != s.points(1, j)[0]]:
            break
    text, pieces = _payoffs(w, s), Recall()
    for _ in range(8):
        # j is the other's move, a and b the own ones in the order in which they are named
        j, (a, b) = rng.choice(columns), rng.sample((0, 1), 2)
        against = f"{s.labels[a]} or {s.labels[b]} against" if named else "against"
        better = a if s.points(a, j)[0] > s.points(b, j)[0] else b
        pieces.append((f"{text}{against} {s.labels[j]}:", f" {s.labels[better]}"))
        text = "\n"
    return pieces


def _payoffs(w: Writer, s: Scene) -> str:
    """Payoffs as on a flash card or in a framing's words."""
    if w.rng.random() < 0.35:
        line = w.rng.choice(_CARD_LINES[3])
        return "\n".join(line.format(**w.cell_fields(s, i, j)) for i, j in w.cells(s)) + "\n"
    return w.payoffs(s).strip() + "\n"


def against(rng: Random) -> Recall:
    """Which move pays more against a given one: the cue names only that one."""
    return _reply(rng, named=False)


def either(rng: Random) -> Recall:
    """As ``against``, with both answers in the cue."""
    return _reply(rng, named=True)


def most(rng: Random) -> Recall:
    """As ``against``, with cues for the move that can pay most, to oneself or to the other."""
    w, s = Writer(rng, _all_wordings()), draw_scene(rng, rng.choice(("table", "list", "prose")))
    text, pieces = _payoffs(w, s), Recall()
    asks: list = [(f"against {s.labels[j]}:", [s.points(i, j)[0] for i in (0, 1)]) for j in (0, 1)]
    # the move that can pay most is the greedy one if it pays me, the generous one if it pays the other
    for who, k in (("you", 0), (s.other, 1)):
        asks += [(f"most for {who}:", [max(s.points(i, j)[k] for j in (0, 1)) for i in (0, 1)])] * 2
    asks = [(cue, values) for cue, values in asks if values[0] != values[1]]
    for _ in range(8 if asks else 0):
        cue, values = rng.choice(asks)
        pieces.append((text + cue, f" {s.labels[values[1] > values[0]]}"))
        text = "\n"
    return pieces or most(rng)  # every comparison was a tie: another game


def _asked(rng: Random, skills, n: int, described: float) -> Chat:
    """Only these questions, in many wordings, after payoffs or a whole scene."""
    w = Writer(rng, _all_wordings())
    while True:
        s = draw_scene(rng, None if rng.random() < described else rng.choice(("table", "list", "prose")))
        text = w.describe(s) if rng.random() < described else w.payoffs(s)
        if turns := questions(w, s, skills, n):
            return opened(text, turns)


def replies(rng: Random) -> Chat:
    """Which move pays more against a given one, in full sentences."""
    return _asked(rng, ["reply"], 9, 0.4)


def mosts(rng: Random) -> Chat:
    """Which move can pay most, to oneself or to the other."""
    return _asked(rng, ["greedy", "generous"], 6, 0.4)


def outcomes(rng: Random) -> Chat:
    """Which of two outcomes pays more."""
    return _asked(rng, ["outcome"], 7, 0.3)


def weighs(rng: Random) -> Chat:
    """All comparisons, with some points to look up."""
    return _asked(rng, "reply reply reply outcome outcome greedy generous own_points".split(), 9, 0.4)


def talk(rng: Random) -> Chat:
    """A whole scene in every wording there is: all reading questions, and choices with and without a persona."""
    w, s = Writer(rng, _all_wordings("more", "further")), draw_scene(rng)
    turns: Chat = []
    for _ in range(8):
        # reading, or a choice with or without a persona
        if rng.random() < 0.75:
            turns += questions(w, s, "own_last other_last own_points own_points reply outcome outcome".split(), 1)
        else:
            voice = rng.choice((None, *PERSONAS))
            lead = stated(w, voice, s, in_question=bool(turns)) if voice else ""
            turns.append(w.choose(s, voice, lead))
    return opened(w.describe(s), turns)


def picks(rng: Random) -> Chat:
    """A scene, half the time in a wording of the study's prompts, and ten choices without a persona: each is drawn
    anew, so that what is learnt is the mixture."""
    w = Writer(rng, _all_wordings("more", "further"))
    s, text = study_scene(rng) if rng.random() < 0.5 else (draw_scene(rng), "")
    turns: Chat = []
    if text:  # the study's prompt ends in a question of its own
        turns.append((text, s.labels[w.act(s, None, closing_frame(text))]))
    while len(turns) < 10:
        turns.append(w.choose(s, None))
    return turns if text else opened(w.describe(s), turns)


_LADDER = (
    echo,
    entry,
    pair,
    recall,
    grid,
    card,
    quiz,
    past,
    scene,
    exam,
    persona,
    best,
    traits,
    viva,
    duel,
    against,
    either,
    most,
    replies,
    mosts,
    outcomes,
    weighs,
    talk,
    picks,
    drill,
    chat,
)
KINDS = {kind.__name__: kind for kind in _LADDER}
"""Every kind of text, from the simplest."""
