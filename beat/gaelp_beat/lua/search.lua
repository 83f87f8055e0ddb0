-- Look for the message of a task in a list, beginning where new ones come: what is taken meanwhile moves nothing there.
-- KEYS 1 the list
-- ARGV 1 how the message names its task; 2 where to begin; 3 how many messages to read at a time;
--      4 bytes after which to stop for now, so that nobody waits for this for long
-- Gives -1 where it is there, -2 where it is not, else where to go on.
local at, step, bytes = tonumber(ARGV[2]), tonumber(ARGV[3]), 0
while bytes < tonumber(ARGV[4]) do
  local found = redis.pcall('LRANGE', KEYS[1], at, at + step - 1)
  if found.err or #found == 0 then return -2 end
  for i = 1, #found do
    if string.find(found[i], ARGV[1], 1, true) then return -1 end
    bytes = bytes + #found[i]
  end
  at = at + #found
end
return at
