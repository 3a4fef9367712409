/** The one error of this client. Its text is the server's own, or says what to do. */
export class SegserveError extends Error {
  /**
   * @param {string} message
   * @param {object} facts `status`: of HTTP, 0 where no server answered; `code`: the server's name for
   *   its error (`model_not_found`), or `unreachable` or `deadline_exceeded` of this side;
   *   `retryAfterS`: seconds after which a busy server wants to be asked again; `cause`.
   */
  constructor(message, { status = 0, code = "", retryAfterS = null, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "SegserveError";
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** What a response that is no success becomes. */
export async function fromResponse(response) {
  const text = await response.text();
  let told = {};
  try {
    told = JSON.parse(text) ?? {};
  } catch {
    // A proxy's page.
  }
  let message = told.error ?? `${response.status} ${response.statusText}: ${text.slice(0, 500)}`;
  if (response.status === 401) message += " (here: apiKey)";
  const after = response.headers.get("Retry-After");
  return new SegserveError(message, {
    status: response.status,
    code: told.code ?? "",
    retryAfterS: after === null || Number.isNaN(Number(after)) ? null : Number(after),
  });
}

/** What a connection that cannot be made, or breaks, becomes. */
export function unreachable(server, cause) {
  const why = cause?.cause?.code ?? cause?.cause?.message ?? cause?.message;
  return new SegserveError(
    `no segserve answers at ${server || "the page's own address"} (${why}); start one with ` +
      "`segserve serve`, or name the host and HTTP port (8000 unless set) of another",
    { code: "unreachable", cause },
  );
}
