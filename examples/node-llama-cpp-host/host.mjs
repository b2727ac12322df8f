// A Node host (package node-llama-cpp, whose libllama reads version 3) that continues after a prefix of prefold:
//
//     prefold export --to llama.cpp --slot-version 3 prefix.safetensors -o slot.bin
//     node host.mjs model.gguf slot.bin '[1, 2, 3]' 12
//
// prints the likeliest ids after the prefix and those of a question, as JSON.

import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [modelPath, slot, question, count] = process.argv.slice(2);
if (count === undefined) {
  console.error("host.mjs MODEL SLOT QUESTION-IDS COUNT");
  process.exit(2);
}
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 2048, sequences: 1, threads: 1, flashAttention: true });
const sequence = context.getSequence();
// The risk is that of any state file: libllama believes what stands in it.
await sequence.loadStateFromFile(slot, { acceptRisk: true });
const ids = [];
for await (const id of sequence.evaluate(JSON.parse(question), { temperature: 0, yieldEogToken: true })) {
  ids.push(id);
  if (ids.length >= Number(count)) break;
}
console.log(JSON.stringify(ids));
process.exit(0);
