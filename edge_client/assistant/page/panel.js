// The ride beside the conversation: legend, live strip, timeline of the latest answer.

import { by, el } from "./dom.js";
import { counts, WRITERS } from "./record.js";
import { Spark } from "./spark.js";
import { Timeline } from "./timeline.js";

const NAMES = {
  d: ["Device", "guessed here, and right"],
  b: ["Branch", "its second guess was right"],
  v: ["Own guess", "of the verifier, and right"],
  s: ["Verifier", "written without a guess"],
  c: ["Corrected", "guessed otherwise here"],
  o: ["Device alone", "without the network"],
};
const FIGURES = [
  ["rtt_ms", "Round trip", (value) => `${Math.round(value)} ms`],
  ["lookahead_tokens", "Lookahead", (value) => `${value} tokens`],
  ["acceptance", "Acceptance rate", (value) => `${Math.round(100 * value)} %`],
  ["tokens_per_s", "Speed", (value) => `${Math.round(value)} tokens/s`],
];

/** The panel; show() draws it, at most once a frame. */
export class Panel {
  #shares = {};
  #sparks = {};
  #timeline = new Timeline();
  #frame = 0;

  constructor() {
    for (const [letter, [name, meaning]] of Object.entries(NAMES)) {
      this.#shares[letter] = el("span", { class: "share" }, "");
      const sample = el("span", { class: `by-${WRITERS[letter]} sample` }, name);
      by("legend").append(el("li", {}, sample, el("span", { class: "meaning" }, meaning), this.#shares[letter]));
    }
    for (const [field, name, words] of FIGURES) {
      const spark = new Spark(field, words);
      this.#sparks[field] = spark;
      by("strip").append(el("div", {}, el("dt", {}, name), el("dd", {}, spark.value, spark.svg)));
    }
  }

  /** latest: of the conversation, as Chat tells it. */
  show(latest) {
    this.latest = latest;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    if (by("ride").hidden) return;
    const { message, ride } = this.latest ?? { message: null, ride: null };
    const counted = message ? counts(message) : {};
    const all = message?.writers.length ?? 0;
    for (const [letter, share] of Object.entries(this.#shares)) {
      share.textContent = all ? `${Math.round((100 * counted[letter]) / all)} %` : "";
    }
    for (const spark of Object.values(this.#sparks)) spark.show(ride?.samples ?? []);
    this.#timeline.show(ride?.events ?? [], message?.state === "writing");
  }
}
