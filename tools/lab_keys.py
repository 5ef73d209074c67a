"""The whole lab by key events alone, from the top of the page: nothing is clicked, and nothing is given the focus.

Every key is sent to the browser as a reader's keyboard sends it. What the keys lead to must be seen: not hidden, and
not beneath what sticks to the edge of the screen."""

from collections.abc import Iterator

from lab_page import HIDDEN, LAB, VERDICT, Lab

CHOSEN = "return rewired.ui.now().chosen.join()"
HERE = "return document.activeElement.dataset.component"
CELL = "#lab-patch .lab-grid [data-component]"


def keyboard(lab: Lab, root: str, width: int) -> Iterator[str]:
    """Tour, prompt, exchange, grid, switches, sweep, puzzle, attention and the second view, at one width."""
    walks = (tour, prompt, exchange, grid, switches, sweep, puzzle, looks, learnt)
    for walk in walks:
        if walk is not learnt or lab.js("return Boolean(rewired.ui.lab().learnt)"):
            lab.open(root + LAB, "light", width)
            yield from (f"by keys, {width} px, {walk.__name__}: {problem}" for problem in walk(lab) if problem)


def tour(lab: Lab) -> Iterator[str | None]:
    """From the top to the tour, and through it: the focus stays on Next, and comes back in the end."""
    yield lab.tab_to("[data-do=tour]")
    lab.press("Enter")
    steps = lab.js("return rewired.guide.steps.length")
    for step in range(1, steps + 1):
        if not lab.until(f"document.querySelector('.lab-tour-text').textContent.startsWith('{step} of {steps}.')"):
            yield f"step {step} does not come"
        lab.idle()
        if step == steps and "flips" not in lab.text(VERDICT):
            yield f"it ends with {lab.text(VERDICT)!r}"
        lab.press("Enter")
    if not lab.js("return document.activeElement.matches('[data-do=tour]')"):
        yield "the focus does not come back from the last step"


def prompt(lab: Lab) -> Iterator[str | None]:
    """A list by its arrows, the fold by Enter, a box by the space bar, a label by typing over it."""
    yield lab.tab_to("[name=own]")
    before = lab.js("return rewired.ui.sweep().target.delta")
    lab.press("ArrowDown")
    if lab.js("return rewired.ui.now().state[0]") != "D" or lab.js("return rewired.ui.sweep().target.delta") == before:
        yield "the arrow does not choose another last move"
    yield lab.tab_to(".lab-more summary")
    lab.press("Enter")
    yield lab.tab_to("[name=temptation]")
    lab.press(" ")
    if not lab.js("return rewired.ui.now().temptation"):
        yield "the space bar does not tick a box"
    yield lab.tab_to("[name=text]")
    lab.browser.call("Input.insertText", text="One more word. ")
    if not lab.until("rewired.ui.now().words?.includes('One more word.')"):
        yield "typed words are not asked"
    yield lab.tab_to("[data-do=own-words-away]", back=True)
    lab.press("Enter")
    if lab.js("return rewired.ui.now().words") is not None or lab.js("return document.activeElement === document.body"):
        yield "there is no way back to the built words, or the focus is lost on it"


def exchange(lab: Lab) -> Iterator[str | None]:
    """Donor and patient change places."""
    yield lab.tab_to("[data-do=exchange]")
    pair = "const {source, target} = rewired.ui.now(); return [source, target]"
    before = lab.js(pair)
    lab.press("Enter")
    if lab.js(pair) != before[::-1]:
        yield f"Enter does not exchange {before}"


def grid(lab: Lab) -> Iterator[str | None]:
    """One stop of the Tab key; the arrows move, Enter patches, and Enter again takes it back."""
    stops = lab.js(f"return document.querySelectorAll('{CELL}[tabindex=\"0\"]').length")
    if stops != 1:
        yield f"the grid has {stops} stops of the Tab key"
    yield lab.tab_to(CELL)
    top = lab.js(HERE)
    lab.press("Home", "ArrowDown", "ArrowRight", "ArrowRight", "Enter")
    wanted = f"L{int(top[1 : top.index('H')]) - 1}H2"
    pressed = lab.js("return document.activeElement.getAttribute('aria-pressed')")
    if lab.js(HERE) != wanted or lab.js(CHOSEN) != wanted or pressed != "true":
        yield f"Enter on {wanted} patched {lab.js(CHOSEN)!r}"
    lab.press("Enter")
    if lab.js(CHOSEN):
        yield "Enter again does not take it back"
    lab.press(*["ArrowDown"] * 20, "End")
    if lab.js(HERE) != "L0_RESID" or not lab.js("return document.activeElement.getBoundingClientRect().top >= 0"):
        yield f"the lowest row ends at {lab.js(HERE)}"
    if lab.js(HIDDEN):
        yield "the lowest row is beneath something"
    lab.press("Tab")
    if lab.js("return document.activeElement.closest('.lab-grid') !== null"):
        yield "Tab stays in the grid"


def switches(lab: Lab) -> Iterator[str | None]:
    """Each group of switches is one stop, and the arrows choose in it."""
    yield lab.tab_to(CELL)
    lab.press("Enter")
    for name, key, value in (("what", "ArrowDown", "self"), ("positions", "ArrowDown", "decision")):
        yield lab.tab_to(f"[name={name}]")
        lab.press(key)
        if lab.js(f"return rewired.ui.now().{name}") != value:
            yield f"{key} does not choose {value}"
    if not lab.text(VERDICT).endswith("The decision stands: it still " + _decides(lab)) or "exactly 0" not in lab.text(
        VERDICT
    ):
        yield f"a self-patch says {lab.text(VERDICT)!r}"


