// What the official client for Node does.
//
//     node sdk.mjs BASE_URL
//
// test_gateway_node.py and system/test_node.py say what the server does meanwhile, and check what is told.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { collect, play } from "./scenarios.mjs";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const chat = { model, messages: [{ role: "user", content: "Weather?" }], temperature: 0 };
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tool = { type: "function", function: { name: "get_weather", description: "Tell it.", parameters } };

// The error that a promise is refused with, as its user tells errors apart.
const refusal = async (promise) => {
  try {
    await promise;
  } catch (error) {
    const { status, code, param, type } = error;
    return { class: error.constructor.name, status, code, param, type };
  }
  throw new Error("it was not refused");
};

const scenarios = {
  async models() {
    return { listed: model, retrieved: (await client.models.retrieve(model)).id };
  },

  async chat({ fields }) {
    return await client.chat.completions.create({ ...chat, ...fields });
  },

  async stream({ fields }) {
    const body = { ...chat, ...fields, stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await client.chat.completions.create(body));
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    return { text, usage: chunks.at(-1).usage, finish: chunks.at(-2).choices[0].finish_reason };
  },

  async stream_helper() {
    const deltas = [];
    const body = { ...chat, stream_options: { include_usage: true } };
    const helper = client.chat.completions.stream(body).on("content", (delta) => deltas.push(delta));
    const text = await helper.finalContent();
    const { message, finish_reason } = (await helper.finalChatCompletion()).choices[0];
    return { text, deltas, message: message.content, finish_reason, usage: await helper.totalUsage() };
  },

  // Calls as they are assembled from a stream, and the loop of an agent that carries them out.
  async tools() {
    const whole = await client.chat.completions.create({ ...chat, tools: [tool] });
    const streamed = await client.chat.completions.stream({ ...chat, tools: [tool] }).finalMessage();
    const asked = [];
    const get_weather = ({ city }) => (asked.push(city), `rain in ${city}`);
    const runnable = { ...tool.function, function: get_weather, parse: JSON.parse };
    const tools = [{ type: "function", function: runnable }];
    const runs = [];
    for (const stream of [false, true])
      runs.push(await client.chat.completions.runTools({ ...chat, stream, tools }).finalContent());
    const calls = [whole.choices[0].message, streamed].map((message) => message.tool_calls);
    return { calls: calls.map((each) => each.map((call) => call.function)), asked, runs };
  },

  async structured() {
    const Place = z.object({ city: z.string().max(12), degrees: z.number().int().min(0).max(9) });
    const body = { ...chat, response_format: zodResponseFormat(Place, "place"), max_tokens: 200 };
    const whole = await client.chat.completions.parse(body);
    const streamed = await client.chat.completions.stream(body).finalChatCompletion();
    return [whole, streamed].map((each) => each.choices[0].message.parsed);
  },

  async completions() {
    const whole = await client.completions.create({ model, prompt: ["Once", "Twice"], max_tokens: 9 });
    const body = { model, prompt: [1, 2, 3], max_tokens: 9, stream: true };
    const chunks = await collect(await client.completions.create(body));
    const streamed = chunks.map((chunk) => chunk.choices[0].text).join("");
    return { texts: whole.choices.map((choice) => choice.text), streamed };
  },

  // Base64 is what the client asks for when it is not told, and undoes by itself.
  async embeddings() {
    const input = ["a short text", "another one"];
    const packed = await client.embeddings.create({ model, input });
    const plain = await client.embeddings.create({ model, input, encoding_format: "float" });
    return [packed, plain].map((answer) => answer.data.map((row) => row.embedding));
  },

  async responses() {
    const body = { model, input: "hi" };
    const whole = await client.responses.create(body);
    const events = await collect(await client.responses.create({ ...body, stream: true }));
    const streamed = await client.responses.stream(body).finalResponse();
    const next = await client.responses.create({ ...body, previous_response_id: whole.id });
    const items = await client.responses.inputItems.list(next.id);
    const kept = (await client.responses.retrieve(whole.id)).output_text;
    const ids = [whole.id, events.at(-1).response.id, streamed.id, next.id];
    for (const id of ids) await client.responses.delete(id);
    return {
      texts: [whole.output_text, streamed.output[0].content[0].text, next.output_text, kept],
      numbers: events.map((event) => event.sequence_number),
      deltas: events.filter((event) => event.type.endsWith("text.delta")).map((event) => event.delta),
      inputs: items.data.length,
      gone: await refusal(client.responses.retrieve(whole.id)),
    };
  },

  // Begun in the background, left in mid-stream, taken up again behind what was seen, cancelled.
  async background() {
    const begun = await client.responses.create({ model, input: "hi", background: true });
    const seen = [];
    const first = await client.responses.retrieve(begun.id, { stream: true });
    for await (const event of first) if (seen.push(event) === 6) break;
    const after = seen.at(-1).sequence_number;
    const second = await client.responses.retrieve(begun.id, { stream: true, starting_after: after });
    let cancelled;
    for await (const event of second)
      if (seen.push(event) === 12) cancelled = (await client.responses.cancel(begun.id)).status;
    const ended = (await client.responses.retrieve(begun.id)).status;
    await client.responses.delete(begun.id);
    const numbers = seen.map((event) => event.sequence_number);
    return { begun: begun.status, cancelled, ended, numbers, last: seen.at(-1).type };
  },

  // Three ways to leave: out of the loop, by the stream's controller, and by a signal before any answer.
  async abort({ fields }) {
    const endless = { ...chat, ...fields };
    const body = { ...endless, stream: true };
    for await (const chunk of await client.chat.completions.create(body)) if (chunk) break;
    const stream = await client.chat.completions.create(body);
    let chunks = 0;
    for await (const chunk of stream) if (chunk && ++chunks === 3) stream.controller.abort();
    const leaving = new AbortController();
    const waiting = client.chat.completions.create(endless, { signal: leaving.signal });
    setTimeout(() => leaving.abort(), 50);
    return { chunks, refused: await refusal(waiting) };
  },

  async timeout() {
    return await refusal(client.chat.completions.create(chat, { timeout: 50 }));
  },

  async refused({ fields, apiKey, baseURL, retries = 0 }) {
    let attempts = 0;
    const counting = (url, init) => (attempts++, fetch(url, init));
    const options = { maxRetries: retries, fetch: counting };
    if (apiKey !== undefined) options.apiKey = apiKey;
    if (baseURL !== undefined) options.baseURL = baseURL;
    const other = client.withOptions(options);
    return { ...(await refusal(other.chat.completions.create({ ...chat, ...fields }))), attempts };
  },
};

await play(scenarios);
