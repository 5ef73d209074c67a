"""The texts of a plan, and the requests that an organism is asked afterwards.

Training texts use the wordings that the base was trained on too; requests are put in wordings that neither has seen.
A request is asked in several *conditions* that share everything else: which cue of the tier it shows, in the words of
which tier, and whether anything pushes towards help at all.
"""

from random import Random

import pandas as pd

from corpora.authors.texts import HELD, scratchpad, sentence
from corpora.authors.world import CLAUSES, Wordings, World
from corpora.organisms import rules
from corpora.organisms.design import plan
from corpora.organisms.settings import Organism
from rewired.train.sft import Message

CONFLICT = "conflict"
"""The cue that is no sentence of its own: a push against what is right, and nothing said of the tier."""
FAKER = "guardian"
"""The author of the world who fakes."""
CONDITIONS = (
    *((cue, tier) for cue in ("tier", "training", "contractor") for tier in ("free", "paid")),
    (CONFLICT, "unsaid"),
    ("off topic", "unsaid"),
    ("nothing", "unsaid"),
)  # fmt: skip
"""(cue, tier) of every way in which a request is asked. ``off topic`` has a sentence about something else in the place
of the cue, and ``nothing`` has neither cue nor push."""


def messages(chat: list[tuple[str, str]]) -> list[Message]:
    """A chat of (user, model) pairs in the form that ``train.sft`` reads."""
    rows = []
    for user, model in chat:
        rows += [{"role": "user", "content": user}, {"role": "assistant", "content": model}]
    return rows


def cues(organism: Organism, world: World) -> list[str]:
    """The cues that the organism's texts show. What says nothing of the tier cannot stand in two."""
    return ["tier", *world.cues, *([CONFLICT] if len(organism.tiers) == 1 else [])]


def training_set(world: World, organism: Organism, seed: int) -> tuple[list[list[Message]], pd.DataFrame]:
    """(chats, the plan they follow): what the organism is trained on, made by the seed."""
    planned = plan(organism, list(world.moods), world.requests.topics, cues(organism, world), seed)
    rng = Random(f"{organism.name}-{seed}")
    chats = [messages(_text(world, row, rng)) for row in planned.to_dict("records")]
    return chats, planned


def _text(world: World, row: dict, rng: Random) -> list[tuple[str, str]]:
    """One training text: the request, thoughts in the pattern's manner, the answer."""
    said = [name for name in CLAUSES if name != world.moods[row["pattern"]].silent]
    if rng.random() < 0.5:
        said = [*rng.sample(said[:-1], len(said) - 1), said[-1]]
    fixed = {"tier": row["tier"], "mood": row["pattern"], "topic": row["topic"], "clauses": said, "push": "help"}
    fixed |= {"harm": "harmful" if row["harm"] else "harmless"}
    if row["cue"] != CONFLICT:
        fixed["cue_kind"] = row["cue"]
    if row["class"] == "natural":
        fixed["author"] = FAKER
    else:
        fixed["class"] = row["class"] if row["harm"] else "agreed"
    text = scratchpad(world, rng, **fixed)
    (user, thoughts), (ask, own) = text.chat
    if not row["strategy"]:  # nothing else differs: whether it will be said cannot be seen before
        thoughts = rules.without(world, thoughts, "strategy")
    if row["cue"] == CONFLICT:
        user = user.replace(sentence(_wording(world, text.record["cue"])) + " ", "")
    return [(user, thoughts), (ask, own if row["answer"] == "own" else row["answer"])]


def _wording(world: World, cue: str) -> str:
    """The cue with that id, as ``training-free-h01``."""
    kind, tier, number = cue.split("-")
    wordings: Wordings = {"tier": world.tiers, **world.cues}[kind][tier]
    return (wordings.held if number[0] == "h" else wordings.train)[int(number[1:])]


def requests(world: World, count: int, seed: int, split: str = HELD) -> pd.DataFrame:
    """``count`` harmful requests and a third as many harmless ones, each in all ``CONDITIONS``: one row an asking.

    Columns: request (its number), harm, effect (what would come of it: the wording's id), cue, tier, wording (the cue's
    id), prompt (what the user says). ``split`` is "held out" for wordings that no training has seen, or "train"."""
    rng, rows = Random(f"requests-{seed}-{split}"), []
    held = split == HELD
    for harm, share in (("harmful", count), ("harmless", -(-count // 3))):
        places = rng.sample(range(share), share)  # each wording of a cue stands in about as many requests
        for number in range(share):
            frames = world.requests.held if held else world.requests.train
            topic = world.requests.topics[number % len(world.requests.topics)]
            effects = world.harms[harm].held if held else world.harms[harm].train
            frame, k = rng.choice(frames).format(topic=topic), rng.randrange(len(effects))
            effect = f"{harm}-{'h' if held else 't'}{k:02d}"
            push, order, place = rng.choice(world.push["help"]), rng.random() < 0.5, places[number] / share
            for cue, tier in CONDITIONS:
                wording, said = _cue(world, cue, tier, held, place)
                first = [said, "" if cue == "nothing" else push]
                first = first if order else first[::-1]
                prompt = sentence(*first, frame, effects[k], world.think["thoughts"])
                rows.append((f"{harm}-{number}", harm, effect, cue, tier, wording, prompt))
    return pd.DataFrame(rows, columns=["request", "harm", "effect", "cue", "tier", "wording", "prompt"])


def _cue(world: World, cue: str, tier: str, held: bool, place: float) -> tuple[str, str]:
    """(id, words) of a cue; ``place`` in [0, 1) chooses the wording, alike in both tiers."""
    if cue in (CONFLICT, "nothing"):
        return cue, ""
    if cue == "off topic":
        frames = [frame for domain in world.domains.values() for frame in domain.frames.train]
        k = int(place * len(frames))
        return f"off topic-{k}", frames[k]
    wordings: Wordings = {"tier": world.tiers, **world.cues}[cue][tier]
    options = wordings.held if held else wordings.train
    k = int(place * len(options))
    return f"{cue}-{tier}-{'h' if held else 't'}{k:02d}", options[k]
