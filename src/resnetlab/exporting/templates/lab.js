// The page: images on the left, the network in the middle, its answer on the right.

const page = JSON.parse(document.getElementById("page").textContent);
const find = (selector, within = document) => within.querySelector(selector);
const { size, channels } = page.preprocessing, pixelCount = size * size * channels;
const network = new ResidualNetwork(page), images = bytesOf(page.images);
const imageAt = (index) => images.subarray(index * pixelCount, (index + 1) * pixelCount);
const measured = Array.from({ length: page.measured }, (_, index) => imageAt(index));
const shownPercent = (share) => `${(100 * share).toFixed(share > 0.0995 || share < 0.0005 ? 0 : 1)} %`;

function made(name, properties = {}, ...children) {
  const { data = {}, ...rest } = properties, element = document.createElement(name);
  for (const [key, value] of Object.entries(rest)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

// ---- State: an image, and what is switched off. The address of the page holds both.

const firstShown = page.shown.find((index) => !page.wrong.includes(index)) ?? 0;
const state = { kind: "example", index: firstShown, strokes: [], pixels: null, note: "", off: new Set() };
let touched = false;  // whether the reader chose an image
const SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const packed = (strokes) => strokes.map((stroke) => stroke.flat().map((value) => {
  const level = Math.round(value * 4095);
  return SIGNS[level >> 6] + SIGNS[level & 63];
}).join("")).join("~");

function unpacked(text) {
  return text.split("~").map((part) => {
    const values = Array.from({ length: part.length >> 1 }, (_, i) =>
      (SIGNS.indexOf(part[2 * i]) * 64 + SIGNS.indexOf(part[2 * i + 1])) / 4095);
    return Array.from({ length: values.length >> 1 }, (_, i) => [values[2 * i], values[2 * i + 1]]);
  }).filter((stroke) => stroke.length && stroke.every((point) => point.every((value) => value >= 0 && value <= 1)));
}

function addressOf() {
  const parts = [];
  if (state.kind === "example") parts.push(`image=${state.index}`);
  if (state.kind === "drawing") parts.push(`drawing=${packed(state.strokes)}`);
  if (state.kind === "photo" && pixelCount <= 4096) {
    parts.push(`pixels=${btoa(String.fromCharCode(...state.pixels)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "")}`);
  }
  if (state.off.size) parts.push(`off=${[...state.off].join(",")}`);
  return `#${parts.join("&")}`;
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const index = Number(given.get("image"));
  if (given.has("image") && Number.isInteger(index) && index >= 0 && index < page.labels.length) {
    Object.assign(state, { kind: "example", index, note: "" });
  } else if (given.get("drawing") && page.drawing) {
    const strokes = unpacked(given.get("drawing"));
    if (strokes.length) Object.assign(state, { kind: "drawing", strokes, note: "" });
  } else if (given.get("pixels")) {
    try {
      const pixels = bytesOf(given.get("pixels").replace(/-/g, "+").replace(/_/g, "/"));
      if (pixels.length === pixelCount) Object.assign(state, { kind: "photo", pixels, note: "" });
    } catch { /* not one of our addresses */ }
  }
  const known = new Set(switches.map((button) => button.dataset.off));
  state.off = new Set((given.get("off") ?? "").split(",").filter((name) => known.has(name)));
}

function currentPixels() {
  if (state.kind === "drawing") return drawnSquare(state.strokes, size, page.drawing);
  return state.kind === "photo" ? state.pixels : imageAt(state.index);
}

// ---- Pictures of images and feature maps.

function drawPixels(canvas, pixels) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), picture = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = pixels[i * channels + (channels === 3 ? c : 0)];
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

const STOPS = [[13, 20, 38], [32, 71, 120], [72, 133, 178], [158, 196, 197], [252, 244, 214]];

// A map of values from 0 to `most`, dark to light.
function drawMap(canvas, values, width, height, most) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const place = 4 * Math.min(1, most ? values[i] / most : 0), at = Math.min(3, Math.floor(place));
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = STOPS[at][c] + (place - at) * (STOPS[at + 1][c] - STOPS[at][c]);
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

// The mean absolute value of a tensor over its channels, at each position.
function sizesOf(x) {
  const count = x.height * x.width, sizes = new Float32Array(count);
  for (let i = 0; i < x.data.length; i++) sizes[i % count] += Math.abs(x.data[i]) / x.channels;
  return sizes;
}

const largest = (values) => values.reduce((most, value) => Math.max(most, value), 0);
const normOf = (values) => Math.sqrt(values.reduce((total, value) => total + value * value, 0));

// ---- The network, drawn: a box for each branch, an arc for each shortcut.

const switches = [];

function blockOf(block) {
  const [, stage, number] = block.name.match(/stage(\d+)\.block(\d+)/), words = `block ${number} of stage ${stage}`;
  const cell = made("div", { className: "block", data: { name: block.name } });
  cell.innerHTML = `<svg viewBox="0 0 96 96" aria-hidden="true">
    <path class="wire" d="M0 62H18M84 62H96"/><path class="wire out" d="M66 62H70"/>
    ${block.shortcut ? `<path class="arc" d="M8 62V28Q8 16 20 16H65Q77 16 77 28V55"/>
      ${block.changes ? `<rect class="change" x="36" y="9" width="14" height="14" rx="2"/>` : ""}
      <path class="cut" d="M37 10L49 22M49 10L37 22"/>` : ""}
    <circle class="sum" cx="77" cy="62" r="7"/><path class="sign" d="M73 62H81M77 58V66"/></svg>`;
  const add = (kind, off, label) => {
    const button = made("button", { type: "button", className: kind, "aria-pressed": "true", tabIndex: -1,
      data: { kind, off, label, block: block.name } });
    button.setAttribute("aria-label", `${label}: on`);
    if (kind === "shortcut") button.title = block.changes ? "a shortcut that changes the shape" : "an identity shortcut";
    cell.append(button);
    switches.push(button);
    return button;
  };
  if (block.shortcut) add("shortcut", `${block.name}.shortcut`, `Shortcut of ${words}`);
  const branch = add("branch", block.name, `Branch of ${words}`);
  branch.append(made("canvas"), made("span", { textContent: number }));
  branch.disabled = !block.removable;
  return cell;
}

function drawNetwork() {
  const stages = new Map(), { taps } = network.answer(currentPixels());
  for (const block of page.network.blocks) {
    const stage = block.name.match(/stage(\d+)/)[1];
    if (!stages.has(stage)) {
      const { output } = taps[block.name];
      const shape = `${output.channels} channels of ${output.height}\u00d7${output.width}`;
      const heading = made("h3", { textContent: `Stage ${stage} ` }, made("span", { textContent: shape }));
      stages.set(stage, made("div", { className: "blocks" }));
      find("#stages").append(made("div", { className: "stage" }, heading, stages.get(stage)));
    }
    stages.get(stage).append(blockOf(block));
  }
  switches[0].tabIndex = 0;
}

function inspect(name) {
  inspected = name;
  for (const cell of document.querySelectorAll(".block")) cell.classList.toggle("inspected", cell.dataset.name === name);
  const tap = current.taps[name], [, stage, number] = name.match(/stage(\d+)\.block(\d+)/);
  const parts = ["input", "branch", "shortcut", "sum"].filter((part) => tap[part]);
  const sizes = parts.map((part) => sizesOf(tap[part])), most = largest(sizes.map(largest));
  const panel = find("#inspector"), row = made("div", { className: "maps" });
  const { channels: depth, height, width, data } = tap.sum, count = height * width;
  const strength = (x, channel) => normOf(x.data.subarray(channel * count, (channel + 1) * count));
  const strongest = Array.from({ length: depth }, (_, channel) => [strength(tap.sum, channel), channel])
    .sort((a, b) => b[0] - a[0]).slice(0, 6).map(([, channel]) => channel);
  const brightest = largest(strongest.map((channel) => largest(Array.from(
    data.subarray(channel * count, (channel + 1) * count), Math.abs))));
  parts.forEach((part, at) => {
    const x = tap[part], canvas = made("canvas", { role: "img" }), norm = normOf(x.data);
    canvas.setAttribute("aria-label", `${part}: mean absolute value of its ${x.channels} channels at each position`);
    drawMap(canvas, sizes[at], x.width, x.height, most);
    const strip = made("div", { className: "strip", "aria-hidden": "true" });
    if (part !== "input") {
      for (const channel of strongest) {
        const small = made("canvas");
        drawMap(small, Array.from(x.data.subarray(channel * count, (channel + 1) * count), Math.abs), width, height, brightest);
        strip.append(small);
      }
    }
    row.append(made("figure", { className: `of-${part}`, data: { part, norm } }, canvas,
      made("figcaption", {}, made("b", { textContent: part }), ` norm ${norm.toFixed(norm < 10 ? 2 : 1)}`), strip));
  });
  const ratio = tap.shortcut && normOf(tap.branch.data) / normOf(tap.shortcut.data);
  const says = ratio && Number.isFinite(ratio) ? ` The branch is ${shownPercent(ratio)} of its shortcut.` : "";
  panel.replaceChildren(made("h3", { textContent: `Block ${number} of stage ${stage}` }), row, made("p", {
    className: "small", textContent: `Each picture: mean absolute value over the channels, on one scale; below, the ${
      strongest.length} strongest channels of the sum.${says}` }));
}

// ---- The answer.

let current = null, whole = null, inspected = null;
const accuracies = new Map();

function showBars() {
  const ranked = current.probabilities.map((share, at) => ({ share, at })).sort((a, b) => b.share - a.share).slice(0, 5);
  const list = find("#bars"), label = state.kind === "example" ? page.labels[state.index] : -1;
  while (list.children.length < ranked.length) {
    list.append(made("li", {}, made("span", { className: "name" }), made("i", {}, made("b"), made("s")), made("span", { className: "share" })));
  }
  ranked.forEach(({ share, at }, rank) => {
    const item = list.children[rank];
    item.classList.toggle("true", at === label);
    item.dataset.name = page.classes[at];
    item.dataset.share = share;
    find(".name", item).textContent = page.classes[at];
    find(".share", item).textContent = shownPercent(share);
    find("b", item).style.width = `${100 * share}%`;
    find("s", item).style.left = `${100 * whole.probabilities[at]}%`;
    find("s", item).hidden = !state.off.size;
  });
}

const best = (answer) => answer.probabilities.indexOf(Math.max(...answer.probabilities));

function caption() {
  const now = page.classes[best(current)], before = page.classes[best(whole)];
  const label = state.kind === "example" ? page.classes[page.labels[state.index]] : null;
  if (!state.off.size) {
    const all = accuracies.get("");
    const says = label === null ? `Predicted: ${now}.` : label === now ? `Predicted ${now}, as labeled.`
      : `Predicted ${now}, but labeled ${label}: one of its mistakes.`;
    return says + (all === undefined ? "" : ` Accuracy on the ${page.measured} images inside: ${
      Math.round(100 * all / page.measured)} %.`);
  }
  const key = [...state.off].sort().join(), from = accuracies.get(""), to = accuracies.get(key);
  const percent = (right) => right === undefined ? "\u2026" : Math.round(100 * right / page.measured);
  return `${now === before ? `Still ${now}` : `${before} becomes ${now}`}; accuracy on the ${
    page.measured} images inside: ${percent(from)} to ${percent(to)} %`;
}

function showAnswer() {
  showBars();
  const text = caption();
  if (find("#caption").textContent !== text) find("#caption").textContent = text;
}

function showImage() {
  const label = state.kind === "example" ? page.classes[page.labels[state.index]] : null;
  drawPixels(find("#current"), currentPixels());
  find("#current").setAttribute("aria-label", `The image as the network sees it, ${size} by ${size} pixels`);
  find("#origin").textContent = state.kind === "example" ? `Test image, labeled ${label}`
    : state.kind === "drawing" ? `Your drawing, as the network sees it` : "Your photo, as the network sees it";
  Object.assign(find("#note"), { textContent: state.note, hidden: !state.note });
  for (const button of find("#examples").children) {
    button.setAttribute("aria-pressed", state.kind === "example" && Number(button.dataset.index) === state.index);
  }
  if (page.drawing) showPad();
}

function showNetwork() {
  for (const button of switches) {
    const isOff = state.off.has(button.dataset.off);
    button.setAttribute("aria-pressed", !isOff);
    button.setAttribute("aria-label", `${button.dataset.label}: ${isOff ? "off" : "on"}`);
    button.closest(".block").classList.toggle(`no-${button.dataset.kind}`, isOff);
  }
  for (const cell of document.querySelectorAll(".block")) {
    const { output } = current.taps[cell.dataset.name], sizes = sizesOf(output);
    drawMap(find(".branch canvas", cell), sizes, output.width, output.height, largest(sizes));
  }
  find("#restore").classList.toggle("needed", state.off.size > 0);
  if (inspected) inspect(inspected);
}

function update() {
  const start = performance.now(), pixels = currentPixels();
  current = network.answer(pixels, state.off);
  whole = state.off.size ? network.answer(pixels) : current;
  showImage();
  showNetwork();
  showAnswer();
  document.documentElement.dataset.milliseconds = (performance.now() - start).toFixed(1);
  try {
    history.replaceState(null, "", addressOf());
  } catch { /* some browsers do not allow it for files */ }
  measure();
  advance();
}

// ---- Accuracy on the images inside, computed in the background.

let job = 0;
const worker = startWorker();

function startWorker() {
  const program = `${find("#engine").textContent}
    let network, images, labels, job;
    onmessage = async ({ data }) => {
      if (data.page) {
        network = new ResidualNetwork(data.page);
        ({ images, labels } = data);
        return;
      }
      job = data.job;
      const right = await rightAnswers(network, images, labels, new Set(data.off), () => job === data.job);
      if (right !== null) postMessage({ key: data.key, right });
    };`;
  try {
    const address = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    const started = new Worker(address);
    started.onmessage = ({ data }) => keep(data.key, data.right);
    started.postMessage({ page, images: measured, labels: page.labels });
    return started;
  } catch {
    return null;  // then the page itself computes, a few images at a time
  }
}

function keep(key, right) {
  accuracies.set(key, right);
  showAnswer();
  measure();
}

function measure() {
  const key = [...state.off].sort().join(), next = ["", key].find((one) => !accuracies.has(one));
  if (next === undefined) return;
  const mine = ++job, off = next.split(",").filter(Boolean);
  if (worker) worker.postMessage({ job: mine, key: next, off });
  else {
    rightAnswers(network, measured, page.labels, new Set(off), () => mine === job)
      .then((right) => { if (right !== null) keep(next, right); });
  }
}

// ---- What the reader does.

function show(changes) {
  Object.assign(state, { note: "" }, changes);
  update();
}

function toggle(name) {
  if (!state.off.delete(name)) state.off.add(name);
  update();
}

// Arrow keys move within a group of buttons, of which one is reached with the tab key.
function movable(container, buttons, across, down) {
  container.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: across, ArrowLeft: -across, ArrowDown: down, ArrowUp: -down };
    const all = buttons().filter((button) => !button.disabled), at = all.indexOf(document.activeElement);
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    focusOn(all[Math.max(0, Math.min(all.length - 1, at + steps[event.key]))], all);
  });
}

