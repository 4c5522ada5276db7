// Shows the values of a picture under the pointer, and opens everything for printing.

const tip = document.getElementById("tip");
const tipCanvas = tip.querySelector("canvas");
const tipText = tip.querySelector("div");
const element = (name, text, kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = kind;
  return made;
};
const showTip = (lines, across, down) => {
  tipText.replaceChildren(...lines.map((text, line) => element("p", text, line ? "place" : "")));
  tip.hidden = false;
  const [wide, tall] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = Math.max(4, Math.min(innerWidth - wide - 4, across + 16)) + "px";
  tip.style.top = Math.max(4, down + 16 + tall > innerHeight ? down - 16 - tall : down + 16) + "px";
};

// Returns where the pointer is in the units of an SVG.
const within = (svg, event) => {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return [point.x, point.y];
};
const shape = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

for (const svg of document.querySelectorAll("svg.picture")) {
  const { box: [left, top, width, height], marks } = JSON.parse(svg.nextElementSibling.textContent);
  if (!marks.length) continue;
  const guide = shape("g", { class: "guide" });
  svg.append(guide);
  const clear = () => {
    guide.replaceChildren();
    tip.hidden = true;
  };
  const point = (event) => {
    const [x, y] = within(svg, event);
    if (x < left - 4 || x > left + width + 4 || y < top || y > top + height) return clear();
    const distance = ([place]) => Math.abs(place - x);
    const [place, values, text] = marks.reduce((best, mark) => (distance(mark) < distance(best) ? mark : best));
    guide.replaceChildren(
      shape("path", { d: `M${place} ${top}v${height}` }),
      ...values.map((value) => shape("circle", { cx: place, cy: value, r: 2.6 })),
    );
    tipCanvas.hidden = true;
    showTip(text.split("\n"), event.clientX, event.clientY);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", clear);
}

// The programs below draw with the colors of the page, again when it changes between light and dark.
const style = getComputedStyle(document.documentElement);
const color = (name) => style.getPropertyValue(name).trim();
const redraws = [];
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", () => redraws.forEach((redraw) => redraw()));
}

const opened = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    opened.push(details);
  }
});
addEventListener("afterprint", () => {
  for (const details of opened.splice(0)) details.open = false;
});
