// An answer's Markdown as elements, made one by one: nothing a model says is ever read as HTML.

import { copyText, el, iconButton } from "./dom.js";
import { blocksOf, piecesOf } from "./markdown.js";

/** Show the text in an element; what did not change since last time stays as it is, so that a selection survives. */
export function show(element, text) {
  const blocks = blocksOf(text);
  blocks.forEach((block, index) => {
    const there = element.children[index];
    const mark = JSON.stringify(block);
    if (there?.shown === mark) return;
    const made = RENDER[block.kind](block);
    made.shown = mark;
    if (there) there.replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

const RENDER = {
  paragraph: ({ text }) => el("p", {}, ...inline(text)),
  heading: ({ depth, text }) => el(`h${Math.min(depth + 1, 6)}`, {}, ...inline(text)), // the page has the h1
  rule: () => el("hr"),
  quote: ({ blocks }) => el("blockquote", {}, ...blocks.map(within)),
  list: ({ start, items }) => (start === null ? el("ul", {}, ...items.map(item)) : el("ol", { start }, ...items.map(item))),
  code({ language, text }) {
    const copy = iconButton("copy", "Copy code", () => copyText(text));
    const pre = el("pre", { tabindex: 0, role: "region", "aria-label": language ? `Code, ${language}` : "Code" }, el("code", {}, text));
    return el("div", { class: "code" }, el("div", { class: "about" }, language, copy), pre);
  },
  table({ aligned, head, rows }) {
    const cell = (tag, more) => (text, column) => el(tag, { class: aligned[column] || null, ...more }, ...inline(text));
    const top = el("tr", {}, ...head.map(cell("th", { scope: "col" })));
    const table = el("table", {}, el("thead", {}, top), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell("td"))))));
    return el("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" }, table);
  },
};

/** A block in a list or a quote, whose headings are no headings of the page. */
function within(block) {
  return block.kind === "heading" ? el("p", {}, el("strong", {}, ...inline(block.text))) : RENDER[block.kind](block);
}

/** A list's item; its first paragraph stands beside the mark. */
function item(blocks) {
  const [first, ...rest] = blocks;
  const paragraph = first?.kind === "paragraph" ? first.text.replace(/^\[( |x)\] /i, (_, done) => (done === " " ? "☐ " : "☑ ")) : null;
  const beside = paragraph === null ? blocks : rest;
  return el("li", {}, ...(paragraph === null ? [] : inline(paragraph)), ...beside.map(within));
}

function inline(text) {
  return nodes(piecesOf(text));
}

function nodes(pieces) {
  return pieces.map((piece) => {
    if (typeof piece === "string") return piece;
    if (piece.kind === "code") return el("code", {}, piece.text);
    if (piece.kind === "link") return el("a", { href: piece.address, target: "_blank", rel: "noopener noreferrer" }, ...nodes(piece.pieces));
    return el(piece.kind, {}, ...nodes(piece.pieces));
  });
}
