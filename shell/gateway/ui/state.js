// What the server told, as it is now: rows by pid, and what is made of differences, rates and histories.
const COLUMNS = ["pid", "tenant", "activity", "label", "model", "nice", "given", "output", "bytes", "preemptions"];
const SPARK_SECONDS = 60, SHARE_SECONDS = 120, NUM_EVENTS = 200;
const PLAIN = ["version", "tenant", "admin", "num_rows", "running", "waiting", "preemptions", "latency", "devices"];

export const state = {
  rows: new Map(), times: [], // uptimes of the looks that rows have points of
  moves: 0, // how often rows came, went or began something else
  events: [], devices: [], latency: {}, uptime: null,
  served: new Map(), shares: [], rate: 0, promptRate: 0, rates: [], sharesAt: null,
  isShared: false, // rows of several tenants came
};

// What the kernel says that a process does with its time, in a reader's words.
const WORDS = { memory: "waits for memory", swapped: "swapped out", device: "waits for device", sibling: "shares a prefill", grammar: "compiles its grammar", input: "waits for input" };
export const phaseOf = (row) => WORDS[row.activity] ?? row.activity;

function makeRow(values, old) {
  const row = { points: [], rate: 0 };
  COLUMNS.forEach((name, index) => { row[name] = values[index]; });
  row.words = `${row.pid} ${row.tenant} ${row.label} ${row.model}`.toLowerCase(); // what a filter looks at
  row.last = row.output; // at the look before: nobody knows how fast a new one came here
  if (old) { row.points = old.points; row.last = old.output; }
  return row;
}

function applyRows(message, seconds, isSequel) {
  const old = state.rows;
  if (message.whole) { state.rows = new Map(); if (!isSequel) state.times = []; }
  if (message.whole || message.gone.length || message.new.length || message.changed.activity) state.moves++;
  for (const pid of message.gone) state.rows.delete(pid);
  const someone = state.rows.values().next().value?.tenant ?? message.new[0]?.[1];
  state.isShared ||= message.new.some(([, tenant]) => tenant !== someone);
  for (const values of message.new) state.rows.set(values[0], makeRow(values, isSequel ? old.get(values[0]) : null));
  for (const [name, pairs] of Object.entries(message.changed))
    for (let index = 0; index < pairs.length; index += 2) {
      const row = state.rows.get(pairs[index]);
      if (row) row[name] = pairs[index + 1];
    }
  state.times.push(state.uptime);
  const num = state.times.findIndex((time) => time >= state.uptime - SPARK_SECONDS);
  if (num > 0) state.times.splice(0, num);
  for (const row of state.rows.values()) {
    row.rate = seconds > 0 ? Math.max(0, row.output - row.last) / seconds : 0;
    row.last = row.output;
    row.points.push(row.rate);
    if (row.points.length > state.times.length) row.points.splice(0, row.points.length - state.times.length);
  }
}

// Shares come with every other look, and only those that changed. An output token counts as two of a prompt.
function applyShares(changed, isSequel) {
  const seconds = isSequel && state.sharesAt !== null ? state.uptime - state.sharesAt : 0;
  const parts = new Map();
  let made = 0, read = 0;
  for (const [tenant, weight, prompt, output] of changed) {
    const old = state.served.get(tenant) ?? (isSequel ? { prompt: 0, output: 0 } : { prompt, output });
    parts.set(tenant, prompt - old.prompt + 2 * (output - old.output));
    made += output - old.output; read += prompt - old.prompt;
    state.served.set(tenant, { weight, prompt, output });
  }
  state.sharesAt = state.uptime;
  if (!(seconds > 0)) return;
  state.rate = made / seconds; state.promptRate = read / seconds;
  state.rates.push({ at: state.uptime, value: state.rate });
  state.shares.push({ at: state.uptime, seconds, parts });
  const isOld = ({ at }) => at < state.uptime - SHARE_SECONDS;
  while (state.rates.length && isOld(state.rates[0])) state.rates.shift();
  while (state.shares.length && isOld(state.shares[0])) state.shares.shift();
}

// Whoever comes, or has missed something, is told the shares of the last minutes anew.
function applyHistory({ history, uptime }) {
  state.served.clear(); state.shares = []; state.rates = []; state.sharesAt = null;
  history.forEach(([at, rows], index) => { state.uptime = at; applyShares(rows, index > 0); });
  state.uptime = uptime;
}

export function apply(message) {
  const before = state.uptime, isSequel = before !== null && message.uptime >= before; // not a kernel that was started anew
  state.uptime = message.uptime;
  for (const key of PLAIN) if (key in message) state[key] = message[key];
  applyRows(message, isSequel ? message.uptime - before : 0, isSequel);
  if (message.history) applyHistory(message);
  if (message.shares) applyShares(message.shares, isSequel);
  if (message.whole) state.events = [];
  state.events.push(...message.events);
  state.events.splice(0, state.events.length - NUM_EVENTS);
}
