// Markdown while it arrives: a complete line is laid down once; only the last block and the unfinished line are drawn
// again.

import { element } from "./dom.js";
import { Code, Paragraph, Table, columnsOf } from "./leaves.js";

const RULE = /^(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const MARKER = /^([-+*]|\d{1,9}[.)])(?=[ \t]|$)/;
const FENCE = /^(`{3,}|~{3,})(.*)$/;
const HEADING = /^(#{1,6})(?=[ \t]|$)/;
const TASK = /^\[([ xX])\][ \t]/;
// An unfinished line that may still become several things is not shown yet.
const UNDECIDED = /^[\s>]*(?:[-+*#=|:][-+*#=|:\s]*|\d{1,9}[.)]?|`{1,2}|~{1,2}|(?:`{3}|~{3})[^`]*)?$/;
const MAX_DEPTH = 16; // quotes and lists in each other
const MAX_OPEN = 4096; // characters of one line or paragraph that are drawn again with every piece

export class Markdown {
  constructor(root, ink) {
    Object.assign(this, { root, ink });
    this.pending = ""; // the unfinished line
    this.at = 0; // where it starts in the answer
    this.stack = []; // open quotes and list items, outermost first
    this.leaf = null; // the open paragraph, table or code
    this.before = null; // how things stood before the unfinished line was shown
  }

  append(text) {
    this.pending += text;
  }

  /** Brings the page up to date; `final` says that nothing follows. */
  draw(final = false) {
    this.rewind();
    this.takeLines();
    if (final) {
      if (this.pending) this.take(this.pending.length, 0);
      this.closeTo(0);
      return;
    }
    if (this.pending && (this.leaf?.midLine || !this.isUndecided())) {
      this.remember();
      this.line(this.pending, this.at);
    }
    this.leaf?.draw(true);
  }

  takeLines() {
    const text = this.pending;
    let from = 0;
    for (;;) {
      const end = text.indexOf("\n", from);
      const isLong = (end < 0 ? text.length : end) - from > MAX_OPEN;
      if (end < 0 && !isLong) break;
      const cut = isLong ? cutOf(text, from) : end;
      const line = text.slice(from, cut);
      this.line(isLong || !line.endsWith("\r") ? line : line.slice(0, -1), this.at + from, isLong);
      if (this.leaf?.size > MAX_OPEN / 2) this.leaf.freeze();
      from = isLong ? cut : end + 1;
    }
    this.pending = text.slice(from);
    this.at += from;
  }

  take(length) {
    this.line(this.pending.slice(0, length), this.at);
    this.pending = this.pending.slice(length);
    this.at += length;
  }

