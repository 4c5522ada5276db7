// Runs a residual network on one image. No part of the page: the program that measures accuracy in the background
// loads this file alone. A tensor is {data, channels, height, width}, channels first; sums are of 64 bits.

function bytesOf(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function floatsOf(text, isHalf) {
  const bytes = bytesOf(text);
  if (!isHalf) return new Float32Array(bytes.buffer);
  const halves = new Uint16Array(bytes.buffer), floats = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const sign = halves[i] & 0x8000 ? -1 : 1, exponent = (halves[i] >> 10) & 31, fraction = halves[i] & 1023;
    floats[i] = sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  }
  return floats;
}

const tensor = (channels, height, width) =>
  ({ data: new Float32Array(channels * height * width), channels, height, width });

function mapped(x, change) {
  const y = tensor(x.channels, x.height, x.width), size = x.height * x.width;
  for (let i = 0; i < y.data.length; i++) y.data[i] = change(x.data[i], (i / size) | 0);
  return y;
}

// One row for each output position: all values under the kernel, in the order of the kernel's weights.
function rowsUnder(x, op, group, height, width) {
  const { kernel, stride, padding, dilation } = op, channels = op.in / op.groups;
  const length = channels * kernel * kernel, rows = new Float32Array(height * width * length);
  for (let channel = 0; channel < channels; channel++) {
    const plane = (group * channels + channel) * x.height * x.width;
    for (let down = 0; down < kernel; down++) {
      for (let across = 0; across < kernel; across++) {
        const place = (channel * kernel + down) * kernel + across;
        for (let row = 0; row < height; row++) {
          const y = row * stride - padding + down * dilation;
          if (y < 0 || y >= x.height) continue;
          const from = plane + y * x.width;
          for (let column = 0; column < width; column++) {
            const at = column * stride - padding + across * dilation;
            if (at >= 0 && at < x.width) rows[(row * width + column) * length + place] = x.data[from + at];
          }
        }
      }
    }
  }
  return rows;
}

// The normalization that follows is part of the kernel: weight * scale, and shift.
function convolve(x, op) {
  const reach = op.dilation * (op.kernel - 1) + 1;
  const height = Math.floor((x.height + 2 * op.padding - reach) / op.stride) + 1;
  const width = Math.floor((x.width + 2 * op.padding - reach) / op.stride) + 1;
  const outputs = op.out / op.groups, length = (op.in / op.groups) * op.kernel * op.kernel, positions = height * width;
  const result = tensor(op.out, height, width), weights = op.folded, { data } = result;
  for (let group = 0; group < op.groups; group++) {
    const rows = rowsUnder(x, op, group, height, width);
    for (let output = 0; output < outputs; output += 4) {  // four outputs at two positions share what they load
      const first = group * outputs + output, last = (group + 1) * outputs - 1;
      const o1 = Math.min(first + 1, last), o2 = Math.min(first + 2, last), o3 = Math.min(first + 3, last);
      const w0 = first * length, w1 = o1 * length, w2 = o2 * length, w3 = o3 * length;
      for (let position = 0; position < positions; position += 2) {
        const next = Math.min(position + 1, positions - 1), r0 = position * length, r1 = next * length;
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        for (let k = 0; k < length; k++) {
          const a = rows[r0 + k], b = rows[r1 + k];
          const u = weights[w0 + k], v = weights[w1 + k], s = weights[w2 + k], t = weights[w3 + k];
          a0 += a * u; b0 += b * u;
          a1 += a * v; b1 += b * v;
          a2 += a * s; b2 += b * s;
          a3 += a * t; b3 += b * t;
        }
        data[first * positions + position] = a0 + op.bias[first];
        data[first * positions + next] = b0 + op.bias[first];
        data[o1 * positions + position] = a1 + op.bias[o1];
        data[o1 * positions + next] = b1 + op.bias[o1];
        data[o2 * positions + position] = a2 + op.bias[o2];
        data[o2 * positions + next] = b2 + op.bias[o2];
        data[o3 * positions + position] = a3 + op.bias[o3];
        data[o3 * positions + next] = b3 + op.bias[o3];
      }
    }
  }
  return result;
}

