// What stands inside one block: emphasis, code, links. Every character ends in a text node.

import { element } from "./dom.js";

const NEXT = /[\\`*_~[!<&\n]|https?:\/\//gi;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const SPACE = /\s/;
const WORD = /[\p{L}\p{N}]/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const BARE = /https?:\/\/[^\s<>`"|*]{1,2000}/iy;
const ANGLED = /<(https?:\/\/[^\s<>]{1,2000})>/iy;
const BREAK = /<br ?\/?>/iy;
const ENTITY = /&(amp|lt|gt|quot|nbsp|#39);/y;
const ADDRESS = /[^\s<>()]{0,2000}(?:\([^\s<>()]{0,500}\)[^\s<>()]{0,500}){0,9}/.source;
const TITLE = /(?:\s{1,9}(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?/.source;
const DESTINATION = new RegExp(`\\(\\s{0,9}<?(${ADDRESS})>?${TITLE}\\s{0,9}\\)`, "y");
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', nbsp: "\u00a0", "#39": "'" };
const MAX_LABEL = 300;
const MAX_DEPTH = 24; // of emphasis in emphasis: a browser lays out nested elements recursively

/** Writes text and marks what was drafted; `drafted` is [start, end, start, end, ...] in ascending order. */
export class Ink {
  constructor(drafted) {
    this.drafted = drafted;
  }

  /** Appends `text`, which stands at `at` in the answer, to an element or an array of nodes and strings. */
  write(target, text, at) {
    const { drafted } = this;
    const end = at + text.length;
    let from = at;
    for (let range = this.firstEndingAfter(at); range < drafted.length && drafted[range] < end; range += 2) {
      const [start, stop] = [Math.max(drafted[range], from), Math.min(drafted[range + 1], end)];
      put(target, text.slice(from - at, start - at));
      put(target, text.slice(start - at, stop - at), true);
      from = stop;
    }
    put(target, text.slice(from - at));
  }

  firstEndingAfter(at) {
    let [low, high] = [0, this.drafted.length / 2];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.drafted[2 * middle + 1] > at) high = middle;
      else low = middle + 1;
    }
    return 2 * low;
  }
}

/** In an array plain text stays a string, which grows: a node for each star of a thousand would be slow to lay out. */
function put(target, text, drafted = false) {
  if (!text) return;
  const node = drafted ? element("span", { class: "drafted" }, text) : text;
  if (!Array.isArray(target)) target.append(node);
  else if (!drafted && typeof target[target.length - 1] === "string") target[target.length - 1] += text;
  else target.push(node);
}

/** Nodes and strings for `text`. `place(i)` is where character i stands in the answer; `open` says that more may follow. */
export function inline(text, ink, place, open = false, links = true) {
  return new Reader(text, ink, place, open, links).read();
}

/** The address if it leads to a web page and hides no name in front of the host. */
export function safeAddress(text) {
  if (!/^https?:\/\//i.test(text)) return null;
  try {
    const url = new URL(text);
    return url.username || url.password ? null : url.href;
  } catch {
    return null;
  }
}

class Reader {
  constructor(text, ink, place, open, links) {
    Object.assign(this, { text, ink, place, open, links });
    this.stack = [{ mark: "", count: 0, at: 0, nodes: [] }];
    this.waiting = { "*": 0, _: 0, "~": 0 };
    this.unpaired = new Set(); // lengths of runs of backticks that have no partner further on
  }

  get top() {
    return this.stack[this.stack.length - 1];
  }

  write(from, to) {
    if (to > from) this.ink.write(this.top.nodes, this.text.slice(from, to), this.place(from));
  }

  read() {
    let at = 0;
    for (;;) {
      NEXT.lastIndex = at;
      const found = NEXT.exec(this.text);
      this.write(at, found ? found.index : this.text.length);
      if (!found) return this.finish();
      at = this.special(found[0], found.index);
    }
  }

  /** Handles the character at `at`; returns where to read on. */
  special(mark, at) {
    switch (mark) {
      case "\\": return this.escape(at);
      case "\n": return this.add(element("br"), at + 1);
      case "`": return this.code(at);
      case "*": case "_": case "~": return this.emphasis(mark, at);
      case "[": return this.link(at, at) ?? this.literal(at, 1);
      case "!": return (this.text[at + 1] === "[" && this.link(at, at + 1)) || this.literal(at, 1);
      case "<": return this.angle(at);
      case "&": return this.entity(at);
      default: return this.bare(at, mark);
    }
  }

  add(node, next) {
    this.top.nodes.push(node);
    return next;
  }

  literal(at, length) {
    this.write(at, at + length);
    return at + length;
  }

  escape(at) {
    if (!ESCAPABLE.test(this.text[at + 1] ?? "")) return this.literal(at, 1);
    return this.literal(at + 1, 1);
  }

  runAt(at) {
    let end = at;
    while (this.text[end] === this.text[at]) end++;
    return end - at;
  }

  code(at) {
    const length = this.runAt(at);
    const start = at + length;
    let end = this.unpaired.has(length) ? -1 : this.closingRun(start, length);
    if (end < 0) {
      this.unpaired.add(length);
      if (!this.open) return this.literal(at, length);
      end = this.text.length; // its end is probably on the way
    }
    const node = element("code", { dir: "ltr" });
    const inner = this.text.slice(start, end);
    const padded = inner.length > 2 && inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() ? 1 : 0;
    this.ink.write(node, inner.slice(padded, inner.length - padded).replaceAll("\n", " "), this.place(start + padded));
    if (inner) this.add(node);
    return Math.min(end + length, this.text.length);
  }

  closingRun(from, length) {
    for (let at = this.text.indexOf("`", from); at >= 0; ) {
      const run = this.runAt(at);
      if (run === length) return at;
      at = this.text.indexOf("`", at + run);
    }
    return -1;
  }

  emphasis(mark, at) {
    const { text, waiting } = this;
    const count = this.runAt(at);
    const next = at + count;
    if (this.open && next === text.length) return next; // what it opens or closes is on the way
    if (mark === "~" && count !== 2) return this.literal(at, count);
    const [opens, closes] = flanks(mark, count, text[at - 1] ?? " ", text[next] ?? " ");
    let left = count;
    while (closes && left && waiting[mark]) left -= this.close(mark, left);
    if (left && opens && this.stack.length < MAX_DEPTH) {
      waiting[mark]++;
      this.stack.push({ mark, count: left, at: next - left, nodes: [] });
    } else if (left) {
      this.literal(next - left, left);
    }
    return next;
  }

  /** Closes the nearest emphasis of this mark; returns how many of the marks that took. */
  close(mark, count) {
    while (this.top.mark !== mark) this.unwrap();
    const { top } = this;
    const taken = Math.min(count, top.count, 2);
    const node = element(mark === "~" ? "s" : taken === 2 ? "strong" : "em", {}, ...top.nodes);
    top.count -= taken;
    if (top.count) {
      top.nodes = [node];
    } else {
      this.stack.pop();
      this.waiting[mark]--;
      this.add(node);
    }
    return taken;
  }

  /** An emphasis that nothing closed is its marks and what follows them. */
  unwrap() {
    const { mark, count, at, nodes } = this.stack.pop();
    this.waiting[mark]--;
    this.write(at, at + count);
    this.top.nodes.push(...nodes);
  }

  link(at, bracket) {
    if (!this.links) return null;
    const end = this.closingBracket(bracket);
    if (end < 0) return null;
    DESTINATION.lastIndex = end + 1;
    const found = DESTINATION.exec(this.text);
    const address = found && safeAddress(found[1]);
    if (!address) return null;
    const label = this.text.slice(bracket + 1, end);
    const nodes = inline(label, this.ink, (i) => this.place(bracket + 1 + i), false, false);
    return this.add(anchor(address, nodes.length ? nodes : [address]), DESTINATION.lastIndex);
  }

  closingBracket(at) {
    let depth = 0;
    for (let i = at; i < this.text.length && i - at < MAX_LABEL; i++) {
      if (this.text[i] === "\\") i++;
      else if (this.text[i] === "[") depth++;
      else if (this.text[i] === "]" && --depth === 0) return i;
    }
    return -1;
  }

  angle(at) {
    BREAK.lastIndex = ANGLED.lastIndex = at;
    if (BREAK.test(this.text)) return this.add(element("br"), BREAK.lastIndex);
    const found = this.links && ANGLED.exec(this.text);
    return found ? this.linkTo(found[1], at, at + 1, ANGLED.lastIndex) : this.literal(at, 1);
  }

  bare(at, scheme) {
    BARE.lastIndex = at;
    const found = this.links && !WORD.test(this.text[at - 1] ?? " ") && BARE.exec(this.text);
    if (!found) return this.literal(at, scheme.length);
    const address = withoutTrail(found[0]);
    return this.linkTo(address, at, at, at + address.length);
  }

  linkTo(address, at, from, next) {
    const safe = safeAddress(address);
    if (!safe) return this.literal(at, next - at);
    const nodes = [];
    this.ink.write(nodes, address, this.place(from));
    return this.add(anchor(safe, nodes), next);
  }

  entity(at) {
    ENTITY.lastIndex = at;
    const found = ENTITY.exec(this.text);
    if (!found) return this.literal(at, 1);
    this.ink.write(this.top.nodes, ENTITIES[found[1]], this.place(at));
    return ENTITY.lastIndex;
  }

  finish() {
    while (this.stack.length > 1) {
      const { mark, count, nodes } = this.top;
      if (this.open && nodes.length) this.close(mark, count); // its end is probably on the way
      else this.unwrap();
    }
    return this.top.nodes;
  }
}

/** [opens, closes]. Looser than CommonMark beside punctuation, stricter for a lone star between words: 2*3*4. */
function flanks(mark, count, before, after) {
  const [opens, closes] = [!SPACE.test(after), !SPACE.test(before)];
  if (mark === "~") return [opens, closes];
  if (mark === "*") return count === 1 && WORD.test(before) && WORD.test(after) ? [false, false] : [opens, closes];
  return [opens && (!closes || PUNCTUATION.test(before)), closes && (!opens || PUNCTUATION.test(after))];
}

function anchor(address, nodes) {
  const rel = "noopener noreferrer nofollow";
  return element("a", { href: address, target: "_blank", rel, title: address }, ...nodes);
}

/** Without the punctuation of the sentence around it. */
function withoutTrail(address) {
  let end = address.length;
  let surplus = address.split(")").length - address.split("(").length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    if (last === ")" && surplus > 0) surplus--;
    else if (!".,;:!?'\"]}_~".includes(last)) break;
  }
  return address.slice(0, end);
}
