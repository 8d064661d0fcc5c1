// What the server behind this page offers: the models of its verifier, and whether this device may answer alone.

import { by, el } from "./dom.js";
import { Fault, models } from "./api.js";
import * as store from "./store.js";

let ids = []; // of the models, the default first
let drafts = false;
let alone = null; // --offline-answers, once it is known

/** What the assistant said of itself and of the verifier. */
export async function tell({ verifier, trusted, drafter, offline_answers }) {
  drafts = drafter;
  alone = offline_answers;
  const never = alone === "never";
  by("offline").querySelector("[value=auto]").hidden = by("offline").querySelector("[value=auto]").disabled = never;
  by("offline-words").hidden = !never;
  if (verifier !== "reachable" || !trusted) return;
  try {
    list(await models());
  } catch (error) {
    if (!(error instanceof Fault)) throw error; // the next look tells again
  }
}

function list(found) {
  if (found.join() !== ids.join()) {
    ids = found;
    const menu = by("model");
    menu.replaceChildren(...ids.map((id, index) => el("option", { value: index ? id : "" }, id)));
    menu.value = model();
    by("model-label").hidden = false;
  }
  by("who").textContent = drafts ? `Drafted on this device, decided by ${model() || ids[0]}.` : `Written by ${model() || ids[0]}; no drafter here.`;
}

/** The model to ask for; nothing for the default, also where the chosen one is not served any more. */
export function model() {
  const chosen = store.settings().model;
  return ids.indexOf(chosen) > 0 ? chosen : "";
}

/** What to say of answers without the verifier; nothing where the server would refuse it. */
export function offline() {
  const chosen = store.settings().offline;
  return chosen === "auto" && alone === "never" ? "" : chosen;
}

/** Another model was chosen. */
export function choose(id) {
  store.set({ model: id });
  list(ids);
}
