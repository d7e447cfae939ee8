// Device memory: for each device what its frames are for, as a map, and what lies below and beside the pool.
import { state } from "./state.js";
import { bytes as sizeOf, color, drawLegend, open, put } from "./draw.js";

const KINDS = { p: ["private", "KV of one process"], s: ["shared", "Shared prefix"], c: ["cached", "Kept prefix"], a: ["ahead", "Mapped ahead"], m: ["moving", "Moving"], f: ["free", "Free"] };
const bytes = (n) => n ? sizeOf(n) : "0"; // in a table nothing is a dash, in a sentence it is said
const HEIGHT = 180, LEAST_HEIGHT = 40, CELL = 22; // pixels: of all maps together, of one, and most of a cell
const boxes = [];
let width = 0; // of a map

function makeBox() {
  const box = document.createElement("div"), title = document.createElement("p"), canvas = document.createElement("canvas"), list = document.createElement("ul");
  box.className = "device"; title.className = "quiet"; canvas.className = "map"; canvas.setAttribute("role", "img"); list.className = "legend";
  box.append(title, canvas, list);
  return { box, title, canvas, list, drawn: null };
}

function layOut(cells, width, height) {
  let size = Math.min(CELL, Math.sqrt(width * height / cells));
  while (Math.ceil(cells / Math.floor(width / size)) * size > height) size *= 0.98; // at 0 cells a row it goes on
  return { size, columns: Math.floor(width / size) };
}

function drawMap(canvas, device, height) {
  const runs = [...device.cells.matchAll(/(\d*)([a-z])/g)].map(([, count, kind]) => [kind, Number(count || 1)]);
  const cells = runs.reduce((sum, [, count]) => sum + count, 0);
  if (!width || !cells) return;
  const { size, columns } = layOut(cells, width, height), tall = Math.ceil(cells / columns) * size, gap = size > 5 ? 1 : 0.5;
  canvas.style.height = `${tall}px`;
  const pen = open(canvas, width, tall);
  let at = 0;
  for (const [kind, count] of runs) {
    pen.fillStyle = color(KINDS[kind][0]);
    for (let end = at + count; at < end; at++) pen.fillRect((at % columns) * size, Math.floor(at / columns) * size, size - gap, size - gap);
  }
}

function describe(device) {
  const entries = Object.values(KINDS).map(([kind, text]) => [color(kind), `${text} ${bytes(device.num_by_kind[kind] * device.frame_bytes)}`]);
  if (device.weights) entries.push([color("weights"), `Weights ${bytes(device.weights)}, beside the pool`]);
  const tiers = (device.tiers ?? []).filter(([, all]) => all);
  for (const [name, all, free] of tiers) entries.push([color("edge"), `Swapped to ${name} ${bytes(all - free)} of ${bytes(all)}`]);
  if (!tiers.length) entries.push(["transparent", "No swap: who loses memory is computed again"]);
  return entries;
}

function titleOf(device) {
  const parts = [device.device];
  if (device.state !== "ready") parts.push(device.state, ...(device.message ? [device.message] : []));
  if (!device.cells) return [...parts, ...(device.state === "ready" ? ["no model"] : [])].join(" · ");
  parts.push(device.model, `pool ${bytes(device.num_frames * device.frame_bytes)}`);
  parts.push(device.frames_per_cell === 1 ? `a square is a frame of ${bytes(device.frame_bytes)}` : `a square is ${device.frames_per_cell} frames of ${bytes(device.frame_bytes)}`);
  if (device.asked) parts.push(`${Math.round(100 * device.found / device.asked)} % of prompts found in memory`);
  return parts.join(" · ");
}

export const measureMemory = () => { width = document.getElementById("devices").clientWidth; };

export function drawMemory(isAnew) {
  const parent = document.getElementById("devices"), height = Math.max(LEAST_HEIGHT, HEIGHT / Math.max(1, state.devices.length));
  if (state.devices.length && !boxes.length) parent.replaceChildren();
  state.devices.forEach((device, index) => {
    const made = (boxes[index] ??= makeBox());
    if (!made.box.isConnected) parent.append(made.box);
    if (made.drawn === device && !isAnew) return;
    made.drawn = device;
    put(made.title, titleOf(device));
    made.title.classList.toggle("lost", device.state === "failed" || device.state === "restarting");
    made.title.classList.toggle("notable", !["ready", "empty"].includes(device.state));
    made.canvas.hidden = made.list.hidden = !device.cells;
    if (!device.cells) return;
    drawMap(made.canvas, device, height);
    const entries = describe(device);
    made.canvas.setAttribute("aria-label", `${device.device}: ${entries.map(([, text]) => text).join(", ")}`);
    drawLegend(made.list, entries);
  });
  for (const made of boxes.splice(state.devices.length)) made.box.remove();
}
