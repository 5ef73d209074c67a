"""The lab's engine in headless Chromium against the library: a tiny random Gemma-2 with the shipped tokenizer.

Both ways of multiplying are tried, WebAssembly and plain JavaScript, from a file and from a server."""

import base64
import json
import random
import re
import shutil
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from rewired import lab, models, profiles
from rewired.decisions import decision_step, measure
from rewired.errors import RewiredError
from rewired.games import STATES, dilemma
from rewired.prompts import WORDINGS, Arrangement, Labels, build, chat, scenario_set, study_set
from rewired.tracing import lens as logit_lens
from rewired.tracing import patching
from rewired.tracing.recording import KINDS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import browser_check  # noqa: E402
import build_site  # noqa: E402
import export_lab  # noqa: E402

ENGINE = ROOT / "book" / "_static" / "lab"
SCRIPTS = ("kernel", "tokenizer", "prompts", "model", "patching", "lab")
MODULES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
PROMPTS = [scenario_set()[k] for k in (2, 19, 40)]  # a table, sentences with temptation, a story
HOW = list(product(("input", "output"), ("all", "decision")))
SETS = [["L0H1", "L1_MLP", "L2H3"], ["L0_ATTN", "L0H2", "L1_RESID"], ["L2H0", "L2H1", "L2_MLP"], []]
browser = pytest.mark.skipif(not any(map(shutil.which, browser_check.PROGRAMS)), reason="no Chromium")


class Page:
    """A tab that has the engine and the models of `made`."""

    def __init__(self, address: str, scratch: str):
        self.tab = browser_check.Browser(next(filter(None, map(shutil.which, browser_check.PROGRAMS))), scratch)
        self.tab.socket.settimeout(300)
        self.tab.call("Page.navigate", url=address)
        while not self.run("return document.title === 'lab' && document.readyState === 'complete'"):
            time.sleep(0.1)

    def run(self, code: str, **given):
        """What an async function of this body returns; ``given`` are its constants."""
        names = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
        call = {"expression": f"(async () => {{ {names} {code} }})()", "awaitPromise": True, "returnByValue": True}
        answer = self.tab.call("Runtime.evaluate", **call)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"].get("description")
        return answer["result"].get("value")


def a_run(variants: models.Variants, variant: str, seed: int) -> None:
    """A run with a random adapter, which it kept after 16 episodes as well."""
    torch.manual_seed(seed)
    base, _ = models.load_base(variants.profile)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=12, target_modules=MODULES))
    for name, value in tuned.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value) * 0.25
    adapter = variants.run_dir(variant, 1) / "adapter"
    tuned.save_pretrained(adapter)
    shutil.copytree(adapter, adapter.parent / "checkpoints" / models.checkpoint_name(16))
    content = models.file_hash(adapter / models.ADAPTER)
    about = {"base": variants.fingerprint, "adapter": content, "checkpoints": {models.checkpoint_name(16): content}}
    (adapter.parent / "run.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of a page with engine and models, the models, {(mode, positions): a sweep of PROMPTS})"""
    folder = tmp_path_factory.mktemp("lab")
    shape = {"vocab_size": 1181, "num_hidden_layers": 3, "sliding_window": 48, "tie_word_embeddings": True}
    tiny.save(folder / "tiny", **shape)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "models" / "pocket" / file, folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWIRED_ROOT", str(folder / "root"))
        chosen = {"model.path": str(folder / "tiny"), "training.variants": ["strategic", "utilitarian"]}
        variants = models.Variants(profiles.load("pocket", chosen | {"patching.pairs": [["strategic", "utilitarian"]]}))
        for variant, seed in (("strategic", 4), ("utilitarian", 1)):  # one defects throughout, the other cooperates
            a_run(variants, variant, seed)
        lab.export(variants, folder / "data", {"golden": []})
        recordings = []
        for variant in ("strategic", "utilitarian"):
            with variants.variant(variant) as model:
                recordings.append(patching.record(model, variants.tokenizer, PROMPTS))
        with variants.variant("utilitarian") as model:
            sweeps = {}
            for mode, positions in HOW:
                sweeps[mode, positions] = patching.Sweep(model, *recordings, positions=positions, mode=mode)
            yield folder, variants, sweeps


@pytest.fixture(scope="module", params=["WebAssembly from a server", "JavaScript from a file"])
def page(request, made):
    """The engine in a tab, both models and the recordings of the prompts loaded."""
    folder = made[0]
    shutil.copytree(ENGINE, folder / "engine", dirs_exist_ok=True)
    scripts = "".join(f'<script src="engine/{name}.js"></script>' for name in SCRIPTS)
    (folder / "index.html").write_text(f"<!doctype html><meta charset=utf-8><title>lab</title>{scripts}")
    wasm = request.param.startswith("WebAssembly")
    with browser_check.served(folder) as root, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tab = Page((root if wasm else f"file://{folder}/") + "index.html", scratch)
        opened = tab.run(
            "window.L = await rewired.lab.open('data/', { wasm });"
            "const [s, t] = [await L.model('strategic-1'), await L.model('utilitarian-1')];"
            "window.rows = specs.map((spec) => L.build(spec)).map(({ text, labels }) => L.encode(text, labels));"
            "window.pairs = rows.map((row) => [s.record(row), t.record(row)]);"
            "return L.usesWasm;",
            wasm=wasm, specs=[export_lab.spec(prompt) for prompt in PROMPTS],
        )  # fmt: skip
        assert opened == wasm
        yield tab
        tab.tab.close()


# --- words -----------------------------------------------------------------------------------------------------------


@browser
def test_words_become_the_tokens_of_the_library(made, page):
    """Prompts, and texts of white space, digits, marks and letters from all over Unicode."""
    draw, tokenizer = random.Random(0), made[1].tokenizer
    pieces = [
        " ",
        "\n",
        "\t",
        "\x85",
        "\ufeff",
        "\u2003",
        "\x1c",
        "12",
        " 7",
        "don't",
        "'re",
        "é",
        "ß",
        "日本",
        "😀",
        "½",
        "٣",
    ]
    pieces += ["action1", "<end_of_turn>", "<bos>", "|", ",", "...", "You", " game", "_", "\u0301", "\u200b", "ǅ"]
    texts = ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(300)]
    texts += [prompt.text for prompt in scenario_set()]
    rows = page.run("return texts.map((text) => L.tokenizer.encode(L.tokenizer.turn(text)))", texts=texts)
    for text, row in zip(texts, rows, strict=True):
        assert row == chat(tokenizer, text), repr(text)


