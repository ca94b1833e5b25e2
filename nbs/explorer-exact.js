// What is known exactly about a few memories, or about a full circle of them (chapters 2 to 7).
//
// σ = 1 throughout, so t is the variance of the noise. Memories are pairs [x, y] in an array, and
// `null` in their place stands for the full circle.

// One memory after the other

// Weights w of the memories at (x, y), their mean m = Σ w ξ, and log p_t.
export function posterior(x, y, t, patterns) {
  const exponents = patterns.map(([a, b]) => -((x - a) ** 2 + (y - b) ** 2) / (2 * t))
  const top = Math.max(...exponents)
  const w = exponents.map(v => Math.exp(v - top))
  const sum = w.reduce((s, v) => s + v, 0)
  const mean = [0, 0]
  patterns.forEach(([a, b], n) => {
    w[n] /= sum
    mean[0] += w[n] * a
    mean[1] += w[n] * b
  })
  return { w, mean, logp: top + Math.log(sum / patterns.length) - Math.log(2 * Math.PI * t) }
}
export const weights = (x, y, t, patterns) => posterior(x, y, t, patterns).w
export const energy = (x, y, t, patterns) => -posterior(x, y, t, patterns).logp // nats
export const effectiveNumber = w => 1 / w.reduce((s, v) => s + v * v, 0)

// The full circle

// e^{-z} I0(z) and I1(z)/I0(z): the power series, whose terms are all positive, or the asymptotic.
export function bessel(z) {
  const small = z < 25
  let [a, b, i0, i1] = [1, small ? z / 2 : 1, 0, 0]
  for (let k = 1; k < 200 && a > 1e-18 * i0; k++) {
    i0 += a
    i1 += b
    a *= small ? (z / 2 / k) ** 2 : (2 * k - 1) ** 2 / (8 * k * z)
    b *= small ? (z / 2) ** 2 / (k * (k + 1)) : ((2 * k - 1) ** 2 - 4) / (8 * k * z)
  }
  return [i0 * (small ? Math.exp(-z) : 1 / Math.sqrt(2 * Math.PI * z)), i1 / i0]
}

// -log p_t in nats at distance R from the centre of a full circle, up to the constant log(2πt).
export const circleEnergy = (R, t) => (R - 1) ** 2 / (2 * t) - Math.log(bessel(R / t)[0])

// Where the bottom of that valley lies: R = I1/I0(R/t), by bisection; the origin from t = 1/2 on.
export function ringRadius(t) {
  if (t >= 0.5) return 0
  let [a, b] = [1e-9, 1]
  for (let k = 0; k < 50; k++) {
    const R = (a + b) / 2
    if (bessel(R / t)[1] > R) a = R
    else b = R
  }
  return a
}

// Score and motion

// The ideal denoiser E[x0 | x_t]: a step of mean shift, and on the circle one Hopfield update.
export function denoise([x, y], t, patterns) {
  if (patterns) return posterior(x, y, t, patterns).mean
  const R = Math.hypot(x, y)
  const r = bessel(R / t)[1]
  return R ? [(r * x) / R, (r * y) / R] : [0, 0]
}
export function score(x, y, t, patterns) {
  const [a, b] = denoise([x, y], t, patterns)
  return [(a - x) / t, (b - y) / t]
}

// One step of a cue from noise variance t to s along the probability-flow ODE, which reads
// dx/du = (x - m)/2 in u = log t: fourth-order Runge-Kutta.
export function flow(x, t, s, patterns) {
  const h = Math.log(s / t)
  const slope = (p, u) => denoise(p, t * Math.exp(u), patterns).map((m, i) => (p[i] - m) / 2)
  const move = (k, c) => x.map((v, i) => v + c * k[i])
  const a = slope(x, 0)
  const b = slope(move(a, h / 2), h / 2)
  const c = slope(move(b, h / 2), h / 2)
  const d = slope(move(c, h), h)
  return x.map((v, i) => v + (h / 6) * (a[i] + 2 * b[i] + 2 * c[i] + d[i]))
}

// The same along the reverse SDE: the ancestral step (3.4).
export function noisy(x, t, s, patterns, normal) {
  const mean = denoise(x, t, patterns)
  const std = Math.sqrt(((t - s) * s) / t)
  return x.map((v, i) => v + (1 - s / t) * (mean[i] - v) + std * normal())
}

// The landscape

// Energies on an n × n grid over [-bound, bound]², row by row from the bottom. A Gaussian is a
// product of two, so the sum over memories is a product of matrices; where it underflows the energy
// is infinite, far above anything drawn.
export function landscape(t, patterns, n, bound) {
  const E = new Float64Array(n * n)
  const at = i => bound * ((2 * i) / (n - 1) - 1)
  if (!patterns) {
    const constant = Math.log(2 * Math.PI * t)
    return E.map((_, k) => circleEnergy(Math.hypot(at(k % n), at((k / n) | 0)), t) + constant)
  }
  const gx = new Float64Array(n)
  for (const [a, b] of patterns) {
    for (let i = 0; i < n; i++) gx[i] = Math.exp(-((at(i) - a) ** 2) / (2 * t))
    for (let j = 0; j < n; j++) {
      const gy = Math.exp(-((at(j) - b) ** 2) / (2 * t))
      if (gy > 0) for (let i = 0, k = j * n; i < n; i++, k++) E[k] += gx[i] * gy
    }
  }
  const constant = Math.log(2 * Math.PI * t * patterns.length)
  for (let k = 0; k < E.length; k++) E[k] = constant - Math.log(E[k])
  return E
}

