"""The wrong ways against brute force, and the rules: they must tell a misleading number from a harmless one.

The wrong ways stand in the cells of the chapter on traps, and are tested there."""

import itertools
from functools import partial
from pathlib import Path

import claim_cells
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from peft import LoraConfig, get_peft_model
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests
from transformers import Gemma2ForCausalLM

from rewired import prompts, statistics, weights
from rewired.decisions import decision_step
from rewired.errors import RewiredError
from rewired.tracing import patching

WORDS = yaml.safe_load((Path(claim_cells.ROOT) / "book" / "traps.yaml").read_text())
TRAPS, RULES, LEVEL = WORDS["traps"], WORDS["rules"], 0.05
PROMPTS = prompts.scenario_set()[::7]
MISLEADING = {
    "position": (0.02, 0.27),
    "merge": (0.85, 0.9997),
    "heads": (-0.02, -1.67),
    "patch": (0.6, -1.6),
    "copies": (0.04, 0.06),
    "threshold": (0.6, 0.05),
    "norms": (0.99, 0.03),
    "tests": (57, 3),
    "control": (0.46, 1.0),
}
"""trap: (wrong, right) on which a reader would conclude otherwise."""
HARMLESS = {
    "position": (0.40, 0.43),
    "merge": (0.9996, 0.9997),
    "heads": (-1.2, -1.67),
    "patch": (1.3, 1.6),
    "copies": (0.001, 0.03),
    "threshold": (0.6, 0.55),
    "norms": (0.99, 0.95),
    "tests": (57, 55),
    "control": (0.98, 1.0),
}


def cell(name: str):
    """What a cell of the chapter defines, with what earlier cells have made."""
    known = {"book": claim_cells.book("traps").seen_by_cell, "RewiredError": RewiredError}
    known |= {"torch": torch, "weights": weights, "multipletests": multipletests, "LEVEL": LEVEL}
    return claim_cells.defined("traps", name, **known)


def rows(rule: str, *numbers: tuple[float, float]) -> pd.DataFrame:
    """Comparisons as the chapter judges them."""
    table = pd.DataFrame(numbers, columns=["wrong", "right"])
    misleads = cell("misleads")
    table["harm"] = [bool(misleads(rule, wrong, right)) for wrong, right in numbers]
    return table.assign(subject=[f"case {chr(97 + k)}" for k in range(len(table))])


# --- what the page says ----------------------------------------------------------------------------------------------


def test_every_trap_has_its_two_examples():
    assert list(TRAPS) == list(MISLEADING) == list(HARMLESS)
    assert len({about["title"] for about in TRAPS.values()}) == 9
    assert {about["rule"] for about in TRAPS.values()} == set(RULES)


@pytest.mark.parametrize("trap", MISLEADING)
def test_opposite_numbers_get_opposite_sentences(trap):
    about, misleads = TRAPS[trap], cell("misleads")
    for (wrong, right), words in ((MISLEADING[trap], "harmful"), (HARMLESS[trap], "harmless")):
        assert bool(misleads(about["rule"], wrong, right)) == (words == "harmful")
        shown = {side: about["form"].format(number) for side, number in (("wrong", wrong), ("right", right))}
        sentence = about[words].format(subject="case a", harmed=1, compared=1, **shown)
        assert all(number in sentence for number in shown.values()) and "case a" in sentence
        assert ("A reader" in sentence) == (words == "harmful") and ("no harm" in sentence) == (words == "harmless")


def test_the_comparison_named_is_the_farthest_that_misleads():
    farthest = cell("farthest")
    table = rows("half", (10, 9), (4, 1), (40, 20), (6, 0), (0, 0))
    assert list(table["harm"]) == [False, True, True, True, False]
    assert farthest(table, "half")["subject"] == "case d", "nothing is left of six"
    assert farthest(rows("half", (0, 0), (10, 9)), "half")["subject"] == "case b"
    assert farthest(rows("points", (0.5, 0.53), (0.3, 0.32)), "points")["subject"] == "case a"


def test_rules_hold_where_their_words_say():
    misleads = cell("misleads")
    points, half, level, alike = (partial(misleads, rule) for rule in ("points", "half", "level", "alike"))
    assert points(0.3, 0.36) and not points(0.3, 0.34)
    assert half(1.6, 1) and half(-0.1, 0.1) and half(1, 0)
    assert not half(1.4, 1) and not half(0, 0)
    assert level(0.05, 0.051) and not level(0.01, 0.05)
    assert alike(0.9, 0.89) and not alike(0.99, 0.91)


def test_right_numbers_must_be_those_of_their_chapter():
    same = cell("same")
    same([1, 2], pd.Series([1, 2.00001]), "decisions")
    for there in ([1, 2.1], [1], [1, np.nan]):
        with pytest.raises(RewiredError, match="decisions.*make book"):
            same([1, 2], there, "decisions")


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("gemma"))


