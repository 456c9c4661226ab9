-- poll.lua: everything that a worker wants to know and have, in one command. It moves entries from the producers' list into
-- the streams, hands out due and waiting jobs (expired leases and deferred ones before new ones, highest priority first),
-- notes that the worker lives, and says what else is to be done.
--
-- ARGV[3]  worker id, or '' for a visitor (the command line)    ARGV[4]  lease (ms)
-- ARGV[5]  jobs wanted                                          ARGV[6]  entries to move at most
-- ARGV[7]  size limit of an entry (bytes)                       ARGV[8]  randomness, for seeds and the epoch
-- ARGV[9]  JSON that the worker says about itself, or ''     ARGV[10] '1': users take turns
-- reply    {now, epoch, waiting, next due (ms from now, -1: nothing), reports due, moved,
--           claims {{id, token, attempts, runs, seed, queued_at, priority, entry, cancelled, problem, payload}...},
--           poisoned {{letter, id, reason, size, head}...}, duplicates {{id, status, 'dropped'|'reported'|'rerun'}...},
--           cancelled {id...}, reports not yet accepted}

local worker, lease, wanted = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local move_limit, entry_limit, randomness, about = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]
local BYTES_A_POLL = 8388608
local TIDY = '600000'
local FAIR_FOR = 3600000
local FAIR_A_POLL = 512
local LOOKED_AT = 512
local RESCUED_A_POLL = 500
local claims, poisoned, duplicates = {}, {}, {}

-- The JSON text of the job's object, as the producer wrote it, and its value; or nil and the reason. The text is never encoded
-- anew: cjson would turn [] into {} and 2^53+1 into 2^53.
local function unwrap(text)
  for _ = 1, 4 do
    local first = text:match('^[ \t\r\n]*(.)')
    local value = parse(text)
    if value == nil then return nil, 'not_json' end
    if first == '{' then return text, value end
    if first == '"' then
      text = value
    elseif first == '[' and #value == 1 and type(value[1]) == 'string' then
      text = value[1]
    elseif first == '[' and #value == 1 and type(value[1]) == 'table' then
      text = text:match('^[ \t\r\n]*%[(.*)%][ \t\r\n]*$')
    else
      return nil, 'not_an_object'
    end
  end
  return nil, 'not_an_object'
end

