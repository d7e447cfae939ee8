// Plays scenarios: one for each line of standard input, ["name", {its arguments}]; the line out is
// {"told": …} or {"failed": the stack}.

import { createInterface } from "node:readline";

export const play = async (scenarios) => {
  for await (const line of createInterface({ input: process.stdin })) {
    const [name, given] = JSON.parse(line);
    try {
      console.log(JSON.stringify({ told: await scenarios[name](given) }));
    } catch (error) {
      console.log(JSON.stringify({ failed: error.stack }));
    }
  }
};

export const collect = async (events) => {
  const all = [];
  for await (const event of events) all.push(event);
  return all;
};
