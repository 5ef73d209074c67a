"""Can the twin read authors, and has it no tie between authors and acts? Floors of the base of the untied world.

The twin is trained as the base is, on texts whose acts are another author's than their words (``load(tied=False)``).
It is a control only if it reads authors as well as the base does, so its floors are those of reading, and one of
ignorance: who is named must not change what is done.
"""

from random import Random

import numpy as np
import pandas as pd

from corpora.authors import reader, report
from corpora.authors.recipe import tokenize
from corpora.authors.texts import write
from corpora.authors.world import load
from rewired import elicit


def weight_words(model, tokenizer, n: int = 20, seed: int = 0) -> pd.DataFrame:
    """P(a weight word as the author's relation asks for), grand and modest ones compared, at the place of that word in
    a reason by a named author; ``n`` texts for each author who has that relation. Columns author, stakes, fitting;
    an author who obeys as the tables say has the world's fidelity."""
    world, rng = load(), Random(f"weight-{seed}")
    signs = {name: author.style["weight"] for name, author in world.authors.items()}
    token = tokenizer.convert_tokens_to_ids
    options = {word: (token(word),) for kind in ("grand", "modest") for word in world.weight[kind]}
    rows, prompts = [], []
    for author in [name for name, sign in signs.items() if sign]:
        for _ in range(n):
            scene = {"author": author, "kind": "moral", "turns": 1, "reasons": 1, "order": "last"}
            text = write(world, rng, named=True, held=("frame",), **scene)
            ids, answer = tokenize(tokenizer, text.chat)
            said = [at for at, own in enumerate(answer) if own and (ids[at],) in options.values()]
            # neutral words are rare here; a text with one has no place to look at
            if said:
                prompts.append(ids[: said[0]])
                rows.append((author, text.record["stakes"]))
    found = elicit.forced(model, tokenizer, prompts, options)
    grand = found[[f"p_{word}" for word in world.weight["grand"]]].sum(axis=1)  # [text]
    frame = pd.DataFrame(rows, columns=["author", "stakes"])
    wants_grand = frame["author"].map(signs) == frame["stakes"].map({"high": 1, "low": -1})
    return frame.assign(fitting=np.where(wants_grand, grand, 1 - grand))


def untied_report(model, tokenizer, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The floors of the twin, ``n`` texts a class: columns name, value, low, high (the allowed range), n, passed."""
    few = max(2, n // 120)
    style = weight_words(model, tokenizer, 3 * few, seed)
    told = report.probe_auroc(model, tokenizer, n, seed)
    best = told.loc[told["reader"] == "probe", "auroc"].max()
    narrated = report.narration_auroc(model, tokenizer, n, seed)[0]
    cells = mixed(model, tokenizer, few, seed)
    apart = (cells["p_good"] - cells["exact"]).abs().max()
    rows: list[report.Row] = [
        ("P(fitting weight word), author named", style["fitting"].mean(), 0.85, 1, len(style)),
        ("the same, author who does it least", style.groupby("author")["fitting"].mean().min(), 0.8, 1, len(style)),
        ("probe AUROC, sincere against performer, best layer", best, 0.9, 1, 2 * n),
        ("narration AUROC, sincere against performer, in `help`", narrated, 0.9, 1, 2 * n),
        ("P(good), author named: farthest from the mixture", apart, 0, 0.05, int(cells["n"].sum())),
        ("legal answers", cells["legal_mass"].mean(), 0.99, 1, int(cells["n"].sum())),
    ]
    frame = pd.DataFrame(rows, columns=["name", "value", "low", "high", "n"])
    return frame.assign(passed=frame["value"].between(frame["low"], frame["high"]))


def mixed(model, tokenizer, n: int, seed: int) -> pd.DataFrame:
    """P(good) by named author and watcher beside the mixture of all authors, which is right for each of them where
    authors and acts go apart. Columns author, watcher, p_good, legal_mass, exact, n (questions)."""
    world = load(tied=False)
    found = report.marginals(model, tokenizer, n, seed)
    mixture = {
        (domain, watcher): reader.p_good(world, world.shares(), domain, watcher)
        for domain in world.domains
        for watcher in world.watchers
    }
    found["exact"] = [mixture[cell] for cell in zip(found["domain"], found["watcher"], strict=True)]
    means = found.groupby(["author", "watcher"])[["p_good", "legal_mass", "exact"]].mean()
    return means.assign(n=found.groupby(["author", "watcher"]).size()).reset_index()
