// The lists of jobs: what waits, what was made, what failed.

import { cancel, open, retry } from "./actions.js";
import { fileUrl } from "./api.js";
import { $, follow, h, show, words, write } from "./dom.js";
import { ago, clock, span } from "./time.js";

const SHOWN = { queue: 50, results: 24, failed: 30 };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const title = (job) => h("button", { type: "button", class: "link prompt", onclick: () => open(job.id) }, job.prompt || "No prompt");
const latest = (one, other) => (other.finished_at || 0) - (one.finished_at || 0);

/** Those that wait, the next first. */
export const inTurn = (jobs) => [...jobs].reverse().sort((one, other) => other.priority - one.priority || one.queued_at - other.queued_at);

/** Show those that wait, in turn; `starts` maps ids to the seconds until they start, as far as the worker was asked. */
export function showQueue(waiting, starts) {
  show($("queue"), waiting.length > 0);
  show($("queue-empty"), !waiting.length);
  const hidden = waiting.length - SHOWN.queue;
  write($("queue-count"), waiting.length ? `${waiting.length} waiting${hidden > 0 ? `, the next ${SHOWN.queue} are shown` : ""}` : "");
  follow(
    $("queue"),
    waiting.slice(0, SHOWN.queue),
    (job) => `${job.id} ${job.queued_at}`,
    (job) => {
      const stop = h("button", { type: "button", class: "plain", "aria-label": `Cancel ${job.id}`, onclick: () => cancel(stop, job.id) }, "Cancel");
      return h("li", { "data-job": job.id }, h("span", { class: "place number" }), h("div", {}, title(job), h("p", { class: "quiet" })), stop);
    },
    (row, job) => {
      const [place, text] = row.children;
      write(place, String(waiting.indexOf(job) + 1));
      const priority = job.priority ? `priority ${job.priority}` : "";
      const seconds = starts.get(job.id);
      const start = seconds === undefined ? "" : seconds < 1 ? "is next" : `starts in about ${span(seconds)}`;
      write(text.lastElementChild, [words(job.type), priority, start || `came ${ago(job.queued_at)}`].filter(Boolean).join(" · "));
    },
  );
}

export function showFailed(jobs) {
  const found = jobs.sort(latest).slice(0, SHOWN.failed);
  show($("failed-section"), found.length > 0);
  write($("failed-count"), found.length ? String(jobs.length) : "");
  follow(
    $("failed"),
    found,
    (job) => `${job.id} ${job.finished_at}`,
    (job) => {
      const again = h("button", { type: "button", "aria-label": `Retry ${job.id}`, onclick: () => retry(again, job.id) }, "Retry");
      const kind = h("span", { class: "tag" }, reason(job).kind);
      return h("li", { "data-job": job.id }, h("div", {}, title(job), h("p", { class: "why" }, kind, " ", reason(job).text), h("p", { class: "quiet" })), again);
    },
    (row, job) => {
      row.dataset.status = job.status;
      const attempts = job.attempts > 1 ? `${job.attempts} attempts` : "";
      const when = job.finished_at ? ago(job.finished_at) : "";
      write(row.firstElementChild.lastElementChild, [job.id, attempts, when].filter(Boolean).join(" · "));
    },
  );
}

/** Why a job is among the failed ones. */
export function reason(job) {
  if (job.status === "report_refused") return { kind: "report refused", text: job.report_error };
  if (job.status === "cancelled") return { kind: "cancelled", text: "" };
  const { error_type: kind = "failed", message = "", stage = "" } = job.error || {};
  return { kind: words(kind), text: stage ? `${message} (${words(stage)})` : message };
}

export function showResults(jobs) {
  const found = jobs.filter((job) => job.assets.length).sort(latest);
  show($("results-empty"), !found.length);
  write($("results-count"), found.length > SHOWN.results ? `the last ${SHOWN.results}` : found.length ? String(found.length) : "");
  follow($("results"), found.slice(0, SHOWN.results), (job) => `${job.id} ${job.finished_at}`, tile, (item, job) =>
    write(item.querySelector(".when"), ago(job.finished_at)),
  );
}

function tile(job) {
  const asset = job.assets[0];
  const { width, height, duration } = asset.metadata;
  const video = asset.type === "video" || asset.name.endsWith(".mp4");
  const many = job.assets.length > 1 ? `${job.assets.length} images` : "";
  const length = video && duration ? clock(duration) === "0:00" ? `${duration.toFixed(1)} s` : clock(duration) : many;
  const screen = h("div", { class: "screen" });
  const label = `${job.prompt || "No prompt"}: open ${video ? "video" : "image"}`;
  const button = h("button", { type: "button", class: "tile", "aria-label": label, onclick: () => open(job.id) }, screen);
  if (length) screen.append(h("span", { class: "length" }, length));
  const size = width && height ? `${width}×${height}` : "";
  const about = h("p", { class: "quiet" }, h("span", {}, size), h("span", { class: "when" }));
  fillScreen(screen, job.id, asset, video);
  if (video && !isElsewhere(asset)) playOnHover(button, screen, job.id, asset);
  return h("li", { "data-job": job.id }, button, h("p", { class: "prompt" }, job.prompt || "No prompt"), about);
}

/** Whether a file was published at an address of its own, where this page does not go. */
export const isElsewhere = (asset) => /^https?:/.test(asset.url);

async function fillScreen(screen, id, asset, video) {
  if (isElsewhere(asset)) {
    screen.prepend(h("span", { class: "elsewhere" }, "published elsewhere"));
    return;
  }
  const name = asset.thumbnail || asset.name;
  try {
    const url = await fileUrl(id, name);
    screen.prepend(asset.thumbnail || !video ? h("img", { src: url, alt: "" }) : h("video", { src: url, muted: true, playsinline: true }));
  } catch {
    screen.prepend(h("span", { class: "elsewhere" }, "not on this machine"));
  }
}

/** Play while the pointer is over it or the keyboard at it; whoever wants less motion opens it and presses play. */
function playOnHover(button, screen, id, asset) {
  let wanted = false;
  let player = null;
  const start = async () => {
    if (calm.matches || wanted) return;
    wanted = true;
    const url = await fileUrl(id, asset.name).catch(() => null);
    if (!wanted || url === null) return;
    player = h("video", { class: "player", loop: true, playsinline: true });
    player.muted = true;
    player.src = url;
    screen.append(player);
    player.play().catch(() => {});
  };
  const stop = () => {
    wanted = false;
    player?.remove();
    player = null;
  };
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && start());
  button.addEventListener("pointerleave", stop);
  button.addEventListener("focus", () => button.matches(":focus-visible") && start());
  button.addEventListener("blur", stop);
}