@browser
def test_prompts_are_the_librarys(page):
    due, specs = [], []
    pairs = (("action1", "action2"), ("action2", "action1"), ("{own_move}", "$&"))
    for state, wording, matrix, labels, tempted, swaps in product(
        STATES, WORDINGS, ((3, 0, 4, 1), (5, 1, 6, 2)), pairs, (False, True), ((0, 0, 0, 0), (1, 0, 1, 1), (0, 1, 1, 0))
    ):
        arrangement = Arrangement(*map(bool, swaps))
        prompt = build(state, dilemma(*matrix), wording, labels, tempted, arrangement)
        due.append([prompt.text, [list(span) for span in prompt.spans]])
        specs.append(export_lab.spec(prompt) | {"temptation": tempted})
    told = page.run("return specs.map((spec) => L.build(spec)).map(({ text, spans }) => [text, spans])", specs=specs)
    assert told == due


@browser
def test_the_decision_step_is_the_librarys(made, page):
    pairs = [
        ("action1", "action2"),
        ("action2", "action1"),
        ("red", "green"),
        ("turn back", "stay"),
        ("A", "Q"),
        ("1", "2"),
    ]
    told = page.run(
        "return pairs.map((pair) => { try { return L.tokenizer.decisionStep(pair) } catch (p) { return p.message } })",
        pairs=pairs,
    )
    refused = 0
    for pair, answer in zip(pairs, told, strict=True):
        try:
            step = decision_step(made[1].tokenizer, Labels(*pair))
        except RewiredError as error:
            refused += 1
            assert "no single decision step" in answer and "no single decision step" in str(error)
        else:
            due = {"prefix": list(step.prefix_ids), "cooperate": step.cooperate_id, "defect": step.defect_id}
            assert answer == due
    assert 0 < refused < len(pairs)


# --- the model -------------------------------------------------------------------------------------------------------


