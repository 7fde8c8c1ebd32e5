"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const templates = read("templates");
const holders = [...document.querySelectorAll(".figure")];
const template = () => templates[dark.matches ? "dark" : "light"];

async function draw(holder) {
  const figure = read(`data-${holder.dataset.figure}`);
  const layout = { ...figure.layout, template: template() };
  await Plotly.newPlot(holder, figure.data, layout, { displaylogo: false, responsive: true });
  holder.dataset.drawn = "yes";
}

// A table row's point: a ring that follows the row under the pointer, or the one that has the keyboard's focus.
const front = document.getElementById("figure-pareto");
function pointOf(trial) {
  for (const trace of front.data ?? []) {
    const place = [...(trace.customdata ?? [])].indexOf(trial);
    if (place >= 0 && trace.mode.startsWith("markers")) return [trace.x[place], trace.y[place]];
  }
  return null;
}
async function choose(row) {
  const point = pointOf(row.dataset.trial);
  for (const other of document.querySelectorAll("tr[aria-current]")) other.removeAttribute("aria-current");
  row.setAttribute("aria-current", "true");
  if (!point) return;
  const ring = front.data.findIndex((trace) => trace.name === "chosen");
  const at = { x: [[point[0]]], y: [[point[1]]] };
  if (ring >= 0) return Plotly.restyle(front, at, [ring]);
  const marker = { size: 30, symbol: "circle-open", color: "#CC79A7", line: { width: 4 } };
  return Plotly.addTraces(front, {
    x: at.x[0], y: at.y[0], mode: "markers", name: "chosen", marker, showlegend: false, hoverinfo: "skip",
  });
}
for (const row of document.querySelectorAll("tr[data-trial]")) {
  for (const event of ["focus", "mouseenter", "click"]) row.addEventListener(event, () => choose(row));
}

for (const button of document.querySelectorAll(".copied button")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.parentElement.querySelector("code")); // where a page may not copy by itself
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

dark.addEventListener("change", () => {
  for (const holder of holders) Plotly.relayout(holder, { template: template() });
});
Promise.all(holders.map(draw)).then(() => (document.body.dataset.drawn = "yes"));
