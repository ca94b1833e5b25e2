// The exact energy landscape of a few memories, or of a full circle of them, drawn live. σ = 1 throughout: t is the noise variance.

// Closed forms (chapters 2 to 7). Memories are arrays [x, y].

// Weights w of the memories at (x, y), their mean m = Σ w ξ, and log p_t.
export function posterior(x, y, t, patterns) {
  const e = patterns.map(([a, b]) => -((x - a) ** 2 + (y - b) ** 2) / (2 * t))
  const top = Math.max(...e)
  const w = e.map(v => Math.exp(v - top))
  const sum = w.reduce((s, v) => s + v, 0)
  let mx = 0, my = 0
  patterns.forEach(([a, b], n) => { w[n] /= sum; mx += w[n] * a; my += w[n] * b })
  return { w, mean: [mx, my], logp: top + Math.log(sum / patterns.length) - Math.log(2 * Math.PI * t) }
}
export const weights = (x, y, t, patterns) => posterior(x, y, t, patterns).w
export const energy = (x, y, t, patterns) => -posterior(x, y, t, patterns).logp // nats
export const effectiveNumber = w => 1 / w.reduce((s, v) => s + v * v, 0)

// e^{-z} I0(z) and I1(z)/I0(z): the power series, whose terms are all positive, or the asymptotic one.
export function bessel(z) {
  let a = 1, b = z < 25 ? z / 2 : 1, i0 = 0, i1 = 0
  for (let k = 1; k < 200 && a > 1e-18 * i0; k++) {
    i0 += a; i1 += b
    if (z < 25) { a *= (z / 2 / k) ** 2; b *= (z / 2) ** 2 / (k * (k + 1)) }
    else { a *= (2 * k - 1) ** 2 / (8 * k * z); b *= ((2 * k - 1) ** 2 - 4) / (8 * k * z) }
  }
  return [i0 * (z < 25 ? Math.exp(-z) : 1 / Math.sqrt(2 * Math.PI * z)), i1 / i0]
}
// -log p_t in nats at distance R from the centre of a full circle, up to the constant log(2πt).
export const circleEnergy = (R, t) => (R - 1) ** 2 / (2 * t) - Math.log(bessel(R / t)[0])

// Where the bottom of that valley lies: R = I1/I0(R/t), by bisection; the origin from t = 1/2 on.
export function ringRadius(t) {
  if (t >= 0.5) return 0
  let a = 1e-9, b = 1
  for (let k = 0; k < 50; k++) { const R = (a + b) / 2; if (bessel(R / t)[1] > R) a = R; else b = R }
  return a
}

// The ideal denoiser E[x0 | x_t]: one step of mean shift, and on the circle one Hopfield update. `null` stands for the full circle.
export function denoise([x, y], t, patterns) {
  if (patterns) return posterior(x, y, t, patterns).mean
  const R = Math.hypot(x, y), r = bessel(R / t)[1]
  return R ? [r * x / R, r * y / R] : [0, 0]
}
export const score = (x, y, t, patterns) => denoise([x, y], t, patterns).map((m, i) => (m - (i ? y : x)) / t)

// Energies on an n × n grid over [-bound, bound]², row by row from the bottom. A Gaussian is a product of two, so the sum over
// memories is a product of matrices; where it underflows the energy is infinite, far above anything drawn.
export function landscape(t, patterns, n, bound) {
  const E = new Float64Array(n * n), at = i => bound * (2 * i / (n - 1) - 1)
  if (!patterns) {
    for (let j = 0; j < n; j++) for (let i = 0; i < n; i++) E[j * n + i] = circleEnergy(Math.hypot(at(i), at(j)), t) + Math.log(2 * Math.PI * t)
    return E
  }
  const gx = new Float64Array(n)
  for (const [a, b] of patterns) {
    for (let i = 0; i < n; i++) gx[i] = Math.exp(-((at(i) - a) ** 2) / (2 * t))
    for (let j = 0; j < n; j++) {
      const gy = Math.exp(-((at(j) - b) ** 2) / (2 * t))
      if (gy > 0) for (let i = 0, k = j * n; i < n; i++, k++) E[k] += gx[i] * gy
    }
  }
  const c = Math.log(2 * Math.PI * t * patterns.length)
  for (let k = 0; k < E.length; k++) E[k] = c - Math.log(E[k])
  return E
}

const TOP = 20 // nats

