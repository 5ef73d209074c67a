"""Walk through the lab of a built site in headless Chromium, and report what goes wrong.

The tour, the puzzle, every link from a chapter, the whole page by the keyboard alone on a desk and a telephone, a link
that restores a state or was cut off, two things at once, the second view, less motion, no JavaScript, the page opened
from the disk, and what axe-core calls serious or critical, in both views and both themes. Then the limits: processor
time until ready and of a sweep over all components, memory with five models, size, and which files are loaded when.
With a profile, 200 patches drawn at random are compared with those of ``rewired.tracing.patching`` on the same runs.

    python tools/lab_check.py [_build/html [pocket]]
"""

import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import browser_check
import lab_compare
import lab_keys
from browser_check import PROGRAMS, Browser, served
from lab_page import LAB, TOLERANCE, VERDICT, Lab

LIMITS = {"ready": 2.0, "sweep": 5.0, "memory": 350, "size": 14}
"""Processor seconds until both models have run and of trying every component; MB that the page's process holds with
five models, and of all that a page loads until it is ready, the theme's files among them."""
USUAL = 0.45
"""Processor seconds that `WORK` takes on an idle machine on which pages keep these limits."""
WORK = """const n = 512, a = new Float32Array(n * n).fill(0.5), b = a.slice(), c = a.slice();
for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
    let sum = 0;
    for (let k = 0; k < n; k++) sum += a[i * n + k] * b[k * n + j];
    c[i * n + j] = sum;
}
return c[0];"""
CURVES = "[...document.querySelectorAll('#lab-learnt .lab-lens polyline')].map((one) => one.outerHTML).join('')"
SIZE = """const asked = ['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type));
return asked.reduce((sum, {decodedBodySize}) => sum + decodedBodySize, 0) / 1e6;"""
FILES = """return performance.getEntriesByType('resource').map(({name}) => name.split('/lab/data/')[1])
    .filter(Boolean).sort();"""
AXE = """const found = await axe.run(document.querySelector('article') || document.body, {resultTypes: ['violations']});
return found.violations.filter(({impact}) => ['serious', 'critical'].includes(impact))
    .map(({id, nodes}) => `${id}: ${nodes.map((node) => node.target.join(' ')).slice(0, 3).join('; ')}`);"""


KEENEST = "document.querySelector('[data-do=keenest]')"


def tour(lab: Lab, root: str) -> Iterator[str]:
    """Every step of the tour: it says which it is, and the last one flips the decision."""
    lab.open(root + LAB)
    lab.click('[data-do="tour"]')
    steps = lab.js("return rewired.guide.steps.length")
    for step in range(1, steps + 1):
        if not lab.until(f"document.querySelector('.lab-tour-text').textContent.startsWith('{step} of {steps}.')"):
            yield f"tour: step {step} does not come"
        if not lab.idle():
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
    found = re.fullmatch(r"Recomputed here: (\d+) .* difference (0\.\d+) logits\.", lab.text(told))
    if not found or int(found[1]) != count or not count or float(found[2]) > TOLERANCE:
        yield f"golden numbers: {count} are known, and the page says {lab.text(told)!r}"


def chapter_links(site: Path) -> list[tuple[str, str]]:
    """(page, place) of every link from another page of the site to a place in the lab."""
    links = []
    for page in browser_check.pages_of(site):
        name = page.relative_to(site).as_posix()
        places = re.findall(r'href="[^"]*book/lab\.html#([\w-]+)"', page.read_text())
        links += [(name, place) for place in dict.fromkeys(places) if name != LAB]
    return links


CELLS = "[...document.querySelectorAll('#lab-patch .lab-cell')]"
FOLLOWED = {
    "every-part-of-one-pair": f"{CELLS}.every((box) => box.dataset.value)",
    "a-head-that-looks-at-their-move": "rewired.ui.now().head === rewired.ui.keenest()",
}
"""What has happened after an example's own choices are on the table."""


def examples(lab: Lab, root: str, site: Path) -> Iterator[str]:
    """Each link is followed from its chapter, and the lab has that chapter's example on the table."""
    links = chapter_links(site)
    lab.open(root + LAB)
    for place in lab.js("return Object.keys(rewired.guide.examples)"):
        if place not in [linked for _, linked in links]:
            yield f"no chapter leads to {place}"
    for page, place in links:
        lab.browser.load(root + page, "light", 1440)
        lab.js(f"document.querySelector('a[href$=\"lab.html#{place}\"]').click()")
        time.sleep(0.5)
        lab.ready()
        if not lab.js(f"return Boolean(rewired.guide.examples['{place}'])"):
            yield f"{page}: no example is called {place}"
            continue
        lab.idle()
        differs = lab.js(f"""const own = rewired.guide.examples['{place}'].set(), now = rewired.ui.now();
            return Object.keys(own).filter((key) => JSON.stringify(own[key]) !== JSON.stringify(now[key]));""")
        if differs or not lab.text(VERDICT) or not lab.js(f"return {FOLLOWED.get(place, 'true')}"):
            yield f"{page}: its example differs in {', '.join(differs) or 'what follows'}"


