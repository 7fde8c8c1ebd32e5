"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const read = (id) => {
  const element = document.getElementById(id);
  return element && JSON.parse(element.textContent);
};
const templates = read("templates");
const hovers = read("hovers") ?? {};
const holders = [...document.querySelectorAll(".figure")];
const template = () => templates[dark.matches ? "dark" : "light"];
const kept = (() => {
  // what outlives a page that loads itself again: scroll position, sort, filter, columns, the chosen trial
  const key = `mixtune ${location.pathname}`;
  let values = {};
  try { values = JSON.parse(sessionStorage.getItem(key)) ?? {}; } catch { /* a browser that keeps nothing */ }
  return {
    get: (name, otherwise) => values[name] ?? otherwise,
    set(name, value) {
      values[name] = value;
      try { sessionStorage.setItem(key, JSON.stringify(values)); } catch { /* the same */ }
    },
  };
})();

// Figures.

const wrapped = (title, width) => {
  // an axis title that is longer than its axis goes on below
  const lines = [""];
  for (const word of title.split(" ")) {
    if (lines.at(-1).length + word.length > Math.max(12, width / 7.5)) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trim());
  }
  return lines.join("<br>");
};
function fitted(figure, holder) {
  const layout = { ...figure.layout, template: template() };
  const narrow = holder.clientWidth < 520;
  const across = Object.keys(layout).filter((key) => key.startsWith("xaxis")).length || 1;
  for (const [key, axis] of Object.entries(layout)) {
    if (!/^[xy]axis/.test(key) || !axis.title?.text) continue;
    const length = key[0] === "x" ? holder.clientWidth / across : holder.clientHeight * 0.55;
    layout[key] = { ...axis, title: { ...axis.title, text: wrapped(axis.title.text, length) } };
  }
  if (narrow) {
    layout.font = { size: 12 };
    if (!figure.data.some((trace) => trace.type === "parcoords")) layout.margin = { ...layout.margin, l: 44, r: 12 };
    layout.legend = { ...layout.legend, font: { size: 11 } };
  }
  return layout;
}
async function draw(holder) {
  const figure = read(`data-${holder.dataset.figure}`);
  for (const trace of figure.data) {
    if (trace.customdata && !trace.hovertext && trace.hoverinfo === "text") trace.hovertext = trace.customdata.map((trial) => hovers[trial]);
    if (trace.type === "parcoords") {
      trace.line.colorscale = template().layout.colorscale.sequential; // a template does not reach it
      trace.unselected = { line: { opacity: 0.08 } };
    }
  }
  await Plotly.newPlot(holder, figure.data, fitted(figure, holder), { displaylogo: false, responsive: true });
  holder.insertAdjacentHTML("beforeend", '<svg class="rings" aria-hidden="true"></svg>');
  holder.places = new Map();
  holder.data.forEach((trace, number) => {
    (trace.customdata ?? []).forEach((trial, place) => {
      if (!holder.places.has(trial)) holder.places.set(trial, []);
      holder.places.get(trial).push([number, place]);
    });
  });
  holder.on("plotly_hover", (event) => show(event.points?.[0]?.customdata));
  holder.on("plotly_click", (event) => pin(event.points?.[0]?.customdata, true));
  if (figure.data[0]?.type === "parcoords") {
    holder.addEventListener("mousemove", (event) => show(nearestLine(holder, event)));
    holder.addEventListener("click", (event) => pin(nearestLine(holder, event), true));
  }
  for (const event of ["plotly_relayout", "plotly_restyle", "plotly_afterplot"]) holder.on(event, () => ring(holder));
  holder.dataset.drawn = "yes";
}

