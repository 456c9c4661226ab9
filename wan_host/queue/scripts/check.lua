-- check.lua: is the token still the newest one of its job?
--
-- ARGV[3]  job id    ARGV[4]  token
-- reply    'ours', 'lost' or 'gone'

return holder(ARGV[3], ARGV[4])
