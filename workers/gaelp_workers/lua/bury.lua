-- Move a message that is held to the dead letters.
--
-- KEYS  1 gaelp:unacked (hash: tag -> record)  2 gaelp:leases (sorted set)
--       3 gaelp:dead (sorted set: tag -> since, ms)  4 gaelp:dead:messages (hash: tag -> record)
-- ARGV  1 tag  2 reason
-- Gives 1, or 0 when the tag is no longer held.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local record = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if not record then return 0 end
local line = string.find(record, '\n', 1, true)
local about = cjson.decode(string.sub(record, 1, line - 1))
about['reason'], about['at'] = ARGV[2], now
redis.call('HSET', KEYS[4], ARGV[1], cjson.encode(about) .. string.sub(record, line))
redis.call('ZADD', KEYS[3], now, ARGV[1])
return 1
