// A figure and how it came to be what it is: a line without axes.

import { el } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 28;
const MOST_SAMPLES = 240;
const SPACE = "http://www.w3.org/2000/svg";

/** field: of the live samples; words: what a value reads like. */
export class Spark {
  constructor(field, words) {
    this.field = field;
    this.words = words;
    this.value = el("span", { class: "value" }, "–");
    this.svg = document.createElementNS(SPACE, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("aria-hidden", "true"); // the value beside it says it in words
    this.line = document.createElementNS(SPACE, "polyline");
    this.area = document.createElementNS(SPACE, "polygon");
    this.svg.append(this.area, this.line);
  }

  show(samples) {
    const known = samples.slice(-MOST_SAMPLES).filter((sample) => typeof sample[this.field] === "number");
    const values = known.map((sample) => sample[this.field]);
    this.value.textContent = values.length ? this.words(values.at(-1)) : "–";
    const most = Math.max(...values) || 1;
    const start = known[0]?.at_ms ?? 0;
    const span = (known.at(-1)?.at_ms ?? 0) - start || 1;
    const points = known.map((sample, index) => {
      const x = (WIDTH * (sample.at_ms - start)) / span;
      return `${x.toFixed(1)},${(HEIGHT - 2 - ((HEIGHT - 4) * values[index]) / most).toFixed(1)}`;
    });
    this.line.setAttribute("points", points.length > 1 ? points.join(" ") : "");
    this.area.setAttribute("points", points.length > 1 ? `0,${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` : "");
  }
}
