// Many particles at once, under the exact score or under a trained network (chapters 3, 9 and 14).
//
// σ = 1, so t is the variance of the noise. A batch of points is one typed array, x0, y0, x1, y1, …
// A denoiser is a function (batch, t) → the means E[x0 | x_t], again a batch.

// The network, from the file that tools/explorer_networks.py writes

// The number whose sixteen bits are these (IEEE 754, half precision).
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = (bits & 1023) / 1024
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction)
}

// A file in the safetensors format: the length of a header, the header, the numbers.
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true))
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)))
  const { __metadata__: metadata, ...entries } = header
  const numbers = ({ dtype, data_offsets: [from, to] }) => {
    const bytes = buffer.slice(8 + length + from, 8 + length + to)
    if (bytes.byteLength !== to - from) throw new Error('the file is cut short')
    return dtype === 'F16'
      ? Float64Array.from(new Uint16Array(bytes), half)
      : Float64Array.from(new Float32Array(bytes))
  }
  const tensors = Object.fromEntries(Object.entries(entries).map(([k, e]) => [k, numbers(e)]))
  return { about: JSON.parse(metadata.about), tensors }
}

// W x + b for n points, a multiple of four: one product of matrices. Four points and two outputs at
// a time stay in the processor's registers.
function linear(x, n, W, b) {
  const y = new Float64Array(n * b.length)
  const outputs = b.length
  const d = W.length / outputs
  for (let p = 0; p < n; p += 4)
    for (let o = 0; o < outputs; o += 2) {
      let [x0, w0] = [p * d, o * d]
      let [a0, a1, a2, a3] = [b[o], b[o], b[o], b[o]]
      let [c0, c1, c2, c3] = [b[o + 1], b[o + 1], b[o + 1], b[o + 1]]
      for (const end = x0 + d; x0 < end; x0++, w0++) {
        const u = W[w0]
        const v = W[w0 + d]
        a0 += u * x[x0]
        a1 += u * x[x0 + d]
        a2 += u * x[x0 + 2 * d]
        a3 += u * x[x0 + 3 * d]
        c0 += v * x[x0]
        c1 += v * x[x0 + d]
        c2 += v * x[x0 + 2 * d]
        c3 += v * x[x0 + 3 * d]
      }
      const at = p * outputs + o
      y[at] = a0
      y[at + 1] = c0
      y[at + outputs] = a1
      y[at + outputs + 1] = c1
      y[at + 2 * outputs] = a2
      y[at + 2 * outputs + 1] = c2
      y[at + 3 * outputs] = a3
      y[at + 3 * outputs + 1] = c3
    }
  return y
}

function silu(x) {
  for (let i = 0; i < x.length; i++) x[i] /= 1 + Math.exp(-x[i])
  return x
}

function layerNorm(x, gain, bias) {
  const d = gain.length
  for (let from = 0; from < x.length; from += d) {
    let [mean, square] = [0, 0]
    for (let i = from; i < from + d; i++) mean += x[i] / d
    for (let i = from; i < from + d; i++) square += (x[i] - mean) ** 2 / d
    const scale = 1 / Math.sqrt(square + 1e-5)
    for (let i = 0; i < d; i++) x[from + i] = (x[from + i] - mean) * scale * gain[i] + bias[i]
  }
  return x
}

// The layers of `ScoreNet` in read-out form (9.3), whose answer is the posterior mean.
export function networkDenoiser({ about, tensors }) {
  const layer = (name, x, n) => linear(x, n, tensors[`${name}.weight`], tensors[`${name}.bias`])
  const { 'time_embed.0.freqs': freqs, 'input_proj.weight': W, 'input_proj.bias': b } = tensors
  const inputs = W.length / b.length
  const ofPoint = W.filter((_, k) => k % inputs < 2)

  // What the first layer makes of the time: the same for all points, so it joins the bias.
  function ofTime(t) {
    const time = 1 - Math.log(t) / Math.log(about.t_min)
    const angles = Array.from(freqs, f => 2 * Math.PI * f * time)
    const features = new Float64Array(4 * 2 * angles.length) // one point; `linear` takes four
    features.set([...angles.map(Math.cos), ...angles.map(Math.sin)])
    const e = silu(layer('time_embed.3', silu(layer('time_embed.1', features, 4)), 4))
    return b.map((v, o) => {
      for (let i = 2; i < inputs; i++) v += W[o * inputs + i] * e[i - 2]
      return v
    })
  }

  return (x, t) => {
    const n = 4 * Math.ceil(x.length / 8)
    const point = new Float64Array(2 * n)
    point.set(x.map(v => v / Math.sqrt(t + 0.01)))
    let h = linear(point, n, ofPoint, ofTime(t))
    h = silu(layer('hidden.0', h, n))
    h = silu(layer('hidden.2', h, n))
    h = layer('hidden.4', h, n)
    h = silu(layerNorm(h, tensors['hidden.5.weight'], tensors['hidden.5.bias']))
    return layer('output', h, n).subarray(0, x.length)
  }
}

