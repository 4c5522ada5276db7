// From drawings and photos to the square that the network sees: pixels of 0 to 255, (height, width, channels).

// Resizes the part `box` of one channel as Pillow does: antialiased, each pass rounded to whole values.
function resized(plane, width, height, [left, top, right, bottom], outWidth, outHeight, cubic = false) {
  const shape = cubic
    ? (x) => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0
    : (x) => x < 1 ? 1 - x : 0;
  const taps = (from, to, count, size) => Array.from({ length: count }, (_, i) => {
    const scale = (to - from) / count, wide = Math.max(scale, 1), reach = (cubic ? 2 : 1) * wide;
    const center = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - reach + 0.5)), last = Math.min(size, Math.floor(center + reach + 0.5));
    const weights = [];
    for (let at = first; at < last; at++) weights.push(shape(Math.abs((at + 0.5 - center) / wide)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
  const clipped = (value) => Math.max(0, Math.min(255, Math.round(value)));
  const columns = taps(left, right, outWidth, width), rows = taps(top, bottom, outHeight, height);
  const narrow = new Float32Array(height * outWidth), result = new Float32Array(outHeight * outWidth);
  const from = rows[0].first, to = rows[outHeight - 1].first + rows[outHeight - 1].weights.length;
  for (let row = from; row < to; row++) {
    columns.forEach(({ first, weights }, column) => {
      let total = 0;
      for (let i = 0; i < weights.length; i++) total += weights[i] * plane[row * width + first + i];
      narrow[row * outWidth + column] = clipped(total);
    });
  }
  rows.forEach(({ first, weights }, row) => {
    for (let column = 0; column < outWidth; column++) {
      let total = 0;
      for (let i = 0; i < weights.length; i++) total += weights[i] * narrow[(first + i) * outWidth + column];
      result[row * outWidth + column] = clipped(total);
    }
  });
  return result;
}

// One channel of gray, or three of color, on white where the picture is transparent.
function planesOf(rgba, channels) {
  const count = rgba.length / 4, planes = Array.from({ length: channels }, () => new Float32Array(count));
  for (let i = 0; i < count; i++) {
    const alpha = rgba[4 * i + 3] / 255;
    const [red, green, blue] = [0, 1, 2].map((at) => Math.round(rgba[4 * i + at] * alpha + 255 * (1 - alpha)));
    if (channels === 3) [planes[0][i], planes[1][i], planes[2][i]] = [red, green, blue];
    else planes[0][i] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
  }
  return planes;
}

function joined(planes) {
  const pixels = new Uint8Array(planes.length * planes[0].length);
  planes.forEach((plane, channel) => plane.forEach((value, i) => { pixels[i * planes.length + channel] = value; }));
  return pixels;
}

// The center of a photo, or all of it, as prediction frames it.
function squareOf(planes, width, height, preprocessing) {
  const { size, crop_mode: mode, crop_pct: share, interpolation } = preprocessing;
  let [left, top, columns, rows] = [0, 0, width, height];
  if (mode !== "squash") {
    columns = rows = Math.min(width, height);
    [left, top] = [Math.floor((width - columns) / 2), Math.floor((height - rows) / 2)];
  }
  const across = columns * (1 - share) / 2, down = rows * (1 - share) / 2;
  const box = [left + across, top + down, left + columns - across, top + rows - down];
  if (columns === size && rows === size && share === 1) {
    return joined(planes.map((plane) => resized(plane, width, height, box, size, size)));
  }
  return joined(planes.map((plane) => resized(plane, width, height, box, size, size, interpolation === "bicubic")));
}

function borderOf(plane, width, height) {
  const values = [];
  for (let x = 0; x < width; x++) values.push(plane[x], plane[(height - 1) * width + x]);
  for (let y = 0; y < height; y++) values.push(plane[y * width], plane[y * width + width - 1]);
  return values.sort((a, b) => a - b)[values.length >> 1];
}

// The scale with which something of this width and height fills the box that the data's objects fill.
function fitted(width, height, boxWidth, boxHeight, fills) {
  const across = boxWidth / Math.max(width, 1e-6), down = boxHeight / Math.max(height, 1e-6);
  if (!fills || height < 0.15 * width) return [Math.min(across, down), Math.min(across, down)];
  return [Math.min(across, down), down];  // all objects of the data have this height
}

// A photo with a light background, for a network that knows light objects on dark: inverted, and framed as the data is.
function invertedOf(plane, width, height, size, drawing) {
  const paper = borderOf(plane, width, height), dark = plane.map((value) => Math.max(0, paper - value));
  const most = dark.reduce((a, b) => Math.max(a, b), 1);
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      dark[i] = Math.min(255, dark[i] * 255 / most);
      if (dark[i] <= 64) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    }
  }
  const [across, down] = fitted(right - left, bottom - top, drawing.width * size, drawing.height * size, drawing.fills);
  const columns = Math.max(1, Math.round((right - left) * across)), rows = Math.max(1, Math.round((bottom - top) * down));
  const small = resized(dark, width, height, [left, top, right, bottom], columns, rows), pixels = new Uint8Array(size * size);
  const x = (size - columns) >> 1, y = (size - rows) >> 1;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) pixels[(y + row) * size + x + column] = small[row * columns + column];
  }
  return pixels;
}

// A drawing, lists of points from 0 to 1: scaled to the box of the data, with lines of the data's width, and averaged.
function drawnSquare(strokes, size, drawing) {
  const finer = 16, side = size * finer, line = drawing.stroke * side, points = strokes.flat();
  const span = (at) => [Math.min(...points.map((point) => point[at])), Math.max(...points.map((point) => point[at]))];
  const [[left, right], [top, bottom]] = [span(0), span(1)];
  const [across, down] = fitted(Math.max(right - left, 0.02), Math.max(bottom - top, 0.02),
    drawing.width * side - line, drawing.height * side - line, drawing.fills);
  const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { fillStyle: "#000", strokeStyle: "#fff", lineWidth: line, lineCap: "round", lineJoin: "round" });
  context.fillRect(0, 0, side, side);
  for (const stroke of strokes) {
    context.beginPath();
    for (const [x, y] of stroke) {
      context.lineTo(side / 2 + (x - (left + right) / 2) * across, side / 2 + (y - (top + bottom) / 2) * down);
    }
    context.lineTo(side / 2 + (stroke.at(-1)[0] - (left + right) / 2) * across + 0.01,
      side / 2 + (stroke.at(-1)[1] - (top + bottom) / 2) * down);
    context.stroke();
  }
  const { data } = context.getImageData(0, 0, side, side), pixels = new Uint8Array(size * size);
  for (let i = 0; i < pixels.length; i++) {
    let total = 0;
    const corner = ((i / size | 0) * side + i % size) * finer;
    for (let y = 0; y < finer; y++) for (let x = 0; x < finer; x++) total += data[4 * (corner + y * side + x)];
    pixels[i] = Math.round(total / finer / finer);
  }
  return pixels;
}
