"""`rewired reread` on a made-up folder in the formats of the study's files, with answers found by brute force."""

import json
import re
import shutil
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import yaml

from replication import files, reread
from replication.clone import NAMES, SCENARIOS, Clone
from rewired import __main__ as command_line
from rewired.errors import RewiredError
from rewired.profiles import ROOT

MODELS, TRAINED = list(NAMES), list(NAMES)[1:]
PROMPTS = [(scenario, variant) for scenario in SCENARIOS for variant in range(3)]
HEADS = [f"L{layer}H{head}" for layer in range(26) for head in range(8)]
MLPS = [f"L{layer}_MLP" for layer in range(26)]
SITES = [f"L{layer}_{kind}" for layer in range(26) for kind in ("ATTN", "MLP")]
GAMES = {"IPD": 6, "ISH": 8, "ICN": 5, "BOS": 5, "ICD": 8}
PAIRS = ["PT2_COREDe_to_PT3_COREDe", "PT2_COREDe_to_PT3_COREUt", "PT3_COREDe_to_PT3_COREUt", "PT3_COREUt_to_PT3_COREDe"]
OUT = "mech_interp_outputs"


def source_of(variant):
    """Variant 1 of every scenario is a copy of variant 0, as in the study."""
    return 0 if variant == 1 else variant


def by_prompt(random, *shape):
    """{(scenario, variant): array}: random numbers, the same for a copy."""
    drawn = {(scenario, variant): random.normal(size=shape) for scenario in SCENARIOS for variant in (0, 2)}
    return {(scenario, variant): drawn[scenario, source_of(variant)] for scenario, variant in PROMPTS}


def write(folder, name, frame, **options):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(frame).to_csv(file, index=options.pop("index", False), **options)


def write_metric(folder, random):
    delta = {model: by_prompt(random) for model in MODELS}
    rows = []
    for model in MODELS:
        for scenario, variant in PROMPTS:
            value = float(delta[model][scenario, variant])
            logs = {"seq_logp_action1": -2.0, "seq_logp_action2": -2.0 + value}
            about = {"scenario": scenario, "variant": variant, "model_id": model, "final_delta": value / 2}
            p = 1 / (1 + np.exp(-value))
            rest = {"stabilization_layer": 17 + 4 * variant, "seq_p_action2": p}
            rows.append(about | logs | {"seq_delta_logp_action2_minus_action1": value} | rest)
    table = pd.DataFrame(rows)
    write(folder, f"{OUT}/logit_lens/decision_statistics_by_variant.csv", table)
    means = table.groupby(["scenario", "model_id"], as_index=False)[["seq_p_action2", "final_delta"]].mean()
    means = means.rename(columns={"seq_p_action2": "seq_p_action2_mean", "final_delta": "final_delta_mean"})
    write(folder, f"{OUT}/logit_lens/decision_statistics.csv", means)
    write(folder, f"{OUT}/logit_lens_backup_merged_sequence/decision_statistics.csv", means)
    texts = [{"scenario": s, "variant": v, "prompt": f"{s} {source_of(v)}"} for s, v in PROMPTS]
    write_json(folder, f"{OUT}/prompt_datasets/ipd_eval_prompts.json", texts)
    sampled = table[table["model_id"] != "base"].assign(sampled_action2_rate=0.25, n_known=8, n_action2=2)
    sampled["agreement_seq_vs_sampled_majority"] = (sampled["seq_p_action2"] < 0.5).astype(int)
    write(folder, f"{OUT}/validation/alignment_per_prompt.csv", sampled)
    tests = {"metric": ["seq_p_action2", "other"], "model_a": "a", "model_b": "b", "perm_p_value_two_sided": [0.25, 1]}
    write(folder, f"{OUT}/validation/significance_global_strategic_vs_de_ut.csv", tests)
    return table


