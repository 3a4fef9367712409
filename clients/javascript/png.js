/**
 * Reads the PNGs of label maps: 8 bits a pixel, indexed or gray, or 16, gray. Through a canvas only colours would
 * come out, not ids.
 *
 * Source: PNG specification, third edition (W3C).
 */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const GRAY = 0;
const INDEXED = 3;

/**
 * @param {Uint8Array} file
 * @returns {Promise<{width: number, height: number, pixels: Uint8Array | Uint16Array}>} pixel values, row by row
 * @throws {TypeError} no such PNG, or a broken one
 */
export async function decodePng(file) {
  if (SIGNATURE.some((byte, k) => file[k] !== byte)) throw new TypeError("not a PNG");
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  let width = 0;
  let height = 0;
  let bytes = 1;
  const packed = [];
  for (let at = 8; at + 12 <= file.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...file.subarray(at + 4, at + 8));
    const body = at + 8;
    if (body + length + 4 > file.length) throw new TypeError("the PNG is broken: its end is missing");
    if (kind === "IHDR") {
      width = view.getUint32(body);
      height = view.getUint32(body + 4);
      const [depth, color, , , interlace] = file.subarray(body + 8, body + 13);
      const known = depth === 8 ? color === GRAY || color === INDEXED : depth === 16 && color === GRAY;
      if (!known || interlace) {
        throw new TypeError("a label map is an indexed or gray PNG of 8 or 16 bits, not interlaced");
      }
      bytes = depth / 8;
    } else if (kind === "IDAT") {
      packed.push(file.subarray(body, body + length));
    }
    at = body + length + 4;
  }
  const rows = await inflate(packed);
  if (!width || rows.length !== height * (bytes * width + 1)) throw new TypeError("the PNG is broken");
  const pixels = unfilter(rows, bytes * width, height, bytes);
  return { width, height, pixels: bytes === 1 ? pixels : join(pixels) };
}

async function inflate(packed) {
  const stream = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  try {
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch (cause) {
    throw new TypeError("the PNG is broken", { cause });
  }
}

/** Numbers of two bytes, the higher first. */
function join(pixels) {
  const numbers = new Uint16Array(pixels.length / 2);
  for (let k = 0; k < numbers.length; k++) numbers[k] = (pixels[2 * k] << 8) | pixels[2 * k + 1];
  return numbers;
}

/** Undoes each row's filter: rows begin with its number. `step` bytes are a pixel. */
function unfilter(rows, width, height, step) {
  const pixels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    const source = rows.subarray(y * (width + 1) + 1, (y + 1) * (width + 1));
    const row = pixels.subarray(y * width, (y + 1) * width);
    const above = y ? pixels.subarray((y - 1) * width, y * width) : new Uint8Array(width);
    if (filter === 0) {
      row.set(source);
    } else if (filter === 1) {
      for (let x = 0; x < width; x++) row[x] = source[x] + (x < step ? 0 : row[x - step]);
    } else if (filter === 2) {
      for (let x = 0; x < width; x++) row[x] = source[x] + above[x];
    } else if (filter === 3) {
      for (let x = 0; x < width; x++) row[x] = source[x] + (((x < step ? 0 : row[x - step]) + above[x]) >> 1);
    } else if (filter === 4) {
      for (let x = 0; x < width; x++) {
        row[x] = source[x] + paeth(x < step ? 0 : row[x - step], above[x], x < step ? 0 : above[x - step]);
      }
    } else {
      throw new TypeError("the PNG is broken");
    }
  }
  return pixels;
}

function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}
