// The form of a new job. Values that are left out are the model's defaults, shown in their place; the worker judges the rest.

import { changed } from "./actions.js";
import { Problem, read } from "./api.js";
import { $, h, notice, show, words, write } from "./dom.js";
import { MODES, chooseMode, label, listenForFiles, mode, references, setLimits, setReference, showModes, showSlots } from "./references.js";

const SETTINGS = {
  width: "Width",
  height: "Height",
  frames: "Frames",
  fps: "Frames a second",
  num_inference_steps: "Steps",
  guidance_scale: "Guidance",
  num_images: "Images",
  seed: "Seed",
  priority: "Priority",
};
const NUMBER = /^-?\d+(\.\d+)?$/;
const VIDEO_ONLY = ["frames", "fps"];
const OWNER = "operator";

const form = $("form");
const field = (name) => form.elements.namedItem(name);
let offered = { models: [], default: null };

export function buildForm() {
  $("modes").append(
    ...Object.entries(MODES).map(([name, { label: text }]) =>
      h(
        "label",
        { class: "mode", "data-mode": name },
        h("input", { type: "radio", name: "reference_mode", value: name, checked: name === "none" }),
        h("span", { class: "strip", "aria-hidden": true }, ...Array.from({ length: 5 }, () => h("i"))),
        h("span", {}, text),
      ),
    ),
  );
  $("settings").append(
    ...Object.entries(SETTINGS).map(([name, text]) => h("label", { class: "field" }, text, h("input", { name, inputmode: "decimal" }))),
  );
  form.addEventListener("submit", submit);
  form.addEventListener("input", () => blame(null));
  field("model").addEventListener("change", () => showTypes(field("type").value));
  field("type").addEventListener("change", showDefaults);
  field("denoise_strength").addEventListener("input", showStrength);
  field("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  $("modes").addEventListener("change", showSlots);
  document.addEventListener("use-job", (event) => useJob(event.detail));
  showSlots();
  listenForFiles();
}

export function offer(models) {
  offered = models;
  const chosen = field("model").value || models.default;
  field("model").replaceChildren(...models.models.map(({ name }) => h("option", { value: name, selected: name === chosen }, name)));
  showTypes(field("type").value || "video_fast");
}

const model = () => offered.models.find(({ name }) => name === field("model").value);
const defaults = () => model()?.job_types[field("type").value];

function showTypes(chosen) {
  const types = Object.keys(model()?.job_types || {}).sort((one, other) => other.startsWith("video") - one.startsWith("video"));
  const kept = types.includes(chosen) ? chosen : types[0];
  field("type").replaceChildren(...types.map((name) => h("option", { value: name, selected: name === kept }, words(name))));
  showDefaults();
}

function showDefaults() {
  const values = defaults();
  if (!values) return;
  const { reference_modes: modes, image_to_image: imageToImage, bounds } = model();
  const image = values.media === "image";
  for (const name of Object.keys(SETTINGS)) {
    const input = field(name);
    input.placeholder = { seed: "random", num_images: "1", priority: "0" }[name] ?? values[name];
    show(input.parentElement, image ? !VIDEO_ONLY.includes(name) : name !== "num_images");
  }
  showModes(image ? ["none", ...(imageToImage ? ["single"] : [])] : ["none", ...modes]);
  setLimits(offered.max_entry_bytes, bounds.max_side);
}

function showStrength() {
  write($("strength-value"), field("denoise_strength").value);
}

/** What a person has to mend, by the name of the field. */
class Fault extends Error {
  constructor(name, message) {
    super(message);
    this.field = name;
  }
}

function numberOf(name) {
  const input = field(name);
  const text = input.value.trim();
  if (!text || input.parentElement.hidden) return undefined;
  if (!NUMBER.test(text)) throw new Fault(name, `${SETTINGS[name]}: “${text}” is no number`);
  const value = Number(text);
  if (Math.abs(value) > Number.MAX_SAFE_INTEGER) throw new Fault(name, `${SETTINGS[name]}: at most ${Number.MAX_SAFE_INTEGER} here`);
  return value;
}

function payload() {
  const { uris, missing } = references();
  if (missing) throw new Fault(null, `${label(missing)}: drop an image there, or take another mode`);
  const { priority, ...numbers } = Object.fromEntries(Object.keys(SETTINGS).map((name) => [name, numberOf(name)]));
  const config = { model: field("model").value, reference_mode: mode(), ...uris, ...numbers };
  if (mode() === "single") config.denoise_strength = Number(field("denoise_strength").value);
  const unwanted = field("negative_prompt").value.trim();
  if (unwanted) config.negative_prompt = unwanted;
  return { id: newId(), user_id: OWNER, type: field("type").value, prompt: field("prompt").value.trim(), priority, config };
}

function newId() {
  const random = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
  return `page-${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}-${random}`;
}

async function submit(event) {
  event.preventDefault();
  const button = form.querySelector("[type=submit]");
  if (button.disabled) return;
  blame(null);
  button.disabled = true;
  try {
    await read("jobs", { method: "POST", body: payload() });
    notice("Submitted");
    changed();
  } catch (error) {
    if (error instanceof Fault) blame(error.field, error.message);
    else if (error instanceof Problem) blame(error.message.match(/^(?:config\.)?(\w+):/)?.[1], error.message);
    else blame(null, `The worker does not answer: ${error.message}`);
  } finally {
    button.disabled = false;
  }
}

/** Say what is wrong, and lead to the field. */
function blame(name, message = "") {
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  write($("form-fault"), message);
  show($("form-fault"), Boolean(message));
  const input = name && field(name);
  if (!(input instanceof HTMLElement)) return;
  const folded = input.closest("details");
  if (folded) folded.open = true;
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

/** Fill the form with what an earlier job asked for, its seed included. */
function useJob(job) {
  const config = job.payload.config || {};
  field("prompt").value = job.prompt;
  if (offered.models.some(({ name }) => name === job.model)) field("model").value = job.model;
  showTypes(job.type.replace(/^wan_/, ""));
  for (const name of Object.keys(SETTINGS)) field(name).value = config[name] ?? job.metadata[name] ?? "";
  field("seed").value = job.seed !== null && job.seed <= Number.MAX_SAFE_INTEGER ? job.seed : "";
  field("priority").value = job.priority || "";
  field("negative_prompt").value = config.negative_prompt ?? job.payload.negative_prompt ?? "";
  field("denoise_strength").value = config.denoise_strength ?? job.metadata.denoise_strength ?? 0.5;
  showStrength();
  const wanted = String(job.metadata.reference_mode || config.reference_mode || "none");
  chooseMode(wanted in MODES ? wanted : "none");
  for (const slot of MODES[mode()].slots) {
    const uri = config[slot];
    setReference(slot, typeof uri === "string" && !uri.startsWith("data:") ? uri : null);
  }
  showSlots();
  if (references().missing) notice("The reference images of that job are not kept: drop them again");
  $("form").querySelector("details").open = true;
  field("prompt").focus();
  $("new").scrollIntoView({ block: "nearest" });
}