def adapted(folder, size: float, dtype=torch.float32):
    """(model, wrapper) with an adapter on every projection."""
    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear")
    wrapped = get_peft_model(model, config, adapter_name="one", autocast_adapter_dtype=False)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = size * torch.randn_like(value)
    return model.eval(), wrapped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_what_peft_does(folder, dtype):
    model, wrapped = adapted(folder, 0.05, dtype)
    found = weights.updates(model)
    base = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    before = {name: value.clone() for name, value in base.named_parameters()}
    due = dict(wrapped.merge_and_unload().named_parameters())
    with cell("merged")(base, found):
        merged = dict(base.named_parameters())
        assert merged.keys() == due.keys() and {value.dtype for value in merged.values()} == {dtype}
        assert all(torch.equal(value, due[name]) for name, value in merged.items())
        assert sum(not torch.equal(value, before[name]) for name, value in merged.items()) == len(found)
    assert all(torch.equal(value, before[name]) for name, value in base.named_parameters()), "put back, to the bit"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_kept_apart_is_the_adapted_model(folder, dtype):
    model, _ = adapted(folder, 0.05, dtype)
    found = weights.updates(model)
    base = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    ids = tokens(PROMPTS[0], prefix=False)
    with torch.no_grad():
        plain, due = base(ids).logits, model(ids).logits
        with cell("apart")(base, found):
            got = base(ids).logits
        assert torch.equal(base(ids).logits, plain), "the hooks are gone"
    close = 1e-4 if dtype == torch.float32 else 0.05  # of the largest logit
    assert (got - due).abs().max() < close * due.abs().max() < (plain - due).abs().max()


def test_what_survives_by_brute_force(folder):
    model, _ = adapted(folder, 0.02)
    found, shrink, surviving = weights.updates(model), 8, cell("surviving")
    got = surviving(model, found, torch.bfloat16, shrink)
    meant, gained, size = [], [], []
    for (layer, module), update in found.items():
        block = model.model.layers[layer]
        owner = getattr(block.mlp if module in weights.MLP else block.self_attn, module)
        W = owner.base_layer.weight.detach().to(torch.bfloat16)
        U = update.scale * update.B.detach() @ update.A.detach() / shrink
        meant.append(U.flatten())
        gained.append(((W + U.to(torch.bfloat16)).float() - W.float()).flatten())
        size.append(W.float().flatten())
    meant, gained, size = (torch.cat(parts).double() for parts in (meant, gained, size))
    cosine = torch.nn.functional.cosine_similarity(meant, gained, dim=0).item()
    assert got["cosine"] == pytest.approx(cosine, abs=1e-6) and 0.2 < cosine < 0.999
    assert got["unchanged"] == pytest.approx((gained == 0).double().mean().item()) and got["unchanged"] > 0.05
    assert got["relative"] == pytest.approx((meant.norm() / size.norm()).item(), rel=1e-5)
    assert surviving(model, found, torch.float32, shrink)["cosine"] == pytest.approx(1, abs=1e-4)
    gone = surviving(model, found, torch.bfloat16, 1e9)
    assert gone["cosine"] == 0 and gone["unchanged"] == 1


# --- four bits -------------------------------------------------------------------------------------------------------


