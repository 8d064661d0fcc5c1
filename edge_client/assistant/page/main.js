// Puts the page together: keys, buttons, settings.

import { by } from "./dom.js";
import { key } from "./api.js";
import { Chat } from "./chat.js";
import { list } from "./history.js";
import { watch } from "./link.js";
import * as offered from "./offered.js";
import { Panel } from "./panel.js";
import { Race } from "./race.js";
import * as store from "./store.js";

const WIDE = matchMedia("(min-width: 60rem)");
const panel = new Panel();
const race = new Race();
const chat = new Chat(refresh);
const question = by("question");
let listed = "";

function refresh() {
  panel.show(chat.latest);
  by("go").setAttribute("aria-label", chat.busy ? "Stop" : "Send");
  by("go").firstElementChild.firstElementChild.setAttribute("href", chat.busy ? "#icon-stop" : "#icon-send");
  by("go").dataset.busy = String(chat.busy);
  by("open-race").disabled = chat.busy || chat.asked === null;
  const looks = JSON.stringify([chat.chat.id, chat.chat.title, chat.chat.changed]);
  if (looks === listed) return;
  listed = looks;
  list(chat.chat, open);
}

function open(conversation) {
  chat.open(conversation);
  showHistory(false);
  listed = "";
  refresh();
  if (WIDE.matches) question.focus();
}

// -- asking ----------------------------------------------------------------------------------------------------------

function fit() {
  question.rows = 1;
  while (question.scrollHeight > question.clientHeight + 1 && question.rows < 9) question.rows += 1;
}

function send() {
  if (chat.busy) return;
  const text = question.value.trim();
  if (!text) return;
  question.value = "";
  fit();
  chat.ask(text);
}

question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.isComposing) return; // Enter then ends a word of an input method
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && question.value === "" && !chat.busy) {
    event.preventDefault();
    chat.edit();
  }
});
by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.busy) chat.stop();
  else send();
  question.focus();
});
by("stop-editing").addEventListener("click", leave);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (by("history").classList.contains("open")) {
    showHistory(false);
    by("open-history").focus();
  } else if (chat.busy) chat.stop();
  else if (chat.edited) leave();
});

function leave() {
  chat.edit(null);
  question.value = "";
  fit();
  question.focus();
}

// -- beside the conversation -----------------------------------------------------------------------------------------

function showHistory(shown) {
  by("history").classList.toggle("open", shown);
  by("open-history").setAttribute("aria-expanded", String(shown));
  by("veil").hidden = !shown;
}

function showRide(shown) {
  by("ride").hidden = !shown;
  document.body.classList.toggle("with-ride", shown);
  by("ride-switch").checked = shown;
  chat.colour(shown);
}

by("open-history").addEventListener("click", () => {
  showHistory(!by("history").classList.contains("open"));
  if (by("history").classList.contains("open")) by("new").focus();
});
by("veil").addEventListener("click", () => showHistory(false));
by("new").addEventListener("click", () => {
  open(store.newChat());
  question.focus();
});
by("ride-switch").addEventListener("change", () => {
  store.set({ ride: by("ride-switch").checked });
  showRide(by("ride-switch").checked);
});
by("open-race").addEventListener("click", () => race.run(chat.asked));
by("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = dark === "dark" ? "light" : "dark";
  localStorage.setItem("outrider.theme", root.dataset.theme);
});

// -- settings --------------------------------------------------------------------------------------------------------

const FIELDS = { system: "system", offline: "offline", temperature: "temperature", "max-tokens": "maxTokens", seed: "seed" };

by("open-settings").addEventListener("click", () => {
  const set = store.settings();
  for (const [id, name] of Object.entries(FIELDS)) by(id).value = set[name];
  by("offline").value = offered.offline();
  by("key").value = key.get();
  by("settings").showModal();
});
by("model").addEventListener("change", () => offered.choose(by("model").value));
by("settings-form").addEventListener("change", (event) => {
  const { id, value, type } = event.target;
  if (!event.target.checkValidity()) return event.target.reportValidity();
  if (id === "key") key.set(value);
  else if (type !== "number" || value !== "") store.set({ [FIELDS[id]]: type === "number" ? Number(value) : value });
});

// -- beginning -------------------------------------------------------------------------------------------------------

watch((told) => offered.tell(told), () => chat.refresh());
showRide(store.settings().ride);
open(store.chats()[0] ?? store.newChat());
question.focus();
addEventListener("pagehide", () => chat.busy && store.save(chat.chat));
