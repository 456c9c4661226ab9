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

/** Make the children of `parent` follow `items`: elements of the same key stay, so that focus and playing videos do. */
export function follow(parent, items, keyOf, create, update = () => {}) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let element = there.get(key);
    if (element) there.delete(key);
    else {
      element = create(item);
      element.dataset.key = key;
    }
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
  for (const element of there.values()) {
    element.dispatchEvent(new Event("gone"));
    element.remove();
  }
}

export function notice(text, kind = "") {
  const element = h("p", { class: `notice ${kind}` }, text);
  $("notices").append(element);
  setTimeout(() => element.remove(), kind === "bad" ? 9000 : 4000);
}

export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** A span of time in the unit that suits it. */
export function span(seconds) {
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export const ago = (time) => (Date.now() / 1000 - time < 5 ? "just now" : `${span(Date.now() / 1000 - time)} ago`);

export function bytes(number) {
  if (number >= 2 ** 30) return `${(number / 2 ** 30).toFixed(1)} GiB`;
  if (number >= 2 ** 20) return `${Math.round(number / 2 ** 20)} MiB`;
  return `${Math.max(1, Math.round(number / 1024))} KiB`;
}

export const words = (name) => name.replaceAll("_", " ");
export const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