// The exact answer: the mean of the memories under their posterior weights (2.5).
export function exactDenoiser(memories) {
  const distance2 = new Float64Array(memories.length / 2)
  return (x, t) => {
    const means = new Float64Array(x.length)
    for (let i = 0; i < x.length; i += 2) {
      let nearest = Infinity
      for (let k = 0; k < distance2.length; k++) {
        distance2[k] = (x[i] - memories[2 * k]) ** 2 + (x[i + 1] - memories[2 * k + 1]) ** 2
        if (distance2[k] < nearest) nearest = distance2[k]
      }
      let sum = 0
      for (let k = 0; k < distance2.length; k++) {
        const exponent = (nearest - distance2[k]) / (2 * t)
        if (exponent < -40) continue // below the last digit
        const w = Math.exp(exponent)
        sum += w
        means[i] += w * memories[2 * k]
        means[i + 1] += w * memories[2 * k + 1]
      }
      means[i] /= sum
      means[i + 1] /= sum
    }
    return means
  }
}

// The score that belongs to a denoiser.
export const scoreOf = denoiser => (x, t) => denoiser(x, t).map((m, i) => (m - x[i]) / t)

// The walk

// A sequence of random numbers that follows from its seed (Mulberry32), uniform on [0, 1).
export function uniforms(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let v = Math.imul(state ^ (state >>> 15), state | 1)
    v ^= v + Math.imul(v ^ (v >>> 7), v | 61)
    return ((v ^ (v >>> 14)) >>> 0) / 2 ** 32
  }
}

// Normal ones, from pairs of uniform ones (Box and Muller).
export const normals = uniform => () =>
  Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform())

// Times evenly spaced in the fifth root (3.3): the share u of the way from 1 to eps, and a grid.
export const timeAt = (u, eps) => (1 + u * (eps ** 0.2 - 1)) ** 5
export const timeGrid = (steps, eps) =>
  Array.from({ length: steps + 1 }, (_, k) => timeAt(k / steps, eps))

// n particles with the density p_1: each at a random memory, with noise of variance 1.
export function noiseParticles(memories, n, uniform) {
  const x = new Float64Array(2 * n)
  const normal = normals(uniform)
  for (let i = 0; i < x.length; i += 2) {
    const k = Math.floor(uniform() * (memories.length / 2))
    x[i] = memories[2 * k] + normal()
    x[i + 1] = memories[2 * k + 1] + normal()
  }
  return x
}

// What a denoiser says of a batch, a part at a time; in between it lets others work.
function* inParts(denoiser, x, t, parts) {
  const means = new Float64Array(x.length)
  const size = x.length / parts
  for (let from = 0; from < x.length; from += size) {
    means.set(denoiser(x.subarray(from, from + size), t), from)
    if (from + size < x.length) yield null
  }
  return means
}

// The reverse SDE (3.4): the state at every time, and at the end its posterior mean. A step may be
// done in parts: then `null` comes in between.
export function* reverseSDE(denoiser, x, times, normal, parts = 1) {
  yield x
  for (let k = 0; k + 1 < times.length; k++) {
    const [t, s] = [times[k], times[k + 1]]
    const means = yield* inParts(denoiser, x, t, parts)
    const std = Math.sqrt(((t - s) * s) / t)
    x = x.map((v, i) => v + (1 - s / t) * (means[i] - v) + std * normal())
    yield x
  }
  yield yield* inParts(denoiser, x, times.at(-1), parts)
}

// Recall, as chapter 14 counts it

const TURN = 2 * Math.PI
export const WIDTH = 0.1 // how near counts as recall, in mean spacings

const anglesOf = x =>
  Float64Array.from({ length: x.length / 2 }, (_, i) => Math.atan2(x[2 * i + 1], x[2 * i]))
export const sortedAngles = memories => anglesOf(memories).sort()

// Distance in angle from each point to its nearest memory, in mean spacings 2π/K.
export function distances(x, sorted) {
  const K = sorted.length
  return anglesOf(x).map(angle => {
    let [a, b] = [0, K] // the first memory that is not below, by bisection
    while (a < b) {
      const middle = (a + b) >> 1
      if (sorted[middle] < angle) a = middle + 1
      else b = middle
    }
    const above = a < K ? sorted[a] - angle : sorted[0] + TURN - angle
    const below = a > 0 ? angle - sorted[a - 1] : angle - sorted[K - 1] + TURN
    return (Math.min(above, below) * K) / TURN
  })
}
export const countRecalled = away => away.filter(d => d <= WIDTH).length

// Share of the circle within `width` mean spacings of a memory: what fresh points recall by chance.
export function coveredShare(sorted, width = WIDTH) {
  const near = (width * TURN) / sorted.length
  const gap = k => (k ? sorted[k] - sorted[k - 1] : sorted[0] + TURN - sorted.at(-1))
  return sorted.reduce((sum, _, k) => sum + Math.min(gap(k), 2 * near), 0) / TURN
}
