// The server behind this page: streams of answers, whether the verifier can be reached, errors as sentences.

const NOT_RUNNING = "The assistant on this device does not answer. Start it again with edge-client serve, then try again.";
const CUT_OFF = "The assistant on this device stopped in mid-answer. Start it again with edge-client serve, then try again.";

/** Why there is no answer, as a sentence. code: OpenAI's, or "not_running". */
export class Fault extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/** The key, if the server wants one; for as long as the tab is open. */
export const key = {
  get: () => sessionStorage.getItem("outrider.key") ?? "",
  set: (value) => sessionStorage.setItem("outrider.key", value),
};

function headers() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

/**
 * The chunks of an answer as they come. Throws Fault, and AbortError once the signal is given, which also ends the
 * session at the verifier.
 */
export async function* answer(body, signal) {
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  };
  const response = await reached(fetch("v1/chat/completions", request), NOT_RUNNING);
  if (!response.ok) throw await faultOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reached(reader.read(), CUT_OFF);
      if (done) throw new Fault(CUT_OFF, "not_running");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue; // a comment that keeps the connection alive
        const data = event.slice(6);
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Fault(sentence(chunk.error.message), chunk.error.code);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // already over
  }
}

/** Whether the verifier can be reached now and lets this device in, and what it serves. Throws Fault. */
export async function status(signal) {
  const response = await reached(fetch("status", { headers: headers(), signal }), NOT_RUNNING);
  if (!response.ok) throw await faultOf(response);
  return response.json();
}

/** The models that may be asked for, the default first. Throws Fault. */
export async function models() {
  const response = await reached(fetch("v1/models", { headers: headers() }), NOT_RUNNING);
  if (!response.ok) throw await faultOf(response);
  return (await response.json()).data.map(({ id }) => id);
}

/** What the verifier makes of an answer that the device finished alone. Throws Fault. */
export async function check(id) {
  const request = { method: "POST", headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify({ id }) };
  const response = await reached(fetch("v1/outrider/check", request), NOT_RUNNING);
  if (!response.ok) throw await faultOf(response);
  return response.json();
}

async function reached(promise, otherwise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError" || error.name === "TimeoutError") throw error;
    throw new Fault(otherwise, "not_running");
  }
}

async function faultOf(response) {
  try {
    const { error } = await response.json();
    return new Fault(sentence(error.message), error.code);
  } catch {
    return new Fault(`The assistant answered with status ${response.status} and no reason. Its log may say more.`, "fault");
  }
}

/** Words with a capital and a full stop. */
export function sentence(words) {
  const told = String(words).trim();
  return told.charAt(0).toUpperCase() + told.slice(1) + (/[.!?]$/.test(told) ? "" : ".");
}
