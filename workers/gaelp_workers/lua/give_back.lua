-- Give messages back to the front of their lists, as they came; the last tag named is taken again first.
--
-- KEYS  1 gaelp:unacked (hash: tag -> record)  2 gaelp:leases (sorted set)
--       3 gaelp:queues (set of queues that may hold something)
-- ARGV  1 the namespace  2.. tags
-- Gives how many it were; a tag that is no longer held counts for nothing.

local count = 0
for i = 2, #ARGV do
  local tag = ARGV[i]
  local record = redis.call('HGET', KEYS[1], tag)
  redis.call('HDEL', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
  if record then
    local line = string.find(record, '\n', 1, true)
    local about = cjson.decode(string.sub(record, 1, line - 1))
    redis.call('RPUSH', about['queue'], string.sub(record, line + 1))
    redis.call('SADD', KEYS[3], string.sub(string.match(about['queue'], '^[^\6]*'), #ARGV[1] + 1))
    count = count + 1
  end
end
return count
