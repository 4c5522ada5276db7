// Shows the images of the chosen classes: of a cell of the confusion matrix, a row of a table, or the form.

const images = JSON.parse(document.getElementById("image-data").textContent);
const places = images.index.map((_, place) => place);
const isWrong = (place) => images.label[place] !== images.prediction[place];
const percent = (share) => (share === null ? "–" : (100 * share).toFixed(1) + "%");

// A sheet of thumbnails is decoded when one of its images is first shown.
const sheets = new Map();
const sheet = (number) => {
  if (!sheets.has(number)) {
    const picture = new Image();
    picture.src = images.thumbnails.sheets[number];
    sheets.set(number, picture.decode().then(() => picture));
  }
  return sheets.get(number);
};
const paint = async (canvas, place) => {
  canvas.place = place;
  const { size, pitch, columns } = images.thumbnails;
  const picture = await sheet(Math.floor(place / columns ** 2));
  if (canvas.place !== place) return;  // it shows another image by now
  const at = place % columns ** 2;
  // The last sheet may be narrower than a full one.
  const across = Math.min(columns, picture.width / pitch);
  canvas.width = canvas.height = size;
  canvas.getContext("2d").drawImage(picture, (at % across) * pitch, Math.floor(at / across) * pitch, size, size, 0, 0, size, size);
};
const thumbnail = (place) => {
  const canvas = document.createElement("canvas");
  const { size } = images.thumbnails;
  // Small images are enlarged as squares of pixels; larger ones would look blurred.
  if (size < 64) canvas.className = "pixelated";
  else canvas.style.maxWidth = `min(7rem, ${size}px)`;
  canvas.width = canvas.height = size;
  paint(canvas, place);
  return canvas;
};

const describe = (place) => {
  const label = images.names[images.label[place]];
  const verdict = isWrong(place) ? label + " predicted as " + images.names[images.prediction[place]] : label + ", correct";
  const name = (images.path && images.path[place]) || "index " + images.index[place];
  return [verdict, "confidence " + percent(images.confidence[place]), name];
};
const form = document.getElementById("choice");
const [labelField, predictionField] = [form.elements.label, form.elements.prediction];
const [chosenStatus, list, more] = ["chosen", "thumbnails", "more"].map((id) => document.getElementById(id));
const PAGE = 42;
let chosen = [];
let isDefault = true;
const listeners = [];

const add = () => {
  const from = list.children.length;
  for (const place of chosen.slice(from, from + PAGE)) {
    const item = document.createElement("li");
    const [verdict, ...others] = describe(place);
    if (images.thumbnails) {
      const canvas = thumbnail(place);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", "Image of class " + images.names[images.label[place]]);
      item.append(canvas);
    }
    item.append(element("p", verdict, isWrong(place) ? "wrong" : ""));
    others.forEach((text) => item.append(element("p", text, "place")));
    list.append(item);
  }
  more.hidden = list.children.length >= chosen.length;
  more.textContent = "Show more of the " + chosen.length.toLocaleString("en");
};

const sentence = () => {
  const [label, prediction] = [labelField.value, predictionField.value];
  const number = chosen.length.toLocaleString("en") + (chosen.length === 1 ? " image" : " images");
  const of = label === "" ? "" : " of class " + images.names[label];
  const is = chosen.length === 1 ? " is" : " are";
  const here = images.index.length < images.total ? " in this report" : "";
  let fate = "";
  if (prediction === "other") fate = is + " misclassified";
  else if (prediction !== "") fate = is + (prediction === label ? " classified correctly" : " predicted as " + images.names[prediction]);
  const order = chosen.length > 1 ? ", highest confidence first." : ".";
  const marks = images.x && !isDefault && chosen.length ? (chosen.length > 1 ? " They are" : " It is") + " marked on the map." : "";
  return number + of + here + fate + order + marks;
};

const show = () => {
  const [label, prediction] = [labelField.value, predictionField.value];
  chosen = places.filter((place) =>
    (label === "" || images.label[place] === Number(label)) &&
    (prediction === "" || (prediction === "other" ? isWrong(place) : images.prediction[place] === Number(prediction))));
  chosen.sort((first, second) => images.confidence[second] - images.confidence[first]);
  isDefault = label === "" && predictionField.selectedOptions[0].defaultSelected;
  list.replaceChildren();
  add();
  chosenStatus.textContent = sentence();
  listeners.forEach((listener) => listener());
};

const choose = (label, prediction) => {
  labelField.value = label;
  predictionField.value = prediction;
  show();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const title = document.getElementById("images-title");
  title.focus({ preventScroll: true });
  title.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
};

form.addEventListener("change", show);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(show));  // after the fields have their first values again
more.addEventListener("click", add);
for (const button of document.querySelectorAll("button.show")) {
  button.addEventListener("click", () => choose(button.dataset.label, button.dataset.prediction ?? "other"));
}
show();

// The confusion matrix: a cell shows its numbers under the pointer, and its images when clicked. Of many classes, a part
// can be enlarged by dragging over it.
const matrix = document.querySelector("#confusion svg.picture");
const { box: [left, top, width, height], cells, support } = JSON.parse(matrix.nextElementSibling.textContent);
const number = support.length;
const filled = new Map(cells.map(([row, column, count]) => [row * number + column, count]));
const cellAt = (event) => {
  const [x, y] = within(matrix, event);
  const [column, row] = [Math.floor((number * (x - left)) / width), Math.floor((number * (y - top)) / height)];
  return Math.min(row, column) < 0 || Math.max(row, column) >= number ? null : [row, column];
};
const whole = matrix.getAttribute("viewBox");
const isLarge = number > 30;
if (isLarge) matrix.dataset.zoom = "";
let [start, isDragged, waiting] = [null, false, 0];
matrix.addEventListener("pointermove", (event) => {
  const cell = cellAt(event);
  matrix.classList.toggle("over", cell !== null);
  if (cell === null) {
    tip.hidden = true;
    return;
  }
  const [row, column] = cell;
  const count = filled.get(row * number + column) ?? 0;
  const share = support[row] ? ", " + percent(count / support[row]) + " of the class" : "";
  tipCanvas.hidden = true;
  const names = ["true class " + images.names[row], "predicted " + images.names[column]];
  showTip([...names, "images: " + count.toLocaleString("en") + share], event.clientX, event.clientY);
});
matrix.addEventListener("pointerleave", () => { tip.hidden = true; });
matrix.addEventListener("pointerdown", (event) => {
  start = within(matrix, event);
  isDragged = false;
});
matrix.addEventListener("pointerup", (event) => {
  if (!isLarge || start === null) return;
  const [x, y] = within(matrix, event);
  const side = Math.max(Math.abs(x - start[0]), Math.abs(y - start[1]));
  isDragged = side > 4;
  if (isDragged) matrix.setAttribute("viewBox", [Math.min(x, start[0]), Math.min(y, start[1]), side, side].join(" "));
  start = null;
});
matrix.addEventListener("click", (event) => {
  const cell = cellAt(event);
  if (cell === null || isDragged) return;
  clearTimeout(waiting);
  if (event.detail < 2) waiting = setTimeout(() => choose(...cell), isLarge ? 300 : 0);  // a double click may follow
});
matrix.addEventListener("dblclick", () => {
  clearTimeout(waiting);
  matrix.setAttribute("viewBox", whole);
});