  isUndecided() {
    if (this.leaf?.kind === "code") return /^\s*[`~]+\s*$/.test(this.pending);
    return UNDECIDED.test(this.pending);
  }

  /** Lines only ever add children to what is open, so counting children is enough to go back. */
  remember() {
    const open = [this.root, this.leaf?.body, ...this.stack.flatMap((each) => [each.node, each.list])];
    this.before = {
      counts: open.filter(Boolean).map((node) => [node, node.childNodes.length]),
      stack: [...this.stack],
      leaf: this.leaf,
      lines: this.leaf?.lines?.length,
      midLine: this.leaf?.midLine,
    };
  }

  rewind() {
    if (!this.before) return;
    const { counts, stack, leaf, lines, midLine } = this.before;
    for (const [node, count] of counts) while (node.childNodes.length > count) node.lastChild.remove();
    Object.assign(this, { stack, leaf, before: null });
    if (leaf?.lines) leaf.lines.length = lines;
    if (leaf) leaf.midLine = midLine;
  }

  get here() {
    return this.stack.length ? this.stack[this.stack.length - 1].node : this.root;
  }

  closeTo(depth) {
    this.leaf?.draw(false);
    this.leaf = null;
    this.stack.length = depth;
  }

  /** `at` is where the line starts in the answer; `unended` that it goes on with the next one. */
  line(text, at, unended = false) {
    if (this.leaf?.midLine) return this.leaf.add(text, at, unended);
    const [depth, from] = this.matched(text);
    const whole = depth === this.stack.length;
    if (this.leaf?.kind === "code" && whole) return this.codeLine(text, from, at, unended);
    if (indentOf(text, from)[1] === text.length) return this.closeTo(depth);
    this.block(text, from, at, depth, unended);
  }

  /** How many of the open quotes and items the line continues, and where its own text starts. */
  matched(text) {
    const inCode = this.leaf?.kind === "code";
    let from = 0;
    for (const [depth, { quote, needed, content }] of this.stack.entries()) {
      const [indent, start] = indentOf(text, from);
      if (quote) {
        if (text[start] !== ">") return [depth, from];
        from = start + (text[start + 1] === " " ? 2 : 1);
      } else if (indent >= needed || start === text.length || inCode) {
        from = skip(text, from, content);
      } else {
        return [depth, from];
      }
    }
    return [this.stack.length, from];
  }

  codeLine(text, from, at, unended) {
    const { leaf } = this;
    const rest = text.slice(from).trim();
    if (rest.startsWith(leaf.fence) && rest === rest[0].repeat(rest.length)) return this.closeTo(this.stack.length);
    const start = skip(text, from, leaf.indent);
    leaf.add(text.slice(start), at + start, unended);
  }

  block(text, from, at, depth, unended) {
    for (let open = depth; ; open = this.stack.length) {
      const [indent, start] = indentOf(text, from);
      const rest = text.slice(start);
      if (!rest) return;
      const roomy = this.stack.length < MAX_DEPTH;
      const marker = MARKER.exec(rest);
      if (RULE.test(rest)) return this.add(open, element("hr"));
      if (rest[0] === ">" && roomy) {
        this.openQuote(open);
        from = start + (rest[1] === " " ? 2 : 1);
      } else if (marker && roomy && !this.isWithinParagraph(marker[1], rest, open)) {
        from = this.openItem(open, text, start, indent, marker[1]);
      } else {
        return this.openLeaf(open, text, start, at, indent, unended);
      }
    }
  }

  /** A number that happens to start a line of a paragraph begins no list, unless it is 1; nor does a bare mark. */
  isWithinParagraph(marker, rest, open) {
    if (this.leaf?.kind !== "paragraph" || open < this.stack.length) return false;
    return rest.length === marker.length || (/^\d/.test(marker) && parseInt(marker, 10) !== 1);
  }

  add(depth, node) {
    this.closeTo(depth);
    this.here.append(node);
  }

  openQuote(depth) {
    const node = element("blockquote");
    this.add(depth, node);
    this.stack.push({ quote: true, node });
  }

  openItem(depth, text, start, indent, marker) {
    const ordered = /^\d/.test(marker);
    const sibling = this.stack[depth];
    let list = sibling?.list && sibling.ordered === ordered ? sibling.list : null;
    this.closeTo(depth);
    if (!list) {
      list = ordered ? element("ol", { start: parseInt(marker, 10) }) : element("ul");
      this.here.append(list);
    }
    const node = element("li", { dir: "auto" });
    list.append(node);
    const [spaces, next] = indentOf(text, start + marker.length);
    const gap = spaces > 4 || next === text.length ? 1 : spaces;
    this.stack.push({ node, list, ordered, needed: indent + 2, content: indent + marker.length + gap });
    const from = start + marker.length + Math.min(gap, text.length - start - marker.length);
    const task = TASK.exec(text.slice(from, from + 4));
    if (!task) return from;
    const done = task[1] !== " ";
    node.classList.add("task");
    const label = done ? "done" : "to do";
    node.append(element("input", { type: "checkbox", disabled: true, checked: done, "aria-label": label }));
    return from + 4;
  }

  openLeaf(depth, text, start, at, indent, unended) {
    const rest = unended ? text.slice(start) : text.slice(start).trimEnd();
    const [heading, fence] = [HEADING.exec(rest), FENCE.exec(rest)];
    const whole = depth === this.stack.length;
    if (heading) return this.heading(depth, heading[1].length, rest, at + start, unended);
    if (fence && !(fence[1][0] === "`" && fence[2].includes("`"))) {
      return this.begin(depth, new Code(fence[1], indent, fence[2].trim(), this.ink));
    }
    if (whole && this.leaf?.kind === "table" && rest.includes("|")) {
      this.leaf.add(rest, at + start);
      return;
    }
    if (whole && this.leaf?.kind === "paragraph" && this.table(rest)) return;
    const isLazy = this.stack.slice(depth).every((each) => !each.quote);
    if (this.leaf?.kind !== "paragraph" || !(whole || isLazy)) {
      this.begin(depth, new Paragraph(element("p", { dir: "auto" }), this.ink));
    }
    this.leaf.add(rest, at + start, unended);
  }

  begin(depth, leaf) {
    this.add(depth, leaf.node);
    this.leaf = leaf;
  }

  /** Two levels down: the page's own headings are above those of an answer. */
  heading(depth, level, rest, at, unended) {
    const from = indentOf(rest, level)[1];
    const node = element(`h${Math.min(level + 2, 6)}`, { dir: "auto" });
    this.add(depth, node);
    this.leaf = new Paragraph(node, this.ink, "heading");
    this.leaf.add(withoutClosingHashes(rest.slice(from)), at + from, unended);
  }

  /** Whether `rule` makes the paragraph's last line the head of a table; then the table is open. */
  table(rule) {
    const { leaf } = this;
    const head = leaf.lines[leaf.lines.length - 1];
    const columns = head && columnsOf(head.text, rule);
    if (!columns) return false;
    leaf.lines.pop();
    const table = new Table(head, columns, this.ink);
    if (leaf.lines.length || leaf.frozen) this.closeTo(this.stack.length);
    else leaf.node.remove();
    this.leaf = table;
    this.here.append(table.node);
    return true;
  }
}

/** The columns of white space from `from` on, and where it ends. */
function indentOf(text, from) {
  let [columns, at] = [0, from];
  for (; text[at] === " " || text[at] === "\t"; at++) columns += text[at] === "\t" ? 4 : 1;
  return [columns, at];
}

/** Where `from` is after up to `columns` columns of white space. */
function skip(text, from, columns) {
  let at = from;
  for (let left = columns; left > 0 && (text[at] === " " || text[at] === "\t"); at++) left -= text[at] === "\t" ? 4 : 1;
  return at;
}

function withoutClosingHashes(text) {
  let end = text.length;
  while (text[end - 1] === "#") end--;
  return end === 0 || text[end - 1] === " " ? text.slice(0, end).trimEnd() : text;
}

/** Where to part a line that is too long: after a space if one is near, and never within a character. */
function cutOf(text, from) {
  const end = from + MAX_OPEN;
  const space = text.lastIndexOf(" ", end - 1);
  if (space > from + MAX_OPEN / 2) return space + 1;
  const isWithinCharacter = (text.charCodeAt(end - 1) & 0xfc00) === 0xd800;
  return end - (isWithinCharacter ? 1 : 0);
}
