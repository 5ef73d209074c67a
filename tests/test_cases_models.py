"""Models, templates, labels and names that others met: the right number, or a paragraph that says why not."""

import json
import re
import shutil
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import others
import pytest
import tiny
import torch
import transformers
from chapters import ROOT
from copies import built, copy, ran

from rewired import decisions, games, models, profiles, prompts, store
from rewired.errors import RewiredError
from rewired.games import Turn, reward
from rewired.prompts import Labels, chat, scenario_set
from rewired.tracing import attention, attribution, capture, lens, patching
from rewired.train import reinforce

sys.path.insert(0, str(ROOT / "tools"))
import book

PROMPTS = scenario_set()[::20]


def measured(model, words, asked=PROMPTS):
    return decisions.measure(model.eval(), words, asked, 4)


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_label_tokens_are_those_after_the_chats_own(scheme):
    """The legal mass equals the product of the model's own probabilities of what an answer's text is made of."""
    words = others.metaspace(scheme)
    model, _ = others.untrained("llama", words)
    table = measured(model, words)
    for prompt, row in zip(PROMPTS, table.itertuples(), strict=True):
        context = chat(words, prompt)
        for label, logp in (("action1", row.logp_cooperate), ("action2", row.logp_defect)):
            whole = words(prompts.turn(words, prompt) + label, add_special_tokens=False)["input_ids"]
            assert whole[: len(context)] == context
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            own = sum(logits[k - 1, whole[k]].item() for k in range(len(context), len(whole)))
            assert logp == pytest.approx(own, abs=1e-4)
            assert words.decode(whole[len(context) :]).strip() == label
    if scheme == "first":
        alone = words("action1", add_special_tokens=False)["input_ids"]
        assert decisions.label_ids(words, "action1") != tuple(alone), "alone, a blank stands before it"


def test_sampled_answers_are_as_legal_as_the_metric_says():
    model, words = models.load_base(profiles.load("ci", {"model.path": str(others.folder("llama"))}))
    drawn = decisions.sample(model, words, PROMPTS, 200, seed=1)
    legal = drawn["move"].notna().mean()
    mass = measured(model, words)["legal_mass"].mean()  # of answers that go on after the label, too
    assert 0.9 < legal < mass + 0.02 and mass > 0.95


@pytest.mark.parametrize("end", ["Assistant: ", "Assistant:\n\n  "])
def test_a_label_that_merges_with_the_template_is_refused(end):
    words = others.byte_level("{% for m in messages %}{{ m.content }}\n{% endfor %}" + end)
    with pytest.raises(RewiredError, match="label 'action1' merges with the end of the chat template"):
        decisions.decision_step(words, ("action1", "action2"))
    model, _ = others.untrained("qwen2", words)
    with pytest.raises(RewiredError, match=r"prompts\.labels"):
        measured(model, words)


def test_digits_that_merge_and_labels_of_one_token():
    words = others.byte_level()
    assert len(decisions.label_ids(words, "12")) == 1
    model, _ = others.untrained("qwen2", words)
    for pair, common in ((("A", "B"), 0), (("action1", "action12"), None), (("move 1", "move 12"), None)):
        if common is None:
            with pytest.raises(RewiredError, match="one the beginning of the other"):
                Labels(*pair)
            continue
        step = decisions.decision_step(words, pair)
        assert len(step.prefix_ids) == common
        asked = scenario_set(pair)[::20]
        table = measured(model, words, asked)
        seen = lens.trajectories(model, words, asked)
        last = seen[seen["position"].eq("decision") & seen["depth"].eq(2)]
        assert last["delta"].to_numpy() == pytest.approx(table["delta"].to_numpy(), abs=1e-4)


@pytest.mark.parametrize("family", list(others.FAMILIES))
def test_a_chat_has_the_special_tokens_of_its_template_alone(family):
    """One beginning-of-sequence token where the template writes it, though the tokenizer would add another."""
    _, words = others.untrained(family)
    ids = chat(words, "Hello")
    assert ids.count(words.bos_token_id) == (1 if words.bos_token and "bos" in words.chat_template else 0)
    silent = {"enable_thinking": False} if family == "qwen3" else {}
    turn = [{"role": "user", "content": "Hello"}]
    assert ids == words.apply_chat_template(turn, add_generation_prompt=True, **silent)["input_ids"]


def test_a_template_that_can_think_is_told_not_to():
    assert prompts.turn(others.byte_level(others.THINKING), "Hello").endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("family", "token"),
    [("llama", "</s>"), ("qwen2", "<|im_end|>"), ("qwen3", "<|im_end|>"), ("gemma3", "<end_of_turn>")],
)
def test_the_end_of_a_turn_is_read_off_the_template(family, token):
    _, words = others.untrained(family)
    assert words.convert_ids_to_tokens(decisions.end_of_turn(words)) == token


