// The lab's page: what the reader has chosen, what follows from it, and what is shown.
//
// ``now`` holds the choices. ``set`` changes some of them; ``settle`` then records both models on the prompt, ``patch``
// patches the chosen components, and ``show`` draws. The address of the page holds the choices after its #.
"use strict";

rewired.ui = (() => {
  const { draw } = rewired;
  const root = document.getElementById("lab");
  const one = (selector) => root.querySelector(selector);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const field = (name) => one(`[name="${name}"]`);
  const breath = () => new Promise((done) => setTimeout(done));
  const SWAPS = ["listing_swapped", "answer_swapped", "rows_swapped", "columns_swapped"];
  const WORDINGS = {
    structured: "a table",
    prose: "sentences",
    story: "a story of a shared flat",
    named: "a game with a name",
  };
  const ROLES = {
    own_move: "your last move",
    other_move: "the other player's move",
    own_points: "your points",
    other_points: "the other's points",
    temptation: "the temptation",
    question: "the question",
    listed_first: "the options",
    listed_second: "the options",
    answer_first: "the answers",
    answer_second: "the answers",
  };

  let lab, defaults, now; // the engine, the choices at the start, the choices
  let cells = new Map(); // component -> its button
  let sweep = null; // the pair of recordings that is patched
  let outcome = null; // the patched result, null where nothing is put in
  let effects = new Map(); // component -> effect alone, as far as tried
  let drawn = null; // the lens and needle that are on the screen
  let turn = 0; // counts changes: whoever waits knows whether it still matters
  let work = null; // what can be stopped: a sweep, a search
  let ready = Promise.resolve(); // settled when the last change is on the screen

  // --- names ---------------------------------------------------------------------------------------------------------

  /** "strategic" for strategic-1, "strategic (run 2)" for another seed. */
  function title(run) {
    const about = lab.runs.find(({ name }) => name === run);
    if (!about || !about.variant) return run;
    return about.seed === 1 ? about.variant : `${about.variant} (run ${about.seed})`;
  }

  /** "L5H4 + L5H2", or how many there are. */
  function listed(names) {
    if (names.length > 6) return `${names.length} components`;
    return names.join(" + ");
  }

  /** A sentence from words and [tag, words]; what stands there already is not said again. */
  function say(holder, ...pieces) {
    const said = pieces.map((piece) => (Array.isArray(piece) ? piece[1] : piece)).join("");
    if (holder.textContent === said) return;
    holder.replaceChildren(
      ...pieces.map((piece) => (Array.isArray(piece) ? draw.element(piece[0], {}, piece[1]) : piece)),
    );
  }

  // --- choices -------------------------------------------------------------------------------------------------------

  /** The choices at the start: the first puzzle's pair and prompt, nothing put in. */
  function start() {
    const [puzzle] = lab.puzzles;
    const names = lab.runs.map(({ name }) => name);
    const spec = lab.build(puzzle ? puzzle.spec : {});
    const { state, matrix, wording, labels, temptation, arrangement } = spec;
    return {
      source: puzzle ? puzzle.source : names.at(-1),
      target: puzzle ? puzzle.target : names[0],
      spec: { state, matrix, wording, labels, temptation: Boolean(temptation), arrangement },
      words: null,
      chosen: [],
      what: "source",
      draw: 1,
      positions: "all",
      mode: puzzle ? "output" : "input",
      head: lab.components(["head"]).find((name) => puzzle && puzzle.components.includes(name)) || "L0H0",
      whose: "target",
      puzzle: null,
      view: "patch",
      run: null,
      episode: null,
    };
  }

  /** Change some choices; the page follows. Resolves when the change is on the screen. */
  function set(changes) {
    now = { ...now, ...changes };
    if (changes.spec && changes.words === undefined) now.words = null;
    ready = Promise.all([settle(), changes.view === "learnt" && rewired.learnt.open()]);
    return ready;
  }

  /** Keep choices that leave the patched pair as it is. */
  function note(changes) {
    now = { ...now, ...changes };
    keepAddress();
  }

  const specWith = (changes) => ({ spec: { ...now.spec, ...changes } });

  /** Put a component in, or take it out again. */
  function toggle(name) {
    const chosen = now.chosen.filter((other) => other !== name);
    if (chosen.length === now.chosen.length) chosen.push(name);
    const head = draw.component(name).kind === "head" ? name : now.head;
    return set({ chosen, head });
  }

  /** Donor and patient change places. */
  const exchange = () => set({ source: now.target, target: now.source });

  // --- the address ---------------------------------------------------------------------------------------------------

  /** The choices that differ from the start, as the part of an address after #. */
  function written() {
    const { spec } = now;
    const pairs = {
      source: now.source,
      target: now.target,
      last: spec.state,
      points: spec.matrix.join("."),
      wording: spec.wording,
      cooperate: spec.labels[0],
      defect: spec.labels[1],
      tempted: Number(spec.temptation),
      swaps: SWAPS.map((name) => Number(Boolean(spec.arrangement[name]))).join(""),
      words: now.words,
      parts: now.chosen.join("."),
      put: now.what,
      draw: now.draw,
      at: now.positions,
      mode: now.mode,
      head: now.head,
      whose: now.whose,
      puzzle: now.puzzle,
      view: now.view,
      run: now.view === "learnt" ? now.run : null,
      episode: now.view === "learnt" ? now.episode : null,
    };
    const short = {
      put: "source",
      draw: 1,
      at: "all",
      mode: "input",
      head: defaults.head,
      whose: "target",
      view: "patch",
      parts: "",
      tempted: 0,
      swaps: "0000",
    };
    const kept = Object.entries(pairs).filter(([key, value]) => value !== null && value !== short[key]);
    return new URLSearchParams(kept.map(([key, value]) => [key, String(value)])).toString();
  }

  /** Choices from an address; what it lacks or what does not exist stays as at the start. */
  function read(text) {
    const given = new URLSearchParams(text);
    const from = (key, allowed, otherwise) => (allowed.includes(given.get(key)) ? given.get(key) : otherwise);
    const runs = lab.runs.map(({ name }) => name);
    const points = (given.get("points") || "").split(".").map(Number);
    const swaps = given.get("swaps") || "0000";
    const puzzle = from("puzzle", Object.keys(lab.puzzles), null);
    const spec = {
      state: from("last", ["CC", "CD", "DC", "DD"], defaults.spec.state),
      matrix:
        points.length === 4 && points.every((x) => Number.isInteger(x) && Math.abs(x) < 100)
          ? points
          : defaults.spec.matrix,
      wording: from("wording", lab.wordings, defaults.spec.wording),
      labels: [given.get("cooperate") || defaults.spec.labels[0], given.get("defect") || defaults.spec.labels[1]],
      temptation: given.get("tempted") === "1",
      arrangement: Object.fromEntries(SWAPS.map((name, k) => [name, swaps[k] === "1"])),
    };
    return {
      ...defaults,
      spec,
      source: from("source", runs, defaults.source),
      target: from("target", runs, defaults.target),
      words: given.get("words"),
      chosen: (given.get("parts") || "").split(".").filter((name) => cells.has(name)),
      what: from("put", ["source", "self", "random"], "source"),
      draw: Number(given.get("draw")) || 1,
      positions: from("at", ["all", "decision"], "all"),
      mode: from("mode", ["input", "output"], "input"),
      head: from("head", lab.components(["head"]), defaults.head),
      whose: from("whose", ["source", "target"], "target"),
      view: lab.learnt ? from("view", ["patch", "learnt"], "patch") : "patch",
      puzzle: puzzle && Number(puzzle),
      run: from("run", lab.learnt || [], null),
      episode: given.has("episode") ? Number(given.get("episode")) : null,
    };
  }

  /** Keep the choices in the address, without a step in the browser's history. */
  function keepAddress() {
    const text = `#${written()}`;
    if (location.hash !== text) history.replaceState(null, "", text);
  }

  /** What the address asks for, a chapter's example or choices; undefined where it asks for nothing. */
  function follow() {
    const place = location.hash.slice(1);
    if (Object.hasOwn(rewired.guide.examples, place)) return rewired.guide.example(place);
    return place.includes("=") ? set(read(place)) : undefined;
  }

  // --- what follows from the choices ---------------------------------------------------------------------------------

  /** Record both models on the prompt, then patch. A later change makes an earlier one stop. */
  async function settle() {
    const mine = ++turn;
    if (work && work.searches) stop();
    show.choices();
    try {
      const prompt = lab.build(now.spec);
      show.words(now.words ?? prompt.text);
      const encoded = lab.encode(now.words ?? prompt.text, now.spec.labels);
      root.setAttribute("aria-busy", "true");
      if (!sweep) say(one("#lab-patch .lab-verdict"), "The two models are on their way, some ten megabytes …");
      const models = [await lab.model(now.source), await lab.model(now.target)];
      if (mine !== turn) return;
      const [source, target] = models.map((model) => model.record(encoded));
      renew(new rewired.Sweep(source, target, { positions: now.positions, mode: now.mode }), { prompt, encoded });
      show.problem("");
      patch();
    } catch (problem) {
      if (mine === turn) {
        stop();
        show.problem(problem.message);
      }
      if (!(problem instanceof rewired.Problem)) throw problem;
    } finally {
      if (mine === turn) root.removeAttribute("aria-busy");
    }
  }

  /** A new pair to patch; what was tried on the old one is forgotten unless it is the same. */
  function renew(fresh, about) {
    const key = [
      now.source,
      now.target,
      about.encoded.text,
      now.spec.labels,
      now.positions,
      now.mode,
      now.what,
      now.draw,
    ].join("|");
    if (sweep && sweep.key === key) return;
    stop();
    sweep = Object.assign(fresh, about, { key });
    effects = new Map();
    for (const box of cells.values()) {
      draw.write(box, null);
      box.classList.remove("lab-flips");
    }
    one(".lab-bench .lab-scale").hidden = true;
  }

  /** The patient with these components patched, by the donor or by one of the two controls. */
  function apply(names) {
    if (now.what === "source") return sweep.together(names);
    return sweep.control(now.what, names, now.draw);
  }

  function patch() {
    outcome = now.chosen.length ? apply(now.chosen) : null;
    show.all();
    keepAddress();
  }

  /** A sweep or a search begins; what was under way ends. */
  function begin(what) {
    stop();
    show.working(what);
    work = Object.assign(new AbortController(), { searches: what === "greedy" });
    return work;
  }

  /** Stop a sweep or a search that is under way. */
  function stop() {
    if (work) work.abort();
    work = null;
    for (const box of all(".lab-now")) box.classList.remove("lab-now");
    show.working(null);
  }

  /** Patch every component alone, from the first layer up, and colour it as soon as it is known. */
  async function tryAll() {
    const mine = begin("sweep");
    let before = null;
    for (const name of lab.components(["head", "attn", "mlp", "resid"])) {
      if (mine.signal.aborted) return;
      if (before) before.classList.remove("lab-now");
      before = cells.get(name);
      before.classList.add("lab-now");
      const result = apply([name]);
      effects.set(name, result);
      show.effect(name, result);
      await breath();
    }
    if (mine.signal.aborted) return;
    stop();
    show.tried();
  }

  /** Add components one by one, each time the one that moves the decision most, until it flips. */
  async function findSet() {
    stop();
    await set({ chosen: [], what: "source" });
    if (sweep.source.delta > 0 === sweep.target.delta > 0) {
      say(one(".lab-verdict"), "Both models decide alike here, so no set can carry the donor's decision over.");
      return;
    }
    const mine = begin("greedy");
    const onTry = (name) => show.hint(`trying ${listed([...now.chosen, name])} …`);
    const onStep = ({ component }) => {
      if (mine.signal.aborted) return;
      now = { ...now, chosen: [...now.chosen, component] };
      patch();
    };
    await sweep.greedy(lab.components(["head", "mlp"]), { onStep, onTry, signal: mine.signal });
    if (!mine.signal.aborted) stop();
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  const show = {};

  show.all = () => {
    show.chosen();
    show.dials();
    show.lens();
    show.verdict();
    show.looks();
    rewired.guide.follow();
  };

  /** The fields say what is chosen. */
  show.choices = () => {
    const { spec } = now;
    const values = {
      source: now.source,
      target: now.target,
      wording: spec.wording,
      own: spec.state[0],
      other: spec.state[1],
      cooperate: spec.labels[0],
      defect: spec.labels[1],
      head: now.head,
    };
    for (const [name, value] of Object.entries(values))
      if (field(name) !== document.activeElement || field(name).tagName === "SELECT") field(name).value = value;
    offer(field("matrix"), spec.matrix.join("."), points(spec.matrix));
    field("temptation").checked = spec.temptation;
    for (const name of SWAPS) field(name).checked = Boolean(spec.arrangement[name]);
    for (const name of ["what", "positions", "mode", "whose"])
      one(`[name="${name}"][value="${now[name]}"]`).checked = true;
    one('[data-do="draw"]').hidden = now.what !== "random";
    one('[data-do="own-words-away"]').hidden = now.words === null;
    for (const view of ["patch", "learnt"]) {
      one(`#lab-${view}`).hidden = view !== now.view;
      one(`#lab-tab-${view}`).setAttribute("aria-selected", view === now.view);
      one(`#lab-tab-${view}`).tabIndex = view === now.view ? 0 : -1;
    }
  };

  show.problem = (text) => {
    const box = one(".lab-problem");
    box.hidden = !text;
    box.textContent = text;
    if (text) one(".lab-more").open = true;
    root.classList.toggle("lab-off", Boolean(text));
    for (const button of all(".lab-bench button, .lab-looks button")) button.disabled = Boolean(text);
  };

  /** The words of the prompt, unless the reader is writing them. */
  show.words = (text) => {
    if (field("text") !== document.activeElement) field("text").value = text;
  };

  /** What can be pressed while something is under way. */
  show.working = (what) => {
    for (const name of ["sweep", "greedy"]) {
      const button = one(`[data-do="${name}"]`);
      button.textContent = name === what ? "Stop" : { sweep: "Try every part", greedy: "Find a small set" }[name];
      button.classList.toggle("lab-busy", name === what);
    }
  };

  show.chosen = () => {
    for (const [name, box] of cells) {
      box.setAttribute("aria-pressed", now.chosen.includes(name));
      box.setAttribute("aria-label", label(name));
    }
    one('[data-do="clear"]').disabled = !now.chosen.length;
  };

  /** What a screen reader says of a component. */
  function label(name) {
    const alone = effects.get(name);
    return `${name}, ${draw.component(name).words}${alone ? `, alone ${draw.signed(alone.effect)} logits` : ""}`;
  }

  show.hint = (text) => {
    one(".lab-hint").textContent = text;
  };

  /** What the component under the pointer is, and what it does alone. */
  show.about = (name) => {
    const alone = effects.get(name);
    const does = alone
      ? `: alone it moves Δ by ${draw.signed(alone.effect)}${alone.flip ? ", which flips the decision" : ""}`
      : "";
    show.hint(`${name}, ${draw.component(name).words}${does}`);
  };

  show.effect = (name, result) => {
    draw.write(cells.get(name), result.effect);
    cells.get(name).classList.toggle("lab-flips", result.flip);
    draw.colour(cells, one(".lab-bench .lab-scale"));
    one(".lab-bench .lab-scale").hidden = false;
    show.about(name);
  };

  show.dials = () => {
    const { source, target } = sweep;
    for (const [side, recording] of Object.entries({ source, target })) {
      const box = one(`[data-side="${side}"]`);
      const patched = side === "target" ? outcome : null;
      const dial = box.querySelector(".lab-dial");
      draw.dial(dial, recording.p_defect, patched && patched.p_defect);
      const needle = (patched || recording).p_defect;
      draw.swing(dial, drawn ? drawn[side] : null);
      drawn = { ...drawn, [side]: needle };
      const { delta, p_defect, legal_mass } = patched || recording;
      say(
        box.querySelector(".lab-decides"),
        ["strong", `${patched ? "now " : ""}${draw.decision(delta)}`],
        ["span", `Δ ${draw.signed(delta)}`],
        ["span", `P(defect) ${draw.percent(p_defect)}`],
        ["span", `legal mass ${draw.percent(legal_mass)}`],
      );
    }
  };

  show.lens = () => {
    const { source, target } = sweep;
    const svg = one("#lab-patch .lab-lens");
    const fixed = [
      { name: "source", values: source.lens },
      { name: "target", values: target.lens },
    ];
    const goal = outcome ? outcome.lens : target.lens;
    const layers = new Set(now.chosen.map((name) => draw.component(name).layer));
    const paint = (values) =>
      draw.lens(svg, outcome || values !== goal ? [...fixed, { name: "patched", values }] : fixed, layers);
    draw.glide(svg, drawn && drawn.lens, goal, paint);
    drawn = { ...drawn, lens: goal };
    one('#lab-patch [data-line="patched"].lab-line').hidden = !outcome;
    const said = Array.from(goal, (delta) => draw.signed(delta, 1)).join(", ");
    svg.setAttribute("aria-label", `Logit lens. Δ from the embedding to the decision: ${said}`);
  };

  /** The result in words and numbers. */
  show.verdict = () => {
    const holder = one("#lab-patch .lab-verdict");
    holder.classList.toggle("lab-flipped", Boolean(outcome?.flip));
    const { source, target } = sweep;
    const [donor, patient] = [title(now.source), title(now.target)];
    if (!outcome) {
      const alike = source.delta > 0 === target.delta > 0 ? "Both models decide alike" : "The two decide differently";
      return say(
        holder,
        ["b", `${alike}: `],
        `the patient, ${patient}, ${draw.decision(target.delta)} with Δ ${draw.signed(target.delta)}; the donor, ` +
          `${donor}, ${draw.decision(source.delta)} with Δ ${draw.signed(source.delta)}. Nothing is patched yet.`,
      );
    }
    const told = {
      source: `${listed(now.chosen)} from ${donor} into ${patient}`,
      self: `${listed(now.chosen)} of ${patient}, put into itself`,
      random: `A random direction of the same length in ${listed(now.chosen)} of ${patient}`,
    }[now.what];
    const way =
      now.what === "source" && Number.isFinite(outcome.recovered)
        ? `, ${Math.round(100 * outcome.recovered)} % of the way to the donor`
        : "";
    const moved =
      outcome.effect === 0
        ? `Δ stays ${draw.signed(target.delta)}, a change of exactly 0`
        : `Δ ${draw.signed(target.delta)} → ${draw.signed(outcome.delta)} logits${way}`;
    const verdict = outcome.flip
      ? `The decision flips: it now ${draw.decision(outcome.delta)}.`
      : `The decision stands: it still ${draw.decision(outcome.delta)}.`;
    say(holder, `${told}: ${moved}. `, ["b", verdict]);
  };

  /** After a sweep: how many flip alone, and which is the strongest. What is patched keeps its verdict. */
  show.tried = () => {
    const single = [...effects].filter(([name]) => /H|MLP/.test(name));
    const flips = single.filter(([, { flip }]) => flip).length;
    const [strongest, { effect }] = single.reduce((a, b) => (Math.abs(b[1].effect) > Math.abs(a[1].effect) ? b : a));
    const count = flips
      ? `${flips} of ${single.length} heads and MLPs flip`
      : `None of the ${single.length} heads and MLPs flips`;
    const flip = `${count} the decision alone. `;
    const most = `The strongest is ${strongest}, with ${draw.signed(effect)} logits.`;
    show.chosen();
    show.hint(
      "Colour and number: how far Δ moves when this part alone is patched. A dark corner: alone it flips the decision.",
    );
    if (outcome) show.hint(flip + most);
    else say(one("#lab-patch .lab-verdict"), ["b", flip], most);
    rewired.guide.follow();
  };

  /** Where the chosen head looks, in words and on the tokens. */
  show.looks = () => {
    const { layer, head } = draw.component(now.head);
    const attention = sweep[now.whose].attention(layer, head);
    const { tokens } = sweep.encoded;
    const most = draw.tokens(one(".lab-tokens"), tokens, attention, 5);
    const seen = most.slice(0, 3).filter((k, i) => !i || attention[k] >= 0.01);
    const words = seen.map((k) => `${Math.round(100 * attention[k])} % on “${before(k)}”${role(k)}`);
    const whose = now.whose === "target" ? `the patient, ${title(now.target)}` : `the donor, ${title(now.source)}`;
    say(one(".lab-most"), `In ${whose}: ${words.join("; ")}.`);
    const known = roles().includes("other_move");
    one('[data-do="keenest"]').disabled = !known;
    one('[data-do="keenest"]').title = known ? "" : "In your own words the page does not know that move.";
  };

  // --- the words of the prompt ---------------------------------------------------------------------------------------

  /** For each token of the prompt the role of its words, "" for none. */
  function roles() {
    const { encoded, prompt } = sweep;
    const offset = encoded.tokens.join("").indexOf(prompt.text); // −1 where two tokens share a letter
    if (now.words !== null || offset < 0) return encoded.tokens.map(() => "");
    let end = 0;
    return encoded.tokens.map((token) => {
      const first = end - offset;
      end += token.length;
      const span = prompt.spans.find(([, from, to]) => first < to && end - offset > from);
      return span ? span[0] : "";
    });
  }

  /** A token with the two before it, which tell it from others that look the same. */
  const before = (k) =>
    sweep.encoded.tokens
      .slice(Math.max(0, k - 2), k + 1)
      .join("")
      .replace(/\s+/g, " ")
      .trim();

  /** " (your last move)" for a token that belongs to it. */
  function role(k) {
    const name = roles()[k];
    return ROLES[name] ? ` (${ROLES[name]})` : "";
  }

  /** The head of the shown model that looks most at the other player's move, and its look. */
  function keenest() {
    const theirs = roles().flatMap((name, k) => (name === "other_move" ? [k] : []));
    const looks = (name) => {
      const { layer, head } = draw.component(name);
      const attention = sweep[now.whose].attention(layer, head);
      return theirs.reduce((sum, k) => sum + attention[k], 0);
    };
    const heads = lab.components(["head"]).map((name) => ({ name, look: looks(name) }));
    return heads.reduce((a, b) => (b.look > a.look ? b : a)).name;
  }

  // --- fields, keys and buttons --------------------------------------------------------------------------------------

  /** Choose a value in a list, added if it is not there yet. */
  function offer(select, value, text) {
    if (![...select.options].some((option) => option.value === value)) select.add(new Option(text, value));
    select.value = value;
  }

  const points = ([both, betrayed, betraying, neither]) => `${both}, ${betrayed}, ${betraying}, ${neither}`;

  /** The runs, a group a variant. */
  function offerRuns(select, names) {
    const groups = new Map();
    for (const name of names) {
      const { variant } = lab.runs.find((run) => run.name === name) || {};
      const option = new Option(title(name), name);
      if (!variant) select.add(option);
      else if (groups.has(variant)) groups.get(variant).append(option);
      else select.append(groups.set(variant, draw.element("optgroup", { label: variant }, option)).get(variant));
    }
  }

  function fill() {
    const names = lab.runs.map(({ name }) => name);
    for (const side of ["source", "target"]) offerRuns(field(side), names);
    for (const name of lab.wordings) field("wording").add(new Option(WORDINGS[name] || name, name));
    for (const side of ["own", "other"]) field(side).append(new Option("cooperate", "C"), new Option("defect", "D"));
    for (const matrix of lab.matrices) field("matrix").add(new Option(points(matrix), matrix.join(".")));
    for (const name of lab.components(["head"])) field("head").add(new Option(name, name));
    const { depth, heads } = lab.config;
    cells = draw.grid(one("#lab-patch .lab-grid"), { depth, heads });
  }

  /** What a field does when it is changed. */
  const CHANGES = {
    source: ({ value }) => ({ source: value }),
    target: ({ value }) => ({ target: value }),
    wording: ({ value }) => specWith({ wording: value }),
    own: ({ value }) => specWith({ state: value + now.spec.state[1] }),
    other: ({ value }) => specWith({ state: now.spec.state[0] + value }),
    matrix: ({ value }) => specWith({ matrix: value.split(".").map(Number) }),
    temptation: ({ checked }) => specWith({ temptation: checked }),
    cooperate: ({ value }) => specWith({ labels: [value, now.spec.labels[1]] }),
    defect: ({ value }) => specWith({ labels: [now.spec.labels[0], value] }),
    text: ({ value }) => ({ words: value }),
    head: ({ value }) => ({ head: value }),
    whose: ({ value }) => ({ whose: value }),
    what: ({ value }) => ({ what: value }),
    positions: ({ value }) => ({ positions: value }),
    mode: ({ value }) => ({ mode: value }),
  };
  for (const name of SWAPS)
    CHANGES[name] = ({ checked }) => specWith({ arrangement: { ...now.spec.arrangement, [name]: checked } });
  const TYPED = ["cooperate", "defect", "text"];

  let typed = null; // what was typed waits until the fingers rest, or leave the field
  let rest; // the timer of that

  /** What was typed takes effect. */
  function flush() {
    clearTimeout(rest);
    if (typed) set(CHANGES[typed.name](typed));
    typed = null;
  }

  function changed({ target: { name, value, checked }, type }) {
    if (!CHANGES[name]) return;
    if (!TYPED.includes(name)) {
      if (type === "change") set(CHANGES[name]({ value, checked }));
      return;
    }
    if (type === "change") return flush();
    clearTimeout(rest);
    typed = { name, value };
    rest = setTimeout(flush, 400);
  }

  const DOES = {
    exchange,
    "exchange-labels": () => set(specWith({ labels: [...now.spec.labels].reverse() })),
    "own-words-away": () => set({ words: null }),
    sweep: () => (work && one('[data-do="sweep"]').classList.contains("lab-busy") ? stop() : tryAll()),
    greedy: () => (work && one('[data-do="greedy"]').classList.contains("lab-busy") ? stop() : findSet()),
    clear: () => set({ chosen: [] }),
    draw: () => set({ draw: now.draw + 1 }),
    keenest: () => set({ head: keenest() }),
    check: ({ target }) => check(target),
    share: ({ target }) => share(target),
  };

  /** Recompute the book's own numbers, and say how far the page is from them. */
  async function check(button) {
    const told = button.nextElementSibling;
    button.disabled = true;
    told.setAttribute("aria-live", "off"); // the count is for the eye
    const onEach = (_, k) => {
      told.textContent = `${k + 1} of ${lab.golden.length} …`;
    };
    const { count, largest } = await lab.check(onEach);
    const size = largest.toExponential(0).replace("-", "−");
    told.setAttribute("aria-live", "polite");
    told.textContent = `Recomputed here: ${count} of this book's own numbers; largest difference ${size} logits.`;
    button.disabled = false;
  }

  async function share(button) {
    const told = button.nextElementSibling;
    keepAddress();
    try {
      await navigator.clipboard.writeText(location.href);
      told.textContent = "Copied.";
    } catch {
      told.textContent = "The link stands in the address bar.";
    }
  }

  function pressed(event) {
    const box = event.target.closest("button");
    if (!box) return;
    if (box.dataset.component) {
      rove(box);
      toggle(box.dataset.component);
    } else if (DOES[box.dataset.do]) DOES[box.dataset.do]({ target: box });
  }

  /** Of all cells only one is a stop of the Tab key. */
  function rove(box) {
    for (const other of cells.values()) other.tabIndex = other === box ? 0 : -1;
  }

  const STEPS = {
    ArrowUp: [1, 0],
    ArrowDown: [-1, 0],
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    Home: [0, -99],
    End: [0, 99],
  };

  /** The arrows move through the grid: up and down a layer, left and right a component. */
  function moved(event) {
    const step = STEPS[event.key];
    if (!step || !event.target.dataset.component) return;
    event.preventDefault();
    const { layer } = draw.component(event.target.dataset.component);
    const row = (k) => [...cells.values()].filter((box) => draw.component(box.dataset.component).layer === k);
    const place = row(layer).indexOf(event.target);
    const next = row(Math.max(0, Math.min(lab.config.depth - 1, layer + step[0])));
    const box = next[Math.max(0, Math.min(next.length - 1, place + step[1]))];
    rove(box);
    box.focus();
  }

  /** The arrows move between the two views. */
  function turned(event) {
    const other = { "lab-tab-patch": "learnt", "lab-tab-learnt": "patch" }[event.target.id];
    if (!other || !["ArrowLeft", "ArrowRight", "click"].includes(event.type === "click" ? "click" : event.key)) return;
    const view = event.type === "click" ? event.target.id.replace("lab-tab-", "") : other;
    set({ view });
    one(`#lab-tab-${view}`).focus();
  }

  function listen() {
    const grid = one("#lab-patch .lab-grid");
    for (const type of ["change", "input"]) root.addEventListener(type, changed);
    root.addEventListener("click", pressed);
    grid.addEventListener("keydown", moved);
    for (const type of ["pointerover", "focusin"]) {
      grid.addEventListener(
        type,
        ({ target }) =>
          target.closest("[data-component]") &&
          !work &&
          show.about(target.closest("[data-component]").dataset.component),
      );
    }
    for (const type of ["click", "keydown"]) one(".lab-views").addEventListener(type, turned);
    one(".lab-scene").addEventListener("submit", (event) => event.preventDefault());
    new ResizeObserver(() => sweep && !work && drawn && show.lens()).observe(grid);
    addEventListener("hashchange", follow);
  }

  // --- the beginning -------------------------------------------------------------------------------------------------

  const samePair = (one) => (other) => one.source === other.source && one.target === other.target;

  /** Open the data. Where they are missing the page keeps its words, and says why. */
  async function open(options) {
    lab = await rewired.lab.open(root.dataset.folder, options);
    if (!lab.available) {
      one(".lab-why").append(` ${lab.reason}`);
      root.dataset.ready = "without";
      return;
    }
    root.replaceChildren(document.getElementById("lab-page").content.cloneNode(true));
    lab.puzzles = lab.puzzles.filter((puzzle) => puzzle === lab.puzzles.find(samePair(puzzle)));
    defaults = now = start();
    fill();
    one("#lab-tab-learnt").hidden = !lab.learnt;
    one(".lab-golden").hidden = !lab.golden.length;
    rove(cells.get(`L${lab.config.depth - 1}H0`));
    listen();
    rewired.guide.open();
    await (follow() ?? set({}));
    root.dataset.ready = "yes";
  }

  return {
    open,
    set,
    note,
    exchange,
    tryAll,
    keenest,
    title,
    say,
    one,
    field,
    offerRuns,
    lab: () => lab,
    now: () => now,
    sweep: () => sweep,
    outcome: () => outcome,
    settled: () => ready,
  };
})();

rewired.ui.open({ wasm: !new URLSearchParams(location.search).has("plain") });