@browser
def test_a_recording_decides_and_looks_as_the_model_does(made, page):
    _, variants, _ = made
    told = page.run(
        "return pairs.map(([recording]) => ({ delta: recording.delta, lens: [...recording.lens],"
        "p_defect: recording.p_defect, legal_mass: recording.legal_mass, raw: recording.delta_raw,"
        "looks: [0, 1, 2].map((layer) => [0, 3].map((head) => [...recording.attention(layer, head)])) }))"
    )
    with variants.variant("strategic") as model:
        table = measure(model, variants.tokenizer, PROMPTS, forms=False)
        curves = logit_lens.trajectories(model, variants.tokenizer, PROMPTS)
        ids = torch.tensor([chat(variants.tokenizer, PROMPTS[0]) + [*_prefix(variants)]])
        patterns = model(ids, output_attentions=True).attentions  # per layer [1, head, query, key]
    curves = curves[curves["position"] == "decision"]
    for prompt, one, (_, due) in zip(PROMPTS, told, table.iterrows(), strict=True):
        assert one["lens"] == pytest.approx(curves[curves["prompt_id"] == prompt.id]["delta"].tolist(), abs=1e-4)
        assert one["delta"] == pytest.approx(due["delta"], abs=1e-4) and one["delta"] == one["lens"][-1]
        assert one["raw"] == pytest.approx(due["delta_raw"], abs=1e-4)
        assert one["p_defect"] == pytest.approx(due["p_defect"], abs=1e-5)
        assert one["legal_mass"] == pytest.approx(due["legal_mass"], rel=1e-3)
    for layer, heads in enumerate(told[0]["looks"]):
        for head, looks in zip((0, 3), heads, strict=True):
            assert looks == pytest.approx(patterns[layer][0, head, -1].tolist(), abs=1e-5)


def _prefix(variants: models.Variants) -> tuple[int, ...]:
    return decision_step(variants.tokenizer, PROMPTS[0].labels).prefix_ids


@browser
@pytest.mark.parametrize(("mode", "positions"), HOW)
def test_every_patch_is_the_librarys(made, page, mode, positions):
    """All heads, MLPs, attention layers and streams, and sets of them, on all prompts."""
    sweep = made[2][mode, positions]
    chosen = patching.components(sweep.parts, KINDS)
    sets = [*([component.name] for component in chosen), *SETS]
    due = sweep.together([patching.named(sweep.parts, members) for members in sets])  # [set, prompt]
    told = page.run(
        "return pairs.map((pair) => new rewired.Sweep(...pair, { mode, positions }))"
        ".map((sweep) => [L.components(['head', 'mlp', 'attn', 'resid']), sets.map((names) => sweep.together(names))])",
        sets=sets, mode=mode, positions=positions,
    )  # fmt: skip
    assert np.abs(due[:-1] - sweep.target.delta).max() > 0.5  # something happens
    for i, (names, outcomes) in enumerate(told):
        assert names == [component.name for component in chosen]
        gap = sweep.source.delta[i] - sweep.target.delta[i]
        for outcome, delta in zip(outcomes, due[:, i], strict=True):
            effect = delta - sweep.target.delta[i]
            assert outcome["delta"] == pytest.approx(delta, abs=1e-4)
            assert outcome["effect"] == pytest.approx(effect, abs=1e-4)
            assert outcome["recovered"] == pytest.approx(effect / gap, abs=1e-3)
            assert outcome["flip"] == ((outcome["delta"] > 0) != (sweep.target.delta[i] > 0))


@browser
def test_controls_are_met(page):
    """Its own activations leave the target as it was, to the bit; the source's last stream gives the source's decision;
    a random direction is as long as the difference."""
    told = page.run(
        "return pairs.map(([source, target]) => { const sweep = new rewired.Sweep(source, target); const own = [];"
        "for (const mode of ['input', 'output']) for (const positions of ['all', 'decision'])"
        "  for (const name of L.components(['head', 'mlp', 'attn', 'resid']))"
        "    own.push(new rewired.Sweep(source, target, { mode, positions }).control('self', [name]).effect);"
        "const part = rewired.component('L1H2', L.config), random = sweep.randomPatch(part, 1);"
        "const length = (a, b, row) => { let sum = 0; for (let i = 0; i < random.width; i++)"
        "  sum += (a[row * random.step + random.place + i] - b[row * random.step + random.place + i]) ** 2;"
        "  return Math.sqrt(sum) };"
        "return { own, end: sweep.together(['L2_RESID']).delta - source.delta,"
        "  draws: [1, 1, 2].map((seed) => sweep.control('random', ['L1H2'], seed).effect),"
        "  random: length(random.values, target.z[1], 5), due: length(source.z[1], target.z[1], 5) } })"
    )
    for one in told:
        assert set(one["own"]) == {0} and one["end"] == pytest.approx(0, abs=1e-9)
        assert one["random"] == pytest.approx(one["due"], rel=1e-5) and one["due"] > 0
        first, again, other = one["draws"]
        assert first == again != other


