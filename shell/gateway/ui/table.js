// The table of processes: one <tr> a pid, kept and changed in place; no more rows than a person reads.
import { state, phaseOf } from "./state.js";
import { ask, whyNot } from "./server.js";
import { spark, bytes } from "./draw.js";

const STEP = 50;
let limit = STEP;
const lines = new Map();
const rows = document.getElementById("rows"), more = document.getElementById("more"), said = document.getElementById("said");
const ACTIVE = { decode: 0, prefill: 1, swapped: 2, memory: 2, queued: 3, stopped: 4 };

function button(action, text, name) {
  const made = document.createElement("button");
  made.type = "button"; made.dataset.do = action; made.textContent = text; made.setAttribute("aria-label", name);
  return made;
}

function makeLine(pid) {
  const line = document.createElement("tr");
  line.dataset.pid = pid;
  const cells = Array.from({ length: 9 }, () => line.insertCell());
  for (const index of [3, 4, 6, 7]) cells[index].className = "r";
  cells[0].textContent = pid;
  cells[5].className = "spark"; cells[6].classList.add("memory-cell");
  cells[5].append(document.createElement("canvas"));
  cells[5].firstChild.setAttribute("aria-hidden", "true");
  cells[8].append(button("stop", "Stop", `Stop process ${pid}`), " ", button("nicer", "Nice +", `Raise the nice level of process ${pid}`), " ", button("meaner", "−", `Lower the nice level of process ${pid}`), " ", button("kill", "Kill", `Kill process ${pid}`));
  return { line, cells };
}

const put = (cell, text) => { if (cell.textContent !== text) cell.textContent = text; };

export function drawTable() {
  const all = [...state.rows.values()].sort((a, b) => (ACTIVE[a.activity] ?? 5) - (ACTIVE[b.activity] ?? 5) || a.pid - b.pid);
  // Lines keep their place while someone has the focus or the pointer in them: no button moves under a finger.
  const isHeld = rows.matches(":hover") || rows.contains(document.activeElement);
  const shown = isHeld ? [...lines.keys()].map((pid) => state.rows.get(pid)).filter(Boolean) : all.slice(0, limit);
  for (const row of all) if (shown.length < limit && isHeld && !lines.has(row.pid)) shown.push(row);
  const pids = new Set(shown.map((row) => row.pid));
  for (const [pid, made] of lines) if (!pids.has(pid)) { made.line.remove(); lines.delete(pid); }
  shown.forEach((row, index) => {
    let made = lines.get(row.pid);
    if (!made) lines.set(row.pid, (made = makeLine(row.pid)));
    if (rows.children[index] !== made.line) rows.insertBefore(made.line, rows.children[index] ?? null);
    const phase = phaseOf(row), [, status, tenant, tokens, rate, canvas, memory, nice, actions] = made.cells;
    if (made.phase !== phase) { made.phase = phase; status.className = `state ${row.activity}`; }
    put(status, phase); put(tenant, row.tenant); put(tokens, String(row.tokens)); put(rate, row.rate ? row.rate.toFixed(0) : "–");
    put(memory, bytes(row.bytes)); put(nice, String(row.nice));
    const toggle = actions.firstChild, action = row.activity === "stopped" ? "cont" : "stop";
    if (toggle.dataset.do !== action) {
      toggle.dataset.do = action; toggle.textContent = action === "stop" ? "Stop" : "Go on";
      toggle.setAttribute("aria-label", `${toggle.textContent} process ${row.pid}`);
    }
    spark(canvas.firstChild, row.points);
  });
  const hidden = all.length - shown.length;
  more.hidden = hidden <= 0;
  put(more, `Show ${Math.min(hidden, STEP)} of ${hidden} more`);
  document.getElementById("none").hidden = all.length > 0;
  put(document.getElementById("count"), state.num_rows > all.length ? `${all.length} newest of ${state.num_rows}` : String(all.length));
}

more.addEventListener("click", () => { limit += STEP; drawTable(); });
rows.addEventListener("click", async (event) => {
  const pressed = event.target.closest("button");
  if (!pressed) return;
  const pid = Number(pressed.closest("tr").dataset.pid), now = state.rows.get(pid)?.nice ?? 0;
  const wanted = pressed.dataset.do;
  const nice = { nicer: now + 1, meaner: now - 1 }[wanted];
  const response = await ask(`/ui/process/${pid}/${nice === undefined ? wanted : "nice"}`, { method: "POST", body: nice === undefined ? undefined : { nice } });
  said.textContent = response.ok ? `Process ${pid}: ${nice === undefined ? { kill: "killed", stop: "stopped", cont: "goes on" }[wanted] : `nice ${nice}`}.` : await whyNot(response);
});
