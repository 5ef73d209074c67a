// The lab's second view: how a run learnt. A slider over its checkpoints moves the policy, the lens and the parts.
// All numbers were computed when the book was built; nothing is trained in the page.
"use strict";

rewired.learnt = (() => {
  const ui = () => rewired.ui;
  const { draw } = rewired;
  const one = (selector) => ui().one(`#lab-learnt ${selector}`);
  let course = null; // the run that is shown
  let cells = new Map(); // component -> its box in the grid
  let state = 0; // the last round whose parts are coloured
  let timer = null; // runs while the course is played
  let lens = null; // the curves on the screen

  /** Fill the view when it is opened first. */
  async function open() {
    const lab = ui().lab();
    const select = ui().field("run");
    if (!select.options.length) {
      ui().offerRuns(select, lab.learnt);
      const { depth, heads } = lab.config;
      cells = draw.grid(one(".lab-grid"), { depth, heads }, true);
      select.addEventListener("change", () => show(select.value));
      ui()
        .field("episode")
        .addEventListener("input", ({ target }) => step(Number(target.value)));
      one('[data-do="play"]').addEventListener("click", () => (timer ? pause() : play()));
      new ResizeObserver(() => course && paint()).observe(one(".lab-grid"));
    }
    await show(ui().now().run || lab.learnt[0]);
  }

  async function show(name) {
    pause();
    ui().field("run").value = name;
    try {
      const loaded = await ui().lab().course(name);
      if (ui().field("run").value !== name) return undefined; // another run was chosen meanwhile
      course = loaded;
    } catch (problem) {
      if (!(problem instanceof rewired.Problem)) throw problem;
      return ui().say(one(".lab-course-told"), problem.message);
    }
    const { episodes } = course;
    const slider = ui().field("episode");
    slider.max = episodes.length - 1;
    const asked = ui().now().run === name ? episodes.indexOf(ui().now().episode) : -1;
    slider.value = asked < 0 ? episodes.length - 1 : asked;
    lens = null;
    offerStates();
    return step(Number(slider.value), name);
  }

  /** One button a state: whose parts are coloured. */
  function offerStates() {
    const buttons = course.states.map((name, s) => {
      const button = draw.element(
        "label",
        {},
        draw.element("input", { type: "radio", name: "state", value: s }),
        draw.element("span", {}, name),
      );
      button.querySelector("input").checked = s === state;
      button.querySelector("input").addEventListener("change", () => {
        state = s;
        paint();
      });
      return button;
    });
    one(".lab-states").replaceChildren("The grid shows prompts after ", ...buttons);
  }

  function step(k, name = ui().field("run").value) {
    ui().field("episode").value = k;
    paint();
    ui().note({ run: name, episode: course.episodes[k] });
  }

  function play() {
    const slider = ui().field("episode");
    if (Number(slider.value) === Number(slider.max)) step(0);
    one('[data-do="play"]').setAttribute("aria-pressed", "true");
    one('[data-do="play"]').textContent = "Pause";
    one(".lab-course-told").setAttribute("aria-live", "off"); // no sentence a tick
    timer = setInterval(() => {
      const next = Number(slider.value) + 1;
      if (next > Number(slider.max)) return pause();
      step(next);
    }, 700);
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    one('[data-do="play"]').setAttribute("aria-pressed", "false");
    one('[data-do="play"]').textContent = "Play";
    one(".lab-course-told").setAttribute("aria-live", "polite");
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  function paint() {
    const k = Number(ui().field("episode").value);
    one("output").textContent = `${course.episodes[k]} of ${course.episodes.at(-1)}`;
    ui().field("episode").setAttribute("aria-valuetext", `${course.episodes[k]} episodes`);
    policy(k);
    courses(k);
    parts(k);
    tell(k);
  }

  /** p_defect of each state over the episodes, a line a state, and where the slider stands. */
  function policy(k) {
    const svg = one(".lab-policy");
    const { width, height } = svg.getBoundingClientRect();
    if (!width) return;
    const { episodes, states, p_defect } = course;
    const x = (episode) => 34 + (episode / (episodes.at(-1) || 1)) * (width - 34 - 44);
    const y = (p) => 22 + (1 - p) * (height - 50);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(
      draw.shape("rect", { x: 34, y: y(1), width: width - 78, height: (y(0) - y(1)) / 2, class: "lab-side defects" }),
    );
    svg.append(
      draw.shape("rect", {
        x: 34,
        y: y(0.5),
        width: width - 78,
        height: (y(0) - y(1)) / 2,
        class: "lab-side cooperates",
      }),
    );
    for (const [p, text] of [
      [0, "0"],
      [0.5, "½"],
      [1, "1"],
    ]) {
      svg.append(draw.shape("text", { x: 28, y: y(p) + 4, class: "lab-tick-text right" }, text));
      svg.append(
        draw.shape("line", { x1: 34, x2: width - 44, y1: y(p), y2: y(p), class: p === 0.5 ? "lab-zero" : "lab-tick" }),
      );
    }
    svg.append(
      draw.shape("text", { x: 34, y: 12, class: "lab-tick-text left" }, "probability of defecting, by last round"),
    );
    svg.append(
      draw.shape("line", { x1: x(episodes[k]), x2: x(episodes[k]), y1: 18, y2: height - 24, class: "lab-cursor" }),
    );
    svg.append(draw.shape("text", { x: x(0), y: height - 8, class: "lab-tick-text left" }, "base"));
    svg.append(
      draw.shape("text", { x: x(episodes.at(-1)), y: height - 8, class: "lab-tick-text" }, `${episodes.at(-1)}`),
    );
    const heights = apart(
      states.map((_, s) => y(p_defect.at(-1)[s])),
      13,
    );
    for (const [s, name] of states.entries()) {
      const points = episodes.map((episode, i) => `${x(episode)},${y(p_defect[i][s])}`).join(" ");
      svg.append(draw.shape("polyline", { points, class: "lab-curve", "data-line": name }));
      svg.append(
        draw.shape("circle", {
          cx: x(episodes[k]),
          cy: y(p_defect[k][s]),
          r: 4.5,
          class: "lab-dot",
          "data-line": name,
        }),
      );
      svg.append(
        draw.shape("text", { x: width - 38, y: heights[s] + 4, class: "lab-line-name", "data-line": name }, name),
      );
    }
    svg.setAttribute(
      "aria-label",
      `Probability of defecting by last round over the episodes; now ${values(p_defect[k], draw.percent)}`,
    );
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
    const goal = course.lens[k].flatMap((values) => Array.from(values));
    const size = goal.length / course.states.length;
    const svg = one(".lab-lens");
    draw.glide(svg, lens, goal, (flat) =>
      draw.lens(
        svg,
        course.states.map((name, s) => ({ name, values: flat.slice(s * size, (s + 1) * size) })),
      ),
    );
    lens = goal;
  }

  /** What each head and MLP adds to the decision, as {component, contribution}, the largest first. */
  function contributions(k) {
    const listed = course.components.map((component, i) => ({
      component,
      contribution: course.contribution[k][state][i],
    }));
    const shown = listed.filter(({ component }) => cells.has(component));
    return shown.sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  }

  /** The contributions of the chosen state, in the grid; layers' sums and the stream stay empty. */
  function parts(k) {
    const found = contributions(k);
    for (const { component, contribution } of found) draw.write(cells.get(component), contribution);
    draw.colour(cells, one(".lab-scale"));
    const listed = found
      .slice(0, 8)
      .map(({ component, contribution }) => `${component} ${draw.signed(contribution, 1)}`)
      .join(", ");
    one(".lab-grid").setAttribute("aria-label", `Largest contributions after ${course.states[state]}: ${listed}`);
  }

  function tell(k) {
    const { episodes, variant, states, p_defect } = course;
    const after = states.map((name, s) => ({ name, p: p_defect[k][s] }));
    const most = after.reduce((a, b) => (b.p > a.p ? b : a));
    const least = after.reduce((a, b) => (b.p < a.p ? b : a));
    const when = episodes[k] ? `After ${episodes[k]} episodes ${variant}` : "Before any training the base";
    const [strongest] = contributions(k);
    ui().say(
      one(".lab-course-told"),
      `${when} defects most after ${most.name} (`,
      ["b", draw.percent(most.p)],
      `) and least after ${least.name} (`,
      ["b", draw.percent(least.p)],
      `). The largest contribution after ${states[state]} is that of ${strongest.component}: `,
      `${draw.signed(strongest.contribution, 1)} logits.`,
    );
  }

  return { open };
})();
