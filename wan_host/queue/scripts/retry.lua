-- retry.lua: run a failed or cancelled job anew, or send a refused report anew.
--
-- ARGV[3]  job id
-- reply    'waiting' (it runs anew), 'published' (its report is sent anew), or '' (there is nothing to retry)

writes()
local id = ARGV[3]
local done = remembered()
if done then return done end
local job = job_key(id)
local state = fields(job, 'status', 'priority', 'dead', 'payload')
if state.status == 'report_refused' then
  redis.call('HSET', job, 'status', 'published', 'report_sequence', next_sequence(job))
  send_report(id, now)
  redis.call('EXPIRE', job, int(retention))
  return remember('published')
end
if (state.status ~= 'failed' and state.status ~= 'cancelled') or state.payload == '' then return '' end
if state.dead ~= '' then redis.call('XDEL', DEAD, state.dead) end
redis.call('ZREM', OUTBOX, id)
redis.call('HDEL', job, 'error', 'result', 'progress', 'report', 'report_state', 'dead', 'cancel', 'finished_at', 'started_at',
  'claimed_at', 'worker')
redis.call('HSET', job, 'attempts', '0', 'queued_at', int(now))
enqueue(id, state.priority)
return remember('waiting')
