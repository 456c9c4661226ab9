-- jobs.lua: the state of jobs.
--
-- ARGV[3]  status to keep, or ''    ARGV[4]  jobs wanted    ARGV[5...]  ids; without any the newest jobs
-- reply    {{id, field, value, field, value...}...}; without the report's text, and in a list without large payloads: they have
--          a brief

local wanted = tonumber(ARGV[4])
local listing = #ARGV < 5
local ids = {}
for i = 5, #ARGV do ids[#ids + 1] = ARGV[i] end
if listing then ids = redis.call('ZREVRANGE', JOBS, '0', ARGV[3] == '' and int(wanted - 1) or '9999') end
local found = {}
for _, id in ipairs(ids) do
  if #found >= wanted then break end
  local job = job_key(id)
  local status = redis.call('HGET', job, 'status')
  if not status then
    redis.call('ZREM', JOBS, id)
  elseif ARGV[3] == '' or ARGV[3] == status then
    local left_out = {report = true, payload = listing and redis.call('HEXISTS', job, 'brief') == 1}
    local names, row = {}, {id}
    for _, name in ipairs(redis.call('HKEYS', job)) do
      if not left_out[name] then names[#names + 1] = name end
    end
    for i, value in ipairs(redis.call('HMGET', job, unpack(names))) do
      row[#row + 1] = names[i]
      row[#row + 1] = value
    end
    found[#found + 1] = row
  end
end
return found
