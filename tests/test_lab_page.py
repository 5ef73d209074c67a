"""The lab's page in a browser: a small site with the shipped base, two random adapters, and the chapters' own links."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from rewired import lab, models, profiles
from rewired.prompts import scenario_set
from rewired.tracing import patching

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import browser_check  # noqa: E402
import export_lab  # noqa: E402
import lab_check  # noqa: E402
import lab_compare  # noqa: E402
import lab_keys  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, browser_check.PROGRAMS)), reason="no Chromium"),
]
CHAPTERS = ("logit_lens", "patching", "attention", "reciprocator")
MODULES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
SCALES = {"strategic": 0.4, "deontological": -0.4}  # opposite pushes of one random direction


def train_nothing(variants: models.Variants, variant: str, scale: float) -> None:
    """A run whose adapter is random: large enough for the two to decide differently."""
    torch.manual_seed(2)
    base, _ = models.load_base(variants.profile)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=MODULES))
    for name, value in tuned.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn_like(value) * scale
    adapter = variants.run_dir(variant, 1) / "adapter"
    tuned.save_pretrained(adapter)
    about = {"base": variants.fingerprint, "adapter": models.file_hash(adapter / models.ADAPTER), "checkpoints": {}}
    (adapter.parent / "run.json").write_text(json.dumps(about))


def example(variants: models.Variants, source: str, target: str) -> dict:
    """A puzzle, the greedy set of one prompt as the run's circuits have it, and its first step as a golden number."""
    [prompt], recordings = scenario_set(per_scenario=1)[:1], []
    for name in (source, target):
        with variants.variant(name) as model:
            recordings.append(patching.record(model, variants.tokenizer, [prompt]))
    with variants.variant(target) as model:
        sweep = patching.Sweep(model, *recordings, mode="output")
        steps = patching.greedy(sweep, patching.components(sweep.parts))
    assert steps["flip"].iloc[-1], "no set flips the decision of these random runs; choose another seed"
    about = {"source": f"{source}-1", "target": f"{target}-1", "spec": export_lab.spec(prompt)}
    first = steps[["component", "delta_source", "delta_target", "delta_patched"]].iloc[0].to_dict()
    return {
        "puzzles": [about | {"components": [*steps["component"]]}],
        "golden": [about | first | {"positions": "all", "mode": "output"}],
    }


def course(depth: int) -> dict:
    """How a run might have learnt, for the second view."""
    episodes, states, components = [0, 16, 32], ["CC", "CD", "DC", "DD"], ["embed", "L0H0", "L1_MLP"]
    ramp = [[(k + s) / 6 for s in range(4)] for k in range(3)]  # [episode, state]
    lens = [[[value * d for d in range(depth + 1)] for value in row] for row in ramp]
    contribution = [[[value, -value, 2 * value] for value in row] for row in ramp]
    return {
        "variant": "strategic", "episodes": episodes, "states": states, "p_defect": ramp, "legal_mass": ramp,
        "lens": lens, "components": components, "contribution": contribution,
    }  # fmt: skip


def write_pages(folder: Path) -> None:
    """The lab's own page, and of each chapter its title and its sentence with the link."""
    book, study = folder / "book", folder / "notebooks" / "study"
    study.mkdir(parents=True)
    shutil.copytree(ROOT / "book" / "_static", book / "_static")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copy(ROOT / "book" / "references.bib", book)
    text = (ROOT / "book" / "lab.md").read_text().replace(".ipynb)", ".md)")
    (book / "lab.md").write_text(re.sub(r"\{term\}`([^`<]+)[^`]*`", r"\1", text))
    for name in CHAPTERS:
        notebook = (ROOT / "notebooks" / "study" / f"{name}.ipynb").read_text()
        sentences = re.findall(r"\[The lab\]\(\.\./\.\./book/lab\.md#[\w-]+\)[^\"\\]*", notebook)
        assert len(sentences) == 1, name
        (study / f"{name}.md").write_text(f"# {name}\n\n{sentences[0]}\n")
    (study / "training.md").write_text("# training\n")  # the page leads there, and nothing leads back
    chapters = [{"file": f"notebooks/study/{name}"} for name in (*CHAPTERS, "training")]
    toc = {"format": "jb-book", "root": "book/lab", "chapters": chapters}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the site, the models in it)"""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWIRED_ROOT", str(folder / "root"))
        variants = models.Variants(profiles.load("pocket"))
        for variant, scale in SCALES.items():
            train_nothing(variants, variant, scale)
        scenarios = [{"id": prompt.id, "spec": export_lab.spec(prompt)} for prompt in scenario_set()]
        more = {"scenarios": scenarios, "matrices": [[3, 0, 4, 1], [5, 1, 6, 2]], "circuits": 72}
        more |= {"labels": [["action1", "action2"], ["action3", "action4"]], "reciprocator": ["L5H2", "L5H4"]}
        more |= example(variants, "deontological", "strategic") | {"learnt": ["strategic-1"]}
        write_pages(folder / "source")
        data = folder / "source" / "book" / "_static" / "lab" / "data"
        lab.export(models.Variants(variants.profile), data, more)
        lab.write(data, "learnt-strategic-1", course(variants.model.config.num_hidden_layers))
        program = str(Path(sys.executable).with_name("jupyter-book"))
        command = [program, "build", str(folder / "source"), "--path-output", str(folder), "-W", "--keep-going"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        yield folder / "_build" / "html", variants


@contextlib.contextmanager
def opened(site: Path, scratch: Path):
    """(the page's driver, the site's address)"""
    program = next(filter(None, map(shutil.which, browser_check.PROGRAMS)))
    with browser_check.served(site) as root:
        page = lab_check.Lab(browser_check.Browser(program, str(scratch)))
        with contextlib.closing(page.browser):
            yield page, root


def test_a_reader_can_do_everything(built):
    """Tour, puzzle, the four chapters' links, keys, a restored state, axe-core, and patches against the library."""
    site, variants = built
    assert {name for name, _ in lab_check.chapter_links(site)} == {f"notebooks/study/{name}.html" for name in CHAPTERS}
    assert lab_check.check(site, variants) == []


