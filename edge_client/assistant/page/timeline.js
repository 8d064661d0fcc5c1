// What was in flight: time from left to right; above, messages between device and verifier, below, the text growing.
//
// The device knows when it sent a block and when a commit came. The far ends are reckoned: half a round trip away, with
// the verifier's step, whose length the commit tells, just before the commit left.

import { by } from "./dom.js";

const LEFT = 58;
const TOP = 14; // the verifier's line
const FLIGHT = 92; // from there down to the device's
const GAP = 26;
const STAIRS = 116;
const HEIGHT = TOP + FLIGHT + GAP + STAIRS + 22;
const SURE = 0.9; // of a round trip: it is an estimate
const STEPS_MS = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000];

/**
 * How many tokens of each block the verifier used, by block: a used token was the latest block's that held it and could
 * have been there when the step began.
 */
export function usedOf(blocks, commits) {
  const used = new Map(blocks.map((block) => [block, 0]));
  for (const commit of commits) {
    const began = commit.at_ms - SURE * ((commit.rtt_ms ?? 0) + commit.forward_ms);
    for (let position = commit.position; position < commit.position + commit.used; position += 1) {
      const block = blocks.findLast(
        (one) => one.at_ms <= began && one.position <= position && position < one.position + one.tokens,
      );
      if (block) used.set(block, used.get(block) + 1);
    }
  }
  return used;
}

/** The canvas and the slider under it. */
export class Timeline {
  #canvas = by("timeline");
  #window = by("window");
  #events = [];
  #count = -1;
  #writing = false;
  #used = new Map();

  constructor() {
    this.#window.addEventListener("input", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(this.#canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    new MutationObserver(() => this.#draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  show(events, writing) {
    if (events === this.#events && events.length === this.#count && writing === this.#writing) return;
    this.#events = events;
    this.#count = events.length;
    this.#writing = writing;
    if (writing) this.#window.value = this.#window.max;
    this.#draw();
    by("timeline-words").textContent = this.#words();
  }

  get #blocks() {
    return this.#events.filter(({ kind, tokens }) => kind === "sent" && tokens > 0);
  }

