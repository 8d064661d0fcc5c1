// One message, and what an answer tells of its ride while it is written.
//
// A message, as it is kept: role, text, state ("done", "writing", "stopped", "failed"), error, metrics; and whose words
// they were first: lengths[i] is how many characters token i has, writers[i] its writer's letter. id: the answer's, to
// have it checked; alone: how many of its last characters the device wrote without the verifier.

/** Writers by letter: who had a token first. */
export const WRITERS = { d: "device", b: "branch", v: "own", s: "server", c: "corrected", o: "offline" };
const LETTERS = Object.fromEntries(Object.entries(WRITERS).map(([letter, writer]) => [writer, letter]));

/** A message of the user's. */
export function question(text) {
  return { role: "user", text, state: "done" };
}

/** An answer that has not begun. */
export function emptyAnswer() {
  return { role: "assistant", text: "", state: "writing", error: "", metrics: null, lengths: [], writers: "", id: "", alone: 0 };
}

/** An answer's ride, which is not kept. samples: live figures, the latest last. arrivals: [ms, characters so far]. */
export class Ride {
  samples = [];
  events = [];
  arrivals = [];
  #began = performance.now();

  /** Add a chunk to the message and to its ride. */
  hear(message, chunk) {
    const text = chunk.choices?.[0]?.delta?.content ?? "";
    const told = chunk.outrider;
    message.id = chunk.id;
    if (chunk.metrics) message.metrics = chunk.metrics;
    if (told?.offline) message.alone = told.offline.text.length;
    if (text) this.#write(message, text, told?.tokens ?? [], told?.link === "offline");
    if (told?.live) this.samples.push(told.live);
    if (told?.events) this.events.push(...told.events);
  }

  #write(message, text, tokens, offline) {
    let left = text.length;
    for (const token of tokens) {
      const length = Math.min(token.text.length, left);
      if (length > 0) add(message, length, LETTERS[token.writer] ?? "s");
      left -= length;
    }
    if (left > 0) add(message, left, offline ? "o" : "s"); // text of no token of its own
    message.text += text;
    this.arrivals.push([performance.now() - this.#began, message.text.length]);
  }
}

function add(message, length, letter) {
  message.lengths.push(length);
  message.writers += letter;
}

/** Take the verifier's words for what the device wrote alone. found: what a check told. */
export function take(message, found) {
  let committed = found.committed_text.length;
  let tokens = 0;
  while (tokens < message.lengths.length && committed >= message.lengths[tokens]) committed -= message.lengths[tokens++];
  message.lengths.length = tokens;
  message.writers = message.writers.slice(0, tokens);
  if (committed) add(message, committed, "s");
  if (found.kept_text) add(message, found.kept_text.length, "d");
  if (found.verifier_text) add(message, found.verifier_text.length, "c");
  message.text = found.text;
  message.alone = 0;
}

/** Pieces of an answer's text with their writers' letters, one per token. */
export function* pieces(message) {
  let start = 0;
  for (const [index, length] of message.lengths.entries()) {
    yield [message.text.slice(start, start + length), message.writers[index]];
    start += length;
  }
  if (start < message.text.length) yield [message.text.slice(start), "s"];
}

/** How many tokens each writer has, by letter. */
export function counts(message) {
  const counted = Object.fromEntries(Object.keys(WRITERS).map((letter) => [letter, 0]));
  for (const letter of message.writers) counted[letter] += 1;
  return counted;
}
