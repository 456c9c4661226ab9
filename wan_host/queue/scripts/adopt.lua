-- adopt.lua: lease a job to a worker that held it before: after a restart of the worker (its token must still be the newest
-- one), or after the server has come back empty (then the worker's memory of the job is written anew).
--
-- ARGV[3]  worker id    ARGV[4]  lease (ms)    ARGV[5]  job id    ARGV[6]  token
-- ARGV[7]  '1': write the job anew if the server has no memory of it, from
-- ARGV[8]  payload  ARGV[9] attempts  ARGV[10] runs  ARGV[11] seed ('': in the payload)  ARGV[12] queued_at  ARGV[13] priority
-- reply    {'ours', attempts, runs, seed, queued_at, priority, entry, cancelled, problem, payload}, {'lost'} or {'gone'}

writes()
local worker, lease, id, token = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local job = job_key(id)
local state = fields(job, 'status', 'token', 'priority', 'entry')
if state.status == '' then
  if ARGV[7] ~= '1' then return {'gone'} end
  redis.call('HSET', job, 'payload', ARGV[8], 'digest', redis.sha1hex(ARGV[8]), 'size', int(#ARGV[8]), 'attempts', ARGV[9],
    'runs', ARGV[10], 'seed', ARGV[11], 'queued_at', ARGV[12], 'token', token, 'restored_at', int(now),
    'sequence', int(math.floor(now / 1000) + 250 * (tonumber(ARGV[10]) + 1)))  -- above what its runs may have used
  note_payload(job, ARGV[8], table_or_empty(parse(ARGV[8])))
  enqueue(id, ARGV[13])
elseif state.token ~= token then  -- somebody else wrote it anew first: the higher token is the later holder
  local open = state.status == 'waiting' or state.status == 'claimed' or state.status == 'running'
  if not (ARGV[7] == '1' and open and tonumber(token) > (tonumber(state.token) or 0)) then return {'lost'} end
  redis.call('HSET', job, 'token', token)
elseif state.status ~= 'claimed' and state.status ~= 'running' and state.status ~= 'waiting' then
  return {'lost'}
end
state = fields(job, 'status', 'priority', 'entry', 'attempts', 'runs', 'seed', 'queued_at', 'cancel', 'problem', 'payload')
if state.status == 'waiting' then redis.call('HSET', job, 'status', 'claimed', 'claimed_at', int(now)) end
redis.call('HSET', job, 'worker', worker)
redis.call('HDEL', job, 'released_token')
redis.call('ZREM', delayed_key(state.priority), id)
redis.call('ZADD', leases_key(state.priority), int(now + lease), id)
keep(leases_key(state.priority))
keep(job)
return {'ours', state.attempts, state.runs, state.seed, state.queued_at, state.priority, state.entry, state.cancel, state.problem,
  state.payload}
