/* From words to tokens: byte-level BPE as the model's own tokenizer does it, the chat template, the decision step.

A text is cut at special tokens, then at digits, then into words by GPT-2's pattern; a word's bytes are merged pair by
pair, in the order in which the merges were learnt. White space is Unicode's, which JavaScript's \s is not. */
"use strict";
window.rewired = window.rewired || {};

(function (rewired) {
  const SPACE = "\\p{White_Space}";
  const WORD = new RegExp(
    `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+` +
    `|${SPACE}+(?!\\P{White_Space})|${SPACE}+`, "gu");
  const STRIPPED = `[${SPACE}\\x1c-\\x1f]`;  // what Python's strip takes away
  const ENDS = new RegExp(`^${STRIPPED}+|${STRIPPED}+$`, "gu");

  /** GPT-2's printable character for each byte: [byte]. */
  function alphabet() {
    const characters = [];
    let next = 256;
    for (let byte = 0; byte < 256; byte++) {
      const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
      characters.push(String.fromCharCode(printable ? byte : next++));
    }
    return characters;
  }

  rewired.Tokenizer = class Tokenizer {
    /** @param {{vocab, merges, special, split, chat}} exported of Python's tokenizer, by rewired.lab */
    constructor({ vocab, merges, special, split, chat }) {
      this.ids = new Map(vocab.map((piece, id) => [piece, id]));
      this.pieces = vocab;
      this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
      this.special = new Set(special);
      const literal = [...special].sort((a, b) => b.length - a.length).map((word) => word.replace(/[^\w]/g, "\\$&"));
      this.cut = new RegExp(`(${literal.join("|")})`);
      this.split = new RegExp(`(${split})`, "u");
      this.chat = chat;
      this.characters = alphabet();
      this.bytes = new Map(this.characters.map((character, byte) => [character, byte]));
      this.known = new Map();  // words that were merged before
    }

    /** The tokens of a text: [id]. */
    encode(text) {
      const ids = [];
      for (const part of text.split(this.cut)) {
        if (this.special.has(part)) ids.push(this.ids.get(part));
        else for (const piece of part.split(this.split)) ids.push(...this.words(piece));
      }
      return ids;
    }

    words(piece) {
      return Array.from(piece.matchAll(WORD), ([word]) => this.word(word)).flat();
    }

    word(word) {
      if (!this.known.has(word)) {
        const bytes = new TextEncoder().encode(word);
        const symbols = this.merge(Array.from(bytes, (byte) => this.characters[byte]));
        this.known.set(word, symbols.map((symbol) => this.ids.get(symbol)));
      }
      return this.known.get(word);
    }

    /** Merge neighbours, those that were learnt first before all others, until none is left to merge. */
    merge(symbols) {
      for (;;) {
        let best = Infinity, place = -1;
        for (let i = 0; i + 1 < symbols.length; i++) {
          const rank = this.ranks.get(`${symbols[i]} ${symbols[i + 1]}`);
          if (rank < best) { best = rank; place = i; }
        }
        if (place < 0) return symbols;
        symbols.splice(place, 2, symbols[place] + symbols[place + 1]);
      }
    }

    /** What a reader sees of a token. */
    show(id) {
      const piece = this.pieces[id];
      if (this.special.has(piece)) return piece;
      return new TextDecoder().decode(Uint8Array.from(piece, (character) => this.bytes.get(character)));
    }

    /** The text as one user turn in the chat template, and the cue for the model's turn: as `prompts.turn`. */
    turn(text) {
      return this.chat.before + (this.chat.trim ? text.replace(ENDS, "") : text) + this.chat.after;
    }

    /** A label's tokens where an answer stands: as `decisions.label_ids`. */
    labelIds(label) {
      const before = this.encode(this.turn("?"));
      const after = this.encode(this.turn("?") + label);
      if (before.some((id, i) => after[i] !== id))
        throw new rewired.Problem(
          `The label "${label}" merges with the end of the chat template. Choose another label.`);
      return after.slice(before.length);
    }

    /** Where two labels part: {prefix: [id], cooperate: id, defect: id}, as `decisions.decision_step`. */
    decisionStep([cooperateLabel, defectLabel]) {
      const cooperate = this.labelIds(cooperateLabel), defect = this.labelIds(defectLabel);
      const prefix = cooperate.slice(0, -1), last = prefix.length;
      const apart = cooperate.length === defect.length && prefix.every((id, i) => defect[i] === id);
      if (!apart || cooperate[last] === defect[last])
        throw new rewired.Problem(
          `The labels "${cooperateLabel}" and "${defectLabel}" have no single decision step: as tokens they are ` +
          `${this.spelled(cooperate)} and ${this.spelled(defect)}, and these must be the same but for the last one. ` +
          "Choose a pair such as action1 and action2.");
      return { prefix, cooperate: cooperate[last], defect: defect[last] };
    }

    spelled(ids) {
      return ids.map((id) => `[${this.show(id)}]`).join("");
    }

    /** A text and two labels as a row of tokens that ends at the decision step: as `capture.encode`. */
    row(text, labels) {
      const decision = this.decisionStep(labels);
      const chat = this.encode(this.turn(text));
      const ids = Int32Array.from([...chat, ...decision.prefix]);
      const tokens = Array.from(ids, (id) => this.show(id));
      const { cooperate, defect } = decision;
      return { text, labels, ids, tokens, ends: chat.length - 1, step: ids.length - 1, cooperate, defect };
    }
  };
})(window.rewired);