// Where a trial is in a figure, in pixels: a ring around a point, a band along a bar, a path along a curve.
function marksOf(holder, trial) {
  const marks = [], paths = new Map();
  const layout = holder._fullLayout;
  for (const [number, place] of holder.places?.get(trial) ?? []) {
    const trace = holder._fullData.find((each) => each.index === number);
    if (!trace || trace.visible !== true) continue;
    if (trace.type === "parcoords") {
      marks.push({ path: holder.data[number].dimensions.map((axis, i) => lineAt(holder, i, place)) });
      continue;
    }
    const x = layout[trace.xaxis.replace("x", "xaxis")], y = layout[trace.yaxis.replace("y", "yaxis")];
    const at = [x._offset + x.d2p(trace.x[place]), y._offset + y.d2p(trace.y[place])];
    const inside = at[0] >= x._offset - 1 && at[0] <= x._offset + x._length + 1 && at[1] >= y._offset - 1 && at[1] <= y._offset + y._length + 1;
    if (trace.type === "bar") marks.push({ band: [x._offset, at[1] - 9, x._length, 18] });
    else if (trace.mode.includes("markers")) inside && marks.push({ ring: at });
    else if (Number.isFinite(at[0]) && Number.isFinite(at[1]) && trace.y[place] !== null) {
      if (!paths.has(number)) paths.set(number, []);
      paths.get(number).push(at);
    }
  }
  return [...marks, ...[...paths.values()].map((path) => ({ path }))];
}
function lineAt(holder, i, place) {
  // where a line of parallel coordinates crosses axis i
  const { l, t, w, h } = holder._fullLayout._size, axes = holder.data[0].dimensions;
  const { values, range: [low, high] } = axes[i];
  return [l + (w * i) / Math.max(1, axes.length - 1), t + h * (1 - (values[place] - low) / (high - low))];
}
function nearestLine(holder, event) {
  // the trial whose line is within a few pixels, none beside an axis, which is dragged along
  const box = holder.getBoundingClientRect(), { customdata, dimensions } = holder.data[0];
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const i = dimensions.findIndex((axis, i) => i && lineAt(holder, i, 0)[0] > x) - 1;
  if (i < 0 || x - lineAt(holder, i, 0)[0] < 12 || lineAt(holder, i + 1, 0)[0] - x < 12) return undefined;
  const isChosen = (place) => dimensions.every(({ values, constraintrange: limits }) =>
    !limits?.length || (Array.isArray(limits[0]) ? limits : [limits]).some(([low, high]) => values[place] >= low && values[place] <= high));
  let best = 6, found;
  customdata.forEach((trial, place) => {
    const [[x0, y0], [x1, y1]] = [lineAt(holder, i, place), lineAt(holder, i + 1, place)];
    const away = Math.abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / Math.hypot(x1 - x0, y1 - y0);
    if (away < best && isChosen(place)) [best, found] = [away, trial];
  });
  return found;
}
function ring(holder) {
  const svg = holder.querySelector("svg.rings");
  if (!svg) return;
  svg.innerHTML = marksOf(holder, current).map(({ ring, band, path }) => {
    if (ring) return `<circle cx="${ring[0]}" cy="${ring[1]}" r="13"/>`;
    if (band) return `<rect x="${band[0]}" y="${band[1]}" width="${band[2]}" height="${band[3]}"/>`;
    return `<path d="M${path.map((at) => at.join(",")).join("L")}"/>`;
  }).join("");
}

// The trial that is looked at: under the pointer or with the keyboard's focus, or kept by a click until it is cleared.
let current = null, pinned = null;
function show(trial) {
  if (!trial || (pinned && trial !== pinned) || trial === current) return;
  current = trial;
  mark();
}
function mark() {
  for (const other of document.querySelectorAll("[data-trial][aria-current]")) other.removeAttribute("aria-current");
  for (const row of document.querySelectorAll(`[data-trial="${CSS.escape(current ?? "")}"]`)) row.setAttribute("aria-current", "true");
  for (const holder of holders) ring(holder);
}
function pin(trial, fromFigure = false) {
  if (!trial) return;
  pinned = trial === pinned && !fromFigure ? null : trial;
  current = pinned;
  kept.set("pinned", pinned);
  mark();
  const chip = document.getElementById("chosen");
  chip.hidden = !pinned;
  const row = trials?.byTrial.get(pinned);
  chip.querySelector("span").textContent = row ? `${row.cells.slice(0, 2).join(" · ")} is marked in the tables and figures` : pinned;
  if (pinned && fromFigure) trials?.reveal(pinned);
}
document.querySelector("#chosen button").addEventListener("click", () => pin(pinned));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && pinned) pin(pinned);
  else if (event.key === "Enter" && event.target.dataset?.trial) pin(event.target.dataset.trial);
});
for (const event of ["focusin", "mouseover"]) {
  document.addEventListener(event, ({ target }) => show(target.closest?.("[data-trial]")?.dataset.trial));
}
document.addEventListener("click", ({ target }) => pin(target.closest?.("[data-trial]")?.dataset.trial));

