-- Lead, or go on leading: the lease belongs to whoever wrote it, until it ends by Redis' own clock.
-- KEYS 1 the lease: <holder>|<fence>; 2 the fence, which only grows; 3 sorted set: every beat by its last tick
-- ARGV 1 holder; 2 ms that the lease lives from now
-- Gives the fence under which the holder leads, or 0; and Unix time in ms
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 60000)
redis.call('PEXPIRE', KEYS[3], 60000)
local mine = ARGV[1] .. '|'
local there = redis.call('GET', KEYS[1])
if there then
  if string.sub(there, 1, #mine) ~= mine then return { 0, now } end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return { tonumber(string.sub(there, #mine + 1)), now }
end
-- never below the clock, so that it grows over a Redis that was emptied, too
local fence = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, now)
local text = string.format('%.0f', fence)
redis.call('SET', KEYS[1], mine .. text, 'PX', ARGV[2])
redis.call('SET', KEYS[2], text)
return { fence, now }
