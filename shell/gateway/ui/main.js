// Reads the stream and draws what changed, once a frame at most, and nothing while the page is hidden.
import { state, apply } from "./state.js";
import { ask, eventsOf, hasKey, keepKey, forgetKey, whyNot } from "./server.js";
import { drawLine, forgetColors, number, open, put, seconds, secondsOfAll } from "./draw.js";
import { drawTable, measureTable, whenMoved } from "./table.js";
import { drawProcess } from "./process.js";
import { drawMemory, measureMemory } from "./memory.js";
import { drawShares, measureShares } from "./shares.js";
import { drawLog, clearLog } from "./log.js";
import { drawLives, listModels } from "./chat.js";

const FIRST_PAUSE = 500, LONGEST_PAUSE = 8000; // milliseconds between tries
const RATE = { width: 110, height: 26, seconds: 120 };
const element = (id) => document.getElementById(id), status = element("status"), keyForm = element("key-form");
let isDue = false, isAnew = false;

function drawNumbers() {
  put(element("who"), `${state.tenant}${state.admin ? ", sees everybody" : ""}`);
  put(element("since"), `version ${state.version}, up ${state.uptime < 99.5 ? `${Math.round(state.uptime)} s` : seconds(state.uptime)}`);
  put(element("n-rate"), number(state.rate)); put(element("n-prompt"), number(state.promptRate));
  put(element("n-running"), number(state.running)); put(element("n-waiting"), number(state.waiting));
  put(element("n-preemptions"), number(state.preemptions)); put(element("n-memory"), usedOf(state.devices));
  for (const name of ["queued", "first", "between"]) put(element(`n-${name}`), state.latency[name]?.length ? secondsOfAll(state.latency[name]) : "–");
  drawLine(open(element("rate-spark"), RATE.width, RATE.height), 0, RATE.width, RATE.height, state.rates.map(({ at }) => at), state.rates.map(({ value }) => value), RATE.seconds);
}

// Of all pools together, what processes hold: what is kept for later is given up when it is needed.
function usedOf(devices) {
  const pools = devices.filter((device) => device.cells), sum = (count) => pools.reduce((all, device) => all + count(device) * device.frame_bytes, 0);
  return pools.length ? `${Math.round(100 * (1 - sum(({ num_by_kind: kinds }) => kinds.free + kinds.cached) / sum((device) => device.num_frames)))} %` : "–";
}

function draw() {
  isDue = false;
  performance.mark("draw");
  measureTable(); measureMemory(); measureShares(); // all reads first: each after a write would lay the page out once more
  document.body.classList.toggle("alone", !state.isShared);
  drawTable();
  if (state.uptime !== null) { drawNumbers(); drawProcess(); drawMemory(isAnew); drawShares(isAnew); drawLog(); }
  isAnew = false;
  performance.measure("page-draw", "draw");
  performance.clearMarks(); performance.clearMeasures(); // observers have it; a page that stays open for days must not grow
}

function drawSoon() { if (!isDue) { isDue = true; requestAnimationFrame(draw); } }
function drawAllSoon() { isAnew = true; drawSoon(); }
whenMoved(drawSoon);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { forgetColors(); drawAllSoon(); });
addEventListener("resize", drawAllSoon);

function tell(text, isLost) {
  status.classList.toggle("lost", isLost); document.body.classList.toggle("stale", isLost);
  put(status, text);
}

// True when the server wants a key, or another one.
async function isKeyWanted(response) {
  if (response.status !== 401) return false;
  put(element("key-error"), hasKey() ? await whyNot(response) : "");
  forgetKey();
  keyForm.hidden = false; document.body.classList.add("locked"); element("lock").hidden = true;
  tell("Locked", false);
  element("key").focus();
  return true;
}

async function watch() {
  for (let pause = FIRST_PAUSE; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    try {
      const response = await ask("/ui/stream");
      if (await isKeyWanted(response)) return;
      if (!response.ok) throw new Error(await whyNot(response));
      keyForm.hidden = true; document.body.classList.remove("locked"); element("lock").hidden = !hasKey();
      let served = null;
      for await (const message of eventsOf(response)) {
        if (message.error) throw new Error(message.error.message);
        if (message.whole) clearLog();
        apply(message);
        const models = String(state.devices.map((device) => device.model));
        if (served !== models) { served = models; listModels().catch(() => {}); } // without them the server's default is asked
        drawLives(); drawSoon(); tell("Live", false);
        pause = FIRST_PAUSE;
      }
      tell("The stream ended. Trying again …", true);
    } catch (error) { tell(`${error instanceof TypeError ? "The server does not answer." : error.message} Trying again …`, true); }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(element("key").value); element("key").value = "";
  watch();
});
element("lock").addEventListener("click", () => { forgetKey(); location.reload(); });
drawSoon();
watch();
