// The first view: the exact energy landscape of a few memories, or of a full circle, drawn live.

import { MIN_BARRIER, TOP, bessel, denoise, effectiveNumber, flow } from './explorer-exact.js'
import { landscape, lowest, minima, noisy, phase, ringRadius, weights } from './explorer-exact.js'
import { normals } from './explorer-particles.js'
import { BOUND, MEMORY, RECALLED, frames, markPreset, planeOf } from './explorer-parts.js'
import { presetButtons, put, radios } from './explorer-parts.js'

const N = 161 // points of the map along an axis
const CAP = 8 // nats at which its colours end
const T_MIN = 0.002 // the least noise of the slider
const REACH = 24 // pixels within which a memory is picked
const MOST = 60 // memories that a reader may place

const INFERNO =
  '000004 0d0829 280b53 470b6a 65156e 82206c 9f2a63 bc3754 d44842 e8602d f57d15 fc9f07 fac228 ' +
  'f3e55d fcffa4'
const PALETTE = Uint32Array.from({ length: 256 }, (_, i) => {
  const colours = INFERNO.split(' ')
  const p = (i / 255) * (colours.length - 1)
  const k = Math.min(p | 0, colours.length - 2)
  const mix = c => {
    const [a, b] = [k, k + 1].map(q => parseInt(colours[q].slice(2 * c, 2 * c + 2), 16))
    return Math.round(a + (p - k) * (b - a))
  }
  return 0xff000000 | (mix(2) << 16) | (mix(1) << 8) | mix(0)
})

const STORY = {
  memories: 'Most wells hold one memory each: a cue recalls it.',
  mixtures: 'Wells shared by several memories: a cue recalls a mixture that nobody stored.',
  'one valley': `One valley that many memories share, without a hill of ${MIN_BARRIER} nats
    inside: the cue keeps what they have in common.`,
  circle: `One valley around a hill: the cue keeps what the memories have in common, their
    distance from the centre.`,
}

const PAGE = names => `
  <p class="am-presets" role="group" aria-label="Presets">${presetButtons(names)}
    ${presetButtons(['circle'], name => name)}</p>
  <div class="am-plane">
    <canvas tabindex="0" role="application" aria-label="The plane with the memories and their
      energy landscape. Arrow keys move the pointer, M jumps to the next memory, Enter picks a
      memory up, puts it down or acts on the plane, Delete removes it."></canvas>
    <label class="am-noise">noise <output></output>
      <input type="range" name="t" min="${Math.log(T_MIN)}" max="0" step="any"></label>
    <div class="am-scale" aria-hidden="true">
      <span>0</span><i></i><span>${CAP} nats above the minimum</span></div>
  </div>
  <div class="am-controls">
    <p class="am-phase" role="status"></p>
    <ul class="am-minima"></ul>
    <fieldset><legend>A click on the plane</legend>
      ${radios('tool', { cue: 'drops a cue', add: 'adds a memory', remove: 'removes a memory' })}
    </fieldset>
    <fieldset><legend>The cue follows</legend>${radios('motion', {
      hopfield: 'the Hopfield update, at this t',
      flow: 'the flow, as t falls',
      noise: 'the reverse SDE, as t falls',
    })}</fieldset>
    <p class="am-row"><button type="button" data-do="cue">drop a cue anywhere</button>
      <button type="button" data-do="clear">remove all</button>
      <label><input type="checkbox" name="lines" checked> gradient lines</label></p>
  </div>`

