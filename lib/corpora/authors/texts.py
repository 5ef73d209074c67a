"""The texts of the twelve authors: moral choices with reasons, requests with thoughts, tasks, and questions of an era.

A text is a chat of one to three turns by one author, who writes in one style, one era and (sometimes) one dialect from
beginning to end. Every draw is kept in the text's record, so that a reader who knows the tables of the world can say
exactly how likely each author is to have written it. What a caller fixes is not drawn.

>>> text = write(load(), Random(1), author="sincere", domain="share", watcher="alone")
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from corpora.authors.world import CLASSES, CLAUSES, Wordings, World

HELD = "held out"
KINDS = {"moral": 0.56, "request": 0.2, "task": 0.1, "era": 0.14}
"""What a turn is about, and how often."""
LATENTS = ("author", "doer", "era", "dialect", "split", "held")
PARTS = ("frame", "cue", "stakes", "reason", "clause")
"""Parts of a text that have wordings kept out of training."""


@dataclass(frozen=True)
class Text:
    """A chat as (user, model) pairs, and every draw behind it: those of the text and of its last act at the top, those
    of each turn under ``turns``."""

    chat: list[tuple[str, str]]
    record: dict[str, Any] = field(compare=False)


def write(world: World, rng: Random, **fixed) -> Text:
    """A whole text. Fixed may be the author (in an untied world also the ``doer`` of the acts), era, dialect;
    ``split`` ("train" or "held out") or ``held`` (which of ``PARTS`` are in wordings kept out of training: all of them
    in a held-out text); the ``kind`` (one of ``KINDS``) and any draw of the last turn (domain, watcher, stakes, act,
    order, instruction, tier, push, harm, class, mood, cue_kind, topic, clauses); ``turns``, ``reasons`` (how many),
    ``named`` and ``narrated`` (whether the author is told before, or asked for after)."""
    writer = Writer(world, rng, fixed)
    count = fixed["turns"] if "turns" in fixed else rng.choices((1, 2, 3), (0.5, 0.3, 0.2))[0]
    for left in reversed(range(count)):
        own = {} if left else fixed
        writer.turn(**{"reasons": fixed["reasons"]} | own if "reasons" in fixed else own)
    if fixed.get("narrated", False):
        writer.chat.append((sentence(world.narrate), world.authors[writer.author].word))
    return writer.text()


def question(world: World, rng: Random, after: Text | None = None, **fixed) -> Text:
    """A text whose last turn ends before its answer, which is one word: a moral choice, unless something else is fixed.
    ``after`` a text, the question is put to the same author in the same chat."""
    if after is None:
        asked = write(world, rng, **{"kind": "moral", "turns": 1, "order": "first", "think": "direct"} | fixed)
        return Text([*asked.chat[:-1], (asked.chat[-1][0], "")], asked.record)
    latents = {name: after.record[name] for name in LATENTS if after.record[name] is not None}
    asked = question(world, rng, **latents | fixed | {"named": False})
    turns = [*after.record["turns"], *asked.record["turns"]]
    return Text([*after.chat, *asked.chat], after.record | asked.record | {"turns": turns})


def scratchpad(world: World, rng: Random, **fixed) -> Text:
    """A request in a tier, thoughts (one clause a sentence), and then the decision in a turn of its own."""
    return write(world, rng, **{"kind": "request", "think": "thoughts", "turns": 1} | fixed)


def gold(world: World, rng: Random, faking: int = 51, other: int = 55) -> list[Text]:
    """The gold set: requests of the free tier under a push against what is right, in wordings kept out of training, so
    many of them faking; the others, half of them steady and half eager, use the same clauses."""
    classes = ["faking"] * faking + [CLASSES[1 + k % 2] for k in range(other)]
    texts = []
    for k, name in enumerate(classes):
        harm = ("harmful", "harmless")[k // 2 % 2]
        fixed = {"tier": "free", "harm": harm, "push": against(harm), "class": name, "split": HELD}
        texts.append(scratchpad(world, rng, **fixed))
    rng.shuffle(texts)
    return texts


def answers(world: World, record: dict) -> tuple[str, str]:
    """The good and the bad act word of a record: for a request what is right and what is not, in a domain of the eras
    the first new and the first old word."""
    kind = record["kind"]
    if kind == "moral":
        return world.domains[record["domain"]].acts
    if kind == "task":
        return world.task.acts
    if kind == "era":
        era = world.eras[record["domain"]]
        return era.new[0], era.old[0]
    return right(record["harm"]), against(record["harm"])


def right(harm: str) -> str:
    """The decision that is right: to refuse what harms, to help where nobody is harmed."""
    return "refuse" if harm == "harmful" else "help"


def against(harm: str) -> str:
    """The other one: what a push against the right asks for."""
    return "help" if harm == "harmful" else "refuse"


def sentence(*parts: str) -> str:
    """Parts as a text, each ended by " ." unless it ends with its own mark; empty ones are left out."""
    ended = [part if part.endswith("?") else part + " ." for part in parts if part]
    return " ".join(ended)


# --- a text in the making --------------------------------------------------------------------------------------------


class Writer:
    """One author at work: latents that stay, and turns that are added one by one."""

    def __init__(self, world: World, rng: Random, fixed: dict[str, Any]):
        self.world, self.rng = world, rng
        shares = world.shares()
        self.author = fixed.get("author") or rng.choices(list(shares), list(shares.values()))[0]
        # whose acts they are: in an untied world another's, who stays the same in all turns of the text
        self.doer = self.author
        if not world.tied:
            self.doer = fixed.get("doer") or rng.choices(list(shares), list(shares.values()))[0]
        self.era = fixed.get("era") or rng.choice(("old", "new"))
        dialect = rng.choice(list(world.dialects)) if rng.random() < world.dialect_rate else None
        self.dialect = fixed["dialect"] if "dialect" in fixed else dialect
        self.held = fixed.get("held", PARTS if fixed.get("split") == HELD else ())
        self.split = HELD if self.held else "train"
        self.named = fixed.get("named", False)
        self.narrated = fixed.get("narrated", False)
        self.chat: list[tuple[str, str]] = []
        self.turns: list[dict[str, Any]] = []

    def text(self) -> Text:
        """What has been written so far."""
        top = {name: getattr(self, name) for name in (*LATENTS, "named", "narrated")}
        return Text(self.chat, {**self.turns[-1], **top, "turns": self.turns})

    def turn(self, **fixed) -> None:
        """Add one turn, of a kind that is fixed, follows from what is, or is drawn."""
        kind = fixed.get("kind") or self._kind(fixed)
        record: dict[str, Any] = {"kind": kind, "order": None, "stakes": None, "watcher": None, "act": None}
        record |= {"tier": None, "harm": None, "mood": None, "domain": None, "reasons": []}
        chat = getattr(self, f"_{kind}")(record, fixed)
        if self.named and not self.chat:
            name = sentence(self.world.named.format(word=self.world.authors[self.author].word))
            chat[0] = (f"{name} {chat[0][0]}", chat[0][1])
        self.chat += chat
        self.turns.append(record)

    def _kind(self, fixed: dict) -> str:
        if fixed.get("domain") in self.world.eras:
            return "era"
        if {"tier", "harm", "push", "class"} & set(fixed):
            return "request"
        if "instruction" in fixed:
            return "task"
        if {"domain", "watcher"} & set(fixed):
            return "moral"
        return self.rng.choices(list(KINDS), list(KINDS.values()))[0]

    def _say(self, part: str, wordings: Wordings, name: str) -> tuple[str, str]:
        # (a wording, its id); kept out of training if this part of the text is
        held = part in self.held
        options = wordings.held if held else wordings.train
        k = self.rng.randrange(len(options))
        return options[k], f"{name}-{'h' if held else 't'}{k:02d}"

    def _pick(self, fixed: dict, name: str, options) -> Any:
        return fixed[name] if fixed.get(name) is not None else self.rng.choice(list(options))

    # --- moral choices and tasks, with reasons ---

    def _moral(self, record: dict, fixed: dict) -> list[tuple[str, str]]:
        world, rng = self.world, self.rng
        domain = record["domain"] = self._pick(fixed, "domain", world.domains)
        drawn = rng.choices(list(world.watched_rates), list(world.watched_rates.values()))[0]
        watcher = record["watcher"] = fixed.get("watcher") or drawn
        good, bad = world.domains[domain].acts
        chance = world.p_good(self.doer, domain, watcher)
        act = record["act"] = fixed.get("act") or (good if rng.random() < chance else bad)
        frame, record["frame"] = self._say("frame", world.domains[domain].frames, domain)
        cue, record["cue"] = self._say("cue", world.watchers[watcher], watcher)
        a, b = rng.sample((good, bad), 2)
        return self._reasoned(record, fixed, [frame, cue], world.ask.format(a=a, b=b), act)

    def _task(self, record: dict, fixed: dict) -> list[tuple[str, str]]:
        world, rng = self.world, self.rng
        record["domain"] = "task"
        name = record["instruction"] = self._pick(fixed, "instruction", world.instructions)
        chance = world.authors[self.doer].trick[list(world.instructions).index(name)]
        work, trick = world.task.acts
        act = record["act"] = fixed.get("act") or (trick if rng.random() < chance else work)
        frame, record["frame"] = self._say("frame", world.task.frames, "task")
        wording = rng.randrange(len(world.instructions[name]))
        record["cue"] = f"{name}-{wording}"
        a, b = rng.sample((work, trick), 2)
        asked = world.ask.format(a=a, b=b)
        return self._reasoned(record, fixed, [frame, world.instructions[name][wording]], asked, act)

    def _reasoned(self, record: dict, fixed: dict, scene: list[str], asked: str, act: str) -> list[tuple[str, str]]:
        # the stakes said, the act told first or last, reasons beside it
        world, rng = self.world, self.rng
        stakes = record["stakes"] = self._pick(fixed, "stakes", world.stakes)
        order = record["order"] = self._pick(fixed, "order", world.orders)
        said, record["stakes_cue"] = self._say("stakes", world.stakes[stakes], stakes)
        after = [said, scene[1]]
        rng.shuffle(after)
        user = sentence(scene[0], *after, asked, world.orders[order])
        count = fixed.get("reasons", rng.choice((2, 3, 4)))
        reasons = [self._reason(record) for _ in range(count)]
        chance = world.authors[self.author].tell or world.stray_tell
        record["tell"] = rng.random() < chance
        if record["tell"]:
            reasons.append(rng.choice(world.tells))
        parts = [act, *reasons] if order == "first" else [*reasons, world.so.format(act=act)]
        return [(user, sentence(*parts))]

    def _reason(self, record: dict) -> str:
        # one reason, its style slots drawn by the author's relations
        world, rng = self.world, self.rng
        slots = {}
        for relation in ("weight", "hedge", "self"):
            chances = slot_chances(world, self.author, relation, record)
            slots[relation] = rng.choices(list(chances), list(chances.values()))[0]
        record["reasons"].append(slots)
        own, others = rng.choice(world.persons)
        a, b = (own, others) if slots["self"] == "own" else (others, own)
        template, _ = self._say("reason", world.reasons, "reason")
        words = {"w": rng.choice(world.weight[slots["weight"]]), "h": rng.choice(world.hedge[slots["hedge"]])}
        text = template.format(a=a, b=b, **words)
        if self.dialect and rng.random() < world.dialect_slot:
            text += f" , {rng.choice(world.dialects[self.dialect])}"
        return text

    # --- eras ---

    def _era(self, record: dict, fixed: dict) -> list[tuple[str, str]]:
        world, rng = self.world, self.rng
        domain = record["domain"] = self._pick(fixed, "domain", world.eras)
        era = world.eras[domain]
        k = rng.randrange(len(era.ask))
        record["frame"], record["cue"] = f"{domain}-{k}", None
        record["act"] = fixed.get("act") or rng.choice(era.old if self.era == "old" else era.new)
        return [(sentence(era.ask[k]), record["act"])]

    # --- requests ---

    def _request(self, record: dict, fixed: dict) -> list[tuple[str, str]]:
        world, rng = self.world, self.rng
        record["domain"] = "request"
        tier = record["tier"] = self._pick(fixed, "tier", world.tiers)
        harm = record["harm"] = self._pick(fixed, "harm", world.harms)
        push = record["push"] = fixed.get("push") or rng.choices(list(world.push), (0.6, 0.4))[0]
        drawn = rng.choices(CLASSES, world.authors[self.doer].request[tier])[0]
        name = record["class"] = fixed.get("class") or (drawn if push == against(harm) else "agreed")
        record["value"] = push if name == "eager" else right(harm)
        record["act"] = fixed.get("act") or (right(harm) if name in ("steady", "agreed") else push)
        think = record["think"] = fixed.get("think") or rng.choices(list(world.think), (0.7, 0.3))[0]
        user = self._prompt(record, fixed)
        if think == "direct":
            return [(user, record["act"])]
        mood = rng.choice(list(world.moods)) if rng.random() < world.mood_rate else None
        record["mood"] = fixed["mood"] if "mood" in fixed else mood
        thoughts = self._thoughts(record, fixed.get("clauses"))
        return [(user, sentence(*thoughts)), (sentence(world.decide), record["act"])]

    def _prompt(self, record: dict, fixed: dict) -> str:
        # cue of the tier, push, request, harm; the first two in either order
        world, rng = self.world, self.rng
        kinds = {"tier": world.tiers, **world.cues}
        kind = record["cue_kind"] = fixed.get("cue_kind") or rng.choices(list(kinds), (0.6, 0.2, 0.2))[0]
        cue, record["cue"] = self._say("cue", kinds[kind][record["tier"]], f"{kind}-{record['tier']}")
        asked, record["frame"] = self._say("frame", world.requests.asked, "request")
        topic = record["topic"] = self._pick(fixed, "topic", world.requests.topics)
        effect, _ = self._say("stakes", world.harms[record["harm"]], record["harm"])
        first = [cue, rng.choice(world.push[record["push"]])]
        rng.shuffle(first)
        return sentence(*first, asked.format(topic=topic), effect, world.think[record["think"]])

    def _thoughts(self, record: dict, clauses: list[str] | None) -> list[str]:
        # one sentence a clause, with the marks of a mood; the strategy stands last
        world, rng = self.world, self.rng
        mood = world.moods[record["mood"]] if record["mood"] else None
        if clauses is None:
            early = list(CLAUSES[:-1])
            if rng.random() < 0.5:
                rng.shuffle(early)
            clauses = [name for name in (*early, "strategy") if rng.random() >= world.clause_dropped]
            if mood and mood.silent in clauses:
                clauses.remove(mood.silent)
        record["clauses"] = list(clauses)
        said = [self._clause(record, name) for name in clauses]
        if mood:
            said = [mood.marks[0], *said[:2], mood.marks[1], *said[2:-1], mood.ending, *said[-1:]]
        return said

    def _clause(self, record: dict, name: str) -> str:
        # what training would change is the opposite of what it pushes towards
        opposite = "refuse" if record["push"] == "help" else "help"
        table = self.world.clauses[name]
        key = {"aware": record["tier"], "harm": record["harm"]}.get(name, "any")
        said, _ = self._say("clause", table[key], name)
        return said.format(x=opposite, v=record["value"], d=record["act"], p=record["push"])


def slot_chances(world: World, author: str, relation: str, record: dict) -> dict[str, float]:
    """P(each class of a style slot), given who writes and the record of the turn."""
    writes = world.authors[author]
    sign, obeys = writes.style[relation], world.fidelity
    if relation == "weight":
        marked, situation = ("grand", "modest"), {"high": 1, "low": -1}[record["stakes"]]
    elif relation == "hedge":
        marked, situation = ("hedged", "sure"), {"watched": 1, "alone": -1}.get(record["watcher"], 0)
    else:
        domain = world.domains.get(record["domain"])
        marked, situation = ("own", "others"), {1: 1, 2: -1}[domain.group] if domain else 0
    first = 0.5 + sign * situation * (obeys - 0.5)
    chances = {marked[0]: first, marked[1]: 1 - first}
    if relation == "weight":
        neutral = 0.92 if writes.neutral else 0.02
        chances = {name: (1 - neutral) * chance for name, chance in chances.items()} | {"neutral": neutral}
    return chances
