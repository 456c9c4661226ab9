-- renew.lua: prolong the leases of all jobs that the worker holds, store their progress, and learn which are lost or cancelled.
--
-- ARGV[3]  worker id    ARGV[4]  lease (ms)    ARGV[5]  JSON that the worker says about itself, or ''
-- ARGV[6...]            id, token, progress (JSON or '') of every job
-- reply    'held', 'cancelled', 'lost' or 'gone' for every job, in their order

writes()
local worker, lease = ARGV[3], tonumber(ARGV[4])
note_worker(worker, lease, ARGV[5])
local standings = {}
for i = 6, #ARGV, 3 do
  local id, token, progress = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local standing = holder(id, token)
  if standing == 'ours' then
    local job = job_key(id)
    local state = fields(job, 'entry', 'priority', 'cancel')
    redis.call('ZADD', leases_key(state.priority), int(now + lease), id)
    keep(leases_key(state.priority))
    group('XCLAIM', stream_key(state.priority), GROUP, worker, '0', state.entry, 'JUSTID')
    if progress ~= '' then redis.call('HSET', job, 'progress', progress, 'progress_at', int(now)) end
    keep(job)
    keep(stream_key(state.priority))
    standing = state.cancel == '1' and 'cancelled' or 'held'
  end
  standings[#standings + 1] = standing
end
return standings
