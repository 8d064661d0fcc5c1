// What this browser keeps: conversations, one entry each so that two tabs do not overwrite each other's, and settings.

import { toast } from "./dom.js";

const CHAT = "outrider.chat.";
const SETTINGS = "outrider.settings";
const DEFAULTS = { system: "", temperature: 0.8, maxTokens: 512, seed: "", offline: "", model: "", ride: false };

/** A new conversation, not kept until it is saved. messages: see record.js. */
export function newChat() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), title: "", named: false, changed: Date.now(), messages: [] };
}

/** All conversations, the latest first. */
export function chats() {
  return keys().map(read).filter((chat) => Array.isArray(chat?.messages)).sort((one, other) => other.changed - one.changed);
}

/** Keep a conversation. */
export function save(chat) {
  write(CHAT + chat.id, chat);
}

/** Forget a conversation. */
export function forget(chat) {
  localStorage.removeItem(CHAT + chat.id);
}

/** The settings, with the defaults of what was never set. */
export function settings() {
  return { ...DEFAULTS, ...read(SETTINGS) };
}

/** Set some of them. */
export function set(changes) {
  write(SETTINGS, { ...settings(), ...changes });
}

function keys() {
  return Object.keys(localStorage).filter((name) => name.startsWith(CHAT));
}

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null; // not written by this page
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    toast("This browser has no room to keep the conversation. Export or delete older ones.");
  }
}
