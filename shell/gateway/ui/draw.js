// What pictures have in common: a sharp canvas, colours of the theme, legends in words, sizes and times.
let colors = new Map();
export const forgetColors = () => { colors = new Map(); }; // the theme has changed

export function color(name) {
  if (!colors.has(name)) colors.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colors.get(name);
}

export function open(canvas, width, height) {
  const scale = devicePixelRatio || 1, wide = Math.round(width * scale), high = Math.round(height * scale);
  if (canvas.width !== wide || canvas.height !== high) { canvas.width = wide; canvas.height = high; }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

// A line through `values` at `times`, `top` pixels below the pen's edge; the right end is now, the left one `seconds` ago.
export function drawLine(pen, top, width, height, times, values, seconds) {
  const now = times.at(-1), first = times.length - values.length, foot = top + height - 1.5;
  let most = 1;
  for (const value of values) if (value > most) most = value;
  pen.fillStyle = color("line"); pen.fillRect(0, top + height - 1, width, 1); // the ground, where nothing is known yet, too
  pen.strokeStyle = color("accent"); pen.lineWidth = 1.25; pen.lineJoin = "round";
  pen.beginPath();
  values.forEach((value, index) => pen.lineTo(width - 1 - (now - times[first + index]) * (width - 2) / seconds, foot - (height - 3) * value / most));
  pen.stroke();
  if (!values.length) return;
  pen.lineTo(width - 1, foot); pen.lineTo(width - 1 - (now - times[first]) * (width - 2) / seconds, foot);
  pen.globalAlpha = 0.12; pen.fillStyle = color("accent"); pen.fill(); pen.globalAlpha = 1;
}

export function drawLegend(list, entries) {
  const key = JSON.stringify(entries);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...entries.map(([fill, text]) => {
    const item = document.createElement("li"), swatch = document.createElement("span");
    swatch.className = "swatch"; swatch.style.background = fill;
    item.append(swatch, text);
    return item;
  }));
}

// Write a text over another. The node stays: a new one in each of hundreds of cells is dear.
export function put(element, text) {
  const node = element.firstChild;
  if (!node || !text) { if (node || text) element.textContent = text; } else if (node.data !== text) node.data = text;
}
// What others wrote, on one line: marks that turn the direction of writing would turn what stands beside it, too.
export const oneWay = (text) => String(text).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
export const bytes = (n) => n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(1)} GiB` : n >= 2 ** 20 ? `${(n / 2 ** 20).toFixed(1)} MiB` : n >= 1024 ? `${Math.ceil(n / 1024)} KiB` : n ? `${n} B` : "–";
export const seconds = (value) => value < 0.9995 ? `${Math.round(value * 1000)} ms` : value < 99.95 ? `${value.toFixed(1)} s` : value < 5400 ? `${Math.round(value / 60)} min` : value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
// Several times in one unit, that of the longest.
export function secondsOfAll(values) {
  const isShort = Math.max(...values) < 0.9995;
  const show = (value) => isShort ? (value < 0.00995 ? (value * 1000).toFixed(1) : Math.round(value * 1000)) : value < 0.095 ? value.toFixed(2) : value < 99.5 ? value.toFixed(1) : Math.round(value);
  return `${values.map(show).join(" / ")} ${isShort ? "ms" : "s"}`;
}
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const number = (value) => value < 999.5 ? String(Math.round(value)) : plain.format(value).replaceAll(",", "\u2009");