@pytest.mark.parametrize("family", list(others.FAMILIES))
def test_the_inside_is_read_as_the_model_computes(family):
    """At the last depth the lens is the model's own difference of logits."""
    model, words = others.untrained(family)
    step = decisions.decision_step(words, PROMPTS[0].labels)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[*chat(words, PROMPTS[0]), *step.prefix_ids]])).logits[0, -1]
    own = (logits[step.defect_id] - logits[step.cooperate_id]).item()
    seen = lens.trajectories(model, words, PROMPTS[:1])
    assert seen[seen["position"].eq("decision")]["delta"].iloc[-1] == pytest.approx(own, abs=1e-5)
    assert capture.anatomy(model).cap is None


@pytest.mark.parametrize("family", list(others.FAMILIES))
def test_what_chapters_measure_inside_agrees_with_the_decision(family):
    """Shares add up to delta, patterns to 1, a patch of everything is the source, and blocking nothing changes nothing:
    with norms of queries and keys, grouped heads, biases and windows too."""
    model, words = others.untrained(family)
    asked = PROMPTS[:4]
    due = measured(model, words, asked)["delta"].to_numpy()
    shares, _ = attribution.contributions(model, words, asked)
    sums = shares.groupby("prompt_id", sort=False)["contribution"].sum()
    assert sums.loc[[prompt.id for prompt in asked]].to_numpy() == pytest.approx(due, abs=1e-4)
    pattern = attention.pattern(model, words, asked)
    assert pattern.values.nansum(2).numpy() == pytest.approx(1, abs=1e-5)
    plan = attention.blocks(words, asked, {"other": ["other_move"]})
    for queries in attention.QUERIES:
        blocked = attention.knockout(model, words, asked, plan, queries=queries)
        assert blocked["delta_before"].to_numpy() == pytest.approx(due, abs=1e-4)
        assert blocked["effect"].abs().max() > 1e-4
    source = patching.record(model, words, asked)
    torch.manual_seed(1)
    for block in model.model.layers:
        block.mlp.down_proj.weight.data += 0.1 * torch.randn_like(block.mlp.down_proj.weight)
    sweep = patching.Sweep(model, source, patching.record(model, words, asked), mode="output")
    patches, _ = patching.patch_each(sweep, share=0.1)  # with its controls, which recompute by whole passes
    assert patches["effect"].abs().max() > 1e-3
    everything = patching.patch_together(sweep, {"all": [c.name for c in patching.components(model)]})
    assert everything["delta_patched"].to_numpy() == pytest.approx(due, abs=1e-4)


# --- what a model may lack -------------------------------------------------------------------------------------------


def kept(folder, model, words):
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return profiles.load("ci", {"model.path": str(folder), "training.variants": ["utilitarian"]})


def test_a_model_without_a_chat_template_is_refused_by_name(tmp_path):
    model, words = others.untrained("llama")
    words.chat_template = None
    p = kept(tmp_path / "infinite", model, words)  # "inf" in a name is no divergence
    for load in (models.load_base, lambda p: reinforce.train(p, "utilitarian", 1, tmp_path / "run")):
        with pytest.raises(RewiredError, match=r"infinite has no chat template.*chat_template\.jinja"):
            load(p)
    assert not (tmp_path / "run").exists()


def few_prompts(monkeypatch):
    monkeypatch.setattr(reinforce, "scenario_set", lambda labels: scenario_set(labels)[::6])
    monkeypatch.setattr(reinforce, "held_out_set", lambda labels: prompts.held_out_set(labels)[::8])


LITTLE = {"training.episodes": 4, "training.variants": ["utilitarian"]}


def test_a_tokenizer_without_a_padding_token_trains(tmp_path, monkeypatch):
    few_prompts(monkeypatch)
    p = profiles.load("ci", {"model.path": str(others.folder("llama")), **LITTLE})
    assert models.load_base(p)[1].pad_token is None
    out = reinforce.train(p, "utilitarian", 1, tmp_path / "run")
    assert np.isfinite(store.read_table(out / "decisions.parquet", p)["delta"]).all()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError])
def test_an_errors_text_is_not_its_cause(tmp_path, monkeypatch, kind):
    """`inf` and `nan` in an error's text do not make a divergence of it."""
    few_prompts(monkeypatch)

    def fall(*_, **__):
        raise kind("Could not infer dtype: inf or nan expected")

    p = profiles.load("ci", {"model.path": str(tiny.legal_base()), **LITTLE})
    monkeypatch.setattr(reinforce.LiveGames, "play", fall)
    with pytest.raises(kind, match="Could not infer"):
        reinforce.train(p, "utilitarian", 1, tmp_path / "run")


