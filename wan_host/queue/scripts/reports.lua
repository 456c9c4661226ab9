-- reports.lua: take terminal reports that are due, each for a time in which no other worker delivers it.
--
-- ARGV[3]  reports wanted    ARGV[4]  time for delivering them (ms)
-- reply    {{id, sequence, tries, run, status, since, error, report}...}

writes()
local ids = remembered()
if not ids then
  ids = redis.call('ZRANGEBYSCORE', OUTBOX, '-inf', int(now), 'LIMIT', '0', ARGV[3])
  if #ids > 0 then remember(ids) end
end
local reports = {}
for _, id in ipairs(ids) do
  local state = fields(job_key(id), 'report_sequence', 'report_tries', 'runs', 'status', 'report_since', 'report_error', 'report',
    'report_state')
  if state.report ~= '' and state.report_state == 'pending' then
    redis.call('ZADD', OUTBOX, int(now + tonumber(ARGV[4])), id)
    reports[#reports + 1] = {id, state.report_sequence, state.report_tries, state.runs, state.status, state.report_since,
      state.report_error, state.report}
  else
    redis.call('ZREM', OUTBOX, id)
  end
end
return reports
