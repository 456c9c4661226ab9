/**
 * Receives the reports of wan-host workers and keeps the newest one in the table `jobs`.
 *
 * - Signature: `X-Callback-Signature: sha256=<hex HMAC-SHA256 of the raw body>`, checked before the body is read as JSON.
 * - Order and repetition: a report counts only where its `sequence` is above the one in the row. The database decides that in the
 *   same statement that writes, so that two reports at once cannot overtake each other.
 * - Answers: 200 (with `skipped` where the row had as much already), 401 and 400 for what is wrong for ever: the worker keeps such
 *   a report and shows it. 503 where the database is in trouble: the worker sends it again, for hours.
 */

const encoder = new TextEncoder();
const STATUSES = ["processing", "completed", "failed"];

interface Report {
  job_id: string;
  worker_id?: string;
  status: string;
  sequence: number;
  assets?: unknown[];
  error_message?: string;
  metadata?: Record<string, unknown>;
}

function setting(name: string): string {
  const value = Deno.env.get(name);
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

function answer(status: number, body: Record<string, unknown>): Response {
  return Response.json(body, { status });
}

async function isSigned(body: Uint8Array<ArrayBuffer>, header: string | null): Promise<boolean> {
  const digits = /^sha256=([0-9a-f]{64})$/.exec(header ?? "")?.[1];
  if (!digits) return false;
  const given = Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  const secret = encoder.encode(setting("JOB_CALLBACK_SECRET"));
  const key = await crypto.subtle.importKey("raw", secret, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  return await crypto.subtle.verify("HMAC", key, given, body); // takes as long whichever byte is wrong
}

function parse(body: Uint8Array): Report | string {
  let report: Report;
  try {
    report = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    return "the body is no JSON";
  }
  if (typeof report?.job_id !== "string" || !report.job_id) return "job_id: a string is needed";
  if (!STATUSES.includes(report.status)) return `status: '${report.status}' is not allowed; ${STATUSES.join(", ")} are`;
  if (!Number.isSafeInteger(report.sequence)) return "sequence: a whole number is needed";
  return report;
}

/** Write the report into its row; false where the row has as new a one already, or where there is no such row. */
async function keep(report: Report): Promise<boolean> {
  const key = setting("SUPABASE_SERVICE_ROLE_KEY");
  const row = `id=eq.${encodeURIComponent(report.job_id)}&sequence=lt.${report.sequence}&select=id`;
  const response = await fetch(`${setting("SUPABASE_URL")}/rest/v1/jobs?${row}`, {
    method: "PATCH",
    headers: { apikey: key, authorization: `Bearer ${key}`, "content-type": "application/json", prefer: "return=representation" },
    body: JSON.stringify({
      status: report.status,
      sequence: report.sequence,
      worker_id: report.worker_id ?? null,
      assets: report.assets ?? [],
      error_message: report.error_message ?? null,
      report: report.metadata ?? {},
      updated_at: new Date().toISOString(),
    }),
    signal: AbortSignal.timeout(5_000),
  });
  if (!response.ok) throw new Error(`the database answered ${response.status}: ${(await response.text()).slice(0, 200)}`);
  return (await response.json()).length > 0;
}

Deno.serve(async (request) => {
  if (request.method !== "POST") return answer(405, { error: "POST is the only method" });
  const body = new Uint8Array(await request.arrayBuffer());
  if (!(await isSigned(body, request.headers.get("x-callback-signature")))) {
    return answer(401, { error: "the signature is wrong" });
  }
  const report = parse(body);
  if (typeof report === "string") return answer(400, { error: report });
  try {
    const kept = await keep(report);
    return answer(200, { success: true, jobId: report.job_id, ...(kept ? {} : { skipped: true }) });
  } catch (error) {
    console.error(`report of ${report.job_id} not kept:`, error);
    return answer(503, { error: "the report could not be kept; send it again" });
  }
});
