// The explorer: two views of the same memories, and the switch between them.

import * as exact from './explorer-exact.js'
import { startLandscape } from './explorer-landscape.js'
import * as particles from './explorer-particles.js'
import { radios } from './explorer-parts.js'
import { loadNetwork, startRecall } from './explorer-recall.js'

// A thousand memories, x and y in float32, as base64. The first K of them are the K memories.
function readMemories(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0))
  return Float64Array.from(new Float32Array(bytes.buffer))
}

function start(root) {
  const { memories, presets, networks, first } = root.dataset
  const thousand = readMemories(memories)
  const pair = (_, k) => [thousand[2 * k], thousand[2 * k + 1]]
  const few = K => Array.from({ length: K }, pair)
  const names = { landscape: 'the exact landscape', recall: 'what a trained network recalls' }
  root.innerHTML = `<fieldset class="am-views am-row"><legend>View</legend>${radios('view', names)}
    </fieldset><section class="am-landscape"></section><section class="am-recall" hidden></section>`
  const [landscape, recall] = root.querySelectorAll('section')
  const own = Object.fromEntries(presets.split(' ').map(K => [K, few(Number(K))]))
  const views = {
    landscape: startLandscape(landscape, own, first),
    recall: startRecall(recall, thousand, networks.split(' ').map(Number)),
  }
  root.querySelector('.am-views').addEventListener('change', e => {
    landscape.hidden = e.target.value !== 'landscape'
    recall.hidden = e.target.value !== 'recall'
    views[e.target.value].show()
  })
  return { few, state: views.landscape.state, recall: views.recall }
}

const root = document.getElementById('explorer')
if (root) window.amExplorer = { ...exact, ...particles, loadNetwork, ...start(root) }
