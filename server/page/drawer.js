// The list of chats: beside the conversation where there is room, over it where there is not.

import { byId, element, iconButton } from "./dom.js";

const narrow = window.matchMedia("(max-width: 800px)");

export class Drawer {
  constructor() {
    this.isOver = false;
    byId("open-drawer").addEventListener("click", () => this.open());
    for (const id of ["close-drawer", "shade"]) byId(id).addEventListener("click", () => this.close());
    narrow.addEventListener("change", () => this.set(false));
    this.set(false);
  }

  open() {
    this.set(true);
    byId("close-drawer").focus();
  }

  close() {
    if (!this.isOver) return;
    this.set(false);
    byId("open-drawer").focus();
  }

  set(isOver) {
    this.isOver = isOver && narrow.matches;
    byId("drawer").inert = narrow.matches && !this.isOver;
    byId("room").inert = this.isOver;
    byId("shade").hidden = !this.isOver;
    byId("drawer").classList.toggle("over", this.isOver);
    byId("open-drawer").setAttribute("aria-expanded", String(this.isOver));
  }
}

export class ChatList {
  constructor({ open, remove }) {
    Object.assign(this, { open, remove, drawn: "" });
  }

  draw(chats, current, running) {
    const rows = chats.map(({ id, title }) => [id, title || "Untitled", id === current, running.has(id)]);
    const drawn = JSON.stringify(rows);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const focused = byId("chats").contains(document.activeElement) && document.activeElement.dataset.id;
    byId("chats").replaceChildren(...rows.map((row) => this.row(...row)));
    if (focused) byId("chats").querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  row(id, title, isCurrent, isRunning) {
    const attributes = { type: "button", class: "chat", dir: "auto", title, "data-id": id };
    const button = element("button", { ...attributes, "aria-current": isCurrent && "true" }, title);
    if (isRunning) button.append(element("span", { class: "pulse", role: "img", "aria-label": "answering" }));
    button.addEventListener("click", () => this.open(id));
    return element("li", {}, button, iconButton("remove", `Delete “${title}”`, () => this.remove(id)));
  }
}

/** Asks; resolves to whether the answer was yes. */
export function confirmed(text, yes) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
