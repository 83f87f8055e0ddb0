-- Forget queues that hold nothing; whoever publishes to one names it again afterwards.
--
-- KEYS  1 gaelp:queues (set of queues that may hold something)  2.. the lists of those asked about
-- ARGV  1 how many lists a queue has  2.. the names of the queues
-- Gives how many were forgotten.

local lists, count = tonumber(ARGV[1]), 0
for i = 2, #ARGV do
  local keys = {}
  for at = 1, lists do keys[at] = KEYS[1 + (i - 2) * lists + at] end
  if redis.call('EXISTS', unpack(keys)) == 0 then count = count + redis.call('SREM', KEYS[1], ARGV[i]) end
end
return count
