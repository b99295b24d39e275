// One question and its answer: asks, gathers what arrives, waits where the server is busy, and tells what went wrong.

import { ApiError, chat } from "./api.js";

const MAX_TRIES = 5; // at a busy server
const LONGEST_WAIT_S = 60; // that is waited without being asked

/** An answer of which nothing has come yet. */
export function emptyAnswer() {
  return { role: "assistant", content: "", thoughts: "", drafted: [], facts: {}, ended: "", error: "" };
}

/** What is sent: earlier answers without their thoughts, and two questions in a row as one. */
export function bodyOf(messages, model, settings) {
  const turns = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const { role, content } of messages) {
    const last = turns[turns.length - 1];
    if (!content) continue;
    if (role === "user" && last?.role === "user") last.content += `\n\n${content}`;
    else turns.push({ role, content });
  }
  const body = { model, messages: turns, stream: true, stream_options: { include_usage: true } };
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.maxTokens !== null) body.max_tokens = settings.maxTokens;
  if (settings.thinking) body.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  return body;
}

export class Exchange {
  /** `prepare` resolves to what is sent. */
  constructor(answer, prepare, key, changed) {
    Object.assign(this, { answer, prepare, key, changed });
    this.stopper = new AbortController();
    this.startedAt = performance.now();
    this.firstAt = null;
    this.waitUntil = null; // when a busy server is asked again, on performance.now()'s clock
    this.wake = () => {};
  }

  get isThinking() {
    return Boolean(this.answer.thoughts) && !this.answer.content;
  }

  stop() {
    this.stopper.abort();
    this.wake();
  }

  /** Asks a busy server now. */
  askNow() {
    this.wake();
  }

  /** Raises nothing: how it ended stands in the answer. */
  async run() {
    const { answer } = this;
    try {
      await this.ask();
      answer.ended ||= "stop";
    } catch (error) {
      if (this.stopper.signal.aborted) answer.ended = "stopped";
      else this.fail(error);
    }
    this.finishFacts();
    this.changed();
  }

  fail(error) {
    if (!(error instanceof ApiError)) console.error(error);
    this.answer.ended = "failed";
    this.answer.error = error instanceof ApiError ? error.message : "This page could not read the answer.";
    this.answer.status = error.status ?? 0;
  }

  async ask() {
    for (let tries = 1; ; tries++) {
      try {
        const body = await this.prepare();
        for await (const event of chat(body, this.key, this.stopper.signal)) this.take(event);
        return;
      } catch (error) {
        const canWait = error.waitS != null && error.waitS <= LONGEST_WAIT_S && tries < MAX_TRIES;
        if (!canWait || this.stopper.signal.aborted) throw error;
        await this.wait(Math.max(error.waitS, 1));
        this.stopper.signal.throwIfAborted();
      }
    }
  }

  async wait(seconds) {
    this.waitUntil = performance.now() + 1000 * seconds;
    this.changed();
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000 * seconds);
      this.wake = () => { clearTimeout(timer); resolve(); };
    });
    this.waitUntil = null;
    this.startedAt = performance.now();
    this.changed();
  }

  take(event) {
    const { answer } = this;
    const choice = event.choices?.[0];
    const { content, reasoning_content: thoughts, drafted } = choice?.delta ?? {};
    if (typeof thoughts === "string" && thoughts) this.first().thoughts += thoughts;
    if (typeof content === "string" && content) {
      mark(this.first().drafted, content, drafted, answer.content.length);
      answer.content += content;
    }
    if (typeof choice?.finish_reason === "string") answer.ended ||= choice.finish_reason;
    this.count(event.usage, event.timings);
    this.changed();
  }

  first() {
    this.firstAt ??= performance.now();
    return this.answer;
  }

  count(usage, timings) {
    const { facts } = this.answer;
    const known = {
      tokens: timings?.predicted_n ?? facts.tokens ?? usage?.completion_tokens,
      promptTokens: usage?.prompt_tokens ?? timings?.prompt_n,
      tokensPerS: timings?.predicted_per_second,
      drafted: timings?.draft_n,
      accepted: timings?.draft_n_accepted,
    };
    for (const [name, value] of Object.entries(known)) if (Number.isFinite(value) && value >= 0) facts[name] = value;
  }

  finishFacts() {
    if (this.firstAt === null) return;
    const { facts } = this.answer;
    facts.firstS = (this.firstAt - this.startedAt) / 1000;
    const writingS = (performance.now() - this.firstAt) / 1000;
    if (facts.tokens > 1 && writingS > 0) facts.tokensPerS ??= (facts.tokens - 1) / writingS;
  }
}

/**
 * Notes what of `content` was drafted. `ranges` are [start, end) in Unicode code points of this delta, as the server
 * counts; the notes count what a string of this language does, from the beginning of the answer.
 */
export function mark(notes, content, ranges, at) {
  if (!Array.isArray(ranges)) return;
  let previous = 0;
  for (const range of ranges) {
    const [start, end] = Array.isArray(range) ? range : [];
    if (!Number.isInteger(start) || !Number.isInteger(end) || start < previous || end <= start) continue;
    previous = end;
    const [from, to] = [at + unitsIn(content, start), at + unitsIn(content, end)];
    if (from === notes[notes.length - 1]) notes[notes.length - 1] = to;
    else if (to > from) notes.push(from, to);
  }
}

/** UTF-16 units that the first `points` code points of `text` take. */
function unitsIn(text, points) {
  let units = 0;
  for (let left = points; left > 0 && units < text.length; left--) units += text.codePointAt(units) > 0xffff ? 2 : 1;
  return units;
}
