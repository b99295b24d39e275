// What holds text and nothing else: paragraphs, code, tables.

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";

const COLUMNS = /^\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?$/;
const MAX_COLUMNS = 64;

/** Inline text in one element: a paragraph or a heading, drawn again while it grows. */
export class Paragraph {
  constructor(node, ink, kind = "paragraph") {
    Object.assign(this, { node, ink, kind, lines: [], frozen: 0, midLine: false });
  }

  /** `unended` says that the next text goes on in the same line. */
  add(text, at, unended = false) {
    const isFirst = !this.lines.length && !this.frozen;
    const before = isFirst || this.midLine ? "" : "\n";
    this.midLine = unended;
    this.lines.push({ text, at, before, start: this.size + before.length });
  }

  /** What stands is not drawn again; emphasis does not reach across. */
  freeze() {
    this.draw(false);
    this.frozen = this.node.childNodes.length;
    this.lines = [];
  }

  get size() {
    const last = this.lines[this.lines.length - 1];
    return last ? last.start + last.text.length : 0;
  }

  draw(open) {
    while (this.node.childNodes.length > this.frozen) this.node.lastChild.remove();
    const text = this.lines.map((line) => line.before + line.text).join("");
    const isTableSoon = open && this.kind === "paragraph" && this.lines.length === 1 && text[0] === "|";
    if (text && !isTableSoon) this.node.append(...inline(text, this.ink, (i) => this.place(i), open));
  }

  place(index) {
    let [low, high] = [0, this.lines.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.lines[middle].start <= index) low = middle;
      else high = middle - 1;
    }
    return this.lines[low].at + index - this.lines[low].start;
  }
}

/** Code between fences; text is only ever added. */
export class Code {
  kind = "code";
  midLine = false;

  constructor(fence, indent, info, ink) {
    Object.assign(this, { fence, indent, ink });
    const language = info.split(/[\s{,:]/, 1)[0].slice(0, 40);
    this.body = element("code");
    const copy = copyButton("Copy this code", () => this.body.textContent.replace(/\n$/, ""));
    const label = language ? `Code: ${language}` : "Code";
    this.node = element("figure", { class: "code", dir: "ltr" });
    this.node.append(element("figcaption", {}, element("span", {}, language), copy));
    this.node.append(element("pre", { tabindex: 0, role: "region", "aria-label": label }, this.body));
  }

  add(text, at, unended) {
    this.ink.write(this.body, unended ? text : `${text}\n`, at);
    this.midLine = unended;
  }

  draw() {}
}

/** A table; rows are only ever added. */
export class Table {
  kind = "table";

  constructor(head, sides, ink) {
    Object.assign(this, { sides, ink });
    this.body = element("tbody");
    const table = element("table", {}, element("thead", {}, this.row("th", head.text, head.at)), this.body);
    this.node = element("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" }, table);
  }

  add(text, at) {
    this.body.append(this.row("td", text, at));
  }

  row(name, text, at) {
    const cells = cellsOf(text, at);
    return element("tr", {}, ...this.sides.map((side, column) => {
      const cell = cells[column] ?? { text: "", at };
      const nodes = inline(cell.text, this.ink, (i) => cell.at + i);
      return element(name, { dir: "auto", class: side, scope: name === "th" && "col" }, ...nodes);
    }));
  }

  draw() {}
}

/** The cells of a row, each with its place: bars divide them, unless escaped. */
function cellsOf(row, at) {
  const cells = [];
  let start = row[0] === "|" ? 1 : 0;
  for (let i = start; i <= row.length && cells.length <= MAX_COLUMNS; i++) {
    if (row[i] === "\\" && i + 1 < row.length) i++;
    else if (i === row.length ? start < row.length || !cells.length : row[i] === "|") {
      const raw = row.slice(start, i);
      cells.push({ text: raw.trim(), at: at + start + raw.length - raw.trimStart().length });
      start = i + 1;
    }
  }
  return cells;
}

/** How the columns under `head` are aligned, or null where `rule` is no rule of a table or has other columns. */
export function columnsOf(head, rule) {
  if (!COLUMNS.test(rule) || !head.includes("|")) return null;
  const sides = cellsOf(rule, 0).map(({ text }) => sideOf(text));
  return sides.length <= MAX_COLUMNS && sides.length === cellsOf(head, 0).length ? sides : null;
}

function sideOf(rule) {
  if (!rule.endsWith(":")) return null;
  return rule.startsWith(":") ? "centred" : "far";
}
