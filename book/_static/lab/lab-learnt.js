// The lab's second view: how a run learnt. A slider over its checkpoints moves the policy, the lens and the components.
// All numbers were computed when the book was built; nothing is trained in the page.
"use strict";

rewired.learnt = (() => {
  const { ui, draw } = rewired;
  const one = (selector) => ui.one(`#lab-learnt ${selector}`);
  const slider = () => ui.field("episode");
  let course = null; // the run that is shown
  let cells = new Map(); // component -> its box in the grid
  let state = 0; // the last round whose components are coloured
  let timer = null; // runs while the course is played
  let lens = null; // the curves on the screen

  /** Open the view: fill it if that is the first time, and show the chosen run. */
  async function open() {
    if (!cells.size) fill();
    await show(ui.now().run || ui.lab().learnt[0]);
  }

  function fill() {
    const { learnt, config } = ui.lab();
    ui.offerRuns(ui.field("run"), learnt);
    cells = draw.grid(one(".lab-grid"), config, true);
    ui.field("run").addEventListener("change", ({ target }) => show(target.value));
    slider().addEventListener("input", ({ target }) => step(Number(target.value)));
    one('[data-do="play"]').addEventListener("click", () => (timer ? pause() : play()));
    new ResizeObserver(() => course && paint()).observe(one(".lab-grid"));
  }

  async function show(name) {
    pause();
    ui.field("run").value = name;
    try {
      const loaded = await ui.lab().course(name);
      if (ui.field("run").value === name) begin(name, loaded); // or another run was chosen meanwhile
    } catch (problem) {
      if (!(problem instanceof rewired.Problem)) throw problem;
      ui.say(one(".lab-course-told"), problem.message);
    }
  }

  /** A run is here: it is shown at the episode that the address asks for, or at its end. */
  function begin(name, loaded) {
    course = loaded;
    lens = null;
    const asked = ui.now().run === name ? course.episodes.indexOf(ui.now().episode) : -1;
    slider().max = course.episodes.length - 1;
    offerStates();
    step(asked < 0 ? course.episodes.length - 1 : asked);
  }

  /** One button a state: whose components are coloured. */
  function offerStates() {
    const buttons = course.states.map((name, s) => {
      const button = draw.element("input", { type: "radio", name: "after", value: s });
      button.checked = s === state;
      button.addEventListener("change", () => {
        state = s;
        paint();
      });
      return draw.element("label", {}, button, draw.element("span", {}, name));
    });
    one(".lab-states").replaceChildren("The grid shows prompts after ", ...buttons);
  }

  function step(k) {
    slider().value = k;
    paint();
    ui.note({ run: ui.field("run").value, episode: course.episodes[k] });
  }

  function play() {
    const [here, last] = [Number(slider().value), Number(slider().max)];
    one('[data-do="play"]').textContent = "Pause";
    one(".lab-course-told").setAttribute("aria-live", "off"); // no sentence a tick
    if (here === last) step(0);
    timer = setInterval(() => {
      const next = Number(slider().value) + 1;
      if (next > last) pause();
      else step(next);
    }, 700);
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    one('[data-do="play"]').textContent = "Play";
    one(".lab-course-told").setAttribute("aria-live", "polite");
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  function paint() {
    const k = Number(slider().value);
    one("output").textContent = `${course.episodes[k]} of ${course.episodes.at(-1)}`;
    slider().setAttribute("aria-valuetext", `${course.episodes[k]} episodes`);
    policy(k);
    courses(k);
    components(k);
    tell(k);
  }

  const MARGIN = { left: 34, right: 44, top: 22, bottom: 28 };

  /** p_defect of each state over the episodes, a line a state, and where the slider stands. */
  function policy(k) {
    const svg = one(".lab-policy");
    const { width, height } = svg.getBoundingClientRect();
    if (!width) return; // the view is hidden
    const last = course.episodes.at(-1) || 1;
    const x = (episode) => MARGIN.left + (episode / last) * (width - MARGIN.left - MARGIN.right);
    const y = (p) => MARGIN.top + (1 - p) * (height - MARGIN.top - MARGIN.bottom);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...frame(x, y), ...marks(k, x, y), ...curves(k, x, y), ...names(x, y));
    const now = values(course.p_defect[k], draw.percent);
    svg.setAttribute("aria-label", `Probability of defecting by last round over the episodes; now ${now}`);
  }

  /** The two sides, the ticks and the title. */
  function frame(x, y) {
    const [left, right] = [x(0), x(course.episodes.at(-1))];
    const half = { x: left, width: right - left, height: y(0) - y(0.5) };
    const shapes = [
      draw.shape("rect", { ...half, y: y(1), class: "lab-side defects" }),
      draw.shape("rect", { ...half, y: y(0.5), class: "lab-side cooperates" }),
      draw.shape("text", { x: left, y: 12, class: "lab-tick-text left" }, "probability of defecting, by last round"),
    ];
    for (const p of [0, 0.5, 1]) {
      const line = { x1: left, x2: right, y1: y(p), y2: y(p), class: p === 0.5 ? "lab-zero" : "lab-tick" };
      const text = { x: left - 6, y: y(p) + 4, class: "lab-tick-text right" };
      shapes.push(draw.shape("text", text, p === 0.5 ? "½" : p), draw.shape("line", line));
    }
    return shapes;
  }

  /** Along the episodes: the base, the end of training, and the slider. */
  function marks(k, x, y) {
    const last = course.episodes.at(-1);
    const here = x(course.episodes[k]);
    return [
      draw.shape("line", { x1: here, x2: here, y1: y(1) - 4, y2: y(0) + 4, class: "lab-cursor" }),
      draw.shape("text", { x: x(0), y: y(0) + 20, class: "lab-tick-text left" }, "base"),
      draw.shape("text", { x: x(last), y: y(0) + 20, class: "lab-tick-text" }, `${last} episodes`),
    ];
  }

  /** One line a state, and a dot where the slider stands. */
  function curves(k, x, y) {
    return course.states.flatMap((name, s) => {
      const points = course.episodes.map((episode, i) => `${x(episode)},${y(course.p_defect[i][s])}`).join(" ");
      const dot = { cx: x(course.episodes[k]), cy: y(course.p_defect[k][s]), r: 4.5 };
      return [
        draw.shape("polyline", { points, class: "lab-curve", "data-line": name }),
        draw.shape("circle", { ...dot, class: "lab-dot", "data-line": name }),
      ];
    });
  }

  /** The state's name at the end of each line. */
  function names(x, y) {
    const ends = course.states.map((_, s) => y(course.p_defect.at(-1)[s]));
    const right = x(course.episodes.at(-1)) + 6;
    return apart(ends, 13).map((height, s) => {
      const about = { x: right, y: height + 4, class: "lab-line-name", "data-line": course.states[s] };
      return draw.shape("text", about, course.states[s]);
    });
  }

  /** Heights that are at least ``gap`` apart, in the order of the given ones. */
  function apart(heights, gap) {
    const order = heights.map((_, s) => s).sort((a, b) => heights[a] - heights[b]);
    const placed = [...heights];
    for (let i = order.length - 2; i >= 0; i--)
      placed[order[i]] = Math.min(placed[order[i]], placed[order[i + 1]] - gap);
    const low = Math.min(...placed);
    return low < 8 ? placed.map((height) => height + 8 - low) : placed;
  }

  const values = (list, form) => course.states.map((name, s) => `${name} ${form(list[s])}`).join(", ");

  /** The lens of each state beside the grid. */
  function courses(k) {
    const goal = course.lens[k].flat();
    const size = goal.length / course.states.length;
    const svg = one(".lab-lens");
    const curve = (flat, s) => ({ name: course.states[s], values: flat.slice(s * size, (s + 1) * size) });
    draw.glide(svg, lens, goal, (flat) =>
      draw.lens(
        svg,
        course.states.map((_, s) => curve(flat, s)),
      ),
    );
    const ends = course.lens[k].map((curve) => curve.at(-1));
    svg.setAttribute("aria-label", `Logit lens by last round; Δ at the end: ${values(ends, draw.signed)}`);
    lens = goal;
  }

  /** What each head and MLP adds to the decision, as {component, contribution}, the largest first. */
  function contributions(k) {
    const added = course.contribution[k][state];
    const listed = course.components.map((component, i) => ({ component, contribution: added[i] }));
    const shown = listed.filter(({ component }) => cells.has(component)); // the embedding has no cell
    return shown.sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  }

  /** The contributions after the chosen state, in the grid; layers' sums and the stream stay empty. */
  function components(k) {
    const added = contributions(k);
    for (const { component, contribution } of added) draw.write(cells.get(component), contribution);
    draw.colour(cells, one(".lab-scale"));
    const most = added.slice(0, 8).map(({ component, contribution }) => `${component} ${draw.signed(contribution, 1)}`);
    one(".lab-grid").setAttribute(
      "aria-label",
      `Largest contributions after ${course.states[state]}: ${most.join(", ")}`,
    );
  }

  function tell(k) {
    const { episodes, variant, states, p_defect, legal_mass } = course;
    const order = states.map((_, s) => s).sort((a, b) => p_defect[k][a] - p_defect[k][b]);
    const [least, most] = [order[0], order.at(-1)];
    const [strongest] = contributions(k);
    ui.say(
      one(".lab-course-told"),
      `${episodes[k] ? `After ${episodes[k]} episodes ${variant}` : "Before any training the base"} defects most after `,
      `${states[most]} (`,
      ["b", draw.percent(p_defect[k][most])],
      `) and least after ${states[least]} (`,
      ["b", draw.percent(p_defect[k][least])],
      `); legal mass at least ${draw.percent(Math.min(...legal_mass[k]))}. `,
      `The largest contribution after ${states[state]} is that of ${strongest.component}: `,
      `${draw.signed(strongest.contribution, 1)} logits.`,
    );
  }

  return { open };
})();