export function startLandscape(root, presets, first) {
  root.innerHTML = PAGE(Object.keys(presets))
  const $ = selector => root.querySelector(selector)
  const canvas = $('canvas')
  const plane = planeOf(canvas)
  const { ctx, px, py, dot } = plane
  const image = Object.assign(document.createElement('canvas'), { width: N, height: N })
  const pixels = image.getContext('2d').createImageData(N, N)
  const colours = new Uint32Array(pixels.data.buffer)
  const normal = normals(Math.random)
  const s = {
    patterns: [], // null: the full circle
    t: 0.15, // of the slider
    shown: 0.15, // of the picture: it falls while a cue walks
    cue: null,
    drag: -1, // number of the memory that is held
    pointer: null, // of the keyboard
    minima: [],
    phase: '',
    frame: 0,
  }
  let computed, E
  const ask = frames(frame)
  const choice = name => $(`input[name=am-${name}]:checked`).value

  function compute() {
    const key = JSON.stringify([s.patterns, s.shown])
    if (key === computed) return
    computed = key
    E = s.patterns && !s.patterns.length ? null : landscape(s.shown, s.patterns, N, BOUND)
    s.minima = E ? minima(E, s.shown, s.patterns, N, BOUND) : []
    s.phase = E ? phase(s.minima, E, N) : ''
  }

  // The picture

  function map() {
    const low = lowest(E)
    for (let j = 0, k = 0; j < N; j++)
      for (let i = 0; i < N; i++, k++) {
        const colour = Math.min(255, ((E[k] - low) / CAP) * 255) | 0
        colours[(N - 1 - j) * N + i] = PALETTE[colour]
      }
    image.getContext('2d').putImageData(pixels, 0, 0)
    const cell = plane.size() / (N - 1) // grid points lie at the middles of the image's pixels
    ctx.drawImage(image, -cell / 2, -cell / 2, plane.size() + cell, plane.size() + cell)
  }
  function gradientLine(p, length) { // from a point a short way down the energy
    ctx.beginPath()
    ctx.moveTo(px(p[0]), py(p[1]))
    let steps = 0
    for (; steps < 7; steps++) {
      const m = denoise(p, s.shown, s.patterns)
      const d = Math.hypot(m[0] - p[0], m[1] - p[1])
      if (d < length) break
      p = p.map((v, i) => v + (length * (m[i] - v)) / d)
      ctx.lineTo(px(p[0]), py(p[1]))
    }
    if (!steps) return
    plane.stroke('rgba(165,165,175,0.8)', 1)
    dot(p[0], p[1], 1.6, 'rgba(165,165,175,0.8)', null)
  }
  function gradientLines() {
    const M = plane.size() < 420 ? 11 : 15
    const stride = (2 * BOUND) / M
    const at = k => (k + 0.5) * stride - BOUND
    for (let q = 0; q < M * M; q++) gradientLine([at(q % M), at((q / M) | 0)], stride / 10)
  }
  function minimum({ x, y, kind }) {
    if (kind === 'spurious') plane.diamond(x, y, 13)
    else if (kind === 'memory') {
      dot(x, y, 12, null, '#000', 5)
      dot(x, y, 12, null, RECALLED, 2.5)
    } else dot(x, y, kind === 'valley' ? 6 : 3, null, '#fff', 1.5)
  }
  function trail(points) {
    ctx.beginPath()
    for (const [x, y] of points) ctx.lineTo(px(x), py(y))
    plane.stroke('#000', 4)
    plane.stroke('#fff', 2)
    dot(...points[0], 4, '#000', '#fff', 1.5)
    dot(...points.at(-1), 6, '#fff', '#000', 1.5)
  }
  function cross([x, y]) {
    ctx.beginPath()
    for (const [a, b] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      ctx.moveTo(px(x) + 5 * a, py(y) + 5 * b)
      ctx.lineTo(px(x) + 14 * a, py(y) + 14 * b)
    }
    plane.stroke(s.drag < 0 ? '#fff' : MEMORY, 2)
  }
  function draw() {
    plane.clear()
    if (E) map()
    plane.unitCircle()
    if (E && $('[name=lines]').checked) gradientLines()
    for (const [x, y] of s.patterns || []) plane.star(x, y, 9)
    s.minima.forEach(minimum)
    if (s.cue) trail(s.cue.trail)
    if (s.pointer) cross(s.pointer)
  }

  // The words beside it

  function ofWell({ kind, n_eff, barrier }, i) {
    const above = i ? `barrier above ${TOP} nats` : 'the deepest'
    const climb = isFinite(barrier) ? `barrier ${barrier.toFixed(2)} nats` : above
    return `<li class="am-${kind}">${kind}: N<sub>eff</sub> = ${n_eff.toFixed(2)}, ${climb}</li>`
  }
  function ofCircle() {
    const R = ringRadius(s.shown)
    const share = bessel(R / s.shown)[0] ** 2 / bessel((2 * R) / s.shown)[0]
    const valley = R
      ? `the valley is a circle of radius ${R.toFixed(3)}`
      : 'the valley has closed to one minimum, at the origin'
    return `<li>${valley}: N<sub>eff</sub> is ${(100 * share).toFixed(0)}% of all memories</li>`
  }
  function ofCue({ trail, t }) {
    const n = effectiveNumber(weights(...trail.at(-1), t, s.patterns))
    const what = n < 1.5 ? 'one memory' : 'a mixture'
    return `<li>the cue ended with N<sub>eff</sub> = ${n.toFixed(2)}: ${what}</li>`
  }
  function list() {
    const wells = s.minima.filter(m => m.kind !== 'ripple')
    const ripples = s.minima.length - wells.length
    const shallow = `${ripples} shallower than ${MIN_BARRIER} nats: ripples`
    return [
      ...wells.slice(0, 12).map(ofWell),
      wells.length > 12 ? `<li>and ${wells.length - 12} more</li>` : '',
      ripples ? `<li class="am-ripple">${shallow}</li>` : '',
      s.patterns ? '' : ofCircle(),
      s.cue?.done && s.patterns?.length ? ofCue(s.cue) : '',
    ].join('')
  }
  function tell() {
    const beta = 1 / (2 * s.shown)
    const words = `t = ${s.shown.toPrecision(3)}, β = 1/(2σ²t) = ${beta.toPrecision(3)}`
    $('output').textContent = words
    $('[name=t]').value = Math.log(s.shown)
    $('[name=t]').setAttribute('aria-valuetext', words)
    const empty = 'Add a memory: choose it below and click on the plane.'
    put($('.am-phase'), s.phase ? `<b>${s.phase}</b> ${STORY[s.phase]}` : empty)
    put($('.am-minima'), list())
    markPreset(root, s.preset)
  }

  // The cue

  function advance() { // by one step; true while it moves
    const c = s.cue
    const at = c.trail.at(-1)
    if (c.motion === 'hopfield') {
      c.t = s.t
      if (++c.wait % 6) return true
      const next = denoise(at, s.t, s.patterns)
      c.trail.push(next)
      return Math.hypot(next[0] - at[0], next[1] - at[1]) > 1e-4 && c.trail.length < 400
    }
    if (c.t <= T_MIN) return ++c.wait < 40 // stay a moment
    const next = Math.max(T_MIN, c.t * Math.exp(Math.log(T_MIN / s.t) / c.steps))
    c.trail.push((c.motion === 'flow' ? flow : noisy)(at, c.t, next, s.patterns, normal))
    c.t = s.shown = next
    return true
  }
  function frame() {
    if (!canvas.clientWidth) return // the other view is shown
    const began = performance.now()
    if (s.cue && !s.cue.done) {
      if (!advance()) {
        s.cue.done = true
        s.shown = s.t
      }
      ask()
    }
    compute()
    draw()
    tell()
    s.ms = performance.now() - began
    s.frame++
  }
  function drop(p) {
    s.shown = s.t
    const motion = choice('motion')
    if (!s.patterns || s.patterns.length)
      s.cue = { trail: [p], t: s.t, motion, wait: 0, steps: 150, done: false }
    ask()
  }

  // The reader's hands

  function load(name) {
    Object.assign(s, { preset: name, cue: null, drag: -1, shown: s.t })
    s.patterns = name === 'circle' ? null : presets[name].map(p => [...p])
    ask()
  }
  function own() { // from here on the memories are the reader's own
    s.patterns ??= []
    Object.assign(s, { preset: '', cue: null, shown: s.t })
  }
  function nearest([x, y]) {
    const away = (s.patterns || []).map(([a, b]) => Math.hypot(px(a) - px(x), py(b) - py(y)))
    const k = away.indexOf(Math.min(...away))
    return away[k] < REACH ? k : -1
  }
  const inside = p => p.map(v => Math.max(-BOUND, Math.min(BOUND, v)))
  function remove(k) {
    if (k < 0) return
    own()
    s.patterns.splice(k, 1)
  }
  function act(p) {
    const tool = choice('tool')
    if (tool === 'cue') drop(p)
    else if (tool === 'remove') remove(nearest(p))
    else if (!s.patterns || s.patterns.length < MOST) {
      own()
      s.patterns.push(p)
    }
  }

  canvas.addEventListener('pointerdown', e => {
    const p = plane.where(e)
    const k = nearest(p)
    s.pointer = null
    if (k >= 0 && choice('tool') !== 'remove') {
      own()
      s.drag = k
      canvas.setPointerCapture(e.pointerId)
    } else act(p)
    ask()
  })
  canvas.addEventListener('pointermove', e => {
    if (s.drag < 0 || s.pointer) return
    s.patterns[s.drag] = inside(plane.where(e))
    ask()
  })
  const letGo = () => (s.drag = -1)
  canvas.addEventListener('pointerup', letGo)
  canvas.addEventListener('pointercancel', letGo)
  canvas.addEventListener('blur', () => {
    s.pointer = null
    letGo()
    ask()
  })

  function move(dx, dy) {
    const p = s.pointer || [0, 0]
    s.pointer = inside([p[0] + dx, p[1] + dy])
    if (s.drag < 0) return
    own()
    s.patterns[s.drag] = s.pointer
  }
  function jump() {
    if (!s.patterns?.length) return
    letGo()
    s.jump = ((s.jump ?? -1) + 1) % s.patterns.length
    s.pointer = [...s.patterns[s.jump]]
  }
  function press(p) {
    if (s.drag >= 0) letGo()
    else if (nearest(p) >= 0 && choice('tool') !== 'remove') s.drag = nearest(p)
    else act([...p])
  }
  function erase(p) {
    letGo()
    remove(nearest(p))
  }
  function escape() {
    letGo()
    s.pointer = null
  }
  canvas.addEventListener('keydown', e => {
    const [p, step] = [s.pointer || [0, 0], e.shiftKey ? 0.01 : 0.05]
    const keys = {
      ArrowLeft: () => move(-step, 0),
      ArrowRight: () => move(step, 0),
      ArrowUp: () => move(0, step),
      ArrowDown: () => move(0, -step),
      m: jump,
      Delete: () => erase(p),
      Backspace: () => erase(p),
      Escape: escape,
      Enter: () => press(p),
      ' ': () => press(p),
    }
    if (!Object.hasOwn(keys, e.key)) return
    keys[e.key]()
    e.preventDefault()
    ask()
  })
  $('[name=t]').addEventListener('input', e => {
    s.t = s.shown = Math.exp(e.target.value)
    s.cue = null
    ask()
  })
  $('[name=lines]').addEventListener('change', ask)
  root.addEventListener('click', e => {
    const { preset, do: what } = e.target.dataset
    if (preset) load(preset)
    if (what === 'cue') drop([0, 1].map(() => (2 * Math.random() - 1) * 1.3))
    if (what === 'clear') {
      own()
      s.patterns = []
      ask()
    }
  })
  new ResizeObserver(ask).observe(canvas)
  load(first)
  return { show: ask, state: () => structuredClone(s) }
}
