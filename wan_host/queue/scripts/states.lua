-- states.lua: how far jobs are; without their payloads, for those who watch many.
--
-- ARGV[3...]  ids
-- reply       {{id, field, value, field, value...}...}; what is not known is left out

local FIELDS = {'status', 'digest', 'attempts', 'progress', 'result', 'error'}
local found = {}
for i = 3, #ARGV do
  local state = fields(job_key(ARGV[i]), unpack(FIELDS))
  if state.status ~= '' then
    if state.digest == '' then  -- of an earlier version
      state.digest = redis.sha1hex(redis.call('HGET', job_key(ARGV[i]), 'payload') or '')
    end
    local row = {ARGV[i]}
    for _, name in ipairs(FIELDS) do
      row[#row + 1] = name
      row[#row + 1] = state[name]
    end
    found[#found + 1] = row
  end
end
return found
