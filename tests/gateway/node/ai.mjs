// What programs of the AI SDK do, by each of its ways to a server like this one.
//
//     node ai.mjs BASE_URL
//
// test_gateway_node_clients.py says what the server does meanwhile, and checks what is told.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { collect, play } from "./scenarios.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const baseURL = process.argv[2];
const settings = { baseURL, apiKey: "any" };
const compatible = createOpenAICompatible({
  ...settings, name: "llmos", includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI(settings);
const ways = {
  compatible: compatible("scripted"),
  "compatible text": compatible.completionModel("scripted"),
  chat: openai.chat("scripted"),
  responses: openai.responses("scripted"),
  text: openai.completion("scripted"),
};
const prompt = "Weather?";
const schema = z.object({ city: z.string(), degrees: z.number().int() });
const weather = tool({ description: "Tell it.", inputSchema: z.object({ city: z.string() }) });
const streamed = (options) => streamText({ ...options, maxRetries: 0, onError: ({ error }) => { throw error; } });
const calls = (made) => made.map(({ toolName, input }) => [toolName, input]);

await play({
  async text({ way }) {
    const whole = await generateText({ model: ways[way], prompt, maxOutputTokens: 40, maxRetries: 0 });
    const stream = streamed({ model: ways[way], system: "Be short.", prompt, maxOutputTokens: 40 });
    const parts = await collect(stream.textStream);
    const ends = [whole.finishReason, await stream.finishReason];
    const usages = [whole.usage, await stream.usage].map((usage) => [usage.inputTokens, usage.outputTokens]);
    return { texts: [whole.text, parts.join("")], ends, usages };
  },

  async object({ way }) {
    const whole = await generateObject({ model: ways[way], schema, prompt, maxRetries: 0 });
    const stream = streamObject({ model: ways[way], schema, prompt, maxRetries: 0 });
    await collect(stream.partialObjectStream);
    return [whole.object, await stream.object];
  },

  async tools({ way }) {
    const asked = { model: ways[way], prompt, tools: { weather }, toolChoice: "required", maxRetries: 0 };
    const whole = await generateText(asked);
    const stream = streamed({ ...asked, toolChoice: { type: "tool", toolName: "weather" } });
    const kinds = (await collect(stream.fullStream)).map((part) => part.type);
    return { calls: [calls(whole.toolCalls), calls(await stream.toolCalls)], kinds };
  },

  // The second turn sends what the first had answered, as the SDK keeps it.
  async turns({ way }) {
    const first = await generateText({ model: ways[way], prompt, maxRetries: 0 });
    const messages = [{ role: "user", content: prompt }, ...first.response.messages, { role: "user", content: "And?" }];
    const second = await generateText({ model: ways[way], messages, maxRetries: 0 });
    return { texts: [first.text, second.text], ids: [first.response.id, second.response.id] };
  },

  async embeddings() {
    const models = [compatible, openai].map((provider) => provider.textEmbeddingModel("scripted"));
    const found = models.map((model) => embedMany({ model, values: ["a", "b"], maxRetries: 0 }));
    return (await Promise.all(found)).map(({ embeddings }) => embeddings);
  },

  async abort({ way }) {
    const leaving = new AbortController();
    let parts = 0;
    const stream = streamText({ model: ways[way], prompt, abortSignal: leaving.signal, onError: () => {} });
    for await (const part of stream.textStream) if (part && ++parts === 3) leaving.abort();
    return parts;
  },

  async refused({ way, model }) {
    const other = way === "compatible" ? compatible(model) : openai.responses(model);
    try {
      await generateText({ model: other, prompt, maxRetries: 0 });
    } catch (error) {
      return [error.name, error.statusCode, error.data.error.code];
    }
  },
});
