// What outlives a reload: chats and settings in this browser, the API key in this tab. Where the browser refuses to
// keep them, all works until the page closes.

const CHAT = "edgellm.chat.";
const SETTINGS = "edgellm.settings";
const KEY = "edgellm.key";
const MAX_CHATS = 50;
const MAX_SIZE = 3_000_000; // characters of all chats; browsers give a site some five million
const MAX_MESSAGES = 2000;
const ENDS = new Set(["stop", "length", "stopped", "failed"]);
const DEFAULTS = { model: "", system: "", temperature: null, maxTokens: null, thinking: "", drafts: false };

/** The browser's storage, or null where it is refused. */
function areaOf(name) {
  try {
    window[name].getItem(SETTINGS);
    return window[name];
  } catch {
    return null;
  }
}

export class Store {
  constructor(changed) {
    this.local = areaOf("localStorage");
    this.session = areaOf("sessionStorage");
    this.chats = new Map(); // id -> chat
    this.sizes = new Map(); // id -> characters
    this.key = this.session?.getItem(KEY) ?? "";
    this.settings = this.readSettings();
    for (const name of this.names()) this.read(name);
    this.prune();
    window.addEventListener("storage", (event) => {
      if (event.storageArea !== this.local || (event.key && !event.key.startsWith(CHAT))) return;
      changed(this.follow(event.key));
    });
  }

  get isRefused() {
    return !this.local;
  }

  names() {
    return Object.keys(this.local ?? {}).filter((name) => name.startsWith(CHAT));
  }

  /** Takes over what another tab wrote; returns the ids of the chats that went. */
  follow(name) {
    const before = [...this.chats.keys()];
    if (name) {
      this.forget(name.slice(CHAT.length));
      this.read(name);
    } else {
      this.chats.clear();
      this.sizes.clear();
    }
    return before.filter((id) => !this.chats.has(id));
  }

  read(name) {
    const text = this.local.getItem(name);
    const chat = text && checkedChat(text, name.slice(CHAT.length));
    if (!chat) return;
    this.chats.set(chat.id, chat);
    this.sizes.set(chat.id, text.length);
  }

  /** The newest first. */
  list() {
    return [...this.chats.values()].sort((a, b) => b.at - a.at);
  }

  /** Keeps a chat as the newest; the oldest make room. */
  save(chat) {
    chat.at = Date.now();
    const text = JSON.stringify(chat);
    this.chats.set(chat.id, chat);
    this.sizes.set(chat.id, text.length);
    this.prune();
    while (this.local && !this.write(CHAT + chat.id, text)) if (!this.dropOldest(chat.id)) return;
  }

  prune() {
    const size = () => [...this.sizes.values()].reduce((sum, each) => sum + each, 0);
    while (this.chats.size > 1 && (this.chats.size > MAX_CHATS || size() > MAX_SIZE)) this.dropOldest();
  }

  dropOldest(spared) {
    const oldest = this.list().findLast((chat) => chat.id !== spared);
    if (oldest) this.remove(oldest.id);
    return Boolean(oldest);
  }

  write(name, text) {
    try {
      this.local.setItem(name, text);
      return true;
    } catch {
      return false;
    }
  }

  remove(id) {
    this.forget(id);
    this.local?.removeItem(CHAT + id);
  }

  forget(id) {
    this.chats.delete(id);
    this.sizes.delete(id);
  }

  clear() {
    for (const id of [...this.chats.keys()]) this.forget(id);
    for (const name of this.names()) this.local.removeItem(name);
  }

  readSettings() {
    const found = parse(this.local?.getItem(SETTINGS));
    const settings = { ...DEFAULTS };
    for (const [name, value] of Object.entries(DEFAULTS)) {
      const isRight = value === null ? Number.isFinite(found?.[name]) : typeof found?.[name] === typeof value;
      if (isRight) settings[name] = found[name];
    }
    return settings;
  }

  saveSettings(settings) {
    this.settings = settings;
    if (this.local) this.write(SETTINGS, JSON.stringify(settings));
  }

  saveKey(key) {
    this.key = key;
    try {
      if (key) this.session?.setItem(KEY, key);
      else this.session?.removeItem(KEY);
    } catch {
      // full: kept until the page closes
    }
  }
}

function parse(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

/** Another program may have been served from this address before: only what has our shape is taken. */
function checkedChat(text, id) {
  const chat = parse(text);
  if (!chat || chat.id !== id || !Number.isFinite(chat.at) || !Array.isArray(chat.messages)) return null;
  const messages = chat.messages.slice(0, MAX_MESSAGES).map(checkedMessage);
  if (!messages.length || !messages.every(Boolean)) return null;
  return { id, at: chat.at, title: String(chat.title ?? ""), messages };
}

function checkedMessage(message) {
  if (typeof message?.content !== "string") return null;
  const { role, content } = message;
  if (role === "user") return { role, content };
  if (role !== "assistant") return null;
  const facts = Object.entries(message.facts ?? {}).filter(([, value]) => Number.isFinite(value));
  return {
    role,
    content,
    thoughts: typeof message.thoughts === "string" ? message.thoughts : "",
    drafted: isAscending(message.drafted, content.length) ? message.drafted : [],
    facts: Object.fromEntries(facts),
    ended: ENDS.has(message.ended) ? message.ended : "stopped", // the page was closed while it came
    error: typeof message.error === "string" ? message.error : "",
  };
}

function isAscending(numbers, most) {
  if (!Array.isArray(numbers) || numbers.length % 2) return false;
  return numbers.every((number, i) => Number.isInteger(number) && number >= (numbers[i - 1] ?? 0) && number <= most);
}
