// The worker's metrics, read from the Prometheus text format, and what the page has seen of them over the last minutes.

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const KEPT_SECONDS = 300;

export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found || line.startsWith("#")) continue;
    const labels = Object.fromEntries([...(found[2] || "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

const named = (samples, name) => samples.filter((sample) => sample.name === `wan_host_${name}`);

/** Sums of a metric by one of its labels. */
export function sums(samples, name, label) {
  const found = new Map();
  for (const { labels, value } of named(samples, name)) found.set(labels[label], (found.get(labels[label]) || 0) + value);
  return found;
}

const total = (samples, name) => named(samples, name).reduce((sum, sample) => sum + sample.value, 0);

/** Mean seconds of every stage that was measured, and of whole jobs. */
export function timings(samples) {
  const counts = sums(samples, "stage_seconds_count", "stage");
  const stages = [...sums(samples, "stage_seconds_sum", "stage")]
    .filter(([stage]) => counts.get(stage) > 0)
    .map(([stage, seconds]) => ({ stage, seconds: seconds / counts.get(stage) }));
  const jobs = total(samples, "job_seconds_count");
  return { stages, jobs, mean: jobs ? total(samples, "job_seconds_sum") / jobs : 0 };
}

export const overRest = (samples) => (sums(samples, "queue_commands_total", "backend").get("upstash") || 0) > 0;

/** What was seen of each device: its memory, and how often one of its lanes was at work, as points in time. */
export class Devices {
  #seen = new Map();
  #looks = new Map();

  /** Count a look at the lanes; the metric of busy seconds moves only when a job has left its lane. */
  look(lanes) {
    for (const device of new Set(lanes.map((lane) => lane.device))) {
      const looks = this.#looks.get(device) || [];
      looks.push(lanes.some((lane) => lane.device === device && lane.job_id) ? 1 : 0);
      this.#looks.set(device, looks);
    }
  }

  add(samples, now) {
    const memory = named(samples, "vram_bytes");
    for (const [device, looks] of this.#looks) {
      const of = (kind) => memory.find((sample) => sample.labels.device === device && sample.labels.kind === kind)?.value || 0;
      const share = looks.reduce((sum, look) => sum + look, 0) / looks.length;
      const points = [...(this.#seen.get(device) || []), { time: now, share, used: of("used"), peak: of("peak"), total: of("total") }];
      this.#seen.set(device, points.filter((point) => now - point.time <= KEPT_SECONDS));
    }
    this.#looks.clear();
  }

  all() {
    return [...this.#seen].map(([device, points]) => ({ device, points })).sort((a, b) => a.device.localeCompare(b.device));
  }
}

export { KEPT_SECONDS };
