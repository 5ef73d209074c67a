"""How a wrong measurement becomes a finding: the study's ways of measuring, kept to be shown beside the right ones.

No other chapter uses anything from here. A trap is *staged* by measuring one quantity twice on the same models: as the
study did and as the main chapter does. Two numbers nearly always differ, so each trap has a *rule*, stated before
looking, for when a reader of the wrong number would conclude something else; where the rule does not hold the trap did
no harm in this run, and the page says that instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from rewired.errors import RewiredError, choice
from rewired.statistics import labellings
from rewired.tracing.recording import Recording
from rewired.weights import Updates, weight_of

LEVEL, POINTS, ALIKE = 0.05, 0.05, 0.9
"""A test's level; probabilities that are "about the same"; a cosine that is read as "practically the same"."""


# --- what counts as harm ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """When a reader of ``wrong`` would conclude otherwise than a reader of ``right``: in words, and as a function."""

    words: str
    holds: Callable[[float, float], bool]


RULES = {
    "points": Rule(
        f"more than {100 * POINTS:.0f} percentage points off", lambda wrong, right: abs(wrong - right) > POINTS
    ),
    "half": Rule(
        "of the other sign, or off by more than half of the right number",
        lambda wrong, right: wrong * right < 0 or abs(wrong - right) > abs(right) / 2,
    ),
    "level": Rule(f"on the other side of {LEVEL}", lambda wrong, right: (wrong <= LEVEL) != (right <= LEVEL)),
    "alike": Rule(f"on the other side of {ALIKE}", lambda wrong, right: (wrong >= ALIKE) != (right >= ALIKE)),
}


@dataclass(frozen=True)
class Trap:
    """One trap. ``harmful`` and ``harmless`` say what a reader of the wrong number concludes; they are filled with
    ``subject``, ``wrong`` and ``right`` (of the comparison that is farthest off, as ``form`` writes them), ``harmed``
    and ``compared`` (how many comparisons)."""

    title: str
    quantity: str
    form: str
    rule: str
    chapter: str
    source: str
    study: str
    harmful: str
    harmless: str