local function poison(text, reason, problem)
  local head = head_of(text)
  local letter = bury('', reason, problem and cjson.encode({message = problem}) or '', head, int(#text))
  poisoned[#poisoned + 1] = {letter, '', reason, int(#text), head}
end

local function take_in(text)
  local payload, value = unwrap(text)
  if not payload then return poison(text, #text > entry_limit and 'too_large' or value) end
  local id = value.id
  if type(id) ~= 'string' then return poison(text, given(id) and 'invalid_id' or 'no_id') end
  if not is_plain(id) or id == '.' or id == '..' then return poison(text, 'invalid_id') end

  local job = job_key(id)
  local known = fields(job, 'status', 'report', 'dead', 'report_state')
  local status = known.status
  if status ~= '' and status ~= 'failed' then
    local action = 'dropped'
    if known.report ~= '' and (status == 'completed' or status == 'report_refused' or status == 'cancelled') then
      if known.report_state ~= 'pending' then
        if status == 'report_refused' then redis.call('HSET', job, 'status', 'published') end
        redis.call('HSET', job, 'report_sequence', next_sequence(job))
        send_report(id, now)
      end
      action = 'reported'
    end
    duplicates[#duplicates + 1] = {id, status, action}
    return
  end
  if status == 'failed' then
    if known.dead ~= '' then redis.call('XDEL', DEAD, known.dead) end
    redis.call('ZREM', OUTBOX, id)
    redis.call('HDEL', job, 'error', 'result', 'progress', 'report', 'report_state', 'dead', 'cancel', 'problem', 'head', 'size',
      'brief', 'finished_at', 'started_at', 'claimed_at', 'worker', 'seed')
    duplicates[#duplicates + 1] = {id, status, 'rerun'}
  end

  local problem = ''
  if #text > entry_limit then problem = 'too_large' elseif not is_utf8(payload) then problem = 'not_utf8' end
  if problem ~= '' then
    redis.call('HSET', job, 'problem', problem, 'head', head_of(payload))
    payload = cjson.encode({id = id})
  end
  local seed = ''
  if seed_in(value) == nil then
    seed = int(tonumber(redis.sha1hex(randomness .. id):sub(1, 8), 16) % 2147483640)
  end
  local priority = value.priority
  if type(priority) ~= 'number' or priority < 0 or priority > 9 or priority ~= math.floor(priority) then priority = 0 end
  redis.call('HSET', job, 'payload', payload, 'digest', redis.sha1hex(payload), 'size', int(#text), 'seed', seed, 'attempts', '0',
    'queued_at', int(now))
  note_payload(job, payload, value)
  if status ~= '' then redis.call('ZREM', JOBS, id) end  -- listed by its last intake
  enqueue(id, int(priority))
end

-- Lease a waiting, deferred or abandoned job to the caller.
local function claim(id, priority)
  local job = job_key(id)
  local state = fields(job, 'status', 'entry', 'attempts', 'runs', 'seed', 'queued_at', 'cancel', 'problem')
  local token = next_token(job)
  redis.call('ZREM', delayed_key(priority), id)
  redis.call('ZADD', leases_key(priority), int(now + lease), id)
  keep(leases_key(priority))
  redis.call('HSET', job, 'status', 'claimed', 'token', token, 'worker', worker, 'claimed_at', int(now))
  keep(job)
  claims[#claims + 1] = {id, token, state.attempts, state.runs, state.seed, state.queued_at, priority, state.entry, state.cancel,
    state.problem, ''}
end

-- Jobs of this priority whose lease has ended or whose delay is over.
local function claim_due(priority, key)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', int(now), 'LIMIT', '0', int(wanted - #claims))) do
    local entry = redis.call('HGET', job_key(id), 'entry')
    if entry then
      group('XCLAIM', stream_key(priority), GROUP, worker, '0', entry)
      claim(id, priority)
    else
      redis.call('ZREM', key, id)
    end
  end
end

-- The next entries of a stream that nobody has read: by the consumer group, or, where that is refused, by a cursor of our own.
local function read_next(stream, count)
  local command = {'XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', int(count), 'STREAMS', stream, '>'}
  local read = group(unpack(command))
  if read == nil and group('XGROUP', 'CREATE', stream, GROUP, '0') then read = group(unpack(command)) end
  if read ~= nil then return read and read[1] and read[1][2] or {} end
  local cursor = redis.call('HGET', META, 'cursor:' .. stream) or '0'
  local found = redis.call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', int(count))
  if #found > 0 then redis.call('HSET', META, 'cursor:' .. stream, found[#found][1]) end
  return found
end

-- The id of the job that an entry of a stream makes ready, or nil. Entries whose job is held or delayed elsewhere (it was restored
-- after the server had come back empty) are passed over; entries that no job knows are removed, and one whose state has expired
-- is told.
local function ready(priority, read)
  local stream, entry, id = stream_key(priority), read[1], table_or_empty(read[2])[2] or ''
  local state = fields(job_key(id), 'status', 'entry')
  if state.status == 'waiting' and state.entry == entry then
    return not redis.call('ZSCORE', delayed_key(priority), id) and id or nil
  elseif state.entry ~= entry then
    group('XACK', stream, GROUP, entry)
    redis.call('XDEL', stream, entry)
    if state.status == '' then
      local letter = bury(id, 'expired', '', '', '0')
      poisoned[#poisoned + 1] = {letter, id, 'expired', '0', ''}
    end
  end
  return nil
end

-- Jobs of this priority that nobody has had yet.
local function claim_new(priority)
  for _ = 1, LOOKED_AT do
    if #claims >= wanted then return end
    local read = read_next(stream_key(priority), 1)[1]
    if not read then return end
    local id = ready(priority, read)
    if id then claim(id, priority) end
  end
end

-- Users take turns (start-time fair queueing): the oldest job in each user's line has a turn, one more than that of the user's
-- job before it, and than the one that is being served; the lowest is next, the oldest job where turns are the same. A poll
-- brings a bounded number into line.
local function serving(priority) return tonumber(redis.call('HGET', META, 'turn:' .. priority)) or 0 end

-- What an older version had read (see common.lua) comes into line before all others.
local function read_of_old(priority)
  local members, found = redis.call('ZPOPMIN', turns_key(priority), FAIR_A_POLL), {}
  if not members[1] then return nil end
  redis.call('DEL', users_key(priority))
  for i = 1, #members, 2 do
    local entry, id = members[i]:match('^(%S+) (%S+)$')
    found[#found + 1] = {entry, {'id', id}}
  end
  return found
end

local function line_up(priority)
  local turn, served = serving(priority) + 1, {}
  for _, read in ipairs(read_of_old(priority) or read_next(stream_key(priority), FAIR_A_POLL)) do
    local id = ready(priority, read)
    if id then  -- a stream that is read anew brings some again
      local user = redis.call('HGET', job_key(id), 'user') or ''
      redis.call('ZADD', lines_key(priority), '0', line_of(user, read[1], id))
      keep(lines_key(priority))
      if not served[user] then give_turn(priority, user, turn) end
      served[user] = true
    end
  end
end

local function claim_turns(priority)
  for _ = 1, LOOKED_AT do
    if #claims >= wanted then return end
    local first = redis.call('ZRANGE', heads_key(priority), '0', '0', 'WITHSCORES')
    if not first[1] then return end
    local age, id, user = first[1]:match('^(%S+) (%S+) (%S*)$')
    local entry, turn = entry_of(age), tonumber(first[2])
    if id == ready(priority, {entry, {'id', id}}) then
      redis.call('HSET', META, 'turn:' .. priority, int(turn))
      group('XCLAIM', stream_key(priority), GROUP, worker, '0', entry, 'JUSTID')
      claim(id, priority)
      turn = turn + 1
    end
    redis.call('ZREM', heads_key(priority), first[1])
    redis.call('ZREM', lines_key(priority), line_of(user, entry, id))
    give_turn(priority, user, turn)
  end
end

-- Entries that were read from the stream but are neither leased nor delayed, because a server failed in the middle of a script:
-- Redis's own list of pending entries knows them. They become due. What waits for its turn is pending, too, so that the list
-- may be long: a poll looks at a part of it, the next polls at the rest.
local function rescue(priority)
  local stream, place = stream_key(priority), 'rescue:' .. priority
  local from = redis.call('HGET', META, place)
  if not from then return end
  local rows = group('XPENDING', stream, GROUP, 'IDLE', TIDY, from, '+', int(RESCUED_A_POLL)) or {}
  if #rows == RESCUED_A_POLL then
    redis.call('HSET', META, place, '(' .. rows[#rows][1])
  else
    redis.call('HDEL', META, place)
  end
  for _, row in ipairs(rows) do
    local found = redis.call('XRANGE', stream, row[1], row[1])[1]
    local id = found and found[2][2] or ''
    local state = fields(job_key(id), 'status', 'entry', 'user')
    if not found then
      group('XACK', stream, GROUP, row[1])
    elseif state.status == 'waiting' and state.entry == row[1] then
      if redis.call('ZSCORE', lines_key(priority), line_of(state.user, row[1], id)) then
        give_turn(priority, state.user, serving(priority) + 1)
      elseif not redis.call('ZSCORE', turns_key(priority), row[1] .. ' ' .. id) then
        redis.call('ZADD', delayed_key(priority), 'NX', int(now), id)
        keep(delayed_key(priority))
      end
    end
  end
end

-- Every ten minutes: prolong what is in use, forget what has passed.
local function tidy()
  redis.call('HSET', META, 'touched', int(now))
  keep(META)
  keep(INTAKE)
  keep(OUTBOX)
  keep(CANCELLING)
  redis.call('ZREMRANGEBYSCORE', JOBS, '-inf', int(now - live * 1000))
  keep(JOBS)
  for p = 0, 9 do
    local stream = stream_key(p)
    keep(lines_key(p))
    keep(heads_key(p))
    if redis.call('EXISTS', stream) == 1 then
      redis.call('HSETNX', META, 'rescue:' .. p, '-')
      redis.call('HDEL', META, 'cursor:' .. stream)  -- begin again, in case a script had failed behind it
      keep(stream)
      keep(leases_key(p))
      keep(delayed_key(p))
      for _, row in ipairs(group('XINFO', 'CONSUMERS', stream, GROUP) or {}) do
        local consumer = {}
        for i = 1, #row, 2 do consumer[row[i]] = row[i + 1] end
        if consumer.pending == 0 and consumer.idle > 86400000 then
          group('XGROUP', 'DELCONSUMER', stream, GROUP, consumer.name)
        end
      end
    end
  end
end

writes()
local answer = remembered()
if answer then
  for _, claimed in ipairs(answer[7]) do
    local state = fields(job_key(claimed[1]), 'payload', 'token')
    claimed[11] = state.token == claimed[2] and state.payload or ''
  end
  return answer
end

local meta = fields(META, 'epoch', 'touched', 'fair')
if meta.epoch == '' then
  meta.epoch = redis.sha1hex('epoch' .. randomness)
  redis.call('HSET', META, 'epoch', meta.epoch)
end
if (tonumber(meta.touched) or 0) + tonumber(TIDY) < now then tidy() end
if worker ~= '' and about ~= '' then note_worker(worker, lease, about) end
if ARGV[10] == '1' then
  meta.fair = int(now)
  redis.call('HSET', META, 'fair', meta.fair)
end
local turns = (tonumber(meta.fair) or 0) + FAIR_FOR > now  -- one worker that asks for it is enough

local moved, bytes = 0, 0
while moved < move_limit and bytes < BYTES_A_POLL do
  local text = redis.call('LPOP', INTAKE) or redis.call('LPOP', KEYS[1])
  if not text then break end
  moved = moved + 1
  bytes = bytes + #text
  local ok, problem = pcall(take_in, text)
  if not ok then poison(text, 'broken', type(problem) == 'table' and problem.err or tostring(problem)) end
end
if moved == move_limit then keep(INTAKE) end

local next_due = -1
local function sooner(key)
  local first = redis.call('ZRANGEBYSCORE', key, '(' .. int(now), '+inf', 'WITHSCORES', 'LIMIT', '0', '1')
  if first[2] and (next_due < 0 or tonumber(first[2]) - now < next_due) then next_due = tonumber(first[2]) - now end
end

local waiting = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', INTAKE)
for p = 9, 0, -1 do
  local priority = int(p)
  if redis.call('EXISTS', stream_key(priority)) == 1 then
    rescue(priority)
    if #claims < wanted then claim_due(priority, leases_key(priority)) end
    if #claims < wanted then claim_due(priority, delayed_key(priority)) end
    if #claims < wanted and (turns or redis.call('EXISTS', turns_key(priority)) == 1) then line_up(priority) end
    if #claims < wanted and meta.fair ~= '' then claim_turns(priority) end
    if #claims < wanted then claim_new(priority) end
    waiting = waiting + redis.call('XLEN', stream_key(priority)) - redis.call('ZCARD', leases_key(priority))
    sooner(leases_key(priority))
    sooner(delayed_key(priority))
  end
end
sooner(OUTBOX)

local cancelled = {}
if worker ~= '' then
  for _, id in ipairs(redis.call('SMEMBERS', CANCELLING)) do
    if redis.call('HGET', job_key(id), 'worker') == worker then cancelled[#cancelled + 1] = id end
  end
end

answer = {int(now), meta.epoch, waiting, next_due, redis.call('ZCOUNT', OUTBOX, '-inf', int(now)), moved, claims, poisoned,
  duplicates, cancelled, redis.call('ZCARD', OUTBOX)}
if #claims + #poisoned + #duplicates > 0 then remember(answer) end
for _, claimed in ipairs(claims) do claimed[11] = redis.call('HGET', job_key(claimed[1]), 'payload') or '' end
return answer
