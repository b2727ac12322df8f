// headroom's TypeScript SDK against the server: node headroom.mjs URL MESSAGES.json; its package is
// looked for from the working folder.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import assert from "node:assert/strict";

const [baseUrl, file] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/`);
const sdk = await import(pathToFileURL(require.resolve("headroom-ai")));
const given = JSON.parse(readFileSync(file));

const result = await sdk.compress(given, { model: "gpt-4o", baseUrl, fallback: false, retries: 0 });
assert.ok(result.compressed && result.tokensAfter < 0.85 * result.tokensBefore);
assert.equal(result.tokensSaved, result.tokensBefore - result.tokensAfter);
assert.equal(result.messages.length, given.length);
given.forEach((message, index) => {
  if (message.role === "tool") {
    assert.ok(result.messages[index].content.length < 0.85 * message.content.length);
  } else {
    assert.equal(result.messages[index].content, message.content);
  }
});

const client = new sdk.HeadroomClient({ baseUrl, fallback: false });
assert.equal((await client.health()).status, "ok");
const raw = await client.compressRaw({ messages: given, prefold: { retrieve: true } });
const [hash] = raw.ccr_hashes;
const original = await client.retrieve(hash);
assert.equal(original.originalContent, given.find(message => message.role === "tool").content);
