// The server's page in a real browser, by the keyboard alone.
// Usage: node --experimental-websocket page.mjs URL [SCREENSHOT.png]; needs Chromium and Node 20 with --experimental-websocket.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import assert from "node:assert/strict";

const [url, screenshot] = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), "page-"));
const browser = spawn(process.env.CHROMIUM ?? "chromium", [
  "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", `--user-data-dir=${folder}`,
  "--window-size=1000,1250", "about:blank",
], { stdio: ["ignore", "ignore", "pipe"] });

const address = await new Promise((resolve, reject) => {
  let said = "";
  browser.stderr.on("data", data => {
    said += data;
    const found = said.match(/DevTools listening on (ws:\S+)/);
    if (found) resolve(found[1]);
  });
  browser.on("exit", code => reject(new Error(`the browser ended with ${code}: ${said}`)));
});

const socket = new WebSocket(address);
await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = reject; });
let next = 1;
const waiting = new Map(), problems = [];
socket.onmessage = ({ data }) => {
  const message = JSON.parse(data);
  if (message.method === "Runtime.exceptionThrown") problems.push(message.params.exceptionDetails.text);
  if (message.method === "Log.entryAdded" && message.params.entry.level === "error") problems.push(message.params.entry.text);
  if (message.id) {
    const { resolve, reject } = waiting.get(message.id);
    if (message.error) reject(new Error(message.error.message)); else resolve(message.result);
  }
};
const call = (method, params = {}, sessionId) => new Promise((resolve, reject) => {
  waiting.set(next, { resolve, reject });
  socket.send(JSON.stringify({ id: next++, method, params, sessionId }));
});

const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
try {
  const { targetId } = await call("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await call("Target.attachToTarget", { targetId, flatten: true });
  const page = (method, params) => call(method, params, sessionId);
  const value = async expression =>
    (await page("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true })).result.value;
  const until = async (what, expression, seconds = 60) => {
    for (const end = Date.now() + 1000 * seconds; Date.now() < end; await pause(100)) {
      if (await value(expression)) return;
    }
    throw new Error(`${what}: not within ${seconds} s; the page says: ${await value("document.body.innerText")}`);
  };
  const press = async (key, code) => {
    for (const type of ["keyDown", "keyUp"]) {
      await page("Input.dispatchKeyEvent", { type, key, code: key, windowsVirtualKeyCode: code });
    }
  };
  const focus = () => value("document.activeElement.id");
  await page("Runtime.enable");
  await page("Log.enable");
  await page("Page.enable");
  await page("Page.navigate", { url });
  await until("the page loads", "document.readyState === 'complete' && !!document.getElementById('rate')");

  // Tab by tab, without a mouse.
  await press("Tab", 9);
  assert.equal(await focus(), "text");
  const text = "The lighthouse at Skagen was built in 1858 and is 46 metres high. Its keepers lived beside it. " +
    "Bread was baked on Fridays, and nine boats lay in the harbour. The lamp was lit with oil until 1906. " +
    "In winter the road was closed for weeks. The mayor sold two bells to a museum. <b>Not bold</b>. ";
  await page("Input.insertText", { text: text.repeat(3) });
  await press("Tab", 9);
  assert.equal(await focus(), "question");
  await page("Input.insertText", { text: "How high is the lighthouse?" });
  await press("Tab", 9);
  assert.equal(await focus(), "rate");
  const after = "Number(document.querySelectorAll('#figures b')[1]?.textContent ?? 0)";
  await until("a result appears", `${after} > 0`);
  const half = await value(after);
  for (let step = 0; step < 20; step++) await press("ArrowLeft", 37);
  assert.equal(await value("document.getElementById('shown').textContent"), "30%");
  await until("the slider changes the result", `${after} > 0 && ${after} < ${half}`);
  // The pieces together are the text, and none of it is markup.
  assert.equal(await value("document.getElementById('result').textContent"), text.repeat(3));
  assert.equal(await value("document.querySelectorAll('#result b').length"), 0);
  assert.ok(await value("document.querySelectorAll('#result del').length") > 0);
  // Nothing predicts the first token; all that is kept of the others is shaded.
  const shaded = "[...document.querySelectorAll('#result span')].map(part => part.style.background)";
  const shades = await value(shaded);
  assert.ok(shades.length > 20 && shades.slice(1).every(shade => /rgba?\(/.test(shade)), shades.join());
  await until("the server's figures appear", "document.querySelectorAll('#server tr').length === 8");
  assert.deepEqual(problems, []);
  if (screenshot) {
    const { data } = await page("Page.captureScreenshot", { format: "png" });
    writeFileSync(screenshot, Buffer.from(data, "base64"));
  }
  console.log("page: ok");
} finally {
  browser.kill();
  await pause(300);
  rmSync(folder, { recursive: true, force: true });
}