  get #commits() {
    return this.#events.filter(({ kind }) => kind === "committed");
  }

  #words() {
    if (!this.#events.length) return "Ask something to see its drafts go up and its commits come down.";
    if (this.#writing) return "Drafts go up (dashed: came to no use), commits come down; below, the text and how far ahead of it the drafts reach.";
    const sent = this.#blocks;
    const drafted = sent.reduce((sum, { tokens }) => sum + tokens, 0);
    const used = this.#commits.reduce((sum, one) => sum + one.used, 0);
    return (
      `${sent.length} blocks with ${drafted} drafted tokens went up, ${this.#commits.length} commits came down; ` +
      `${used} drafted tokens were used; the rest came too late or were wrong. Far ends are reckoned at half a round trip.`
    );
  }

  /** From and to which time the canvas shows: the latest while it is written, what the slider says afterwards. */
  #span() {
    const first = this.#events[0]?.at_ms ?? 0;
    const last = this.#events.at(-1)?.at_ms ?? 1000;
    const rtt = this.#commits.findLast(({ rtt_ms }) => rtt_ms)?.rtt_ms ?? 20;
    const width = Math.min(Math.max(400, 8 * rtt), Math.max(400, last - first + rtt));
    const from = Math.max(0, last + 0.04 * width - width - (first - rtt)) * (this.#window.value / this.#window.max);
    by("window-label").hidden = this.#writing || last - first + rtt <= width;
    return { from: first - rtt + from, width };
  }

  #draw() {
    const { clientWidth } = this.#canvas;
    if (!clientWidth) return;
    const scale = devicePixelRatio || 1;
    this.#canvas.width = clientWidth * scale;
    this.#canvas.height = HEIGHT * scale;
    const pen = this.#canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.#canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    pen.font = `11px ${style.fontFamily}`;
    const { from, width } = this.#span();
    const x = (ms) => LEFT + ((ms - from) / width) * (clientWidth - LEFT - 6);
    this.#used = usedOf(this.#blocks, this.#commits);
    this.#frame(pen, colour, clientWidth, from, width, x);
    if (!this.#events.length) return;
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, clientWidth - LEFT, HEIGHT);
    pen.clip();
    this.#flights(pen, colour, x);
    this.#stairs(pen, colour, x, from, width);
    pen.restore();
  }

  #frame(pen, colour, clientWidth, from, width, x) {
    const step = STEPS_MS.find((one) => width / one <= 6) ?? width;
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("soft");
    pen.lineWidth = 1;
    for (let at = Math.ceil(Math.max(0, from) / step) * step; at <= from + width; at += step) {
      line(pen, x(at), TOP, x(at), HEIGHT - 18);
      const words = step < 1000 ? `${at} ms` : `${at / 1000} s`;
      if (x(at) + pen.measureText(words).width < clientWidth) pen.fillText(words, x(at), HEIGHT - 5);
    }
    pen.strokeStyle = colour("soft");
    line(pen, LEFT, TOP, clientWidth, TOP);
    line(pen, LEFT, TOP + FLIGHT, clientWidth, TOP + FLIGHT);
    pen.fillText("verifier", 0, TOP + 4);
    pen.fillText("device", 0, TOP + FLIGHT + 4);
    pen.fillText("text", 0, HEIGHT - 22);
  }

  #flights(pen, colour, x) {
    const commits = this.#commits;
    let way = (commits.find(({ rtt_ms }) => rtt_ms)?.rtt_ms ?? 0) / 2;
    for (const event of this.#events) {
      if (event.kind === "sent") {
        if (!event.tokens) continue;
        const share = this.#used.get(event) / event.tokens;
        pen.strokeStyle = share > 0 ? colour("accent") : colour("soft");
        pen.lineWidth = 0.75 + Math.min(event.tokens, 8) / 4;
        pen.setLineDash(share > 0 ? [] : [3, 3]);
        line(pen, x(event.at_ms), TOP + FLIGHT, x(event.at_ms + way), TOP);
        pen.setLineDash([]);
        continue;
      }
      way = (event.rtt_ms ?? 2 * way) / 2;
      const left = event.at_ms - way;
      pen.fillStyle = colour("ink");
      pen.globalAlpha = 0.28;
      pen.fillRect(x(left - event.forward_ms), TOP - 7, Math.max(1, x(left) - x(left - event.forward_ms)), 7);
      pen.globalAlpha = 0.55;
      pen.strokeStyle = colour("ink");
      pen.lineWidth = 0.75;
      line(pen, x(left), TOP, x(event.at_ms), TOP + FLIGHT);
      pen.globalAlpha = 1;
      pen.beginPath();
      pen.arc(x(event.at_ms), TOP + FLIGHT, 1 + Math.min(3, Math.sqrt(event.tokens)), 0, 7);
      pen.fill();
    }
  }

  #stairs(pen, colour, x, from, width) {
    const seen = this.#events.filter(({ at_ms }) => at_ms >= from && at_ms <= from + width);
    const base = TOP + FLIGHT + GAP + STAIRS;
    const least = Math.min(...seen.map(({ position }) => position));
    const most = Math.max(...seen.map(({ position, tokens }) => position + tokens));
    const y = (position) => base - (STAIRS * (position - least)) / Math.max(1, most - least);
    for (const event of seen) {
      if (event.kind !== "sent" || !event.tokens) continue;
      const used = this.#used.get(event);
      pen.lineWidth = 2;
      pen.strokeStyle = colour("soft");
      pen.globalAlpha = 0.5;
      line(pen, x(event.at_ms), y(event.position + used), x(event.at_ms), y(event.position + event.tokens));
      pen.globalAlpha = 1;
      pen.strokeStyle = colour("accent");
      line(pen, x(event.at_ms), y(event.position), x(event.at_ms), y(event.position + used));
    }
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1.5;
    pen.beginPath();
    let length = null;
    for (const commit of this.#commits) {
      if (length === null) pen.moveTo(x(commit.at_ms), y(commit.position));
      else pen.lineTo(x(commit.at_ms), y(length));
      length = commit.position + commit.tokens;
      pen.lineTo(x(commit.at_ms), y(length));
    }
    pen.stroke();
  }
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}
