-- dead.lua: the newest dead letters.
--
-- ARGV[3]  letters wanted
-- reply    {{letter, field, value...}...}

local found = {}
for _, letter in ipairs(redis.call('XREVRANGE', DEAD, '+', '-', 'COUNT', ARGV[3])) do
  local row = {letter[1]}
  for _, value in ipairs(letter[2]) do row[#row + 1] = value end
  found[#found + 1] = row
end
return found
