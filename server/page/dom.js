// Elements made by hand: text never becomes markup.

/** element("p", { class: "note", hidden: true }, "text", child): strings become text nodes. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A small button that shows an icon; `label` is what it is called aloud and on hover. */
export function iconButton(name, label, pressed) {
  const attributes = { type: "button", class: "icon-button small", "aria-label": label, title: label };
  const button = element("button", attributes, icon(name));
  button.addEventListener("click", pressed);
  return button;
}

export const byId = (id) => document.getElementById(id);

/** Says something to a screen reader. */
export function say(text) {
  byId("status").textContent = text;
}

/** A button that copies what `text()` returns, and shows for a moment that it did. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const copied = await copy(text());
    say(copied ? "Copied" : "The browser refused to copy");
    if (!copied) return;
    button.replaceChildren(icon("done"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOldWay(text); // a page that came over plain HTTP from another machine has no clipboard
  }
}

function copyOldWay(text) {
  const focused = document.activeElement;
  const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
