// One job in a dialog: its files, how it was made, how long that took, and what can be done with it.

import { cancel, retry } from "./actions.js";
import { fileUrl, jobPath, read } from "./api.js";
import { stageBars } from "./charts.js";
import { $, bytes, h, notice, words } from "./dom.js";
import { isElsewhere, reason } from "./lists.js";
import { ago, span } from "./time.js";

const LONG = 32; // characters; longer facts have a line of their own
const ENDED = new Set(["published", "completed", "report_refused", "failed", "cancelled"]);
const RETRIED = new Set(["report_refused", "failed", "cancelled"]);

export async function openJob(id) {
  const box = $("job");
  let job;
  try {
    job = await read(jobPath(id));
  } catch (error) {
    notice(error.message, "bad");
    return;
  }
  box.replaceChildren(...content(job, box));
  if (!box.open) box.showModal();
}

function content(job, box) {
  const close = h("button", { type: "button", class: "plain", "aria-label": "Close", onclick: () => box.close() }, "Close");
  return [
    h("div", { class: "title" }, h("h2", { id: "job-title", class: "prompt" }, job.prompt || "No prompt"), close),
    h("div", { class: "media" }, ...job.assets.map((asset) => medium(job, asset))),
    job.status === "failed" || job.status === "report_refused"
      ? h("p", { class: "why" }, h("span", { class: "tag" }, reason(job).kind), " ", reason(job).text)
      : null,
    buttons(job, box),
    h("dl", {}, ...facts(job).map(([name, value]) => h("div", { class: value.length > LONG ? "long" : "" }, h("dt", {}, name), h("dd", {}, value)))),
    timed(job),
  ].filter(Boolean);
}

function medium(job, asset) {
  const video = asset.name.endsWith(".mp4");
  const frame = h("figure", {});
  if (isElsewhere(asset)) {
    frame.append(h("a", { href: asset.url, target: "_blank", rel: "noopener noreferrer" }, "Open the published file"));
    return frame;
  }
  fileUrl(job.id, asset.name).then(
    (url) => {
      const shown = video ? h("video", { src: url, controls: true, loop: true, playsinline: true }) : h("img", { src: url, alt: job.prompt });
      const save = h("a", { href: url, download: `${job.id}-${asset.name}` }, `Download ${asset.name}`);
      frame.append(shown, h("figcaption", { class: "quiet" }, save, bytes(asset.metadata.file_size_bytes || asset.metadata.bytes || 0)));
      if (video && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
        shown.muted = true;
        shown.play().catch(() => {});
      }
    },
    () => frame.append(h("p", { class: "quiet" }, `Not on this machine; it was published as ${asset.url}`)),
  );
  return frame;
}

function facts(job) {
  const { metadata } = job;
  const made = job.assets[0]?.metadata || {};
  const config = job.payload.config || {};
  const size = made.width ? `${made.width}×${made.height}` : config.width && config.height ? `${config.width}×${config.height}` : "";
  const length = made.frames > 1 ? `${made.frames} frames at ${made.fps} a second` : "";
  const mode = metadata.reference_mode || config.reference_mode;
  const rows = [
    ["Status", words(job.status) + (job.finished_at ? `, ${ago(job.finished_at)}` : "")],
    ["Model", [job.model, words(job.type)].filter(Boolean).join(", ")],
    ["Size", [size, length].filter(Boolean).join(", ")],
    ["Reference", mode && mode !== "none" ? words(String(mode)) : ""],
    ["Steps", metadata.num_inference_steps ?? ""],
    ["Guidance", metadata.guidance_scale ?? ""],
    ["Seed", job.seed ?? ""],
    ["Enhanced prompt", metadata.enhanced_prompt || ""],
    ["Waited", metadata.queue_time === undefined ? "" : span(metadata.queue_time)],
    ["Took", metadata.processing_time === undefined ? "" : span(metadata.processing_time)],
    ["Attempts", job.attempts > 1 ? job.attempts : ""],
    ["Worker", job.worker],
    ["Id", job.id],
  ];
  return rows.filter(([, value]) => value !== "" && value !== null && value !== undefined).map(([name, value]) => [name, String(value)]);
}

function timed(job) {
  const stages = Object.entries(job.metadata.stage_seconds || {}).map(([stage, seconds]) => ({ stage, seconds }));
  if (!stages.length) return null;
  const bars = h("div", { class: "bars" });
  stageBars(bars, stages);
  return bars;
}

function buttons(job, box) {
  const row = h("div", { class: "buttons" });
  const again = () => {
    box.close();
    document.dispatchEvent(new CustomEvent("use-job", { detail: job }));
  };
  row.append(h("button", { type: "button", onclick: again }, "Use for a new job"));
  if (RETRIED.has(job.status)) {
    const button = h("button", { type: "button", onclick: () => retry(button, job.id).then(() => box.close()) }, "Retry");
    row.append(button);
  }
  if (!ENDED.has(job.status)) {
    const button = h("button", { type: "button", onclick: () => cancel(button, job.id).then(() => box.close()) }, "Cancel");
    row.append(button);
  }
  return row;
}
