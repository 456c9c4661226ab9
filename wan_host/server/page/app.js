// The page: asks the worker how it stands, as long as somebody looks, and shows that.

import { Problem, forgetKey, hasKey, jobPath, read, readText, storeKey } from "./api.js";
import { showDevices, showTimings } from "./charts.js";
import { openJob } from "./details.js";
import { $, follow, h, plural, show, write } from "./dom.js";
import { buildForm, offer } from "./form.js";
import { inTurn, showFailed, showQueue, showResults } from "./lists.js";
import { Devices, overRest, parse } from "./metrics.js";
import { rest, showLanes, showRuns, tick } from "./now.js";
import { ago, span } from "./time.js";

const HEALTH_MS = 1000;
const JOBS_MS = 2000;
const MOVED_MS = 5000;
const CALM_MS = 30000;
const METRICS_MS = 5000;
const FLEET_MS = 15000;
const REST_MS = 15000; // over REST every question to the queue is billed
const MOST_JOBS = 100;
const ESTIMATED = 3;
const LISTS = { running: 50, claimed: 50, waiting: 500, completed: 24, published: 24, failed: 30, report_refused: 30, cancelled: 30 };
const DONE = ["completed", "published", "report_refused"];

const devices = new Devices();
let workerId = "";
let lanesSeen = "";
let overRestApi = false;
let older = []; // jobs that the newest hide
let olderAsked = -Infinity;
let moved = true; // since then
let modelsKnown = false;
let mayAsk = false; // whether the routes that need the key can be asked

/** A loop that rests while nobody looks, and unless it is open until the key is there; what it returns makes it go on at once. */
function every(milliseconds, work, { open = false } = {}) {
  let awake = () => {};
  let again = false;
  (async () => {
    for (;;) {
      again = false;
      if (!document.hidden && (open || mayAsk)) await work().catch(failed);
      if (again) continue;
      await new Promise((done) => {
        awake = done;
        setTimeout(done, milliseconds());
      });
    }
  })();
  return () => {
    again = true;
    awake();
  };
}

function failed(error) {
  if (error.keyIsOld) return;
  if (error instanceof Problem && error.status === 401) askForKey(hasKey() ? "That was not the key." : "");
  else if (!(error instanceof Problem)) showState("bad", "no answer");
}

async function lookAtHealth() {
  const health = await read("health");
  workerId = health.worker_id;
  if (health.key_required && !hasKey()) askForKey();
  else allow();
  showState(health.ready ? "good" : "warn", health.ready ? "ready" : "not ready");
  write($("about"), `${health.worker_id} · ${health.device} · ${health.version} · up ${span(health.uptime)}`);
  const broken = health.plugins.filter(({ error }) => error).map(({ name, error }) => `plugin ${name}: ${error}`);
  showProblems([...health.problems, ...broken]);
  showLanes(health.lanes);
  devices.look(health.lanes);
  const lanes = health.lanes.map((lane) => lane.job_id).join();
  if (lanes !== lanesSeen) jobsMoved(); // a job has come or gone: this costs the queue nothing
  lanesSeen = lanes;
  if (!modelsKnown && mayAsk) {
    modelsKnown = true;
    await read("models").then(offer, (error) => {
      modelsKnown = false;
      throw error;
    });
  }
}

async function lookAtJobs() {
  const { jobs: newest } = await read(`jobs?limit=${MOST_JOBS}`);
  if (newest.length < MOST_JOBS) older = [];
  else await lookFurther();
  const listed = new Set(newest.map((job) => job.id));
  const jobs = [...newest, ...older.filter((job) => !listed.has(job.id))];
  const of = (...statuses) => jobs.filter((job) => statuses.includes(job.status));
  const here = (job) => (job.worker === workerId ? 0 : 1);
  showRuns(of("running", "claimed").sort((one, other) => here(one) - here(other) || one.started_at - other.started_at), workerId);
  const waiting = inTurn(of("waiting"));
  showQueue(waiting, await startsOf(waiting.slice(0, ESTIMATED)));
  showResults(of(...DONE));
  showFailed(of("failed", "report_refused", "cancelled"));
}

/** The seconds until jobs start, where the worker knows; over REST it is not asked. */
async function startsOf(jobs) {
  if (overRestApi) return new Map();
  const answers = await Promise.allSettled(jobs.map(({ id }) => read(jobPath(id))));
  const told = answers.map(({ value }) => value).filter((job) => job && job.seconds_until_start !== null);
  return new Map(told.map((job) => [job.id, job.seconds_until_start]));
}

