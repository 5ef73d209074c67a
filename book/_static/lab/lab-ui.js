// The lab's page: what follows from the reader's choices, and what is shown.
//
// ``now`` holds the choices (see lab-choices.js). ``set`` changes some; ``settle`` then records both models on the
// prompt, ``patch`` patches the chosen components, and ``show`` draws.
"use strict";

rewired.ui = (() => {
  const { draw, choices } = rewired;
  const root = document.getElementById("lab");
  const one = (selector) => root.querySelector(selector);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const field = (name) => one(`[name="${name}"]`);
  const breath = () => new Promise((done) => setTimeout(done));
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

  let lab, now; // the engine, the choices
  let addressed = ""; // the choices, in JSON, for which the page's address stands
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

  /** Change some choices; the page follows. Resolves when the change is on the screen. */
  function set(changes) {
    now = { ...now, ...changes };
    ready = Promise.all([settle(), changes.view === "learnt" && rewired.learnt.open()]);
    return ready;
  }

  /** Keep choices that leave the patched pair as it is. */
  function note(changes) {
    now = { ...now, ...changes };
    keepAddress();
  }

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

  /** Keep the choices in the address, without a step in the browser's history. What it asked for may stand. */
  function keepAddress() {
    const chosen = JSON.stringify(now);
    if (chosen !== addressed) history.replaceState(null, "", `#${choices.written(now)}`);
    addressed = chosen;
  }

  /** Put on the table what the address asks for, a chapter's example or choices; undefined where it asks for nothing. */
  function follow() {
    const place = location.hash.slice(1);
    let followed;
    if (Object.hasOwn(rewired.guide.examples, place)) followed = rewired.guide.example(place);
    else if (place.includes("=")) followed = set(choices.read(place, lab));
    addressed = JSON.stringify(now);
    return followed;
  }

  // --- what follows from the choices ---------------------------------------------------------------------------------

  /** Record both models on the prompt, then patch. A later change makes an earlier one stop. */
  async function settle() {
    const mine = ++turn;
    if (work && work.searches) stop();
    let question = null;
    show.choices();
    try {
      question = asked();
      const models = await loaded();
      if (mine !== turn) return;
      const [source, target] = models.map((model) => model.record(question.encoded));
      renew(new rewired.Sweep(source, target, { positions: now.positions, mode: now.mode }), question);
      show.problem("");
      patch();
    } catch (problem) {
      if (mine === turn) refuse(problem.message, question);
      if (!(problem instanceof rewired.Problem)) throw problem;
    }
  }

  /** The chosen prompt, {prompt, encoded}: built from the choices, or in the reader's own words. */
  function asked() {
    const prompt = lab.build(choices.spec(now));
    show.words(now.words ?? prompt.text);
    show.useless(prompt);
    return { prompt, encoded: lab.encode(now.words ?? prompt.text, prompt.labels) };
  }

  /** Donor and patient, as soon as their files are here. */
  async function loaded() {
    const bench = one(".lab-bench");
    if (!sweep) say(one("#lab-patch .lab-verdict"), "The two models are on their way, some ten megabytes …");
    bench.setAttribute("aria-busy", "true");
    try {
      return await Promise.all([lab.model(now.source), lab.model(now.target)]);
    } finally {
      bench.removeAttribute("aria-busy");
    }
  }

  /** A question that cannot be asked, or a file that is missing, closes the bench and says why. */
  function refuse(reason, question) {
    stop();
    show.problem(reason);
    if (!question) one(".lab-more").open = true; // where labels and words can be changed
  }

  /** A new pair to patch; what was tried on the old one is forgotten unless it is the same. */
  function renew(fresh, about) {
    const key = JSON.stringify([
      now.source,
      now.target,
      about.encoded.text,
      about.encoded.labels,
      now.positions,
      now.mode,
      now.what,
      now.draw,
    ]);
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
    show.chosen();
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
    if (alike()) {
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
    for (const name of ["source", "target", "wording", "head"]) field(name).value = now[name];
    for (const [k, side] of ["own", "other"].entries()) field(side).value = now.state[k];
    for (const name of ["cooperate", "defect"])
      if (field(name) !== document.activeElement) field(name).value = now[name];
    for (const name of ["temptation", ...rewired.SWAPS]) field(name).checked = now[name];
    for (const name of ["what", "positions", "mode", "whose"])
      one(`[name="${name}"][value="${now[name]}"]`).checked = true;
    offer(field("pair"), JSON.stringify([now.cooperate, now.defect]), `${now.cooperate}, ${now.defect}`);
    offer(field("matrix"), now.matrix.join("."), now.matrix.join(", "));
    one('[data-do="draw"]').hidden = now.what !== "random";
    one(".lab-own").hidden = now.words === null;
    show.view();
  };

  show.view = () => {
    for (const view of ["patch", "learnt"]) {
      one(`#lab-${view}`).hidden = view !== now.view;
      one(`#lab-tab-${view}`).setAttribute("aria-selected", view === now.view);
      one(`#lab-tab-${view}`).tabIndex = view === now.view ? 0 : -1;
    }
  };

  /** Fields that would change no word cannot be used: a story states no points, the reader's own words have no fields. */
  show.useless = (prompt) => {
    const own = now.words !== null;
    const changes = (more) => lab.build(choices.spec({ ...now, ...more })).text !== prompt.text;
    for (const name of rewired.SWAPS) field(name).disabled = own || !changes({ [name]: !now[name] });
    for (const name of ["wording", "own", "other", "matrix", "temptation"]) field(name).disabled = own;
    one(".lab-payoffs").hidden = !lab.matrices.some((matrix) => changes({ matrix }));
  };

  show.problem = (text) => {
    const box = one(".lab-problem");
    box.hidden = !text;
    box.textContent = text;
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
      button.textContent = name === what ? "Stop" : { sweep: "Try every component", greedy: "Find a small set" }[name];
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
    return `${name}, ${draw.component(name).words}${alone(name)}`;
  }

  /** What a component does alone, as far as it was tried. */
  function alone(name) {
    if (!effects.has(name)) return "";
    const { effect, flip } = effects.get(name);
    return `: alone it moves Δ by ${draw.signed(effect)}${flip ? ", which flips the decision" : ""}`;
  }

  show.hint = (text) => {
    one(".lab-hint").textContent = text;
  };

  /** What the component under the pointer is, and what it does alone. */
  show.about = (name) => show.hint(label(name));

  show.effect = (name, result) => {
    draw.write(cells.get(name), result.effect);
    cells.get(name).classList.toggle("lab-flips", result.flip);
    draw.colour(cells, one(".lab-bench .lab-scale"));
    one(".lab-bench .lab-scale").hidden = false;
    show.about(name);
  };

  show.dials = () => {
    show.dial("source", sweep.source, null);
    show.dial("target", sweep.target, outcome);
  };

  /** One model's dial and numbers; where it is patched, those of the patched pass. */
  show.dial = (side, recording, patched) => {
    const box = one(`[data-side="${side}"]`);
    const dial = box.querySelector(".lab-dial");
    const { delta, p_defect, legal_mass } = patched || recording;
    draw.dial(dial, recording.p_defect, patched && patched.p_defect);
    draw.swing(dial, drawn ? drawn[side] : null);
    drawn = { ...drawn, [side]: p_defect };
    say(
      box.querySelector(".lab-decides"),
      ["strong", `${patched ? "now " : ""}${draw.decision(delta)}`],
      ["span", `Δ ${draw.signed(delta)}`],
      ["span", `P(defect) ${draw.percent(p_defect)}`],
      ["span", `legal mass ${draw.percent(legal_mass)}`],
    );
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

  const alike = () => sweep.source.delta > 0 === sweep.target.delta > 0;

  /** The result in words and numbers. */
  show.verdict = () => {
    const holder = one("#lab-patch .lab-verdict");
    holder.classList.toggle("lab-flipped", Boolean(outcome?.flip));
    if (!outcome)
      return say(holder, ["b", `${alike() ? "Both models decide alike" : "The two decide differently"}: `], both());
    const decides = draw.decision(outcome.delta);
    const verdict = outcome.flip ? `flips: it now ${decides}` : `stands: it still ${decides}`;
    say(holder, `${put()}: ${moved()}. `, ["b", `The decision ${verdict}.`]);
  };

  /** What both models decide while nothing is patched. */
  function both() {
    const told = ({ delta }) => `${draw.decision(delta)} with Δ ${draw.signed(delta)}`;
    const patient = `the patient, ${title(now.target)}, ${told(sweep.target)}`;
    return `${patient}; the donor, ${title(now.source)}, ${told(sweep.source)}. Nothing is patched yet.`;
  }

  /** What is put where. */
  function put() {
    const [names, donor, patient] = [listed(now.chosen), title(now.source), title(now.target)];
    if (now.what === "source") return `${names} from ${donor} into ${patient}`;
    if (now.what === "self") return `${names} of ${patient}, put into itself`;
    return `A random direction of the same length in ${names} of ${patient}`;
  }

  /** How far Δ moves; toward the donor, where that is another decision. */
  function moved() {
    const [before, after] = [sweep.target.delta, outcome.delta].map((delta) => draw.signed(delta));
    if (outcome.effect === 0) return `Δ stays ${before}, a change of exactly 0`;
    const percent = Math.round(100 * outcome.recovered);
    if (now.what !== "source" || alike()) return `Δ ${before} → ${after} logits`;
    const way = percent < 0 ? "away from the donor" : `${percent} % of the way to the donor`;
    return `Δ ${before} → ${after} logits, ${way}`;
  }

  /** After a sweep: how many flip alone, and which is the strongest. What is patched keeps its verdict. */
  show.tried = () => {
    const single = [...effects].filter(([name]) => draw.single(name));
    const flips = single.filter(([, { flip }]) => flip).length;
    const [strongest, { effect }] = single.reduce((a, b) => (Math.abs(b[1].effect) > Math.abs(a[1].effect) ? b : a));
    const count = `${flips || "none"} of the ${single.length} heads and MLPs ${flips > 1 ? "flip" : "flips"}`;
    const told = `${setting()}${count} the decision alone. `;
    const sentence = told[0].toUpperCase() + told.slice(1);
    const most = `The strongest is ${strongest}, with ${draw.signed(effect)} logits.`;
    show.chosen();
    show.hint(
      "Colour and number: how far Δ moves when this component alone is patched. A marked corner: it flips the decision.",
    );
    if (outcome) show.hint(sentence + most);
    else say(one("#lab-patch .lab-verdict"), ["b", sentence], most);
    rewired.guide.follow();
  };

  /** What a count of flips must be told with: another thing is put in, or there is no other decision to carry over. */
  function setting() {
    if (now.what === "self") return "put into itself, ";
    if (now.what === "random") return "with random directions, ";
    return alike() ? "both models decide alike here; " : "";
  }

  /** Where the chosen head looks, in words and on the tokens. */
  show.looks = () => {
    const { layer, head } = draw.component(now.head);
    const attention = sweep[now.whose].attention(layer, head);
    const { tokens } = sweep.encoded;
    const most = draw.tokens(one(".lab-tokens"), tokens, attention, 5);
    const seen = most.slice(0, 3).filter((k, i) => !i || attention[k] >= 0.01);
    const words = seen.map((k) => `${Math.round(100 * attention[k])} % on “${before(k)}”${role(k)}`);
    const whose = now.whose === "target" ? `the patient, ${title(now.target)}` : `the donor, ${title(now.source)}`;
    say(one(".lab-most"), `${now.head} in ${whose}: ${words.join("; ")}.`);
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

  /** Choose a value in a list; one that is not offered there is its last entry, until another takes that place. */
  function offer(select, value, text) {
    select.querySelector("[data-typed]")?.remove();
    if (![...select.options].some((option) => option.value === value))
      select.append(draw.element("option", { value, "data-typed": "" }, text));
    select.value = value;
  }

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
    for (const matrix of lab.matrices) field("matrix").add(new Option(matrix.join(", "), matrix.join(".")));
    for (const pair of lab.labels) field("pair").add(new Option(pair.join(", "), JSON.stringify(pair)));
    for (const name of lab.components(["head"])) field("head").add(new Option(name, name));
    const { depth, heads } = lab.config;
    cells = draw.grid(one("#lab-patch .lab-grid"), { depth, heads });
  }

  const FIELDS = ["source", "target", "wording", "own", "other", "matrix", "pair", "temptation", ...rewired.SWAPS];
  const SWITCHES = ["what", "positions", "mode", "head", "whose"];
  const TYPED = ["cooperate", "defect", "text"];

  const labelled = ([cooperate, defect]) => ({ cooperate, defect });

  /** The choices that a field's value stands for: most fields have the name of their choice. */
  function meant(name, value) {
    if (name === "own") return { state: value + now.state[1] };
    if (name === "other") return { state: now.state[0] + value };
    if (name === "matrix") return { matrix: value.split(".").map(Number) };
    if (name === "pair") return labelled(JSON.parse(value));
    if (name === "text") return { words: value || null };
    return { [name]: value };
  }

  let typed = null; // what was typed waits until the fingers rest, or leave the field
  let rest; // the timer of that

  /** What was typed takes effect. */
  function flush() {
    clearTimeout(rest);
    if (typed) set(meant(typed.name, typed.value));
    typed = null;
  }

  /** What is chosen takes effect at once; what is typed when the fingers rest, or leave the field. */
  function changed({ target: { name, value, type: kind, checked }, type }) {
    if (TYPED.includes(name)) {
      if (type === "change") return flush();
      clearTimeout(rest);
      typed = { name, value };
      rest = setTimeout(flush, 400);
    } else if (type === "change" && [...FIELDS, ...SWITCHES].includes(name)) {
      set(meant(name, kind === "checkbox" ? checked : value));
    }
  }

  /** Back from the reader's own words to those that the sentence builds. */
  function built() {
    set({ words: null });
    field("wording").focus();
  }

  const DOES = {
    exchange,
    "exchange-labels": () => set(labelled([now.defect, now.cooperate])),
    "own-words-away": built,
    sweep: () => (work && !work.searches ? stop() : tryAll()),
    greedy: () => (work && work.searches ? stop() : findSet()),
    clear: () => set({ chosen: [] }),
    draw: () => set({ draw: now.draw + 1 }),
    keenest: () => set({ head: keenest() }),
    check: ({ target }) => check(target),
    share: ({ target }) => share(target),
  };

  /** Recompute the book's own numbers, and say how far the page is from them. */
  async function check(button) {
    const told = button.nextElementSibling;
    const tell = (words, live) => {
      told.setAttribute("aria-live", live);
      told.textContent = words;
    };
    button.disabled = true;
    try {
      const onEach = (_, k) => tell(`${k + 1} of ${lab.golden.length} …`, "off"); // the count is for the eye
      const { count, largest } = await lab.check(onEach);
      const difference = `largest difference ${largest.toFixed(6)} logits`;
      tell(`Recomputed here: ${count} of this book's own numbers; ${difference}.`, "polite");
    } catch (problem) {
      tell(problem.message, "polite");
      if (!(problem instanceof rewired.Problem)) throw problem;
    } finally {
      button.disabled = false;
    }
  }

  async function share(button) {
    const told = button.nextElementSibling;
    history.replaceState(null, "", `#${choices.written(now)}`);
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
  function steered(event) {
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

  /** Open one of the two views. */
  function turnTo(view) {
    set({ view });
    one(`#lab-tab-${view}`).focus();
  }

  /** The arrows move between the two views. */
  function turned(event) {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key) || !lab.learnt) return;
    event.preventDefault();
    turnTo(now.view === "patch" ? "learnt" : "patch");
  }

  /** The hint speaks of the component under the pointer, or of the one that has the focus. */
  function pointed({ target }) {
    const box = target.closest("[data-component]");
    if (box && !work) show.about(box.dataset.component);
  }

  function listen() {
    const grid = one("#lab-patch .lab-grid");
    for (const type of ["change", "input"]) root.addEventListener(type, changed);
    root.addEventListener("click", pressed);
    grid.addEventListener("keydown", steered);
    for (const type of ["pointerover", "focusin"]) grid.addEventListener(type, pointed);
    for (const view of ["patch", "learnt"]) one(`#lab-tab-${view}`).addEventListener("click", () => turnTo(view));
    one(".lab-views").addEventListener("keydown", turned);
    one(".lab-scene").addEventListener("submit", (event) => event.preventDefault());
    new ResizeObserver(() => sweep && !work && drawn && show.lens()).observe(grid);
    addEventListener("hashchange", follow);
  }

  // --- the beginning -------------------------------------------------------------------------------------------------

  const samePair = (one) => (other) => one.source === other.source && one.target === other.target;

  /** Open the data. Where they are missing the page keeps its words, and says why. */
  async function open(options) {
    one(".lab-why").textContent = "The lab is opening …";
    lab = await rewired.lab.open(root.dataset.folder, options);
    if (!lab.available) {
      one(".lab-why").textContent = lab.reason;
      root.dataset.ready = "without";
      return;
    }
    root.replaceChildren(document.getElementById("lab-page").content.cloneNode(true));
    lab.puzzles = lab.puzzles.filter((puzzle) => puzzle === lab.puzzles.find(samePair(puzzle)));
    now = choices.start(lab);
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

// All scripts are deferred: the page opens when the last one is here.
document.addEventListener("DOMContentLoaded", () => {
  rewired.ui.open({ wasm: !new URLSearchParams(location.search).has("plain") });
});
