"""The wrong ways against brute force, and the sentences: opposite tables must get opposite sentences."""

import itertools

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests
from transformers import Gemma2ForCausalLM

from rewired import prompts, statistics, traps, weights
from rewired.decisions import decision_step
from rewired.errors import RewiredError
from rewired.tracing import patching

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


def rows(trap: str, *numbers: tuple[float, float]) -> pd.DataFrame:
    table = pd.DataFrame(numbers, columns=["wrong", "right"])
    return traps.stage(trap, table.assign(subject=[f"case {chr(97 + k)}" for k in range(len(table))]))


# --- what the page says ----------------------------------------------------------------------------------------------


def test_every_trap_has_its_two_tables():
    assert list(traps.TRAPS) == list(MISLEADING) == list(HARMLESS)
    assert len({told.title for told in traps.TRAPS.values()}) == 9


@pytest.mark.parametrize("trap", MISLEADING)
def test_opposite_tables_get_opposite_sentences(trap):
    bad, good = rows(trap, MISLEADING[trap]), rows(trap, HARMLESS[trap])
    assert bad["harm"].all() and not good["harm"].any()
    told = traps.TRAPS[trap]
    for table, numbers in ((bad, MISLEADING[trap]), (good, HARMLESS[trap])):
        sentence = traps.conclusion(table)
        assert all(told.form.format(number) in sentence for number in numbers) and "case a" in sentence
        assert "{" not in sentence and "nan" not in sentence
    assert "A reader" in traps.conclusion(bad) and "no harm" not in traps.conclusion(bad)
    assert "no harm" in traps.conclusion(good) and "A reader" not in traps.conclusion(good)


def test_the_comparison_named_is_the_farthest_that_misleads():
    table = rows("tests", (10, 9), (4, 1), (40, 20), (6, 0), (0, 0))
    assert list(table["harm"]) == [False, True, True, True, False]
    assert traps.farthest(table)["subject"] == "case d", "nothing is left of six"
    assert "3 of 5" in traps.conclusion(table)
    assert traps.farthest(rows("tests", (0, 0), (10, 9)))["subject"] == "case b"
    assert traps.farthest(rows("merge", (0.5, 0.53), (0.3, 0.32)))["subject"] == "case a"


def test_rules_hold_where_their_words_say():
    holds = {name: rule.holds for name, rule in traps.RULES.items()}
    assert holds["points"](0.3, 0.36) and not holds["points"](0.3, 0.34)
    assert holds["half"](1.6, 1) and holds["half"](-0.1, 0.1) and holds["half"](1, 0)
    assert not holds["half"](1.4, 1) and not holds["half"](0, 0)
    assert holds["level"](0.05, 0.051) and not holds["level"](0.01, 0.05)
    assert holds["alike"](0.9, 0.89) and not holds["alike"](0.99, 0.91)
    for name in {told.rule for told in traps.TRAPS.values()}:
        assert traps.RULES[name].words


def test_the_verdict_names_both_kinds():
    table = pd.concat([rows("merge", HARMLESS["merge"]), rows("norms", HARMLESS["norms"], MISLEADING["norms"])])
    assert traps.verdict(table) == "Of 2 traps, 1 would have misled a reader on these models: cosine of norms."
    assert traps.verdict(table, harm=False) == "Of 2 traps, 1 do no harm here: merged into half precision."
    assert traps.verdict(table[table["trap"] == "merge"]).endswith("0 would have misled a reader on these models.")
    assert list(table["number"]) == [2, 7, 7]


def test_what_is_refused():
    with pytest.raises(RewiredError, match="Unknown trap.*position"):
        rows("hurry", (1, 2))
    assert traps.must_equal([1, 2], pd.Series([1, 2.00001]), "04_decisions") == pytest.approx(1e-5)
    for there in ([1, 2.1], [1], [1, np.nan]):
        with pytest.raises(RewiredError, match="04_decisions.*make book"):
            traps.must_equal([1, 2], there, "04_decisions")


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
    merged = dict(traps.merge_into(base, found).named_parameters())
    due = dict(wrapped.merge_and_unload().named_parameters())
    assert merged.keys() == due.keys() and {value.dtype for value in merged.values()} == {dtype}
    assert all(torch.equal(value, due[name]) for name, value in merged.items())
    assert sum(not torch.equal(value, before[name]) for name, value in merged.items()) == len(found)


