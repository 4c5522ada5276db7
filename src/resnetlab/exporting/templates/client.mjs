// Prints the most probable classes of photos: node client.mjs PHOTO ...
// First: npm install onnxruntime-node sharp

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import sharp from "sharp";

process.env.ORT_DISABLE_TELEMETRY ??= "1"; // before ONNX Runtime is imported, which reports to its maker
const ort = await import("onnxruntime-node");

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  }],
};

/**
 * Returns the pixels of a photo as the network sees them: a Uint8Array of size x size x channels.
 * They equal those of preprocess.py within one level; with bicubic filters, sharp edges can differ by more. Large JPEG
 * files, of which preprocess.py decodes fewer pixels, differ by less than one level on average.
 */
export async function preprocess(photo, settings) {
  const upright = sharp(photo).rotate().flatten({ background: "#ffffff" }).toColourspace("srgb");
  const { data, info } = await upright.raw().toBuffer({ resolveWithObject: true });
  const { width, height } = info;
  const [across, down] = settings.crop_mode === "squash" ? [width, height] : Array(2).fill(Math.min(width, height));
  const box = (length, side) => {
    const first = Math.floor((length - side) / 2), edge = (side * (1 - settings.crop_pct)) / 2;
    return [first + edge, first + side - edge];
  };
  const pixels = settings.channels === 1 ? gray(data) : data;
  const row = weights(width, ...box(width, across), settings), column = weights(height, ...box(height, down), settings);
  const size = settings.image_size, channels = settings.channels;
  const wide = resample(pixels, height, width * channels, channels, row, channels);
  return resample(wide, 1, height * size * channels, size * channels, column, size * channels);
}

function gray(data) {
  const pixels = new Uint8Array(data.length / 3);
  for (let i = 0; i < pixels.length; i++) {
    pixels[i] = (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 32768) >> 16;
  }
  return pixels;
}

/** Returns for every output position the first input position and the weights of those from there on. */
function weights(length, start, end, settings) {
  const [reach, filter] = FILTERS[settings.interpolation], size = settings.image_size;
  const scale = (end - start) / size, widened = Math.max(scale, 1);
  return Array.from({ length: size }, (_, at) => {
    const center = start + (at + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - reach * widened + 0.5));
    const last = Math.min(length, Math.floor(center + reach * widened + 0.5));
    const raw = Array.from({ length: last - first }, (_, i) => filter((first + i - center + 0.5) / widened));
    const total = raw.reduce((sum, value) => sum + value, 0);
    return [first, raw.map((value) => value / total)];
  });
}

/** Resamples one axis: `lines` lines of `pitch` values, in each of which `inner` values lie side by side. */
function resample(input, lines, pitch, inner, axis, step) {
  const output = new Uint8Array(lines * axis.length * inner);
  for (let line = 0; line < lines; line++) {
    axis.forEach(([first, factors], at) => {
      for (let i = 0; i < inner; i++) {
        let sum = 0.5;
        factors.forEach((factor, k) => (sum += factor * input[line * pitch + (first + k) * step + i]));
        output[(line * axis.length + at) * inner + i] = Math.min(255, Math.max(0, Math.floor(sum)));
      }
    });
  }
  return output;
}

async function main(photos) {
  const about = JSON.parse(readFileSync(new URL("export.json", import.meta.url)));
  const session = await ort.InferenceSession.create(fileURLToPath(new URL("model.onnx", import.meta.url)));
  const { image_size: size, channels } = about.preprocessing;
  for (const photo of photos) {
    const pixels = await preprocess(photo, about.preprocessing);
    const images = new ort.Tensor("uint8", pixels, [1, size, size, channels]);
    const { top_classes: classes, top_scores: scores } = await session.run({ images }, ["top_classes", "top_scores"]);
    const answers = Array.from(classes.data, (label, i) => `${about.class_names[label]} ${(100 * scores.data[i]).toFixed(1)}%`);
    console.log(`${photo}: ${answers.join(", ")}`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2));
