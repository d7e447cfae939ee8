// Reads the stream and draws what changed, once a frame at most, and nothing while the page is hidden.
import { state, apply } from "./state.js";
import { ask, eventsOf, keepKey, forgetKey, whyNot } from "./server.js";
import { drawTable } from "./table.js";
import { drawMemory, drawShares } from "./draw.js";
import { drawLives } from "./chat.js";

const element = (id) => document.getElementById(id), status = element("status"), keyForm = element("key-form");
const put = (id, text) => { if (element(id).textContent !== text) element(id).textContent = text; };
const seconds = (value) => value < 0.9995 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`;
let newest = 0, isDue = false;

function drawLog() {
  const news = state.events.filter(([sequence]) => sequence > newest);
  if (!news.length) return;
  newest = news.at(-1)[0];
  const log = element("log");
  for (const [, at, level, subsystem, text, pid] of news) {
    const line = document.createElement("li"), time = document.createElement("time");
    time.textContent = new Date(at * 1000).toTimeString().slice(0, 8);
    line.className = level;
    line.append(time, `${level === "info" ? "" : `${level}: `}${subsystem}: ${text}${pid ? ` (pid ${pid})` : ""}`);
    log.prepend(line);
  }
  while (log.children.length > 200) log.lastChild.remove();
}

function draw() {
  isDue = false;
  performance.mark("draw");
  put("who", `${state.tenant}${state.admin ? ", sees everybody" : ""}`);
  put("n-rate", state.rate.toFixed(0)); put("n-running", String(state.running)); put("n-waiting", String(state.waiting));
  put("n-preemptions", String(state.preemptions));
  put("n-queued", state.latency.queued?.map(seconds).join(" / ") || "–");
  put("n-first", state.latency.first?.map(seconds).join(" / ") || "–");
  drawTable(); drawMemory(); drawShares(); drawLog();
  performance.measure("page-draw", "draw");
  performance.clearMarks();
}

function drawSoon() { if (!isDue) { isDue = true; requestAnimationFrame(draw); } }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSoon);
addEventListener("resize", drawSoon);

function tell(text, isLost) { status.classList.toggle("lost", isLost); if (status.textContent !== text) status.textContent = text; }

async function watch() {
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try {
      const response = await ask("/ui/stream");
      if (response.status === 401) {
        forgetKey(); keyForm.hidden = false; tell(await whyNot(response), false);
        element("key").focus();
        return;
      }
      if (!response.ok) throw new Error(await whyNot(response));
      for await (const message of eventsOf(response)) {
        if (message.error) throw new Error(message.error.message);
        if (message.whole) newest = 0, element("log").replaceChildren();
        apply(message); drawLives(); drawSoon(); tell("Live", false);
        pause = 500;
      }
      tell("The stream ended; trying again", true);
    } catch (error) { tell(`${error.message} Trying again`, true); }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(element("key").value); element("key").value = ""; keyForm.hidden = true;
  watch();
});
watch();
