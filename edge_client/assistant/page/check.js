// What the device wrote alone, and what the verifier makes of it once it can be asked.

import { announce, el } from "./dom.js";
import { check, Fault } from "./api.js";
import { take } from "./record.js";

/** Says that the device finished this answer alone, and offers to have it checked. changed: it has the verifier's words. */
export function aloneNotice(message, changed) {
  const notice = el("div", { class: "alone" });
  const say = (...nodes) => notice.replaceChildren(...nodes);
  const button = (name, click) => el("button", { type: "button", class: "plain", click }, name);
  const ask = button("Have the verifier check it", async () => {
    ask.disabled = true;
    try {
      show(await check(message.id));
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      say(el("p", {}, `${error.message} `, ask));
      ask.disabled = false;
    }
  });
  const show = (found) => {
    const adopt = () => {
      take(message, found);
      changed();
    };
    const verdict = found.agrees ? "The verifier says the same." : "The verifier goes on otherwise:";
    announce(verdict);
    if (found.agrees) return adopt();
    const before = message.text.length > message.alone ? "…" : ""; // the verifier's words, perhaps half of one
    const both = el("p", { class: "difference" }, before, found.kept_text.trimStart(), el("del", {}, found.device_text), el("ins", {}, found.verifier_text));
    say(el("p", {}, verdict), both, button("Take the verifier's words", adopt));
  };
  say(el("p", {}, `This device wrote the last ${words(message)} alone, without the verifier. `, ask));
  return notice;
}

function words(message) {
  const count = message.text.slice(message.text.length - message.alone).trim().split(/\s+/).length;
  return count === 1 ? "word" : `${count} words`;
}
