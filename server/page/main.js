// The page: which chat is shown, what is being answered, and what the buttons do.

import { ApiError, models } from "./api.js";
import { byId, say } from "./dom.js";
import { ChatList, Drawer, confirmed } from "./drawer.js";
import { Exchange, bodyOf, emptyAnswer } from "./exchange.js";
import { Follower } from "./scrolling.js";
import { SettingsDialog } from "./settings.js";
import { Store } from "./store.js";
import { AnswerView, QuestionView } from "./views.js";

const question = byId("question");
const menu = byId("model");
let looking = null; // what finds the models
const running = new Map(); // chat id -> the exchange that answers there
let chat = emptyChat();
let views = []; // one for each message of the chat
let isEditing = false;
let isDrawing = false;

const store = new Store(followTabs);
const drawer = new Drawer();
const list = new ChatList({ open, remove });
const follower = new Follower(byId("scroller"), byId("to-newest"));
const settings = new SettingsDialog(store, settingsChanged);

function emptyChat() {
  return { id: crypto.getRandomValues(new Uint32Array(4)).join("-"), at: Date.now(), title: "", messages: [] };
}

function send(text) {
  if (!text.trim() || running.has(chat.id)) return;
  if (isEditing) chat.messages.length = lastQuestion();
  setEditing(false);
  if (chat.messages.length === 0) chat.title = text.trim().replace(/\s+/g, " ").slice(0, 80);
  chat.messages.push({ role: "user", content: text });
  question.value = "";
  grow();
  ask();
}

/** Has the last question answered, in the place of the answer that is there. */
function again() {
  if (running.has(chat.id)) return;
  chat.messages.length = lastQuestion() + 1;
  ask();
}

function lastQuestion() {
  return chat.messages.findLastIndex((message) => message.role === "user");
}

function ask() {
  const [asked, answer] = [chat, emptyAnswer()];
  const [turns, settings] = [[...chat.messages], store.settings];
  const prepare = async () => bodyOf(turns, await chosenModel(), settings);
  const exchange = new Exchange(answer, prepare, store.key, drawSoon);
  chat.messages.push(answer);
  running.set(asked.id, exchange);
  store.save(asked);
  show();
  follower.toEnd();
  say("Sent");
  exchange.run().then(() => ended(asked, exchange));
  ticking();
}

function ended(asked, exchange) {
  running.delete(asked.id);
  if (store.chats.has(asked.id)) store.save(asked);
  drawList();
  if (asked !== chat) return;
  views[views.length - 1].finish();
  byId("log").setAttribute("aria-busy", "false");
  const { ended: how } = exchange.answer;
  say({ failed: "", stopped: "Stopped" }[how] ?? "The answer is complete");
  follower.follow();
  updateComposer();
}

/** Seconds of waiting pass even when nothing arrives. */
function ticking() {
  const timer = setInterval(() => (running.size ? drawSoon() : clearInterval(timer)), 1000);
}

function drawSoon() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    if (!running.has(chat.id)) return;
    views[views.length - 1]?.draw();
    follower.follow();
  });
}

function show() {
  const exchange = running.get(chat.id) ?? null;
  const actions = { edit, again, settings: () => settings.open() };
  const changed = views.findIndex((view, i) => view.message !== chat.messages[i]);
  if (changed >= 0) views.length = changed; // what stands above stays as it is
  for (const [i, message] of chat.messages.entries()) {
    if (i < views.length) continue;
    const isLast = i === chat.messages.length - 1;
    const how = isLast ? exchange : null;
    views.push(message.role === "user" ? new QuestionView(message, actions) : new AnswerView(message, how, actions));
  }
  byId("log").setAttribute("aria-busy", String(Boolean(exchange)));
  syncChildren(byId("log"), views.map((view) => view.root));
  views.forEach((view, i) => view.setLast(i >= lastQuestion()));
  byId("welcome").hidden = chat.messages.length > 0;
  updateComposer();
  drawList();
}

/** Leaves children that are there already in place, so that a screen reader does not read them again. */
function syncChildren(parent, wanted) {
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
  wanted.forEach((node, i) => {
    if (parent.children[i] === node) return;
    if (parent.children[i]) parent.children[i].replaceWith(node);
    else parent.append(node);
  });
}

