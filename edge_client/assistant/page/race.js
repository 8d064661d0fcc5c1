// The race: the same question and seed, first streamed plainly, then ridden; afterwards both recordings side by side.

import { announce, by, el, still } from "./dom.js";
import { answer, Fault } from "./api.js";
import { chosenSeed, request } from "./chat.js";
import { token } from "./messages.js";
import { emptyAnswer, pieces, Ride } from "./record.js";

const LANES = [
  ["streaming", "Plain streaming", "No drafts: a word at a time, as the verifier writes."],
  ["riding", "Outrider", "This device drafts ahead, the verifier decides."],
];
const SEED_BELOW = 2 ** 48;
const TIE = 0.02; // two runs of the same differ by as much

/** A lane: one recorded answer and its elements. */
class Lane {
  #text = el("p", { class: "tokens" });
  #clock = el("span", { class: "clock" }, "");
  #shown = 0;

  constructor(pace, name, meaning) {
    this.pace = pace;
    this.name = name;
    const head = el("header", {}, el("h3", {}, name), this.#clock);
    const box = el("div", { class: "lane-text", tabindex: 0, role: "region", "aria-label": `Text of ${name}` }, this.#text);
    this.element = el("section", { class: "lane" }, head, el("p", { class: "fine" }, meaning), box);
    this.box = box;
  }

  /** Ask; records what comes and when. Throws Fault. */
  async run(body, signal) {
    this.message = emptyAnswer();
    this.ride = new Ride();
    this.#clear();
    for await (const chunk of answer({ ...body, outrider: { pace: this.pace, ride: true, offline: "never" } }, signal)) {
      this.ride.hear(this.message, chunk);
      this.show(Infinity);
    }
  }

  get figures() {
    const { arrivals } = this.ride;
    return { firstMs: arrivals[0]?.[0] ?? 0, totalMs: arrivals.at(-1)?.[0] ?? 0, ...this.message.metrics };
  }

  /** Show what had come by then. */
  show(ms) {
    const { arrivals } = this.ride;
    const come = arrivals.findLast(([at]) => at <= ms);
    const length = come?.[1] ?? 0;
    if (length < this.#shown) this.#clear();
    let end = 0;
    for (const [text, letter] of pieces(this.message)) {
      end += text.length;
      if (end > this.#shown && end <= length) this.#text.append(...token(text, this.pace === "riding" ? letter : "s"));
    }
    this.#shown = length;
    const last = arrivals.at(-1)?.[0] ?? 0;
    this.#clock.textContent = `${(Math.min(ms, last) / 1000).toFixed(2)} s`;
    this.element.classList.toggle("over", ms >= last && this.message.metrics !== null);
    this.box.scrollTop = this.box.scrollHeight;
  }

  #clear() {
    this.#text.replaceChildren();
    this.#shown = 0;
  }
}

/** The dialog. */
export class Race {
  #lanes = [];
  #running = null;
  #frame = 0;

  constructor() {
    by("close-race").addEventListener("click", () => by("race").close());
    by("race").addEventListener("close", () => this.#stop());
    by("race-again").addEventListener("click", () => this.run(this.messages));
    by("replay").addEventListener("click", () => this.#replay());
  }

  /** Race on these messages, the last of which is the user's. */
  async run(messages) {
    this.#stop();
    this.messages = messages;
    const running = new AbortController();
    this.#running = running;
    this.#lanes = LANES.map((lane) => new Lane(...lane));
    by("race-question").textContent = messages.at(-1).text;
    by("lanes").replaceChildren(...this.#lanes.map(({ element }) => element));
    by("figures").replaceChildren();
    by("replay").hidden = by("race-again").hidden = true;
    if (!by("race").open) by("race").showModal();
    const body = request(messages, chosenSeed() ?? Math.floor(Math.random() * SEED_BELOW));
    try {
      this.#tell("Reading the question");
      for await (const _ of answer({ ...body, max_tokens: 1 }, running.signal));
      for (const lane of this.#lanes) {
        this.#tell(`${lane.name} runs`);
        await lane.run(body, running.signal);
      }
      this.#finish();
    } catch (error) {
      if (running.signal.aborted) return;
      if (!(error instanceof Fault)) throw error;
      this.#tell(error.message);
    } finally {
      by("race-again").hidden = false;
    }
  }

  #tell(words) {
    by("verdict").textContent = words;
  }

  #finish() {
    const [plain, riding] = this.#lanes.map(({ figures }) => figures);
    const same = this.#lanes[0].message.text === this.#lanes[1].message.text;
    const ratio = plain.totalMs / riding.totalMs;
    const verdict = judged(ratio);
    by("verdict").replaceChildren(el("strong", { class: ratio > 1 - TIE ? "faster" : "slower" }, verdict), " ", el("span", { class: same ? "same" : "other" }, `Same words: ${same ? "yes" : "no"}`));
    by("figures").replaceChildren(table(plain, riding));
    by("replay").hidden = false;
    announce(`${verdict}. Same words: ${same ? "yes" : "no"}.`);
    if (!still()) this.#replay();
  }

  #replay() {
    cancelAnimationFrame(this.#frame);
    const began = performance.now();
    const end = Math.max(...this.#lanes.map(({ figures }) => figures.totalMs));
    const step = () => {
      const ms = performance.now() - began;
      for (const lane of this.#lanes) lane.show(ms);
      if (ms < end) this.#frame = requestAnimationFrame(step);
    };
    step();
  }

  #stop() {
    this.#running?.abort();
    cancelAnimationFrame(this.#frame);
  }
}

function judged(ratio) {
  if (Math.abs(ratio - 1) < TIE) return "As fast as plain streaming";
  if (ratio > 1) return `${ratio.toFixed(2)}× as fast as plain streaming`;
  return `${(1 / ratio).toFixed(2)}× the time of plain streaming`;
}

function table(plain, riding) {
  const ms = (value) => (value === null || value === undefined ? "–" : `${Math.round(value)} ms`);
  const rows = [
    ["First word", ms(plain.firstMs), ms(riding.firstMs)],
    ["Whole answer", ms(plain.totalMs), ms(riding.totalMs)],
    ["Speed", speed(plain), speed(riding)],
    ["Round trip", ms(plain.rtt_ms), ms(riding.rtt_ms)],
    ["Runs of the large model", plain.forwards, riding.forwards],
    ["Draft efficiency (accepted of drafted)", "–", `${riding.accepted_tokens} of ${riding.drafted_tokens}`],
    ["Bytes up, down", bytes(plain), bytes(riding)],
    ["Seed", plain.seed, riding.seed],
  ];
  const head = el("tr", {}, el("td", {}), ...LANES.map(([, name]) => el("th", { scope: "col" }, name)));
  const body = rows.map(([name, one, other]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(one)), el("td", {}, String(other))));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
}

function speed({ tokens_per_s }) {
  return tokens_per_s ? `${tokens_per_s.toFixed(1)} tokens/s` : "–";
}

function bytes({ uplink_bytes, downlink_bytes }) {
  return `${uplink_bytes}, ${downlink_bytes}`;
}
