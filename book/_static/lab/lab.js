/* The lab: opens the data of a run and gives the page its models, prompts, golden numbers and courses of training.

Data are classic scripts that call `rewired.data(name, content)`: the one way to load a file that browsers allow to a
page that was opened from a disk. Nothing is asked of another host. */
"use strict";
window.rewired = window.rewired || {};

(function (rewired) {
  const DEFAULTS = {
    state: "CC", matrix: [3, 0, 4, 1], wording: "structured", labels: ["action1", "action2"], temptation: false,
    arrangement: Object.fromEntries(rewired.SWAPS.map((name) => [name, false])) };
  const arrived = new Map();

  /** Called by every data file. */
  rewired.data = (name, content) => arrived.set(name, content);

  /** The content of a data file, loaded by a script element and then given away: its texts are large. */
  function fetched(folder, name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${folder}${name}.js`;
      script.onload = () => {
        script.remove();
        const content = arrived.get(name);
        arrived.delete(name);
        if (content) resolve(content);
        else reject(new rewired.Problem(`The file ${name}.js of the lab's data is damaged. Build the book anew.`));
      };
      script.onerror = () => {
        script.remove();
        reject(new rewired.Problem(
          `The file ${name}.js of the lab's data is missing here. Build the book, or copy the whole site.`));
      };
      document.head.append(script);
    });
  }

  class Lab {
    constructor(folder, about, wasm) {
      Object.assign(this, about);  // what data/lab.js says: profile, runs, config, scenarios, golden, puzzles, learnt …
      this.folder = folder;
      this.available = about.available !== false;
      if (!this.available) return;
      this.tokenizer = new rewired.Tokenizer(about.tokenizer);
      this.wordings = Object.keys(about.templates.wordings);
      this.store = new rewired.Store(wasm);
      this.usesWasm = this.store.usesWasm;
      this.models = new Map();  // name → promise of a Model
    }

    /** One prompt from a spec; what it does not say is as in the study. */
    build(spec) {
      const arrangement = { ...DEFAULTS.arrangement, ...spec.arrangement };
      return rewired.buildPrompt({ ...DEFAULTS, ...spec, arrangement }, this.templates);
    }

    /** The words of a prompt and its two labels as tokens up to the decision step. */
    encode(text, labels = DEFAULTS.labels) {
      const encoded = this.tokenizer.row(text, labels);
      if (encoded.ids.length > this.config.limit)
        throw new rewired.Problem(
          `These words are ${encoded.ids.length} tokens long; the lab takes ${this.config.limit} at most. Shorten them.`);
      return encoded;
    }

    components(kinds) {
      return rewired.components(this.config, kinds);
    }

    /** "base", or a run such as "strategic-1": its files are loaded and its adapter merged when first asked for. */
    model(name) {
      if (!this.runs.some((run) => run.name === name))
        return Promise.reject(new rewired.Problem(
          `There is no model "${name}" here: there are ${this.runs.map((run) => run.name).join(", ")}.`));
      if (!this.models.has(name)) {
        const made = this.made(name);
        made.catch(() => this.models.delete(name));  // it may be asked for again
        this.models.set(name, made);
      }
      return this.models.get(name);
    }

    async made(name) {
      this.base ??= this.madeBase();
      const [base, adapter] = await Promise.all([
        this.base, name === "base" ? null : fetched(this.folder, `adapter-${name}`)]);
      return new rewired.Model(base, name, adapter);
    }

    async madeBase() {
      try {
        return new rewired.Base(this.store, this.config, await fetched(this.folder, "base"));
      } catch (problem) {
        this.base = null;  // it may be asked for again
        throw problem;
      }
    }

    /** How a run learnt, checkpoint by checkpoint (see rewired.lab). */
    course(name) {
      return fetched(this.folder, `learnt-${name}`);
    }

    /** The book's own numbers, computed again here: {count, largest, rows}; `largest` difference in logits. */
    async check(onEach = () => {}) {
      const rows = [];
      for (const number of this.golden) {
        const source = await this.model(number.source), target = await this.model(number.target);
        const prompt = this.build(number.spec), encoded = this.encode(prompt.text, prompt.labels);
        const sweep = new rewired.Sweep(source.record(encoded), target.record(encoded), number);
        const recomputed = sweep.together([number.component]).delta;
        const differences = [
          recomputed - number.delta_patched,
          sweep.source.delta - number.delta_source,
          sweep.target.delta - number.delta_target];
        rows.push({ ...number, recomputed, difference: Math.max(...differences.map(Math.abs)) });
        onEach(rows.at(-1), rows.length - 1);
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
      return { count: rows.length, largest: Math.max(...rows.map((row) => row.difference)), rows };
    }
  }

  rewired.lab = {
    DEFAULTS,
    /** The lab of the data in `folder` (which ends with a slash). `available` is false where there are none. */
    async open(folder, { wasm = true } = {}) {
      try {
        return new Lab(folder, await fetched(folder, "lab"), wasm);
      } catch (problem) {
        if (!(problem instanceof rewired.Problem)) throw problem;
        return new Lab(folder, { available: false, reason: problem.message }, wasm);
      }
    },
  };
})(window.rewired);
