// The event log, the newest on top.
import { state } from "./state.js";

const NUM_LINES = 200;
const log = document.getElementById("log");
let newest = -1;

export const clearLog = () => { newest = -1; log.replaceChildren(); };

export function drawLog() {
  const news = state.events.filter(([sequence]) => sequence > newest);
  if (!news.length) return;
  newest = news.at(-1)[0];
  log.prepend(...news.reverse().map(([, at, level, subsystem, text, pid]) => {
    const line = document.createElement("li"), time = document.createElement("time");
    time.textContent = new Date(at * 1000).toTimeString().slice(0, 8);
    line.className = level;
    line.append(time, `${level === "info" ? "" : `${level}: `}${subsystem}: ${text}${pid && !new RegExp(`\\b(pid|process) ${pid}\\b`).test(text) ? ` (pid ${pid})` : ""}`);
    return line;
  }));
  while (log.children.length > NUM_LINES) log.lastChild.remove();
}
