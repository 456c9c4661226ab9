-- report.lua: what became of a report's delivery.
--
-- ARGV[3]  job id    ARGV[4]  its sequence number    ARGV[5]  accepted | retry | refused
-- ARGV[6]  delay until the next try (ms)    ARGV[7]  note of the receiver, or the error
-- reply    how many reports the outbox still holds

writes()
local id, outcome = ARGV[3], ARGV[5]
local job = job_key(id)
local state = fields(job, 'status', 'report_sequence', 'report_state', 'report_tries')
if state.report_sequence ~= ARGV[4] or state.report_state ~= 'pending' then
  return redis.call('ZCARD', OUTBOX)  -- a repetition, or a newer report took its place
end
if outcome == 'retry' then
  if not remembered() then
    redis.call('HSET', job, 'report_tries', int((tonumber(state.report_tries) or 0) + 1), 'report_error', ARGV[7])
    redis.call('ZADD', OUTBOX, int(now + tonumber(ARGV[6])), id)
    keep(OUTBOX)
    remember(1)
  end
  redis.call('EXPIRE', job, int(retention))
  return redis.call('ZCARD', OUTBOX)
end
redis.call('ZREM', OUTBOX, id)
redis.call('HSET', job, 'report_state', outcome, outcome == 'accepted' and 'report_note' or 'report_error', ARGV[7])
if state.status == 'published' then
  state.status = outcome == 'accepted' and 'completed' or 'report_refused'
  redis.call('HSET', job, 'status', state.status)
end
redis.call('EXPIRE', job, int(retention))
return redis.call('ZCARD', OUTBOX)
