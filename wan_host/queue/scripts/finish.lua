-- finish.lua: the end of a job: terminal state, report, acknowledgement and dead letter, all or nothing.
--
-- ARGV[3]  job id    ARGV[4]  token    ARGV[5]  published | failed | cancelled
-- ARGV[6]  report (JSON, or '')        ARGV[7]  result (JSON, or '')    ARGV[8]  error (JSON, or '')
-- ARGV[9]  reason for a dead letter, or ''
-- ARGV[10] time (ms) that the caller has for delivering the report itself before others may
-- reply    {'ours', sequence, now, number of the run} or {'gone'} or {'lost'}

local KEPT_BYTES = 16384

-- Of a large payload what people ask for is kept: its pictures, as data: URIs, are cut out. '' where it stays too large. The
-- digest stays that of the whole, so that who pushes it again is told that it is this job.
local function outline(payload)
  local function cut(value)
    if type(value) == 'table' then
      for key, item in pairs(value) do value[key] = cut(item) end
    elseif type(value) == 'string' and value:sub(1, 5) == 'data:' then
      return value:match('^data:[%w/+.-]*') .. '... (' .. int(#value) .. ' characters)'
    end
    return value
  end
  local ok, short = pcall(function() return cjson.encode(cut(cjson.decode(payload))) end)
  return ok and #short <= KEPT_BYTES and short or ''
end

writes()
local id, token, status, report = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local job = job_key(id)
local state = fields(job, 'finished_token', 'report_sequence', 'entry', 'priority', 'payload', 'head', 'size', 'runs')
if state.finished_token == token then return {'ours', state.report_sequence, int(now), state.runs} end
local standing = holder(id, token)
if standing ~= 'ours' then return {standing} end

local sequence = next_sequence(job)
dequeue(id, state.priority, state.entry)
if report == '' and status == 'published' then status = 'completed' end
redis.call('HSET', job, 'status', status, 'finished_token', token, 'finished_at', int(now), 'report_sequence', sequence,
  'report', report, 'result', ARGV[7], 'error', ARGV[8])
redis.call('HDEL', job, 'cancel')
if report ~= '' then send_report(id, now + tonumber(ARGV[10])) end
if ARGV[9] ~= '' then
  local head = state.head ~= '' and state.head or head_of(state.payload)
  redis.call('HSET', job, 'dead', bury(id, ARGV[9], ARGV[8], head, state.size == '' and '0' or state.size))
end
if (status == 'published' or status == 'completed') and #state.payload > KEPT_BYTES then
  local short = outline(state.payload)
  if short == '' then redis.call('HDEL', job, 'payload') else redis.call('HSET', job, 'payload', short) end
end
redis.call('EXPIRE', job, int(retention))
return {'ours', sequence, int(now), state.runs}
