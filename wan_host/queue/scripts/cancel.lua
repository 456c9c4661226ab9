-- cancel.lua: cancel a job: at once if nobody works on it, else by a flag that its worker sees.
--
-- ARGV[3]  job id    ARGV[4]  report (JSON, or '') that is sent if the job had not been running
-- reply    'cancelled', 'cancelling', 'finished' or 'unknown'

writes()
local id = ARGV[3]
local job = job_key(id)
local state = fields(job, 'status', 'entry', 'priority')
if state.status == '' then return 'unknown' end
local idle = state.status == 'waiting'
if state.status == 'claimed' or state.status == 'running' then
  local ends = tonumber(redis.call('ZSCORE', leases_key(state.priority), id) or '0')
  if ends > now then
    redis.call('HSET', job, 'cancel', '1')
    redis.call('SADD', CANCELLING, id)
    keep(CANCELLING)
    return 'cancelling'
  end
  idle = true
end
if not idle then return remembered() or 'finished' end
dequeue(id, state.priority, state.entry)
redis.call('HSET', job, 'status', 'cancelled', 'finished_at', int(now), 'report', ARGV[4], 'report_sequence', next_sequence(job),
  'token', next_token(job))
if ARGV[4] ~= '' then send_report(id, now) end
redis.call('EXPIRE', job, int(retention))
return remember('cancelled')
