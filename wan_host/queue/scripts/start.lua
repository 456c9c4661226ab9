-- start.lua: a run begins: count the attempt, and give out sequence numbers for the reports of this run.
--
-- ARGV[3]  job id    ARGV[4]  token    ARGV[5]  sequence numbers to reserve
-- reply    {'ours', attempts of this submission, runs over all, first sequence number, started_at} or {'gone'} or {'lost'}

writes()
local id, token = ARGV[3], ARGV[4]
local job = job_key(id)
local standing = holder(id, token)
if standing ~= 'ours' then return {standing} end
local state = fields(job, 'started_token', 'started_sequence', 'attempts', 'runs', 'started_at')
if state.started_token ~= token then
  state.attempts = int((tonumber(state.attempts) or 0) + 1)
  state.runs = int((tonumber(state.runs) or 0) + 1)
  state.started_at = int(now)
  state.started_sequence = next_sequence(job, tonumber(ARGV[5]))
  redis.call('HSET', job, 'status', 'running', 'started_token', token, 'started_sequence', state.started_sequence,
    'attempts', state.attempts, 'runs', state.runs, 'started_at', state.started_at, 'progress', '')
  keep(job)
end
return {'ours', state.attempts, state.runs, state.started_sequence, state.started_at}
