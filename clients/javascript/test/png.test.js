/** The PNG reader, on files with every filter; written here by Node's zlib. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateSync } from "node:zlib";

import { decodePng } from "../png.js";

const WIDTH = 7;
const HEIGHT = 10;
const PIXELS = Uint8Array.from({ length: WIDTH * HEIGHT }, (_, k) => (k * k * 31 + 7 * k) & 255);

function chunk(kind, body) {
  const made = Buffer.alloc(12 + body.length);
  made.writeUInt32BE(body.length, 0);
  made.write(kind, 4, "latin1");
  made.set(body, 8);
  // The checksum stays 0: the reader leaves it to TCP, and Node 18 has none.
  return made;
}

function encodePng(rows, { color = 3, depth = 8, interlace = 0, parts = 2 } = {}) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(WIDTH, 0);
  header.writeUInt32BE(HEIGHT, 4);
  header.set([depth, color, 0, 0, interlace], 8);
  const data = deflateSync(rows);
  const cut = parts === 2 ? data.length >> 1 : data.length;
  return Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk("IHDR", header),
    chunk("PLTE", Buffer.alloc(768)),
    chunk("IDAT", data.subarray(0, cut)),
    ...(parts === 2 ? [chunk("IDAT", data.subarray(cut))] : []),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function predict(filter, x, y) {
  const at = (dx, dy) => (x < dx || y < dy ? 0 : PIXELS[(y - dy) * WIDTH + x - dx]);
  const [a, b, c] = [at(1, 0), at(0, 1), at(1, 1)];
  if (filter < 4) return [0, a, b, (a + b) >> 1][filter];
  const near = [a, b, c].map((value) => Math.abs(a + b - c - value));
  return [a, b, c][near.indexOf(Math.min(...near))];
}

function filtered(choose) {
  const rows = new Uint8Array(HEIGHT * (WIDTH + 1));
  for (let y = 0; y < HEIGHT; y++) {
    rows[y * (WIDTH + 1)] = choose(y);
    for (let x = 0; x < WIDTH; x++) {
      rows[y * (WIDTH + 1) + 1 + x] = PIXELS[y * WIDTH + x] - predict(choose(y), x, y);
    }
  }
  return rows;
}

for (const filter of [0, 1, 2, 3, 4]) {
  test(`filter ${filter}`, async () => {
    const found = await decodePng(encodePng(filtered(() => filter), { color: filter % 2 ? 0 : 3 }));
    assert.deepEqual([found.width, found.height], [WIDTH, HEIGHT]);
    assert.deepEqual(found.pixels, PIXELS);
  });
}

test("rows of all filters, in one part", async () => {
  const found = await decodePng(encodePng(filtered((y) => y % 5), { parts: 1 }));
  assert.deepEqual(found.pixels, PIXELS);
});

const NUMBERS = Uint16Array.from({ length: WIDTH * HEIGHT }, (_, k) => (k * k * 3001 + 7 * k) & 65535);

/** Rows of 16 bits: what stands two bytes to the left is the pixel before. */
function wide(choose) {
  const length = 2 * WIDTH;
  const bytes = (x, y) => (x < 0 || y < 0 ? 0 : (NUMBERS[y * WIDTH + (x >> 1)] >> (x & 1 ? 0 : 8)) & 255);
  const rows = new Uint8Array(HEIGHT * (length + 1));
  for (let y = 0; y < HEIGHT; y++) {
    const filter = (rows[y * (length + 1)] = choose(y));
    for (let x = 0; x < length; x++) {
      const [a, b, c] = [bytes(x - 2, y), bytes(x, y - 1), bytes(x - 2, y - 1)];
      const near = [a, b, c].map((value) => Math.abs(a + b - c - value));
      const paeth = [a, b, c][near.indexOf(Math.min(...near))];
      rows[y * (length + 1) + 1 + x] = bytes(x, y) - [0, a, b, (a + b) >> 1, paeth][filter];
    }
  }
  return rows;
}

test("gray in 16 bits, rows of all filters", async () => {
  const found = await decodePng(encodePng(wide((y) => y % 5), { color: 0, depth: 16 }));
  assert.deepEqual(found.pixels, NUMBERS);
  await assert.rejects(decodePng(encodePng(wide(() => 0), { color: 3, depth: 16 })), /indexed or gray/);
});

test("other files are refused", async () => {
  const good = encodePng(filtered(() => 2));
  for (const [file, message] of [
    [Buffer.from("GIF89a"), /not a PNG/],
    [new Uint8Array(0), /not a PNG/],
    [encodePng(filtered(() => 2), { color: 2 }), /indexed or gray PNG of 8/],
    [encodePng(filtered(() => 2), { depth: 4 }), /indexed or gray PNG of 8/],
    [encodePng(filtered(() => 2), { interlace: 1 }), /not interlaced/],
    [encodePng(filtered(() => 5)), /broken/],
    [encodePng(new Uint8Array(20)), /broken/],
    [good.subarray(0, good.length - 40), /broken/],
    [good.subarray(0, 20), /broken/],
  ]) {
    await assert.rejects(decodePng(file), (error) => error instanceof TypeError && message.test(error.message));
  }
});