def test_a_model_without_a_cache_is_refused():
    words = others.metaspace()
    config = transformers.MambaConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(RewiredError, match="MambaForCausalLM keeps no keys and values"):
        measured(transformers.MambaForCausalLM(config), words)


# --- rewards ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """Registers a reward for one test."""
    monkeypatch.setattr(games, "REWARDS", dict(games.REWARDS))
    return lambda name, function: reward(name, title=name)(function)


NOTHING = [float("nan"), float("inf"), -float("inf"), None, "3", 1 + 2j, np.array([1.0, 2.0]), torch.ones(2)]
HUGE = [10**400, -(10**5000), Fraction(10**400), Decimal("1e999"), np.longdouble("1e400")]


@pytest.mark.parametrize("nothing", [*NOTHING, *HUGE], ids=lambda value: type(value).__name__)
def test_a_reward_that_is_no_number_is_named_with_its_turn(registered, tmp_path, nothing):
    registered("odd", lambda turn: nothing if (turn.state, turn.own) == ("DD", "D") else 1.0)
    with pytest.raises(RewiredError, match=r"reward 'odd' gives .* for Turn\(state='DD', own='D'"):
        games.get_reward("odd")(Turn("DD", "D", "D", (1, 1)))
    p = profiles.load("ci", {"model.path": str(tmp_path / "not even looked for"), "training.variants": ["odd"]})
    with pytest.raises(RewiredError, match="reward 'odd' gives"):
        reinforce.train(p, "odd", 1, tmp_path / "run")


def test_a_reward_may_have_digits_in_its_name_and_be_patched(registered, tmp_path):
    registered("care2", lambda turn: min(turn.payoffs))
    pairs = {"training.variants": ["care2", "strategic"], "patching.pairs": [["care2", "strategic"]]}
    book.check(profiles.load("ci", pairs))
    for name in ("2care", "yes", "care/2", "care 2"):
        registered(name, lambda turn: 0.0)
        with pytest.raises(RewiredError, match=f"reward '{name}' names folders"):
            book.check(profiles.load("ci", {**pairs, "training.variants": ["care2", "strategic", name]}))


@pytest.mark.parametrize(
    ("matrix", "states"), [((5, 2, 9, 4), ("CC", "CD")), ((7, 1, 8, 5), ("DC", "DD")), ((3, 0, 4, 1), ())]
)
def test_the_best_move_is_that_of_a_prompts_own_matrix(matrix, states):
    """Where the points of both are more after a defection, the utilitarian reward asks for it."""
    best = games.best_moves(games.get_reward("utilitarian"), games.dilemma(*matrix))
    assert {state for state, move in best.items() if move == "D"} == set(states)


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [(" A", " B"), ("A", "B "), ("A\n", "B"), ("\u00a0A", "B")])
def test_labels_with_white_space_around_them_are_refused(pair):
    with pytest.raises(RewiredError, match="begin or end with white space"):
        Labels(*pair)