function pool(x, op, combine) {
  const span = (size) => {
    let count = (op.rounds_up ? Math.ceil : Math.floor)((size + 2 * op.padding - op.kernel) / op.stride) + 1;
    if (op.rounds_up && (count - 1) * op.stride >= size + op.padding) count--;
    return count;
  };
  const y = tensor(x.channels, span(x.height), span(x.width));
  for (let channel = 0, i = 0; channel < y.channels; channel++) {
    for (let row = 0; row < y.height; row++) {
      for (let column = 0; column < y.width; column++, i++) {
        const inside = [];
        for (let down = 0; down < op.kernel; down++) {
          for (let across = 0; across < op.kernel; across++) {
            const h = row * op.stride - op.padding + down, w = column * op.stride - op.padding + across;
            if (h >= 0 && h < x.height && w >= 0 && w < x.width) {
              inside.push(x.data[(channel * x.height + h) * x.width + w]);
            }
          }
        }
        y.data[i] = combine(inside);
      }
    }
  }
  return y;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function globalMean(x) {
  const y = tensor(x.channels, 1, 1), size = x.height * x.width;
  for (let channel = 0; channel < x.channels; channel++) {
    let total = 0;
    for (let i = channel * size; i < (channel + 1) * size; i++) total += x.data[i];
    y.data[channel] = total / size;
  }
  return y;
}

// The error function, from its Taylor series near 0 and its continued fraction elsewhere, to 1e-12.
function erf(x) {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  if (size < 2.5) {
    let term = x, total = x;
    for (let n = 1; Math.abs(term) > 1e-16 && n < 60; n++) {
      term *= -x * x / n;
      total += term / (2 * n + 1);
    }
    return 2 / Math.sqrt(Math.PI) * total;
  }
  let fraction = size;
  for (let n = 40; n > 0; n--) fraction = size + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction);
}

const OPERATIONS = {
  conv: convolve,
  affine: (x, op) => mapped(x, (value, channel) => value * op.scale[channel] + op.shift[channel]),
  relu: (x) => mapped(x, (value) => value > 0 ? value : 0),
  leaky_relu: (x, op) => mapped(x, (value) => value > 0 ? value : value * op.slope),
  prelu: (x, op) => mapped(x, (value, channel) =>
    value > 0 ? value : value * op.slope[op.slope.length > 1 ? channel : 0]),
  elu: (x, op) => mapped(x, (value) => value > 0 ? value : op.slope * Math.expm1(value)),
  silu: (x) => mapped(x, (value) => value / (1 + Math.exp(-value))),
  gelu: (x) => mapped(x, (value) => value * (1 + erf(value / Math.SQRT2)) / 2),
  sigmoid: (x) => mapped(x, (value) => 1 / (1 + Math.exp(-value))),
  mean: globalMean,
  max_pool: (x, op) => pool(x, op, (values) => Math.max(...values)),
  average_pool: (x, op) => pool(x, op, (values) => sum(values) / values.length),
  pad: (x, op) => {
    const height = Math.ceil(x.height / op.stride), width = Math.ceil(x.width / op.stride);
    const y = tensor(op.before + x.channels + op.after, height, width);
    for (let channel = 0, i = op.before * height * width; channel < x.channels; channel++) {
      for (let row = 0; row < height; row++) {
        for (let column = 0; column < width; column++, i++) {
          y.data[i] = x.data[(channel * x.height + row * op.stride) * x.width + column * op.stride];
        }
      }
    }
    return y;
  },
  scale_by: (x, op) => {
    const gate = run(op.gate, x).data;
    return mapped(x, (value, channel) => value * gate[channel]);
  },
};

