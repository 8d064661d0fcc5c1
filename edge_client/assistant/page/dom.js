// Making elements. Text always becomes text nodes: what a model says is never read as HTML.

/** The element with an id, which must be there. */
export function by(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found;
}

/** An element; attributes whose value is a function are listeners, true stands alone, null and false are left out. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** One of the icons of index.html. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with an icon and a name. */
export function iconButton(name, label, click) {
  return el("button", { type: "button", class: "icon small", "aria-label": label, title: label, click }, icon(name));
}

let announced = 0;

/** Say something to screen readers, once what they are saying is over. */
export function announce(sentence) {
  const said = el("p", {}, sentence);
  by("announcer").replaceChildren(said);
  announced += 1;
  const mine = announced;
  setTimeout(() => mine === announced && said.remove(), 20_000); // so that nobody comes across it later
}

let toastTimer = 0;

/** A sentence at the foot of the page, with something to do about it if there is. */
export function toast(sentence, action = null) {
  const bar = by("toast");
  const hide = () => (bar.hidden = true);
  const act = () => {
    hide();
    action.run();
  };
  bar.replaceChildren(sentence, action ? el("button", { type: "button", class: "plain", click: act }, action.name) : "");
  bar.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hide, 8000);
}

/** Put a text on the clipboard, and say so. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    const area = el("textarea", {}, text); // no clipboard off the loopback interface without TLS
    document.body.append(area);
    area.select();
    toast(document.execCommand("copy") ? "Copied" : "This browser does not let the page copy");
    area.remove();
  }
}

/** Whether the user asked for little motion. */
export function still() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
