// The list of conversations: open, rename, export, delete.

import { by, el, iconButton, toast } from "./dom.js";
import * as store from "./store.js";

/** Show the list. current: the conversation that is open; open: shows another one. */
export function list(current, open) {
  const again = () => list(current, open);
  const items = store.chats().map((chat) => {
    const here = chat.id === current.id;
    const name = el("button", { type: "button", class: "name", "aria-current": here ? "true" : null, click: () => open(chat) }, chat.title || "Untitled");
    const item = el("li", { class: here ? "here" : "" }, name);
    if (here) {
      item.append(
        el("div", { class: "actions" },
          iconButton("edit", "Rename", () => rename(item, current, again)),
          iconButton("export", "Export", () => download(current)),
          iconButton("delete", "Delete", () => remove(current, open)),
        ),
      );
    }
    return item;
  });
  by("conversations").replaceChildren(...items);
}

function rename(item, chat, again) {
  const input = el("input", { type: "text", value: chat.title, "aria-label": "Name of the conversation", maxlength: 120 });
  let over = false;
  const end = (keep) => {
    if (over) return; // taking the field away makes it lose the focus, too
    over = true;
    if (keep && input.value.trim()) {
      Object.assign(chat, { title: input.value.trim(), named: true });
      store.save(chat);
    }
    again();
    by("conversations").querySelector(".here .name")?.focus();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") {
      event.stopPropagation();
      end(false);
    }
  });
  input.addEventListener("blur", () => end(true));
  item.replaceChildren(input);
  input.select();
}

function download(chat) {
  const messages = chat.messages.map(({ role, text, metrics }) => ({ role, content: text, ...(metrics ? { seed: metrics.seed } : {}) }));
  const { title } = chat;
  const file = new Blob([JSON.stringify({ title, messages }, null, 2)], { type: "application/json" });
  const url = URL.createObjectURL(file);
  el("a", { href: url, download: `${title.replace(/[^\p{L}\p{N} -]/gu, "").trim() || "conversation"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function remove(chat, open) {
  store.forget(chat);
  open(store.newChat());
  const undo = () => {
    store.save(chat);
    open(chat);
  };
  toast(`Deleted “${chat.title || "Untitled"}”. `, { name: "Undo", run: undo });
}