@browser
@pytest.mark.parametrize(("mode", "positions"), HOW)
def test_the_greedy_set_is_the_librarys_part_for_part(made, page, mode, positions):
    sweep = made[2][mode, positions]
    names = [component.name for component in patching.components(sweep.parts)]
    due = patching.greedy(sweep, names, limit=4)
    told = page.run(
        "const found = []; for (const pair of pairs)"
        "  found.push(await new rewired.Sweep(...pair, { mode, positions }).greedy(names, { limit: 4 })); return found",
        names=names, mode=mode, positions=positions,
    )  # fmt: skip
    assert due["prompt_id"].nunique() == len(PROMPTS)
    for prompt, steps in zip(PROMPTS, told, strict=True):
        expected = due[due["prompt_id"] == prompt.id]
        assert [step["component"] for step in steps] == expected["component"].tolist()
        assert [step["delta"] for step in steps] == pytest.approx(expected["delta_patched"].tolist(), abs=1e-4)
        assert [step["flip"] for step in steps] == expected["flip"].tolist()


@browser
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("await L.model('hybrid-1')", 'There is no model "hybrid-1"'),
        ("L.build({ matrix: [3, 0, 3, 1] })", "not a prisoner's dilemma"),
        ("L.build({ wording: 'poem' })", 'There is no wording "poem"'),
        ("L.build({ labels: ['act', 'action'] })", "cannot be told apart"),
        ("L.encode('many words '.repeat(400))", "600 at most"),
        ("new rewired.Sweep(...pairs[0]).together(['L3H0'])", 'no component "L3H0"'),
        ("new rewired.Sweep(pairs[0][0], pairs[1][1])", "not recorded on the same words"),
        ("await L.course('strategic-1')", "learnt-strategic-1.js of the lab's data is missing"),
    ],
)
def test_a_reader_is_told_what_is_wrong(page, code, words):
    told = page.run(
        f"try {{ {code}; return null }} catch (p) {{ return p instanceof rewired.Problem ? p.message : 'x' + p }}"
    )
    assert words in told


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_kernel_is_what_its_source_compiles_to():
    wasmtime = pytest.importorskip("wasmtime")
    source = (ENGINE / "kernel.js").read_text()
    kept = "".join(re.findall(r'"([A-Za-z0-9+/=]+)"', re.search(r"const BYTES =(.*?);", source, re.S).group(1)))
    assert base64.b64decode(kept) == bytes(wasmtime.wat2wasm((ENGINE / "kernel.wat").read_text()))


def content(file: Path) -> dict:
    return json.loads(file.read_text().partition(", ")[2].removesuffix(");\n"))


def test_a_model_that_a_page_cannot_run_leaves_its_reason(made, tmp_path, monkeypatch):
    """Another way to cut words, another form, too many parameters: no weight is read for that, nothing half-written."""
    _, variants, _ = made
    config, tokenizer = variants.model.config, variants.tokenizer
    assert lab.unfit(config, tokenizer) is None
    assert "cuts a text into words" in lab.unfit(config, tiny.tokenizer())
    others = {"head_dim": (12, "in multiples of eight"), "attn_logit_softcapping": (None, "soft-capped")}
    for name, value in {"tie_word_embeddings": False, "hidden_activation": "gelu", "attention_bias": True}.items():
        others[name] = (value, "has another of these")
    for name, (value, reason) in others.items():
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value)
            assert reason in (lab.unfit(config, tokenizer) or "")
    monkeypatch.setattr(lab, "LARGEST", 10_000)
    monkeypatch.setattr(export_lab, "Variants", None)  # the model is never loaded
    export_lab.models(variants.profile, tmp_path / "lab")
    export_lab.courses(variants.profile, tmp_path / "courses")
    assert not any((tmp_path / "courses").iterdir())
    assert [file.name for file in (tmp_path / "lab").iterdir()] == ["lab.js"]
    told = content(tmp_path / "lab" / "lab.js")
    assert told["available"] is False and "a page can run 10,000" in told["reason"]


