// A provider that answers every request after some milliseconds: node upstream.mjs PORT MILLISECONDS
import { createServer } from "node:http";

const [port, delay] = process.argv.slice(2).map(Number);
const answer = JSON.stringify({
  id: "chatcmpl-1", object: "chat.completion", created: 1, model: "m",
  choices: [{ index: 0, message: { role: "assistant", content: "ok" }, finish_reason: "stop" }],
});
const server = createServer((request, response) => {
  request.resume();
  request.on("end", () => setTimeout(() => {
    response.writeHead(200, { "content-type": "application/json", "content-length": answer.length });
    response.end(answer);
  }, delay));
});
server.keepAliveTimeout = 120_000;
server.listen(port, "127.0.0.1");
