// What leads a reader through the lab: the tour of five steps, the puzzle, and the chapters' own examples.
// No number stands here: what a step says about the run is computed when the step is shown.
"use strict";

rewired.guide = (() => {
  const { ui, draw, choices } = rewired;
  let step = null; // the tour's step, null outside

  // --- the tour ------------------------------------------------------------------------------------------------------

  const first = () => ui.lab().puzzles[0];
  const scene = (chosen = []) => ui.set({ ...choices.ofPuzzle(first()), chosen });

  /** The first layer after which the two courses are farther apart than half of what they are at the end. */
  function parting() {
    const { source, target } = ui.sweep();
    const gaps = source.lens.map((delta, depth) => Math.abs(delta - target.lens[depth]));
    return gaps.findIndex((gap) => gap > Math.abs(gaps.at(-1)) / 2) - 1;
  }

  const STEPS = [
    {
      title: "Same words, two decisions",
      set: () => scene(),
      text: () =>
        "Both models read the same prompt. Each dial shows how likely a model is to defect. " +
        "They began as one base; only their rewards differed.",
    },
    {
      title: "Where the curves part",
      set: () => scene(),
      text: () =>
        `The logit lens reads Δ after every layer, from the bottom up. The curves begin at one point. ` +
        `More than half of their final gap is there after layer ${parting()}.`,
    },
    {
      title: "One head",
      set: () => scene(first().components.slice(0, 1)),
      text: () =>
        `${first().components[0]} now has the donor's activation. The thick curve leaves the thin one at exactly that row. ` +
        `Δ moves by ${draw.signed(ui.outcome().effect)} logits, and the decision ${ui.outcome().flip ? "flips" : "stands"}.`,
    },
    {
      title: "Try every component",
      set: () => scene().then(ui.tryAll),
      text: () =>
        "Every component is patched alone, layer after layer. Colour and number say how far each one moves Δ. " +
        "The sentence below the grid counts the flips.",
      takesLong: true,
    },
    {
      title: "A small set",
      set: () => scene(first().components),
      text: () =>
        `These ${first().components.length} together ${ui.outcome().flip ? "flip" : "do not flip"} the decision. ` +
        "A greedy search found them. " +
        "Now press ⇄ to exchange donor and patient: does the same set work the other way?",
    },
  ];

  /** Show a step of the tour; its text comes first where the step takes long. */
  async function go(k) {
    step = k;
    const { title, set, text, takesLong } = STEPS[k];
    const write = () => ui.say(ui.one(".lab-tour-text"), ["b", `${k + 1} of ${STEPS.length}. ${title}. `], text());
    frame(k);
    const done = set();
    if (takesLong) write();
    await done;
    if (step === k) write();
  }

  /** What stands around a step's text. */
  function frame(k) {
    const last = k === STEPS.length - 1;
    const pips = STEPS.map((_, i) => draw.element("span", { class: i < k ? "done" : i === k ? "here" : "" }));
    ui.one(".lab-pips").replaceChildren(...pips);
    ui.one('[data-do="tour"]').hidden = true;
    ui.one(".lab-step").hidden = false;
    ui.one('[data-do="tour-end"]').hidden = last;
    ui.one('[data-do="tour-next"]').textContent = last ? "Finish" : "Next";
    ui.one('[data-do="tour-next"]').focus();
    ui.one(".lab-theatre").classList.toggle("lab-look-here", k === 1);
  }

  function end() {
    step = null;
    ui.one(".lab-step").hidden = true;
    ui.one(".lab-theatre").classList.remove("lab-look-here");
    ui.one('[data-do="tour"]').hidden = false;
    ui.one('[data-do="tour"]').focus();
  }

  // --- the puzzle ----------------------------------------------------------------------------------------------------

  /** Show how the puzzle stands. */
  function follow() {
    if (!ui.lab().puzzles.length) return;
    const { puzzle: k } = ui.now();
    if (k !== null) ui.field("puzzle").value = k;
    const puzzle = ui.lab().puzzles[k ?? Number(ui.field("puzzle").value)];
    const playing = k !== null && holds(puzzle);
    const counted = playing ? ui.now().chosen.filter(draw.single) : [];
    task(puzzle);
    slots(counted, puzzle.components.length);
    for (const place of [".lab-puzzle", ".lab-told"]) ui.one(place).classList.toggle("lab-solved", playing && solved());
    ui.one('[data-do="puzzle"]').textContent = playing ? "Start over" : "Start";
    ui.one('[data-do="solution"]').hidden = !playing;
    ui.say(ui.one(".lab-score"), playing ? score(counted, puzzle.components.length) : "");
  }

  function task({ source, target, components }) {
    const { circuits } = ui.lab();
    const among = circuits ? ` among the ${circuits} strongest` : "";
    ui.say(
      ui.one(".lab-task"),
      `Flip the decision of the ${ui.title(target)} model with as few heads and MLPs of the ` +
        `${ui.title(source)} model as you can. ` +
        `A greedy search${among} needed ${components.length}: that is par.`,
    );
  }

  /** A slot for each component of the greedy set, filled by what the reader put in, and more where that was more. */
  function slots(counted, par) {
    const boxes = Array.from({ length: Math.max(par, counted.length) }, (_, i) => {
      const look = [i < counted.length ? "full" : "", i < par ? "" : "over"];
      return draw.element("span", { class: look.join(" ").trim() }, counted[i] ?? "");
    });
    ui.one(".lab-slots").replaceChildren(...boxes);
  }

  /** Choices that a player may make. */
  const FREE = ["chosen", "puzzle", "view", "whose", "draw"];

  /** Whether the puzzle's own pair, prompt and kind of patch are on the table. */
  function holds(puzzle) {
    const [own, now] = [choices.ofPuzzle(puzzle), ui.now()];
    const fixed = Object.keys(own).filter((name) => !FREE.includes(name));
    return fixed.every((name) => JSON.stringify(own[name]) === JSON.stringify(now[name]));
  }

  /** Heads and MLPs alone count, and they flip the decision. */
  const solved = () => ui.now().chosen.every(draw.single) && Boolean(ui.outcome()?.flip);

  function score(counted, par) {
    if (counted.length < ui.now().chosen.length)
      return "Whole attention layers and streams do not count. Take them out.";
    if (!counted.length) return `Puzzle, par ${par}: press heads and MLPs in the grid.`;
    const used = `${counted.length} ${counted.length === 1 ? "component" : "components"}`;
    if (!solved()) return `Puzzle: ${used}, par ${par}: Δ ${draw.signed(ui.outcome().delta)}. Not flipped yet.`;
    if (counted.length < par) return `Solved with ${used}: fewer than the greedy search, par ${par}!`;
    if (counted.length === par) return `Solved with ${used}: par!`;
    return `Solved with ${used}, par ${par}. Can you do it with fewer?`;
  }

  /** Puzzle ``k`` with nothing put in, or with its solution. */
  const begin = (k, chosen = []) => ui.set({ ...choices.ofPuzzle(ui.lab().puzzles[k]), puzzle: k, chosen });

  /** The player goes to the grid. */
  async function play(k) {
    await begin(k);
    ui.one(".lab-models").scrollIntoView();
    ui.one('.lab-grid [tabindex="0"]').focus({ preventScroll: true });
  }

  function solution() {
    const { puzzle } = ui.now();
    return begin(puzzle, ui.lab().puzzles[puzzle].components);
  }

  // --- the chapters' examples ----------------------------------------------------------------------------------------

  /** The first run of a variant; the last run of all where there is none. */
  function run(variant) {
    const { runs } = ui.lab();
    return (runs.find((one) => one.variant === variant) || runs.at(-1)).name;
  }

  /** The choices that make one of the book's scenario prompts. */
  function prompt(id) {
    const scenario = ui.lab().scenarios.find((one) => one.id === id);
    if (!scenario) throw new rewired.Problem(`This build of the book has no prompt ${id}.`);
    return choices.ofSpec(scenario.spec);
  }

  /** {heading's id on the page: what is on the table there, and what is done then}. */
  const EXAMPLES = {
    "where-two-courses-part": {
      set: () => ({ source: "base", target: run("strategic"), ...prompt("CC_continue/v0") }),
    },
    "every-part-of-one-pair": {
      set: () => ({ source: run("strategic"), target: run("deontological"), ...prompt("CC_continue/v0") }),
      then: () => ui.tryAll(),
    },
    "a-head-that-looks-at-their-move": {
      set: () => ({ source: run("deontological"), target: run("strategic"), ...prompt("CC_continue/v0") }),
      then: () => ui.set({ head: ui.keenest() }),
      at: ".lab-looks",
    },
    "heads-of-a-reciprocator": {
      set: () => ({
        source: run("strategic"),
        target: run("deontological"),
        ...prompt("CC_continue/x3"),
        mode: "output",
        chosen: ui.lab().reciprocator,
      }),
    },
  };

  /** Put an example on the table, and bring it into view. */
  async function example(id) {
    const { set, then, at } = EXAMPLES[id];
    await ui.set({ ...choices.PLAIN, ...set() });
    ui.one(at || ".lab-models").scrollIntoView({ block: at ? "center" : "start" });
    if (then) await then();
  }

  /** A button below the heading of each example, here because it does nothing without JavaScript. */
  function offerExamples() {
    for (const id of Object.keys(EXAMPLES)) {
      const section = document.getElementById(id)?.closest("section");
      if (!section) continue;
      const button = draw.element("button", { type: "button", class: "lab-load" }, "Load this example");
      button.addEventListener("click", () => example(id));
      section.append(button);
    }
  }

  function open() {
    const select = ui.field("puzzle");
    const { puzzles } = ui.lab();
    for (const [k, { source, target }] of puzzles.entries()) {
      select.add(new Option(`${ui.title(source)} into ${ui.title(target)}`, k));
    }
    select.addEventListener("change", () => begin(Number(select.value)));
    const does = {
      tour: () => go(0),
      "tour-next": () => (step === STEPS.length - 1 ? end() : go(step + 1)),
      "tour-end": end,
      puzzle: () => play(Number(select.value)),
      solution,
    };
    for (const [name, act] of Object.entries(does)) ui.one(`[data-do="${name}"]`).addEventListener("click", act);
    ui.one(".lab-puzzle").hidden = !puzzles.length;
    ui.one(".lab-tour").hidden = !puzzles.length;
    offerExamples();
  }

  return { open, follow, examples: EXAMPLES, example, go, steps: STEPS };
})();
