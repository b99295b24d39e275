// How a question and an answer look.

import { copyButton, element, icon, iconButton } from "./dom.js";
import { Ink } from "./inline.js";
import { Markdown } from "./markdown.js";

const ENDINGS = { length: "cut at the most tokens", stopped: "stopped", content_filter: "withheld by the server" };

export class QuestionView {
  constructor(message, { edit }) {
    this.message = message;
    this.editButton = iconButton("edit", "Edit this question", edit);
    const copy = copyButton("Copy this question", () => message.content);
    this.root = element("article", { class: "question" });
    this.root.append(element("h2", { class: "unseen" }, "You"));
    this.root.append(element("div", { class: "bubble", dir: "auto" }, message.content));
    this.root.append(element("div", { class: "tools" }, this.editButton, copy));
  }

  /** Only the last question can be edited. */
  setLast(isLast) {
    this.editButton.hidden = !isLast;
  }
}

export class AnswerView {
  /** `exchange` is what is fetching it, or null; actions: again, settings. */
  constructor(message, exchange, { again, settings }) {
    Object.assign(this, { message, exchange, again, settings, shown: 0, thoughtsShown: 0 });
    this.text = element("div", { class: "markdown" });
    this.markdown = new Markdown(this.text, new Ink(message.drafted));
    this.summary = element("summary", {}, "Thoughts");
    this.thoughts = element("div", { class: "thought", dir: "auto" });
    this.details = element("details", { class: "thoughts", hidden: true }, this.summary, this.thoughts);
    this.waitingText = element("span");
    this.askNow = element("button", { type: "button", class: "link-button", hidden: true }, "Try now");
    this.askNow.addEventListener("click", () => this.exchange?.askNow());
    const dot = element("span", { class: "dot", "aria-hidden": "true" });
    this.waiting = element("p", { class: "waiting", hidden: true }, dot, this.waitingText, this.askNow);
    this.facts = element("p", { class: "facts" });
    this.againButton = iconButton("again", "Answer again", again);
    const copy = copyButton("Copy this answer", () => message.content);
    this.tools = element("div", { class: "tools" }, copy, this.againButton, this.facts);
    this.problem = element("div");
    this.root = element("article", { class: "answer" }, element("h2", { class: "unseen" }, "Answer"));
    this.root.append(this.details, this.text, this.waiting, this.problem, this.tools);
    this.draw();
  }

  setLast(isLast) {
    this.againButton.hidden = !isLast;
    this.problem.querySelector("button")?.toggleAttribute("hidden", !isLast);
  }

  /** Shows what has come since the last time. */
  draw() {
    const { message, exchange } = this;
    const isOver = Boolean(message.ended) && !exchange;
    this.drawThoughts(isOver);
    if (message.content.length > this.shown || isOver) {
      this.markdown.append(message.content.slice(this.shown));
      this.shown = message.content.length;
      this.markdown.draw(isOver);
    }
    this.drawWaiting();
    this.tools.hidden = !isOver || (message.ended === "failed" && !message.content);
    if (isOver) this.drawEnd();
  }

  /** Nothing more comes. */
  finish() {
    this.exchange = null;
    this.draw();
  }

  drawThoughts(isOver) {
    const { message, exchange } = this;
    this.thoughts.append(message.thoughts.slice(this.thoughtsShown));
    this.thoughtsShown = message.thoughts.length;
    this.details.hidden = !message.thoughts;
    const isThinking = Boolean(exchange?.isThinking) && !isOver;
    const label = isThinking ? "Thinking…" : "Thoughts";
    if (this.summary.textContent !== label) this.summary.textContent = label;
    this.details.classList.toggle("now", isThinking);
  }

  /** Before the first token: that the prompt is read, or when a busy server is asked again. */
  drawWaiting() {
    const { message, exchange } = this;
    this.waiting.hidden = !exchange || Boolean(message.content || message.thoughts);
    if (this.waiting.hidden) return;
    const isBusy = exchange.waitUntil !== null;
    this.askNow.hidden = !isBusy;
    const label = isBusy ? busyText(exchange.waitUntil) : readingText(exchange.startedAt);
    if (this.waitingText.textContent !== label) this.waitingText.textContent = label;
  }

  drawEnd() {
    const { message } = this;
    this.facts.replaceChildren(...factsOf(message).map((fact) => element("span", {}, fact)));
    this.problem.replaceChildren();
    if (message.ended !== "failed") return;
    const wantsKey = message.status === 401;
    const label = wantsKey ? ["Open the settings"] : [icon("again"), "Try again"];
    const button = element("button", { type: "button" }, ...label);
    button.addEventListener("click", wantsKey ? this.settings : this.again);
    const text = element("p", { dir: "auto" }, message.error);
    this.problem.append(element("div", { class: "problem", role: "alert" }, text, button));
  }
}

function readingText(since) {
  const seconds = Math.floor((performance.now() - since) / 1000);
  return seconds < 3 ? "Reading…" : `Reading… ${seconds} s`;
}

function busyText(until) {
  const seconds = Math.max(0, Math.ceil((until - performance.now()) / 1000));
  return `The server is busy. Asking again in ${seconds} s.`;
}

/** What an answer cost, each fact where it is known. */
export function factsOf({ facts, ended }) {
  const { tokens, tokensPerS, firstS, drafted, accepted } = facts;
  return [
    tokens !== undefined && `${number(tokens)} ${tokens === 1 ? "token" : "tokens"}`,
    tokensPerS !== undefined && `${number(tokensPerS, 1)} tokens/s`,
    firstS !== undefined && `first after ${number(firstS, firstS < 10 ? 2 : 0)} s`,
    drafted > 0 && `${number(drafted)} drafted${accepted === undefined ? "" : `, ${number(accepted)} accepted`}`,
    ENDINGS[ended],
  ].filter(Boolean);
}

function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