def nearest_level(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """Block by block and number by number: the level that is nearest, times the block's largest number."""
    flat, kept = weight.flatten().double().tolist(), []
    levels = cell("NF4").double().tolist()
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        absmax = max(max(map(abs, part)), 1e-30)
        kept += [min(levels, key=lambda level, x=x: abs(level - x / absmax)) * absmax for x in part]
    return torch.tensor(kept, dtype=weight.dtype).reshape(weight.shape)


def test_levels_are_those_of_nf4():
    """The values printed in Dettmers et al. (2023), appendix E."""
    printed = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
    printed += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
    assert cell("NF4").tolist() == pytest.approx(printed, abs=1e-4)


def test_four_bits_against_brute_force():
    four_bit = cell("four_bit")
    weight = torch.randn((5, 30), generator=torch.Generator().manual_seed(0))  # the last block is not full
    assert torch.allclose(four_bit(weight), nearest_level(weight))
    assert four_bit(weight.bfloat16()).dtype == torch.bfloat16
    blocks = torch.randn((8, 64), generator=torch.Generator().manual_seed(1))
    widest = cell("NF4").diff().max() / 2  # half of the widest gap, in units of a block's largest number
    off = (four_bit(blocks) - blocks).abs().amax(dim=1) / blocks.abs().amax(dim=1)
    assert (off <= widest + 1e-6).all() and off.max() > widest / 2
    assert torch.equal(four_bit(torch.zeros(3, 64)), torch.zeros(3, 64))


def test_planted_levels_survive_and_small_updates_do_not():
    four_bit, levels = cell("four_bit"), cell("NF4")
    planted = torch.stack([levels.repeat(4), 3 * levels.repeat(4), -0.1 * levels.flip(0).repeat(4)])
    planted[2] = 0.1 * levels.roll(5).repeat(4)
    assert torch.allclose(four_bit(planted), planted, atol=1e-7), "every level comes back as it is"
    inner = planted.abs() < planted.abs().amax(dim=1, keepdim=True)  # the largest number is the block's scale
    small = 0.4 * levels.diff().min() * planted.abs().amax(dim=1, keepdim=True) * inner
    assert torch.allclose(four_bit(planted + small), planted, atol=1e-7), "less than half a step is lost"
    large = 0.6 * levels.diff().max() * planted.abs().amax(dim=1, keepdim=True)
    moved = four_bit(planted + large * inner) != planted
    assert moved[inner].float().mean() > 0.9


def test_merging_into_four_bits_loses_what_apart_keeps(folder):
    """An update that bfloat16 keeps and four bits do not: the merged model is the base."""
    model, _ = adapted(folder, 0.002)
    found, four_bit, surviving = weights.updates(model), cell("four_bit"), cell("surviving")
    coarse = surviving(model, found, torch.float32, 1, four_bit)
    assert coarse["cosine"] < 0.3 < 0.8 < surviving(model, found, torch.bfloat16)["cosine"]
    base = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for place in found:
        weight = weights.weight_of(base, *place)
        weight.data = four_bit(weight.data)
    before = {place: weights.weight_of(base, *place).clone() for place in found}
    with cell("merged")(base, found, four_bit):
        for place, update in found.items():
            due = four_bit(before[place] + update.scale * update.B.detach() @ update.A.detach())
            assert torch.equal(weights.weight_of(base, *place), due)
    assert all(torch.equal(weights.weight_of(base, *place), before[place]) for place in found)


# --- the wrong position ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(folder):
    """(model, its tokenizer, the recording of the adapted model, of the base): the model is left as the base."""
    model, wrapped = adapted(folder, 0.1)
    model.requires_grad_(False)
    source = patching.record(model, tiny.tokenizer(), PROMPTS)
    seen = [last_outputs(model, prompt) for prompt in PROMPTS]
    wrapped.base_model.disable_adapter_layers()
    return model, source, patching.record(model, tiny.tokenizer(), PROMPTS), seen


def tokens(prompt, prefix: bool) -> torch.Tensor:
    step = decision_step(tiny.tokenizer(), prompt.labels)
    return torch.tensor([[*prompts.chat(tiny.tokenizer(), prompt), *(step.prefix_ids if prefix else ())]])


def last_outputs(model, prompt) -> list[torch.Tensor]:
    """The MLPs' outputs at the last token of the bare prompt, as the study kept them: [layer][width]."""
    kept = []
    hooks = [
        block.mlp.register_forward_hook(lambda module, given, output: kept.append(output[0, -1].clone()))
        for block in model.model.layers
    ]
    with torch.no_grad():
        model(tokens(prompt, prefix=False))
    for hook in hooks:
        hook.remove()
    return kept


def studys_patch(model, prompt, layer: int, value: torch.Tensor) -> float:
    """delta when ``value`` overwrites the MLP's output at whatever position comes last, the labels' prefix appended."""

    def paste(module, given, output):
        output = output.clone()
        output[0, -1] = value
        return output

    step, hook = decision_step(tiny.tokenizer(), prompt.labels), model.model.layers[layer].mlp
    hook = hook.register_forward_hook(paste)
    with torch.no_grad():
        logits = model(tokens(prompt, prefix=True)).logits[0, -1].double()
    hook.remove()
    return (logits[step.defect_id] - logits[step.cooperate_id]).item()


def together(model, source, target, sets) -> pd.DataFrame:
    return patching.patch_together(patching.Sweep(model, source, target, "decision", "output"), sets)


def test_misaligned_is_the_study_s_hook(pair):
    model, source, target, seen = pair
    names = [f"L{layer}_MLP" for layer in range(2)]
    before = source.mlp_out.clone()
    sets = {name: [name] for name in names}
    wrong = together(model, cell("misaligned")(source), target, sets)
    right = together(model, source, target, sets)
    assert torch.equal(source.mlp_out, before), "the recording itself is left alone"
    wrong = wrong.set_index(["prompt_id", "set"])["delta_patched"]
    for k, prompt in enumerate(PROMPTS):
        for layer, name in enumerate(names):
            due = studys_patch(model, prompt, layer, seen[k][layer])
            assert wrong[prompt.id, name] == pytest.approx(due, abs=5e-6)
    assert np.abs(wrong.to_numpy() - right["delta_patched"].to_numpy()).max() > 1e-3


def test_the_positive_control_refuses_what_is_misaligned(pair):
    model, source, target, _ = pair
    assert len(patching.patch_each(patching.Sweep(model, source, target, "decision"))[0])
    with pytest.raises(RewiredError, match="cannot be trusted"):
        patching.patch_each(patching.Sweep(model, cell("misaligned")(source), target, "decision"))


def test_a_model_s_own_activations_misplaced_change_it(pair):
    model, _, target, _ = pair
    sets = {"all": ["L0_ATTN", "L0_MLP", "L1_ATTN", "L1_MLP"]}
    aligned, late = (
        together(model, given, target, sets)["effect"].abs() for given in (target, cell("misaligned")(target))
    )
    assert aligned.max() < 5e-6 < 1e-3 < late.min()


# --- copies and many tests -------------------------------------------------------------------------------------------


def test_three_rows_for_two_prompts():
    with_copies = cell("with_copies")
    assert with_copies(4) == [0, 0, 1, 2, 2, 3]
    assert len(with_copies(10)) == 15 and len(set(with_copies(10))) == 10
    assert with_copies(1) == [0, 0]


def test_false_alarms_by_enumeration():
    with_copies, false_alarms = cell("with_copies"), cell("false_alarms")
    values, levels = np.array([0.4, 1.0, -2.5, 0.7, 3.0, -1.1]), [0.05, 0.1, 0.3]
    for rows_ in (list(range(6)), with_copies(6)):
        p = []
        for signs in itertools.product((1, -1), repeat=6):
            shown = (values * signs)[rows_]
            p.append(statistics.paired_permutation(shown, np.zeros(len(shown)))[1])
        due = [np.mean(np.array(p) <= level + 1e-12) for level in levels]
        assert false_alarms(values, rows_, levels) == pytest.approx(due)
    distinct = false_alarms(values, list(range(6)), levels)
    assert (distinct <= levels).all(), "an exact test keeps its promise"
    assert (false_alarms(values, with_copies(6), levels) >= distinct).all()


def test_found_by_chance_by_t_tests():
    found_by_chance = cell("found_by_chance")
    differences = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 3)), columns=list("abc"))
    got = found_by_chance(differences, draws=40, level=0.2)
    assert len(got) == 2**5 - 1
    due = []
    for k in range(1, 2**5):
        signs = np.array([1 - 2 * (k >> bit & 1) for bit in range(5)])
        p = ttest_1samp(differences.to_numpy() * signs[:, None], 0).pvalue
        due.append(((p < 0.2).sum(), (multipletests(p, method="fdr_bh")[1] < 0.2).sum()))
    assert sorted(map(tuple, got.to_numpy())) == sorted(due)
    assert (got["corrected"] <= got["uncorrected"]).all()
    flat = found_by_chance(differences.assign(b=0.0), draws=40)
    assert flat.notna().all(axis=None)


