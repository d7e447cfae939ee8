// The grid of processes. The grid itself has the focus and says which row is active: rows come and go, it stays.
// Only the rows in sight exist, and the line at a place is written over when another process comes to stand there.
import { state, phaseOf } from "./state.js";
import { bytes, drawLine, number, oneWay, open, put } from "./draw.js";
import { askFirst, openProcess } from "./process.js";

const HOLD_MILLISECONDS = 4000; // after a hand moved in the grid nothing moves under it
const SPARE = 3; // lines above and below what is in sight
const SPARK = { width: 96, height: 20, seconds: 60 };
const RANK = { decode: 0, prefill: 1, swapped: 2, memory: 2, queued: 3, stopped: 4 };
const rankOf = (row) => RANK[row.activity] ?? 5;
const ORDERS = { state: (a, b) => rankOf(a) - rankOf(b), newest: (a, b) => b.pid - a.pid, rate: (a, b) => b.rate - a.rate, tokens: (a, b) => b.given + b.output - a.given - a.output, memory: (a, b) => b.bytes - a.bytes, nice: (a, b) => a.nice - b.nice };
const IS_STEADY = new Set(["state", "newest"]); // these change only when rows come, go or begin something else
const CELLS = ["pid", "phase", "tenant", "label", "tokens", "speed", "spark", "size", "nice", "acts"];
const KEYS = { k: "kill", s: "stop", n: "nice" };

const element = (id) => document.getElementById(id);
const grid = element("grid"), rows = element("rows"), filter = element("filter"), sort = element("sort"), head = grid.querySelector(".head");
const sparks = element("sparks"); // one canvas over the column of all lines: thirty would be thirty layers
const sparkHead = head.querySelector(".spark");
const lines = [];
let order = []; // rows as they stand, ended ones among them while the grid is held
let heldUntil = 0, active = null, redraw = () => {};
let height = 0, room = 0, top = 0, hasSparks = false; // as measured: of a row, of all in sight, above them
let arranged = ""; // what `order` was made of

export const whenMoved = (draw) => { redraw = draw; };

function makeLine() {
  const line = document.createElement("div");
  line.className = "row"; line.setAttribute("role", "row");
  const cells = Object.fromEntries(CELLS.map((name) => {
    const cell = document.createElement("span");
    cell.className = name; cell.setAttribute("role", "gridcell");
    line.append(cell);
    return [name, cell];
  }));
  const buttons = ["stop", "nice", "kill"].map((action) => {
    const made = document.createElement("button");
    made.type = "button"; made.tabIndex = -1; made.dataset.do = action; // by keyboard: K, S, N, or Enter
    return made;
  });
  cells.acts.append(...buttons);
  rows.append(line);
  return { line, cells, buttons, pid: null, action: "" };
}

function writeButtons(made, row) {
  const isStopped = row.activity === "stopped", key = `${row.pid} ${row.activity === "ended" ? "ended" : isStopped}`;
  if (made.action === key) return;
  made.action = key;
  const [stop, nice, kill] = made.buttons;
  put(stop, isStopped ? "Go on" : "Stop"); put(nice, "Nice"); put(kill, "Kill");
  stop.setAttribute("aria-label", isStopped ? `Let process ${row.pid} go on` : `Stop process ${row.pid}`);
  nice.setAttribute("aria-label", `Set the nice level of process ${row.pid}`);
  kill.setAttribute("aria-label", `Kill process ${row.pid}`);
  for (const button of made.buttons) button.hidden = row.activity === "ended";
}

function write(made, row, index) {
  const { line, cells } = made;
  if (made.pid !== row.pid) { made.pid = row.pid; line.id = `row-${row.pid}`; }
  if (made.index !== index || made.height !== height) { made.index = index; made.height = height; line.setAttribute("aria-rowindex", index + 2); line.style.transform = `translateY(${index * height}px)`; }
  const isActive = row.pid === active;
  if (made.isActive !== isActive) { made.isActive = isActive; line.setAttribute("aria-selected", isActive); }
  if (made.activity !== row.activity) { made.activity = row.activity; cells.phase.className = `phase ${row.activity}`; }
  put(cells.pid, String(row.pid)); put(cells.phase, phaseOf(row)); put(cells.tenant, row.tenant); put(cells.label, oneWay(row.label));
  put(cells.tokens, number(row.given + row.output)); put(cells.speed, row.rate ? number(row.rate) : "–");
  if (made.isIdle !== !row.rate) { made.isIdle = !row.rate; cells.speed.classList.toggle("none", made.isIdle); }
  put(cells.size, bytes(row.bytes)); put(cells.nice, String(row.nice).replace("-", "−"));
  writeButtons(made, row);
}

