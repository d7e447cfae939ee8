// The chat box. Under each answer stands the life of the process that makes it.
import { state, phaseOf } from "./state.js";
import { ask, eventsOf, whyNot } from "./server.js";

const turns = document.getElementById("turns"), form = document.getElementById("chat-form"), prompt = document.getElementById("prompt");
const watched = new Map(); // by request id, which is the process's label

function note(life, phase, pid) {
  if (life.phase === phase) return;
  life.phase = phase;
  const item = document.createElement("li");
  item.className = phase; item.textContent = pid ? `pid ${pid}: ${phase}` : phase;
  life.list.append(item);
  turns.scrollTop = turns.scrollHeight;
}

export function drawLives() {
  if (!watched.size) return;
  for (const row of state.rows.values()) {
    const life = watched.get(row.label);
    if (!life) continue;
    if (row.preemptions > life.preemptions) note(life, "preempted");
    life.preemptions = row.preemptions;
    note(life, phaseOf(row), life.pid ? 0 : row.pid);
    life.pid = row.pid;
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = prompt.value, id = `page-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
  prompt.value = "";
  const said = document.createElement("p"), answer = document.createElement("p"), list = document.createElement("ul");
  said.className = "said"; answer.className = "answer"; list.className = "life"; list.setAttribute("aria-label", "Life of its process");
  said.textContent = text;
  turns.append(said, answer, list);
  const life = { list, phase: "", preemptions: 0, pid: 0 };
  watched.set(id, life);
  note(life, "queued");
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST", headers: { "x-request-id": id },
      body: { stream: true, max_tokens: Number(document.getElementById("limit").value) || 256, messages: [{ role: "user", content: text }] },
    });
    if (!response.ok) throw new Error(await whyNot(response));
    let end = "";
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices?.[0];
      if (choice?.delta?.content) {
        if (life.phase === "queued" || life.phase === "prefill") note(life, "decode"); // before the next look says so
        answer.append(choice.delta.content);
      }
      end = choice?.finish_reason ?? end;
    }
    note(life, `ended: ${end}`);
  } catch (error) {
    note(life, `ended: ${error.message}`);
  } finally { watched.delete(id); }
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
});