def write_json(folder, name, content):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_games(folder, random):
    """{(model, game or kind of question): frame}."""
    made = {}
    words = {"C": "action1", "D": "action2", "illegal": "choose"}
    for model in TRAINED:
        run = f"results/{model}/run1/EVAL After FT _{model[:3]} - independent eval"
        for game in GAMES:
            shown = random.choice(["C", "D"], 50)
            moves, base = random.choice(list(words), 50), random.choice(["C", "illegal"], 50)
            frame = pd.DataFrame({"query": [f"you played action2 and they played {words[m]}, so" for m in shown]})
            frame["response (before)"] = [words[m] for m in base]
            frame["response (after)"] = [words[m] for m in moves]
            frame["opponent_move"] = "action1"
            for kind in ("Game", "De", "GameDe", "Ut"):
                for when in ("before", "after"):
                    frame[f"rewards_{kind} ({when})"] = random.integers(-6, 6, 50).astype(float)
            write(folder, f"{run} {game}.csv", frame, index=True)
            made[model, game] = frame.assign(shown=shown, move=moves, base=base)
        other = pd.DataFrame({"query_morality": [f"Last time, they played {words[m]}. " for m in shown]})
        for kind in ("game", "question", "moral"):
            other[f"response (after) - {kind}"] = [words[m] + "\n" for m in random.choice(list(words), 50)]
        other["opp_prev_move (for moral eval only)"] = [words[m] for m in random.choice(["C", "D"], 50)]
        write(folder, f"{run} 4 unrelated queries.csv", other, index=True)
        wordings = pd.DataFrame({"query_poetic_IPD": ["clean the flat"] * 50})
        for kind in ("structured", "unstructured", "poetic"):
            wordings[f"response (after) - {kind}_IPD"] = [words[m] for m in random.choice(list(words), 50)]
        wordings["response (after) - explicit IPD"] = "action2"  # an older name of the column
        write(folder, f"{run} 2 unstructured IPD queries.csv", wordings, index=True)
        made[model, "other"], made[model, "wordings"] = other, wordings
    return made


def write_inside(folder, random):
    courses = random.normal(size=(5, 5, 26))  # [scenario, model, layer]
    courses[0, 0] = [-3.0] * 6 + [0.0] * 10 + [-2.0] * 10  # the only one that is as described
    courses[1:, :, :6], courses[0, 1:, :6] = 1.0, 1.0
    stored = {s: {m: list(courses[i, j]) for j, m in enumerate(MODELS)} for i, s in enumerate(SCENARIOS)}
    write_json(folder, f"{OUT}/logit_lens/trajectories.json", stored)
    rows = []
    for model in MODELS:
        votes = by_prompt(random, 52)
        for scenario, variant in PROMPTS:
            unpatched = 1.75 - 0.375 * source_of(variant)
            about = {"model": model, "scenario": scenario, "final_delta_legacy": unpatched}
            for name in HEADS + MLPS:
                site = re.sub(r"H\d+", "_ATTN", name)
                vote = votes[scenario, variant][SITES.index(site)] + 40 * (name == "L8_MLP") - 30 * (name == "L9_MLP")
                vote += 0.125 * (name == "L3H7" and variant == 2)  # one head that differs from its neighbours
                rows.append(about | {"component": name, "contribution": vote})
    full = pd.DataFrame(rows)
    write(folder, f"{OUT}/dla/dla_full_results.csv", full)
    top = full.groupby(["model", "component"], as_index=False)["contribution"].mean()
    write(folder, f"{OUT}/dla/dla_top_components.csv", top)
    attention = {"scenario": [s for s, _ in PROMPTS]}
    for model, size in (("Deontological", 3), ("Utilitarian", 2)):
        for kind, scale in (("action", 0), ("opponent", 0.001), ("payoff", 0.002)):
            attention[f"{model}_{kind}_attn"] = np.full(15, size * scale)
    write(folder, f"{OUT}/attention_analysis/attention_comparison_De_vs_Ut.csv", attention)
    write_weights(folder, random)
    return courses, full


