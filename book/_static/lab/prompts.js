/* From a game and a state to the words that a model reads: `prompts.build`, with Python's own templates. */
"use strict";
window.rewired = window.rewired || {};

(function (rewired) {
  const STATES = ["CC", "CD", "DC", "DD"];
  const SWAPS = ["listing_swapped", "answer_swapped", "rows_swapped", "columns_swapped"];

  /** A template with its {fields} filled by `words` (field → text); a field that is no key stays empty. */
  function filled(template, words) {
    return template.replace(/\{(\w+)\}/g, (_, field) => words[field] ?? "");
  }

  /** [points of the own move, the other's] of a prisoner's dilemma R, S, T, P. */
  function points([reward, sucker, temptation, punishment], own, other) {
    const paid = {
      CC: [reward, reward], CD: [sucker, temptation], DC: [temptation, sucker], DD: [punishment, punishment] };
    return paid[own + other];
  }

  /** The two moves in the order of listing, answer, rows and columns, each "CD" or "DC". */
  function orders(arrangement) {
    return SWAPS.map((name) => (arrangement[name] ? "DC" : "CD"));
  }

  /** What every wording has: {field: [role, words]} for the options, the last round, and the answer format. */
  function commonFields({ state, matrix, arrangement }, label) {
    const [listing, answer] = orders(arrangement), fields = {};
    ["first", "second"].forEach((place, i) => {
      fields[`listed_${place}`] = [`listed_${place}`, label[listing[i]]];
      fields[`answer_${place}`] = [`answer_${place}`, label[answer[i]]];
    });
    ["own", "other"].forEach((who, i) => {
      fields[`${who}_move`] = [`${who}_move`, label[state[i]]];
      fields[`${who}_points`] = [`${who}_points`, String(points(matrix, state[0], state[1])[i])];
    });
    return fields;
  }

  /** The payoffs as a table (own moves down, the other's across), and as one sentence a cell. */
  function payoffFields({ matrix, arrangement }, label, sentence) {
    const [, , rows, columns] = orders(arrangement), fields = {};
    for (const i of [1, 2]) {
      const own = rows[i - 1];
      fields[`row_${i}`] = [`row_${i}`, label[own]];
      fields[`column_${i}`] = [`column_${i}`, label[columns[i - 1]]];
      for (const j of [1, 2]) {
        const other = columns[j - 1], [x, y] = points(matrix, own, other), role = `payoff_${own}${other}`;
        fields[`cell_${i}${j}`] = [role, `${x},${y}`];
        fields[`sentence_${2 * i + j - 2}`] = [role, filled(sentence, { a: label[own], b: label[other], x, y })];
      }
    }
    return fields;
  }

  function meaningFields({ arrangement }, label, meaning) {
    const [listing] = orders(arrangement), fields = {};
    [...listing].forEach((move, i) => {
      fields[`meaning_${i + 1}`] = [`meaning_${i + 1}`, filled(meaning[move], { label: label[move] })];
    });
    return fields;
  }

  /** The template filled, and where each role landed: {text, spans: [[role, start, end]]} in characters. */
  function fill(template, fields) {
    let text = "";
    const spans = [];
    template.split(/\{(\w+)\}/).forEach((part, i) => {
      const [role, words] = i % 2 ? fields[part] : ["", part];
      if (i % 2 && words) spans.push([role, text.length, text.length + words.length]);
      text += words;
    });
    return { text, spans };
  }

  /** Labels that could not be told apart in an answer are refused, as `prompts.Labels` does. */
  function checkLabels([a, b]) {
    if (a.startsWith(b) || b.startsWith(a) || a.trim() !== a || b.trim() !== b)
      throw new rewired.Problem(
        `The labels "${a}" (cooperate) and "${b}" (defect) cannot be told apart in an answer: they must not be ` +
        "empty, equal, or one the beginning of the other, nor begin or end with white space.");
  }

  function check({ state, matrix: [reward, sucker, temptation, punishment], wording, labels }, wordings) {
    checkLabels(labels);
    if (!STATES.includes(state))
      throw new rewired.Problem(`There is no state "${state}": there are ${STATES.join(", ")}.`);
    if (!(wording in wordings))
      throw new rewired.Problem(`There is no wording "${wording}": there are ${Object.keys(wordings).join(", ")}.`);
    if (!(temptation > reward && reward > punishment && punishment > sucker))
      throw new rewired.Problem(
        `The matrix R, S, T, P = ${[reward, sucker, temptation, punishment].join(", ")} is not a prisoner's dilemma: ` +
        "it needs T > R > P > S.");
  }

  /** One prompt from a spec (see `rewired.lab.DEFAULTS`) and the templates that Python exported. */
  rewired.buildPrompt = function (spec, templates) {
    check(spec, templates.wordings);
    const label = { C: spec.labels[0], D: spec.labels[1] };
    const wording = templates.wordings[spec.wording];
    const fields = commonFields(spec, label);
    Object.assign(fields, wording.meaning
      ? meaningFields(spec, label, wording.meaning)
      : payoffFields(spec, label, templates.sentence));
    fields.question = ["question", wording.question];
    const note = { label: label.D, gained: points(spec.matrix, "D", "C")[0], usual: points(spec.matrix, "C", "C")[0] };
    fields.temptation = ["temptation", spec.temptation ? filled(templates.temptation, note) : ""];
    return { ...spec, ...fill(wording.text + templates.closing, fields) };
  };

  rewired.SWAPS = SWAPS;
  rewired.STATES = STATES;
})(window.rewired);
