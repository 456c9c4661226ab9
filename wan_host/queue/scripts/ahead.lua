-- ahead.lua: how many waiting jobs are before these.
--
-- ARGV[3]     where counting ends: a stream is walked, not indexed
-- ARGV[4...]  ids
-- reply       {{id, number}...}; what does not wait is left out

local most = tonumber(ARGV[3])
local found = {}
for i = 4, #ARGV do
  local state = fields(job_key(ARGV[i]), 'status', 'entry', 'priority')
  if state.status == 'waiting' and state.entry ~= '' then
    local ahead = 0
    for p = tonumber(state.priority) + 1, 9 do
      ahead = ahead + redis.call('XLEN', stream_key(p)) - redis.call('ZCARD', leases_key(p))
    end
    -- what is leased stays in the stream until it has ended, and stands before what waits
    local before = #redis.call('XRANGE', stream_key(state.priority), '-', '(' .. state.entry, 'COUNT', int(most))
    ahead = ahead + math.max(before - redis.call('ZCARD', leases_key(state.priority)), 0)
    found[#found + 1] = {ARGV[i], math.min(ahead, most)}
  end
end
return found