def _decides(lab: Lab) -> str:
    return "defects." if lab.js("return rewired.ui.sweep().target.delta > 0") else "cooperates."


def sweep(lab: Lab) -> Iterator[str | None]:
    """Try every component, stop it, begin again, and search a small set."""
    count = "[...document.querySelectorAll('#lab-patch .lab-cell')].filter((box) => box.dataset.value).length"
    yield lab.tab_to("[data-do=sweep]")
    lab.press("Enter")
    lab.press("Enter")
    stopped = lab.js(f"return {count}")
    lab.press("Enter")
    lab.idle()
    if lab.js(f"return {count}") != len(lab.js("return rewired.ui.lab().components(['head', 'mlp', 'attn', 'resid'])")):
        yield f"the sweep colours {lab.js(f'return {count}')} cells (stopped: {stopped})"
    yield lab.tab_to("[data-do=greedy]")
    lab.press("Enter")
    lab.idle()
    if "The decision flips" not in lab.text(VERDICT):
        yield f"a small set: {lab.text(VERDICT)!r}"
    yield lab.tab_to("[data-do=clear]")
    lab.press("Enter")
    if lab.js(CHOSEN):
        yield "not all is put back"


def puzzle(lab: Lab) -> Iterator[str | None]:
    """Start it, go back to the grid, and solve it with the set of the run."""
    yield lab.tab_to("[data-do=puzzle]")
    lab.press("Enter")
    for name in lab.js("return rewired.ui.lab().puzzles[0].components"):
        yield lab.tab_to(CELL, back=True) if not lab.js(HERE) else None
        reach(lab, name)
        lab.press(" ")
    if not lab.text(".lab-score").endswith("par!"):
        yield f"its set does not solve it: {lab.text('.lab-score')!r}"


def reach(lab: Lab, name: str) -> None:
    """Move by the arrows to a head or an MLP."""
    layer, place = int(name[1 : name.index("H" if "H" in name else "_")]), int(name.partition("H")[2] or 9)
    now = lab.js(HERE)
    up = layer - int(now[1 : now.index("H" if "H" in now else "_")])
    lab.press(*["ArrowUp" if up > 0 else "ArrowDown"] * abs(up), "Home", *["ArrowRight"] * place)


def looks(lab: Lab) -> Iterator[str | None]:
    """The keenest head, another head, the other model; the numbers, and the link."""
    yield lab.tab_to("[name=head]")
    before = lab.text(".lab-most")
    lab.press("ArrowDown")
    if lab.text(".lab-most") == before:
        yield "another head looks at the same"
    yield lab.tab_to("[name=whose]")
    lab.press("ArrowDown")
    if lab.js("return rewired.ui.now().whose") != "source" or "donor" not in lab.text(".lab-most"):
        yield "the donor's look is not shown"
    yield lab.tab_to("[data-do=keenest]")
    lab.press("Enter")
    if lab.js("return rewired.ui.now().head !== rewired.ui.keenest()"):
        yield "the keenest head is not shown"
    yield lab.tab_to("[data-do=check]")
    lab.press("Enter")
    if not lab.until("document.querySelector('.lab-golden span').textContent.startsWith('Recomputed')"):
        yield "the book's numbers are not recomputed"
    yield lab.tab_to("[data-do=share]")
    lab.press("Enter")
    if not lab.until("document.querySelector('.lab-share span').textContent"):
        yield "there is no link"


def learnt(lab: Lab) -> Iterator[str | None]:
    """From tab to tab by the arrows, then the run, Play, the slider and the states."""
    told, output = "return document.querySelector('.lab-course-told').textContent", "#lab-learnt output"
    yield lab.tab_to("#lab-tab-patch")
    lab.press("ArrowRight")
    if not lab.js(
        "return document.activeElement.id === 'lab-tab-learnt' && !document.querySelector('#lab-learnt').hidden"
    ):
        yield "the arrow does not open the second view"
    lab.until("document.querySelector('#lab-learnt polyline')")
    yield lab.tab_to("[data-do=play]")
    end = lab.text(output)
    lab.press("Enter")
    lab.until("document.querySelector('#lab-learnt output').textContent.startsWith('0 ')")
    lab.press(" ")
    if lab.text("[data-do=play]") != "Play":
        yield "Play cannot be stopped"
    yield lab.tab_to("[name=episode]")
    lab.press("Home")
    if not lab.text(output).startswith("0 ") or "Before any training" not in lab.js(told):
        yield f"Home does not lead to the base: {lab.text(output)}"
    lab.press("End")
    if lab.text(output) != end:
        yield f"End does not lead to the end: {lab.text(output)}, not {end}"
    yield lab.tab_to("[name=after]")
    lab.press("ArrowRight")
    if "contribution after CD" not in lab.js(told):
        yield "the arrow does not choose the next state"
    yield lab.tab_to("#lab-tab-learnt", back=True)
    lab.press("ArrowLeft")
    if lab.js("return document.querySelector('#lab-patch').hidden"):
        yield "the arrow does not lead back to the first view"
