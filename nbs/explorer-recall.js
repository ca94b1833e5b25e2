// The second view: 300 particles come down from noise, under the exact score and under a network.

import { WIDTH, countRecalled, coveredShare, distances } from './explorer-particles.js'
import { exactDenoiser, networkDenoiser, noiseParticles, normals } from './explorer-particles.js'
import { readTensors, reverseSDE, sortedAngles, timeAt, timeGrid } from './explorer-particles.js'
import { uniforms } from './explorer-particles.js'
import { BETWEEN, MEMORY, RECALLED, frames, markPreset, planeOf } from './explorer-parts.js'
import { presetButtons, put, radios } from './explorer-parts.js'

const PARTICLES = 300
const STEPS = 50 // of the walk, as in chapter 14
const FRAMES = 3 // pictures per step; each of them computes a third of the next step
const LAST = FRAMES * (STEPS + 1) // the last picture; after the steps comes the posterior mean
const T_MIN = 1e-5 // where the training of the networks ends
const BINS = 10 // of the histogram, each as wide as recall; the last takes all that is farther

const INDEX = m => // of (14.2), in words
  m > 0.9
    ? 'The network recalls, as the exact score does.'
    : m > 0.1
      ? 'On the way: more samples are at a memory than chance puts there, and others are between.'
      : 'The network has let go of its memories: it is at them no more often than chance.'

const PAGE = sizes => `
  <p class="am-presets" role="group" aria-label="Number of memories">${presetButtons(sizes)}</p>
  <div class="am-plane">
    <canvas tabindex="0" role="application" aria-label="The plane with the memories and 300
      particles. Enter drops the particles, left and right arrows step through the walk, S switches
      between the exact score and the network."></canvas>
    <label class="am-noise">noise <output></output>
      <input type="range" name="step" min="${-LAST}" max="0" step="1"></label>
    <p class="am-row"><button type="button" data-do="drop">drop ${PARTICLES} particles</button>
      <label>seed <input type="number" name="seed" min="0" max="999999" step="1"></label></p>
    <fieldset class="am-row"><legend>Score</legend>
      ${radios('score', { network: 'of the network', exact: 'exact' })}</fieldset>
  </div>
  <div class="am-controls">
    <table class="am-counts"><caption>Recalled, of ${PARTICLES}</caption><tbody>
      <tr><th scope="row">under the exact score</th><td data-count="exact"></td></tr>
      <tr><th scope="row">under the network</th><td data-count="network"></td></tr>
      <tr><th scope="row">by chance (fresh points)</th><td data-count="null"></td></tr>
    </tbody></table>
    <p class="am-fault" role="alert"></p>
    <p class="am-verdict" role="status"></p>
    <figure><svg viewBox="0 0 320 128" role="img"
      aria-label="Histogram of the distance to the nearest memory"></svg>
    <figcaption>Distance of the particles to the nearest memory, along the circle, in mean
      spacings: the green bar is recall. Outline: fresh points of the circle.</figcaption></figure>
    <p class="am-row am-legend"><span><i></i> recalled: within a tenth of the spacing</span>
      <span><i class="am-off"></i> between memories</span></p>
  </div>`

// A walk that keeps its states, so that the reader can go back in time. Frames count from 0, and
// between two states the particles move straight.
function newWalk(denoiser, memories, seed, eps) {
  const uniform = uniforms(seed)
  const start = noiseParticles(memories, PARTICLES, uniform)
  const times = timeGrid(STEPS, eps)
  const coming = reverseSDE(denoiser, start, times, normals(uniform), FRAMES)
  const states = [coming.next().value]
  return {
    known: () => FRAMES * (states.length - 1), // the last frame that can be shown
    work() { // a third of a step
      const { value } = coming.next()
      if (value) states.push(value)
    },
    at(frame) {
      const [k, share] = [Math.floor(frame / FRAMES), (frame % FRAMES) / FRAMES]
      const to = states[Math.min(k + 1, states.length - 1)]
      return share ? states[k].map((v, i) => v + share * (to[i] - v)) : states[k]
    },
    time: frame => timeAt(Math.min(frame / FRAMES / STEPS, 1), eps),
  }
}

const networks = {}
// The network of K memories, fetched once; a failed fetch may be tried again.
export function loadNetwork(K) {
  const fetched = async () => {
    const answer = await fetch(new URL(`network-K${K}.safetensors`, import.meta.url))
    if (!answer.ok) throw new Error(`status ${answer.status}`)
    return readTensors(await answer.arrayBuffer())
  }
  networks[K] ??= fetched().catch(error => {
    delete networks[K]
    throw error
  })
  return networks[K]
}