function open(id) {
  chat = store.chats.get(id) ?? emptyChat();
  views = [];
  setEditing(false);
  show();
  follower.toEnd();
  drawer.close();
  question.focus();
}

async function remove(id) {
  if (!(await confirmed(`Delete “${store.chats.get(id)?.title ?? "this chat"}”?`, "Delete"))) return;
  running.get(id)?.stop();
  store.remove(id);
  if (id === chat.id) open();
  else drawList();
  question.focus();
}

async function clearAll() {
  if (!(await confirmed("Delete all chats from this browser? This cannot be undone.", "Delete all"))) return;
  for (const exchange of running.values()) exchange.stop();
  store.clear();
  open();
}

function followTabs(gone) {
  if (gone.includes(chat.id) && !running.has(chat.id)) open();
  else drawList();
}

function drawList() {
  list.draw(store.list(), chat.id, new Set(running.keys()));
  byId("clear-chats").disabled = store.chats.size === 0;
}

function updateComposer() {
  const isRunning = running.has(chat.id);
  byId("send").disabled = !question.value.trim() || isRunning;
  const hadFocus = document.activeElement === byId(isRunning ? "send" : "stop");
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  if (hadFocus) question.focus();
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, window.innerHeight * 0.4)}px`;
  updateComposer();
}

function edit() {
  const at = lastQuestion();
  if (at < 0 || running.has(chat.id)) return;
  setEditing(true);
  question.value = chat.messages[at].content;
  grow();
  question.focus();
}

function setEditing(on) {
  if (isEditing && !on) question.value = "";
  isEditing = on;
  byId("editing").hidden = !on;
  grow();
}

function escape() {
  if (drawer.isOver) drawer.close();
  else if (running.has(chat.id)) running.get(chat.id).stop();
  else if (isEditing) setEditing(false);
}

/** Fills the menu, or tells why it cannot; returns what went wrong, or null. */
async function findModels() {
  let [ids, error] = [[], null];
  try {
    ids = await models(store.key);
    if (!ids.length) error = new ApiError("The server offers no model.");
  } catch (failure) {
    error = failure;
  }
  menu.replaceChildren(...(ids.length ? ids.map((id) => new Option(id, id)) : [new Option("No model", "")]));
  if (ids.includes(store.settings.model)) menu.value = store.settings.model;
  menu.disabled = ids.length === 0;
  tellServerError(error);
  return error;
}

async function chosenModel() {
  let error = await looking;
  if (!menu.value) error = await findModels();
  if (!menu.value) throw error;
  return menu.value;
}

function tellServerError(error) {
  const problem = byId("server-error");
  problem.hidden = !error;
  if (!error) return;
  const wantsKey = error.status === 401;
  problem.querySelector("p").textContent = error.message;
  problem.querySelector("button").textContent = wantsKey ? "Open the settings" : "Try again";
  problem.dataset.wants = wantsKey ? "key" : "";
}

function settingsChanged({ keyChanged }) {
  document.body.classList.toggle("show-drafts", store.settings.drafts);
  if (keyChanged) looking = findModels();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(question.value);
});
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send(question.value);
  } else if (event.key === "ArrowUp" && !question.value && lastQuestion() >= 0) {
    event.preventDefault();
    edit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) escape();
});
byId("stop").addEventListener("click", () => running.get(chat.id)?.stop());
byId("cancel-edit").addEventListener("click", () => { setEditing(false); question.focus(); });
for (const id of ["new-chat", "new-chat-small"]) byId(id).addEventListener("click", () => open());
byId("clear-chats").addEventListener("click", clearAll);
byId("open-settings").addEventListener("click", () => settings.open());
menu.addEventListener("change", () => store.saveSettings({ ...store.settings, model: menu.value }));
byId("server-error").querySelector("button").addEventListener("click", () => {
  if (byId("server-error").dataset.wants) settings.open();
  else looking = findModels();
});
window.addEventListener("pagehide", () => {
  for (const [id, exchange] of running) {
    exchange.stop();
    if (store.chats.has(id)) store.save(store.chats.get(id));
  }
});
window.addEventListener("resize", grow);

if (store.isRefused) {
  byId("storage-note").textContent = "This browser keeps nothing for this page: chats last until it is closed.";
}
settingsChanged({ keyChanged: true });
show();
question.focus();
