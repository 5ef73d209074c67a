// Runs inside a page of the built site, for browser_check.py; answers with what it found there.
(async (minContrast) => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const settled = (img) =>
    img.complete ||
    new Promise((done) => ["load", "error"].forEach((event) => img.addEventListener(event, done)));

  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  for (const img of document.images) img.loading = "eager"; // those below the fold, too
  await Promise.race([wait(5000), Promise.all([...document.images].map(settled))]);
  await document.fonts.ready;
  // a colour on its way to another one must not be measured
  document.head.append(Object.assign(document.createElement("style"), { textContent: "* { transition: none !important; animation: none !important }" }));
  await wait(300);

  const article = document.querySelector("article.bd-article") || document.body;
  for (const fold of article.querySelectorAll("details")) fold.open = true;
  for (const fold of article.querySelectorAll(".toggle-hidden")) fold.classList.remove("toggle-hidden");
  const shown = (node) => node.getClientRects().length > 0;
  const name = (node) => [node.tagName.toLowerCase(), ...node.classList].join(".");
  const start = (text) => text.trim().slice(0, 40);

  // Colours as [red, green, blue, opacity], the first three from 0 to 1.
  const colour = (text) => {
    const numbers = text.match(/[\d.]+/g).map(Number);
    const scale = text.startsWith("rgb") ? 255 : 1;
    return [...numbers.slice(0, 3).map((v) => v / scale), numbers[3] ?? 1];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const background = colour(getComputedStyle(at).backgroundColor);
      if (background[3] > 0.5) return background;
    }
    return [1, 1, 1, 1];
  };
  const contrast = (node) => {
    const [a, b] = [colour(getComputedStyle(node).color), behind(node)].map(luminance);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };

  const faint = new Set();
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const parent = text.parentElement;
    if (!text.data.trim() || !shown(parent) || parent.closest("svg, script, style, kbd, .search-button__kbd-shortcut, mjx-container")) continue;
    const style = getComputedStyle(parent);
    if (style.visibility === "hidden" || style.opacity < 0.1) continue;
    const ratio = contrast(parent);
    if (ratio < minContrast) faint.add(`${name(parent)} "${start(text.data)}" (${ratio.toFixed(1)} : 1)`);
  }

  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const beyond = (node) => shown(node) && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
  const culprits = wide > 1 ? [...article.querySelectorAll("*")].filter(beyond) : [];
  const images = [...document.images].filter((img) => shown(img) && img.complete && !img.naturalWidth);
  const formulas = [...article.querySelectorAll(".math")].filter((node) => !node.querySelector("mjx-container"));
  const code = [...article.querySelectorAll("div.cell_input pre")].filter(shown);
  const scrolls = code.filter((node) => node.scrollWidth > node.clientWidth + 1);
  // What a table answers stands beside the names of its rows: no reader has to scroll for it.
  const cut = (table) => {
    const box = table.closest(".rewired-scroll, .cell_output, .pst-scrollable-table-container") || article;
    const edge = Math.min(box.getBoundingClientRect().right, document.documentElement.clientWidth);
    const last = document.documentElement.clientWidth < 640 ? 2 : Infinity; // columns that must be seen
    const cells = [...table.rows].flatMap((row) => [...row.cells].slice(0, last));
    return cells.some((cell) => shown(cell) && cell.getBoundingClientRect().right > edge + 1);
  };
  const tables = [...article.querySelectorAll("table.rewired-table, table.rewired-verdicts")].filter(shown);
  return {
    theme: document.documentElement.dataset.theme,
    text: article.innerText,
    links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
    targets: [...document.querySelectorAll("[id], a[name]")].map((node) => node.id || node.name),
    images: images.map((img) => img.src),
    unset: formulas.map((node) => start(node.textContent)),
    faint: [...faint],
    wide,
    scrolls: scrolls.map((node) => start(node.textContent)),
    cut: tables.filter(cut).map((table) => start(table.innerText.replace(/\s+/g, " "))),
    culprits: culprits.slice(0, 3).map(name),
  };
})(MIN_CONTRAST);
