-- Park a message that is held, byte for byte as it came; the sweep queues it again when it is due.
--
-- KEYS  1 gaelp:unacked (hash: tag -> record)  2 gaelp:leases (sorted set)
--       3 gaelp:parked (sorted set: task id -> due, ms)  4 gaelp:parked:messages (hash: task id -> record)
-- ARGV  1 tag  2 for how long, ms  3 reason
-- Gives 1, or 0 when the tag is no longer held.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local record = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if not record then return 0 end
local line = string.find(record, '\n', 1, true)
local about = cjson.decode(string.sub(record, 1, line - 1))
about['reason'], about['at'] = ARGV[3], now
local place = about['id']
if redis.call('HEXISTS', KEYS[4], place) == 1 then place = place .. '|' .. ARGV[1] end -- sent twice
redis.call('HSET', KEYS[4], place, cjson.encode(about) .. string.sub(record, line))
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), place)
return 1
