// Pictures: sparklines, frame maps, shares over time. All on canvases, with a legend in words beside them.
import { state } from "./state.js";

const KINDS = [["private", "KV of one process"], ["shared", "Shared prefix"], ["cached", "Kept prefix"], ["ahead", "Mapped ahead"], ["moving", "Moving"], ["free", "Free"]];
const TENANTS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8f00", "#7d8790"];
export const bytes = (n) => n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(1)} GiB` : n >= 2 ** 20 ? `${(n / 2 ** 20).toFixed(1)} MiB` : n ? `${Math.ceil(n / 1024)} KiB` : "–";
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function open(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0); pen.clearRect(0, 0, width, height);
  return pen;
}

export function spark(canvas, points) {
  const key = points.join();
  if (canvas.key === key) return;
  canvas.key = key;
  const pen = open(canvas, 90, 20), most = Math.max(1, ...points);
  pen.strokeStyle = color("accent"); pen.lineWidth = 1.25; pen.beginPath();
  points.forEach((value, index) => pen.lineTo(90 - (points.length - 1 - index) * 0.75, 18.5 - 16 * value / most));
  pen.stroke();
}

function legend(list, entries) {
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

export function drawMemory() {
  const devices = document.getElementById("devices");
  state.memory.forEach((device, index) => {
    let box = devices.children[index];
    if (!box) {
      box = document.createElement("div");
      const canvas = document.createElement("canvas"), list = document.createElement("ul"), title = document.createElement("p");
      canvas.className = "map"; canvas.setAttribute("role", "img"); list.className = "legend"; title.className = "quiet";
      box.append(title, canvas, list); devices.append(box);
    }
    const [title, canvas, list] = box.children;
    const pool = device.num_frames * device.frame_bytes;
    title.textContent = `${device.device} · ${device.model} · pool ${bytes(pool)}, ${device.frames_per_cell === 1 ? "a square is a frame" : `a square is ${device.frames_per_cell} frames`} of ${bytes(device.frame_bytes)}`;
    const width = box.clientWidth, cells = device.runs.reduce((sum, [, count]) => sum + count, 0);
    const columns = Math.max(16, Math.round(Math.sqrt(cells * 2))), size = width / columns, height = size * Math.ceil(cells / columns);
    canvas.style.height = `${height}px`;
    const pen = open(canvas, width, height);
    let at = 0;
    for (const [kind, count] of device.runs) {
      pen.fillStyle = color(kind);
      for (let end = at + count; at < end; at++) pen.fillRect((at % columns) * size, Math.floor(at / columns) * size, size - 1, size - 1);
    }
    const entries = KINDS.map(([kind, text]) => [color(kind), `${text} ${bytes(device.num_by_kind[kind] * device.frame_bytes)}`]);
    if (device.weights) entries.push([color("weights"), `Weights ${bytes(device.weights)}, beside the pool`]);
    canvas.setAttribute("aria-label", entries.map(([, text]) => text).join(", "));
    legend(list, entries);
  });
  while (devices.children.length > state.memory.length) devices.lastChild.remove();
}

export function drawShares() {
  const canvas = document.getElementById("shares"), width = canvas.clientWidth, height = 140, pen = open(canvas, width, height);
  const names = [...new Set(state.shares.flatMap((look) => look.map(([tenant]) => tenant)))].sort();
  const sums = new Map(), step = width / 240, offset = 240 - state.shares.length;
  let recent = [];
  state.shares.forEach((look, index) => {
    recent = [...recent.slice(-7), look]; // over four seconds: a look alone is a step or two
    const parts = new Map();
    for (const each of recent) for (const [tenant, part] of each) parts.set(tenant, (parts.get(tenant) ?? 0) + part);
    for (const [tenant, part] of look) sums.set(tenant, (sums.get(tenant) ?? 0) + part);
    const total = [...parts.values()].reduce((sum, part) => sum + part, 0);
    let top = height;
    if (total) for (const [place, tenant] of names.entries()) {
      const tall = height * (parts.get(tenant) ?? 0) / total;
      top -= tall; pen.fillStyle = TENANTS[place % TENANTS.length];
      pen.fillRect((offset + index) * step, top, step + 0.5, tall);
    }
  });
  const total = [...sums.values()].reduce((sum, part) => sum + part, 0);
  legend(document.getElementById("share-legend"), names.map((tenant, place) => [TENANTS[place % TENANTS.length], `${tenant} ${total ? Math.round(100 * (sums.get(tenant) ?? 0) / total) : 0} %`]));
}
