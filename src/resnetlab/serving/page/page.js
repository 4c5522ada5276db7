// The page of `resnetlab serve`: sends one photo to /v1/predict and shows the answer. It talks to its own service only.

const LONGEST = 1024; // pixels of the longer side of a photo that is sent
const SMALL = 1 << 20; // bytes of a photo that is sent as it is, if it is not larger in pixels
const $ = (id) => document.getElementById(id);

const key = takeKey();
let model = null;
let sent = null; // the photo as it was sent, for corrections
let turn = 0; // counts photos: an answer to an earlier one is dropped
let maps = [];

/** The key is in the part of the link that browsers do not send, and leaves the address bar at once. */
function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    sessionStorage.setItem("key", given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given ?? sessionStorage.getItem("key");
}

async function call(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  const value = await response.json();
  if (response.ok) return value;
  throw Object.assign(new Error(value.error.message), { status: response.status });
}

async function connect() {
  try {
    model = await call("v1/model");
  } catch (error) {
    if (error.status === 401) {
      say("This link is no longer valid. Open the newest one, or scan the code again.");
      return;
    }
    say(error.status === 503 ? "The network is being prepared" : "The service does not answer");
    setTimeout(connect, 1000);
    return;
  }
  const names = model.class_names;
  const shown = names.length > 8 ? `${names.slice(0, 6).join(", ")} and ${names.length - 6} more` : names.join(", ");
  say(`This network knows ${names.length} classes: ${shown}.`);
  $("right").replaceChildren(new Option("Class", ""), ...names.map((name) => new Option(name, name)));
}

function say(words) {
  $("about").textContent = words;
}

/** Returns what to draw and what to send. A photo that the browser cannot show is sent as it is. */
async function prepared(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return { picture: null, blob: file };
  }
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const picture = document.createElement("canvas");
  picture.width = Math.max(1, Math.round(bitmap.width * scale));
  picture.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = picture.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // what is transparent is white for the network, too
  context.fillRect(0, 0, picture.width, picture.height);
  context.drawImage(bitmap, 0, 0, picture.width, picture.height);
  bitmap.close();
  if (scale === 1 && file.size <= SMALL) return { picture, blob: file };
  return { picture, blob: await new Promise((done) => picture.toBlob(done, "image/jpeg", 0.92)) };
}

async function ask(file) {
  const mine = ++turn;
  sent = null;
  maps = [];
  $("result").hidden = false;
  $("verdict").className = "";
  $("verdict").textContent = "Looking";
  $("bars").replaceChildren();
  $("attention").hidden = $("similar").hidden = $("wrong").hidden = true;
  $("saved").textContent = "";
  if (file.type && !file.type.startsWith("image/")) {
    $("frame").hidden = true;
    $("verdict").textContent = "This file is not a photo.";
    return;
  }
  const { picture, blob } = await prepared(file);
  if (mine !== turn) return;
  show(picture);
  $("result").scrollIntoView({ block: "nearest" });
  try {
    if (!model) await connect();
    const wants = (model?.outputs.includes("attention") && picture ? "&attention=true" : "")
      + (model?.similar ? "&similar=true" : "");
    const answer = await call(`v1/predict?top=5${wants}`, { method: "POST", body: blob });
    if (mine !== turn) return;
    sent = blob;
    tell(answer.predictions[0]);
  } catch (error) {
    if (mine === turn) $("verdict").textContent = sentence(error.message);
  }
}

function show(picture) {
  const photo = $("photo");
  $("frame").hidden = !picture;
  if (!picture) return;
  photo.width = $("spot").width = picture.width;
  photo.height = $("spot").height = picture.height;
  $("frame").style.setProperty("--ratio", picture.width / picture.height);
  photo.getContext("2d").drawImage(picture, 0, 0);
}