/** Where there are many jobs the newest hide others: what is to be shown is asked for by its status, more seldom. */
async function lookFurther() {
  const pause = (moved ? MOVED_MS : CALM_MS) * (overRestApi ? 10 : 1);
  if (performance.now() - olderAsked < pause) return;
  olderAsked = performance.now();
  moved = false;
  const found = [];
  for (const [status, limit] of Object.entries(LISTS)) found.push(...(await read(`jobs?status=${status}&limit=${limit}`)).jobs);
  older = found;
}

async function lookAtMetrics() {
  const samples = parse(await readText("metrics"));
  overRestApi = overRest(samples);
  devices.add(samples, performance.now() / 1000);
  showTimings(samples);
  showDevices(devices);
}

async function lookAtFleet() {
  const { workers } = await read("workers");
  const others = workers.filter((worker) => worker.alive && worker.id !== workerId);
  show($("fleet-section"), others.length > 0);
  follow(
    $("fleet"),
    others,
    (worker) => worker.id,
    (worker) => h("li", {}, h("div", {}, linked(worker), h("p", { class: "quiet" }))),
    (row, { about, jobs, seen }) => {
      const doing = Object.keys(jobs).length ? plural(Object.keys(jobs).length, "job") : "idle";
      write(row.firstElementChild.lastElementChild, [doing, about.devices, `seen ${ago(seen)}`].filter(Boolean).join(" · "));
    },
  );
}

function linked({ id, about }) {
  const outside = /^https?:\/\//.test(about.url || "");
  return outside ? h("a", { href: about.url, rel: "noopener noreferrer" }, id) : h("span", {}, id);
}

function showState(kind, text) {
  $("state").dataset.kind = kind;
  write($("state").lastElementChild, text);
}

function showProblems(problems) {
  show($("problems"), problems.length > 0);
  follow($("problems"), problems, (text) => text, (text) => h("li", {}, text));
}

function allow() {
  if (mayAsk) return;
  mayAsk = true;
  wakeAll();
}

function askForKey(fault = "") {
  mayAsk = false;
  forgetKey();
  show($("forget"), false);
  rest();
  if (fault) {
    write($("key-fault"), fault);
    show($("key-fault"), true);
  }
  if (!$("key").open) $("key").showModal();
}

function takeKey(event) {
  const input = event.target.elements.key;
  const key = input.value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    event.preventDefault();
    write($("key-fault"), "A key has letters, digits and signs, without spaces.");
    show($("key-fault"), true);
    return;
  }
  input.value = "";
  show($("key-fault"), false);
  storeKey(key);
  show($("forget"), true);
  $("key").close();
  allow();
}

function nextTheme() {
  const themes = ["", "light", "dark"];
  const next = themes[(themes.indexOf(localStorage.getItem("wan-host-theme") || "") + 1) % themes.length];
  if (next) localStorage.setItem("wan-host-theme", next);
  else localStorage.removeItem("wan-host-theme");
  showTheme();
}

function showTheme() {
  const chosen = localStorage.getItem("wan-host-theme") || "";
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  const name = { "": "as the system", light: "light", dark: "dark" }[chosen];
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  $("theme").title = `Theme: ${name}`;
}

buildForm();
showTheme();
show($("forget"), hasKey());
$("theme").addEventListener("click", nextTheme);
$("forget").addEventListener("click", () => askForKey());
$("key-form").addEventListener("submit", takeKey);
$("key").addEventListener("cancel", (event) => event.preventDefault());
$("job").addEventListener("close", () => $("job").replaceChildren());
$("job").addEventListener("click", (event) => event.target === $("job") && $("job").close());
document.addEventListener("open-job", (event) => openJob(event.detail));

const wakeHealth = every(() => HEALTH_MS, lookAtHealth, { open: true });
const wakeJobs = every(() => (overRestApi ? REST_MS : JOBS_MS), lookAtJobs);
const wakeMetrics = every(() => METRICS_MS, lookAtMetrics);
const wakeFleet = every(() => (overRestApi ? REST_MS * 4 : FLEET_MS), lookAtFleet);

function wakeAll() {
  for (const wake of [wakeHealth, wakeJobs, wakeMetrics, wakeFleet]) wake();
}

function jobsMoved() {
  moved = true;
  wakeJobs();
}

document.addEventListener("jobs-changed", jobsMoved);
document.addEventListener("visibilitychange", () => (document.hidden ? rest() : wakeAll()));
setInterval(tick, 500);
