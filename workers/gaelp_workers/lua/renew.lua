-- Renew the leases of what a holder holds.
--
-- KEYS  1 gaelp:leases (sorted set: tag -> end, ms)
-- ARGV  1 lease, ms  2 prefix of the marks of what was swept  3 prefix of the deaths by task id  4.. tags
-- Gives the tags that are no longer held: their leases ended, and somebody gave the messages back. What Redis has
-- merely forgotten (it was emptied) is held again, so that its run may end.

redis.call('ZREM', KEYS[1], '') -- a script that has written may go on writing when Redis is full
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lost = {}
for i = 4, #ARGV do
  local swept = redis.call('GET', ARGV[2] .. ARGV[i])
  if swept then
    lost[#lost + 1] = ARGV[i]
    if swept ~= '' then -- its holder was slow, not dead
      redis.call('SET', ARGV[2] .. ARGV[i], '', 'KEEPTTL')
      local deaths = redis.pcall('DECR', ARGV[3] .. swept)
      if type(deaths) ~= 'number' or deaths <= 0 then redis.call('DEL', ARGV[3] .. swept) end
    end
  else
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
  end
end
return lost