function tell(prediction) {
  const sure = prediction.score >= model.unsure_below;
  $("verdict").className = sure ? "" : "unsure";
  $("verdict").textContent = sure
    ? `${prediction.class}, ${percent(prediction.score)}`
    : `Not sure. Perhaps ${prediction.class}, ${percent(prediction.score)}`;
  maps = prediction.attention ?? [];
  $("bars").replaceChildren(...prediction.top.map(bar));
  $("attention").hidden = !maps.length;
  choose(prediction.class);
  const alike = prediction.similar ?? []; // empty while the service still compares the training images
  $("similar").hidden = !alike.length;
  $("known").replaceChildren(...alike.map(known));
  $("wrong").hidden = !model.collects;
  $("right").value = "";
}

function bar({ class: name, score }) {
  const item = document.createElement("li");
  const button = item.appendChild(document.createElement("button"));
  button.type = "button";
  button.dataset.name = name;
  button.disabled = !maps.some((map) => map.class === name);
  for (const [kind, text] of [["name", name], ["percent", percent(score)], ["track", ""]]) {
    const part = button.appendChild(document.createElement("span"));
    part.className = kind;
    part.textContent = text;
  }
  const fill = button.lastChild.appendChild(document.createElement("span"));
  fill.className = "fill";
  fill.style.width = `${100 * score}%`;
  button.addEventListener("click", () => {
    choose(name);
    if ($("strength").value === "0") $("strength").value = "80";
    spotlight();
  });
  return item;
}

function known({ class: name, image }) {
  const item = document.createElement("li");
  const picture = item.appendChild(document.createElement("img"));
  picture.alt = "";
  picture.addEventListener("load", () => picture.classList.toggle("coarse", picture.naturalWidth < 64));
  picture.src = image;
  item.appendChild(document.createElement("span")).textContent = name;
  return item;
}

function choose(name) {
  for (const button of $("bars").querySelectorAll("button")) {
    if (!button.disabled) button.setAttribute("aria-pressed", String(button.dataset.name === name));
  }
  $("which").textContent = `Bright: what speaks for ${name}.`;
  spotlight();
}

/** Darkens what does not speak for the chosen class. */
function spotlight() {
  const spot = $("spot");
  const context = spot.getContext("2d");
  context.clearRect(0, 0, spot.width, spot.height);
  const strength = $("strength").value / 100;
  const name = $("bars").querySelector('[aria-pressed="true"]')?.dataset.name;
  const map = maps.find((one) => one.class === name)?.map;
  if (!map || !strength) return;
  const largest = Math.max(1e-9, ...map.flat());
  const small = document.createElement("canvas");
  small.width = map[0].length;
  small.height = map.length;
  const dark = new ImageData(small.width, small.height);
  map.flat().forEach((value, place) => {
    dark.data[4 * place + 3] = 235 * strength * (1 - Math.max(0, value) / largest);
  });
  small.getContext("2d").putImageData(dark, 0, 0);
  const [left, top, width, height] = seen(spot.width, spot.height);
  context.fillStyle = `rgb(0 0 0 / ${0.92 * strength})`; // what the network does not see
  context.fillRect(0, 0, spot.width, spot.height);
  context.clearRect(left, top, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, left, top, width, height);
}

/** The part of the photo that the network sees: left, top, width, height. */
function seen(width, height) {
  const side = Math.min(width, height);
  const [across, down] = model.crop_mode === "squash" ? [width, height] : [side, side];
  const [wide, high] = [across * model.crop_pct, down * model.crop_pct];
  return [(width - wide) / 2, (height - high) / 2, wide, high];
}

async function correct(event) {
  event.preventDefault();
  const right = $("right").value;
  try {
    await call(`v1/corrections?class=${encodeURIComponent(right)}`, { method: "POST", body: sent });
    $("saved").textContent = `Saved as ${right}. Thank you.`;
  } catch (error) {
    $("saved").textContent = sentence(error.message);
  }
}

function percent(score) {
  if (score > 0.995 && score < 1) return "over 99 %";
  return score < 0.005 ? "under 1 %" : `${Math.round(100 * score)} %`;
}

function sentence(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

for (const id of ["camera", "file"]) {
  $(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) ask(target.files[0]);
    target.value = ""; // the same photo can be chosen again
  });
}
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) ask(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", ({ clipboardData }) => {
  const file = [...clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) ask(file);
});
$("strength").addEventListener("input", spotlight);
$("wrong").addEventListener("submit", correct);
connect();
