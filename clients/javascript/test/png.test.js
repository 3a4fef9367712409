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

test("other files are refused", async () => {
  const good = encodePng(filtered(() => 2));
  for (const [file, message] of [
    [Buffer.from("GIF89a"), /not a PNG/],
    [new Uint8Array(0), /not a PNG/],
    [encodePng(filtered(() => 2), { color: 2 }), /8-bit indexed or gray/],
    [encodePng(filtered(() => 2), { depth: 4 }), /8-bit indexed or gray/],
    [encodePng(filtered(() => 2), { interlace: 1 }), /not interlaced/],
    [encodePng(filtered(() => 5)), /broken/],
    [encodePng(new Uint8Array(20)), /broken/],
    [good.subarray(0, good.length - 40), /broken/],
    [good.subarray(0, 20), /broken/],
  ]) {
    await assert.rejects(decodePng(file), (error) => error instanceof TypeError && message.test(error.message));
  }
});
