-- push.lua: append entries to the producers' list, once.
--
-- ARGV[3...]  the entries, as a producer would RPUSH them
-- reply       the length of the list, or 0 when this request had already been done

writes()
if remembered() then return 0 end
remember(1)
local length = 0
for i = 3, #ARGV do length = redis.call('RPUSH', KEYS[1], ARGV[i]) end
return length
