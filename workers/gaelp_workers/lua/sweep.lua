-- Give back what nobody holds any more, and publish what is due. Anybody may run it at any time.
--
-- KEYS  1 gaelp:unacked (hash: tag -> record)  2 gaelp:leases (sorted set: tag -> end, ms)
--       3 gaelp:parked (sorted set: task id -> due, ms)  4 gaelp:parked:messages (hash: task id -> record)
-- ARGV  1 how many of each at most  2 prefix of the marks that tell a late holder
--       3.. prefixes of the tags of holders that are known to be dead
-- Gives two numbers: messages given back, messages that were due.

local most = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function split(record)
  local line = string.find(record, '\n', 1, true)
  return cjson.decode(string.sub(record, 1, line - 1)), string.sub(record, line + 1)
end

local ended = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, most)
if #ARGV > 2 then
  for _, tag in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    for i = 3, #ARGV do
      if string.sub(tag, 1, #ARGV[i]) == ARGV[i] and #ended < most then ended[#ended + 1] = tag end
    end
  end
end

local back, due = 0, 0
for i = #ended, 1, -1 do -- the one held longest comes to the front
  local tag = ended[i]
  local record = redis.call('HGET', KEYS[1], tag)
  redis.call('HDEL', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
  if record then
    local about, message = split(record)
    redis.call('RPUSH', about['queue'], message)
    redis.call('SET', ARGV[2] .. tag, 1, 'EX', 3600)
    back = back + 1
  end
end

for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, most)) do
  local record = redis.call('HGET', KEYS[4], tag)
  redis.call('HDEL', KEYS[4], tag)
  redis.call('ZREM', KEYS[3], tag)
  if record then
    local about, message = split(record)
    redis.call('LPUSH', about['queue'], message)
    due = due + 1
  end
end
return { back, due }