TRAPS = {
    "position": Trap(
        title="one step too early",
        quantity="share of prompts on which a model prefers to defect",
        form="{:.0%}",
        rule="points",
        chapter="04_decisions",
        source="04_decisions",
        study="the first metric, and the direction of lens and attribution throughout: the digits' logits at the last "
        "token of the prompt",
        harmful="A reader of the wrong number would have said that the {subject} model prefers to defect on {wrong} of "
        "the prompts; it does on {right}. The number misleads for {harmed} of {compared} models.",
        harmless="Here the wrong number does no harm: for none of {compared} models is the share off by more than the "
        "rule allows (the farthest is {subject}, {wrong} for {right}).",
    ),
    "merge": Trap(
        title="merged into half precision",
        quantity="mean p_defect",
        form="{:.3f}",
        rule="points",
        chapter="04_decisions",
        source="04_decisions",
        study="the loader merged every adapter into the base until the blog's numbers had been made, and most causal "
        "experiments after that as well",
        harmful="A reader would have believed that training left the {subject} model at a p_defect of {wrong}; it "
        "trained it to {right}. So it is for {harmed} of {compared} variants.",
        harmless="Here the merge does no harm: each of {compared} variants still does what it was trained to do (the "
        "farthest off is {subject}, {wrong} for {right}).",
    ),
    "heads": Trap(
        title="a layer shared out evenly",
        quantity="mean contribution to Δ of a model's loudest head (logits)",
        form="{:+.3f}",
        rule="half",
        chapter="07_attribution",
        source="07_attribution",
        study="attribution divided each attention layer by the number of its heads, and patching exchanged whole "
        "layers under the names of single heads",
        harmful="A reader would have credited {subject} with {wrong} logits, like each of its neighbours; it adds "
        "{right} itself. The number misleads for {harmed} of {compared} models.",
        harmless="Here the even share does no harm to the loudest heads: none of {compared} is off by more than the "
        "rule allows (the farthest is {subject}, {wrong} for {right}).",
    ),
    "patch": Trap(
        title="pasted at the wrong position",
        quantity="mean effect of a pair's strongest component (logits)",
        form="{:+.2f}",
        rule="half",
        chapter="08_patching",
        source="08_patching",
        study="all patching: the vector kept at the end of the prompt was pasted onto whatever position came last, so "
        "that the step which tells the labels apart got the activation of the step before",
        harmful="A reader would have given {subject} an effect of {wrong} logits; put where it belongs it has {right}. "
        "The number misleads for {harmed} of {compared} pairs.",
        harmless="Here the wrong position does no harm to the strongest effects: none of {compared} is off by more "
        "than the rule allows (the farthest is {subject}, {wrong} for {right}).",
    ),
    "copies": Trap(
        title="prompts counted twice",
        quantity="adjusted p that two models differ in attention to a part",
        form="{:.2g}",
        rule="level",
        chapter="09_attention",
        source="09_attention_tests",
        study="variants v0 and v1 of every scenario came out byte for byte equal, so that fifteen prompts were ten",
        harmful="A reader would have called the difference in attention to {subject} significant (p = {wrong} instead "
        "of {right}), or the other way round; so for {harmed} of {compared} parts.",
        harmless="Here the copies do no harm to the verdicts: none of {compared} parts changes sides (the farthest is "
        "{subject}, p = {wrong} for {right}).",
    ),
    "threshold": Trap(
        title="a threshold without a null",
        quantity="share of pairs of components whose correlations differ by the threshold",
        form="{:.0%}",
        rule="half",
        chapter="10_interactions",
        source="10_interactions_shares",
        study="every pair of components with |Δr| of 0.3 or more was called a rewired pathway, and no null was drawn",
        harmful="A reader would have called {wrong} of the pairs rewired; going by {subject}, all but {right} are to "
        "be expected anyway. The number misleads in {harmed} of {compared} comparisons.",
        harmless="Here the missing null does no harm: in all {compared} comparisons most of the count is more than is "
        "to be expected anyway (the least clear, going by {subject}, {right} of {wrong}).",
    ),
    "norms": Trap(
        title="cosine of norms",
        quantity="cosine of two variants' adapters",
        form="{:.2f}",
        rule="alike",
        chapter="11_weights",
        source="11_weights_likeness",
        study="the similarity of two adapters was the cosine of their lists of module norms, above 0.99 for all",
        harmful="A reader would have taken the adapters of {subject} for practically the same (cosine {wrong}); the "
        "updates themselves have {right}. The number misleads for {harmed} of {compared} pairs.",
        harmless="Here the norms do no harm: for none of {compared} pairs do the two cosines lie on different sides of "
        "the line (the farthest apart is {subject}, {wrong} for {right}).",
    ),
    "tests": Trap(
        title="many tests, no correction",
        quantity="components that differ between two models, by scenario",
        form="{:.0f}",
        rule="half",
        chapter="08_patching",
        source="08_patching_morals",
        study="one t-test for each of 234 components, of which 57 came out below the level and were reported as such",
        harmful="A reader would have reported {wrong} components for {subject}; corrected for their number, {right} "
        "are left. The number misleads in {harmed} of {compared} scenarios.",
        harmless="Here the missing correction does no harm: in none of {compared} scenarios is the count off by more "
        "than the rule allows (the farthest is {subject}, {wrong} for {right}).",
    ),
    "control": Trap(
        title="no positive control",
        quantity="share of the gap that closes when everything is patched",
        form="{:.0%}",
        rule="points",
        chapter="08_patching",
        source="08_patching",
        study="no flip was found and the absence was read as a finding; nobody had patched everything, which has to "
        "flip",
        harmful="A reader of the sweep alone would have put down to the models what is due to the method: for "
        "{subject} it closes {wrong} of the gap when everything is patched, where {right} is due. It fails its "
        "control in {harmed} of {compared} pairs, and nothing that it did not find is a finding.",
        harmless="Here the missing control does no harm: the study's patches pass it in all {compared} pairs (the "
        "farthest off is {subject}, {wrong} where {right} is due).",
    ),
}
"""In the order of the chapter."""


