/**
 * The client: sends images over HTTP, and returns label maps. Runs in Node 18 or later and in
 * browsers, without dependencies.
 */

import { SegserveError, fromResponse, unreachable } from "./errors.js";
import { decodePng } from "./png.js";
import { Result } from "./result.js";

export { Result, SegserveError };

// Options of a call that go into the query as they are, and their names there.
const QUERY = {
  size: "size",
  smooth: "smooth",
  image: "image",
  quality: "quality",
  opacity: "opacity",
  legend: "legend",
  tolerance: "tolerance",
  minArea: "min_area",
};
const LISTS = ["classes", "tta"];
const CALL = ["model", "version", "signal", "timeoutMs"];
const KNOWN = new Set([...Object.keys(QUERY), ...LISTS, ...CALL, "confidence"]);

export class Client {
  #known = new Map(); // classes by model and version: they never change
  #apiKey;
  #fetch;

  constructor(server = "http://localhost:8000", options = {}) {
    const { model, apiKey, timeoutMs = 30_000 } = options;
    if (typeof server !== "string" || (server && !/^https?:\/\//.test(server))) {
      throw new TypeError(`${server} is not a valid address: expected http://HOST:PORT, or "" for the page's own`);
    }
    if (apiKey !== undefined && !/^[\x21-\x7e]+$/.test(apiKey)) {
      throw new TypeError("apiKey is not valid: expected printable ASCII characters without spaces");
    }
    this.server = server.replace(/\/+$/, "");
    this.model = model;
    this.timeoutMs = timeoutMs;
    this.#apiKey = apiKey;
    this.#fetch = options.fetch ?? ((...call) => globalThis.fetch(...call));
  }

  async segment(image, options = {}) {
    const { confidence = false, ...rest } = options;
    const formats = confidence ? ["png", "confidence"] : ["png"];
    return this.#call(options, async (send) => {
      const { files, headers } = await this.#ask(send, image, formats, rest);
      const model = decodeURIComponent(headers.get("X-Model-Name"));
      const version = Number(headers.get("X-Model-Version"));
      const [mask, certain, classes] = await Promise.all([
        read(files.png),
        confidence ? read(files.confidence) : null,
        this.#classes(send, model, version),
      ]);
      const [height, width] = headers.get("X-Image-Size").split("x").map(Number);
      return new Result({
        mask: mask.pixels,
        width: mask.width,
        height: mask.height,
        classes,
        model,
        version,
        imageSize: { height, width },
        timings: readTimings(headers),
        png: files.png,
        ...(certain && { confidence: certain.pixels }),
      });
    });
  }

  async encode(image, format = "overlay", options = {}) {
    return (await this.encodeAll(image, [format], options))[format];
  }

  async encodeAll(image, formats, options = {}) {
    return this.#call(options, async (send) => (await this.#ask(send, image, formats, options)).files);
  }

  async classes(options = {}) {
    return this.#call(options, async (send) => {
      const response = await send(`${path(this.#name(options), options.version)}/classes`);
      return this.#reach(response.json());
    });
  }

  async models(options = {}) {
    return this.#call(options, async (send) => {
      const response = await send("/v2/repository/index", { method: "POST", body: '{"ready": true}' });
      const index = await this.#reach(response.json());
      return [...new Set(index.map((entry) => entry.name))].sort();
    });
  }

  async isReady(options = {}) {
    return this.#call(options, async (send) => {
      try {
        await send("/v2/health/ready");
        return true;
      } catch (error) {
        if (error instanceof SegserveError && error.status === 503) return false;
        throw error;
      }
    });
  }

  /** Sends the image; returns the response's files by format, and its headers. */
  async #ask(send, image, formats, options) {
    checkImage(image);
    const query = readQuery(formats, options);
    const response = await send(`${path(this.#name(options), options.version)}/segment?${query}`, {
      method: "POST",
      body: image,
    });
    const files = {};
    if (formats.length === 1) {
      files[formats[0]] = await this.#reach(response.blob());
    } else {
      const parts = await this.#reach(response.formData());
      for (const format of formats) files[format] = parts.get(format);
    }
    return { files, headers: response.headers };
  }

  async #classes(send, model, version) {
    const url = `${path(model, version)}/classes`;
    if (!this.#known.has(url)) {
      const response = await send(url);
      this.#known.set(url, await this.#reach(response.json()));
    }
    return this.#known.get(url);
  }

  /** Runs `work` with a `send` that is bound to the caller's signal and to a time limit. */
  async #call({ signal, timeoutMs = this.timeoutMs }, work) {
    if (!(timeoutMs > 0 && timeoutMs < 1e9)) {
      throw new TypeError(`timeoutMs ${timeoutMs} is not valid: expected milliseconds above 0 and below 1e9`);
    }
    signal?.throwIfAborted();
    const ends = Date.now() + timeoutMs;
    const stop = new AbortController();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      stop.abort();
    }, timeoutMs);
    const leave = () => stop.abort();
    signal?.addEventListener("abort", leave);
    const send = async (url, request = {}) => {
      const headers = { "X-Timeout-Ms": String(Math.max(1, ends - Date.now())) };
      if (this.#apiKey !== undefined) headers["X-API-Key"] = this.#apiKey;
      const asked = this.#fetch(this.server + url, { ...request, headers, signal: stop.signal });
      const response = await this.#reach(asked);
      if (!response.ok) throw await this.#reach(fromResponse(response));
      return response;
    };
    try {
      return await work(send);
    } catch (error) {
      signal?.throwIfAborted();
      if (late) {
        const text = `no answer from ${this.server || "the server"} within ${timeoutMs} ms; raise timeoutMs`;
        throw new SegserveError(text, { code: "deadline_exceeded", cause: error });
      }
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", leave);
    }
  }

  /** Awaits a fetch or a body; a connection that breaks becomes an error that names the remedy. */
  async #reach(promise) {
    try {
      return await promise;
    } catch (cause) {
      throw unreachable(this.server, cause);
    }
  }

  #name({ model = this.model }) {
    if (!model) throw new TypeError("no model is given: set new Client(server, {model}) or {model} in the call");
    return model;
  }
}

