/* A Gemma-2 in the page: weights, one forward pass that records every site, and the decision read from a stream.

Names are those of the library: `resid` (the residual stream entering each layer, and the final one), `z` (what the
heads have gathered), `attn_out`, `mlp_out`; `delta` in logits, negative = cooperate. A pass computes rows of tokens in
the store's memory; what a recording keeps of them are arrays [position, width], one a layer. */
"use strict";
window.rewired = window.rewired || {};

(function (rewired) {
  const MODULES = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
  const NORMS = [
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"];

  const SITES = ["resid", "z", "attn_out", "mlp_out", "q", "k", "v"];

  /** {name: {rows, columns, values}} of an exported file: its tensors lie one behind the other in one base64 text. */
  function unpacked({ tensors, weights }) {
    const all = new Float32Array(rewired.fromBase64(weights).buffer);
    const named = {};
    let at = 0;
    for (const [name, rows, columns] of tensors) {
      named[name] = { rows, columns, values: all.subarray(at, at + rows * columns) };
      at += rows * columns;
    }
    return named;
  }

  /** W + scale B A of one module, added in double precision and rounded once. */
  function merged({ rows, columns, values }, A, B, scale) {
    const rank = A.rows, sum = new Float64Array(columns), result = new Float32Array(values.length);
    for (let row = 0; row < rows; row++) {
      sum.fill(0);
      for (let r = 0; r < rank; r++) {
        const b = scale * B.values[row * rank + r];
        for (let k = 0, a = r * columns; k < columns; k++, a++) sum[k] += b * A.values[a];
      }
      for (let k = 0, w = row * columns; k < columns; k++, w++) result[w] = values[w] + sum[k];
    }
    return result;
  }

  /** What all models share: the base's weights, the embedding, the norms, and the room in which passes are computed. */
  rewired.Base = class Base {
    constructor(store, config, file) {
      this.store = store;
      this.config = config;
      this.weights = unpacked(file);
      this.embedding = this.weights.embed_tokens.values;  // [token, d_model]
      this.norms = Array.from({ length: config.depth }, (_, layer) =>
        Object.fromEntries(NORMS.map((name) => [name, this.gain(`layers.${layer}.${name}`)])));
      this.finalNorm = this.gain("norm");
      this.room = new Room(store, config);
      this.recorded = [];  // the newest two recordings, megabytes each
    }

    /** 1 + weight, by which Gemma's norm multiplies: [d_model]. */
    gain(name) {
      return this.weights[name].values.map((weight) => 1 + weight);
    }
  };

  /** The rows that a pass works on: x [position, d_model] and what is computed of it, at fixed places of the store. */
  class Room {
    constructor(store, { d_model, heads, kv_heads, head_dim, d_mlp, limit, inv_freq }) {
      const rows = limit + 4;  // products write whole fours
      const widths = {
        x: d_model, normed: d_model, out: d_model, q: heads * head_dim, k: kv_heads * head_dim, v: kv_heads * head_dim,
        z: heads * head_dim, gate: d_mlp, up: d_mlp };
      for (const [name, width] of Object.entries(widths)) this[name] = { at: store.take(rows * width), step: width };
      const keys = rewired.eights(rows);
      this.scores = { at: store.take(4 * keys), step: keys };
      this.keys = { at: store.take(keys * head_dim), panel: 8 * head_dim };
      this.values = { at: store.take(keys * head_dim), panel: 8 * keys };
      const half = head_dim / 2;
      this.cos = new Float32Array(rows * half);  // [position, half]
      this.sin = new Float32Array(rows * half);
      for (let i = 0; i < rows * half; i++) {
        const angle = Math.fround(Math.floor(i / half) * inv_freq[i % half]);  // in single precision, as Python does
        this.cos[i] = Math.cos(angle);
        this.sin[i] = Math.sin(angle);
      }
    }
  }

  /** x / sqrt(mean(x²) + eps) × gain, for `count` rows of `width`. */
  function normRows(F, from, to, gain, { count, width, eps }) {
    for (let row = 0; row < count; row++) {
      const x = from.at + row * from.step, y = to.at + row * to.step;
      let sum = 0;
      for (let i = 0; i < width; i++) sum += F[x + i] * F[x + i];
      const scale = 1 / Math.sqrt(sum / width + eps);
      for (let i = 0; i < width; i++) F[y + i] = F[x + i] * scale * gain[i];
    }
  }

  /** Turn each head's rows by their position's angles. */
  function rotate(F, rows, first, count, { heads, headDim, cos, sin }) {
    const half = headDim / 2;
    for (let row = 0; row < count; row++) {
      const angle = (first + row) * half;
      for (let head = 0; head < heads; head++) {
        const at = rows.at + row * rows.step + head * headDim;
        for (let i = 0; i < half; i++) {
          const a = F[at + i], b = F[at + half + i], c = cos[angle + i], s = sin[angle + i];
          F[at + i] = a * c - b * s;
          F[at + half + i] = b * c + a * s;
        }
      }
    }
  }

  /** tanh; of small numbers by its series, which is as exact (to 1e-8) and several times as fast. */
  function tanh(x) {
    const square = x * x;
    if (square < 0.0625)
      return x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315 - square * (62 / 2835)))));
    return 1 - 2 / (Math.exp(2 * x) + 1);
  }

  /** gate ← gelu(gate) × up, with GELU's tanh form written as a logistic function. */
  function gated(F, gate, up, count) {
    for (let i = 0; i < count; i++) {
      const a = F[gate.at + i];
      F[gate.at + i] = (a / (1 + Math.exp(-1.5957691216057308 * (a + 0.044715 * a * a * a)))) * F[up.at + i];
    }
  }

  const offset = (rows, row) => ({ at: rows.at + row * rows.step, step: rows.step });

  rewired.Model = class Model {
    /** @param {Base} base @param {string} name @param {object|null} adapter an exported file; null for the base */
    constructor(base, name, adapter) {
      this.base = base;
      this.name = name;
      this.config = base.config;
      const update = adapter ? unpacked(adapter) : {}, used = new Set();
      this.layers = Array.from({ length: this.config.depth }, (_, layer) =>
        Object.fromEntries(MODULES.map((module) => {
          const path = `layers.${layer}.${module}`, { rows, columns, values } = base.weights[path];
          const A = update[`${path}.A`], B = update[`${path}.B`];
          if (A) used.add(`${path}.A`).add(`${path}.B`);
          const weights = A ? merged(base.weights[path], A, B, adapter.scale) : values;
          const at = base.store.take(rows * columns);
          return [module, { rows, columns, ...base.store.pack(weights, rows, columns, at) }];
        })));
      if (used.size < Object.keys(update).length)
        throw new rewired.Problem(
          `The adapter of ${name} changes more than the layers' linear modules; the page cannot run it.`);
    }

    /** The activations of a row of tokens at every site, and what it decides: a Recording. Of all models' recordings
     * the last two are kept, those of a source and a target. */
    record(encoded) {
      const { recorded } = this.base, key = [this.name, ...encoded.ids, ...encoded.labels].join();
      const known = recorded.find((one) => one.key === key);
      if (known) return known;
      const { recording } = this.forward({ encoded, record: true });
      this.base.recorded = [...recorded.slice(-1), Object.assign(recording, { key })];
      return recording;
    }

    /** One pass. {encoded, start, below, patches, first, record}: `below` is the recording of which everything under
     * layer `start`, and every row before `first`, is taken; `patches` has what to write where (see patching.js).
     * Returns {lens, delta, delta_raw, p_defect, legal_mass} and, where it was to `record`, the recording. */
    forward({ encoded, start = 0, below = null, patches = new Patches(), first = 0, record = false }) {
      const { depth } = this.config, { ids, step, ends } = encoded;
      const count = ids.length, pass = { encoded, count, first, below, patches, start };
      pass.recording = record ? new Recording(this, encoded, below) : null;
      const lens = below ? below.lens.slice() : new Float64Array(depth + 1);
      if (below) this.put(this.base.room.x, below.resid[start], first, count);
      else this.embed(ids);
      const entering = patches.at("resid", start - 1);
      this.write(entering, this.base.room.x, pass, first);
      pass.known = below !== null && entering.length === 0;
      lens[start] = this.read(step, encoded).delta;
      for (let layer = start; layer < depth; layer++) {
        this.layer(layer, pass, layer === depth - 1 ? Math.max(first, ends) : first);
        lens[layer + 1] = this.read(step, encoded).delta;
      }
      const { delta, delta_raw } = this.read(step, encoded);
      const p_defect = 1 / (1 + Math.exp(-delta));
      const outcome = { lens, delta, delta_raw, p_defect, legal_mass: this.legalMass(pass) };
      if (record) outcome.recording = Object.assign(pass.recording.keep("resid", depth), outcome);
      return outcome;
    }

    embed(ids) {
      const { d_model } = this.config, { F } = this.base.store, { x } = this.base.room;
      const scale = Math.fround(Math.sqrt(d_model));
      ids.forEach((id, row) => {
        for (let i = 0; i < d_model; i++) F[x.at + row * d_model + i] = this.base.embedding[id * d_model + i] * scale;
      });
    }

    /** Rows `from` to `count` of a recorded array [position, width] into the room. */
    put(rows, recorded, from, count) {
      this.base.store.F.set(recorded.subarray(from * rows.step, count * rows.step), rows.at + from * rows.step);
    }

    /** One layer, for rows `pass.first` on; what it adds, for rows `ask` on (in the last layer few are read). */
    layer(layer, pass, ask) {
      const { x, normed, z, out } = this.base.room, { recording } = pass, norms = this.base.norms[layer];
      if (recording) recording.keep("resid", layer);
      if (pass.known && layer === pass.start) this.put(z, pass.below.z[layer], ask, pass.count);
      else this.attend(layer, pass, ask);
      if (recording) recording.keep("z", layer);
      this.write(pass.patches.at("z", layer), z, pass, ask);
      this.outputs(layer, pass, ask);
      if (recording) recording.keep("attn_out", layer);
      this.write(pass.patches.at("attn_out", layer), out, pass, ask);
      this.add(norms.post_attention_layernorm, ask, pass.count);
      this.norm(x, normed, norms.pre_feedforward_layernorm, ask, pass.count);
      this.mlp(layer, ask, pass.count);
      if (recording) recording.keep("mlp_out", layer);
      this.write(pass.patches.at("mlp_out", layer), out, pass, ask);
      this.add(norms.post_feedforward_layernorm, ask, pass.count);
      this.write(pass.patches.at("resid", layer), x, pass, ask);
    }

    norm(from, to, gain, first, count) {
      const { d_model, eps } = this.config, size = { count: count - first, width: d_model, eps };
      normRows(this.base.store.F, offset(from, first), offset(to, first), gain, size);
    }

    /** x += norm(out). */
    add(gain, first, count) {
      const { x, out, normed } = this.base.room, { F } = this.base.store, { d_model } = this.config;
      this.norm(out, normed, gain, first, count);
      for (let i = first * d_model; i < count * d_model; i++) F[x.at + i] += F[normed.at + i];
    }

    /** Rows `first` to `count` of `from` through one of the layer's modules. */
    linear(layer, module, from, to, first, count) {
      const weight = this.layers[layer][module], rows = rewired.fours(count - first);
      this.base.store.product(offset(from, first), weight, offset(to, first), rows, weight.columns, weight.rows);
    }

    mlp(layer, first, count) {
      const { normed, gate, up, out } = this.base.room;
      this.linear(layer, "mlp.gate_proj", normed, gate, first, count);
      this.linear(layer, "mlp.up_proj", normed, up, first, count);
      gated(this.base.store.F, offset(gate, first), offset(up, first), (count - first) * gate.step);
      this.linear(layer, "mlp.down_proj", gate, out, first, count);
    }

    /** out = z W_O, where heads that are patched in mode "output" give another model's share of the sum. */
    outputs(layer, pass, ask) {
      const { z, out } = this.base.room, { F } = this.base.store, { head_dim } = this.config;
      const shares = pass.patches.at("head_out", layer);
      for (const { head, from } of shares)
        for (let row = Math.max(ask, from); row < pass.count; row++) {
          const at = z.at + row * z.step + head * head_dim;
          F.fill(0, at, at + head_dim);
        }
      this.linear(layer, "self_attn.o_proj", z, out, ask, pass.count);
      for (const share of shares)
        for (let row = Math.max(ask, share.from); row < pass.count; row++)
          for (let i = 0; i < out.step; i++) F[out.at + row * out.step + i] += share.values[row * share.step + i];
    }

    /** z of rows `ask` on, from the stream of rows `pass.first` on; keys and values before them are `below`'s. */
    attend(layer, pass, ask) {
      const { x, normed, q, k, v, cos, sin } = this.base.room, { first, count } = pass, { F } = this.base.store;
      const { heads, kv_heads, head_dim: headDim } = this.config;
      this.norm(x, normed, this.base.norms[layer].input_layernorm, first, count);
      this.linear(layer, "self_attn.q_proj", normed, q, ask, count);
      this.linear(layer, "self_attn.k_proj", normed, k, first, count);
      this.linear(layer, "self_attn.v_proj", normed, v, first, count);
      rotate(F, offset(q, ask), ask, count - ask, { heads, headDim, cos, sin });
      rotate(F, offset(k, first), first, count - first, { heads: kv_heads, headDim, cos, sin });
      if (first > 0) {
        this.put(k, pass.below.k[layer], 0, first);
        this.put(v, pass.below.v[layer], 0, first);
      }
      if (pass.recording) for (const site of ["q", "k", "v"]) pass.recording.keep(site, layer);
      const size = heads / kv_heads;  // of a group of heads, which share keys and values
      for (let group = 0; group < kv_heads; group++) {
        this.packKeys(group, count);
        for (let head = group * size; head < (group + 1) * size; head++) this.mix(layer, head, ask, count);
      }
    }

    /** Keys and values of one group of heads, in the panels that the product wants. */
    packKeys(group, count) {
      const { k, v, keys, values } = this.base.room, { F } = this.base.store, width = this.config.head_dim;
      F.fill(0, keys.at, keys.at + rewired.eights(count) * width);
      for (let row = 0; row < count; row++) {
        const key = k.at + row * k.step + group * width, value = v.at + row * v.step + group * width;
        const panel = keys.at + (row >> 3) * keys.panel + (row & 7);
        for (let i = 0; i < width; i++) {
          F[panel + 8 * i] = F[key + i];
          F[values.at + (i >> 3) * values.panel + 8 * row + (i & 7)] = F[value + i];
        }
      }
    }

    /** One head: scores, capped and turned into a pattern, four rows at a time, and the values that it mixes. */
    mix(layer, head, ask, count) {
      const { q, z, scores, keys, values } = this.base.room, { store } = this.base, width = this.config.head_dim;
      for (let row = ask; row < count; row += 4) {
        const reach = Math.min(row + 4, count), at = head * width;
        store.product(
          { at: q.at + row * q.step + at, step: q.step }, keys, scores, 4, width, rewired.eights(reach));
        for (let r = 0; r < 4; r++) this.pattern(layer, row + r, reach, scores.at + r * scores.step);
        store.product(scores, values, { at: z.at + row * z.step + at, step: z.step }, 4, reach, width);
      }
    }

    /** Scores of one row into a pattern that sums to 1: soft cap, window, softmax. Rows past the last get 0. */
    pattern(layer, row, reach, at) {
      const { F } = this.base.store, { attention_cap: cap, scaling, window } = this.config;
      const first = Math.max(0, window[layer] ? row - window[layer] + 1 : 0), factor = scaling / cap;
      if (row >= reach) return void F.fill(0, at, at + reach);
      let sum = 0;
      for (let key = first; key <= row; key++) {
        F[at + key] = Math.exp(cap * tanh(F[at + key] * factor));  // at most e^50: no maximum to be taken off
        sum += F[at + key];
      }
      for (let key = first; key <= row; key++) F[at + key] /= sum;
      F.fill(0, at, at + first);
      F.fill(0, at + row + 1, at + reach);
    }

    /** Write patches into rows of the room, from the first position that each one patches. */
    write(patches, rows, pass, ask) {
      const { F } = this.base.store;
      for (const { values, step, place, width, from } of patches)
        for (let row = Math.max(ask, from); row < pass.count; row++) {
          const start = row * step + place;
          F.set(values.subarray(start, start + width), rows.at + row * rows.step + place);
        }
    }

    /** The stream of one row through the final norm: [d_model]. */
    final(at, numbers) {
      const { d_model, eps } = this.config, normed = new Float32Array(d_model);
      let sum = 0;
      for (let i = 0; i < d_model; i++) sum += numbers[at + i] ** 2;
      const scale = 1 / Math.sqrt(sum / d_model + eps);
      for (let i = 0; i < d_model; i++) normed[i] = numbers[at + i] * scale * this.base.finalNorm[i];
      return normed;
    }

    logit(normed, token) {
      const { d_model } = this.config, { embedding } = this.base;
      let sum = 0;
      for (let i = 0, w = token * d_model; i < d_model; i++, w++) sum += normed[i] * embedding[w];
      return sum;
    }

    softcap(logit) {
      const { final_cap: cap } = this.config;
      return cap * Math.tanh(logit / cap);
    }

    /** delta and delta_raw of one row of the stream, whatever the depth: the logit lens. */
    read(row, { cooperate, defect }) {
      const { x } = this.base.room;
      const normed = this.final(x.at + row * x.step, this.base.store.F);
      const c = this.logit(normed, cooperate), d = this.logit(normed, defect);
      return { delta: this.softcap(d) - this.softcap(c), delta_raw: d - c };
    }

    /** Log-probabilities of the next token, [token], after one row of the final stream. */
    next(at, numbers) {
      const normed = this.final(at, numbers), { vocabulary } = this.config;
      const logits = new Float64Array(vocabulary);
      let sum = 0;
      for (let token = 0; token < vocabulary; token++) {
        logits[token] = this.softcap(this.logit(normed, token));
        sum += Math.exp(logits[token]);  // at most e^30
      }
      const norm = Math.log(sum);
      return logits.map((logit) => logit - norm);
    }

    /** P(cooperate label) + P(defect label): the probability of their common beginning, then of either ending. */
    legalMass({ encoded, below, first }) {
      const { ids, ends, step, cooperate, defect } = encoded, { x } = this.base.room, { F } = this.base.store;
      let common = 0;
      for (let row = ends; row < step; row++) {
        if (row < first) common += below.nextAt(row)[ids[row + 1]];
        else common += this.next(x.at + row * x.step, F)[ids[row + 1]];
      }
      const last = this.next(x.at + step * x.step, F);
      return Math.exp(common) * (Math.exp(last[cooperate]) + Math.exp(last[defect]));
    }
  };

  /** What is to be written where, by site and layer. */
  class Patches {
    constructor(listed = []) {
      this.places = new Map();
      for (const patch of listed) {
        const key = `${patch.site} ${patch.layer}`;
        this.places.set(key, [...(this.places.get(key) ?? []), patch]);
      }
    }

    at(site, layer) {
      return this.places.get(`${site} ${layer}`) ?? [];
    }
  }
  rewired.Patches = Patches;

  /** One model's activations on one row of tokens: `resid` [depth + 1], `z`, `attn_out`, `mlp_out`, `q`, `k`, `v`
   * [depth], each an array [position, width]; lens, delta, delta_raw, p_defect and legal_mass. In the last layer only
   * the rows that decide are computed. A recording of a patched pass begins with what is beneath it. */
  class Recording {
    constructor(model, encoded, below) {
      this.model = model;
      this.encoded = encoded;
      for (const site of SITES) this[site] = below ? [...below[site]] : [];
    }

    /** Copy what the room holds of a site now. */
    keep(site, layer) {
      const { room, store } = this.model.base;
      const rows = room[{ resid: "x", attn_out: "out", mlp_out: "out" }[site] ?? site];
      this[site][layer] = store.F.slice(rows.at, rows.at + this.encoded.ids.length * rows.step);
      return this;
    }

    /** Log-probabilities of the next token after a position. */
    nextAt(row) {
      this.known ??= new Map();
      const { depth, d_model } = this.model.config;
      if (!this.known.has(row)) this.known.set(row, this.model.next(row * d_model, this.resid[depth]));
      return this.known.get(row);
    }

    /** Where a head looks at the decision step: [position], with sum 1. */
    attention(layer, head) {
      const { heads, kv_heads, head_dim, attention_cap: cap, scaling, window } = this.model.config;
      const { step } = this.encoded, group = Math.floor(head / (heads / kv_heads));
      const asked = step * heads * head_dim + head * head_dim;
      const first = Math.max(0, window[layer] ? step - window[layer] + 1 : 0);
      const looks = new Float64Array(step + 1);
      for (let key = first; key <= step; key++) {
        const at = key * kv_heads * head_dim + group * head_dim;
        let score = 0;
        for (let i = 0; i < head_dim; i++) score += this.q[layer][asked + i] * this.k[layer][at + i];
        looks[key] = Math.exp(cap * Math.tanh((score * scaling) / cap));
      }
      const sum = looks.reduce((a, b) => a + b, 0);
      return looks.map((look) => look / sum);
    }
  }
})(window.rewired);
