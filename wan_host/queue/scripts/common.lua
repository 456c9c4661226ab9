-- common.lua: put in front of every other script. It holds what they share and nothing that is called by itself.
--
-- KEYS[1]  the producers' list, `wan_queue`; every other key is `{wan_queue}:...` and so in the same cluster slot
-- ARGV[1]  request id: a repetition of the same request changes nothing more and is answered the same
-- ARGV[2]  seconds that a finished job, a dead letter or a report is kept (R); live keys are kept four times as long
--
--   {wan_queue}:meta           hash    schema, epoch (drawn when the server was empty), touched, of every stream how far
--                                      it was searched for what to rescue, and where groups are refused a cursor
--   {wan_queue}:intake         list    entries that a blocking read has taken from the producers' list
--   {wan_queue}:stream:<p>     stream  waiting and leased jobs of priority p (field id), consumer group `workers`
--   {wan_queue}:leases:<p>     zset    claimed and running jobs by the end of their lease (ms)
--   {wan_queue}:delayed:<p>    zset    jobs that were handed back, by the time of their next attempt (ms)
--   {wan_queue}:lines:<p>      zset    waiting jobs where users take turns, in order of user and age (line_of)
--   {wan_queue}:heads:<p>      zset    the oldest of these of each user, by the user's turn (head_of_line)
--   {wan_queue}:turns:<p>      zset    as above, of an older version: each job (entry, space, id) by a turn of its own
--   {wan_queue}:users:<p>      zset    users by the turn of their last job, of an older version, too
--   {wan_queue}:job:<id>       hash    the job's state and payload
--   {wan_queue}:jobs           zset    ids by the time of intake (ms), for listings
--   {wan_queue}:cancelling     set     ids of claimed and running jobs that somebody wants cancelled
--   {wan_queue}:outbox         zset    ids whose terminal report is due at that time (ms)
--   {wan_queue}:dead           stream  dead letters
--   {wan_queue}:workers        zset    worker ids by the time they were seen (ms)
--   {wan_queue}:worker:<id>    hash    what a worker says about itself
--   {wan_queue}:request:<id>   string  the answer to a request that must not act twice (5 minutes)
--
-- Times are the server's, in ms. Numbers that may exceed 2^31 go through int(): tostring() would write 1.79e+15.

local SCHEMA = '1'
local GROUP = 'workers'
local DEAD_LETTERS = '10000'
local LARGE = 4096
local request, retention = ARGV[1], tonumber(ARGV[2])
local live = retention * 4
local root = '{' .. KEYS[1] .. '}:'
local META, INTAKE, JOBS, CANCELLING = root .. 'meta', root .. 'intake', root .. 'jobs', root .. 'cancelling'
local OUTBOX, DEAD, WORKERS = root .. 'outbox', root .. 'dead', root .. 'workers'
local REQUEST = root .. 'request:' .. request
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(now_us / 1000)

local schema = redis.call('HGET', META, 'schema')
if schema and schema ~= SCHEMA then
  return redis.error_reply('WANHOSTSCHEMA the queue was written by another version of wan-host: its schema is '
    .. schema .. ', this version knows ' .. SCHEMA)
end

local function int(number) return string.format('%.0f', number) end
local function job_key(id) return root .. 'job:' .. id end
local function stream_key(priority) return root .. 'stream:' .. priority end
local function leases_key(priority) return root .. 'leases:' .. priority end
local function delayed_key(priority) return root .. 'delayed:' .. priority end
local function lines_key(priority) return root .. 'lines:' .. priority end
local function heads_key(priority) return root .. 'heads:' .. priority end
local function turns_key(priority) return root .. 'turns:' .. priority end
local function users_key(priority) return root .. 'users:' .. priority end
local kept = {}
local function keep(key)  -- once in a script is enough
  if kept[key] then return end
  kept[key] = redis.call('EXPIRE', key, int(live)) == 1
end

-- The first write of every script that changes something. A server that is out of memory refuses this one, and not, say, the
-- HSET after an LPOP, when the entry would be lost: scripts are not rolled back.
local function writes()
  redis.call('HSET', META, 'schema', SCHEMA)
  keep(META)
end

-- The fields of a hash as a table; a missing field is ''.
local function fields(key, ...)
  local values = redis.call('HMGET', key, ...)
  local found = {}
  for i, name in ipairs({...}) do found[name] = values[i] or '' end
  return found
end

