// An answer's text as nodes: paragraphs, lists, code. Nothing else is read into it, and nothing ever as HTML.

import { el } from "./dom.js";

const BULLET = /^\s*[-*•]\s+(.*)$/;
const NUMBER = /^\s*(\d{1,4})[.)]\s+(.*)$/;
const FENCE = /^\s*```\s*([\w+#.-]*)\s*$/;

/** Show the text in an element; what did not change since last time stays as it is, so that a selection survives. */
export function show(element, text) {
  const blocks = [...split(text)];
  blocks.forEach((block, index) => {
    const there = element.children[index];
    const mark = JSON.stringify(block);
    if (there?.shown === mark) return;
    const made = render(block);
    made.shown = mark;
    if (there) there.replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

function* split(text) {
  let block = null;
  for (const line of text.split("\n")) {
    const fence = FENCE.exec(line);
    if (block?.kind === "code") {
      if (fence) {
        yield block;
        block = null;
      } else block.lines.push(line);
      continue;
    }
    const bullet = BULLET.exec(line);
    const number = NUMBER.exec(line);
    const kind = fence ? "code" : bullet ? "bullets" : number ? "numbers" : "paragraph";
    if (block && (block.kind !== kind || fence || line.trim() === "")) {
      yield block;
      block = null;
    }
    if (line.trim() === "") continue;
    block ??= { kind, lines: [], note: fence?.[1] || number?.[1] || "" };
    if (!fence) block.lines.push(bullet?.[1] ?? number?.[2] ?? line);
  }
  if (block) yield block;
}

function render({ kind, lines, note }) {
  if (kind === "code") {
    return el("pre", { tabindex: 0, role: "region", "aria-label": note ? `Code, ${note}` : "Code" }, el("code", {}, lines.join("\n")));
  }
  if (kind === "paragraph") return el("p", {}, ...inline(lines.join("\n")));
  const items = lines.map((line) => el("li", {}, ...inline(line)));
  return kind === "bullets" ? el("ul", {}, ...items) : el("ol", { start: note }, ...items);
}

function inline(text) {
  return text.split(/(`[^`\n]+`)/).filter(Boolean).map((piece) =>
    piece.length > 2 && piece.startsWith("`") && piece.endsWith("`") ? el("code", {}, piece.slice(1, -1)) : piece,
  );
}