export const lowest = E => E.reduce((low, e) => Math.min(low, e), Infinity)

export const TOP = 20 // nats; how far up barriers are looked for
export const MIN_BARRIER = 0.3 // nats; lower minima are ripples (chapter 7)

// The points of a grid that lie less than `top` nats up, lowest first (sorted into narrow bins).
function fromBelow(E, top) {
  const BINS = 1 << 14
  const low = lowest(E)
  const bin = k => (((E[k] - low) / top) * BINS) | 0
  const start = new Uint32Array(BINS + 1)
  for (let k = 0; k < E.length; k++) if (E[k] < low + top) start[bin(k) + 1]++
  for (let b = 0; b < BINS; b++) start[b + 1] += start[b]
  const order = new Uint32Array(start[BINS])
  for (let k = 0; k < E.length; k++) if (E[k] < low + top) order[start[bin(k)]++] = k
  return order
}

// The up to eight neighbours of point k of an n × n grid.
function* neighbours(k, n) {
  const i = k % n
  const j = (k - i) / n
  for (let b = Math.max(0, j - 1); b <= Math.min(n - 1, j + 1); b++)
    for (let a = Math.max(0, i - 1); a <= Math.min(n - 1, i + 1); a++)
      if (a !== i || b !== j) yield b * n + a
}

// Flood a grid from below: every minimum with its barrier, the climb to reach a deeper one.
export function basins(E, n, top = TOP) {
  const into = new Int32Array(E.length).fill(-1)
  const found = new Map()
  const root = k => {
    while (into[k] !== k) k = into[k] = into[into[k]]
    return k
  }
  for (const k of fromBelow(E, top)) {
    into[k] = k
    for (const m of neighbours(k, n)) {
      if (into[m] < 0) continue
      let [a, b] = [root(k), root(m)]
      if (a === b) continue
      if (E[b] < E[a]) [a, b] = [b, a]
      into[b] = a
      if (b !== k) found.set(b, E[k] - E[b])
    }
    if (into[k] === k) found.set(k, Infinity)
  }
  return [...found].map(([k, barrier]) => ({ k, barrier })).sort((a, b) => E[a.k] - E[b.k])
}

// Newton's method for a zero of the score, with a mean-shift step where it would go far or uphill.
export function refine(x, y, t, patterns, reach) {
  for (let step = 0; step < 200; step++) {
    const { w, mean } = posterior(x, y, t, patterns)
    let [a, b, d] = [1, 0, 1] // t times the Hessian of the energy: 1 - covariance / t
    patterns.forEach(([p, q], n) => {
      p -= mean[0]
      q -= mean[1]
      a -= (w[n] * p * p) / t
      b -= (w[n] * p * q) / t
      d -= (w[n] * q * q) / t
    })
    const det = a * d - b * b
    const [gx, gy] = [mean[0] - x, mean[1] - y]
    let [dx, dy] = [(d * gx - b * gy) / det, (a * gy - b * gx) / det]
    if (!(det > 0 && a > 0 && Math.hypot(dx, dy) < reach)) [dx, dy] = [gx, gy]
    x += dx
    y += dy
    if (Math.hypot(dx, dy) < 1e-12) break
  }
  return [x, y]
}

// N_eff with memories closer than 0.002 counted as one (chapter 1): a pair of twins is no mixture.
function distinct(w, patterns) {
  const sum = new Float64Array(w.length)
  patterns.forEach(([a, b], n) => {
    sum[patterns.findIndex(([p, q]) => Math.hypot(a - p, b - q) < 0.002)] += w[n]
  })
  return effectiveNumber(sum)
}

// The minima of an energy on a grid, moved to where the score vanishes, each with its barrier,
// N_eff and name.
export function minima(E, t, patterns, n, bound) {
  if (!patterns) return []
  const h = (2 * bound) / (n - 1)
  const found = []
  for (const { k, barrier } of basins(E, n)) {
    if (barrier < 0.01) continue
    const [x, y] = refine((k % n) * h - bound, Math.floor(k / n) * h - bound, t, patterns, 3 * h)
    if (found.some(m => Math.hypot(m.x - x, m.y - y) < h / 4)) continue
    const w = weights(x, y, t, patterns)
    const well = distinct(w, patterns) < 1.5 ? 'memory' : 'spurious'
    const kind = barrier < MIN_BARRIER ? 'ripple' : well
    found.push({ x, y, barrier, n_eff: effectiveNumber(w), kind })
  }
  const wells = found.filter(m => m.kind !== 'ripple')
  if (wells.length === 1 && wells[0].n_eff > 4) wells[0].kind = 'valley'
  return found
}

// Height of the highest hill with a valley all the way around it, in nats: upside down, with a deep
// sea around it, it is a lake.
export function hillInside(E, n) {
  const low = lowest(E)
  const edge = k => k < n || k >= n * (n - 1) || k % n === 0 || k % n === n - 1
  const flipped = E.map((e, k) => (edge(k) ? -TOP - 1 : -Math.min(e - low, TOP)))
  const depths = basins(flipped, n, TOP + 2).map(m => m.barrier)
  return Math.max(0, ...depths.filter(isFinite))
}

// The regime, in the words of chapter 7. The full circle has no wells.
export function phase(found, E, n) {
  const wells = found.filter(m => m.kind !== 'ripple')
  const mixtures = wells.filter(m => m.kind === 'spurious').length
  if (wells.length < 2 && hillInside(E, n) >= MIN_BARRIER) return 'circle'
  if (!wells.length || wells[0].kind === 'valley') return 'one valley'
  return 2 * mixtures < wells.length ? 'memories' : 'mixtures'
}
