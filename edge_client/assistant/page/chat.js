// The conversation that is open: asking, stopping, asking again, editing.

import { announce, by, copyText } from "./dom.js";
import { answer, Fault } from "./api.js";
import { MessageView } from "./messages.js";
import { emptyAnswer, question, Ride } from "./record.js";
import * as link from "./link.js";
import * as offered from "./offered.js";
import * as store from "./store.js";

const SAVE_EVERY_MS = 2000;
const NEAR_PX = 60;

/** The request's fields that do not depend on who asks. seed: null draws a new one. */
export function request(messages, seed) {
  const { system, temperature, maxTokens } = store.settings();
  const model = offered.model();
  const told = messages.map(({ role, text }) => ({ role, content: text }));
  return {
    messages: system.trim() ? [{ role: "system", content: system }, ...told] : told,
    temperature,
    max_tokens: maxTokens,
    ...(seed === null ? {} : { seed }),
    ...(model ? { model } : {}),
  };
}

/** The seed of the settings, or null for a new one each time. */
export function chosenSeed() {
  const { seed } = store.settings();
  return seed === "" ? null : Number(seed);
}

/** One conversation on the page. changed: called when there is something new to show beside it. */
export class Chat {
  #views = new Map();
  #rides = new WeakMap();
  #running = null;
  #edited = null;
  #colours = false;
  #frame = 0;

  constructor(changed) {
    this.changed = changed;
    this.chat = store.newChat();
    const scroller = by("scroller");
    scroller.addEventListener("scroll", () => this.#atEnd());
    const resized = new ResizeObserver(() => this.#resized());
    for (const element of [scroller, by("messages")]) resized.observe(element);
    by("to-end").addEventListener("click", () => this.#toEnd());
  }

  /** Whether an answer is being written. */
  get busy() {
    return this.#running !== null;
  }

  /** The message that is being edited, or null. */
  get edited() {
    return this.#edited;
  }

  /** The latest answer and its ride, if this page saw it; null before there is one. */
  get latest() {
    const message = this.chat.messages.findLast(({ role }) => role === "assistant");
    return message ? { message, ride: this.#rides.get(message) ?? null } : null;
  }

  /** What a race is about: the messages up to the user's last, or null. */
  get asked() {
    const last = this.chat.messages.findLastIndex(({ role }) => role === "user");
    return last < 0 ? null : this.chat.messages.slice(0, last + 1);
  }

  /** Show another conversation. */
  open(chat) {
    this.stop();
    this.edit(null);
    this.chat = chat;
    for (const message of chat.messages) if (message.state === "writing") message.state = "stopped"; // the page was left
    this.#views.clear();
    by("messages").replaceChildren();
    this.#show();
    this.#toEnd();
  }

  /** Show tokens in their writers' colours, or not. */
  colour(colours) {
    this.#colours = colours;
    this.#show();
  }

  /** Ask, in place of the edited message if there is one. */
  ask(text) {
    const { chat } = this;
    if (this.#edited) chat.messages.length = chat.messages.indexOf(this.#edited);
    this.edit(null);
    chat.messages.push(question(text));
    if (!chat.named && chat.messages.length === 1) chat.title = text.trim().split("\n")[0].slice(0, 60);
    this.#write(chosenSeed());
  }

  /** Another answer; the same words again would be none, so it has a seed of its own unless the last one failed. */
  again(message) {
    if (this.busy) return;
    const { messages } = this.chat;
    messages.length = messages.indexOf(message);
    this.#write(message.state === "failed" ? chosenSeed() : null);
  }

  /** Stop writing. */
  stop() {
    this.#running?.abort();
  }

  /** The link changed: an answer that has not begun says what it waits for. */
  refresh() {
    if (this.busy) this.#soon();
  }

  /** Begin to edit a message of the user's; null: edit none. Without an argument: the last. */
  edit(message = this.chat.messages.findLast(({ role }) => role === "user") ?? null) {
    if (this.busy) return;
    this.#edited = message;
    by("editing").hidden = message === null;
    if (message === null) return;
    by("question").value = message.text;
    by("question").dispatchEvent(new Event("input"));
    by("question").focus();
  }

  async #write(seed) {
    const { chat } = this;
    const offline = offered.offline();
    const body = { ...request(chat.messages, seed), outrider: { ride: true, ...(offline ? { offline } : {}) } };
    const message = emptyAnswer();
    const ride = new Ride();
    const running = new AbortController();
    this.#running = running;
    this.#rides.set(message, ride);
    chat.messages.push(message);
    this.#keep(chat);
    this.#show();
    this.#toEnd();
    announce("Answering");
    link.busy(true);
    link.put("connecting");
    let savedAt = performance.now();
    try {
      for await (const chunk of answer(body, running.signal)) {
        ride.hear(message, chunk);
        link.put(chunk.outrider?.link);
        if (performance.now() - savedAt > SAVE_EVERY_MS) {
          savedAt = performance.now();
          store.save(chat);
        }
        this.#soon();
      }
      message.state = "done";
    } catch (error) {
      if (running.signal.aborted) message.state = "stopped";
      else if (error instanceof Fault) fail(message, error);
      else throw error;
    } finally {
      this.#running = null;
      link.busy(false);
      this.#keep(chat);
      if (chat === this.chat) this.#show();
      this.changed();
    }
    announce(message.state === "done" ? `Answer: ${message.text}` : message.state === "stopped" ? "Stopped" : "");
  }

  #keep(chat) {
    chat.changed = Date.now();
    store.save(chat);
    this.changed();
  }

  #soon() {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#show();
    });
  }

  #show() {
    const { messages } = this.chat;
    const near = this.#near();
    by("empty").hidden = messages.length > 0;
    for (const [message, view] of this.#views) {
      if (messages.includes(message)) continue;
      view.element.remove();
      this.#views.delete(message);
    }
    for (const message of messages) {
      if (!this.#views.has(message)) {
        const view = new MessageView(message, this.#actions);
        this.#views.set(message, view);
        by("messages").append(view.element);
      }
      if (message.state === "writing" || !this.#fresh(message)) this.#views.get(message).update(this.#colours);
    }
    if (near) this.#toEnd();
    this.changed();
  }

  #actions = {
    copy: (message) => copyText(message.text),
    edit: (message) => this.edit(message),
    again: (message) => this.again(message),
    changed: () => {
      this.#views.clear();
      by("messages").replaceChildren();
      this.#keep(this.chat);
      this.#show();
    },
  };

  #shown = new WeakMap();

  /** Whether a message looks as it did when it was shown last; only what is being written changes often. */
  #fresh(message) {
    const looks = `${message.state} ${this.#colours} ${this.#views.get(message).element.isConnected}`;
    const view = this.#views.get(message);
    if (this.#shown.get(view) === looks) return true;
    this.#shown.set(view, looks);
    return false;
  }

  #near() {
    const { scrollTop, scrollHeight, clientHeight } = by("scroller");
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  #toEnd() {
    by("scroller").scrollTop = by("scroller").scrollHeight;
  }

  #atEnd() {
    by("to-end").hidden = this.#reading = this.#near();
  }

  #reading = true; // the end is on show

  /** The ride, a keyboard or a turned phone takes room away, or a message has grown: the end stays on show if it was. */
  #resized() {
    if (this.#reading) this.#toEnd();
    this.#atEnd();
  }
}

function fail(message, fault) {
  message.state = "failed";
  message.error = fault.message;
  if (fault.code === "not_running") link.put("gone");
  if (fault.code === "invalid_api_key") message.error += " Give it under Settings.";
}
