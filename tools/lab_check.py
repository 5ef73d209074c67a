"""Walk through the lab of a built site in headless Chromium, and report what goes wrong.

The tour, the puzzle, every link from a chapter, the keyboard alone, a link that restores a state or was cut off, two
things at once, the slider of the second view, the width of a telephone, the page opened from the disk, and what
axe-core calls serious or critical, in both views and both themes.
With a profile, 200 patches drawn at random are compared with those of ``rewired.tracing.patching`` on the same runs.

    python tools/lab_check.py [_build/html [pocket]]
"""

import contextlib
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import browser_check
from browser_check import PROGRAMS, Browser, served

LAB = "book/lab.html"
TOLERANCE = 1e-4  # logits
KEYS = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36}
KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
AXE = """const found = await axe.run(document.querySelector('article') || document.body, {resultTypes: ['violations']});
return found.violations.filter(({impact}) => ['serious', 'critical'].includes(impact))
    .map(({id, nodes}) => `${id}: ${nodes.map((node) => node.target.join(' ')).slice(0, 3).join('; ')}`);"""


class Lab:
    """The page in one tab: what a reader does there, and what it shows."""

    def __init__(self, browser: Browser):
        self.browser = browser
        browser.socket.settimeout(300)

    def open(self, address: str, theme: str = "light", width: int = 1440) -> list[str]:
        """Load the page anew and wait until its models have run; returns what the browser complained of."""
        self.browser.call("Page.navigate", url="about:blank")  # an address that differs after # alone loads nothing
        _, events = self.browser.open(address, theme, width)
        self.ready()
        host = "" if address.startswith("file:") else address.split("/")[2]
        return [text for text in browser_check.told(events, host) if "another host: file:" not in text]

    def ready(self) -> None:
        for _ in range(1800):
            if self.js("return document.querySelector('#lab[data-ready]') !== null"):
                return
            time.sleep(0.1)
        told = "; ".join(browser_check.told(self.browser.events, ""))
        raise RuntimeError(f"The lab was not ready within three minutes. {told}")

    def js(self, code: str):
        """What the body of an asynchronous function returns in the page; RuntimeError with what it throws."""
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self.browser.call("Runtime.evaluate", expression=f"(async () => {{{code}}})()", **options)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Keys as the reader presses them, one after another."""
        for key in keys:
            about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"text": "\r"} if key == "Enter" else {}
            self.browser.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
            self.browser.call("Input.dispatchKeyEvent", type="keyUp", **about)
        self.js("await rewired.ui.settled()")

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).click(); await rewired.ui.settled();")

    def text(self, selector: str) -> str:
        return self.js(f"return document.querySelector({json.dumps(selector)}).textContent")

    def until(self, condition: str) -> bool:
        """Whether the condition, an expression of the page, comes true within two minutes."""
        for _ in range(600):
            if self.js(f"return Boolean({condition})"):
                return True
            time.sleep(0.2)
        return False


VERDICT = "#lab-patch .lab-verdict"
KEENEST = "document.querySelector('[data-do=keenest]')"


def tour(lab: Lab, root: str) -> Iterator[str]:
    """Every step of the tour: it says which it is, and the last one flips the decision."""
    lab.open(root + LAB)
    lab.click('[data-do="tour"]')
    steps = lab.js("return rewired.guide.steps.length")
    for step in range(1, steps + 1):
        if not lab.until(f"document.querySelector('.lab-tour-text').textContent.startsWith('{step} of {steps}.')"):
            yield f"tour: step {step} does not come"
        if not lab.until("!document.querySelector('.lab-busy')"):
            yield f"tour: step {step} does not end"
        if step == steps and not lab.until(f"document.querySelector('{VERDICT}').textContent.includes('flips')"):
            yield f"tour: it ends with {lab.text(VERDICT)!r}"
        lab.click('[data-do="tour-next"]')
    if lab.js("return !document.querySelector('.lab-step').hidden"):
        yield "tour: it cannot be finished"


def puzzle(lab: Lab, root: str) -> Iterator[str]:
    """The greedy set solves every puzzle at par, and all but its last component do not."""
    lab.open(root + LAB)
    for k, par in enumerate(lab.js("return rewired.ui.lab().puzzles.map(({components}) => components)")):
        lab.js(f"const list = rewired.ui.field('puzzle'); list.value = {k}; list.dispatchEvent(new Event('change'));")
        lab.js("await rewired.ui.settled()")
        for place, component in enumerate(par, 1):
            lab.click(f'#lab-patch [data-component="{component}"]')
            score, solved = lab.text(".lab-score"), place == len(par)
            if score.startswith("Solved") != solved or (solved and not score.endswith("par!")):
                yield f"puzzle {k}: {place} of {len(par)} components: {score!r}"


def golden(lab: Lab, root: str) -> Iterator[str]:
    """The page recomputes the book's own numbers when it is asked to, and says how far it is from them."""
    lab.open(root + LAB)
    count = lab.js("return rewired.ui.lab().golden.length")
    lab.click('[data-do="check"]')
    told = ".lab-golden span"
    if not lab.until(f"document.querySelector('{told}').textContent.startsWith('Recomputed')"):
        yield f"golden numbers: {lab.text(told)!r}"
    found = re.fullmatch(r"Recomputed here: (\d+) .* difference (\S+) logits\.", lab.text(told))
    if not found or int(found[1]) != count or not count or float(found[2].replace("−", "-")) > TOLERANCE:
        yield f"golden numbers: {count} are known, and the page says {lab.text(told)!r}"


