// What runs now: the lanes, and for every running job its preview, its steps and the time left.

import { cancel, changed, open } from "./actions.js";
import { events, jobPath } from "./api.js";
import { STAGES } from "./charts.js";
import { $, follow, h, show, words, write } from "./dom.js";
import { clock, now } from "./time.js";

const MOST_TICKS = 60;
const MOST_STREAMS = 3; // each takes one of the browser's six connections to the worker; further jobs follow the lists
const AGAIN_MS = 2000;
const WAITING = new Set(["claimed", "waiting"]); // taken ahead of its time, so that the lane need not wait

const runs = new Map();

export function showLanes(lanes) {
  follow(
    $("lanes"),
    lanes,
    (lane) => lane.name,
    () => h("li", {}, h("span", { class: "dot" }), h("span", { class: "name" }), h("span", { class: "quiet" })),
    (row, lane) => {
      const [, name, about] = row.children;
      row.dataset.status = lane.status;
      row.title = lane.failure || lane.device;
      write(name, lane.name);
      write(about, laneWords(lane));
    },
  );
}

function laneWords(lane) {
  if (lane.failure) return `${lane.status}: ${lane.failure}`;
  if (lane.status === "busy" && lane.stage) return lane.total ? `${words(lane.stage)} ${lane.step}/${lane.total}` : words(lane.stage);
  if (lane.status === "idle") return lane.loaded.length ? `idle, ${lane.loaded.join(", ")} loaded` : "idle";
  return lane.status;
}

export function showRuns(jobs, workerId) {
  show($("now-empty"), !jobs.length);
  follow($("now"), jobs, (job) => job.id, create, (card, job) => update(card, job, workerId));
  let streams = [...runs.values()].filter((run) => run.stream).length;
  for (const job of jobs) {
    const run = runs.get(job.id);
    if (run && !run.stream && streams < MOST_STREAMS) {
      streams += 1;
      watch(run);
    }
  }
}

/** Close every stream: nobody looks. */
export function rest() {
  for (const run of runs.values()) run.stream?.abort();
}

/** Let the clocks go on between two events. */
export function tick() {
  for (const run of runs.values()) {
    const { left, leftLabel, elapsed } = run.parts;
    const ending = run.leftAt !== null && run.leftAt - now() < 0.5;
    write(left, run.leftAt === null || ending ? "" : clock(run.leftAt - now()));
    write(leftLabel, ending ? "about to end" : "left");
    write(elapsed, run.started === null ? "" : `${clock(now() - run.started)} so far`);
  }
}

function create(job) {
  const parts = {
    picture: h("img", { alt: "Preview of the unfinished result", hidden: true }),
    glow: h("div", { class: "glow", "aria-hidden": true }),
    prompt: h("p", { class: "prompt" }),
    about: h("p", { class: "quiet" }),
    stage: h("span", { class: "stage" }),
    left: h("span", { class: "left" }),
    leftLabel: h("span", { class: "quiet" }, "left"),
    ticks: h("div", { class: "ticks", role: "progressbar", "aria-label": "Denoising steps", "aria-valuemin": 0 }),
    rail: h("ol", { class: "rail", "aria-label": "Stages" }, ...STAGES.map((stage) => h("li", { "data-stage": stage }, words(stage)))),
    elapsed: h("span", { class: "quiet" }),
  };
  const stop = h("button", { type: "button", class: "plain", onclick: () => cancel(stop, job.id) }, "Cancel");
  const details = h("button", { type: "button", class: "plain", onclick: () => open(job.id) }, "Details");
  parts.stop = stop;
  const card = h(
    "article",
    { class: "run card", "data-job": job.id },
    h("div", { class: "preview" }, parts.glow, parts.picture),
    h(
      "div",
      { class: "body" },
      parts.prompt,
      parts.about,
      h("div", { class: "pace" }, parts.stage, h("span", { class: "time" }, parts.left, " ", parts.leftLabel)),
      parts.ticks,
      parts.rail,
      h("div", { class: "foot" }, parts.elapsed, h("span", { class: "buttons" }, details, stop)),
    ),
  );
  const run = { id: job.id, card, parts, stream: null, told: 0, leftAt: null, started: null };
  runs.set(job.id, run);
  card.addEventListener("gone", () => {
    run.stream?.abort();
    runs.delete(job.id);
  });
  return card;
}

function update(_card, job, workerId) {
  const run = runs.get(job.id);
  const { parts } = run;
  write(parts.prompt, job.prompt || "No prompt");
  const where = job.worker && job.worker !== workerId ? `on ${job.worker}` : "";
  const attempt = job.attempts > 1 ? `attempt ${job.attempts}` : "";
  write(parts.about, [job.id, job.model, words(job.type), attempt, where].filter(Boolean).join(" · "));
  parts.stop.disabled = job.cancelling;
  write(parts.stop, job.cancelling ? "Cancelling" : "Cancel");
  run.started = job.started_at;
  if (!run.stream) tell(run, { status: job.status, seconds_left: job.seconds_left, ...job.progress });
  tick();
}

function tell(run, { status, stage, step, total, seconds_left: seconds }) {
  const { parts } = run;
  const shown = status === "running" && stage ? stage : "claimed";
  const prepared = WAITING.has(shown);
  run.card.classList.toggle("prepared", prepared);
  write(parts.stage, prepared ? "Waits for a lane" : total && shown === "denoise" ? `Step ${step} of ${total}` : sentence(words(shown)));
  run.leftAt = prepared || seconds === null || seconds === undefined ? null : now() + seconds;
  show(parts.leftLabel, run.leftAt !== null);
  const past = STAGES.indexOf(shown);
  for (const item of past < 0 && !prepared ? [] : parts.rail.children) {
    const index = STAGES.indexOf(item.dataset.stage);
    item.className = index === past ? "at" : index < past ? "past" : "";
    if (index === past) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  }
  showTicks(parts.ticks, step, total);
}

function showTicks(bar, step, total) {
  const count = Math.min(total || 1, MOST_TICKS);
  if (bar.children.length !== count) bar.replaceChildren(...Array.from({ length: count }, () => h("span")));
  const done = total ? Math.floor((step / total) * count) : 0;
  [...bar.children].forEach((item, index) => {
    item.className = index < done ? "done" : "";
  });
  bar.setAttribute("aria-valuemax", total || 1);
  bar.setAttribute("aria-valuenow", step || 0);
  bar.setAttribute("aria-valuetext", total ? `step ${step} of ${total}` : "not begun");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

async function watch(run) {
  const stream = new AbortController();
  run.stream = stream;
  try {
    for await (const { name, data } of events(jobPath(run.id, "events"), stream.signal)) {
      if (name === "progress") tell(run, data);
      else if (name === "preview") showPreview(run, data);
      else if (name === "end") changed();
    }
  } catch {
    // the lists tell, too; a stream that broke is opened again by the next of them
  }
  if (!stream.signal.aborted) await new Promise((done) => setTimeout(done, AGAIN_MS));
  run.stream = null;
}

function showPreview(run, { image, step, width, height }) {
  if (!image.startsWith("data:image/")) return;
  const { picture } = run.parts;
  picture.src = image;
  picture.width = width;
  picture.height = height;
  picture.alt = `Preview of the unfinished result at step ${step}`;
  show(picture, true);
}