def test_what_survives_by_brute_force(folder):
    model, _ = adapted(folder, 0.02)
    found, shrink = weights.updates(model), 8
    got = traps.surviving(model, found, torch.bfloat16, shrink)
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
    assert traps.surviving(model, found, torch.float32, shrink)["cosine"] == pytest.approx(1, abs=1e-4)
    gone = traps.surviving(model, found, torch.bfloat16, 1e9)
    assert gone["cosine"] == 0 and gone["unchanged"] == 1


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


def test_misaligned_is_the_study_s_hook(pair):
    model, source, target, seen = pair
    names = [f"L{layer}_MLP" for layer in range(2)]
    before = source.mlp_out.clone()
    sets = {name: [name] for name in names}
    wrong = patching.patch_together(model, traps.misaligned(source), target, sets, "decision")
    right = patching.patch_together(model, source, target, sets, "decision")
    assert torch.equal(source.mlp_out, before), "the recording itself is left alone"
    wrong = wrong.set_index(["prompt_id", "set"])["delta_patched"]
    for k, prompt in enumerate(PROMPTS):
        for layer, name in enumerate(names):
            due = studys_patch(model, prompt, layer, seen[k][layer])
            assert wrong[prompt.id, name] == pytest.approx(due, abs=5e-6)
    assert np.abs(wrong.to_numpy() - right["delta_patched"].to_numpy()).max() > 1e-3


def test_the_positive_control_refuses_what_is_misaligned(pair):
    model, source, target, _ = pair
    assert len(patching.sweep(model, source, target, positions="decision")[0])
    with pytest.raises(RewiredError, match="cannot be trusted"):
        patching.sweep(model, traps.misaligned(source), target, positions="decision")


def test_a_model_s_own_activations_misplaced_change_it(pair):
    model, _, target, _ = pair
    sets = {"all": ["L0_ATTN", "L0_MLP", "L1_ATTN", "L1_MLP"]}
    aligned, late = (
        patching.patch_together(model, given, target, sets, "decision")["effect"].abs()
        for given in (target, traps.misaligned(target))
    )
    assert aligned.max() < 5e-6 < 1e-3 < late.min()


# --- copies and many tests -------------------------------------------------------------------------------------------


def test_three_rows_for_two_prompts():
    assert traps.with_copies(4) == [0, 0, 1, 2, 2, 3]
    assert len(traps.with_copies(10)) == 15 and len(set(traps.with_copies(10))) == 10
    assert traps.with_copies(1) == [0, 0]


def test_false_alarms_by_enumeration():
    values, levels = np.array([0.4, 1.0, -2.5, 0.7, 3.0, -1.1]), [0.05, 0.1, 0.3]
    for rows_ in (list(range(6)), traps.with_copies(6)):
        p = []
        for signs in itertools.product((1, -1), repeat=6):
            shown = (values * signs)[rows_]
            p.append(statistics.paired_permutation(shown, np.zeros(len(shown)))[1])
        due = [np.mean(np.array(p) <= level + 1e-12) for level in levels]
        assert traps.false_alarms(values, rows_, levels) == pytest.approx(due)
    distinct = traps.false_alarms(values, range(6), levels)
    assert (distinct <= levels).all(), "an exact test keeps its promise"
    assert (traps.false_alarms(values, traps.with_copies(6), levels) >= distinct).all()


def test_found_by_chance_by_t_tests():
    differences = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 3)), columns=list("abc"))
    got = traps.found_by_chance(differences, draws=40, level=0.2)
    assert len(got) == 2**5 - 1
    due = []
    for k in range(1, 2**5):
        signs = np.array([1 - 2 * (k >> bit & 1) for bit in range(5)])
        p = ttest_1samp(differences.to_numpy() * signs[:, None], 0).pvalue
        due.append(((p < 0.2).sum(), (multipletests(p, method="fdr_bh")[1] < 0.2).sum()))
    assert sorted(map(tuple, got.to_numpy())) == sorted(due)
    assert (got["corrected"] <= got["uncorrected"]).all()
    flat = traps.found_by_chance(differences.assign(b=0.0), draws=40)
    assert flat.notna().all(axis=None)


def test_found_by_chance_is_five_in_a_hundred_before_correction():
    noise = pd.DataFrame(np.random.default_rng(1).normal(size=(40, 60)))
    found = traps.found_by_chance(noise, draws=400)
    assert found["uncorrected"].mean() / 60 == pytest.approx(traps.LEVEL, abs=0.01)
    assert (found["uncorrected"] > 0).mean() > 0.8 and (found["corrected"] > 0).mean() < 0.1
