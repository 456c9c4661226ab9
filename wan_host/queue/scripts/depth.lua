-- depth.lua: how much there is to do.
--
-- reply    {not moved yet, waiting in the streams (delayed ones included), delayed, leased, reports in the outbox, dead letters}

local waiting, delayed, leased = 0, 0, 0
for p = 0, 9 do
  local held = redis.call('ZCARD', leases_key(p))
  waiting = waiting + redis.call('XLEN', stream_key(p)) - held
  delayed = delayed + redis.call('ZCARD', delayed_key(p))
  leased = leased + held
end
return {redis.call('LLEN', KEYS[1]) + redis.call('LLEN', INTAKE), waiting, delayed, leased, redis.call('ZCARD', OUTBOX),
  redis.call('XLEN', DEAD)}
