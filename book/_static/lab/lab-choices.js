// What a reader chooses in the lab, and how the choices stand in the address of the page, after its #.
//
// Choices are one flat object. Some make the prompt (state, matrix, wording, cooperate, defect, temptation and the four
// swaps); ``words`` are the reader's own instead. The others say what is patched, and what the page shows.
"use strict";

rewired.choices = (() => {
  /** An experiment at its plainest. What is so is left out of an address. */
  const PLAIN = {
    temptation: false,
    ...Object.fromEntries(rewired.SWAPS.map((name) => [name, false])),
    words: null,
    chosen: [],
    what: "source",
    draw: 1,
    positions: "all",
    mode: "input",
    whose: "target",
    puzzle: null,
    view: "patch",
  };

  /** The choices that make a prompt, from a spec of the engine. */
  function ofSpec({ state, matrix, wording, labels, temptation, arrangement }) {
    const [cooperate, defect] = labels;
    return { state, matrix, wording, cooperate, defect, temptation, ...arrangement };
  }

  /** The spec of the chosen prompt. */
  function spec(choices) {
    const { state, matrix, wording, cooperate, defect, temptation } = choices;
    const arrangement = Object.fromEntries(rewired.SWAPS.map((name) => [name, choices[name]]));
    return { state, matrix, wording, labels: [cooperate, defect], temptation, arrangement };
  }

  /** The pair, the prompt and the mode of a puzzle, with nothing put in: the run's circuits are made of outputs. */
  const ofPuzzle = ({ source, target, spec, mode = "output" }) => ({ ...PLAIN, ...ofSpec(spec), source, target, mode });

  /** The choices at the start: those of the first puzzle, or the last run and the first. */
  function start(lab) {
    const [puzzle] = lab.puzzles;
    const heads = lab.components(["head"]);
    const names = lab.runs.map(({ name }) => name);
    const pair = { ...PLAIN, ...ofSpec(rewired.lab.DEFAULTS), source: names.at(-1), target: names[0] };
    const head = heads.find((name) => puzzle && puzzle.components.includes(name)) || heads[0];
    return { ...(puzzle ? ofPuzzle(puzzle) : pair), head, run: null, episode: null };
  }

  // --- the address ---------------------------------------------------------------------------------------------------

  const among = (allowed) => (text) => (allowed.includes(text) ? text : undefined);
  const flag = (text) => text === "1";
  const anything = (text) => text || undefined;
  const whole = (text) => (/^\d{1,6}$/.test(text) ? Number(text) : undefined);

  function points(text) {
    const numbers = text.split(".").map(Number);
    const allowed = numbers.length === 4 && numbers.every((x) => Number.isInteger(x) && Math.abs(x) < 100);
    return allowed ? numbers : undefined;
  }

  /** For each choice, what its words in an address say; undefined where they say nothing that there is. */
  function readers(lab) {
    const runs = lab.runs.map(({ name }) => name);
    const components = lab.components(["head", "mlp", "attn", "resid"]);
    return {
      source: among(runs),
      target: among(runs),
      state: among(rewired.STATES),
      matrix: points,
      wording: among(lab.wordings),
      cooperate: anything,
      defect: anything,
      temptation: flag,
      ...Object.fromEntries(rewired.SWAPS.map((name) => [name, flag])),
      words: anything,
      chosen: (text) => components.filter((name) => text.split(".").includes(name)),
      what: among(["source", "self", "random"]),
      draw: whole,
      positions: among(["all", "decision"]),
      mode: among(["input", "output"]),
      head: among(lab.components(["head"])),
      whose: among(["source", "target"]),
      puzzle: (text) => (text in lab.puzzles ? whole(text) : undefined),
      view: among(lab.learnt ? ["patch", "learnt"] : ["patch"]),
      run: among(lab.learnt || []),
      episode: whole,
    };
  }

  /** Choices as the part of an address after #, without those that are plain. */
  function written(choices) {
    const pairs = new URLSearchParams();
    for (const [name, value] of Object.entries(choices)) {
      const text = Array.isArray(value) ? value.join(".") : String(typeof value === "boolean" ? Number(value) : value);
      const plain = name in PLAIN && JSON.stringify(value) === JSON.stringify(PLAIN[name]);
      if (value !== null && !plain) pairs.set(name, text);
    }
    return pairs.toString();
  }

  /** Choices from an address. What it does not say is plain, or as at the start. */
  function read(text, lab) {
    const choices = { ...start(lab), ...PLAIN };
    const asked = new URLSearchParams(text);
    for (const [name, reader] of Object.entries(readers(lab))) {
      if (asked.has(name)) choices[name] = reader(asked.get(name)) ?? choices[name];
    }
    return choices;
  }

  return { PLAIN, ofSpec, ofPuzzle, spec, start, written, read };
})();