// The table of all trials. Rows are written as they are scrolled to, so that thousands cost nothing.
const trials = (() => {
  const data = read("data-trials");
  if (!data) return null;
  const CHUNK = 150;
  const table = document.getElementById("trials"), body = table.tBodies[0], scroll = table.parentElement;
  const [filter, state, columns, count] = ["filter", "state", "columns", "shown"].map((id) => document.getElementById(id));
  const safe = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const rows = data.rows.map(([trial, state, marks, cells], place) => ({
    trial, state, marks, place,
    cells: cells.map((cell) => (Array.isArray(cell) ? cell[0] : cell ?? "")),
    numbers: cells.map((cell) => (Array.isArray(cell) ? cell[1] : null)),
  }));
  const shownColumns = new Map(data.columns.map((column) => [column.title, column.shown]));
  for (const [title, isShown] of Object.entries(kept.get("columns", {}))) if (shownColumns.has(title)) shownColumns.set(title, isShown);
  let sort = kept.get("sort", null), wanted = rows, written = 0;

  function compare(a, b) {
    const i = sort.column, sign = sort.down ? -1 : 1;
    if (data.columns[i].number) {
      const missing = (a.numbers[i] === null) - (b.numbers[i] === null); // at the end, whichever way
      return missing || sign * (a.numbers[i] - b.numbers[i]) || a.place - b.place;
    }
    const missing = (a.cells[i] === "") - (b.cells[i] === "");
    return missing || sign * a.cells[i].localeCompare(b.cells[i], "en", { numeric: true }) || a.place - b.place;
  }
  function marked(marks) {
    const said = marks[0] === "recommended" ? marks.filter((mark) => mark !== "on the front") : marks;
    return said.length ? ` <span class="mark">${said.join(", ")}</span>` : "";
  }
  function update() {
    const text = filter.value.trim().toLowerCase(), kind = state.value;
    wanted = rows.filter((row) => {
      row.text ??= [...row.cells, ...row.marks].join(" ").toLowerCase();
      return (!kind || row.state === kind || row.marks.includes(kind)) && row.text.includes(text);
    });
    if (sort && data.columns[sort.column]) wanted.sort(compare);
    table.tHead.innerHTML = `<tr>${data.columns.map(({ title, number }, i) => {
      if (!shownColumns.get(title)) return "";
      const order = sort?.column === i ? (sort.down ? "descending" : "ascending") : "none";
      return `<th scope="col" aria-sort="${order}" data-column="${i}"${number ? "" : ' class="text"'}><button type="button">${safe(title)}</button></th>`;
    }).join("")}</tr>`;
    body.innerHTML = "";
    written = 0;
    scroll.scrollTop = 0;
    more(CHUNK);
    count.textContent = `${wanted.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
    kept.set("sort", sort);
    kept.set("filter", filter.value);
    kept.set("state", state.value);
    kept.set("columns", Object.fromEntries(shownColumns));
  }
  function more(upTo) {
    const html = wanted.slice(written, upTo).map((row) => {
      const cells = row.cells.map((cell, i) => {
        const { title, number } = data.columns[i];
        if (!shownColumns.get(title)) return "";
        if (i === 0) return `<th scope="row">${safe(cell)}${marked(row.marks)}</th>`;
        return `<td${number ? "" : ` class="text" title="${safe(cell)}"`}>${safe(cell)}</td>`;
      });
      const classes = row.marks[0] === "recommended" ? ' class="recommended"' : "";
      return `<tr tabindex="0" data-trial="${safe(row.trial)}"${classes}${row.trial === current ? ' aria-current="true"' : ""}>${cells.join("")}</tr>`;
    });
    body.insertAdjacentHTML("beforeend", html.join(""));
    written = Math.max(written, Math.min(upTo, wanted.length));
  }
  function reveal(trial) {
    const place = wanted.findIndex((row) => row.trial === trial);
    if (place < 0) return;
    if (place >= written) more(place + CHUNK);
    const row = body.rows[place];
    scroll.scrollTop = row.offsetTop - scroll.clientHeight / 2;
  }
  scroll.addEventListener("scroll", () => {
    if (scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 800) more(written + CHUNK);
  });
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const column = Number(head.dataset.column);
    const again = sort?.column === column;
    sort = again && sort.down ? null : { column, down: again };
    update();
    table.tHead.querySelector(`[data-column="${column}"] button`).focus();
  });
  for (const [control, event] of [[filter, "input"], [state, "change"]]) control.addEventListener(event, update);
  filter.form.addEventListener("submit", (event) => event.preventDefault());
  const kinds = ["recommended", "on the front", "baseline"].filter((mark) => rows.some((row) => row.marks.includes(mark)));
  const states = [...new Set(rows.map((row) => row.state))];
  state.innerHTML = ["", ...states, ...kinds].map((kind) => `<option value="${kind}">${kind || "all"}</option>`).join("");
  columns.innerHTML = data.columns.map(({ title }, i) =>
    `<label><input type="checkbox" data-column="${i}"${shownColumns.get(title) ? " checked" : ""}${i ? "" : " disabled"}> ${safe(title)}</label>`).join("");
  columns.addEventListener("change", ({ target }) => {
    shownColumns.set(data.columns[Number(target.dataset.column)].title, target.checked);
    update();
  });
  filter.value = kept.get("filter", "");
  if ([...state.options].some((option) => option.value === kept.get("state", ""))) state.value = kept.get("state", "");
  update();
  return { reveal, byTrial: new Map(rows.map((row) => [row.trial, row])) };
})();

for (const button of document.querySelectorAll(".copied button")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // where a page may not copy by itself
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// The contents at the side, of the headings that there are.
const nav = document.querySelector("nav");
const headings = [...document.querySelectorAll("h2, [data-contents]")];
headings.forEach((heading, i) => {
  heading.id ||= `part-${i}`;
  const isInner = heading.matches(".figures h2");
  nav.insertAdjacentHTML("beforeend", `<a href="#${heading.id}"${isInner ? ' class="inner"' : ""}></a>`);
  nav.lastElementChild.textContent = heading.dataset.contents ?? heading.textContent;
});
const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of nav.children) link.toggleAttribute("aria-current", link.hash === `#${entry.target.id}`);
  }
}, { rootMargin: "0px 0px -75% 0px" });
for (const heading of headings) inView.observe(heading);

