-- states.lua: how far jobs are; without their payloads, for those who watch many.
--
-- ARGV[3...]  ids
-- reply       {{id, field, value, field, value...}...}; what is not known is left out

local FIELDS = {'status', 'attempts', 'progress', 'result', 'error'}  -- and the payload, as its SHA-1
local function digest_of(id)
  local known = fields(job_key(id), 'digest', 'payload')
  return known.digest ~= '' and known.digest or redis.sha1hex(known.payload)
end
local found = {}
for i = 3, #ARGV do
  local state = fields(job_key(ARGV[i]), unpack(FIELDS))
  if state.status ~= '' then
    local row = {ARGV[i], 'digest', digest_of(ARGV[i])}
    for _, name in ipairs(FIELDS) do
      row[#row + 1] = name
      row[#row + 1] = state[name]
    end
    found[#found + 1] = row
  end
end
return found