function path(model, version) {
  const end = version === undefined ? "" : `/versions/${encodeURIComponent(version)}`;
  return `/v2/models/${encodeURIComponent(model)}${end}`;
}

function checkImage(image) {
  if (!(image instanceof Blob || image instanceof ArrayBuffer || ArrayBuffer.isView(image))) {
    throw new TypeError("the image is not valid: expected an encoded file as Blob, ArrayBuffer or array of bytes");
  }
}

function readQuery(formats, options) {
  if (!Array.isArray(formats) || !formats.length || formats.some((format) => /[,\s]/.test(format))) {
    throw new TypeError("the format is not valid: expected one name, or several as in encodeAll(image, ['png', 'stats'])");
  }
  for (const name of Object.keys(options)) {
    if (!KNOWN.has(name)) throw new TypeError(`${name} is not an option: expected any of ${[...KNOWN].join(", ")}`);
  }
  const query = new URLSearchParams({ format: formats.join(",") });
  for (const [name, key] of Object.entries(QUERY)) {
    if (options[name] !== undefined) query.set(key, String(options[name]));
  }
  for (const name of LISTS) {
    const list = options[name];
    if (list === undefined) continue;
    if (!Array.isArray(list)) throw new TypeError(`${name} is not valid: expected a list, such as ["road", "car"] or ["flip", 0.75]`);
    if (list.length) query.set(name, list.join(","));
  }
  if (options.confidence) query.set("confidence", "true");
  return query;
}

async function read(png) {
  return decodePng(new Uint8Array(await png.arrayBuffer()));
}

/** Returns milliseconds by stage. */
function readTimings(headers) {
  const entries = (headers.get("Server-Timing") ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g);
  return Object.fromEntries(Array.from(entries, ([, stage, duration]) => [stage, Number(duration)]));
}
