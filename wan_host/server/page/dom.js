// Elements and the words in them. Everything is put in as text: nothing here, and nothing else, makes HTML of a string.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Write a text where it is another one: screen readers and selections are left in peace. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, visible) {
  element.hidden = !visible;
}

/** Make the children of `parent` follow `items`: elements of the same key stay as they are, so that focus and playing videos do. */
export function follow(parent, items, keyOf, create, update = () => {}) {
  const keys = new Set(items.map(keyOf));
  const there = new Map();
  for (const child of [...parent.children]) {
    if (keys.has(child.dataset.key)) {
      there.set(child.dataset.key, child);
      continue;
    }
    child.dispatchEvent(new Event("gone"));
    child.remove();
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const element = there.get(key) || create(item);
    element.dataset.key = key;
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
}

export function notice(text, kind = "") {
  const element = h("p", { class: `notice ${kind}` }, text);
  $("notices").append(element);
  setTimeout(() => element.remove(), kind === "bad" ? 9000 : 4000);
}

export function bytes(number) {
  if (number >= 2 ** 30) return `${(number / 2 ** 30).toFixed(1)} GiB`;
  if (number >= 2 ** 20) return `${Math.round(number / 2 ** 20)} MiB`;
  return `${Math.ceil(number / 1024)} KiB`;
}

export const words = (name) => name.replaceAll("_", " ");
export const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
