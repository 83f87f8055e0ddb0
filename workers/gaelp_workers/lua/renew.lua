-- Renew the leases of what a holder holds.
--
-- KEYS  1 gaelp:leases (sorted set: tag -> end, ms)
-- ARGV  1 lease, ms  2 prefix of the marks of what was swept  3.. tags
-- Gives the tags that are no longer held: their leases ended, and somebody gave the messages back. What Redis has
-- merely forgotten (it was emptied) is held again, so that its run may end.

redis.call('ZREM', KEYS[1], '') -- a script that has written may go on writing when Redis is full
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lost = {}
for i = 3, #ARGV do
  if redis.call('EXISTS', ARGV[2] .. ARGV[i]) == 1 then
    lost[#lost + 1] = ARGV[i]
  else
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
  end
end
return lost