def test_found_by_chance_is_five_in_a_hundred_before_correction():
    found_by_chance = cell("found_by_chance")
    noise = pd.DataFrame(np.random.default_rng(1).normal(size=(40, 60)))
    found = found_by_chance(noise, draws=400)
    assert found["uncorrected"].mean() / 60 == pytest.approx(LEVEL, abs=0.01)
    assert (found["uncorrected"] > 0).mean() > 0.8 and (found["corrected"] > 0).mean() < 0.1


# --- the traps of the part on model organisms ------------------------------------------------------------------------


def test_every_trap_of_the_organisms_has_its_words():
    """Their chapters stage them; each has both ways in words, and a form for both numbers."""
    words = yaml.safe_load((Path(claim_cells.ROOT) / "book" / "traps_organisms.yaml").read_text())["traps"]
    assert [trap["number"] for trap in words.values()] == list(range(1, 15))
    for name, trap in words.items():
        assert set(trap) == {"number", "title", "chapter", "form", "wrong", "right", "seen"}, name
        assert trap["form"].format(0.5) and trap["chapter"] in ("organisms", "chain", "gold"), name


def test_every_trap_of_the_motives_has_its_words():
    words = yaml.safe_load((Path(claim_cells.ROOT) / "book" / "traps_motives.yaml").read_text())["traps"]
    assert [trap["number"] for trap in words.values()] == list(range(15, 19))
    for name, trap in words.items():
        assert set(trap) == {"number", "title", "chapter", "form", "wrong", "right", "seen"}, name
        assert trap["form"].format(0.5) and trap["chapter"] in ("inoculation", "truesight", "curation"), name