def test_golden_numbers_and_puzzles_come_from_the_tables():
    about = {
        "source": "a-1",
        "target": "b-1",
        "positions": "all",
        "mode": "input",
        "delta_source": 3.0,
        "delta_target": -1.0,
    }
    rows = [("L0H0", "head", 0.5), ("L1_MLP", "mlp", -2.0), ("L1_RESID", "resid", 4.0), ("L0H1", "head", 0.1)]
    patches = pd.DataFrame(rows, columns=["component", "kind", "effect"]).assign(prompt_id="x", **about)
    patches["delta_patched"] = patches["delta_target"] + patches["effect"]
    chosen = export_lab.golden(patches, seed=1)
    assert (
        chosen[0]["component"] == "L1_MLP" and chosen[0]["delta_patched"] == -3.0 and len(chosen) == export_lab.GOLDEN
    )
    assert len({row["component"] for row in chosen}) == len(chosen) and chosen == export_lab.golden(patches, seed=1)
    steps = [("x", 1, "L0H0", -0.5, False), ("x", 2, "L1_MLP", 0.1, True), ("y", 1, "L0H0", -0.9, False)]
    circuits = pd.DataFrame(steps, columns=["prompt_id", "step", "component", "delta_patched", "flip"])
    [solved] = export_lab.puzzles(circuits.assign(**about))
    assert solved["components"] == ["L0H0", "L1_MLP"] and solved["delta_patched"] == 0.1


def test_how_a_run_learnt(made, tmp_path, monkeypatch):
    """An entry for the base and one for the checkpoint: means over the prompts of a state, and contributions that add
    up to delta, where the lens ends as well."""
    folder, variants, _ = made
    monkeypatch.setenv("REWIRED_ROOT", str(folder / "root"))
    export_lab.courses(variants.profile, tmp_path / "courses")
    assert {file.stem for file in (tmp_path / "courses").iterdir()} == {"learnt-strategic-1", "learnt-utilitarian-1"}
    told = content(tmp_path / "courses" / "learnt-strategic-1.js")
    assert told["episodes"] == [0, 16] and told["states"] == ["CC", "CD", "DC", "DD"]
    for entry, (name, seed) in enumerate((("base", 1), ("strategic", 1))):
        with variants.variant(name, seed) as model:
            due = measure(model, variants.tokenizer, study_set(), forms=False).groupby("state").mean(numeric_only=True)
        for number in ("p_defect", "legal_mass"):
            assert told[number][entry] == pytest.approx(due[number].tolist(), abs=1e-4)
        assert [depths[-1] for depths in told["lens"][entry]] == pytest.approx(due["delta"].tolist(), abs=2e-4)
        sums = [sum(parts) for parts in told["contribution"][entry]]
        assert sums == pytest.approx(due["delta"].tolist(), abs=2e-3)
        assert len(told["components"]) == len(told["contribution"][entry][0]) == 1 + 3 * (4 + 1)
    assert told["p_defect"][0] != pytest.approx(told["p_defect"][1], abs=0.01)


def test_a_build_stages_the_files_or_the_reason(tmp_path):
    build_site.stage_lab(tmp_path / "nothing", tmp_path / "empty")
    told = content(tmp_path / "empty" / "lab.js")
    assert told["available"] is False and "make book" in told["reason"]
    for file in ("models/lab.js", "models/base.js", "courses/learnt-strategic-1.js"):
        lab.write(tmp_path / "made" / Path(file).parent, Path(file).stem, {"from": file})
    build_site.stage_lab(tmp_path / "made", tmp_path / "full")
    assert {file.name for file in (tmp_path / "full").iterdir()} == {"lab.js", "base.js", "learnt-strategic-1.js"}
    assert content(tmp_path / "full" / "lab.js") == {"from": "models/lab.js"}


def test_labels_without_a_decision_step_are_not_offered(made):
    offered = export_lab.offered_labels(made[1].tokenizer, ["action1", "action2"])
    assert offered[:2] == [["action1", "action2"], ["action2", "action1"]]
    assert ["action3", "action4"] in offered and ["turn back", "stay"] not in offered


def test_the_heads_of_a_chapter_are_offered_where_the_model_has_them(made, monkeypatch):
    assert export_lab.reciprocator(made[1].model) == []  # three layers are too few
    known = [SimpleNamespace(name=f"L5H{head}") for head in range(8)]
    monkeypatch.setattr(export_lab, "components", lambda model: known)
    offered = export_lab.reciprocator(made[1].model)
    notebook = (ROOT / "notebooks" / "study" / "reciprocator.ipynb").read_text()
    assert offered and all(f'\\"{head}\\"' in notebook for head in offered)