// A histogram of BINS bars, over the outline of what fresh points give.
function histogram(svg) {
  const [W, H, FLOOR] = [32, 94, 110]
  const from = k => (k ? (k * WIDTH).toFixed(1) : '0') + (k === BINS - 1 ? '+' : '')
  const bar = (_, k) => `<rect x="${k * W + 2}" width="${W - 4}" stroke="currentColor"
    fill="${k ? BETWEEN : RECALLED}"/><text x="${k * W + W / 2}" text-anchor="middle"></text>
    <text x="${k * W}" y="${FLOOR + 14}">${from(k)}</text>`
  svg.innerHTML = `${Array.from({ length: BINS }, bar).join('')}
    <path fill="none" stroke="currentColor" stroke-width="2" stroke-dasharray="4 3"/>`
  return (counts, chance) => {
    const most = Math.max(...counts, ...chance)
    const height = n => (H * n) / most
    svg.querySelectorAll('rect').forEach((rect, k) => {
      rect.setAttribute('y', FLOOR - height(counts[k]))
      rect.setAttribute('height', height(counts[k]))
    })
    svg.querySelectorAll('text[text-anchor]').forEach((text, k) => {
      text.setAttribute('y', FLOOR - 3 - height(counts[k]))
      text.textContent = counts[k] || ''
    })
    const step = (n, k) => `${k * W},${FLOOR - height(n)} h${W}`
    const line = chance.map(step)
    svg.querySelector('path').setAttribute('d', `M${line.join(' L')}`)
  }
}

