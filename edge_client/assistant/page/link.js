// How it stands with the verifier: connecting, live, waiting for the network, or no assistant on this device.
//
// While an answer is written its chunks are the sign of life. When they stay away the verifier is asked; if it does not
// say anything either within a second of silence, the answer waits for the network.

import { announce, by } from "./dom.js";
import { ready } from "./api.js";

const WORDS = {
  connecting: "Connecting",
  live: "Live",
  waiting: "Waiting for the network",
  offline: "Offline: this device answers alone",
  gone: "The assistant is not running",
};
const QUIET_MS = 450; // then the verifier is asked
const WAITING_MS = 950; // then people are told
const IDLE_MS = 10_000;

let state = "connecting";
let writing = false;
let heardAt = 0;
let asking = null;
let askedAt = 0;

/** Begin to watch. tell: called with what the verifier says of itself. */
export function watch(tell) {
  const tick = () => {
    const now = performance.now();
    const silent = now - heardAt;
    if (writing && state === "live" && silent > WAITING_MS) put("waiting");
    const every = writing || state !== "live" ? (silent > QUIET_MS ? 1000 : Infinity) : IDLE_MS;
    if (!document.hidden && !asking && now - askedAt > every) ask(tell);
  };
  ask(tell);
  setInterval(tick, 100);
  addEventListener("online", () => ask(tell));
}

/** An answer begins or ends. */
export function busy(now) {
  writing = now;
  heardAt = performance.now();
}

/** Something of an answer came; offline: from the device alone. */
export function heard(offline) {
  heardAt = performance.now();
  put(offline ? "offline" : "live");
}

/** The assistant itself is gone. */
export function gone() {
  put("gone");
}

async function ask(tell) {
  if (asking) return;
  askedAt = performance.now();
  asking = ready(AbortSignal.timeout(4000));
  try {
    tell(await asking);
    heardAt = performance.now(); // it may be slow, but it is there
    if (state !== "offline" || !writing) put("live");
  } catch (error) {
    if (state !== "offline" || !writing) put(error.code === "not_running" ? "gone" : "waiting");
  } finally {
    asking = null;
  }
}

function put(next) {
  if (next === state) return;
  const first = state === "connecting" && next === "live";
  state = next;
  by("link").dataset.state = state;
  by("link-words").textContent = WORDS[state];
  if (!first) announce(WORDS[state]);
}