@pytest.mark.parametrize("pair", [("$1", "$2"), ("a rather long answer", "another one that is long")])
def test_labels_that_can_never_be_paid_are_refused_before_training(tmp_path, monkeypatch, pair):
    few_prompts(monkeypatch)
    monkeypatch.setattr(reinforce, "learn", lambda *_: pytest.fail("it began to learn"))
    p = profiles.load("ci", {"prompts.labels": list(pair), **LITTLE})
    with pytest.raises(RewiredError, match=r"would be (paid|legal).*prompts\.labels"):
        reinforce.train(p, "utilitarian", 1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_long_labels_are_sampled_whole():
    _, words = others.untrained("qwen2")
    model = others.untrained("qwen2")[0].eval()
    pair = ("a rather long answer, word by word", "another one, which is longer still")
    [prompt] = scenario_set(pair)[:1]
    longest = max(len(decisions.label_ids(words, label)) for label in pair)
    assert longest > 8
    said = decisions.sample(model, words, [prompt], 30, seed=0)["answer"]
    assert max(len(words(answer)["input_ids"]) for answer in said) > 8, "no answer is cut at eight tokens"


# --- names and folders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of what the workflow reads, in which notebooks are not executed."""
    folder = copy(tmp_path_factory.mktemp("re pository"))
    site = 'from pathlib import Path\nPath("_build/html").mkdir(parents=True, exist_ok=True)\n'
    (folder / "tools" / "build_site.py").write_text(site + 'Path("_build/html/.built").touch()\n')
    games_file = folder / "lib" / "rewired" / "games.py"
    care = '\n\n@reward("care2", title="Care")\ndef care2(turn):\n    return min(turn.payoffs)\n'
    games_file.write_text(games_file.read_text() + care)
    return folder


@pytest.fixture(scope="module")
def elsewhere(repository, tmp_path_factory):
    """(results of `config/2025_01.yaml` in a folder of its own whose name has a blank, what was run, how)."""
    folder = tmp_path_factory.mktemp("else where")
    text = "extends: ci\ntraining:\n  variants: [strategic, care2]\npatching:\n  pairs: [[care2, strategic]]\n"
    (repository / "config" / "2025_01.yaml").write_text(text)
    asked = {"REWIRED_ROOT": str(folder), "REWIRED_SET": 'prompts.labels=["😀","turn back"]'}
    made = built(repository, "--profile", "2025_01", **asked)
    return folder / "results" / "2025_01", made, asked


@pytest.mark.all
def test_results_lie_where_one_place_says(repository, elsewhere):
    """All jobs and the workflow agree about REWIRED_ROOT; and the second build is idle."""
    results, _, asked = elsewhere
    assert (results / "runs" / "strategic-1" / "run.json").is_file()
    assert (results / "notebooks" / "study" / "prompts.ipynb").is_file()
    assert not (repository / "results").exists()
    lines = (repository / "ran.txt").read_text()
    assert built(repository, "--profile", "2025_01", **asked) == set()
    (repository / "ran.txt").write_text(lines)


def test_a_profile_named_like_a_number_stays_a_name_for_every_job(repository, elsewhere):
    lines = ran(repository)
    assert lines and all('profile="2025_01"' in line for line in lines)


def test_a_pair_of_a_reward_with_a_digit_is_patched(elsewhere):
    results, made, _ = elsewhere
    assert {"strategic-1", "care2-1", "care2-1-to-strategic-1"} <= made
    assert (results / "pairs" / "care2-1-to-strategic-1" / "patches.parquet").is_file()


def test_jobs_are_given_the_emoji_that_were_typed(repository, elsewhere):
    for line in ran(repository):
        text = re.search(r"overrides=(.*?\])(?: \w+=|$)", line)[1]
        (override,) = profiles.assignment("", f"overrides={text}", "")[1]
        assert profiles.load("pocket", [override]).prompts.labels == ("😀", "turn back")


@pytest.mark.parametrize("name", ["2025_01", "007", "1.5", "on", "2025-01-01"])
def test_a_name_that_was_read_as_a_number_is_found_again(tmp_path, monkeypatch, name):
    """papermill -p profile 2025_01 hands a notebook the number 202501."""
    (tmp_path / "config").mkdir()
    shutil.copy(ROOT / "config" / "pocket.yaml", tmp_path / "config" / f"{name}.yaml")
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    read = profiles.assignment("parameter", f"profile={name}", "")[1]
    assert not isinstance(read, str) and profiles.load(read).name == profiles.load(name).name == name


SETS = {
    'prompts.labels=["turn back","stay"]': {"labels": ("turn back", "stay")},
    'prompts.labels=["😀","🙃 it\'s"] training.seeds=[1, 2]': {"labels": ("😀", "🙃 it's"), "seeds": (1, 2)},
    "prompts.labels=['1', '2']   training.kl=0.3": {"labels": ("1", "2"), "kl": 0.3},
    'prompts.labels=["$1","a=b c=d"]': {"labels": ("$1", "a=b c=d")},
    'prompts.labels=["say \\"x\\" y=1","z"]': {"labels": ('say "x" y=1', "z")},
    "model.path=/my models/it's here training.kl=0.3": {"path": "/my models/it's here", "kl": 0.3},
}


@pytest.mark.parametrize("text", SETS)
def test_set_reaches_the_profile_as_it_would_stand_in_a_file(tmp_path, text):
    """Typed after `make book SET=`: through make, the wrapper, Snakemake's option and a job's parameter."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '%s' \"$REWIRED_SET\" > {tmp_path}/given\n")
    python.chmod(0o755)
    subprocess.run(["make", "book", f"BIN={tmp_path}", f"SET={text}"], cwd=ROOT, check=True, capture_output=True)
    overrides = book.separated((tmp_path / "given").read_text())
    # Snakemake and the job read it as YAML
    _, overrides = profiles.assignment("", f"overrides={json.dumps(overrides, ensure_ascii=False)}", "")
    p = profiles.load("pocket", overrides)
    found = {"labels": p.prompts.labels, "seeds": p.training.seeds, "kl": p.training.kl, "path": p.model.path}
    assert {key: found[key] for key in SETS[text]} == SETS[text]