function focusOn(button, all) {
  for (const one of all) one.tabIndex = one === button ? 0 : -1;
  button.focus();
}

function prepareExamples() {
  const list = find("#examples");
  for (const index of page.shown) {
    const canvas = made("canvas"), wrong = page.wrong.includes(index), name = page.classes[page.labels[index]];
    const button = made("button", { type: "button", tabIndex: -1, className: wrong ? "wrong" : "", data: { index },
      title: wrong ? `${name}, misclassified` : name }, canvas);
    button.setAttribute("aria-label", `Test image of class ${name}${wrong ? ", misclassified" : ""}`);
    drawPixels(canvas, imageAt(index));
    button.addEventListener("click", () => show({ kind: "example", index }));
    list.append(button);
  }
  if (list.firstChild) list.firstChild.tabIndex = 0;
  movable(list, () => [...list.children], 1, 7);  // as many as the style sheet puts in a row
}

function prepareNetwork() {
  drawNetwork();
  const stages = find("#stages");
  stages.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    toggle(button.dataset.off);
    inspect(button.dataset.block);
  });
  for (const kind of ["pointerover", "focusin"]) {
    stages.addEventListener(kind, (event) => {
      const cell = event.target.closest(".block");
      if (cell && cell.dataset.name !== inspected) inspect(cell.dataset.name);
    });
  }
  movable(stages, () => switches, page.network.blocks[0]?.shortcut ? 2 : 1, 1);
  find("#restore").addEventListener("click", () => {
    state.off.clear();
    update();
  });
}