// Flood a grid from below: every minimum with its barrier, the climb to reach a deeper one. Points more than `top` nats up are left out.
export function basins(E, n, top = TOP) {
  let low = Infinity
  for (const e of E) if (e < low) low = e
  const BINS = 1 << 14, bin = k => (E[k] - low) / top * BINS | 0
  const start = new Uint32Array(BINS + 1), order = new Uint32Array(E.length)
  let count = 0
  for (let k = 0; k < E.length; k++) if (E[k] < low + top) { start[bin(k) + 1]++; count++ }
  for (let b = 0; b < BINS; b++) start[b + 1] += start[b]
  for (let k = 0; k < E.length; k++) if (E[k] < low + top) order[start[bin(k)]++] = k
  const into = new Int32Array(E.length).fill(-1), found = new Map()
  const root = k => { while (into[k] !== k) k = into[k] = into[into[k]]; return k }
  for (let q = 0; q < count; q++) {
    const k = order[q], i = k % n, j = (k - i) / n
    into[k] = k
    for (let dj = -1; dj <= 1; dj++) for (let di = -1; di <= 1; di++) {
      const m = k + dj * n + di
      if (m === k || i + di < 0 || i + di >= n || j + dj < 0 || j + dj >= n || into[m] < 0) continue
      let a = root(k), b = root(m)
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
    const { w, mean: [mx, my] } = posterior(x, y, t, patterns)
    let a = 1, b = 0, d = 1 // t times the Hessian of the energy: 1 - covariance / t
    patterns.forEach(([p, q], n) => { p -= mx; q -= my; a -= w[n] * p * p / t; b -= w[n] * p * q / t; d -= w[n] * q * q / t })
    const det = a * d - b * b, gx = mx - x, gy = my - y
    let dx = (d * gx - b * gy) / det, dy = (a * gy - b * gx) / det
    if (!(det > 0 && a > 0 && Math.hypot(dx, dy) < reach)) [dx, dy] = [gx, gy]
    x += dx; y += dy
    if (Math.hypot(dx, dy) < 1e-12) break
  }
  return [x, y]
}

export const MIN_BARRIER = 0.3 // nats; lower minima are ripples (chapter 7)

// N_eff with memories closer than 0.002 counted as one (chapter 1): a pair of twins is no mixture.
function distinct(w, patterns) {
  const sum = new Float64Array(w.length)
  patterns.forEach(([a, b], n) => { sum[patterns.findIndex(([p, q]) => Math.hypot(a - p, b - q) < 0.002)] += w[n] })
  return effectiveNumber(sum)
}

// The minima of an energy on a grid, moved to where the score vanishes, each with its barrier, N_eff and name.
export function minima(E, t, patterns, n, bound) {
  if (!patterns) return []
  const h = 2 * bound / (n - 1), found = []
  for (const { k, barrier } of basins(E, n)) {
    if (barrier < 0.01) continue
    const [x, y] = refine((k % n) * h - bound, Math.floor(k / n) * h - bound, t, patterns, 3 * h)
    if (found.some(m => Math.hypot(m.x - x, m.y - y) < h / 4)) continue
    const w = weights(x, y, t, patterns)
    found.push({ x, y, barrier, n_eff: effectiveNumber(w), kind: barrier < MIN_BARRIER ? 'ripple' : distinct(w, patterns) < 1.5 ? 'memory' : 'spurious' })
  }
  const wells = found.filter(m => m.kind !== 'ripple')
  if (wells.length === 1 && wells[0].n_eff > 4) wells[0].kind = 'valley'
  return found
}

// Height of the highest hill with a valley all the way around it, in nats: upside down, with a deep sea around it, it is a lake.
export function hillInside(E, n) {
  let low = Infinity
  for (const e of E) if (e < low) low = e
  const edge = k => k < n || k >= n * (n - 1) || k % n === 0 || k % n === n - 1
  const flipped = E.map((e, k) => edge(k) ? -TOP - 1 : -Math.min(e - low, TOP))
  return Math.max(0, ...basins(flipped, n, TOP + 2).map(m => m.barrier).filter(isFinite))
}

// The regime, in the words of chapter 7.
export function phase(found, E, n) {
  const wells = found.filter(m => m.kind !== 'ripple'), mixtures = wells.filter(m => m.kind === 'spurious').length
  if (wells.length < 2 && hillInside(E, n) >= MIN_BARRIER) return 'circle'
  if (!wells.length || wells[0].kind === 'valley') return 'one valley' // without wells: the full circle
  return 2 * mixtures < wells.length ? 'memories' : 'mixtures'
}

// One step of a cue from noise variance t to s.
export function flow(x, t, s, patterns) { // probability-flow ODE, dx/du = (x - m)/2 in u = log t, by fourth-order Runge-Kutta
  const h = Math.log(s / t), slope = (p, u) => denoise(p, t * Math.exp(u), patterns).map((m, i) => (p[i] - m) / 2)
  const move = (k, c) => x.map((v, i) => v + c * k[i])
  const a = slope(x, 0), b = slope(move(a, h / 2), h / 2), c = slope(move(b, h / 2), h / 2), d = slope(move(c, h), h)
  return x.map((v, i) => v + h / 6 * (a[i] + 2 * b[i] + 2 * c[i] + d[i]))
}
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())
export function noisy(x, t, s, patterns) { // reverse SDE: the ancestral step
  const m = denoise(x, t, patterns), std = Math.sqrt((t - s) * s / t)
  return x.map((v, i) => v + (1 - s / t) * (m[i] - v) + std * normal())
}

