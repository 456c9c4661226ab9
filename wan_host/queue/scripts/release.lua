-- release.lua: hand a job back for another attempt.
--
-- ARGV[3]  job id    ARGV[4]  token    ARGV[5]  delay (ms)    ARGV[6]  '1': the run does not count as an attempt
-- ARGV[7]  reason    ARGV[8]  error (JSON, or '')
-- reply    'ours', 'lost' or 'gone'

writes()
local id, token = ARGV[3], ARGV[4]
local job = job_key(id)
local state = fields(job, 'released_token', 'started_token', 'attempts', 'priority')
if state.released_token == token then return 'ours' end
local standing = holder(id, token)
if standing ~= 'ours' then return standing end
if ARGV[6] == '1' and state.started_token == token then
  redis.call('HSET', job, 'attempts', int(math.max((tonumber(state.attempts) or 0) - 1, 0)))
end
redis.call('HSET', job, 'status', 'waiting', 'released_token', token, 'worker', '', 'reason', ARGV[7], 'progress', '')
if ARGV[8] ~= '' then redis.call('HSET', job, 'error', ARGV[8]) end
redis.call('ZREM', leases_key(state.priority), id)
redis.call('ZADD', delayed_key(state.priority), int(now + tonumber(ARGV[5])), id)
keep(delayed_key(state.priority))
keep(job)
return 'ours'
