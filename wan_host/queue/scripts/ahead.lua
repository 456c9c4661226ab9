-- ahead.lua: how many waiting jobs are before these.
--
-- ARGV[3]     where counting ends: a stream is walked, not indexed
-- ARGV[4...]  ids
-- reply       {{id, number}...}; what does not wait is left out

local most = tonumber(ARGV[3])

-- The places of the entries of a priority, what was leased of them, and what goes before them all: each priority is walked once.
local walked = {}
local function walk(priority)
  if walked[priority] then return walked[priority] end
  local ahead = 0
  for p = tonumber(priority) + 1, 9 do
    ahead = ahead + redis.call('XLEN', stream_key(p)) - redis.call('ZCARD', leases_key(p))
  end
  local entries = redis.call('XRANGE', stream_key(priority), '-', '+', 'COUNT', int(most))
  local row = {places = {}, last = #entries, ahead = ahead, leased = redis.call('ZCARD', leases_key(priority))}
  for i, entry in ipairs(entries) do row.places[entry[1]] = i - 1 end
  walked[priority] = row
  return row
end

local found = {}
for i = 4, #ARGV do
  local state = fields(job_key(ARGV[i]), 'status', 'entry', 'priority')
  if state.status == 'waiting' and state.entry ~= '' then
    local known = walk(state.priority)
    -- what is leased stays in the stream until it has ended, and stands before what waits
    local before = math.max((known.places[state.entry] or known.last) - known.leased, 0)
    found[#found + 1] = {ARGV[i], math.min(known.ahead + before, most)}
  end
end
return found