const run = (operations, x) => operations.reduce((y, op) => OPERATIONS[op.op](y, op), x);

function plus(x, y) {
  const total = tensor(x.channels, x.height, x.width);
  for (let i = 0; i < total.data.length; i++) total.data[i] = x.data[i] + y.data[i];
  return total;
}

class ResidualNetwork {
  // `page` is the description that the page holds.
  constructor(page) {
    const kernels = floatsOf(page.kernels.values, page.precision === "float16");
    const vectors = floatsOf(page.vectors.values, false), vector = (at) => vectors.subarray(...page.vectors.spans[at]);
    const prepare = (op) => {
      if (op.op === "conv") {
        const scale = vector(op.scale);
        op.folded = kernels.slice(...page.kernels.spans[op.weight]);
        const size = op.folded.length / op.out;
        for (let i = 0; i < op.folded.length; i++) op.folded[i] *= scale[(i / size) | 0];
        op.bias = vector(op.shift);
      } else if (op.op === "affine") Object.assign(op, { scale: vector(op.scale), shift: vector(op.shift) });
      else if (op.op === "prelu") op.slope = vector(op.slope);
      else if (op.gate) op.gate.forEach(prepare);
    };
    const { stem, blocks, head } = structuredClone(page.network);
    for (const part of [stem, head, ...blocks.flatMap((block) => [block.start, block.branch, block.shortcut ?? [],
      block.end])]) part.forEach(prepare);
    Object.assign(this, { page, stem, blocks, head });
  }

  // Normalizes the pixels of one image, 0 to 255, (height, width, channels).
  input(pixels) {
    const { size, channels, mean, std } = this.page.preprocessing, x = tensor(channels, size, size);
    for (let i = 0; i < size * size; i++) {
      for (let c = 0; c < channels; c++) {
        x.data[c * size * size + i] = (pixels[i * channels + c] / 255 - mean[c]) / std[c];
      }
    }
    return x;
  }

  // All tensors of a block. `off` has what is switched off: "stage2.block1" and "stage2.block1.shortcut". Without its
  // branch, a block that keeps the shape is the identity; any other one is its shortcut.
  block(block, x, off) {
    const start = run(block.start, x), zero = (y) => tensor(y.channels, y.height, y.width);
    const carried = block.shortcut && run(block.shortcut, block.projects ? start : x);
    const isOff = off.has(block.name), isCut = off.has(`${block.name}.shortcut`);
    const branch = isOff ? zero(carried ?? x) : run(block.branch, start);
    const shortcut = carried && isCut ? zero(carried) : carried;
    if (isOff && !isCut && !block.changes) return { input: x, branch, shortcut, sum: x, output: x };
    const total = shortcut ? plus(branch, shortcut) : branch;
    return { input: x, branch, shortcut, sum: total, output: run(block.end, total) };
  }

  // The tensors of every block and the probabilities, for the pixels of one image.
  answer(pixels, off = new Set()) {
    let x = run(this.stem, this.input(pixels));
    const taps = {};
    for (const block of this.blocks) {
      taps[block.name] = this.block(block, x, off);
      x = taps[block.name].output;
    }
    return { taps, probabilities: this.probabilities(x) };
  }

  probabilities(x) {
    const logits = run(this.head, x).data, largest = Math.max(...logits);
    const powers = Array.from(logits, (value) => Math.exp((value - largest) / this.page.temperature));
    const total = sum(powers);
    return powers.map((power) => power / total);
  }
}

// How many images the network answers right, or null if `isCurrent` says that nobody waits for it any more.
async function rightAnswers(network, images, labels, off, isCurrent) {
  let right = 0;
  for (let i = 0; i < images.length; i++) {
    if (i % 4 === 0) {
      await new Promise((resume) => setTimeout(resume));
      if (!isCurrent()) return null;
    }
    const { probabilities } = network.answer(images[i], off);
    right += probabilities.indexOf(Math.max(...probabilities)) === labels[i];
  }
  return right;
}