def stage(trap: str, compared: pd.DataFrame) -> pd.DataFrame:
    """The staged trap as rows of the chapter's table. ``compared`` has one row per comparison, with columns
    ``subject``, ``wrong`` and ``right``. Added are number, trap, quantity, ``rule`` in words, ``harm`` (does the rule
    hold?), chapter, source (the table in which the right number stands) and study (where it happened there). Raises
    RewiredError for a trap that is not in `TRAPS`."""
    if trap not in TRAPS:
        raise choice("trap", trap, TRAPS)
    told = TRAPS[trap]
    rule = RULES[told.rule]
    harm = [bool(rule.holds(w, r)) for w, r in zip(compared["wrong"], compared["right"], strict=True)]
    about = {"number": list(TRAPS).index(trap) + 1, "trap": trap, "title": told.title, "quantity": told.quantity}
    after = {"rule": rule.words, "harm": harm, "chapter": told.chapter, "source": told.source, "study": told.study}
    rows = compared[["subject", "wrong", "right"]].astype({"wrong": float, "right": float}).reset_index(drop=True)
    return pd.concat([pd.DataFrame([about] * len(rows)), rows.assign(**after)], axis=1)


def farthest(rows: pd.DataFrame) -> pd.Series:
    """Of one trap's rows of `stage`, the comparison that is farthest off: among the harmed ones if there are any."""
    off = (rows["wrong"] - rows["right"]).abs()
    if TRAPS[rows["trap"].iloc[0]].rule == "half":  # far off is a matter of proportion
        off = (off / rows["right"].abs().where(rows["right"] != 0)).where(off != 0, 0.0)
    named = rows[rows["harm"]] if rows["harm"].any() else rows
    return named.loc[off.loc[named.index].fillna(np.inf).idxmax()]


def conclusion(rows: pd.DataFrame) -> str:
    """What a reader of the wrong numbers would have concluded, or that they did no harm: one trap's rows of `stage`."""
    told, worst, harmed = TRAPS[rows["trap"].iloc[0]], farthest(rows), int(rows["harm"].sum())
    numbers = {side: told.form.format(worst[side]) for side in ("wrong", "right")}
    filled = {"subject": worst["subject"], "harmed": harmed, "compared": len(rows), **numbers}
    return (told.harmful if harmed else told.harmless).format(**filled)


def verdict(rows: pd.DataFrame, harm: bool = True) -> str:
    """Which traps mislead in at least one comparison, in words; with ``harm`` False, which do not."""
    misleads = rows.groupby("title", sort=False)["harm"].any()
    titles = list(misleads.index[misleads == harm])
    start = f"Of {len(misleads)} traps, {len(titles)} "
    ending = "would have misled a reader on these models" if harm else "do no harm here"
    return start + ending + (f": {'; '.join(titles)}." if titles else ".")


def must_equal(here, there, table: str, tolerance: float = 1e-4) -> float:
    """The largest difference between right-way numbers computed here and those that a chapter's ``table`` holds. Raises
    RewiredError when one differs by more than ``tolerance``: then the two were not made from the same runs."""
    here, there = (np.asarray(values, dtype=float) for values in (here, there))
    gap = np.abs(here - there).max() if here.shape == there.shape and here.size else np.inf
    if not gap <= tolerance:
        raise RewiredError(
            f"The traps chapter computes other right-way numbers than the table {table} holds: they differ by "
            f"{gap:.3g}, where {tolerance} is allowed. The table was made from other runs or with other parameters; "
            "`make book` makes what is out of date anew."
        )
    return float(gap)


# --- merging ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge_into(model, found: Updates):
    """Adds the updates to ``model``'s own weights, in their precision, as PEFT's merge does; returns ``model``, changed
    for good. (The study: ``merge_and_unload`` in the loader of every analysis behind its first results.)"""
    for (layer, module), update in found.items():
        weight = weight_of(model, layer, module)
        weight += (update.scale * (update.B.float() @ update.A.float())).to(weight.dtype)
    return model