// The page.

const BOUND = 1.5, N = 161, CAP = 8, T_MIN = 0.002, REACH = 24, MOST = 60
const INFERNO = ['000004', '0d0829', '280b53', '470b6a', '65156e', '82206c', '9f2a63', 'bc3754', 'd44842', 'e8602d', 'f57d15', 'fc9f07', 'fac228', 'f3e55d', 'fcffa4']
const PALETTE = Uint32Array.from({ length: 256 }, (_, i) => {
  const p = i / 255 * (INFERNO.length - 1), k = Math.min(p | 0, INFERNO.length - 2)
  const mix = c => { const [a, b] = [k, k + 1].map(q => parseInt(INFERNO[q].slice(2 * c, 2 * c + 2), 16)); return Math.round(a + (p - k) * (b - a)) }
  return 0xff000000 | mix(2) << 16 | mix(1) << 8 | mix(0)
})
const STORY = {
  memories: 'Most wells hold one memory each: a cue recalls it.',
  mixtures: 'Wells shared by several memories: a cue recalls a mixture that nobody stored.',
  'one valley': `One valley that many memories share, without a hill of ${MIN_BARRIER} nats inside: the cue keeps what they have in common.`,
  circle: 'One valley around a hill: the cue keeps what the memories have in common, their distance from the centre.',
}