def restored(lab: Lab, root: str) -> Iterator[str]:
    """A link holds everything that was chosen, and the number that came of it. Until then the address stays."""
    lab.open(f"{root}{LAB}#how-to-read-it")
    if lab.js("return location.hash") != "#how-to-read-it":
        yield "the address of a heading is lost when the page opens"
    state = """const now = Object.entries(rewired.ui.now()).sort();
        return [location.hash, JSON.stringify(now), rewired.ui.outcome().delta,
        ...['puzzle', 'episode'].map((name) => rewired.ui.field(name).value)]"""
    before = lab.js("""const ui = rewired.ui;
        await ui.exchange();
        const heads = ui.lab().components(['head']), chosen = ui.now();
        await ui.set({chosen: heads.slice(-3), positions: 'decision', mode: 'input', what: 'random', draw: 3,
            whose: 'source', head: heads.find((name) => name !== chosen.head), puzzle: ui.lab().puzzles.length - 1,
            view: ui.lab().learnt ? 'learnt' : 'patch', state: 'DC', matrix: [5, 1, 6, 2], temptation: true,
            cooperate: chosen.defect, defect: chosen.cooperate, rows_swapped: true});
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
        own = lab.js("return rewired.ui.now().words") is not None
        if own != lab.js(f"return {KEENEST}.disabled"):
            yield f"#{place}: the page asks for the other player's move where it cannot know it, or the other way round"
        if own != lab.js("return rewired.ui.field('own').disabled"):
            yield f"#{place}: the sentence can be changed beside the reader's own words, or cannot without"


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
    if lab.js("return rewired.ui.now().cooperate") != "action1" or not lab.js(f"return {open_buttons}.length"):
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


def useless(lab: Lab, root: str) -> Iterator[str]:
    """A story has no table and no points: what would change no word cannot be chosen there."""
    lab.open(root + LAB)
    shown = """const {field, one} = rewired.ui;
        return [!field('rows_swapped').disabled, !field('listing_swapped').disabled, !one('.lab-payoffs').hidden]"""
    for wording, due in (("story", [False, True, False]), ("structured", [True, True, True])):
        if lab.js(f"await rewired.ui.set({{wording: '{wording}', temptation: false}}); {shown}") != due:
            yield f"{wording}: rows, options and points can be chosen as {lab.js(shown)}, not {due}"


def learnt(lab: Lab, root: str) -> Iterator[str]:
    """The second view opens from a link that is pasted into the open page; slider, Play, states and runs move it."""
    lab.open(root + LAB)
    if not lab.js("return Boolean(rewired.ui.lab().learnt)"):
        return
    lab.js("location.hash = 'view=learnt'")
    if not lab.until(CURVES):
        yield "a link to the second view does not fill it"
    before = json.dumps(lab.js(f"return {CURVES}"))
    lab.slide(0)
    if not lab.until(f"{CURVES} !== {before}"):
        yield "the lens of the second view stands still when the slider moves"
    for name in lab.js("return rewired.ui.lab().learnt"):
        lab.js(f"""const list = rewired.ui.field('run');
            list.value = '{name}';
            list.dispatchEvent(new Event('change', {{bubbles: true}}));""")
        lab.until(f"rewired.ui.now().run === '{name}'")
        course = lab.js(f"return await rewired.ui.lab().course('{name}')")
        yield from (f"how {name} learnt: {problem}" for problem in shown_course(lab, course))
    lab.slide(0)
    lab.click('[data-do="play"]')
    last = f"{course['episodes'][-1]} of {course['episodes'][-1]}"
    if not lab.until(f"document.querySelector('#lab-learnt output').textContent === '{last}'"):
        yield "Play does not lead to the end of training"
    if not lab.until("document.querySelector('[data-do=play]').textContent === 'Play'"):
        yield "Play does not end"


def shown_course(lab: Lab, course: dict) -> Iterator[str]:
    """At both ends of training, after the first and the last state: words and cells say what the file says."""
    for k in (0, len(course["episodes"]) - 1):
        lab.slide(k)
        for state in (0, len(course["states"]) - 1):
            lab.js(f"document.querySelectorAll('[name=after]')[{state}].click()")
            told, numbers = lab.text(".lab-course-told"), course["p_defect"][k]
            due = [lab.js(f"return rewired.draw.percent({p})") for p in (min(numbers), max(numbers))]
            due += [course["states"][state], lab.js(f"return rewired.draw.percent({min(course['legal_mass'][k])})")]
            if lacking := [words for words in due if words not in told]:
                yield f"checkpoint {k} does not say {lacking}: {told!r}"
            cells = lab.js("""const cells = document.querySelectorAll('#lab-learnt .lab-cell');
                const entry = ({dataset}) => [dataset.component, Number(dataset.value || 0)];
                return Object.fromEntries([...cells].map(entry));""")
            added = dict(zip(course["components"], course["contribution"][k][state], strict=True))
            if any(abs(cells[name] - value) > 1e-9 for name, value in added.items() if name in cells):
                yield f"checkpoint {k}: the cells are not the contributions after {course['states'][state]}"


def calm(lab: Lab, root: str) -> Iterator[str]:
    """For those who asked for less motion nothing moves; for others, the needle and the curves do."""
    for wanted in ("reduce", "no-preference"):
        lab.open(root + LAB, prefers_reduced_motion=wanted)
        still = lab.js("""await rewired.ui.exchange();
            const before = document.querySelector('#lab-patch .lab-lens').innerHTML;
            await new Promise((done) => setTimeout(done, 120));
            const same = document.querySelector('#lab-patch .lab-lens').innerHTML === before;
            return same && !document.getElementById('lab').getAnimations({subtree: true}).length;""")
        if still != (wanted == "reduce"):
            yield f"prefers-reduced-motion: {wanted}, and things {'stand still' if still else 'move'}"


def without_javascript(lab: Lab, root: str) -> Iterator[str]:
    """The words say what is missing, and where the same stands with figures; nothing else of the lab is shown."""
    lab.browser.call("Emulation.setScriptExecutionDisabled", value=True)
    lab.browser.load(root + LAB, "light", 1440)
    found = lab.browser.call("Runtime.evaluate", expression="document.querySelector('#lab').innerText")
    words = " ".join(found["result"].get("value", "").split())
    lab.browser.call("Emulation.setScriptExecutionDisabled", value=False)
    if "needs JavaScript" not in words or "activation patching" not in words or len(words) > 300:
        yield f"without JavaScript the page says {words!r}"


def accessible(lab: Lab, root: str) -> Iterator[str]:
    """What axe-core reports, and whether the page is wider than a telephone, in both views."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    lab.open(root + LAB)
    views = ("patch", "learnt") if lab.js("return Boolean(rewired.ui.lab().learnt)") else ("patch",)
    for theme, width in [*browser_check.VIEWS.values(), ("light", 820)]:
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


def limits(lab: Lab, root: str) -> Iterator[str]:
    """Which files are loaded when, and what the page takes: size, processor time and memory. It is the first page of a
    new browser: what earlier ones left behind would count."""
    took = {"size": lab.js(SIZE)}
    pair = lab.js("const {source, target} = rewired.ui.now(); return [source, target]")
    due = sorted(["base.js", "lab.js", *(f"adapter-{name}.js" for name in pair if name != "base")])
    if lab.js(FILES) != due:
        yield f"a fresh page loads {', '.join(lab.js(FILES))}, and needs {', '.join(due)}"
    begun = lab.cpu()
    lab.js("await rewired.ui.tryAll()")
    took["sweep"] = (lab.cpu() - begun) / slowness(lab)
    names = [name for name in lab.js("return rewired.ui.lab().runs.map(({name}) => name)") if name not in pair]
    others = names if len(names) < 4 else [name for name in names if name == "base" or name.endswith("-1")][:3]
    for name in others:
        lab.js(f"await rewired.ui.set({{target: '{name}'}})")
        due = sorted({*due, f"adapter-{name}.js"} - {"adapter-base.js"})
        if lab.js(FILES) != due:
            yield f"once {name} is chosen the page has loaded {', '.join(lab.js(FILES))}, not {', '.join(due)}"
    lab.js("await rewired.ui.lab().check()")
    took["memory"], uncollected = lab.memory()
    took["ready"] = min(opened(lab, root + LAB) / slowness(lab) for _ in range(3))
    print(
        f"{2 + len(others)} models, {uncollected:.0f} MB with what is to be collected: "
        + ", ".join(f"{name} {value:.3g}" for name, value in took.items())
    )
    yield from (f"{name}: {took[name]:.3g}, allowed {limit}" for name, limit in LIMITS.items() if took[name] > limit)


def slowness(lab: Lab) -> float:
    """How many times as long as usual fixed work takes at this moment; at least 1, so that no limit is stricter than
    it says. Beside other programs, or on an older processor, the same work takes more processor time."""
    begun = lab.cpu()
    lab.js(WORK)
    return max(1.0, (lab.cpu() - begun) / USUAL)


def opened(lab: Lab, address: str) -> float:
    """Processor seconds until a page in a fresh tab has run two models."""
    lab.browser.call("Page.navigate", url="about:blank")
    time.sleep(1)
    begun = lab.cpu()
    lab.browser.call("Page.navigate", url=address)
    lab.ready()
    return lab.cpu() - begun


WALKS = (
    tour,
    puzzle,
    golden,
    restored,
    odd_links,
    refused,
    at_once,
    useless,
    learnt,
    calm,
    without_javascript,
    accessible,
)


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
            problems += limits(lab, root)  # before the browser has done anything else
            for walk in WALKS:
                problems += walk(lab, root)
            for width in (1440, 390):
                problems += lab_keys.keyboard(lab, root, width)
            problems += [*examples(lab, root, site), *from_disk(lab, root, site)]
            if variants is not None:
                problems += lab_compare.compared(lab, root, variants)
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