// ---- Drawing.

const pen = { down: false, x: 0.5, y: 0.3, shown: false };
let queued = false;

function showPad() {
  const canvas = find("#pad"), context = canvas.getContext("2d"), side = canvas.width;
  context.clearRect(0, 0, side, side);
  const strokes = state.kind === "drawing" ? state.strokes : [];
  Object.assign(context, { strokeStyle: "#fff", lineWidth: side * Math.min(0.09, page.drawing.stroke * 0.6),
    lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    context.beginPath();
    for (const [x, y] of [...stroke, stroke.at(-1)]) context.lineTo(x * side, y * side + 0.01);
    context.stroke();
  }
  if (!strokes.length) {
    Object.assign(context, { fillStyle: "#ffffff99", font: "26px sans-serif", textAlign: "center" });
    context.fillText(page.classes.includes("3") ? "Draw a digit here" : "Draw here", side / 2, side / 2 + 8);
  }
  if (pen.shown) {
    Object.assign(context, { strokeStyle: pen.down ? "#efa270" : "#8ab6ee", lineWidth: 3 });
    context.beginPath();
    context.arc(pen.x * side, pen.y * side, 12, 0, 7);
    context.stroke();
  }
}

function addPoint(x, y, isNew) {
  const level = (value) => Math.round(Math.max(0, Math.min(1, value)) * 4095) / 4095, point = [level(x), level(y)];
  if (state.kind !== "drawing") Object.assign(state, { kind: "drawing", strokes: [], note: "" });
  if (isNew || !state.strokes.length) state.strokes.push([point]);
  else {
    const stroke = state.strokes.at(-1), [lastX, lastY] = stroke.at(-1);
    if (Math.hypot(point[0] - lastX, point[1] - lastY) < 0.008) return;
    stroke.push(point);
  }
  showPad();
  if (queued) return;
  queued = true;
  setTimeout(() => {
    queued = false;
    if (state.kind === "drawing") update();
  }, 40);
}

function preparePad() {
  const canvas = find("#pad");
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.shown = false;
    addPoint(...at(event), true);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) addPoint(...at(one), false);
  });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    if (!(event.key in steps) && event.key !== " ") return;
    event.preventDefault();
    pen.shown = true;
    if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) addPoint(pen.x, pen.y, true);
    } else {
      const [across, down] = steps[event.key];
      [pen.x, pen.y] = [Math.max(0, Math.min(1, pen.x + across / 24)), Math.max(0, Math.min(1, pen.y + down / 24))];
      if (pen.down) addPoint(pen.x, pen.y, false);
    }
    showPad();
  });
  canvas.addEventListener("blur", () => {
    pen.shown = pen.down = false;
    showPad();
  });
  find("#clear").addEventListener("click", () => {
    if (state.kind === "drawing") show({ kind: "example", index: firstShown });
  });
}

