// What the lab draws: numbers as text, the dials, the logit lens, the grid of components, the tokens.
// Nothing here measures. Delta is in logits; below zero the model cooperates.
"use strict";

rewired.draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  /** An element with attributes and children; text is a child, too. */
  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  /** The same for what stands in an <svg>. */
  function shape(name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  // --- numbers as text -----------------------------------------------------------------------------------------------

  /** +1.60 or −0.05, with a real minus; what rounds to nothing has no sign. */
  function signed(value, digits = 2) {
    const text = Math.abs(value).toFixed(digits);
    if (Number(text) === 0) return text;
    return `${value < 0 ? "−" : "+"}${text}`;
  }

  /** A probability in percent, with more digits near 0 and 100, where this model lives. */
  function percent(p) {
    const nearest = Math.min(p, 1 - p);
    const digits = nearest >= 0.1 ? 0 : nearest >= 0.01 ? 1 : nearest >= 0.001 ? 2 : 3;
    if (nearest < 0.00001) return p < 0.5 ? "below 0.001 %" : "above 99.999 %";
    return `${(100 * p).toFixed(digits)} %`;
  }

  /** "cooperates" or "defects". */
  const decision = (delta) => (delta > 0 ? "defects" : "cooperates");

  /** {name, layer, kind, head, short, words} of a component's name. */
  function component(name) {
    const about = rewired.parsed(name);
    const { layer, head } = about;
    const words = {
      head: `head ${head} of layer ${layer}`,
      mlp: `the MLP of layer ${layer}`,
      attn: `the attention of layer ${layer}, all its heads`,
      resid: `the whole stream after layer ${layer}`,
    };
    const short = { head, mlp: "mlp", attn: "att", resid: "↑" };
    return { ...about, words: words[about.kind], short: short[about.kind] };
  }

  /** A head or an MLP: one component, and no sum of several. */
  const single = (name) => ["head", "mlp"].includes(component(name).kind);

  // --- dials ---------------------------------------------------------------------------------------------------------

  /** A point on the dial, for p from 0 (left, cooperates) to 1 (right, defects). */
  function onDial(p, radius) {
    const angle = Math.PI * (1 - p);
    return [80 + radius * Math.cos(angle), 78 - radius * Math.sin(angle)];
  }

  function arc(from, to, radius, name) {
    const [x, y] = onDial(from, radius);
    const [u, v] = onDial(to, radius);
    return shape("path", { d: `M${x} ${y}A${radius} ${radius} 0 0 1 ${u} ${v}`, class: name });
  }

  function pointer(p, name) {
    const needle = shape("line", { x1: 80, y1: 78, x2: 80, y2: 22, class: name });
    needle.style.transform = `rotate(${180 * p - 90}deg)`;
    return needle;
  }

  /** A dial from cooperates to defects; ``own`` and, where something is patched, ``patched`` are p_defect. */
  function dial(svg, own, patched = null) {
    svg.setAttribute("viewBox", "0 0 160 96");
    svg.replaceChildren(arc(0, 0.495, 64, "lab-arc cooperates"), arc(0.505, 1, 64, "lab-arc defects"));
    svg.append(shape("text", { x: 2, y: 94, class: "lab-end" }, "cooperates"));
    svg.append(shape("text", { x: 158, y: 94, class: "lab-end right" }, "defects"));
    if (patched !== null) svg.append(pointer(own, "lab-needle before"));
    svg.append(pointer(patched ?? own, "lab-needle"));
    svg.append(shape("circle", { cx: 80, cy: 78, r: 5, class: "lab-hub" }));
    const after = patched === null ? "" : `; patched ${percent(patched)}`;
    svg.setAttribute("aria-label", `Probability of defecting: ${percent(own)}${after}`);
  }

  /** The needle's way from where it was; nothing moves for those who asked for less motion. */
  function swing(svg, from) {
    const needle = svg.querySelector(".lab-needle:not(.before)");
    if (calm.matches || !needle || from === null || !needle.animate) return;
    const start = `rotate(${180 * from - 90}deg)`;
    needle.animate([{ transform: start }, { transform: needle.style.transform }], {
      duration: 350,
      easing: "ease-out",
    });
  }

  // --- the grid of components ----------------------------------------------------------------------------------------

  const KINDS = [
    ["attn", "attn", "the layer's attention: all its heads at once"],
    ["mlp", "MLP", "the layer's MLP"],
    ["resid", "stream", "the whole residual stream after the layer"],
  ];

  /** The line of names above the columns. */
  function heading(heads) {
    const row = element("div", { role: "row", class: "lab-row lab-heading" });
    row.append(element("span", { role: "columnheader", class: "lab-layer" }, "layer"));
    const block = element("span", { class: "lab-heads", role: "presentation" });
    for (let head = 0; head < heads; head++) block.append(element("span", { role: "columnheader" }, `H${head}`));
    row.append(block);
    for (const [kind, name, title] of KINDS) {
      row.append(element("span", { role: "columnheader", class: `lab-${kind}`, title }, name));
    }
    return row;
  }

  /** One component: a button, or in a grid that is only looked at a box. */
  function cell(name, still) {
    const about = component(name);
    const box = element("span", { role: still ? "presentation" : "gridcell", class: `lab-${about.kind}` });
    const inner = element(still ? "span" : "button", {
      class: "lab-cell",
      "data-component": name,
      "data-short": about.short,
    });
    if (!still) {
      inner.type = "button";
      inner.tabIndex = -1;
      inner.setAttribute("aria-pressed", "false");
    }
    inner.append(element("span", { class: "lab-number" }));
    box.append(inner);
    return box;
  }

  /** The whole grid, last layer on top, the embedding at the bottom. Returns {component: its element}. */
  function grid(holder, { depth, heads }, still = false) {
    const cells = new Map();
    const rows = [heading(heads)];
    for (let layer = depth - 1; layer >= 0; layer--) {
      const row = element("div", { role: "row", class: "lab-row", "data-depth": layer + 1 });
      row.append(element("span", { role: "rowheader", class: "lab-layer" }, `L${layer}`));
      const block = element("span", { class: "lab-heads", role: "presentation" });
      for (let head = 0; head < heads; head++) block.append(cell(`L${layer}H${head}`, still));
      row.append(block, ...["ATTN", "MLP", "RESID"].map((kind) => cell(`L${layer}_${kind}`, still)));
      for (const box of row.querySelectorAll(".lab-cell")) cells.set(box.dataset.component, box);
      rows.push(row);
    }
    const bottom = element("div", { role: "row", class: "lab-row lab-bottom", "data-depth": 0 });
    bottom.append(element("span", { role: "gridcell" }, "the embedding of the last token, before any layer"));
    holder.replaceChildren(...rows, bottom);
    if (still) for (const node of holder.querySelectorAll("[role]")) node.removeAttribute("role");
    return cells;
  }

  /** Write a number of logits into a cell; null empties it. */
  function write(box, value) {
    box.dataset.value = value ?? "";
    box.querySelector(".lab-number").textContent = value === null ? "" : signed(value, Math.abs(value) < 9.95 ? 1 : 0);
    box.dataset.sign = value === null ? "" : value > 0 ? "+" : "−";
    box.classList.toggle("defects", value > 0);
    box.classList.toggle("cooperates", value < 0);
    box.classList.toggle("lab-small", value !== null && Math.abs(value) < 0.05);
  }

  /** Colour all cells on one scale: the largest head or MLP has the full colour, what is larger has it, too. */
  function colour(cells, scale) {
    let most = 0.5;
    for (const [name, box] of cells) {
      if (single(name)) most = Math.max(most, Math.abs(Number(box.dataset.value)));
    }
    for (const box of cells.values()) {
      const share = Math.min(1, Math.abs(Number(box.dataset.value || 0)) / most);
      box.style.setProperty("--share", share);
      if (share < 0.2) box.dataset.sign = ""; // shown on a telephone, in the number's place
    }
    scale.querySelector('[data-most="-"]').textContent = `cooperate ${signed(-most, 1)}`;
    scale.querySelector('[data-most="+"]').textContent = `${signed(most, 1)} defect`;
  }

  // --- the logit lens ------------------------------------------------------------------------------------------------

  const ENDS = [2, 4, 6, 10, 16, 20, 30];

  /** The end of an axis that holds ``value``: an even number. */
  const axis = (value) => ENDS.find((end) => value <= end) ?? 2 * Math.ceil(value / 2);

  /** The heights of the rows' middles, by depth, in pixels of the theatre. */
  function heights(theatre) {
    const top = theatre.getBoundingClientRect().top;
    const middles = [];
    for (const row of theatre.querySelectorAll(".lab-row[data-depth]")) {
      const box = row.getBoundingClientRect();
      middles[Number(row.dataset.depth)] = box.top - top + box.height / 2;
    }
    return middles;
  }

  /** The frame of the lens: two sides, the zero, the ticks. Returns a function from logits to pixels. */
  function frame(svg, end, middles) {
    const { width, height } = svg.getBoundingClientRect();
    const inset = 12;
    const x = (delta) => width / 2 + (Math.max(-end, Math.min(end, delta)) / end) * (width / 2 - inset);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const [top, bottom] = [middles.at(-1) - 16, middles[0] + 10];
    const side = { y: top, height: bottom - top, width: width / 2 };
    svg.replaceChildren(shape("rect", { ...side, x: 0, class: "lab-side cooperates" }));
    svg.append(shape("rect", { ...side, x: width / 2, class: "lab-side defects" }));
    const narrow = width < 210;
    for (let tick = -end; tick <= end; tick += narrow ? end : end / 2) {
      svg.append(
        shape("line", { x1: x(tick), x2: x(tick), y1: top, y2: bottom, class: tick ? "lab-tick" : "lab-zero" }),
      );
      svg.append(shape("text", { x: x(tick), y: bottom + 14, class: "lab-tick-text" }, signed(tick, 0)));
    }
    svg.append(shape("text", { x: 3, y: top - 6, class: "lab-side-name" }, narrow ? "coop." : "cooperates"));
    svg.append(shape("text", { x: width - 3, y: top - 6, class: "lab-side-name right" }, narrow ? "def." : "defects"));
    return x;
  }

  /** Curves over depth: ``curves`` are {name, values [depth + 1]}, drawn in this order. The last one is tied to the rows
   * of the layers that are ``patched``. */
  function lens(svg, curves, patched = []) {
    const middles = heights(svg.parentElement);
    if (!middles.length || !svg.getBoundingClientRect().width) return;
    const largest = Math.max(1, ...curves.flatMap((curve) => Array.from(curve.values, Math.abs)));
    const x = frame(svg, axis(largest), middles);
    for (const layer of patched) {
      const y = middles[layer + 1];
      svg.append(
        shape("line", { x1: 0, x2: x(curves.at(-1).values[layer + 1]), y1: y, y2: y, class: "lab-patched-row" }),
      );
    }
    for (const { name, values } of curves) {
      const points = Array.from(values, (delta, depth) => `${x(delta).toFixed(1)},${middles[depth].toFixed(1)}`);
      svg.append(shape("polyline", { points: points.join(" "), class: "lab-curve", "data-line": name }));
      const last = values.length - 1;
      const dot = { cx: x(values[last]), cy: middles[last], r: 4.5, class: "lab-dot", "data-line": name };
      svg.append(shape("circle", dot));
    }
  }

  /** Draw the values of an <svg> on their way from one list to another. ``show`` gets a list; the last one is exact. */
  function glide(svg, from, to, show) {
    cancelAnimationFrame(svg.frame);
    if (calm.matches || !from || from.length !== to.length || document.hidden) return show(to);
    const began = performance.now();
    const next = (now) => {
      const part = Math.min(1, Math.max(0, (now - began) / 260));
      const eased = 1 - (1 - part) ** 3;
      show(part < 1 ? Array.from(to, (value, k) => from[k] + eased * (value - from[k])) : to);
      if (part < 1) svg.frame = requestAnimationFrame(next);
    };
    svg.frame = requestAnimationFrame(next);
  }

  // --- tokens --------------------------------------------------------------------------------------------------------

  /** The prompt, token by token, darker where more attention falls; the ``named`` largest carry their percentage. */
  function tokens(holder, words, attention, named = 5) {
    const order = Array.from(attention.keys()).sort((a, b) => attention[b] - attention[a]);
    const largest = attention[order[0]];
    const tops = new Set(order.slice(0, named));
    const boxes = [];
    for (const [k, word] of words.entries()) {
      const box = element("span", { class: "lab-token" }, word.replaceAll("\n", "⏎"));
      box.style.setProperty("--share", Math.sqrt(attention[k] / largest));
      if (tops.has(k)) box.append(element("sup", {}, `${Math.round(100 * attention[k])} %`));
      boxes.push(box, word.includes("\n") ? element("br") : document.createElement("wbr"));
    }
    holder.replaceChildren(...boxes);
    return order.slice(0, named);
  }

  return {
    element,
    shape,
    signed,
    percent,
    decision,
    component,
    single,
    dial,
    swing,
    grid,
    write,
    colour,
    lens,
    glide,
    tokens,
  };
})();
