/** The error of this client. Its text is the server's own, or says what to do. */
export class SegserveError extends Error {
  /**
   * @param {string} message
   * @param {object} facts `status`: of HTTP, 0 where no server answered; `code`: the server's name for
   *   its error (`model_not_found`), or `unreachable` or `deadline_exceeded` of this side;
   *   `retryAfterS`: seconds after which to retry when the server is busy; `cause`.
   */
  constructor(message, { status = 0, code = "", retryAfterS = null, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "SegserveError";
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** Returns the error of a response that is not a success. */
export async function fromResponse(response) {
  const text = await response.text();
  let content = {};
  try {
    content = JSON.parse(text) ?? {};
  } catch {
    // A proxy's page.
  }
  let message = content.error ?? `${response.status} ${response.statusText}: ${text.slice(0, 500)}`;
  if (response.status === 401) message += " (in this client: apiKey)";
  const after = response.headers.get("Retry-After");
  return new SegserveError(message, {
    status: response.status,
    code: content.code ?? "",
    retryAfterS: after === null || Number.isNaN(Number(after)) ? null : Number(after),
  });
}

/** Returns the error of a connection that cannot be made, or breaks. */
export function unreachable(server, cause) {
  const why = cause?.cause?.code ?? cause?.cause?.message ?? cause?.message;
  return new SegserveError(
    `no segserve answers at ${server || "the page's own address"} (${why}); start one with ` +
      "`segserve serve`, or pass the host and HTTP port of another (default port: 8000)",
    { code: "unreachable", cause },
  );
}
