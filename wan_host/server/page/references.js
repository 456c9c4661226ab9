// Reference images: five modes, the slots that a mode has, and files that are dropped, pasted or chosen for them.

import { $, bytes, follow, h, notice, show, write } from "./dom.js";

export const MODES = {
  none: { label: "None", slots: [] },
  single: { label: "Single", slots: ["image"] },
  start: { label: "Start", slots: ["first_frame"] },
  end: { label: "End", slots: ["last_frame"] },
  both: { label: "Both", slots: ["first_frame", "last_frame"] },
};
const LABELS = { image: "Reference", first_frame: "First frame", last_frame: "Last frame" };
const KEPT_TYPES = ["image/png", "image/jpeg", "image/webp"];
const REST_BYTES = 32 * 1024; // of an entry, for all that is no image
const QUALITIES = [0.92, 0.85, 0.75];
const SMALLEST_SIDE = 64;

const given = new Map(); // slot -> {uri, preview, about}
let limits = { entryBytes: 1 << 20, maxSide: 1280 };

export const mode = () => document.querySelector("input[name=reference_mode]:checked")?.value || "none";
export const slots = () => MODES[mode()].slots;

/** The references that the mode uses, and the first slot that is empty. */
export function references() {
  const used = slots();
  return {
    uris: Object.fromEntries(used.filter((slot) => given.has(slot)).map((slot) => [slot, given.get(slot).uri])),
    missing: used.find((slot) => !given.has(slot)),
  };
}

export const label = (slot) => LABELS[slot];

/** Put what is no file, such as a URL of an earlier job, into a slot; null empties it. */
export function setReference(slot, uri) {
  if (uri) given.set(slot, { uri, preview: null, about: uri });
  else given.delete(slot);
}

export function chooseMode(name) {
  const radio = document.querySelector(`input[name=reference_mode][value="${CSS.escape(name)}"]`);
  if (radio && !radio.disabled) radio.checked = true;
  showSlots();
  return Boolean(radio && !radio.disabled);
}

export function setLimits(entryBytes, maxSide) {
  limits = { entryBytes, maxSide };
}

/** Offer the modes that are allowed. */
export function showModes(allowed) {
  for (const radio of document.querySelectorAll("input[name=reference_mode]")) radio.disabled = !allowed.includes(radio.value);
  if (!allowed.includes(mode())) chooseMode("none");
  showSlots();
}

export function showSlots() {
  follow($("slots"), slots(), (slot) => slot, create, update);
  show($("slots"), slots().length > 0);
  show($("strength"), mode() === "single");
}

function create(slot) {
  const input = h("input", { type: "file", accept: "image/*", class: "seen-by-keys", "aria-label": LABELS[slot] });
  input.addEventListener("change", () => {
    if (input.files.length) take(slot, input.files[0]);
    input.value = "";
  });
  const remove = () => {
    given.delete(slot);
    showSlots();
    input.focus();
  };
  return h(
    "div",
    { class: "slot", "data-slot": slot },
    h("label", {}, input, h("img", { alt: "", hidden: true }), h("span", { class: "hint" })),
    h("button", { type: "button", class: "plain", "aria-label": `Remove ${LABELS[slot]}`, hidden: true, onclick: remove }, "Remove"),
  );
}

function update(element, slot) {
  const [, picture, hint] = element.firstElementChild.children;
  const image = given.get(slot);
  element.classList.toggle("filled", Boolean(image));
  show(element.lastElementChild, Boolean(image));
  show(picture, Boolean(image?.preview));
  if (image?.preview && picture.src !== image.preview) picture.src = image.preview;
  write(hint, image ? image.about : `${LABELS[slot]}: drop an image, or choose one`);
}

async function take(slot, file) {
  let found;
  try {
    found = await prepared(file);
  } catch (error) {
    notice(error.message, "bad");
    return;
  }
  const before = given.get(slot);
  if (before?.preview) URL.revokeObjectURL(before.preview);
  given.set(slot, found);
  showSlots();
  $("slots").dispatchEvent(new Event("input", { bubbles: true }));
}

/** A file as a `data:` URI that fits into an entry of the queue: as it is, or made smaller where it does not. */
async function prepared(file) {
  const room = Math.floor(((limits.entryBytes - REST_BYTES) * 0.75) / 2);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name}: this is no image that the browser can read`);
  }
  const size = `${bitmap.width}×${bitmap.height}`;
  if (KEPT_TYPES.includes(file.type) && file.size <= room) {
    return { uri: await asUri(file), preview: URL.createObjectURL(file), about: `${size}, ${bytes(file.size)}` };
  }
  // the worker crops it to the job's size: its shorter side is what counts
  let side = Math.min(limits.maxSide, bitmap.width, bitmap.height);
  do {
    for (const quality of QUALITIES) {
      const { blob, width, height } = await smaller(bitmap, side, quality);
      if (blob.size > room) continue;
      const about = `${size} made ${width}×${height}, ${bytes(blob.size)}`;
      return { uri: await asUri(blob), preview: URL.createObjectURL(blob), about };
    }
    side = Math.floor(side * 0.8);
  } while (side >= SMALLEST_SIDE);
  throw new Error(`${file.name}: it cannot be made small enough for an entry of the queue`);
}

async function smaller(bitmap, side, quality) {
  const scale = side / Math.min(bitmap.width, bitmap.height);
  const width = Math.max(1, Math.round(bitmap.width * scale));
  const height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = h("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the worker does where an image lets something through
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return { blob: await new Promise((done) => canvas.toBlob(done, "image/jpeg", quality)), width, height };
}

const asUri = (blob) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });

/** Listen for files that are dropped or pasted anywhere: on a slot they go there, elsewhere to the first that is empty. */
export function listenForFiles() {
  const bringsFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!bringsFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
    mark(event.target);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) stop();
  });
  document.addEventListener("drop", (event) => {
    if (!bringsFiles(event)) return;
    event.preventDefault();
    stop();
    place([...event.dataTransfer.files], event.target.closest?.(".slot")?.dataset.slot);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) place([...event.clipboardData.files]);
  });
}

function mark(target) {
  const over = target.closest?.(".slot");
  for (const slot of document.querySelectorAll(".slot")) slot.classList.toggle("over", slot === over);
}

function stop() {
  document.body.classList.remove("dragging");
  mark(document.body);
}

function place(files, slot) {
  if (!slots().length && !chooseMode("single")) {
    notice("This type of job takes no reference", "bad");
    return;
  }
  const free = slots().filter((name) => !given.has(name));
  for (const file of files.slice(0, slots().length)) take(slot ?? free.shift() ?? slots()[0], file);
}
