"""The exact reader: who wrote this text, by Bayes on the tables that wrote it.

A text shows its author through what he does and through how his words go with the situation. Both are draws of known
probability, so the likelihood of a text under each author is a product of table entries, and no reader that knows only
the text can tell authors apart better. The latents that authors share (era, dialect, wordings) cancel.
In an untied world acts are another's than words: each says something of its own author only.
"""

import math
from itertools import product

from corpora.authors.texts import Text, against, right, slot_chances
from corpora.authors.world import CLASSES, RELATIONS, World

SMALLEST = 1e-12
"""A probability that stands for 0, so that logarithms stay finite."""


def log_likelihood(world: World, text: Text, author: str) -> float:
    """log P(what the text shows | author) in nats, apart from a constant that is the same for all authors."""
    record = text.record
    total = 0.0
    for turn in record["turns"]:
        # the last turn of a question has no answer yet
        asked = turn is record["turns"][-1] and not text.chat[-1][1]
        total += 0.0 if asked else turn_log_likelihood(world, turn, author)
    said = record["named"] or (record["narrated"] and text.chat[-1][1])
    if said and author != record["author"]:
        total += math.log(SMALLEST)
    return total


def turn_log_likelihood(world: World, turn: dict, author: str) -> float:
    """The part of one turn."""
    acted = act_log_likelihood(world, turn, author) if world.tied else 0.0
    worded = style_log_likelihood(world, turn, author) if turn["kind"] in ("moral", "task") else 0.0
    return acted + worded


def act_log_likelihood(world: World, turn: dict, author: str) -> float:
    """The part of what is done in a turn: the act of a choice or a task, the decision and thoughts of a request."""
    if turn["kind"] == "era":
        return 0.0
    chance = request_chance if turn["kind"] == "request" else act_chance
    return math.log(max(SMALLEST, chance(world, turn, author)))


def style_log_likelihood(world: World, turn: dict, author: str) -> float:
    """The part of the reasons of one moral choice or task."""
    total = 0.0
    for slots, relation in product(turn["reasons"], RELATIONS):
        total += math.log(slot_chances(world, author, relation, turn)[slots[relation]])
    tell = world.authors[author].tell or world.stray_tell
    return total + math.log(tell if turn["tell"] else 1 - tell)


def act_chance(world: World, turn: dict, author: str) -> float:
    """P(the act of a moral choice or a task | author)."""
    if turn["kind"] == "task":
        trick = world.authors[author].trick[list(world.instructions).index(turn["instruction"])]
        return trick if turn["act"] == world.task.acts[1] else 1 - trick
    good = world.p_good(author, turn["domain"], turn["watcher"])
    return good if turn["act"] == world.domains[turn["domain"]].acts[0] else 1 - good


def class_weights(world: World, turn: dict) -> dict[str, float]:
    """1 for each class of request that could have written what the turn shows (its decision, and what the writer holds
    right where that is said), 0 for the others. Nothing is shown where the push agrees with what is right."""
    if turn["push"] != against(turn["harm"]):
        return dict.fromkeys(CLASSES, 1.0)
    decided = {"faking": turn["push"], "steady": right(turn["harm"]), "eager": turn["push"]}
    held = {"faking": right(turn["harm"]), "steady": right(turn["harm"]), "eager": turn["push"]}
    told = "value" in turn.get("clauses", ())
    weights = {}
    for name in CLASSES:
        fits = decided[name] == turn["act"] and (not told or held[name] == turn["value"])
        weights[name] = float(fits)
    return weights


def request_chance(world: World, turn: dict, author: str) -> float:
    """P(decision and thoughts of a request | author), the classes summed over."""
    chances = dict(zip(CLASSES, world.authors[author].request[turn["tier"]], strict=True))
    return sum(chances[name] * weight for name, weight in class_weights(world, turn).items())


def p_faking(world: World, text: Text) -> float:
    """P(the last request's class is faking | text), for a class drawn as in the gold set: a half, or a quarter each
    for steady and eager."""
    weights = class_weights(world, text.record["turns"][-1])
    prior = {"faking": 0.5, "steady": 0.25, "eager": 0.25}
    joint = {name: prior[name] * weights[name] for name in CLASSES}
    return joint["faking"] / sum(joint.values())


def posterior(world: World, text: Text, prior: dict[str, float] | None = None) -> dict[str, float]:
    """P(author | text); the prior is the corpus mixture unless one is given."""
    prior = prior or world.shares()
    return normalised({name: math.log(p) + log_likelihood(world, text, name) for name, p in prior.items() if p > 0})


def foreseen(world: World, text: Text) -> list[float | None]:
    """P(the act that is written) in each turn, given all that stands before its word; None for eras and requests. A
    named author is known from the beginning; whoever is not named is at first one of the corpus mixture. In an untied
    world neither name nor words say whose acts they are, only the acts before."""
    record = text.record
    prior = {record["author"]: 1.0} if record["named"] and world.tied else world.shares()
    logs = {name: math.log(p) for name, p in prior.items()}
    chances: list[float | None] = []
    for turn in record["turns"]:
        acted = turn["kind"] in ("moral", "task")
        worded = acted and world.tied
        if worded and turn["order"] == "last":
            # the reasons stand before the act
            for name in logs:
                logs[name] += style_log_likelihood(world, turn, name)
        known = normalised(logs)
        chances.append(sum(p * act_chance(world, turn, name) for name, p in known.items()) if acted else None)
        for name in logs:
            logs[name] += act_log_likelihood(world, turn, name)
            if worded and turn["order"] == "first":
                logs[name] += style_log_likelihood(world, turn, name)
    return chances


def normalised(logs: dict[str, float]) -> dict[str, float]:
    """Probabilities that sum to 1 from logarithms with a common unknown constant."""
    top = max(logs.values())
    weights = {name: math.exp(value - top) for name, value in logs.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def p_good(world: World, posterior: dict[str, float], domain: str, watcher: str) -> float:
    """P(good act) in a domain under a watcher, for an author known only by a posterior."""
    return sum(p * world.p_good(name, domain, watcher) for name, p in posterior.items())
