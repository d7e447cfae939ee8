// What the server told, as it is now. Rows are keyed by pid; rates and sparklines are made here.
const FIELDS = ["pid", "tenant", "activity", "label", "model", "nice", "tokens", "prompt", "output", "bytes", "preemptions"];
const NUM_POINTS = 120; // looks of half a second: a minute of sparkline, with `shares` two

export const state = { rows: new Map(), shares: [], events: [], latency: {}, memory: [], rate: 0 };
let lastUptime = null;
let lastOutput = new Map(); // by tenant: tokens served

// What the kernel says that a process does with its time, in a reader's words.
const WORDS = { memory: "waits for memory", swapped: "swapped out", device: "waits for device", sibling: "shares a prefill", input: "waits for input" };
export const phaseOf = (row) => WORDS[row.activity] ?? row.activity;

export function apply(message) {
  if (message.whole) { state.rows.clear(); state.events = []; lastUptime = null; lastOutput = new Map(); }
  for (const key of ["tenant", "admin", "num_rows", "running", "waiting", "preemptions", "latency", "memory"])
    if (key in message) state[key] = message[key];
  const seconds = lastUptime === null ? 0 : message.uptime - lastUptime;
  lastUptime = message.uptime;
  for (const pid of message.gone) state.rows.delete(pid);
  const grown = new Map();
  for (const values of message.rows) {
    const row = Object.fromEntries(FIELDS.map((field, index) => [field, values[index]]));
    const before = state.rows.get(row.pid);
    grown.set(row.pid, before ? row.output - before.output : 0);
    row.points = before ? before.points : [];
    state.rows.set(row.pid, row);
  }
  state.rate = 0;
  for (const row of state.rows.values()) {
    row.rate = seconds > 0 ? (grown.get(row.pid) ?? 0) / seconds : 0;
    row.points.push(row.rate);
    if (row.points.length > NUM_POINTS) row.points.shift();
  }
  if (message.shares) state.served = message.shares;
  const served = new Map();
  for (const [tenant, prompt, output] of state.served ?? []) {
    const now = prompt + 2 * output; // an output token counts as two of a prompt
    served.set(tenant, { part: now - (lastOutput.get(tenant)?.now ?? now), now, output, made: output - (lastOutput.get(tenant)?.output ?? output) });
  }
  if (seconds > 0) for (const { made } of served.values()) state.rate += made / seconds;
  state.shares.push([...served].map(([tenant, { part }]) => [tenant, part]));
  if (state.shares.length > 2 * NUM_POINTS) state.shares.shift();
  lastOutput = served;
  state.events.push(...message.events);
  state.events.splice(0, state.events.length - 200);
}