// ---- Photos.

async function open(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    Object.assign(find("#note"), { textContent: "This file is not an image that the browser can read. Drop a PNG or JPEG file.", hidden: false });
    return;
  }
  const { width, height } = bitmap, canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const planes = planesOf(context.getImageData(0, 0, width, height).data, channels);
  const isLight = page.drawing && borderOf(planes[0], width, height) > 127;
  const pixels = isLight ? invertedOf(planes[0], width, height, size, page.drawing)
    : squareOf(planes, width, height, page.preprocessing);
  const knows = `This network was trained on ${page.data}: ${page.classes.slice(0, 12).join(", ")}${page.classes.length > 12 ? ", \u2026" : ""}.`;
  show({ kind: "photo", pixels, note: isLight
    ? `${knows} There, objects are light on a dark background. Your photo has a light background, so it was inverted, cut to the object and centered.`
    : `${knows} It cannot name anything else.` });
}

function preparePhotos() {
  const field = find("#drop");
  find("input", field).addEventListener("change", (event) => event.target.files[0] && open(event.target.files[0]));
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      field.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    });
  }
  addEventListener("drop", (event) => event.dataTransfer.files[0] && open(event.dataTransfer.files[0]));
  addEventListener("paste", (event) => event.clipboardData.files[0] && open(event.clipboardData.files[0]));
}