def chapter_links(site: Path) -> list[tuple[str, str]]:
    """(page, place) of every link from another page of the site to a place in the lab."""
    links = []
    for page in browser_check.pages_of(site):
        name = page.relative_to(site).as_posix()
        places = re.findall(r'href="[^"]*book/lab\.html#([\w-]+)"', page.read_text())
        links += [(name, place) for place in dict.fromkeys(places) if name != LAB]
    return links


def examples(lab: Lab, root: str, site: Path) -> Iterator[str]:
    """Each link is followed from its chapter, and the lab has that chapter's example on the table."""
    for page, place in chapter_links(site):
        lab.browser.open(root + page, "light", 1440)
        lab.js(f"document.querySelector('a[href$=\"lab.html#{place}\"]').click()")
        time.sleep(0.5)
        lab.ready()
        if not lab.js(f"return Boolean(rewired.guide.examples['{place}'])"):
            yield f"{page}: no example is called {place}"
            continue
        lab.until("!document.querySelector('.lab-busy')")
        differs = lab.js(f"""const own = rewired.guide.examples['{place}'].set(), now = rewired.ui.now();
            return Object.keys(own).filter((key) => JSON.stringify(own[key]) !== JSON.stringify(now[key]));""")
        if differs or not lab.text(VERDICT):
            yield f"{page}: its example differs in {', '.join(differs)}"


def keyboard(lab: Lab, root: str) -> Iterator[str]:
    """One stop of the Tab key in the grid; the arrows move, Enter patches, and Enter again takes it back."""
    lab.open(root + LAB)
    stops = lab.js("return document.querySelectorAll('#lab-patch .lab-grid [tabindex=\"0\"]').length")
    if stops != 1:
        yield f"keyboard: the grid has {stops} stops of the Tab key"
    stop = "document.querySelector('#lab-patch .lab-grid [tabindex=\"0\"]')"
    top = lab.js(f"{stop}.focus(); return {stop}.dataset.component")
    lab.press("ArrowDown", "ArrowRight", "ArrowRight", "Enter")
    wanted = f"L{int(top[1 : top.index('H')]) - 1}H2"
    here = lab.js("const at = document.activeElement; return [at.dataset.component, at.getAttribute('aria-pressed')]")
    if here != [wanted, "true"] or lab.js("return rewired.ui.now().chosen.join()") != wanted:
        yield f"keyboard: Enter on {wanted} patched {lab.js('return rewired.ui.now().chosen.join()')!r} ({here})"
    lab.press("Enter")
    if lab.js("return rewired.ui.now().chosen.length"):
        yield "keyboard: Enter again does not take it back"
    lab.press("Tab")
    if lab.js("return document.activeElement.closest('.lab-grid') !== null"):
        yield "keyboard: Tab stays in the grid"


