// What leads a reader through the lab: the tour of five steps, the puzzle, and the chapters' own examples.
// No number stands here: what a step says about the run is computed when the step is shown.
"use strict";

rewired.guide = (() => {
  const ui = () => rewired.ui;
  const { draw } = rewired;
  let step = null; // the tour's step, null outside

  /** The pair and the prompt of a puzzle of the run, with nothing put in. */
  function scene(k = 0) {
    const lab = ui().lab();
    const { source, target, spec, mode = "output" } = lab.puzzles[k]; // the run's circuits are made of outputs
    const { state, matrix, wording, labels, temptation, arrangement } = lab.build(spec);
    const full = { state, matrix, wording, labels, temptation: Boolean(temptation), arrangement };
    return {
      source,
      target,
      spec: full,
      words: null,
      chosen: [],
      what: "source",
      positions: "all",
      mode,
      view: "patch",
    };
  }

  // --- the tour ------------------------------------------------------------------------------------------------------

  /** The first layer after which the two courses are farther apart than half of what they are at the end. */
  function parting() {
    const { source, target } = ui().sweep();
    const gaps = source.lens.map((delta, depth) => Math.abs(delta - target.lens[depth]));
    return gaps.findIndex((gap) => gap > gaps.at(-1) / 2) - 1;
  }

  const puzzle = () => ui().lab().puzzles[0];

  const STEPS = [
    {
      title: "Same words, two decisions",
      set: () => ui().set(scene()),
      text: () =>
        "Both models read the same prompt. Each dial shows how likely a model is to defect. " +
        "They began as one base; only their rewards differed.",
    },
    {
      title: "Where the curves part",
      set: () => ui().set(scene()),
      text: () =>
        `The logit lens reads Δ after every layer, from the bottom up. The curves begin at one point. ` +
        `More than half of their final gap is there after layer ${parting()}.`,
    },
    {
      title: "One head",
      set: () => ui().set({ ...scene(), chosen: puzzle().components.slice(0, 1) }),
      text: () =>
        `${puzzle().components[0]} now has the donor's activation. The thick curve leaves the thin one at exactly that row. ` +
        `Δ moves by ${draw.signed(ui().outcome().effect)} logits, and the decision ${ui().outcome().flip ? "flips" : "stands"}.`,
    },
    {
      title: "Try every part",
      set: async () => {
        await ui().set(scene());
        await ui().tryAll();
      },
      text: () =>
        "Every part is patched alone, layer after layer. Colour and number say how far each one moves Δ. " +
        "The sentence below the grid counts the flips.",
    },
    {
      title: "A small set",
      set: () => ui().set({ ...scene(), chosen: puzzle().components }),
      text: () =>
        `These ${puzzle().components.length} together ${ui().outcome().flip ? "flip" : "do not flip"} the decision. ` +
        "A greedy search found them. " +
        "Now press ⇄ to exchange donor and patient: does the same set work the other way?",
    },
  ];

  /** Show a step of the tour; its text comes first where the step takes long. */
  async function go(k) {
    step = k;
    const { title, set, text } = STEPS[k];
    ui().one('[data-do="tour"]').hidden = true;
    ui().one(".lab-step").hidden = false;
    const pips = STEPS.map((_, i) => draw.element("span", { class: i < k ? "done" : i === k ? "here" : "" }));
    ui()
      .one(".lab-pips")
      .replaceChildren(...pips);
    ui().one('[data-do="tour-end"]').hidden = k === STEPS.length - 1;
    ui().one('[data-do="tour-next"]').textContent = k === STEPS.length - 1 ? "Finish" : "Next";
    const write = () => ui().say(ui().one(".lab-tour-text"), ["b", `${k + 1} of ${STEPS.length}. ${title}. `], text());
    const done = set();
    if (k === 3) write();
    await done;
    if (step === k) write();
    ui()
      .one(".lab-theatre")
      .classList.toggle("lab-look-here", k === 1);
  }

  function end() {
    step = null;
    ui().one(".lab-step").hidden = true;
    ui().one('[data-do="tour"]').hidden = false;
    ui().one(".lab-theatre").classList.remove("lab-look-here");
    ui().one('[data-do="tour"]').focus();
  }

  // --- the puzzle ----------------------------------------------------------------------------------------------------

  /** Show how the puzzle stands: a slot for each component of the greedy set, filled by what the reader put in. */
  function follow() {
    const { puzzle: k, chosen } = ui().now();
    const { puzzles } = ui().lab();
    if (k !== null) ui().field("puzzle").value = k;
    const asked = Number(ui().field("puzzle").value || 0);
    const { source, target, components } = puzzles[k ?? asked];
    const par = components.length;
    ui().say(
      ui().one(".lab-task"),
      `Flip the decision of the ${ui().title(target)} model with as few heads and MLPs of the ` +
        `${ui().title(source)} model as you can. ` +
        `A greedy search needed ${par}: that is par.`,
    );
    const counted = chosen.filter((name) => /H|MLP/.test(name));
    const playing = k !== null && holds(k);
    const slots = Array.from({ length: Math.max(par, playing ? counted.length : 0) }, (_, i) =>
      draw.element(
        "span",
        { class: `${playing && i < counted.length ? "full" : ""}${i >= par ? " over" : ""}` },
        playing && counted[i] ? counted[i] : "",
      ),
    );
    ui()
      .one(".lab-slots")
      .replaceChildren(...slots);
    ui()
      .one(".lab-puzzle")
      .classList.toggle("lab-solved", playing && solved(counted));
    ui().one('[data-do="puzzle"]').textContent = playing ? "Start over" : "Start";
    ui().one('[data-do="solution"]').hidden = !playing;
    ui().say(ui().one(".lab-score"), playing ? score(counted, chosen, par) : "");
  }

  /** Whether the puzzle's own pair, prompt and kind of patch are on the table. */
  function holds(k) {
    const { source, target, spec, words, what, positions, mode } = ui().now();
    const own = scene(k);
    const same = JSON.stringify([source, target, spec]) === JSON.stringify([own.source, own.target, own.spec]);
    return same && words === null && what === "source" && positions === "all" && mode === own.mode;
  }

  const solved = (counted) =>
    counted.length === ui().now().chosen.length && Boolean(ui().outcome() && ui().outcome().flip);

  function score(counted, chosen, par) {
    if (counted.length < chosen.length) return "Whole attention layers and streams do not count. Take them out.";
    if (!counted.length) return "Press heads and MLPs in the grid.";
    const { delta, flip } = ui().outcome();
    const used = `${counted.length} ${counted.length === 1 ? "component" : "components"}`;
    if (!flip) return `${used}, par ${par}: Δ ${draw.signed(delta)}. Not flipped yet.`;
    if (counted.length < par) return `Solved with ${used}: fewer than the greedy search, par ${par}!`;
    return counted.length === par
      ? `Solved with ${used}: par!`
      : `Solved with ${used}, par ${par}. Can you do it with fewer?`;
  }

  const begin = (k) => ui().set({ ...scene(k), puzzle: k });

  function solution() {
    const k = ui().now().puzzle;
    return ui().set({ ...scene(k), puzzle: k, chosen: ui().lab().puzzles[k].components });
  }

  // --- the chapters' examples ----------------------------------------------------------------------------------------

  /** A run of a variant with the smallest seed; the first run of all where there is none. */
  function run(variant) {
    const { runs } = ui().lab();
    return (runs.find((one) => one.variant === variant) || runs.at(-1)).name;
  }

  /** The words of one of the book's scenario prompts. */
  function prompt(id) {
    const lab = ui().lab();
    const scenario = lab.scenarios.find((one) => one.id === id);
    const { state, matrix, wording, labels, temptation, arrangement } = lab.build(scenario ? scenario.spec : {});
    return { state, matrix, wording, labels, temptation: Boolean(temptation), arrangement };
  }

  const PLAIN = {
    words: null,
    chosen: [],
    what: "source",
    positions: "all",
    mode: "input",
    view: "patch",
    puzzle: null,
  };

  /** {heading's id on the page: what is on the table there, and what is done then}. */
  const EXAMPLES = {
    "where-two-courses-part": {
      set: () => ({ source: "base", target: run("strategic"), spec: prompt("CC_continue/v0") }),
    },
    "every-part-of-one-pair": {
      set: () => ({ source: run("strategic"), target: run("deontological"), spec: prompt("CC_continue/v0") }),
      then: () => ui().tryAll(),
    },
    "a-head-that-looks-at-their-move": {
      set: () => ({
        source: run("deontological"),
        target: run("strategic"),
        whose: "target",
        spec: prompt("CC_continue/v0"),
      }),
      then: () => ui().set({ head: ui().keenest() }),
      at: ".lab-looks",
    },
    "heads-of-a-reciprocator": {
      set: () => ({
        source: run("strategic"),
        target: run("deontological"),
        spec: prompt("CC_continue/x3"),
        mode: "output",
        chosen: ["L5H2", "L5H4", "L5H5", "L7H3"].filter((name) => ui().lab().components().includes(name)),
      }),
    },
  };

  /** Put an example on the table, and bring it into view. */
  async function example(id) {
    const { set, then, at } = EXAMPLES[id];
    await ui().set({ ...PLAIN, ...set() });
    ui()
      .one(at || ".lab-models")
      .scrollIntoView({ block: at ? "center" : "start" });
    if (then) await then();
  }

  /** A button below the heading of each example, here because it does nothing without JavaScript. */
  function offerExamples() {
    for (const id of Object.keys(EXAMPLES)) {
      const place = document.getElementById(id);
      const section = place && (place.matches("section") ? place : place.closest("section"));
      if (!section) continue;
      const button = draw.element("button", { type: "button", class: "lab-load" }, "Load this example");
      button.addEventListener("click", () => example(id));
      section.append(button);
    }
  }

  function open() {
    const select = ui().field("puzzle");
    for (const [k, { source, target }] of ui().lab().puzzles.entries()) {
      select.add(new Option(`${ui().title(source)} into ${ui().title(target)}`, k));
    }
    select.addEventListener("change", () => begin(Number(select.value)));
    const does = {
      tour: () => go(0),
      "tour-next": () => (step === STEPS.length - 1 ? end() : go(step + 1)),
      "tour-end": end,
      puzzle: () => begin(Number(select.value)),
      solution,
    };
    for (const [name, act] of Object.entries(does)) ui().one(`[data-do="${name}"]`).addEventListener("click", act);
    ui().one(".lab-puzzle").hidden = !ui().lab().puzzles.length;
    ui().one(".lab-tour").hidden = !ui().lab().puzzles.length;
    offerExamples();
  }

  return { open, follow: () => ui().lab().puzzles.length && follow(), examples: EXAMPLES, example, go, steps: STEPS };
})();
