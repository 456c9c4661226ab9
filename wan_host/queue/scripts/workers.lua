-- workers.lua: who has been seen within a day; and a worker's goodbye.
--
-- ARGV[3]  id of a worker that leaves, or ''
-- reply    {now, {{id, since, seen, lease, about, job id, status, job id, status...}...}}

if ARGV[3] ~= '' then
  redis.call('ZREM', WORKERS, ARGV[3])
  redis.call('DEL', root .. 'worker:' .. ARGV[3])
  return {int(now), {}}
end
local rows, by_id = {}, {}
for _, id in ipairs(redis.call('ZREVRANGE', WORKERS, '0', '999')) do
  local state = fields(root .. 'worker:' .. id, 'since', 'seen', 'lease', 'about')
  if state.seen ~= '' then
    rows[#rows + 1] = {id, state.since, state.seen, state.lease, state.about}
    by_id[id] = rows[#rows]
  end
end
for p = 9, 0, -1 do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases_key(p), int(now), '+inf', 'LIMIT', '0', '1000')) do
    local state = fields(job_key(id), 'worker', 'status')
    local row = by_id[state.worker]
    if row then
      row[#row + 1] = id
      row[#row + 1] = state.status
    end
  end
end
return {int(now), rows}
