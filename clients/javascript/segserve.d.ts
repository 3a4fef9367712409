/** An encoded image: JPEG, PNG, BMP or WebP. Node's `Buffer` is one, and a browser's `File`. */
export type ImageSource = Blob | ArrayBuffer | ArrayBufferView;

export type Format = "png" | "overlay" | "confidence" | "npy" | "raw" | "stats" | "rle" | "polygons";

export interface ClientOptions {
  /** Used where a call names none. */
  model?: string;
  /** Sent with every call; readable on the way unless the server speaks https. */
  apiKey?: string;
  /** The longest that one call may take, and the deadline that the server sees; 30,000. */
  timeoutMs?: number;
  /** Instead of the global one. */
  fetch?: typeof fetch;
}

export interface CallOptions {
  /** Ends the call: it rejects with the signal's reason, and the server stops working on it. */
  signal?: AbortSignal;
  /** Instead of the client's. */
  timeoutMs?: number;
}

export interface ModelOptions extends CallOptions {
  /** A model, or a family of them. */
  model?: string;
  /** The highest that is served unless given. */
  version?: number;
}

export interface SegmentOptions extends ModelOptions {
  /** Of the answer: the image's own, or the network's. */
  size?: "original" | "model";
  /** Interpolate logits (true) or take nearest ids (false); unless given, what the model can. */
  smooth?: boolean;
  /** Names or ids to keep; other pixels become the ignore label. */
  classes?: readonly (string | number)[];
  /** Of each pixel, beside the mask; in files: adds it to npy (then npz), stats, rle and polygons. */
  confidence?: boolean;
  /** Test-time augmentation: "flip", and scales. */
  tta?: readonly (string | number)[];
}

export interface EncodeOptions extends SegmentOptions {
  /** Of an overlay. */
  image?: "png" | "jpeg";
  /** Of an overlay as JPEG, 1 to 100. */
  quality?: number;
  /** Of an overlay's colours, 0 to 1. */
  opacity?: number;
  /** Below an overlay: names and colours. */
  legend?: boolean;
  /** Of polygons, in pixels. */
  tolerance?: number;
  /** Of polygons, in pixels. */
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
  /** The model that answered: of a family, the one that was chosen. */
  readonly model: string;
  readonly version: number;
  /** Of the image that was sent, after its EXIF orientation. */
  readonly imageSize: { readonly height: number; readonly width: number };
  /** Milliseconds that the server spent in each stage. */
  readonly timings: Readonly<Record<string, number>>;
  /** The mask as the server sent it: an indexed PNG, its pixel values the class ids. */
  readonly png: Blob;
  /** 255 for certain, where it was asked for. */
  readonly confidence?: Uint8Array;
  /** The mask in its classes' colours, four bytes a pixel; pixels of no class are transparent. */
  rgba(alpha?: number): Uint8ClampedArray<ArrayBuffer>;
}

export class SegserveError extends Error {
  /** Of HTTP; 0 where no server answered. */
  readonly status: number;
  /** The server's name for its error (`model_not_found`, `queue_full`), or `unreachable` or
   * `deadline_exceeded` of this side; empty where something else than segserve answered. */
  readonly code: string;
  /** Seconds after which a busy server wants to be asked again. */
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
  /** Segments one image; the answer is the file that the server writes, its `type` the media type. */
  encode(image: ImageSource, format?: Format, options?: EncodeOptions): Promise<Blob>;
  /** Segments one image once; the answer is one file a format. */
  encodeAll<F extends Format>(
    image: ImageSource,
    formats: readonly F[],
    options?: EncodeOptions,
  ): Promise<Record<F, Blob>>;
  /** What the ids of a model mean. */
  classes(options?: ModelOptions): Promise<SegmentClass[]>;
  /** The names of the loaded models. */
  models(options?: CallOptions): Promise<string[]>;
  /** Whether the server has loaded its models; rejects where there is no server. */
  isReady(options?: CallOptions): Promise<boolean>;
}
