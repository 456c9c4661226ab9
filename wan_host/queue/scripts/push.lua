-- push.lua: append an entry to the producers' list, once.
--
-- ARGV[3]  the entry, as a producer would RPUSH it
-- reply    the length of the list, or 0 when this request had already been done

writes()
if remembered() then return 0 end
remember(1)
return redis.call('RPUSH', KEYS[1], ARGV[3])
