// The conversation as elements: one article a message.

import { el, iconButton } from "./dom.js";
import { aloneNotice } from "./check.js";
import { trouble } from "./link.js";
import { counts, pieces, WRITERS } from "./record.js";
import { show } from "./text.js";

/** The elements of one message. actions: what its buttons do, by name. */
export class MessageView {
  #body = el("div", { class: "body" });
  #foot = el("footer", {});
  #coloured = 0; // so many pieces are shown with their writers' colours
  #ride = false;

  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    const who = message.role === "user" ? "You" : "Answer";
    this.element = el("article", { class: message.role, "aria-label": who }, this.#body, this.#foot);
  }

  /** Show the message as it is now; ride: with its tokens in their writers' colours. */
  update(ride) {
    const { message } = this;
    this.element.dataset.state = message.state;
    this.element.classList.toggle("riding", ride && message.role === "assistant");
    if (message.role === "user") this.#body.textContent = message.text;
    else if (ride) this.#colour();
    else this.#plain();
    if (message.state !== this.#footed) this.#finish();
    if (message.state === "writing") this.#wait(trouble());
  }

  #footed = null;

  #plain() {
    if (this.#ride) this.#body.replaceChildren();
    this.#ride = false;
    show(this.#body, this.message.text);
  }

  #colour() {
    if (!this.#ride) {
      this.#body.replaceChildren(el("p", { class: "tokens" }));
      this.#coloured = 0;
    }
    this.#ride = true;
    const all = [...pieces(this.message)];
    const fresh = all.slice(this.#coloured).flatMap(([text, letter]) => token(text, letter));
    this.#body.firstElementChild.append(...fresh);
    this.#coloured = all.length;
  }

  #finish() {
    const { message, actions } = this;
    this.#footed = message.state;
    this.#foot.replaceChildren();
    if (message.state === "writing") return;
    if (message.state === "failed") this.#foot.append(this.#fault());
    if (message.alone) this.#foot.append(aloneNotice(message, () => actions.changed()));
    if (message.role === "assistant") this.#foot.append(el("p", { class: "fine" }, summary(message)));
    const buttons = el("div", { class: "actions" });
    if (message.text) buttons.append(iconButton("copy", "Copy", () => actions.copy(message)));
    if (message.role === "user") buttons.append(iconButton("edit", "Edit", () => actions.edit(message)));
    else buttons.append(iconButton("again", "Another answer", () => actions.again(message)));
    this.#foot.append(buttons);
  }

  #waited = "";

  /** Say what the answer waits for. */
  #wait(words) {
    if (words === this.#waited) return;
    this.#waited = words;
    this.#foot.replaceChildren(...(words ? [el("p", { class: "fine waits", role: "status" }, words)] : []));
  }

  #fault() {
    const again = el("button", { type: "button", class: "plain", click: () => this.actions.again(this.message) }, "Try again");
    return el("p", { class: "fault", role: "alert" }, `${this.message.error} `, again);
  }
}

/** Nodes of a token in its writer's colour, underlined in its writer's way; the space before a word belongs to nobody. */
export function token(text, letter) {
  const word = text.trimStart();
  const span = el("span", { class: `by-${WRITERS[letter]}` }, word);
  return [text.slice(0, text.length - word.length), ...(word ? [span] : [])];
}

function summary(message) {
  const told = [];
  if (message.state === "stopped") told.push("Stopped");
  const { metrics } = message;
  if (metrics) {
    if (metrics.tokens_per_s) told.push(`${Math.round(metrics.tokens_per_s)} tokens/s`);
    const all = message.writers.length;
    const { d: first, b: second } = counts(message);
    if (all) told.push(`${Math.round((100 * (first + second)) / all)} % guessed on this device`);
    told.push(`first word after ${Math.round(metrics.ttft_ms)} ms`, `seed ${metrics.seed}`);
    if (metrics.reconnects) told.push(`${metrics.reconnects} reconnect${metrics.reconnects > 1 ? "s" : ""}`);
    told.push(...metrics.notices);
  }
  return told.join(" · ");
}