-- Fencing tokens and sequence numbers follow the clock, so that they go on rising when a server comes back empty:
-- tokens in microseconds (below 2^53), sequence numbers in seconds (below 2^31 until 2038).
local function next_token(job) return int(math.max((tonumber(redis.call('HGET', job, 'token')) or 0) + 1, now_us)) end
local function next_sequence(job, used)
  local last = tonumber(redis.call('HGET', job, 'sequence')) or 0
  local first = math.max(last + 1, math.floor(now / 1000))
  redis.call('HSET', job, 'sequence', int(first + (used or 1) - 1))
  return int(first)
end

-- A command of consumer groups; nil if the server refuses it. Some refuse these commands in scripts: the queue does without,
-- because leases and states decide who has a job, and the groups' own lists only rescue and show.
local function group(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then return nil end
  return answer
end

-- Put a job into the stream of its priority; its hash must already say everything but status and entry.
local function enqueue(id, priority)
  local stream = stream_key(priority)
  if not kept[stream] and redis.call('EXISTS', stream) == 0 then group('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM') end
  local entry = redis.call('XADD', stream, '*', 'id', id)
  redis.call('HSET', job_key(id), 'status', 'waiting', 'entry', entry, 'priority', priority)
  keep(stream)
  keep(job_key(id))
  redis.call('ZADD', JOBS, 'NX', int(now), id)
  keep(JOBS)
end

-- Where users take turns, names sort jobs by age: a stream entry as long as all others, and back. Users and ids have no spaces.
local function age_of(entry)
  return (entry:gsub('%d+$', function(number) return string.format('%020.0f', tonumber(number)) end))
end
local function entry_of(age) return (age:gsub('%-0*(%d)', '-%1')) end
local function line_of(user, entry, id) return user .. ' ' .. age_of(entry) .. ' ' .. id end
local function head_of_line(user, entry, id) return age_of(entry) .. ' ' .. id .. ' ' .. user end

-- Give a turn to the oldest job in a user's line, unless it has one.
local function give_turn(priority, user, turn)
  local line = redis.call('ZRANGEBYLEX', lines_key(priority), '[' .. user .. ' ', '(' .. user .. '!', 'LIMIT', '0', '1')[1]
  if not line then return end
  redis.call('ZADD', heads_key(priority), 'NX', int(turn), line:sub(#user + 2) .. ' ' .. user)
  keep(heads_key(priority))
end

-- Take a job out of its user's line; its turn is the next one's.
local function leave_line(priority, user, entry, id)
  redis.call('ZREM', lines_key(priority), line_of(user, entry, id))
  local member = head_of_line(user, entry, id)
  local turn = redis.call('ZSCORE', heads_key(priority), member)
  if turn then
    redis.call('ZREM', heads_key(priority), member)
    give_turn(priority, user, tonumber(turn))
  end
end

-- Take a job out of everything that hands out work.
local function dequeue(id, priority, entry)
  if entry ~= '' then
    group('XACK', stream_key(priority), GROUP, entry)
    redis.call('XDEL', stream_key(priority), entry)
    leave_line(priority, redis.call('HGET', job_key(id), 'user') or '', entry, id)
  end
  redis.call('ZREM', leases_key(priority), id)
  redis.call('ZREM', delayed_key(priority), id)
  redis.call('SREM', CANCELLING, id)
end

-- 'ours', or why not: 'gone' when the server has no memory of the job, 'lost' when the token is not the newest one.
local function holder(id, token)
  local state = fields(job_key(id), 'status', 'token')
  if state.status == '' then return 'gone' end
  if state.token == token and (state.status == 'claimed' or state.status == 'running') then return 'ours' end
  return 'lost'
end

-- Let the terminal report that the hash holds be delivered, from `due` (ms) on.
local function send_report(id, due)
  redis.call('HSET', job_key(id), 'report_state', 'pending', 'report_tries', '0', 'report_error', '', 'report_note', '',
    'report_since', int(now))
  redis.call('ZADD', OUTBOX, int(due), id)
  keep(OUTBOX)
end

local function is_utf8(text)
  if not text:find('[\128-\255]') then return true end
  text = text:gsub('[\194-\223][\128-\191]', '.')
  text = text:gsub('\224[\160-\191][\128-\191]', '.')
  text = text:gsub('[\225-\236\238\239][\128-\191][\128-\191]', '.')
  text = text:gsub('\237[\128-\159][\128-\191]', '.')
  text = text:gsub('\240[\144-\191][\128-\191][\128-\191]', '.')
  text = text:gsub('[\241-\243][\128-\191][\128-\191][\128-\191]', '.')
  text = text:gsub('\244[\128-\143][\128-\191][\128-\191]', '.')
  return not text:find('[\128-\255]')
end

-- The value of a JSON text, or nil. Half a surrogate pair, which JavaScript writes when it cuts an emoji, is no reason to
-- lose the job: what is read here (id, priority, whether there is a seed) does not depend on it, and the payload stays as it is.
local function parse(text)
  local ok, value = pcall(cjson.decode, text)
  if ok then return value end
  local mended = text:gsub('\\\\', '\1\1'):gsub('\\u[dD][89a-fA-F]%x%x', '\\ufffd'):gsub('\1\1', '\\\\')
  ok, value = pcall(cjson.decode, mended)
  if ok then return value end
  return nil
end

local function table_or_empty(value) return type(value) == 'table' and value or {} end
local function is_plain(value) return type(value) == 'string' and #value <= 128 and value:match('^[A-Za-z0-9._%-]+$') end
local function given(value) return value ~= nil and value ~= cjson.null end

-- The seed in a payload's value, where `seed_of` looks for it too; nil where there is none.
local function seed_in(value)
  for _, holder in ipairs({table_or_empty(value.config), value, table_or_empty(value.metadata)}) do
    if given(holder.seed) then return holder.seed end
  end
  return nil
end

-- The first 500 characters of a text that is UTF-8; nil for anything else than a text.
local function beginning(text)
  if type(text) ~= 'string' then return nil end
  local characters = 0
  for place in text:gmatch('()[^\128-\191]') do
    characters = characters + 1
    if characters > 500 then return text:sub(1, place - 1) end
  end
  return text
end

-- What lists tell of a large payload, in a payload's form. The seed is copied as it is written: cjson has 14 digits.
local function brief_of(payload, value)
  local brief = cjson.encode({type = beginning(value.type), user_id = beginning(value.user_id), prompt = beginning(value.prompt),
    config = {model = beginning(table_or_empty(value.config).model)}})
  local seed = seed_in(value)
  if type(seed) ~= 'number' then return brief end
  for digits in payload:gmatch('"seed"%s*:%s*(%-?%d+)[%s,}]') do
    if tonumber(digits) == seed then return (brief:gsub('}$', ',"seed":' .. digits .. '}')) end
  end
  return brief
end

-- What turns and lists need to know of a payload: its user, and of a large one what it is about.
local function note_payload(job, payload, value)
  redis.call('HSET', job, 'user', is_plain(value.user_id) and value.user_id or '')  -- any other is refused by the host
  if #payload > LARGE then redis.call('HSET', job, 'brief', brief_of(payload, value)) end
end

-- The first kilobyte, always valid UTF-8: a REST client fails on anything else after the entry is gone.
local function head_of(text)
  for last = 1024, #text > 1024 and 1021 or 1024, -1 do  -- the cut may have gone through a character
    local cut = text:sub(1, last)
    if is_utf8(cut) then return cut end
  end
  return (text:sub(1, 1024):gsub('[\128-\255]', '?'))
end

-- Write a dead letter and return its stream id.
local function bury(id, reason, problem, head, size)
  local letter = redis.call('XADD', DEAD, 'MAXLEN', '~', DEAD_LETTERS, '*', 'id', id, 'reason', reason, 'error', problem,
    'head', head, 'size', size)
  redis.call('XTRIM', DEAD, 'MINID', '~', int(now - retention * 1000))
  redis.call('EXPIRE', DEAD, int(retention))
  return letter
end

-- A worker was seen. What it says about itself is kept until it says something else; one that never said anything is not listed.
local function note_worker(worker, lease, about)
  local key = root .. 'worker:' .. worker
  if about == '' and redis.call('EXISTS', key) == 0 then return end
  redis.call('HSETNX', key, 'since', int(now))
  redis.call('HSET', key, 'seen', int(now), 'lease', int(lease))
  if about ~= '' then redis.call('HSET', key, 'about', about) end
  redis.call('EXPIRE', key, '86400')
  redis.call('ZADD', WORKERS, int(now), worker)
  redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', int(now - 86400000))
  redis.call('EXPIRE', WORKERS, '86400')
end

-- Requests that must not act twice leave their answer behind for five minutes.
local function remembered()
  local answer = redis.call('GET', REQUEST)
  return answer and cjson.decode(answer)
end
local function remember(answer)
  redis.call('SET', REQUEST, cjson.encode(answer), 'EX', '300')
  return answer
end
