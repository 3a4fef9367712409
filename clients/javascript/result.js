/** One segmented image. `segserve.d.ts` describes its fields. */
export class Result {
  constructor(fields) {
    Object.assign(this, fields);
  }

  /**
   * Returns the label map in its classes' colours, as a canvas takes it:
   * `context.putImageData(new ImageData(result.rgba(160), result.width, result.height), 0, 0)`.
   *
   * @param {number} alpha of pixels that have a class, 0 to 255; the others are transparent
   * @returns {Uint8ClampedArray} four bytes a pixel
   */
  rgba(alpha = 255) {
    const table = new Uint8Array(4 * 256 ** this.mask.BYTES_PER_ELEMENT);
    for (const { id, color } of this.classes) {
      const rgb = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
      table.set([...rgb, alpha], 4 * id);
    }
    // Words, so that a pixel is one step; the table's own bytes keep their order.
    const words = new Uint32Array(table.buffer);
    const painted = new Uint32Array(this.mask.length);
    for (let k = 0; k < painted.length; k++) painted[k] = words[this.mask[k]];
    return new Uint8ClampedArray(painted.buffer);
  }
}
