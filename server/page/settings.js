// The settings dialog: fields in, one record out; nothing holds until it is saved.

import { byId } from "./dom.js";

const NUMBERS = {
  temperature: {
    id: "temperature",
    pattern: /^\d{1,3}(?:[.,]\d{1,6})?$/,
    wrong: "A number from 0 on, such as 0.7, or nothing.",
  },
  maxTokens: { id: "max-tokens", pattern: /^[1-9]\d{0,8}$/, wrong: "A whole number from 1 on, or nothing." },
};

export class SettingsDialog {
  constructor(store, changed) {
    Object.assign(this, { store, changed, dialog: byId("settings") });
    this.dialog.querySelector("form").addEventListener("submit", (event) => {
      if (!this.save()) event.preventDefault();
    });
    for (const id of ["close-settings", "cancel-settings"]) {
      byId(id).addEventListener("click", () => this.dialog.close());
    }
  }

  open() {
    const { settings, key } = this.store;
    byId("system").value = settings.system;
    byId("thinking").value = settings.thinking;
    byId("drafts").checked = settings.drafts;
    byId("api-key").value = key;
    for (const [name, { id }] of Object.entries(NUMBERS)) {
      byId(id).value = settings[name] ?? "";
      this.complain(id, "");
    }
    this.dialog.showModal();
  }

  /** Whether all was right, and is saved. */
  save() {
    const numbers = {};
    const wrong = Object.entries(NUMBERS).filter(([name, rule]) => {
      numbers[name] = this.number(rule);
      this.complain(rule.id, numbers[name] === undefined ? rule.wrong : "");
      return numbers[name] === undefined;
    });
    if (wrong.length) {
      byId(wrong[0][1].id).focus();
      return false;
    }
    const keyChanged = byId("api-key").value.trim() !== this.store.key;
    this.store.saveKey(byId("api-key").value.trim());
    const text = { system: byId("system").value, thinking: byId("thinking").value };
    this.store.saveSettings({ ...this.store.settings, ...numbers, ...text, drafts: byId("drafts").checked });
    this.changed({ keyChanged });
    return true;
  }

  /** null for an empty field, undefined for a wrong one. */
  number({ id, pattern }) {
    const text = byId(id).value.trim();
    if (!text) return null;
    return pattern.test(text) ? Number(text.replace(",", ".")) : undefined;
  }

  complain(id, text) {
    byId(`${id}-wrong`).textContent = text;
    byId(id).setAttribute("aria-invalid", String(Boolean(text)));
  }
}
