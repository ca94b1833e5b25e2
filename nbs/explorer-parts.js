// What both views of the explorer share: a square canvas over the plane, marks, radio buttons.

export const BOUND = 1.5 // the plane reaches from -BOUND to BOUND
export const RECALLED = '#2bd9a5' // at a memory
export const BETWEEN = '#F0E442' // where nobody stored anything
export const MEMORY = '#56B4E9'

export function radios(name, options) {
  const entries = Object.entries(options)
  const radio = ([value, text], i) =>
    `<label><input type="radio" name="am-${name}" value="${value}"${i ? '' : ' checked'}>
     ${text}</label>`
  return entries.map(radio).join('')
}

export const presetButtons = (names, title = name => `K = ${Number(name).toLocaleString('en')}`) =>
  names
    .map(name => `<button type="button" data-preset="${name}">${title(name)}</button>`)
    .join(' ')

export function markPreset(root, chosen) {
  for (const button of root.querySelectorAll('[data-preset]'))
    button.setAttribute('aria-pressed', button.dataset.preset === String(chosen))
}

export function put(element, html) {
  if (element.innerHTML !== html) element.innerHTML = html
}

// A function that asks for one more frame; asking twice before it comes is asking once.
export function frames(draw) {
  let asked = false
  return () => {
    if (asked) return
    asked = true
    requestAnimationFrame(() => {
      asked = false
      draw()
    })
  }
}

// The canvas as a window on the plane: pixels of points, points of pixels, and marks at points.
export function planeOf(canvas) {
  const ctx = canvas.getContext('2d')
  const size = () => canvas.clientWidth
  const px = x => ((x / BOUND + 1) / 2) * size()
  const py = y => ((1 - y / BOUND) / 2) * size()

  function clear() { // to the sharpness of the screen
    const ratio = window.devicePixelRatio || 1
    const sharp = Math.round(size() * ratio)
    if (canvas.width !== sharp) canvas.width = canvas.height = sharp
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0)
    ctx.fillStyle = '#000004'
    ctx.fillRect(0, 0, size(), size())
  }
  function stroke(colour, width) {
    ctx.strokeStyle = colour
    ctx.lineWidth = width
    ctx.stroke()
  }
  function fill(colour) {
    ctx.fillStyle = colour
    ctx.fill()
  }
  function dot(x, y, r, colour, edge = '#000', width = 1) {
    ctx.beginPath()
    ctx.arc(px(x), py(y), r, 0, 7)
    if (colour) fill(colour)
    if (edge) stroke(edge, width)
  }
  function star(x, y, r) {
    ctx.beginPath()
    for (let k = 0; k < 10; k++) {
      const [reach, angle] = [r * (k % 2 ? 0.42 : 1), (k * Math.PI) / 5]
      ctx.lineTo(px(x) + reach * Math.sin(angle), py(y) - reach * Math.cos(angle))
    }
    ctx.closePath()
    fill(MEMORY)
    stroke('#000', 1)
  }
  function diamond(x, y, r) {
    ctx.beginPath()
    ctx.moveTo(px(x), py(y) - r)
    ctx.lineTo(px(x) + r, py(y))
    ctx.lineTo(px(x), py(y) + r)
    ctx.lineTo(px(x) - r, py(y))
    ctx.closePath()
    stroke('#000', 5)
    stroke(BETWEEN, 2.5)
  }
  function unitCircle() {
    ctx.setLineDash([5, 5])
    dot(0, 0, size() / 2 / BOUND, null, 'rgba(255,255,255,0.7)')
    ctx.setLineDash([])
  }
  function where(event) {
    const box = canvas.getBoundingClientRect()
    const [u, v] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
    return [(2 * u - 1) * BOUND, (1 - 2 * v) * BOUND]
  }
  return { ctx, size, px, py, clear, stroke, fill, dot, star, diamond, unitCircle, where }
}
