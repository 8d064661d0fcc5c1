// How it stands with the verifier. While an answer is written its chunks tell; in between the verifier is asked.

import { announce, by } from "./dom.js";
import { sentence, status } from "./api.js";

const WORDS = {
  connecting: "Connecting",
  live: "Live",
  waiting: "Waiting for the network",
  refused: "The verifier refuses this device",
  offline: "Offline: this device answers alone",
  gone: "The assistant is not running",
};
const LIVE_EVERY_MS = 10_000;
const ELSE_EVERY_MS = 1000;
const TIMEOUT_MS = 4000;

let state = "connecting";
let writing = false;
let asking = false;
let askedAt = -Infinity;
let reason = "";
let changed = () => {};

/** Begin to watch. tell: called with what the assistant says of itself and of the verifier; change: with each new state. */
export function watch(tell, change) {
  changed = change;
  const look = () => {
    const every = state === "live" ? LIVE_EVERY_MS : ELSE_EVERY_MS;
    const unknown = !writing || state !== "live"; // an answer's chunks tell only once the verifier has been reached
    if (unknown && !asking && !document.hidden && performance.now() - askedAt >= every) ask(tell);
  };
  look();
  setInterval(look, 200);
  document.addEventListener("visibilitychange", look);
}

/** An answer begins or ends. */
export function busy(now) {
  writing = now;
  if (!now && state !== "live") askedAt = -Infinity; // look at once
}

/** What a chunk or a failure says of the link. */
export function put(next) {
  if (next === state || !(next in WORDS)) return;
  if (next === "connecting" && state !== "live") return; // trying again ends no trouble
  const quietly = state === "connecting" || next === "connecting";
  state = next;
  by("link").dataset.state = state;
  by("link-words").textContent = WORDS[state];
  if (!quietly) announce(WORDS[state]);
  changed();
}

/** What an answer waits for, as a sentence; nothing while the link is live. */
export function trouble() {
  if (state === "connecting") return "Connecting to the verifier.";
  if (state !== "waiting" && state !== "refused") return "";
  return `${state === "waiting" ? "The verifier cannot be reached; trying again." : WORDS.refused + "."} ${reason}`.trim();
}

async function ask(tell) {
  asking = true;
  askedAt = performance.now();
  let found = "waiting";
  try {
    const told = await status(AbortSignal.timeout(TIMEOUT_MS));
    reason = told.reason ? sentence(told.reason) : "";
    tell(told);
    if (told.verifier === "reachable") {
      found = "live";
    } else if (told.verifier === "refused") found = "refused";
  } catch (error) {
    if (error.code === "not_running") found = "gone";
  } finally {
    asking = false;
  }
  if (!writing || (state !== "live" && found !== "live")) put(found);
}
