-- jobs.lua: the state of jobs.
--
-- ARGV[3]  status to keep, or ''    ARGV[4]  jobs wanted    ARGV[5...]  ids; without any the newest jobs
-- reply    {{id, field, value, field, value...}...}; without the report's text

local wanted = tonumber(ARGV[4])
local ids = {}
for i = 5, #ARGV do ids[#ids + 1] = ARGV[i] end
if #ids == 0 then ids = redis.call('ZREVRANGE', JOBS, '0', ARGV[3] == '' and int(wanted - 1) or '9999') end
local found = {}
for _, id in ipairs(ids) do
  if #found >= wanted then break end
  local job = job_key(id)
  local status = redis.call('HGET', job, 'status')
  if not status then
    redis.call('ZREM', JOBS, id)
  elseif ARGV[3] == '' or ARGV[3] == status then
    local row = {id}
    for i, value in ipairs(redis.call('HGETALL', job)) do
      row[#row + 1] = value
      if i % 2 == 0 and row[#row - 1] == 'report' then row[#row] = '' end
    end
    found[#found + 1] = row
  end
end
return found
