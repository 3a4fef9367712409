/**
 * The client against real servers, which tests/clients/test_javascript.py starts: eight classes that
 * are bands of red from left to right; one server never answers, one asks for a key.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { test } from "node:test";

import { Client, Result, SegserveError } from "../segserve.js";

const { URL_PLAIN, URL_STUCK, URL_KEY, KEY, PHOTO } = process.env;
const [WIDTH, HEIGHT] = [96, 60]; // of the photo
const client = new Client(URL_PLAIN, { model: "bands" });
const photo = await readFile(PHOTO);

function bands(width, height) {
  return Uint8Array.from({ length: width * height }, (_, k) => Math.floor(((k % width) * 8) / width));
}

function refused(code, status, message) {
  return (error) => {
    assert.ok(error instanceof SegserveError, String(error));
    assert.equal(error.name, "SegserveError");
    assert.deepEqual([error.code, error.status], [code, status], error.message);
    assert.match(error.message, message);
    return true;
  };
}

test("segment gives class ids in the photo's size", async () => {
  const result = await client.segment(photo);
  assert.ok(result instanceof Result);
  assert.deepEqual([result.width, result.height], [WIDTH, HEIGHT]);
  assert.deepEqual(result.mask, bands(WIDTH, HEIGHT));
  assert.deepEqual([result.model, result.version], ["bands", 1]);
  assert.deepEqual(result.imageSize, { width: WIDTH, height: HEIGHT });
  assert.deepEqual(result.classes.map((entry) => entry.name), Array.from({ length: 8 }, (_, k) => `band${k}`));
  assert.deepEqual(Object.keys(result.timings), ["decode", "preprocess", "queue", "infer", "restore", "encode"]);
  assert.equal(result.png.type, "image/png");
  assert.equal(result.confidence, undefined);
});

test("every kind of source is taken", async () => {
  const copy = new Uint8Array(photo);
  for (const source of [new Blob([photo]), copy, copy.buffer, new DataView(copy.buffer)]) {
    assert.deepEqual((await client.segment(source)).mask, bands(WIDTH, HEIGHT));
  }
});

test("options reach the server", async () => {
  const result = await client.segment(photo, { size: "model", classes: ["band2", 5], smooth: false, version: 1, tta: [] });
  assert.deepEqual([result.width, result.height], [48, 32]);
  assert.deepEqual(new Set(result.mask), new Set([255, 2, 5]));
  assert.deepEqual(result.imageSize, { width: WIDTH, height: HEIGHT });
  const averaged = await client.segment(photo, { tta: ["flip", 0.75] });
  assert.deepEqual([averaged.width, averaged.height], [WIDTH, HEIGHT]);
});

test("confidence comes with the mask", async () => {
  const result = await client.segment(photo, { confidence: true });
  assert.deepEqual(result.mask, bands(WIDTH, HEIGHT));
  assert.equal(result.confidence.length, WIDTH * HEIGHT);
  assert.ok(result.confidence[5] > 50);
});

test("colours are the classes' own", async () => {
  const result = await client.segment(photo, { classes: ["band1"] });
  const painted = result.rgba(100);
  assert.equal(painted.length, 4 * WIDTH * HEIGHT);
  const color = [1, 3, 5].map((at) => parseInt(result.classes[1].color.slice(at, at + 2), 16));
  assert.deepEqual([...painted.slice(4 * 18, 4 * 19)], [...color, 100]);
  assert.deepEqual([...painted.slice(0, 4)], [0, 0, 0, 0]);
});

test("encode gives the server's file", async () => {
  const raw = await client.encode(photo, "raw");
  assert.equal(raw.type, "application/octet-stream");
  assert.deepEqual(new Uint8Array(await raw.arrayBuffer()), bands(WIDTH, HEIGHT));
  assert.equal((await client.encode(photo)).type, "image/png");
  const jpeg = await client.encode(photo, "overlay", { image: "jpeg", quality: 50, opacity: 0.3, legend: true });
  assert.equal(jpeg.type, "image/jpeg");
  const stats = JSON.parse(await (await client.encode(photo, "stats", { confidence: true })).text());
  assert.ok(stats.classes.every((entry) => entry.mean_confidence > 0 && entry.pixels === 720));
});

test("several files of one inference", async () => {
  const files = await client.encodeAll(photo, ["polygons", "raw"], { minArea: 100, tolerance: 1 });
  assert.deepEqual(Object.keys(files), ["polygons", "raw"]);
  assert.equal(JSON.parse(await files.polygons.text()).features.length, 8);
  assert.equal(files.polygons.type, "application/geo+json");
  assert.deepEqual(new Uint8Array(await files.raw.arrayBuffer()), bands(WIDTH, HEIGHT));
});

test("classes, models and readiness", async () => {
  const classes = await client.classes();
  assert.equal(classes.length, 8);
  assert.deepEqual(Object.keys(classes[3]), ["id", "name", "color"]);
  assert.match(classes[3].color, /^#[0-9a-f]{6}$/);
  assert.deepEqual(await client.classes({ model: "bands", version: 1 }), classes);
  assert.deepEqual(await client.models(), ["bands"]);
  assert.equal(await client.isReady(), true);
});

test("what a model means is asked for once", async () => {
  const asked = [];
  const counting = new Client(URL_PLAIN, {
    model: "bands",
    fetch: (url, options) => (asked.push(new URL(url).pathname), fetch(url, options)),
  });
  await counting.segment(photo);
  await counting.segment(photo);
  assert.deepEqual(asked.filter((name) => name.endsWith("/classes")), ["/v2/models/bands/versions/1/classes"]);
});

test("the server's errors keep status, code and text", async () => {
  await assert.rejects(client.segment(photo, { model: "a/b" }), refused("not_found", 404, /a%2Fb|a\/b/));
  await assert.rejects(client.segment(photo, { model: "unet" }), refused("model_not_found", 404, /unet/));
  await assert.rejects(client.segment(photo.subarray(0, 99)), refused("invalid_image", 400, /truncated/));
  await assert.rejects(client.encode(photo, "gif"), refused("invalid_request", 400, /format/));
  await assert.rejects(client.classes({ version: 7 }), refused("model_not_found", 404, /version/));
});

test("wrong arguments are refused here", async () => {
  const wrong = (message) => (error) => error instanceof TypeError && message.test(error.message);
  await assert.rejects(client.segment("street.jpg"), wrong(/encoded file/));
  await assert.rejects(client.segment(photo, { clases: ["road"] }), wrong(/clases is not an option: expected any of size/));
  await assert.rejects(client.segment(photo, { classes: "road" }), wrong(/classes is not valid: expected a list/));
  await assert.rejects(client.encodeAll(photo, "png,stats"), wrong(/\['png', 'stats'\]/));
  await assert.rejects(client.encode(photo, "png,stats"), wrong(/the format is not valid/));
  await assert.rejects(new Client(URL_PLAIN).segment(photo), wrong(/no model is given/));
  for (const timeoutMs of [0, Infinity, NaN, "soon"]) {
    await assert.rejects(client.classes({ timeoutMs }), wrong(/timeoutMs/));
  }
  assert.throws(() => new Client("localhost:8000"), wrong(/expected http:\/\/HOST:PORT/));
  assert.throws(() => new Client(URL_PLAIN, { apiKey: "a\nb-secret" }), (error) => !/secret/.test(error.message));
});

test("a key is sent, and asked for", async () => {
  await assert.rejects(new Client(URL_KEY).models(), refused("unauthenticated", 401, /no API key.*\(in this client: apiKey\)/));
  const holder = new Client(URL_KEY, { model: "bands", apiKey: KEY });
  assert.equal((await holder.encode(photo, "raw")).size, WIDTH * HEIGHT);
  const limited = await holder.encode(photo).then(() => null, (error) => error);
  assert.ok(refused("key_limit_exceeded", 429, /per second/)(limited));
  assert.ok(limited.retryAfterS > 900);
});

test("without a server the error names the address and a remedy", async () => {
  const free = createServer().listen(0, "127.0.0.1");
  await once(free, "listening");
  const { port } = free.address();
  free.close();
  await once(free, "close");
  const nobody = new Client(`http://127.0.0.1:${port}/`, { model: "bands" });
  const message = new RegExp(`127\\.0\\.0\\.1:${port} .*ECONNREFUSED.*segserve serve`);
  await assert.rejects(nobody.segment(photo), refused("unreachable", 0, message));
  await assert.rejects(nobody.isReady(), refused("unreachable", 0, message));
});

test("an answer that breaks off is an error of the connection", async () => {
  const broken = async () => new Response(new ReadableStream({ start: (body) => body.error(new Error("reset")) }));
  const torn = new Client(URL_PLAIN, { model: "bands", fetch: broken });
  await assert.rejects(torn.encode(photo), refused("unreachable", 0, /reset/));
});

test("a slow answer ends with the time limit", async () => {
  const stuck = new Client(URL_STUCK, { model: "bands", timeoutMs: 200 });
  await assert.rejects(stuck.segment(photo), refused("deadline_exceeded", 0, /within 200 ms; raise timeoutMs/));
  await assert.rejects(
    new Client(URL_STUCK, { model: "bands" }).segment(photo, { timeoutMs: 150 }),
    (error) => error instanceof SegserveError && error.code === "deadline_exceeded",
  );
});

test("the caller's signal ends a call with its own reason", async () => {
  const stuck = new Client(URL_STUCK, { model: "bands" });
  const reason = new Error("changed my mind");
  const stop = new AbortController();
  setTimeout(() => stop.abort(reason), 100);
  await assert.rejects(stuck.segment(photo, { signal: stop.signal }), (error) => error === reason);
  await assert.rejects(client.segment(photo, { signal: stop.signal }), (error) => error === reason);
  await assert.rejects(stuck.segment(photo, { signal: AbortSignal.timeout(50) }), { name: "TimeoutError" });
});
