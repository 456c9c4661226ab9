// Times and spans of time, for people. Moments are Unix seconds by the worker's clock: the browser's may be wrong.

const TRUSTED_MS = 10_000;
let skew = 0;

/** Set the clock by an answer of the worker. */
export function setClock(answer) {
  const off = Date.parse(answer.headers.get("date")) - Date.now();
  skew = Math.abs(off) > TRUSTED_MS ? off : 0;
}

export const now = () => (Date.now() + skew) / 1000;

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

export const ago = (time) => (now() - time < 5 ? "just now" : `${span(now() - time)} ago`);
