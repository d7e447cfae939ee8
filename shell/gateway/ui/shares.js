// Tenants' shares of service over two minutes: the largest have colours of their own, and keep them.
import { state } from "./state.js";
import { color, drawLegend, open } from "./draw.js";

const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8f00"], SECONDS = 120;
const SMOOTH = 4; // looks: one alone is a step or two
const places = new Map(); // of PALETTE, by tenant
const canvas = document.getElementById("shares");
let drawn = null, width = 0, height = 0;

export const measureShares = () => { width = canvas.clientWidth; height = canvas.clientHeight; };

function placeOf(sums) {
  const largest = [...sums].sort(([, a], [, b]) => b - a).slice(0, PALETTE.length).map(([tenant]) => tenant);
  for (const tenant of [...places.keys()]) if (!largest.includes(tenant)) places.delete(tenant);
  for (const tenant of largest)
    if (!places.has(tenant)) places.set(tenant, PALETTE.findIndex((_, place) => ![...places.values()].includes(place)));
  return [...places].sort(([, a], [, b]) => a - b);
}

export function drawShares(isAnew) {
  const last = state.shares.at(-1);
  if (drawn === last && !isAnew) return;
  drawn = last;
  const pen = open(canvas, width, height), sums = new Map();
  for (const { parts } of state.shares) for (const [tenant, part] of parts) sums.set(tenant, (sums.get(tenant) ?? 0) + part);
  const named = placeOf(sums), now = last?.at ?? 0, x = (at) => width * (1 - (now - at) / SECONDS);
  state.shares.forEach(({ at, seconds }, index) => {
    const parts = new Map();
    for (const look of state.shares.slice(Math.max(0, index - SMOOTH + 1), index + 1))
      for (const [tenant, part] of look.parts) parts.set(tenant, (parts.get(tenant) ?? 0) + part);
    const total = [...parts.values()].reduce((sum, part) => sum + part, 0);
    if (!total) return;
    const left = Math.max(0, Math.floor(x(at - seconds))), wide = Math.ceil(x(at)) - left; // whole pixels: no seams
    let top = height;
    for (const [tenant, place] of named) {
      const tall = height * (parts.get(tenant) ?? 0) / total;
      top -= tall; pen.fillStyle = PALETTE[place]; pen.fillRect(left, top, wide, tall);
    }
    pen.fillStyle = color("edge"); pen.fillRect(left, 0, wide, top > 0.5 ? top : 0);
  });
  const total = [...sums.values()].reduce((sum, part) => sum + part, 0), percent = (part) => `${total ? Math.round(100 * part / total) : 0} %`;
  const weightOf = (tenant) => state.served.get(tenant)?.weight ?? 1, areEqual = new Set(named.map(([tenant]) => weightOf(tenant))).size < 2;
  const entries = named.map(([tenant, place]) => [PALETTE[place], `${tenant} ${percent(sums.get(tenant))}${areEqual ? "" : `, weight ${weightOf(tenant)}`}`]);
  const rest = total - named.reduce((sum, [tenant]) => sum + sums.get(tenant), 0), num = sums.size - named.length;
  if (num > 0) entries.push([color("edge"), `${num} others ${percent(rest)}`]);
  canvas.setAttribute("aria-label", entries.length ? entries.map(([, text]) => text).join(", ") : "Nobody was served");
  drawLegend(document.getElementById("share-legend"), entries.length ? entries : [["transparent", "Nobody was served."]]);
}