dark.addEventListener("change", () => {
  for (const holder of holders) {
    const lines = holder.data.findIndex((trace) => trace.type === "parcoords");
    if (lines >= 0) Plotly.restyle(holder, { "line.colorscale": [template().layout.colorscale.sequential] }, [lines]);
    Plotly.relayout(holder, { template: template() });
  }
});

// A page that follows a search loads itself again, though not under a reader's hands, and then stands where it stood.
const isRenewed = kept.get("renewed", false);
kept.set("renewed", false);
const back = () => isRenewed && scrollTo(...kept.get("scroll", [0, 0]));
function renew() {
  kept.set("renewed", true);
  kept.set("scroll", [scrollX, scrollY]);
  location.reload();
}
let touched = 0;
for (const event of ["keydown", "pointerdown", "wheel", "input"]) addEventListener(event, () => (touched = Date.now()), { passive: true });
if (document.body.dataset.refresh || isRenewed) history.scrollRestoration = "manual";
back();
Promise.all(holders.map(draw)).then(() => {
  if (trials?.byTrial.has(kept.get("pinned", null))) pin(kept.get("pinned"), true);
  back();
  document.body.dataset.drawn = "yes";
  const seconds = document.body.dataset.refresh;
  if (seconds) setInterval(() => Date.now() - touched > 3000 && renew(), 1000 * seconds);
});
