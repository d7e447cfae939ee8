// One process: the dialog that tells about it, and the question that is asked before anything is done to it.
import { state, phaseOf } from "./state.js";
import { bytes, color, drawLegend, number, oneWay, put, seconds } from "./draw.js";
import { ask, whyNot } from "./server.js";

const LIFE_MILLISECONDS = 1000; // between looks at where its time went
const PHASES = { queued: ["edge", "queued"], memory: ["shared", "waited for memory"], swapped: ["moving", "swapped out"], device: ["bad", "waited for the device"], sibling: ["cached", "waited for a prefill"], prefill: ["private", "prefill"], decode: ["ahead", "decode"], input: ["free", "waited for input"], blocked: ["weights", "blocked"], stopped: ["line", "stopped"] };
const DONE = { kill: "killed", stop: "stopped", cont: "goes on" };
const KEYS = { k: "kill", s: "stop", n: "nice" };

const element = (id) => document.getElementById(id);
const dialog = element("process"), confirm = element("confirm"), level = element("c-level"), bar = element("p-bar");
let shown = null, asked = null, lastLook = 0, hasEnded = false;

const tell = (text) => { element("said").textContent = text; };

async function act(action, pid, nice) {
  const body = action === "nice" ? { nice } : undefined;
  try {
    const response = await ask(`/ui/process/${pid}/${action}`, { method: "POST", body });
    tell(response.ok ? `Process ${pid}: ${action === "nice" ? `nice ${nice}` : DONE[action]}.` : `Process ${pid}: ${await whyNot(response)}`);
  } catch (error) { tell(`Process ${pid}: ${error.message}`); }
  if (shown === pid) look();
}

const QUESTIONS = {
  kill: (pid) => [`Kill process ${pid}?`, "It ends at once, and its client is told so. What it has computed is lost.", "Kill"],
  stop: (pid) => [`Stop process ${pid}?`, "It keeps its memory and does not run until it is told to go on.", "Stop"],
  nice: (pid) => [`Nice level of process ${pid}`, "Processes of a lower level run first.", "Set"],
};

// Ask, then do it. To go on is done at once: there is nothing to lose.
export function askFirst(action, pid) {
  const row = state.rows.get(pid);
  if (!row) { tell(`Process ${pid} has ended.`); return; }
  if (action === "stop" && row.activity === "stopped") { act("cont", pid); return; }
  asked = { action, pid };
  const [question, effect, yes] = QUESTIONS[action](pid), whose = `Tenant ${row.tenant}${row.label ? `, ${oneWay(row.label)}` : ""}. `;
  put(element("c-question"), question); put(element("c-effect"), `${whose}${effect}`); put(element("c-yes"), yes);
  element("c-yes").classList.toggle("danger", action === "kill");
  element("c-nice").hidden = action !== "nice"; level.disabled = action !== "nice"; level.value = row.nice;
  confirm.showModal();
  if (action === "nice") level.select(); else element("c-yes").focus();
}

element("c-form").addEventListener("submit", (event) => {
  event.preventDefault();
  confirm.close();
  act(asked.action, asked.pid, level.valueAsNumber);
});
element("c-no").addEventListener("click", () => confirm.close());

function drawLife(life) {
  put(element("p-verdict"), life.verdict);
  const spent = Object.entries(life.seconds), total = spent.reduce((sum, [, value]) => sum + value, 0);
  bar.replaceChildren(...spent.map(([name, value]) => {
    const part = document.createElement("span");
    part.style.flexGrow = total ? value / total : 0; part.style.background = color(PHASES[name][0]);
    return part;
  }));
  const entries = spent.map(([name, value]) => [color(PHASES[name][0]), `${PHASES[name][1]} ${seconds(value)}`]);
  bar.setAttribute("aria-label", `Where its time went: ${entries.map(([, text]) => text).join(", ")}`);
  drawLegend(element("p-times"), entries);
  const list = element("p-entries"), key = JSON.stringify(life.entries);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...life.entries.map(([kind, at, lasted, count, text]) => {
    const item = document.createElement("li"), time = document.createElement("time");
    time.textContent = seconds(at);
    item.append(time, `${kind}${count > 1 ? ` ×${count}` : ""}${lasted > 0.0005 ? `, ${seconds(lasted)}` : ""}${text ? `: ${text}` : ""}`);
    return item;
  }));
}

async function look() {
  const pid = shown;
  lastLook = performance.now();
  try {
    const response = await ask(`/ui/process/${pid}`);
    if (shown !== pid) return;
    if (response.ok) drawLife(await response.json());
    else if (response.status === 404) { hasEnded = true; drawProcess(); }
  } catch { /* the server is away: the page says so, and the next look tries again */ }
}

export function drawProcess() {
  if (shown === null) return;
  const row = state.rows.get(shown);
  if (!row) hasEnded = true;
  put(element("p-phase"), hasEnded ? "ended" : phaseOf(row));
  element("p-phase").className = `phase ${hasEnded ? "ended" : row.activity}`;
  for (const button of dialog.querySelectorAll("button:not(.close)")) button.disabled = hasEnded;
  if (hasEnded) return;
  const facts = [
    ["Tenant", row.tenant], ["Model", row.model], ["Prompt", `${number(row.given)} tokens`], ["Output", `${number(row.output)} tokens`],
    ["Memory", bytes(row.bytes)], ["Tokens/s", number(row.rate)], ["Preempted", `${row.preemptions} times`], ["Nice", String(row.nice)], ["Label", oneWay(row.label) || "–"],
  ];
  const list = element("p-facts");
  if (!list.childElementCount) list.append(...facts.flatMap(() => [document.createElement("dt"), document.createElement("dd")]));
  facts.forEach(([name, value], index) => { put(list.children[2 * index], name); put(list.children[2 * index + 1], value); });
  put(dialog.querySelector("[data-do=stop]"), row.activity === "stopped" ? "Go on" : "Stop …");
  if (performance.now() - lastLook > LIFE_MILLISECONDS) look();
}

export function openProcess(pid) {
  if (!state.rows.has(pid)) { tell(`Process ${pid} has ended.`); return; }
  shown = pid; hasEnded = false; lastLook = 0;
  put(element("p-title"), `Process ${pid}`); put(element("p-verdict"), "…");
  for (const id of ["p-bar", "p-times", "p-entries"]) { element(id).replaceChildren(); delete element(id).dataset.key; }
  drawProcess();
  dialog.showModal();
  dialog.querySelector(".close").focus();
}

dialog.addEventListener("close", () => { shown = null; });
dialog.addEventListener("click", (event) => {
  const wanted = event.target.closest("button")?.dataset.do;
  if (wanted === "close" || event.target === dialog) dialog.close(); // or a click beside it
  else if (wanted) askFirst(wanted, shown);
});
dialog.addEventListener("keydown", (event) => {
  const action = KEYS[event.key.toLowerCase()];
  if (!action || hasEnded || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  askFirst(action, shown);
});
