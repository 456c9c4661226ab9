// The worker's HTTP routes: requests with the key, events as they come, files as blobs.

import { setClock } from "./time.js";

const STORED = "wan-host-key";

export const hasKey = () => sessionStorage.getItem(STORED) !== null;
export const storeKey = (key) => sessionStorage.setItem(STORED, key);
export const forgetKey = () => sessionStorage.removeItem(STORED);

/** An answer of 400 or above: `status`, the detail as `message`, and what is wrong with which entry. */
export class Problem extends Error {
  constructor(status, details) {
    super(details.detail || details.title || `the worker answered ${status}`);
    this.status = status;
    this.errors = details.errors || [];
  }
}

export async function request(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(STORED);
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  setClock(answer);
  if (answer.ok) return answer;
  const problem = new Problem(answer.status, await answer.json().catch(() => ({})));
  problem.keyIsOld = key !== sessionStorage.getItem(STORED); // another one was entered while this was on its way
  throw problem;
}

export const read = async (path, options) => (await request(path, options)).json();
export const readText = async (path) => (await request(path)).text();

const segment = encodeURIComponent;
export const jobPath = (id, ...rest) => ["jobs", segment(id), ...rest.map(segment)].join("/");

/** Server-sent events, by fetch because EventSource cannot send the key: yields {name, data} until the stream ends. */
export async function* events(path, signal) {
  const answer = await request(path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const block = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const of = (name) => block.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2));
      const data = of("data").join("\n");
      if (data) yield { name: of("event")[0] || "message", data: JSON.parse(data) };
    }
  }
}

// A browser opens six connections to a server: streams of events take some of them, files take at most two.
const FILES_AT_ONCE = 2;
const KEPT_FILES = 80;
const files = new Map();
const waiting = [];
let fetching = 0;

/** The blob URL of a job's file, fetched once; the least used are given back. Rejects where the worker has no such file. */
export function fileUrl(id, name) {
  const path = jobPath(id, "assets", name);
  const found = files.get(path) || new Promise((resolve, reject) => waiting.push({ path, resolve, reject }));
  files.delete(path);
  files.set(path, found);
  fetchNext();
  for (const [oldest, url] of files) {
    if (files.size <= KEPT_FILES) break;
    files.delete(oldest);
    url.then(URL.revokeObjectURL, () => {});
  }
  return found;
}

/** Forget a file that changes: a job that is run anew has the same names. */
export function dropFiles(id) {
  const prefix = jobPath(id, "assets", "");
  for (const [path, url] of files) {
    if (!path.startsWith(prefix)) continue;
    files.delete(path);
    url.then(URL.revokeObjectURL, () => {});
  }
}

async function fetchNext() {
  if (fetching >= FILES_AT_ONCE || !waiting.length) return;
  const { path, resolve, reject } = waiting.shift();
  fetching += 1;
  try {
    resolve(URL.createObjectURL(await (await request(path)).blob()));
  } catch (error) {
    reject(error);
  } finally {
    fetching -= 1;
    fetchNext();
  }
}