function start(root) {
  const presets = JSON.parse(root.dataset.patterns)
  root.innerHTML = `
    <div class="am-plane">
      <canvas tabindex="0" role="application" aria-label="The plane with the memories and their energy landscape. Arrow keys move the pointer, M jumps to the next memory, Enter picks a memory up, puts it down or acts on the plane, Delete removes it."></canvas>
      <div class="am-scale" aria-hidden="true"><span>0</span><i></i><span>${CAP} nats above the minimum</span></div>
      <p class="am-phase" role="status"></p>
      <ul class="am-minima"></ul>
    </div>
    <div class="am-controls">
      <p class="am-presets" role="group" aria-label="Presets">${Object.keys(presets).map(k => `<button type="button" data-preset="${k}">K = ${k}</button>`).join(' ')}
        <button type="button" data-preset="circle">circle</button></p>
      <label>noise <output name="t"></output><input type="range" name="t" min="${Math.log(T_MIN)}" max="0" step="any"></label>
      <fieldset><legend>A click on the plane</legend>${radios('tool', { cue: 'drops a cue', add: 'adds a memory', remove: 'removes a memory' })}</fieldset>
      <fieldset><legend>The cue follows</legend>${radios('motion', { hopfield: 'the Hopfield update, at this t', flow: 'the flow, as t falls', noise: 'the reverse SDE, as t falls' })}</fieldset>
      <p><button type="button" data-do="cue">drop a cue anywhere</button> <button type="button" data-do="clear">remove all</button>
        <label><input type="checkbox" name="lines" checked> gradient lines</label></p>
    </div>`
  const $ = s => root.querySelector(s), canvas = $('canvas'), ctx = canvas.getContext('2d')
  const image = Object.assign(document.createElement('canvas'), { width: N, height: N }), pixels = image.getContext('2d').createImageData(N, N)
  const colours = new Uint32Array(pixels.data.buffer)
  const s = { patterns: [], t: 0.15, shown: 0.15, cue: null, drag: -1, pointer: null, minima: [], phase: '', frame: 0 }
  let asked = false, computed, E

  function radios(name, options) {
    return Object.entries(options).map(([value, text], i) => `<label><input type="radio" name="am-${name}" value="${value}"${i ? '' : ' checked'}> ${text}</label>`).join('')
  }
  const choice = name => $(`input[name=am-${name}]:checked`).value
  const ask = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; frame() }) } }
  const px = v => (v / BOUND + 1) / 2 * canvas.clientWidth, py = v => (1 - v / BOUND) / 2 * canvas.clientWidth
  const size = () => canvas.clientWidth

  function compute() {
    const key = JSON.stringify([s.patterns, s.shown])
    if (key === computed) return
    computed = key
    E = s.patterns && !s.patterns.length ? null : landscape(s.shown, s.patterns, N, BOUND)
    s.minima = E ? minima(E, s.shown, s.patterns, N, BOUND) : []
    s.phase = E ? phase(s.minima, E, N) : ''
  }

  function dot(x, y, r, fill, stroke = '#000', width = 1) {
    ctx.beginPath(); ctx.arc(px(x), py(y), r, 0, 7)
    if (fill) { ctx.fillStyle = fill; ctx.fill() }
    if (stroke) { ctx.strokeStyle = stroke; ctx.lineWidth = width; ctx.stroke() }
  }
  function star(x, y, r) {
    ctx.beginPath()
    for (let k = 0; k < 10; k++) ctx.lineTo(px(x) + r * (k % 2 ? 0.42 : 1) * Math.sin(k * Math.PI / 5), py(y) - r * (k % 2 ? 0.42 : 1) * Math.cos(k * Math.PI / 5))
    ctx.closePath(); ctx.fillStyle = '#56B4E9'; ctx.fill(); ctx.strokeStyle = '#000'; ctx.lineWidth = 1; ctx.stroke()
  }
  function diamond(x, y, r) {
    ctx.beginPath(); [[0, -r], [r, 0], [0, r], [-r, 0]].forEach(([a, b]) => ctx.lineTo(px(x) + a, py(y) + b)); ctx.closePath()
    ctx.strokeStyle = '#000'; ctx.lineWidth = 5; ctx.stroke(); ctx.strokeStyle = '#F0E442'; ctx.lineWidth = 2.5; ctx.stroke()
  }
  function lines() { // from a lattice of points, a short way down the energy
    ctx.strokeStyle = ctx.fillStyle = 'rgba(165,165,175,0.8)'; ctx.lineWidth = 1
    const M = size() < 420 ? 11 : 15, stride = 2 * BOUND / M, ds = stride / 10
    for (let q = 0; q < M * M; q++) {
      let p = [(q % M + 0.5) * stride - BOUND, ((q / M | 0) + 0.5) * stride - BOUND]
      ctx.beginPath(); ctx.moveTo(px(p[0]), py(p[1]))
      let steps = 0
      for (; steps < 7; steps++) {
        const m = denoise(p, s.shown, s.patterns), d = Math.hypot(m[0] - p[0], m[1] - p[1])
        if (d < ds) break
        p = p.map((v, i) => v + ds * (m[i] - v) / d)
        ctx.lineTo(px(p[0]), py(p[1]))
      }
      if (steps) { ctx.stroke(); ctx.beginPath(); ctx.arc(px(p[0]), py(p[1]), 1.6, 0, 7); ctx.fill() }
    }
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, w = size()
    if (canvas.width !== Math.round(w * ratio)) canvas.width = canvas.height = Math.round(w * ratio)
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0)
    if (E) {
      let low = Infinity
      for (const e of E) if (e < low) low = e
      for (let j = 0, k = 0; j < N; j++) for (let i = 0; i < N; i++, k++) colours[(N - 1 - j) * N + i] = PALETTE[Math.min(255, (E[k] - low) / CAP * 255) | 0]
      image.getContext('2d').putImageData(pixels, 0, 0)
      const cell = w / (N - 1) // grid points lie at the middles of the image's pixels
      ctx.drawImage(image, -cell / 2, -cell / 2, w + cell, w + cell)
    } else { ctx.fillStyle = '#000004'; ctx.fillRect(0, 0, w, w) }
    ctx.setLineDash([5, 5]); dot(0, 0, w / 2 / BOUND, null, 'rgba(255,255,255,0.7)'); ctx.setLineDash([])
    if (E && $('[name=lines]').checked) lines()
    for (const [x, y] of s.patterns || []) star(x, y, 9)
    for (const m of s.minima) {
      if (m.kind === 'ripple' || m.kind === 'valley') dot(m.x, m.y, m.kind === 'valley' ? 6 : 3, null, '#fff', 1.5)
      else if (m.kind === 'memory') { dot(m.x, m.y, 12, null, '#000', 5); dot(m.x, m.y, 12, null, '#2bd9a5', 2.5) }
      else diamond(m.x, m.y, 13)
    }
    if (s.cue) {
      ctx.beginPath(); s.cue.trail.forEach(([x, y]) => ctx.lineTo(px(x), py(y)))
      ctx.strokeStyle = '#000'; ctx.lineWidth = 4; ctx.stroke(); ctx.strokeStyle = '#fff'; ctx.lineWidth = 2; ctx.stroke()
      dot(...s.cue.trail[0], 4, '#000', '#fff', 1.5); dot(...s.cue.trail.at(-1), 6, '#fff', '#000', 1.5)
    }
    if (s.pointer) {
      const [x, y] = s.pointer
      ctx.strokeStyle = s.drag < 0 ? '#fff' : '#56B4E9'; ctx.lineWidth = 2; ctx.beginPath()
      for (const [a, b] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { ctx.moveTo(px(x) + 5 * a, py(y) + 5 * b); ctx.lineTo(px(x) + 14 * a, py(y) + 14 * b) }
      ctx.stroke()
    }
  }

  const put = (element, html) => { if (element.innerHTML !== html) element.innerHTML = html }
  function tell() {
    $('output').textContent = `t = ${s.shown.toPrecision(3)}, β = 1/(2σ²t) = ${(1 / (2 * s.shown)).toPrecision(3)}`
    $('input[name=t]').value = Math.log(s.shown)
    $('input[name=t]').setAttribute('aria-valuetext', $('output').textContent)
    put($('.am-phase'), s.phase ? `<b>${s.phase}</b> ${STORY[s.phase]}` : 'Add a memory: choose it above and click on the plane.')
    const wells = s.minima.filter(m => m.kind !== 'ripple'), ripples = s.minima.length - wells.length
    const list = wells.slice(0, 12).map((m, i) => `<li class="am-${m.kind}">${m.kind}: N<sub>eff</sub> = ${m.n_eff.toFixed(2)}, ${isFinite(m.barrier) ? `barrier ${m.barrier.toFixed(2)} nats` : i ? `barrier above ${TOP} nats` : 'the deepest'}</li>`)
    if (wells.length > 12) list.push(`<li>and ${wells.length - 12} more</li>`)
    if (ripples) list.push(`<li class="am-ripple">${ripples} shallower than ${MIN_BARRIER} nats: ripples</li>`)
    if (!s.patterns) {
      const R = ringRadius(s.shown), share = bessel(R / s.shown)[0] ** 2 / bessel(2 * R / s.shown)[0]
      list.push(`<li>${R ? `the valley is a circle of radius ${R.toFixed(3)}` : 'the valley has closed to one minimum, at the origin'}: N<sub>eff</sub> is ${(100 * share).toFixed(0)}% of all memories</li>`)
    }
    if (s.cue?.done && s.patterns?.length) {
      const n = effectiveNumber(weights(...s.cue.trail.at(-1), s.cue.t, s.patterns))
      list.push(`<li>the cue ended with N<sub>eff</sub> = ${n.toFixed(2)}: ${n < 1.5 ? 'one memory' : 'a mixture'}</li>`)
    }
    put($('.am-minima'), list.join(''))
    root.querySelectorAll('[data-preset]').forEach(b => b.setAttribute('aria-pressed', b.dataset.preset === s.preset))
  }

  function advance() { // one step of the cue; true while it moves
    const c = s.cue, at = c.trail.at(-1)
    if (c.motion === 'hopfield') {
      c.t = s.t
      if (++c.wait % 6) return true
      const next = denoise(at, s.t, s.patterns)
      c.trail.push(next)
      return Math.hypot(next[0] - at[0], next[1] - at[1]) > 1e-4 && c.trail.length < 400
    }
    if (c.t <= T_MIN) return ++c.wait < 40 // stay a moment
    const next = Math.max(T_MIN, c.t * Math.exp(Math.log(T_MIN / s.t) / c.steps))
    c.trail.push((c.motion === 'flow' ? flow : noisy)(at, c.t, next, s.patterns))
    c.t = s.shown = next
    return true
  }
  function frame() {
    const began = performance.now()
    if (s.cue && !s.cue.done) {
      if (!advance()) { s.cue.done = true; s.shown = s.t }
      ask()
    }
    compute(); draw(); tell()
    s.ms = performance.now() - began; s.frame++
  }

  function drop(p) {
    s.shown = s.t
    if (!s.patterns || s.patterns.length) s.cue = { trail: [p], t: s.t, motion: choice('motion'), wait: 0, steps: 150, done: false }
    ask()
  }
  function own() { s.patterns ??= []; s.preset = ''; s.cue = null; s.shown = s.t } // from here on the memories are the reader's own
  const nearest = ([x, y]) => {
    const d = (s.patterns || []).map(([a, b]) => Math.hypot(px(a) - px(x), py(b) - py(y))), k = d.indexOf(Math.min(...d))
    return d[k] < REACH ? k : -1
  }
  const inside = p => p.map(v => Math.max(-BOUND, Math.min(BOUND, v)))
  function remove(k) { if (k >= 0) { own(); s.patterns.splice(k, 1); ask() } }
  function act(p) {
    const tool = choice('tool')
    if (tool === 'cue') drop(p)
    else if (tool === 'remove') remove(nearest(p))
    else if (!s.patterns || s.patterns.length < MOST) { own(); s.patterns.push(p); ask() }
  }
  function load(name) {
    s.preset = name; s.cue = null; s.drag = -1; s.shown = s.t
    s.patterns = name === 'circle' ? null : presets[name].map(p => [...p])
    ask()
  }
  const where = e => { const r = canvas.getBoundingClientRect(); return [((e.clientX - r.left) / r.width * 2 - 1) * BOUND, (1 - (e.clientY - r.top) / r.height * 2) * BOUND] }

  canvas.addEventListener('pointerdown', e => {
    const p = where(e), k = nearest(p)
    s.pointer = null
    if (k >= 0 && choice('tool') !== 'remove') { own(); s.drag = k; canvas.setPointerCapture(e.pointerId) } else act(p)
    ask()
  })
  canvas.addEventListener('pointermove', e => { if (s.drag >= 0 && !s.pointer) { s.patterns[s.drag] = inside(where(e)); ask() } })
  for (const type of ['pointerup', 'pointercancel']) canvas.addEventListener(type, () => { s.drag = -1 })
  canvas.addEventListener('keydown', e => {
    const step = e.shiftKey ? 0.01 : 0.05, arrow = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[e.key]
    const p = s.pointer || [0, 0]
    if (arrow) { s.pointer = inside([p[0] + arrow[0], p[1] + arrow[1]]); if (s.drag >= 0) { own(); s.patterns[s.drag] = s.pointer } }
    else if (e.key === 'm' && s.patterns?.length) { s.drag = -1; s.jump = ((s.jump ?? -1) + 1) % s.patterns.length; s.pointer = [...s.patterns[s.jump]] }
    else if (e.key === 'Delete' || e.key === 'Backspace') { const k = nearest(p); s.drag = -1; remove(k) }
    else if (e.key === 'Escape') { s.drag = -1; s.pointer = null }
    else if (e.key === 'Enter' || e.key === ' ') {
      if (s.drag >= 0) s.drag = -1
      else if (nearest(p) >= 0 && choice('tool') !== 'remove') s.drag = nearest(p)
      else act([...p])
    } else return
    e.preventDefault(); ask()
  })
  canvas.addEventListener('blur', () => { s.pointer = null; s.drag = -1; ask() })
  $('input[name=t]').addEventListener('input', e => { s.t = s.shown = Math.exp(e.target.value); if (s.cue) s.cue = null; ask() })
  $('[name=lines]').addEventListener('change', ask)
  root.addEventListener('click', e => {
    const { preset, do: what } = e.target.dataset
    if (preset) load(preset)
    if (what === 'cue') drop([0, 1].map(() => (2 * Math.random() - 1) * 1.3))
    if (what === 'clear') { own(); s.patterns = []; ask() }
  })
  new ResizeObserver(ask).observe(canvas)
  load(root.dataset.start)
  return { state: () => structuredClone(s) }
}

if (typeof document !== 'undefined') {
  const root = document.getElementById('explorer')
  if (root) window.amExplorer = { energy, weights, effectiveNumber, score, bessel, circleEnergy, ringRadius, denoise, landscape, basins, minima, phase, flow, ...start(root) }
}