BREAKS = {  # file of the site: what is broken in it
    "_static/lab/data/lab.js": [(r'("components":\[.*?)\]', r'\1,"L0H0"]')],  # the set does not solve the puzzle
    "_static/lab/lab-ui.js": [(r'grid.addEventListener\("keydown", steered\);', "")],
    "_static/lab/lab-draw.js": [(r'matchMedia\(".*?"\)', "{matches: false}")],
    "_static/lab/lab-learnt.js": [(r"\n    components\(k\);", "")],
    "_static/lab/lab-choices.js": [(r"whose: among\(.*?\),", "")],  # a link does not restore it
    "book/lab.html": [
        ("that needs JavaScript", "that takes a while"),
        ("</article>", '<p style="color:#eee;background:#fff">faint</p><div style="width:900px">wide</div></article>'),
        ('name="temptation"', 'name="temptation" tabindex="-1"'),
    ],
}
WORDS = (
    "puzzle 0", "golden numbers", "color-contrast", "wider than the screen", "by the library", "does not restore",
    "how strategic-1 learnt", "reduce, and things move", "without JavaScript", "grid: Enter on", "lead to [name=tempt",
    "a fresh page loads", "memory", "ready",
)  # fmt: skip


@pytest.mark.all
def test_the_check_finds_what_is_wrong(built, tmp_path, monkeypatch):
    """Another run's weights, what `BREAKS` breaks, files that are not loaded, and limits that no page can keep."""
    site, variants = tmp_path / "site", built[1]
    shutil.copytree(built[0], site)
    data = site / "_static" / "lab" / "data"
    other = (data / "adapter-deontological-1.js").read_text()
    (data / "adapter-strategic-1.js").write_text(other.replace("deontological", "strategic"))
    for name, breaks in BREAKS.items():
        for pattern, broken in breaks:
            text, count = re.subn(pattern, broken, (site / name).read_text(), count=1)
            assert count == 1, (name, pattern)
            (site / name).write_text(text)
    monkeypatch.setattr(lab_check, "FILES", "return [];")  # as if nothing were loaded
    monkeypatch.setattr(lab_check, "LIMITS", dict.fromkeys(lab_check.LIMITS, 0.01))
    walks = ("puzzle", "golden", "accessible", "restored", "learnt", "calm", "without_javascript", "limits")
    with opened(site, tmp_path / "browser") as (page, root):
        found = []
        for walk in walks:
            page.open(root + lab_check.LAB)  # the limits are those of the page that is open
            found += getattr(lab_check, walk)(page, root)
        found += [*lab_keys.keyboard(page, root, 1440), *lab_compare.compared(page, root, variants, count=40)]
    text = "\n".join(found)
    for word in WORDS:
        assert word in text, (word, text)


def test_a_model_too_large_leaves_the_words(built, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(built[0], site)
    lab.write(site / "_static" / "lab" / "data", "lab", {"available": False, "reason": "This model is too large."})
    with opened(site, tmp_path / "browser") as (lab_page, root):
        assert lab_page.open(root + lab_check.LAB) == []
        told = " ".join(lab_page.text(".lab-without").split())
    assert "activation patching" in told and "This model is too large." in told