def write_weights(folder, random):
    kinds = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", *[f"self_attn.{k}_proj" for k in "qkvo"]]
    rows = []
    for model in TRAINED:
        for layer in range(26):
            for kind in kinds:  # MLPs grow with depth, to layer 20
                norm = 1 + layer - 10 * max(layer - 20, 0) if kind.startswith("mlp") else random.random()
                rows.append({"model_id": model, "layer": layer, "module_type": kind, "frobenius_norm": norm})
    write(folder, f"{OUT}/weight_analysis/weight_norms_all_models.csv", rows)
    about = {"model_id": TRAINED, "mean_norm": [1.0, 2.0, 3.0, 4.0], "l2_mlp_percentile": [10.0, 20.0, 30.0, 40.0]}
    write(folder, f"{OUT}/weight_analysis/weight_norms_comparison.csv", about)
    cosines = pd.DataFrame(np.eye(4), index=list("abcd"), columns=list("abcd"))
    cosines.iloc[0, 1:], cosines.iloc[1, 2:], cosines.iloc[2, 3:] = [0.5, 0.6, 0.7], [0.8, 0.9], [0.4]
    write(folder, f"{OUT}/weight_analysis/adapter_similarity_cosine.csv", cosines, index=True)


def write_patches(folder, random):
    made = {}
    for pair in PAIRS:
        source, target = pair.split("_to_")
        changes, rows = by_prompt(random, 52), []
        for scenario, variant in PROMPTS:
            for name in HEADS + MLPS:
                change = float(changes[scenario, variant][SITES.index(re.sub(r"H\d+", "_ATTN", name))])
                change -= 0.5 * (name == "L7H1" and variant == 2)  # one head that is not its whole layer
                about = {"source_model": source, "target_model": target, "component": name, "scenario": scenario}
                unpatched = -2.0 - 0.25 * source_of(variant)
                delta = {"baseline_delta": unpatched, "patched_delta": change + unpatched, "delta_change": change}
                rows.append(about | delta | {"action_flipped": change + unpatched > 0})
        made[pair] = pd.DataFrame(rows)
        write(folder, f"{OUT}/patching/patch_results_{pair}.csv", made[pair])
        circuits = {"scenario": [s for s, _ in PROMPTS], "variant": [v for _, v in PROMPTS]}
        sizes = [4 if pair == PAIRS[1] and place == (SCENARIOS[3], 2) else 10 for place in PROMPTS]
        circuits["minimal_circuit"] = [json.dumps(HEADS[:size]) for size in sizes]
        write(folder, f"{OUT}/patching/circuits_{pair}.csv", circuits | {"circuit_size": sizes})
    return made