def restored(lab: Lab, root: str) -> Iterator[str]:
    """A link holds everything that was chosen, and the number that came of it."""
    lab.open(root + LAB)
    state = """return [location.hash, JSON.stringify(rewired.ui.now()), rewired.ui.outcome().delta,
        ...['puzzle', 'episode'].map((name) => rewired.ui.field(name).value)]"""
    before = lab.js("""const ui = rewired.ui, {spec} = ui.now();
        await ui.exchange();
        const chosen = ui.lab().components(['head']).slice(-3);
        const heads = ui.lab().components(['head']), puzzle = ui.lab().puzzles.length - 1;
        await ui.set({chosen, positions: 'decision', mode: 'output', what: 'random', draw: 3, whose: 'source',
            head: heads.find((name) => name !== ui.now().head), puzzle, view: ui.lab().learnt ? 'learnt' : 'patch',
            spec: {...spec, state: 'DC', matrix: [5, 1, 6, 2], temptation: true, labels: [...spec.labels].reverse(),
                   arrangement: {...spec.arrangement, rows_swapped: true}}});
        await ui.set({words: ui.sweep().encoded.text + ' Thank you & goodbye = #1?'});
        const slider = ui.field('episode');
        slider.value = 0;
        slider.dispatchEvent(new Event('input', {bubbles: true}));""" + state)  # fmt: skip
    lab.open(root + LAB + before[0])
    after = lab.js(state)
    if before != after:
        yield f"a link does not restore the state: {before} became {after}"


def odd_links(lab: Lab, root: str) -> Iterator[str]:
    """A link that was cut off, or that names what is not there, opens the page all the same."""
    for place in ("words=You%2", "constructor", "puzzle=length&view=sideways"):
        yield from lab.open(f"{root}{LAB}#{place}")
        if not lab.text(VERDICT):
            yield f"#{place} computes nothing"
        if (lab.js("return rewired.ui.now().words") is not None) != lab.js(f"return {KEENEST}.disabled"):
            yield f"#{place}: the page asks for the other player's move where it cannot know it, or the other way round"


def refused(lab: Lab, root: str) -> Iterator[str]:
    """A prompt that cannot be built closes the bench; what is typed then opens it as soon as the field is left."""
    yield from lab.open(f"{root}{LAB}#cooperate=action2&defect=action2")
    open_buttons = "[...document.querySelectorAll('.lab-bench button, .lab-looks button')].filter((b) => !b.disabled)"
    if count := lab.js(f"return {open_buttons}.length"):
        yield f"a refused prompt leaves {count} buttons that can be pressed"
    lab.js("""const label = rewired.ui.field('cooperate');
        label.value = 'action1';
        for (const type of ['input', 'change']) label.dispatchEvent(new Event(type, {bubbles: true}));
        await rewired.ui.settled();""")
    if lab.js("return rewired.ui.now().spec.labels[0]") != "action1" or not lab.js(f"return {open_buttons}.length"):
        yield "a label that was typed is lost"


def at_once(lab: Lab, root: str) -> Iterator[str]:
    """While a sweep runs a set is searched, a head is put in, the pair is exchanged: each has the last word."""
    lab.open(root + LAB)
    lab.click('[data-do="puzzle"]')
    both = "for (const name of ['sweep', 'greedy']) document.querySelector(`[data-do=${name}]`).click();"
    if lab.js(both + "await rewired.ui.settled(); return document.querySelector('.lab-now') !== null"):
        yield "a sweep goes on beside the search of a set"
    lab.until("!document.querySelector('.lab-busy') && rewired.ui.now().chosen.length")
    if "The decision flips" not in lab.text(VERDICT):
        yield f"a set that was searched while a sweep ran: {lab.text(VERDICT)!r}"
    lab.click('[data-do="clear"]')
    if lab.js(f"return document.querySelector('{VERDICT}').matches('.lab-flipped')"):
        yield "with nothing patched the verdict is marked as a flip"
    [name] = lab.js("return rewired.ui.lab().components(['head']).slice(0, 1)")
    lab.js("document.querySelector('[data-do=sweep]').click()")
    lab.click(f'#lab-patch [data-component="{name}"]')
    lab.until("!document.querySelector('.lab-busy')")
    if not lab.text(VERDICT).startswith(f"{name} from"):
        yield f"a sweep ended over the verdict of {name}: {lab.text(VERDICT)!r}"
    lab.click('[data-do="exchange"]')
    if count := lab.js("return document.querySelectorAll('.lab-flips').length"):
        yield f"{count} cells of another pair keep their dark corners"