function drawSparks(shown, first) {
  const tall = shown.length * height, pen = open(sparks, SPARK.width, tall);
  sparks.style.height = `${tall}px`; sparks.style.transform = `translateY(${first * height}px)`;
  shown.forEach((row, index) => drawLine(pen, index * height + (height - SPARK.height) / 2, SPARK.width, SPARK.height, state.times, row.points, SPARK.seconds));
}

function arrange() {
  const words = filter.value.trim().toLowerCase();
  const isWanted = (row) => !words || row.words.includes(words) || phaseOf(row).includes(words);
  if (performance.now() > heldUntil) {
    const key = `${IS_STEADY.has(sort.value) ? state.moves : state.uptime} ${sort.value} ${words}`;
    if (arranged === key) return;
    arranged = key;
    const compare = ORDERS[sort.value];
    order = [...state.rows.values()].filter(isWanted).sort((a, b) => compare(a, b) || a.pid - b.pid);
    return;
  }
  arranged = "";
  const known = new Set(order.map((row) => row.pid));
  order = order.map((row) => state.rows.get(row.pid) ?? (row.activity === "ended" ? row : { ...row, activity: "ended", rate: 0, bytes: 0 }));
  for (const row of state.rows.values()) if (!known.has(row.pid) && isWanted(row)) order.push(row);
}

const sayNone = () => state.uptime === null ? "Waiting for the kernel …" : state.rows.size ? "No process is like that." : "Nothing runs. Say something in the chat.";

export function measureTable() {
  height = parseFloat(getComputedStyle(grid).getPropertyValue("--row"));
  room = grid.clientHeight - head.offsetHeight; top = grid.scrollTop;
  hasSparks = sparkHead.offsetWidth > 0;
}

export function drawTable() {
  const place = order.findIndex((row) => row.pid === active);
  arrange();
  if (active !== null && !order.some((row) => row.pid === active)) active = order[Math.min(place, order.length - 1)]?.pid ?? null;
  const tall = `${order.length * height}px`;
  if (rows.style.height !== tall) rows.style.height = tall;
  const first = Math.max(0, Math.floor(top / height) - SPARE);
  const shown = order.slice(first, first + Math.ceil(room / height) + 2 * SPARE);
  while (lines.length < shown.length) lines.push(makeLine());
  for (const made of lines.splice(shown.length)) made.line.remove();
  shown.forEach((row, index) => write(lines[index], row, first + index));
  if (hasSparks) drawSparks(shown, first);
  grid.setAttribute("aria-rowcount", order.length + 1);
  const isShown = shown.some((row) => row.pid === active);
  if (isShown) grid.setAttribute("aria-activedescendant", `row-${active}`); else grid.removeAttribute("aria-activedescendant");
  put(element("none"), order.length ? "" : sayNone());
  const all = state.rows.size, listed = order.length === all || !filter.value ? number(all) : `${number(order.length)} of ${number(all)}`;
  put(element("count"), state.uptime === null ? "" : state.num_rows > all ? `${listed}, the newest of ${number(state.num_rows)}` : listed);
}

function choose(place) {
  const row = order[Math.max(0, Math.min(place, order.length - 1))];
  if (!row) return;
  active = row.pid;
  const at = order.indexOf(row) * height;
  if (at < grid.scrollTop) grid.scrollTop = at;
  else if (at + height > grid.scrollTop + room) grid.scrollTop = at + height - room;
  measureTable();
  drawTable(); // at once: the next key, or whoever reads aloud, is to find it done
}

const hold = () => { heldUntil = performance.now() + HOLD_MILLISECONDS; };
for (const kind of ["pointermove", "pointerdown", "wheel", "keydown"]) grid.addEventListener(kind, hold, { passive: true });
grid.addEventListener("pointerleave", () => { heldUntil = 0; });
grid.addEventListener("scroll", () => redraw(), { passive: true });
grid.addEventListener("focus", () => { if (active === null) choose(0); });
for (const each of [filter, sort]) each.addEventListener("input", () => { heldUntil = 0; grid.scrollTop = 0; redraw(); });
filter.addEventListener("keydown", (event) => { if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); grid.focus(); } });

grid.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const place = order.findIndex((row) => row.pid === active), page = Math.max(1, Math.floor((grid.clientHeight - head.offsetHeight) / height) - 1);
  const goal = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: order.length - 1 }[event.key];
  const key = event.key.toLowerCase();
  if (goal !== undefined) choose(goal);
  else if (key === "/") { filter.focus(); filter.select(); }
  else if (place >= 0 && (key === "enter" || key === " ")) openProcess(active);
  else if (place >= 0 && KEYS[key]) askFirst(KEYS[key], active);
  else return;
  event.preventDefault();
});
rows.addEventListener("click", (event) => {
  const line = event.target.closest(".row"), made = lines.find((each) => each.line === line);
  if (!made) return;
  active = made.pid;
  const pressed = event.target.closest("button");
  drawTable();
  if (pressed) askFirst(pressed.dataset.do, made.pid); else openProcess(made.pid);
});
