// The small charts: where a job's time goes, and what the devices do.

import { $, bytes, follow, h, plural, show, svg, words, write } from "./dom.js";
import { KEPT_SECONDS, timings } from "./metrics.js";
import { span } from "./time.js";

export const STAGES = ["fetch", "enhance", "load", "text_encode", "denoise", "decode", "encode", "postprocess", "publish", "report"];
const WIDTH = 300;
const HEIGHT = 44;

const place = (stage) => (STAGES.includes(stage) ? STAGES.indexOf(stage) : STAGES.length);
export const inOrder = (stages) => [...stages].sort((a, b) => place(a.stage) - place(b.stage));

/** Rows of stage, bar and seconds; the bars share one scale. */
export function stageBars(parent, stages) {
  const most = Math.max(...stages.map((item) => item.seconds), 1e-9);
  follow(
    parent,
    inOrder(stages),
    (item) => item.stage,
    () => h("div", { class: "bar" }, h("span"), h("div", { class: "track" }, h("div")), h("span", { class: "number" })),
    (row, item) => {
      const [name, track, number] = row.children;
      row.dataset.stage = item.stage;
      write(name, words(item.stage));
      track.firstElementChild.style.width = `${(100 * item.seconds) / most}%`;
      write(number, span(item.seconds));
    },
  );
}

export function showTimings(samples) {
  const { stages, jobs, mean } = timings(samples);
  write($("timings-count"), jobs ? `mean of ${plural(jobs, "job")}, ${span(mean)} each` : "");
  const box = $("timings");
  if (!stages.length) {
    box.replaceChildren(h("p", { class: "empty" }, "Measured once a job is done."));
    return;
  }
  if (!box.firstElementChild?.matches(".bars")) box.replaceChildren(h("div", { class: "bars" }));
  stageBars(box.firstElementChild, stages);
}

export function showDevices(devices) {
  follow(
    $("devices"),
    devices.all(),
    (item) => item.device,
    () =>
      h(
        "div",
        { class: "device" },
        h("p", { class: "chart-title" }, h("span"), h("span", { class: "number" })),
        chart("busy"),
        h("p", { class: "chart-title" }, h("span", {}, "memory"), h("span", { class: "number" })),
        chart("memory"),
      ),
    (row, { device, points }) => {
      const [busyTitle, busy, memoryTitle, memory] = row.children;
      const last = points.at(-1);
      write(busyTitle.firstElementChild, device);
      write(busyTitle.lastElementChild, `${Math.round(100 * last.share)} % busy`);
      draw(busy, points, (point) => point.share);
      const measured = last.total > 0;
      show(memoryTitle, measured);
      memory.toggleAttribute("hidden", !measured);
      if (measured) {
        write(memoryTitle.lastElementChild, `${bytes(last.used)} of ${bytes(last.total)}, peak ${bytes(last.peak)}`);
        draw(memory, points, (point) => point.used / point.total, last.peak / last.total);
      }
    },
  );
}

function chart(kind) {
  const parts = [svg("path", { class: "area" }), svg("path", { class: "line" }), svg("path", { class: "mark" })];
  return svg("svg", { class: `chart ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": true }, ...parts);
}

/** Draw shares of 0 to 1 over the last minutes, the latest at the right; `mark` is a level of its own. */
function draw(box, points, shareOf, mark = null) {
  const now = points.length ? points.at(-1).time : 0;
  const x = (point) => (WIDTH * (1 - (now - point.time) / KEPT_SECONDS)).toFixed(1);
  const y = (share) => (HEIGHT - 1 - share * (HEIGHT - 2)).toFixed(1);
  const line = points.map((point, index) => `${index ? "L" : "M"}${x(point)} ${y(shareOf(point))}`).join("");
  const [area, stroke, level] = box.children;
  area.setAttribute("d", line && `${line}L${WIDTH} ${HEIGHT}L${x(points[0])} ${HEIGHT}Z`);
  stroke.setAttribute("d", line);
  level.setAttribute("d", mark === null ? "" : `M0 ${y(mark)}H${WIDTH}`);
}
