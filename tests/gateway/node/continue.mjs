// What Continue's editors ask, by its own adapter for servers like this one.
//
//     node continue.mjs BASE_URL
//
// test_gateway_node_clients.py says what the server does meanwhile, and checks what is told.

import { constructLlmApi } from "@continuedev/openai-adapters";
import { collect, play } from "./scenarios.mjs";

const api = constructLlmApi({ provider: "vllm", apiBase: `${process.argv[2]}/`, apiKey: "any" });
const { signal } = new AbortController();
const model = "scripted";
const messages = [{ role: "user", content: "Weather?" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", description: "Tell it.", parameters } }];
const texts = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

await play({
  async chat() {
    const body = { model, messages, max_tokens: 40 };
    const whole = await api.chatCompletionNonStream(body, signal);
    const chunks = await collect(api.chatCompletionStream({ ...body, stream: true }, signal));
    return { texts: [whole.choices[0].message.content, texts(chunks)], usage: chunks.at(-1).usage };
  },

  async tools() {
    const body = { model, messages, tools, stream: true };
    const chunks = await collect(api.chatCompletionStream(body, signal));
    const parts = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? []);
    return { name: parts[0].function.name, arguments: parts.map((part) => part.function.arguments).join("") };
  },

  async completions() {
    const body = { model, prompt: "Once", max_tokens: 40, stop: ["\n\n"] };
    const whole = await api.completionNonStream(body, signal);
    const chunks = await collect(api.completionStream({ ...body, stream: true }, signal));
    return [whole.choices[0].text, chunks.map((chunk) => chunk.choices[0].text).join("")];
  },

  async responses() {
    const body = { model, messages, max_tokens: 40 };
    const whole = await api.responsesNonStream(body, signal);
    const chunks = await collect(api.responsesStream(body, signal));
    return { texts: [whole.output[0].content[0].text, texts(chunks)], id: whole.id };
  },

  async rest() {
    const models = (await api.list()).map(({ id }) => id);
    const vectors = (await api.embed({ model, input: ["a", "b"] })).data.map(({ embedding }) => embedding.length);
    return { models, vectors };
  },
});