export function startRecall(root, thousand, sizes) {
  root.innerHTML = PAGE(sizes)
  const $ = selector => root.querySelector(selector)
  const canvas = $('canvas')
  const plane = planeOf(canvas)
  const drawBars = histogram($('svg'))
  const s = {
    K: 0,
    seed: 1,
    score: 'network', // which particles are shown
    step: 0, // the frame of the walk, from 0 (noise) to LAST
    goal: 0, // the frame at which it is to arrive
    moving: false, // frame by frame, even through states that are known
    ready: false, // the network is there, or will not come
    fault: '',
    counts: {}, // of particles that recall, by score
    frame: 0,
  }
  let memories, angles, walks, chance
  const ask = frames(frame)

  // What stands at the start: memories, particles of noise, and as soon as it is there the network.
  async function choose(K, seed) {
    Object.assign(s, { K, seed, step: 0, goal: 0, moving: false, ready: false, fault: '' })
    memories = thousand.subarray(0, 2 * K)
    angles = sortedAngles(memories)
    const covered = Array.from({ length: BINS + 1 }, (_, k) => coveredShare(angles, k * WIDTH))
    covered[BINS] = 1
    chance = covered.slice(1).map((share, k) => PARTICLES * (share - covered[k]))
    const eps = Math.min(T_MIN, (0.1 / K) ** 2) // the last noise follows the spacing (chapter 14)
    const mine = (walks = { exact: newWalk(exactDenoiser(memories), memories, seed, eps) })
    ask()
    try {
      const denoiser = networkDenoiser(await loadNetwork(K))
      mine.network = newWalk(denoiser, memories, seed, T_MIN)
    } catch (error) {
      if (mine !== walks) return
      const why = error.message
      s.fault = `The network of K = ${K} could not be loaded (${why}). The exact score goes on.`
    }
    if (mine !== walks) return // the reader has chosen again meanwhile
    s.ready = true
    ask()
  }

  const shown = () => (walks.network && s.score === 'network' ? 'network' : 'exact')

  // One frame on towards the goal; or at once, where the way there is known and nobody watches it.
  function advance() {
    const all = Object.values(walks)
    for (const walk of all) if (walk.known() < s.step + 2 * FRAMES) walk.work()
    const known = Math.min(...all.map(walk => walk.known()))
    if (!s.moving && s.goal <= known) s.step = s.goal
    else if (s.step < known) s.step++
    s.moving &&= s.step < s.goal
  }

  function frame() {
    if (!canvas.clientWidth) return // the other view is shown
    const began = performance.now()
    if (s.ready && s.step !== s.goal) advance()
    const away = {}
    for (const name in walks) away[name] = distances(walks[name].at(s.step), angles)
    s.counts = { exact: countRecalled(away.exact) }
    if (away.network) s.counts.network = countRecalled(away.network)
    draw(walks[shown()].at(s.step), away[shown()])
    drawHistogram(away[shown()])
    tell()
    if (s.ready && s.step !== s.goal) ask()
    s.ms = performance.now() - began
    s.frame++
  }

  function drawMemories() { // a tick outside the circle for each, and stars where there is room
    plane.ctx.beginPath()
    for (let i = 0; i < memories.length; i += 2) {
      const [x, y] = [memories[i], memories[i + 1]]
      plane.ctx.moveTo(plane.px(1.05 * x), plane.py(1.05 * y))
      plane.ctx.lineTo(plane.px(1.12 * x), plane.py(1.12 * y))
    }
    plane.stroke(MEMORY, s.K > 200 ? 0.5 : 1.5)
    if (s.K > 9) return
    for (let i = 0; i < memories.length; i += 2) plane.star(memories[i], memories[i + 1], 9)
  }
  function drawParticles(x, away, recalled) { // those that recall, or the others
    plane.ctx.beginPath()
    away.forEach((d, i) => {
      if (d <= WIDTH !== recalled) return
      const [u, v] = [plane.px(x[2 * i]), plane.py(x[2 * i + 1])]
      plane.ctx.moveTo(u + 3, v)
      plane.ctx.arc(u, v, 3, 0, 7)
    })
    plane.fill(recalled ? RECALLED : BETWEEN)
  }
  function draw(x, away) {
    plane.clear()
    plane.unitCircle()
    drawMemories()
    for (const recalled of [false, true]) drawParticles(x, away, recalled)
  }

  function drawHistogram(away) {
    const bars = Array(BINS).fill(0)
    for (const d of away) bars[Math.min(BINS - 1, Math.max(0, Math.ceil(d / WIDTH) - 1))]++
    drawBars(bars, chance)
  }

  const text = (selector, words) => {
    if ($(selector).textContent !== words) $(selector).textContent = words
  }
  function tell() {
    const view = walks[shown()]
    const t = view.time(s.step)
    const time = `t = ${t < 0.001 ? t.toExponential(1) : t.toPrecision(3)}`
    text('output', s.step < LAST ? time : `${time}, denoised`)
    $('[name=step]').value = -s.step
    $('[name=step]').setAttribute('aria-valuetext', $('output').textContent)
    if (document.activeElement !== $('[name=seed]')) $('[name=seed]').value = s.seed
    text('[data-count=exact]', String(s.counts.exact))
    text('[data-count=network]', String(s.counts.network ?? (s.ready ? 'not loaded' : 'loading…')))
    text('[data-count=null]', chance[0].toFixed(0))
    text('.am-fault', s.fault)
    const done = s.step === LAST && s.counts.network !== undefined
    const index = (s.counts.network - chance[0]) / (PARTICLES - chance[0])
    put($('.am-verdict'), done ? INDEX(index) : '')
    markPreset(root, s.K)
    $('[value=network]').disabled = s.ready && !walks.network
    $(`[value=${s.ready ? shown() : s.score}]`).checked = true
  }

  function drop() {
    Object.assign(s, { step: 0, goal: LAST, moving: true })
    ask()
  }
  function stepTo(step) {
    Object.assign(s, { goal: Math.max(0, Math.min(LAST, step)), moving: false })
    ask()
  }
  function follow(score) {
    s.score = score
    ask()
  }

  root.addEventListener('click', e => {
    const { preset, do: what } = e.target.dataset
    if (preset) choose(Number(preset), s.seed)
    if (what === 'drop' || e.target === canvas) drop()
  })
  root.addEventListener('change', e => {
    if (e.target.name === 'am-score') follow(e.target.value)
    if (e.target.name === 'seed') choose(s.K, Math.max(0, Math.floor(e.target.value) || 0))
  })
  $('[name=step]').addEventListener('input', e => stepTo(-e.target.value))
  canvas.addEventListener('keydown', e => {
    const arrow = { ArrowLeft: 1, ArrowRight: -1 }[e.key] // to the left the noise falls
    if (arrow) stepTo(s.step + arrow * (e.shiftKey ? 10 : 1))
    else if (e.key === 'Enter' || e.key === ' ') drop()
    else if (e.key === 's') follow(shown() === 'exact' ? 'network' : 'exact')
    else return
    e.preventDefault()
  })
  new ResizeObserver(ask).observe(canvas)

  const particles = () => [...walks[shown()].at(s.step)]
  const state = () => ({ ...s, shown: shown(), chance: chance[0], particles: particles() })
  const show = () => (walks ? ask() : choose(sizes[0], s.seed))
  return { show, state, choose }
}
