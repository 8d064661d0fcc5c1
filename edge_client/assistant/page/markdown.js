// Reads Markdown as language models write it: text in, plain objects out. It makes no elements, and HTML in it is text.
//
// A block is {kind, ...}: paragraph, heading, code, list, table, quote, rule. A piece of a line is a string or
// {kind, ...}: code, strong, em, del, link.

const FENCE = /^(\s*)(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+•]|\d{1,9}[.)])(\s+)(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DASHES = /^\s*:?-+:?\s*$/;
const MOST_LEVELS = 8; // of lists and quotes in each other
const LINK = /^(https?:\/\/|mailto:)/i; // everything else, javascript: above all, stays text

// No part looks further than 1000 characters for its end, so a long answer takes linear time.
const INLINE = new RegExp(
  [
    /\\([!-/:-@[-`{-~])/, // 1: an escaped character
    /(?<!`)(`+)(?!`)(.{1,1000}?)(?<!`)\2(?!`)/, // 3: code
    /!?\[([^[\]]{1,1000})\]\(\s*<?([^\s()<>]{1,1000}(?:\([^\s()<>]{0,1000}\)[^\s()<>]{0,1000})?)>?(?:\s+"[^"]{0,1000}")?\s*\)/, // 4, 5: link
    /\*\*(?=\S)(.{1,400}?)(?<=\S)\*\*(?!\*)/, // 6: strong
    /(?<![\w_])__(?=\S)(.{1,400}?)(?<=\S)__(?![\w_])/, // 7: strong
    /(?<![\w*])\*(?=[^\s*])(.{1,400}?)(?<=[^\s*])\*(?![\w*])/, // 8: em
    /(?<![\w_])_(?=[^\s_])(.{1,400}?)(?<=[^\s_])_(?![\w_])/, // 9: em
    /~~(?=\S)(.{1,400}?)(?<=\S)~~/, // 10: del
    /(?<![\w/])(https?:\/\/[^\s<>"`*|]{0,1000}[^\s<>"`*|.,;:!?'()[\]])/, // 11: a bare address
  ]
    .map(({ source }) => source)
    .join("|"),
  "gs",
);

/** The blocks of a text. */
export function blocksOf(text, level = 0) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at, level);
    blocks.push(block);
    at = next;
  }
  nest(blocks.filter(({ kind }) => kind === "heading"));
  return blocks;
}

/** Give each heading its depth, from 1 on without gaps: models begin anywhere and skip levels. */
function nest(headings) {
  const above = [];
  for (const heading of headings) {
    while (above.at(-1) >= heading.level) above.pop();
    above.push(heading.level);
    heading.depth = above.length;
  }
}

/** The block that begins at a line, and the line after it. */
function blockAt(lines, at, level) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return codeAt(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (level < MOST_LEVELS && QUOTE.test(line)) return quoteAt(lines, at, level);
  if (level < MOST_LEVELS && ITEM.test(line)) return listAt(lines, at, level);
  if (isTable(lines, at)) return tableAt(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end, level)) end += 1;
  return [{ kind: "paragraph", text: lines.slice(at, end).join("\n") }, end];
}

/** Whether another block begins at a line, so that a paragraph ends before it. */
function begins(lines, at, level) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  return level < MOST_LEVELS && (QUOTE.test(line) || ITEM.test(line));
}

function codeAt(lines, at, [, indent, marks, language]) {
  const ends = new RegExp(`^\\s*${marks[0]}{${marks.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !ends.test(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).map((line) => dedent(line, indent.length));
  return [{ kind: "code", language, text: text.join("\n") }, end + 1];
}

function quoteAt(lines, at, level) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ kind: "quote", blocks: blocksOf(inner.join("\n"), level + 1) }, end];
}

/** A list: its items at one indent, each with the lines below it that are indented further. */
function listAt(lines, at, level) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const numbered = /\d/.test(mark);
  const items = [];
  let end = at;
  for (;;) {
    const item = ITEM.exec(lines[end] ?? "");
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== numbered || RULE.test(lines[end])) break;
    const inside = item[1].length + item[2].length + 1;
    const own = [item[4]];
    end += 1;
    while (end < lines.length && (isBlank(lines[end]) ? goesOn(lines, end, item[1].length) : indentOf(lines[end]) > item[1].length)) {
      own.push(dedent(lines[end], inside));
      end += 1;
    }
    items.push(blocksOf(own.join("\n"), level + 1));
    const next = skipBlank(lines, end);
    const follows = ITEM.exec(lines[next] ?? "");
    if (!follows || follows[1].length < indent.length) break;
    end = next;
  }
  while (isBlank(lines[end - 1])) end -= 1;
  return [{ kind: "list", start: numbered ? parseInt(mark, 10) : null, items }, end];
}

function isTable(lines, at) {
  const next = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !next.includes("-") || !next.includes("|")) return false;
  const dashes = cellsOf(next);
  return dashes.every((cell) => DASHES.test(cell)) && dashes.length === cellsOf(lines[at]).length;
}

function tableAt(lines, at) {
  const aligned = cellsOf(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "middle" : "right") : ""));
  const head = cellsOf(lines[at]);
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) {
    const cells = cellsOf(lines[end]);
    rows.push(head.map((_, column) => cells[column] ?? ""));
    end += 1;
  }
  return [{ kind: "table", aligned, head, rows }, end];
}

function cellsOf(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** Whether blank lines lie within an item: what follows is indented further than it. */
function goesOn(lines, at, indent) {
  const next = skipBlank(lines, at);
  return next < lines.length && indentOf(lines[next]) > indent + 1;
}

function skipBlank(lines, at) {
  while (at < lines.length && isBlank(lines[at])) at += 1;
  return at;
}

function isBlank(line) {
  return line.trim() === "";
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function dedent(line, most) {
  return line.slice(Math.min(most, indentOf(line)));
}

/** The pieces of a line or a paragraph. */
export function piecesOf(text, level = 0) {
  if (level >= MOST_LEVELS) return [text];
  const pieces = [];
  let after = 0;
  const inner = (kind, inside) => ({ kind, pieces: piecesOf(inside, level + 1) });
  for (const found of text.matchAll(INLINE)) {
    if (found.index > after) pieces.push(text.slice(after, found.index));
    after = found.index + found[0].length;
    const [whole, escaped, , code, label, address, strong, strong2, em, em2, del, bare] = found;
    if (escaped !== undefined) pieces.push(escaped);
    else if (code !== undefined) pieces.push({ kind: "code", text: code.length > 2 && /^ .*\S.* $/s.test(code) ? code.slice(1, -1) : code });
    else if (label !== undefined) pieces.push(LINK.test(address) ? { ...inner("link", label), address } : whole);
    else if (bare !== undefined) pieces.push({ kind: "link", pieces: [bare], address: bare });
    else if (del !== undefined) pieces.push(inner("del", del));
    else pieces.push((strong ?? strong2) !== undefined ? inner("strong", strong ?? strong2) : inner("em", em ?? em2));
  }
  if (after < text.length) pieces.push(text.slice(after));
  return pieces;
}