def write_sizes(folder, random):
    made = {}
    for model in ("PT3_COREDe", "PT3_COREUt"):
        sizes = by_prompt(random, 52)
        records = []
        for scenario, variant in PROMPTS:
            about = {"model_id": model, "scenario": scenario, "variant": variant}
            values = dict(zip(SITES, map(float, 10 + sizes[scenario, variant]), strict=True))
            records.append(about | {"component_activations": values})
        table = np.array([[record["component_activations"][site] for site in SITES] for record in records])
        made[model] = table  # [prompt, component]
        if model == "PT3_COREUt":
            records = records[::-1]  # the order of prompts must not matter
        write_json(folder, f"{OUT}/component_interactions/component_activations_{model}.json", records)
        stored = {"correlation_matrix": np.corrcoef(table.T), "component_names": np.array(SITES)}
        np.savez(folder / f"{OUT}/component_interactions/correlation_matrix_{model}.npz", **stored)
    r = [np.corrcoef(table.T) for table in made.values()]
    pairs = [(SITES[i], SITES[j], r[0][i, j], r[1][i, j]) for i, j in combinations(range(52), 2)]
    names = ["component_1", "component_2", "Deontological_corr", "Utilitarian_corr"]
    compared = pd.DataFrame(pairs, columns=names)
    compared["abs_diff"] = (compared.iloc[:, 2] - compared.iloc[:, 3]).abs()
    write(folder, f"{OUT}/component_interactions/interaction_comparison_De_vs_Ut.csv", compared)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A complete made-up folder, what was written, and the table that reread makes of it."""
    folder, random = tmp_path_factory.mktemp("study"), np.random.default_rng(4)
    made = {"metric": write_metric(folder, random), "games": write_games(folder, random)}
    made["courses"], made["votes"] = write_inside(folder, random)
    made |= {"patches": write_patches(folder, random), "sizes": write_sizes(folder, random), "folder": folder}
    values = reread.compute(Clone(folder))
    return made | {"values": values, "table": reread.compare(values)}


@pytest.fixture
def value(made):
    """The recomputed number of an id."""
    return made["table"].set_index("id")["value"].__getitem__


def test_every_number_of_the_register_is_computed_and_no_other(made):
    assert sorted(made["values"]) == sorted(reread.numbers())
    assert made["table"]["value"].notna().all()


def test_behaviour_by_brute_force(made, value):
    metric = made["metric"]
    for model, name in NAMES.items():
        own = metric[metric["model_id"] == model]
        cells = [own[own["scenario"] == scenario]["seq_p_action2"].mean() for scenario in SCENARIOS]
        assert value(f"p_{name}") == pytest.approx(np.mean(cells))
        assert value(f"p_{name}_DD_trapped") == pytest.approx(cells[-1])
        assert value(f"final_{name}") == pytest.approx(own["final_delta"].mean())
    assert [value("copies"), value("distinct_prompts"), value("distinct_texts")] == [25, 10, 10]
    mass = np.exp(-2) + np.exp(metric[metric["model_id"] == "base"]["seq_logp_action2"])
    assert [value("legal_mass_low"), value("legal_mass_high")] == pytest.approx([mass.min(), mass.max()])
    assert value("stabilization") == 21 and value("stabilization_share") == pytest.approx(1 / 3)
    assert value("agree") == (metric[metric["model_id"] != "base"]["seq_p_action2"] < 0.5).sum()
    assert [value("sampled_hybrid"), value("separation_reported")] == [0.25, 0.25]


def test_games_by_brute_force(made, value):
    games = made["games"]
    for model in TRAINED:
        ipd = games[model, "IPD"]
        after_d = [move == "D" for move, shown in zip(ipd["move"], ipd["shown"], strict=True) if shown == "D"]
        assert value(f"d_{NAMES[model]}_after_d") == pytest.approx(np.mean(after_d))
        for game, largest in GAMES.items():
            short = largest - games[model, game]["rewards_Ut (after)"].mean()
            assert value(f"ut_regret_{NAMES[model]}_{game}") == pytest.approx(short / (largest + 6))
        assert value(f"d_{NAMES[model]}_explicit") == 1
        other = games[model, "other"]
        defects = other["response (after) - moral"] == "action2\n"
        for reading, column in (("displayed", "query_morality"), ("concurrent", other.columns[-1])):
            after_c = other[column].str.contains("action1")
            assert value(f"{reading}_{NAMES[model]}_c") == pytest.approx(defects[after_c].mean())
    alike = sum((games["PT3_COREDe", g]["move"] == games["PT3_COREUt", g]["move"]).sum() for g in GAMES)
    assert value("same_choices") == alike
    illegal = [(games["PT2_COREDe", game]["base"] == "illegal").mean() for game in GAMES]
    assert [value("illegal_base_low"), value("illegal_base_high")] == [min(illegal), max(illegal)]


def test_the_inside_by_brute_force(made, value):
    courses, votes = made["courses"], made["votes"]
    assert value("lens_described") == 1
    assert value("lens_gap_22") == pytest.approx(max(abs(courses[:, 1, 22] - courses[:, 2, 22])))
    assert value("dla_equal_heads") == 5 * 15 * 26 - 5 * 5  # L3H7 differs on variant 2 of five scenarios
    de = votes[votes["model"] == "PT3_COREDe"]["contribution"].to_numpy()
    ut = votes[votes["model"] == "PT3_COREUt"]["contribution"].to_numpy()
    cosine = (de * ut).sum() / np.sqrt((de**2).sum() * (ut**2).sum())
    assert value("dla_distance_morals") == pytest.approx(1 - cosine)
    means = votes.groupby(["model", "component"])["contribution"].mean()
    change = means["PT3_COREDe"] - means["PT2_COREDe"]
    assert value("dla_change_deontological") == pytest.approx(change[change.abs().idxmax()])
    assert value("dla_same_two") == 4 and value("dla_sum_due") == 1.5
    assert value("attention_payoff_ratio") == pytest.approx(0.5)
    assert value("attention_alike") == pytest.approx(1 - (0.001 + 0.002) / 3)
    assert [value("norm_peak_low"), value("l8_l9_more")] == [20, 4]
    lower = sum(1 + layer - 10 * max(layer - 20, 0) <= 3 for layer in range(26))
    assert value("l2_percentile_again_hybrid") == pytest.approx(100 * lower / 26)
    assert [value("adapter_cosine_low"), value("adapter_cosine_high")] == [0.4, 0.9]


def test_patches_by_brute_force(made, value):
    tables = made["patches"]
    assert value("patch_rows") == 4 * 234 * 15
    assert value("patch_flips") == sum((table["patched_delta"] > 0).sum() for table in tables.values()) > 0
    # eight heads and copied prompts are one intervention; L7H1 is one of its own on variant 2
    assert value("patch_distinct") == 4 * (10 * 52 + 5)
    assert value("patch_equal_heads") == 4 * (15 * 26 - 5)
    de_ut, ut_de = tables[PAIRS[2]], tables[PAIRS[3]]
    there, back = (table.groupby("component")["delta_change"].mean() for table in (de_ut, ut_de))
    assert value("opposite") == pytest.approx(np.mean([there[name] * back[name] < 0 for name in HEADS + MLPS]))
    assert value("asymmetric") == pytest.approx(np.mean([abs(there[n] - back[n]) > 0.01 for n in HEADS + MLPS]))
    assert value("mean_strategic_de") == pytest.approx(tables[PAIRS[0]]["delta_change"].mean())
    assert value("max_ut_de") == pytest.approx(ut_de["delta_change"].abs().max())
    sizes = de_ut.assign(size=de_ut["delta_change"].abs()).groupby("component")["size"].mean()
    in_heads = [sizes[HEADS[8 * layer : 8 * layer + 8]].mean() for layer in range(26)]
    assert value("leading_de_ut") == pytest.approx(max([*sizes[MLPS], *in_heads]))
    assert [value("circuits"), value("circuit_flips"), value("circuit_size")] == [60, 1, 4]
    note = made["table"].set_index("id").loc["circuit_flips", "note"]
    assert note == f"strategic to utilitarian, {SCENARIOS[3]} v2"


def test_correlations_by_brute_force(made, value):
    de, ut = made["sizes"].values()
    r = [np.corrcoef(table.T) for table in (de, ut)]
    gap = {(SITES[i], SITES[j]): abs(r[0][i, j] - r[1][i, j]) for i, j in combinations(range(52), 2)}
    for threshold in (3, 5, 7):
        count = sum(size > threshold / 10 for size in gap.values())
        assert value(f"pairs_0{threshold}") == value(f"stored_pairs_0{threshold}") == count
    ranked = sorted(gap, key=gap.get, reverse=True)
    assert value("l2_l9_rank") == ranked.index(("L2_MLP", "L9_MLP")) + 1
    assert value("matrix_error") < 1e-12
    strength = [np.mean([size for pair, size in gap.items() if site in pair]) for site in SITES]
    means = []
    for table in (made["patches"][PAIRS[2]], made["patches"][PAIRS[3]]):
        site = table["component"].str.replace(r"H\d+", "_ATTN", regex=True)
        means.append(table.groupby(site)["delta_change"].mean()[SITES])
    assert value("pathway_r") == pytest.approx(np.corrcoef(strength, abs(means[0] - means[1]))[0, 1])
    # De and Ut are unrelated here, so a count like the observed one is what swapped models give
    assert value("swapped_null_low") <= value("swapped_null") <= value("swapped_null_high")
    assert value("swapped_p") > 0.01 and value("contrasts_p") > 0.01


def test_an_incomplete_folder_gives_what_it_can_and_names_the_rest(made, tmp_path):
    folder = tmp_path / "part"
    for name in ("patching/patch_results_" + PAIRS[3] + ".csv", "logit_lens/decision_statistics_by_variant.csv"):
        (folder / OUT / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made["folder"] / OUT / name, folder / OUT / name)
    whole, part = made["table"].set_index("id"), reread.reread(folder).set_index("id")
    # the means by scenario follow from the file by variant
    for name in ("p_base", "p_hybrid_CC_continue", "copies", "mean_ut_de"):
        assert part.loc[name, "value"] == pytest.approx(whole.loc[name, "value"])
    assert part.loc["patch_rows", "value"] == 3510 and "1 of 4 files" in part.loc["patch_rows", "note"]
    assert part.loc["patch_rows", "agrees"] == ""
    text = reread.report(part.reset_index(), folder)
    assert "not in the folder: dla/dla_full_results.csv, which decides dla_distance_morals" in text
    assert f"{part['value'].notna().sum()} of {len(part)} numbers recomputed" in text


DAMAGES = [
    ("patching/patch_results_" + PAIRS[0] + ".csv", lambda text: text[: len(text) // 2], "rows|number"),
    (
        "patching/patch_results_" + PAIRS[0] + ".csv",
        lambda text: text.replace("delta_change", "change", 1),
        "lacks the col",
    ),
    ("patching/patch_results_" + PAIRS[0] + ".csv", lambda text: text.replace("L3H4,", "L3H9,"), "component"),
    ("patching/patch_results_" + PAIRS[0] + ".csv", lambda text: text.replace("False", "True", 1), "action_flipped"),
    ("patching/circuits_" + PAIRS[0] + ".csv", lambda text: text.replace('"[', '"', 1), "JSON"),
    ("logit_lens/trajectories.json", lambda text: text[:-9], "not JSON"),
    ("logit_lens/trajectories.json", lambda text: text.replace("PT2_COREDe", "PT2"), "5 scenarios"),
    ("logit_lens/decision_statistics_by_variant.csv", lambda text: text.replace(",base,", ",basis,"), "model_id"),
    ("logit_lens/decision_statistics_by_variant.csv", lambda text: "version https://git-lfs.github.com\n", "Git LFS"),
    (
        "dla/dla_top_components.csv",
        lambda text: re.sub(r"(L8_MLP,)[^\n]+", r"\1", text, count=1),
        "contribution holds ''",
    ),
    ("dla/dla_top_components.csv", lambda text: "", "not a table"),
    (
        "component_interactions/component_activations_PT3_COREDe.json",
        lambda text: text.replace("L9_", "L99_"),
        "component",
    ),
    (
        "component_interactions/component_activations_PT3_COREDe.json",
        lambda text: text.replace("CC_continue", "CC_began"),
        "scenario and variant",
    ),
    (
        "component_interactions/component_activations_PT3_COREUt.json",
        lambda text: re.sub(r"(_ATTN\": )[\d.]+", r"\1Infinity", text),
        "finite numbers",
    ),
    (
        "component_interactions/component_activations_PT3_COREUt.json",
        lambda text: re.sub(r"((_ATTN|_MLP)\": )[\d.]+", r"\g<1>7.0", text),
        "no component varies",
    ),
    ("patching/patch_results_" + PAIRS[2] + ".csv", lambda text: reordered(text), "study's order"),
    ("logit_lens/decision_statistics_by_variant.csv", lambda text: text.replace(",base,", ",,", 1), "in: ''"),
    ("logit_lens/decision_statistics.csv", lambda text: first_is_second(text), "twice"),
    ("component_interactions/interaction_comparison_De_vs_Ut.csv", lambda text: first_is_second(text), "twice"),
    ("weight_analysis/adapter_similarity_cosine.csv", lambda text: first_is_second(text), "same order"),
    ("dla/dla_full_results.csv", lambda text: text.replace(",1.75,L0H0,", ",1.5,L0H0,", 1), "within a prompt"),
    ("weight_analysis/adapter_similarity_cosine.csv", lambda text: text.partition("\n")[2], "rows"),
]


def first_is_second(text):
    head, _, second, *rows = text.splitlines(keepends=True)
    return "".join([head, second, second, *rows])


def reordered(text):
    """The first prompt's answer without a patch is exchanged with the third's, for one component alone."""
    head, *rows = text.splitlines(keepends=True)
    own = [k for k, row in enumerate(rows) if ",L5H0,CC_continue," in row]
    rows[own[0]], rows[own[2]] = rows[own[2]], rows[own[0]]
    return "".join([head, *rows])


@pytest.mark.parametrize("name, damage, said", DAMAGES)
def test_a_changed_file_is_refused_by_name(made, tmp_path, name, damage, said):
    file = tmp_path / OUT / name
    shutil.copytree((made["folder"] / OUT / name).parent, file.parent)
    file.write_text(damage((made["folder"] / OUT / name).read_text()))
    with pytest.raises(RewiredError, match=said) as error:
        reread.reread(tmp_path)
    assert str(file) in str(error.value) and "expected" in str(error.value) or "damaged" in str(error.value)


def test_a_damaged_archive_is_refused(made, tmp_path):
    folder = tmp_path / OUT / "component_interactions"
    shutil.copytree(made["folder"] / OUT / "component_interactions", folder)
    (folder / "correlation_matrix_PT3_COREUt.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(RewiredError, match="correlation_matrix_PT3_COREUt.npz"):
        reread.reread(tmp_path)


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    with pytest.raises(RewiredError, match="does not exist.*git clone"):
        reread.reread(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RewiredError, match="is a file"):
        reread.reread(tmp_path / "file")
    with pytest.raises(RewiredError, match="holds no file of the study"):
        reread.reread(tmp_path)
    (tmp_path / OUT).mkdir()
    with pytest.raises(RewiredError, match="none of the study's result files"):
        reread.reread(tmp_path)


def test_the_command_prints_and_writes_one_table(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made["folder"] / OUT / "weight_analysis", tmp_path / OUT / "weight_analysis")
    for out in (tmp_path / "table.csv", tmp_path / "table.parquet"):
        # one step too deep a folder will do as well
        monkeypatch.setattr(sys, "argv", ["rewired", "reread", str(tmp_path / OUT), "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        assert not end.value.code
        read = pd.read_csv if out.suffix == ".csv" else pd.read_parquet
        norms = read(out).set_index("id")["value"]
        assert norms["norm_hybrid"] == 4 and np.isnan(norms["p_base"])
        printed = capsys.readouterr().out
        assert re.search(r"mean norm of the adapter, hybrid +4 +0.0725  no", printed)
        assert re.search(r"These differ from the book: .*norm_hybrid", printed)
    monkeypatch.setattr(sys, "argv", ["rewired", "reread", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2 and "does not exist" in capsys.readouterr().err
    with pytest.raises(RewiredError, match="must end in"):
        reread.write(made["table"], tmp_path / "table.xlsx")


def test_agreement_is_by_the_digits_that_the_book_prints():
    about = {"value": -4.91, "name": "L20_MLP"}
    assert reread._agrees(-4.914, "L20_MLP", about) == "yes"
    assert reread._agrees(-4.916, "L20_MLP", about) == "no"
    assert reread._agrees(-4.914, "L21_MLP", about) == "no"
    assert reread._agrees(541.4, "", {"value": 541, "name": ""}) == "yes"
    assert reread._agrees(0.5, "", {"value": None, "name": ""}) == ""


def test_each_claim_has_an_answer_whose_numbers_are_there():
    listed = [yaml.safe_load(file.read_text()) for file in files.BOOKED]
    values = {name: about["value"] for part in listed for name, about in part["numbers"].items()}
    answers = {claim: answer for part in listed for claim, answer in part["claims"].items()}
    claims = yaml.safe_load((ROOT / "book" / "claims.yaml").read_text())["claims"]
    assert set(answers) == {claim["id"] for claim in claims}
    assert len(answers) == sum(len(part["claims"]) for part in listed), "two files answer one claim"
    for claim, answer in answers.items():
        assert set(answer) == {"says", "text"}, claim
        for name in re.findall(r"{(\w+)", answer["text"]):
            assert values[name] is not None, (claim, name)
        assert "{" not in answer["text"].format(**values)