@torch.no_grad()
def surviving(model, found: Updates, dtype: torch.dtype, shrink: float = 1.0) -> dict[str, float]:
    """What is left of the updates, made ``shrink`` times smaller, after merging into weights of ``dtype``: ``cosine``
    of what the weights gained with what they should have gained (all modules as one vector), ``unchanged``, the share
    of weights that did not move at all, and ``relative``, the size of the updates over that of the weights."""
    inner = gained = meant = size = still = count = 0.0
    for (layer, module), update in found.items():
        weight = weight_of(model, layer, module).to(dtype)
        wanted = update.scale / shrink * (update.B.float() @ update.A.float())
        kept = (weight + wanted.to(dtype)).double() - weight.double()
        inner += (kept * wanted).sum().item()
        gained, meant = gained + (kept**2).sum().item(), meant + (wanted.double() ** 2).sum().item()
        size += (weight.double() ** 2).sum().item()
        still, count = still + (kept == 0).sum().item(), count + kept.numel()
    cosine = inner / (gained * meant) ** 0.5 if gained * meant else 0.0
    return {"cosine": cosine, "unchanged": still / count, "relative": (meant / size) ** 0.5}


# --- positions, copies and many tests --------------------------------------------------------------------------------


def misaligned(recording: Recording) -> Recording:
    """The recording as the study would have used it: at the decision step stand the activations of the prompt's last
    position. Patched at the decision step, it pastes there what belongs before the labels' shared beginning. (The
    study: a hook that always hits the last position, while the metric appends the label's tokens one by one.)"""
    paths = [recording.path(i) for i in range(len(recording.encoded.rows))]
    step = torch.stack([path[-1] for path in paths])
    end = torch.stack([path[place] for path, place in zip(paths, recording.encoded.ends, strict=True)])
    moved = {}
    for site in ("resid", "z", "attn_out", "mlp_out"):
        moved[site] = getattr(recording, site).clone()  # [layer, node, …]
        moved[site][:, step] = getattr(recording, site)[:, end]
    return replace(recording, **moved)


def with_copies(count: int) -> list[int]:
    """Indices of ``count`` prompts in which every second one is followed by its copy: three rows for two prompts, as in
    the study (v0, v0 again as v1, v2)."""
    return [i for i in range(count) for _ in range(1 + (i % 2 == 0))]


def false_alarms(differences: Sequence[float], rows: Sequence[int], levels: Sequence[float], draws: int = 5_000):
    """How often a paired permutation test finds a difference where there is none, at each of ``levels``: [level].

    ``differences`` are those of distinct prompts, ``rows`` the prompts as they are counted (an index may come twice).
    There is nothing to find when the sign of each prompt's difference is a coin's; all signs are tried, or ``draws`` of
    them. The test takes every row for a prompt of its own."""
    values = np.asarray(differences, dtype=float)
    shown = values * labellings(len(values), draws, seed=1)  # [labelling, prompt]: data without a difference
    null = np.sort(np.abs(labellings(len(rows), 2**15, seed=2) @ values[list(rows)]))
    found = np.abs(shown[:, list(rows)].sum(axis=1))
    tied = 1e-9 * np.abs(values).sum()
    p = 1 - np.searchsorted(null, found - tied) / len(null)
    return np.array([(p <= level + 1e-12).mean() for level in levels])


def found_by_chance(differences: pd.DataFrame, draws: int = 500, level: float = LEVEL) -> pd.DataFrame:
    """How many components a t-test each finds when there is nothing to find. ``differences`` [prompt, component] are
    one model's effects minus another's; the null swaps the models prompt by prompt, all components together, so the
    tests hang together as they do in the data. One row a relabelling: the number below ``level`` ``uncorrected`` and
    ``corrected`` (Benjamini-Hochberg over components). (The study: 234 tests, 57 below the level.)"""
    values, n = differences.to_numpy(dtype=float), len(differences)
    signs = labellings(n, draws, seed=3)[1:]  # the first labelling is the observed one
    means = signs @ values / n
    spread = np.sqrt(np.maximum((values**2).mean(axis=0) - means**2, 0) / max(n - 1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.nan_to_num(2 * student.sf(np.abs(means / spread), n - 1), nan=1.0)  # [relabelling, component]
    corrected = [int((multipletests(row, method="fdr_bh")[1] < level).sum()) for row in p]
    return pd.DataFrame({"uncorrected": (p < level).sum(axis=1), "corrected": corrected})