// ---- First steps, shown once.

const steps = stepsOfTour();
let step = -1;

function stepsOfTour() {
  const { late, network: { blocks } } = page, found = [];
  const place = (name) => name.replace(/stage(\d+)\.block(\d+)/, "block $2 of stage $1");
  const answers = () => page.classes[best(current)];
  if (page.drawing && page.classes.includes("3")) {
    found.push({ text: "Draw a 3.", aim: "#pad", done: () => state.kind === "drawing" && answers() === "3" });
  } else {
    found.push({ text: "Choose another image, or drop a photo.", aim: "#examples", done: () => touched });
  }
  const second = blocks.find((block) => block.shortcut && block.name.startsWith("stage2.")) ?? blocks.find((block) => block.shortcut);
  if (second) {
    const name = `${second.name}.shortcut`, stage = second.name.slice(5, 6);
    found.push({ text: `Switch off a shortcut of stage ${stage}: click the arc above a block.`, aim: `[data-off="${name}"]`,
      done: () => [...state.off].some((one) => one.startsWith(`stage${stage}.`) && one.endsWith(".shortcut")) });
  }
  if (late) {
    found.push({ text: `Restore all, and switch off ${place(late.block)}: click its box.`, aim: `[data-off="${late.block}"]`,
      done: () => state.off.has(late.block) && state.off.size === 1 });
    found.push({ text: late.cost <= 10
      ? "It hardly matters: why? Every block adds a correction to what the shortcut carries. Without one of them, the others still work on almost the same signal."
      : `It matters: why? ${blocks.length < 6 ? `This network has only ${blocks.length} blocks, and no` : "No"} other block does the same work. In a deep network that was trained to the end, most blocks can be removed at little cost.`,
      aim: "#caption", done: () => false });
  }
  return found;
}

