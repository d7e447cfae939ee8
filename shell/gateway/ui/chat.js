// The chat box. Under each answer stands the life of the process that makes it.
import { state, phaseOf } from "./state.js";
import { ask, eventsOf, whyNot } from "./server.js";

const NUM_NOTES = 14; // of a life: of a longer one the middle is left out
const element = (id) => document.getElementById(id);
const turns = element("turns"), form = element("chat-form"), prompt = element("prompt"), send = element("send"), clear = element("clear"), model = element("model");
const said = [...turns.children]; // what stands there while nothing was said
const watched = new Map(); // by request id, which is the process's label
let messages = [], inFlight = null;

function note(life, phase, text = phase) {
  if (life.phase === phase) return;
  life.phase = phase;
  const item = document.createElement("li");
  item.className = phase.split(/[ :]/, 1)[0]; item.textContent = text;
  life.list.append(item);
  if (life.list.children.length > NUM_NOTES) {
    life.num_left_out = (life.num_left_out ?? 0) + 1;
    life.list.children[4].remove();
    life.list.children[3].textContent = `… ${life.num_left_out} more …`;
  }
  turns.scrollTop = turns.scrollHeight;
}

function setPid(life, pid) {
  if (life.pid) return;
  life.pid = pid;
  life.list.setAttribute("aria-label", `Life of process ${pid}`);
  life.list.firstChild.textContent = `pid ${pid}`;
}

export function drawLives() {
  if (!watched.size) return;
  for (const row of state.rows.values()) {
    const life = watched.get(row.label);
    if (!life) continue;
    setPid(life, row.pid);
    if (row.preemptions > life.preemptions) note(life, `preempted ${row.preemptions}`, "preempted");
    life.preemptions = row.preemptions;
    note(life, phaseOf(row));
  }
}

function makeTurn(text) {
  const question = document.createElement("p"), answer = document.createElement("p"), list = document.createElement("ul"), pid = document.createElement("li");
  question.className = "said"; answer.className = "answer"; list.className = "life"; list.setAttribute("aria-label", "Life of its process");
  question.textContent = text; pid.textContent = "no pid yet";
  list.append(pid);
  if (!messages.length) turns.replaceChildren();
  turns.append(question, answer, list);
  return { life: { list, phase: "", preemptions: 0, pid: 0 }, answer };
}

async function readAnswer(response, answer, life) {
  let end = "", text = "";
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices?.[0];
    if (choice?.delta?.content) {
      if (!text) note(life, "decode"); // before the next look says so
      const isAtEnd = turns.scrollTop + turns.clientHeight > turns.scrollHeight - 40;
      text += choice.delta.content;
      answer.append(choice.delta.content);
      if (isAtEnd) turns.scrollTop = turns.scrollHeight;
    }
    end = choice?.finish_reason ?? end;
  }
  messages.push({ role: "assistant", content: text });
  return end;
}

async function speak(text) {
  const id = `page-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`, { life, answer } = makeTurn(text);
  messages.push({ role: "user", content: text });
  watched.set(id, life);
  note(life, "queued");
  inFlight = new AbortController();
  send.textContent = "Stop"; clear.hidden = true; prompt.required = false;
  try {
    const body = { stream: true, max_tokens: element("limit").valueAsNumber, messages };
    if (!model.hidden) body.model = model.value;
    const response = await ask("/v1/chat/completions", { method: "POST", headers: { "x-request-id": id }, body, signal: inFlight.signal });
    if (!response.ok) throw new Error(await whyNot(response));
    setPid(life, Number(response.headers.get("x-llmos-pid")));
    note(life, `ended: ${await readAnswer(response, answer, life)}`);
  } catch (error) {
    note(life, `ended: ${inFlight.signal.aborted ? "stopped by you" : error.message}`);
    messages.pop(); // nobody answered it
  } finally {
    watched.delete(id); inFlight = null;
    send.textContent = "Send"; clear.hidden = false; prompt.required = true;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (inFlight) { inFlight.abort(); return; }
  const text = prompt.value;
  prompt.value = "";
  speak(text);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!inFlight) form.requestSubmit(); // the key sends, and never cuts an answer short
});
clear.addEventListener("click", () => { messages = []; turns.replaceChildren(...said); clear.hidden = true; prompt.focus(); });

// A choice of model, where there are several; the server takes its only one by itself.
export async function listModels() {
  const response = await ask("/v1/models");
  if (!response.ok) return;
  const names = (await response.json()).data.map((each) => each.id), kept = model.value;
  model.replaceChildren(...names.map((name) => new Option(name)));
  if (names.includes(kept)) model.value = kept;
  model.hidden = names.length < 2;
}
