/**
 * Takes a signed-in user's job, writes its row, and pushes it to the workers' queue.
 *
 * - The user comes from the access token and from nowhere else: workers put files into the folder of `user_id`.
 * - The row is written before the push: a report must find it. A push that fails leaves a row that is `queued`.
 * - Repetition: with an `Idempotency-Key` the same request may be sent again; it is the job's id. The row is written once, and
 *   pushed again only while nothing was heard of the job. A worker drops an id that is already waiting or running.
 */

const TYPES = ["image_fast", "image_high", "video_fast", "video_high"].flatMap((type) => {
  const [media, speed] = type.split("_");
  return [type, `${media}7b_${speed}_enhanced`];
});
const QUEUE = Deno.env.get("WAN_HOST_QUEUE_NAME") ?? "wan_queue";

function setting(name: string): string {
  const value = Deno.env.get(name);
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

function answer(status: number, body: Record<string, unknown>): Response {
  return Response.json(body, { status });
}

async function call(url: string, init: RequestInit): Promise<Response> {
  return await fetch(url, { ...init, signal: AbortSignal.timeout(5_000) });
}

/** The id of the user whose access token this is; null where it is nobody's. */
async function userOf(request: Request): Promise<string | null> {
  const authorization = request.headers.get("authorization");
  if (!authorization) return null;
  const headers = { apikey: setting("SUPABASE_ANON_KEY"), authorization };
  const response = await call(`${setting("SUPABASE_URL")}/auth/v1/user`, { headers });
  if (response.status >= 500) throw new Error(`the user could not be asked for: ${response.status}`);
  return response.ok ? (await response.json()).id : null;
}

/** The status of the user's row after it was written or found; null where the id is another user's. */
async function write(job: { id: string; user_id: string; type: string; prompt: string }): Promise<string | null> {
  const key = setting("SUPABASE_SERVICE_ROLE_KEY");
  const headers = { apikey: key, authorization: `Bearer ${key}`, "content-type": "application/json" };
  const table = `${setting("SUPABASE_URL")}/rest/v1/jobs`;
  const written = await call(`${table}?on_conflict=id`, {
    method: "POST",
    headers: { ...headers, prefer: "resolution=ignore-duplicates,return=minimal" },
    body: JSON.stringify({ id: job.id, user_id: job.user_id, type: job.type, prompt: job.prompt, status: "queued" }),
  });
  if (!written.ok) throw new Error(`the row could not be written: ${written.status} ${(await written.text()).slice(0, 200)}`);
  const own = `id=eq.${encodeURIComponent(job.id)}&user_id=eq.${encodeURIComponent(job.user_id)}&select=status`;
  const found = await call(`${table}?${own}`, { headers });
  if (!found.ok) throw new Error(`the row could not be read: ${found.status}`);
  return (await found.json())[0]?.status ?? null;
}

async function push(job: Record<string, unknown>): Promise<void> {
  const response = await call(setting("UPSTASH_REDIS_REST_URL"), {
    method: "POST",
    headers: { authorization: `Bearer ${setting("UPSTASH_REDIS_REST_TOKEN")}`, "content-type": "application/json" },
    body: JSON.stringify(["RPUSH", QUEUE, JSON.stringify(job)]),
  });
  const said = await response.json();
  if (!response.ok || typeof said.result !== "number") throw new Error(`the queue answered ${response.status}: ${said.error}`);
}

Deno.serve(async (request) => {
  if (request.method !== "POST") return answer(405, { error: "POST is the only method" });
  const id = request.headers.get("idempotency-key") ?? crypto.randomUUID();
  if (!/^[A-Za-z0-9._-]{1,128}$/.test(id) || id === "." || id === "..") {
    return answer(400, { error: "Idempotency-Key: 1 to 128 of A-Z a-z 0-9 . _ - are allowed" });
  }
  const asked = await request.json().catch(() => null);
  if (!TYPES.includes(asked?.type)) return answer(400, { error: `type: one of ${TYPES.join(", ")} is needed` });
  if (typeof asked.prompt !== "string" || !asked.prompt.trim()) return answer(400, { error: "prompt: a text is needed" });
  try {
    const user = await userOf(request);
    if (!user) return answer(401, { error: "sign in first" });
    const { type, prompt, negative_prompt, config = {}, metadata = {} } = asked;
    const job = { id, type, prompt, user_id: user, negative_prompt, config, metadata };
    const status = await write(job);
    if (status === null) return answer(409, { error: "this Idempotency-Key was used before" });
    if (status === "queued") await push(job);
    return answer(202, { jobId: id, status });
  } catch (error) {
    console.error(`job ${id} not queued:`, error);
    return answer(503, { error: "the job could not be queued; send it again with this Idempotency-Key", jobId: id });
  }
});