def learnt(lab: Lab, root: str) -> Iterator[str]:
    """The second view opens from a link that is pasted into the open page, and its lens follows the slider."""
    lab.open(root + LAB)
    if not lab.js("return Boolean(rewired.ui.lab().learnt)"):
        return
    curves = "[...document.querySelectorAll('#lab-learnt .lab-lens polyline')].map((one) => one.outerHTML).join('')"
    lab.js("location.hash = 'view=learnt'")
    if not lab.until(curves):
        yield "a link to the second view does not fill it"
    before = json.dumps(lab.js(f"return {curves}"))
    lab.js("""const slider = rewired.ui.field('episode');
        slider.value = 0;
        slider.dispatchEvent(new Event('input', {bubbles: true}));""")
    if not lab.until(f"{curves} !== {before}"):
        yield "the lens of the second view stands still when the slider moves"


def accessible(lab: Lab, root: str) -> Iterator[str]:
    """What axe-core reports, and whether the page is wider than a telephone, in both views."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    lab.open(root + LAB)
    views = ("patch", "learnt") if lab.js("return Boolean(rewired.ui.lab().learnt)") else ("patch",)
    for theme, width in browser_check.VIEWS.values():
        for view in views:
            yield from lab.open(f"{root}{LAB}#view={view}", theme, width)
            lab.browser.call("Runtime.evaluate", expression=axe)
            lab.js(
                "document.querySelector('.lab-more').open = true; document.querySelector('.lab-step').hidden = false;"
            )
            lab.js("const [first] = rewired.ui.lab().components(['head']); await rewired.ui.set({chosen: [first]});")
            yield from (f"axe ({view}, {theme}, {width} px): {problem}" for problem in lab.js(AXE))
            wide = lab.js("const page = document.documentElement; return page.scrollWidth - page.clientWidth")
            if wide > 1:
                yield f"{view} ({theme}, {width} px): {wide} px wider than the screen"


def from_disk(lab: Lab, root: str, site: Path) -> Iterator[str]:
    """The page opened as a file computes the same, with WebAssembly and without."""
    code = "const [name] = rewired.ui.lab().components(['head']).slice(-1); await rewired.ui.set({chosen: [name]});"
    code += "return rewired.ui.outcome().delta"
    lab.open(root + LAB)
    served_delta = lab.js(code)
    for options in ("", "?plain"):
        yield from lab.open((site / LAB).absolute().as_uri() + options)
        delta = lab.js(code)
        if abs(delta - served_delta) > TOLERANCE:
            yield f"from the disk{options}, delta is {delta}, and over http {served_delta}"


# --- against the library -------------------------------------------------------------------------------------------


def drawn(lab: Lab, count: int, seed: int) -> list[dict]:
    """Patches at random: groups of twenty of one pair, prompt, mode and positions, each of one to four components."""
    chance, groups = random.Random(seed), []
    about = lab.js("""const lab = rewired.ui.lab();
        return [lab.runs.map(({name}) => name), lab.scenarios.map(({id}) => id),
                lab.components(['head', 'mlp', 'attn', 'resid'])];""")
    runs, prompts, components = about
    for start in range(0, count, 20):
        source, target = chance.sample(runs, 2)
        group = {"source": source, "target": target, "prompt": chance.choice(prompts)}
        group |= {"positions": chance.choice(["all", "decision"]), "mode": chance.choice(["input", "output"])}
        group["sets"] = []
        while len(group["sets"]) < min(20, count - start):
            names = chance.sample(components, chance.choice([1, 1, 1, 2, 3, 4]))
            if _apart(names):
                group["sets"].append(names)
        groups.append(group)
    return groups


def _apart(names: list[str]) -> bool:
    """No head beside the attention of its layer, whose output would hide it, and no whole stream beside anything."""
    if len(names) > 1 and any(name.endswith("RESID") for name in names):
        return False
    layers = {name.split("_")[0] for name in names if name.endswith("ATTN")}
    return not any("H" in name and name.split("H")[0] in layers for name in names)


def in_page(lab: Lab, group: dict) -> list[float]:
    """delta of each set of a group, as the page computes it."""
    return lab.js(f"""const group = {json.dumps(group)}, lab = rewired.ui.lab();
        const {{spec}} = lab.scenarios.find(({{id}}) => id === group.prompt);
        const prompt = lab.build(spec), encoded = lab.encode(prompt.text, prompt.labels);
        const source = await lab.model(group.source), target = await lab.model(group.target);
        const sweep = new rewired.Sweep(source.record(encoded), target.record(encoded), group);
        return group.sets.map((names) => sweep.together(names).delta);""")


def in_library(variants, group: dict) -> list[float]:
    """The same by ``tracing.patching``."""
    from rewired.prompts import scenario_set
    from rewired.tracing import patching

    [prompt] = [one for one in scenario_set(variants.profile.prompts.labels) if one.id == group["prompt"]]
    recordings = []
    for run in (group["source"], group["target"]):
        variant, _, seed = run.partition("-")
        with variants.variant(variant, int(seed or 0)) as model:
            recordings.append(patching.record(model, variants.tokenizer, [prompt]))
    variant, _, seed = group["target"].partition("-")
    with variants.variant(variant, int(seed or 0)) as model:
        sweep = patching.Sweep(model, *recordings, positions=group["positions"], mode=group["mode"])
        sets = [patching.named(sweep.parts, names) for names in group["sets"]]
        return sweep.together(sets)[:, 0].tolist()


def compared(lab: Lab, root: str, variants, count: int = 200, seed: int = 0) -> Iterator[str]:
    """Patches drawn at random, in the page and by the library."""
    lab.open(root + LAB)
    largest, number = 0.0, 0
    for group in drawn(lab, count, seed):
        there, here = in_page(lab, group), in_library(variants, group)
        for names, page, library in zip(group["sets"], there, here, strict=True):
            number, largest = number + 1, max(largest, abs(page - library))
            if not abs(page - library) <= TOLERANCE:
                where = {key: value for key, value in group.items() if key != "sets"}
                yield f"{' + '.join(names)} {where}: {page} in the page, {library} by the library"
    print(f"{number} patches against the library: largest difference {largest:.0e} logits")


def check(site: Path, variants=None) -> list[str]:
    """All problems of the lab in the site, one line each; with ``variants``, compared with them, too."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SystemExit(f"The check of the lab needs Chromium; none of {', '.join(PROGRAMS)} is installed.")
    with served(site) as root, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        lab = Lab(Browser(program, scratch))
        with contextlib.closing(lab.browser):
            problems = lab.open(root + LAB)
            if lab.js("return document.querySelector('#lab').dataset.ready") == "without":
                print(f"This site's lab has words alone: {' '.join(lab.text('.lab-without').split())}")
                return problems
            for walk in (tour, puzzle, golden, keyboard, restored, odd_links, refused, at_once, learnt, accessible):
                problems += walk(lab, root)
            problems += [*examples(lab, root, site), *from_disk(lab, root, site)]
            if variants is not None:
                problems += compared(lab, root, variants)
    problems = list(dict.fromkeys(problems))
    print(f"the lab: {len(chapter_links(site))} links from chapters, {len(problems)} problems")
    return problems


def main() -> int:
    site, variants = Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html"), None
    if not (site / LAB).is_file():
        raise SystemExit(f"There is no {LAB} in {site}; `make book` makes it.")
    if len(sys.argv) > 2:
        from rewired import profiles
        from rewired.models import Variants

        variants = Variants(profiles.load(sys.argv[2]))
    problems = check(site, variants)
    print("\n".join(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
