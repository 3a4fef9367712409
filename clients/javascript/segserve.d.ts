/** An encoded image: JPEG, PNG, BMP or WebP. Node's `Buffer` is one, and a browser's `File`. */
export type ImageSource = Blob | ArrayBuffer | ArrayBufferView;

export type Format = "png" | "overlay" | "confidence" | "npy" | "raw" | "stats" | "rle" | "polygons";

export interface ClientOptions {
  /** Default of calls that name none. */
  model?: string;
  /** Sent with every call; without https anybody on the way can read it. */
  apiKey?: string;
  /** Longest time of one call, and the deadline that the server sees; default: 30,000. */
  timeoutMs?: number;
  /** Replaces the global `fetch`. */
  fetch?: typeof fetch;
}

export interface CallOptions {
  /** Ends the call: it rejects with the signal's reason, and the server stops working on it. */
  signal?: AbortSignal;
  /** Overrides the client's. */
  timeoutMs?: number;
}

export interface ModelOptions extends CallOptions {
  /** Model or family. */
  model?: string;
  /** Default: the highest that is served. */
  version?: number;
}

export interface SegmentOptions extends ModelOptions {
  /** Size of the result: the image's own, or the network's. */
  size?: "original" | "model";
  /** Interpolate logits (true) or take nearest ids (false); default: the model's best. */
  smooth?: boolean;
  /** Names or ids to keep; other pixels get the ignore label. */
  classes?: readonly (string | number)[];
  /** Adds the confidence of each pixel: to results, npy (then npz), stats, rle and polygons. */
  confidence?: boolean;
  /** Test-time augmentation: "flip", and scales. */
  tta?: readonly (string | number)[];
}

export interface EncodeOptions extends SegmentOptions {
  /** File format of an overlay. */
  image?: "png" | "jpeg";
  /** Quality of an overlay as JPEG, 1 to 100. */
  quality?: number;
  /** Opacity of an overlay's colours, 0 to 1. */
  opacity?: number;
  /** Adds names and colours below an overlay. */
  legend?: boolean;
  /** How many pixels polygons may be off the mask. */
  tolerance?: number;
  /** Regions of fewer pixels get no polygon. */
  minArea?: number;
}

export interface SegmentClass {
  id: number;
  name: string;
  /** `#rrggbb` */
  color: string;
}

export class Result {
  /** Class ids, row by row, `height * width` of them; an id that no class has means no class. */
  readonly mask: Uint8Array | Uint16Array;
  readonly width: number;
  readonly height: number;
  readonly classes: readonly SegmentClass[];
  /** The model that answered; of a family, the chosen member. */
  readonly model: string;
  readonly version: number;
  /** Size of the image that was sent, after its EXIF orientation. */
  readonly imageSize: { readonly height: number; readonly width: number };
  /** Milliseconds that the server spent in each stage. */
  readonly timings: Readonly<Record<string, number>>;
  /** The mask as the server sent it: an indexed PNG, its pixel values the class ids. */
  readonly png: Blob;
  /** 255 for certain; only if requested. */
  readonly confidence?: Uint8Array;
  /** The mask in its classes' colours, four bytes a pixel; pixels of no class are transparent. */
  rgba(alpha?: number): Uint8ClampedArray<ArrayBuffer>;
}

export class SegserveError extends Error {
  /** HTTP status; 0 if no server answered. */
  readonly status: number;
  /** The server's name for its error (`model_not_found`, `queue_full`), or `unreachable` or
   * `deadline_exceeded` of the client; empty if something other than segserve answered. */
  readonly code: string;
  /** Seconds after which to retry when the server is busy. */
  readonly retryAfterS: number | null;
}

/** A server; calls may run at the same time. They reject with SegserveError where the server refuses
 * or cannot be reached, and with TypeError where an argument is wrong. */
export class Client {
  /** @param server as `http://localhost:8000`; `""` in a page that the same address serves. */
  constructor(server?: string, options?: ClientOptions);
  readonly server: string;
  readonly model?: string;
  readonly timeoutMs: number;
  /** Segments one image. */
  segment(image: ImageSource, options?: SegmentOptions): Promise<Result>;
  /** Segments one image; returns the file that the server writes, its `type` the media type. */
  encode(image: ImageSource, format?: Format, options?: EncodeOptions): Promise<Blob>;
  /** Segments one image once; returns one file for each format. */
  encodeAll<F extends Format>(
    image: ImageSource,
    formats: readonly F[],
    options?: EncodeOptions,
  ): Promise<Record<F, Blob>>;
  /** Returns id, name and colour of a model's classes. */
  classes(options?: ModelOptions): Promise<SegmentClass[]>;
  /** Returns the names of the loaded models. */
  models(options?: CallOptions): Promise<string[]>;
  /** Returns whether the server has loaded its models; rejects if there is no server. */
  isReady(options?: CallOptions): Promise<boolean>;
}