function remembered(value) {
  try {
    if (value) localStorage.setItem("resnetlab-tour", value);
    return localStorage.getItem("resnetlab-tour");
  } catch {
    return null;  // some browsers keep nothing for files
  }
}

function showStep() {
  const bar = find("#tour"), last = step === steps.length - 1;
  for (const aimed of document.querySelectorAll(".aim")) aimed.classList.remove("aim");
  bar.hidden = step < 0 || step >= steps.length;
  if (bar.hidden) return;
  const questions = steps.length - 1;
  find("p", bar).textContent = (last ? "" : `${step + 1} of ${questions}: `) + steps[step].text;
  find("#next").textContent = last ? "Done" : "Next";
  find("#skip").hidden = last;
  find(steps[step].aim)?.classList.add("aim");
}

function advance() {
  if (step < 0 || step >= steps.length || !steps[step].done()) return;
  step += 1;
  showStep();
}

function prepareTour() {
  const end = () => {
    step = steps.length;
    remembered("seen");
    showStep();
  };
  find("#next").addEventListener("click", () => {
    step += 1;
    if (step >= steps.length) end();
    else showStep();
  });
  find("#skip").addEventListener("click", end);
  for (const kind of ["#examples", "#drop"]) find(kind).addEventListener("click", () => { touched = true; }, true);
  if (!location.hash && !remembered()) {
    step = 0;
    showStep();
  }
}

prepareTour();
prepareExamples();
prepareNetwork();
if (page.drawing) preparePad();
preparePhotos();
readAddress();
current = network.answer(currentPixels(), state.off);
inspected = (page.network.blocks.find((block) => block.name.startsWith("stage2.")) ?? page.network.blocks[0])?.name;
update();
addEventListener("hashchange", () => {
  if (location.hash === addressOf()) return;
  readAddress();
  update();
});
