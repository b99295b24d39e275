// The OpenAI API of the server that sent this page.

const MAX_EVENT = 8 << 20; // characters of one event of a stream

/** What went wrong, as a sentence. `waitS` is how long the server asks to wait; `isLost` that no answer came at all. */
export class ApiError extends Error {
  constructor(message, { status = 0, waitS = null, isLost = false } = {}) {
    super(message);
    Object.assign(this, { status, waitS, isLost });
  }
}

/** The ids of the models that the server offers. */
export async function models(key, signal) {
  const response = await request("v1/models", { key, signal });
  const body = await response.json().catch(() => null);
  const ids = Array.isArray(body?.data) ? body.data.map((model) => model?.id) : [];
  return ids.filter((id) => typeof id === "string" && id);
}

/** Yields the events of a streamed answer, parsed. */
export async function* chat(body, key, signal) {
  const response = await request("v1/chat/completions", { key, signal, body });
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new ApiError("The server did not stream its answer; is another program behind this address?");
  }
  let isWhole = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = parsed(data);
    if (event.error) throw new ApiError(sentence(event.error.message) || "The server failed within the answer.");
    isWhole ||= Boolean(event.choices?.[0]?.finish_reason);
    yield event;
  }
  if (!isWhole) throw new ApiError("The connection was lost before the answer was complete.", { isLost: true });
}

async function request(path, { key, signal, body }) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    const sent = { method: body ? "POST" : "GET", body: body && JSON.stringify(body) };
    response = await fetch(path, { ...sent, headers, signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached. Is it still running?", { isLost: true });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const body = await response.json().catch(() => null);
  const said = sentence(body?.error?.message);
  const waitS = waitOf(response.headers.get("retry-after"));
  if (status === 401) return new ApiError(said || "The server wants an API key.", { status });
  if (status === 429) return new ApiError(said || "The server is busy.", { status, waitS });
  const message = said || `The server answered with status ${status}.`;
  return new ApiError(message, { status, waitS: status === 503 ? waitS : null });
}

/** Seconds to wait, from a number or a date; null if there is neither. */
function waitOf(header) {
  if (!header) return null;
  if (/^\d{1,6}$/.test(header)) return Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, Math.ceil((date - Date.now()) / 1000));
}

function sentence(text) {
  if (typeof text !== "string" || !text.trim()) return "";
  const short = text.trim().slice(0, 1000);
  return /[.!?…]$/.test(short) ? short : `${short}.`;
}

function parsed(data) {
  try {
    const event = JSON.parse(data);
    if (event && typeof event === "object") return event;
  } catch {
    // said below
  }
  throw new ApiError("The server sent something that is no part of an answer.");
}

/** The data of server-sent events; comments, which keep the connection alive, are passed over. */
async function* events(stream) {
  let rest = "";
  let data = [];
  for await (const text of texts(stream)) {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop();
    if (rest.length > MAX_EVENT) throw new ApiError("The server sent a line without an end.");
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      if (line || !data.length) continue;
      yield data.join("\n");
      data = [];
    }
  }
}

async function* texts(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(lost);
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function lost(error) {
  if (error.name === "AbortError") throw error;
  throw new ApiError("The connection was lost before the answer was complete.", { isLost: true });
}
