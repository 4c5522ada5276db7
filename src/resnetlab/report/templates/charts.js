// Draws the plotly charts, again when the color scheme changes, and fits everything to paper.

// Colors are CSS variables, so that a chart follows the reader's color scheme as the page does.
const style = getComputedStyle(document.documentElement);
const color = (name) => style.getPropertyValue(name).trim();
const resolve = (key, value) =>
  typeof value === "string" && value.startsWith("var(--chart-") ? color(value.slice(4, -1)) : value;

// The confusion matrix comes as its filled cells; the trace needs full rows. The sign of z tells right from wrong.
const expand = (trace) => {
  if (!trace.cells) return;
  const none = [0, 0];
  trace.z = trace.support.map(() => new Float32Array(trace.x.length));
  trace.customdata = trace.support.map(() => new Array(trace.x.length).fill(none));
  for (const [row, column, count] of trace.cells) {
    const share = count / trace.support[row];
    trace.z[row][column] = row === column ? share : -share;
    trace.customdata[row][column] = [count, share];
  }
};

const drawCharts = () => {
  for (const chart of document.querySelectorAll(".chart")) {
    const figure = JSON.parse(chart.nextElementSibling.textContent, resolve);
    figure.data.forEach(expand);
    Plotly.react(chart, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  }
};
drawCharts();
const redraws = [drawCharts];
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", () => redraws.forEach((redraw) => redraw()));
}

// Paper has another width than the screen, and no chart is drawn anew for it: a viewBox lets it shrink to fit.
const plots = () => document.querySelectorAll(".chart svg.main-svg");
const opened = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    opened.push(details);
  }
  for (const plot of plots()) {
    plot.setAttribute("viewBox", "0 0 " + plot.getAttribute("width") + " " + plot.getAttribute("height"));
    plot.setAttribute("preserveAspectRatio", "xMinYMin");
  }
});
addEventListener("afterprint", () => {
  for (const details of opened.splice(0)) details.open = false;
  for (const plot of plots()) plot.removeAttribute("viewBox");
});
