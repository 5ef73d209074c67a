/* Activation patching in the page: which parts carry the difference between two models? As `tracing.patching`.

The *target* runs, but some components get the activations that they had in the *source* at the same positions:

  L3H0      a head: in mode "input" its slice of what W_O reads; in mode "output" its share of the sum, made by the
            source's W_O
  L3_MLP    the MLP's output, before the post-feedforward norm
  L3_ATTN   the attention layer's output, before the post-attention norm
  L3_RESID  the residual stream after the layer

effect = delta(patched) − delta(target). A patched pass starts at the layer of its first patch, from the recording. */
"use strict";
window.rewired = window.rewired || {};

(function (rewired) {
  const KINDS = ["head", "mlp", "attn", "resid"];

  /** The names of all components of these kinds, by layer. */
  rewired.components = function ({ depth, heads }, kinds = ["head", "mlp"]) {
    const names = [];
    for (let layer = 0; layer < depth; layer++)
      for (const kind of kinds) {
        if (!KINDS.includes(kind))
          throw new rewired.Problem(`There is no kind "${kind}": there are ${KINDS.join(", ")}.`);
        if (kind === "head") for (let head = 0; head < heads; head++) names.push(`L${layer}H${head}`);
        else names.push(`L${layer}_${kind.toUpperCase()}`);
      }
    return names;
  };

  /** {name, layer, kind, head} of a component's name, such as L3H0 or L3_MLP (its head is −1); null of another word. */
  rewired.parsed = function (name) {
    const parts = /^L(\d+)(?:H(\d+)|_(MLP|ATTN|RESID))$/.exec(name);
    if (!parts) return null;
    const [, layer, head = -1, kind = "HEAD"] = parts;
    return { name, layer: Number(layer), kind: kind.toLowerCase(), head: Number(head) };
  };

  /** A component of the model, with `start`: the first layer that a patch of it changes inside. */
  rewired.component = function (name, { depth, heads }) {
    const component = rewired.parsed(name);
    if (!component || component.layer >= depth || component.head >= heads)
      throw new rewired.Problem(
        `There is no component "${name}": there are L0H0 to L${depth - 1}H${heads - 1}, L0_MLP, L0_ATTN, L0_RESID ….`);
    return { ...component, start: component.layer + (component.kind === "resid" ? 1 : 0) };
  };

  /** Numbers from 0 to 1 that only a text decides (mulberry32, seeded by a hash of the text). */
  function drawn(text) {
    let state = 2166136261;
    for (const character of text) state = Math.imul(state ^ character.codePointAt(0), 16777619);
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** `own` plus, at every position, a random direction of the length of `there` - `own`: all [position, width]. */
  function inRandomDirection(there, own, width, text) {
    const uniform = drawn(text), moved = own.slice(), direction = new Float64Array(width);
    for (let at = 0; at < own.length; at += width) {
      let gap = 0, length = 0;
      for (let i = 0; i < width; i++) {
        gap += (there[at + i] - own[at + i]) ** 2;
        // a normal number by Box and Muller's way
        direction[i] = Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
        length += direction[i] ** 2;
      }
      for (let i = 0; i < width; i++) moved[at + i] += direction[i] * Math.sqrt(gap / length);
    }
    return moved;
  }

  const nextTask = () => new Promise((resolve) => setTimeout(resolve, 0));

  rewired.Sweep = class Sweep {
    /** Patches from one recording into another, both of the same tokens.
     * @param {{positions: "all"|"decision", mode: "input"|"output"}} how */
    constructor(source, target, { positions = "all", mode = "input" } = {}) {
      if (source.encoded.ids.join() !== target.encoded.ids.join())
        throw new rewired.Problem(
          "The source and the target of a patch were not recorded on the same words, so their positions do not match.");
      if (!["all", "decision"].includes(positions))
        throw new rewired.Problem(`positions is "${positions}": "all" or "decision".`);
      if (!["input", "output"].includes(mode)) throw new rewired.Problem(`mode is "${mode}": "input" or "output".`);
      Object.assign(this, { source, target, positions, mode, model: target.model, config: target.model.config });
      this.first = positions === "decision" ? target.encoded.step : 0;  // the first position that is patched
      this.shares = new Map();  // heads' shares of their sums, in mode "output"
    }

    named(names) {
      return names.map((name) => rewired.component(name, this.config));
    }

    /** What gives a component its activation in `recording`: {site, layer, head, values [position, step], …}. */
    patch(component, recording, mode = this.mode) {
      const { layer, kind, head } = component, { d_model, heads, head_dim } = this.config;
      const patch = { layer, head, from: this.first, step: d_model, place: 0, width: d_model };
      if (kind === "resid") return { ...patch, site: "resid", values: recording.resid[layer + 1] };
      if (kind !== "head") return { ...patch, site: `${kind}_out`, values: recording[`${kind}_out`][layer] };
      if (mode === "output") return { ...patch, site: "head_out", values: this.share(component, recording) };
      const slice = { step: heads * head_dim, place: head * head_dim, width: head_dim };
      return { ...patch, ...slice, site: "z", values: recording.z[layer] };
    }

    /** z W_O of one head, by the model of the recording: [position, d_model]. */
    share({ name, layer, head }, { model, z, encoded }) {
      const key = `${model.name} ${name}`;
      if (!this.shares.has(key)) {
        const { store, room } = model.base, { heads, head_dim, d_model } = this.config;
        const weight = model.layers[layer]["self_attn.o_proj"], count = encoded.ids.length;
        model.put(room.z, z[layer], 0, count);
        const slice = { at: room.z.at + head * head_dim, step: heads * head_dim };
        const rows = { at: weight.at + 8 * head * head_dim, panel: weight.panel };  // the head's rows of every panel
        store.product(slice, rows, room.out, rewired.fours(count), head_dim, d_model);
        this.shares.set(key, store.F.slice(room.out.at, room.out.at + count * d_model));
      }
      return this.shares.get(key);
    }

    /** The same patch with the target's activation moved in a random direction, as far as the source's is away. */
    randomPatch(component, seed) {
      const there = this.patch(component, this.source), own = this.patch(component, this.target);
      const [a, b] = [there, own].map(({ values, step, place, width }) => {
        const slice = new Float32Array((values.length / step) * width);  // [position, width]
        for (let row = 0; row * step < values.length; row++)
          slice.set(values.subarray(row * step + place, row * step + place + width), row * width);
        return slice;
      });
      const moved = inRandomDirection(a, b, own.width, `${seed} ${component.name}`);
      if (own.place === 0 && own.step === own.width) return { ...own, values: moved };
      const values = own.values.slice();
      for (let row = 0; row * own.step < values.length; row++)
        values.set(moved.subarray(row * own.width, (row + 1) * own.width), row * own.step + own.place);
      return { ...own, values };
    }

    /** One patched pass, over `below` (the target's recording, or that of a patched pass). */
    forward(patches, start, { below = this.target, record = false } = {}) {
      const listed = new rewired.Patches(patches), { encoded } = this.target;
      return this.model.forward({ encoded, start, below, patches: listed, first: this.first, record });
    }

    /** A pass's outcome beside the target's: {delta, effect, flip, recovered, p_defect, legal_mass, lens}. */
    compared(outcome) {
      const effect = outcome.delta - this.target.delta;
      const flip = outcome.delta > 0 !== this.target.delta > 0;
      const gap = this.source.delta - this.target.delta;
      return { ...outcome, effect, flip, recovered: gap ? effect / gap : NaN };
    }

    start(components) {
      return Math.min(this.config.depth, ...components.map(({ start }) => start));
    }

    /** All these components patched at once, in any number: see `compared`. */
    together(names) {
      const components = this.named(names);
      const patches = components.map((component) => this.patch(component, this.source));
      return this.compared(this.forward(patches, this.start(components)));
    }

    /** A control instead: "self", the target's own activations (effect 0), or "random", a random direction of the same
     * length at every position. */
    control(kind, names, seed = 0) {
      if (!["self", "random"].includes(kind))
        throw new rewired.Problem(`There is no control "${kind}": "self" or "random".`);
      const components = this.named(names);
      const patches = components.map((component) =>
        kind === "self" ? this.patch(component, this.target, "input") : this.randomPatch(component, seed));
      return this.compared(this.forward(patches, this.start(components)));
    }

    /** A small circuit: add, step by step, the candidate that moves delta farthest toward the source's, until delta
     * changes sign, none moves it closer, or `limit` are in. Resolves to the steps: [{component, …outcome}]; none
     * where both models decide alike. */
    async greedy(names, { limit = Infinity, onStep = () => {}, onTry = () => {}, signal } = {}) {
      const own = this.target.delta, rest = this.named(names), chosen = [], steps = [];
      const direction = Math.sign(this.source.delta - own);
      let reached = own, below = this.target;
      if (this.source.delta > 0 === own > 0) return steps;
      while (rest.length && steps.length < limit && reached > 0 === own > 0) {
        const best = await this.farthest(rest, chosen, below, { direction, onTry, signal });
        if (!best || (best.delta - reached) * direction <= 0) break;
        reached = best.delta;
        const [component] = rest.splice(best.place, 1);
        chosen.push(component);
        steps.push({ component: component.name, ...this.compared(best.outcome) });
        onStep(steps.at(-1));
        if (this.positions === "all") below = this.recorded(chosen);
      }
      return steps;
    }

    /** The recording of a pass with these components patched: what a further patch may start from. */
    recorded(components) {
      const patches = components.map((component) => this.patch(component, this.source));
      return this.forward(patches, this.start(components), { record: true }).recording;
    }

    /** Of all candidates the one that, beside those chosen, moves delta farthest: {place, delta, outcome}. */
    async farthest(candidates, chosen, below, { direction, onTry, signal }) {
      let best = null;
      const before = chosen.map((component) => this.patch(component, this.source));
      for (const [place, candidate] of candidates.entries()) {
        if (signal?.aborted) return null;
        const patches = [...before, this.patch(candidate, this.source)];
        const start = below === this.target ? this.start([...chosen, candidate]) : candidate.start;
        const outcome = this.forward(patches, start, { below });
        onTry(candidate.name, outcome);
        if (!best || (outcome.delta - best.delta) * direction > 0) best = { place, delta: outcome.delta, outcome };
        await nextTask();
      }
      return best;
    }
  };
})(window.rewired);
