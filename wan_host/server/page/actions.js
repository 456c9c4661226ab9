// What the operator can do to a job; the lists are asked for anew afterwards.

import { Problem, dropFiles, jobPath, read } from "./api.js";
import { notice } from "./dom.js";

export const changed = () => document.dispatchEvent(new Event("jobs-changed"));

export const open = (id) => document.dispatchEvent(new CustomEvent("open-job", { detail: id }));

async function act(button, work) {
  button.disabled = true;
  try {
    notice(await work());
  } catch (error) {
    notice(error instanceof Problem ? error.message : `The worker does not answer: ${error.message}`, "bad");
  } finally {
    button.disabled = false;
    changed();
  }
}

export const cancel = (button, id) =>
  act(button, async () => {
    const { outcome } = await read(jobPath(id), { method: "DELETE" });
    return outcome === "cancelled" ? `${id} is cancelled` : `${id} stops within a step`;
  });

export const retry = (button, id) =>
  act(button, async () => {
    const { status } = await read(jobPath(id, "retry"), { method: "POST" });
    dropFiles(id);
    return status === "waiting" ? `${id} waits to run anew` : `the report of ${id} is sent again`;
  });
