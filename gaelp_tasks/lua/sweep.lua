-- Give back what nobody holds any more, and publish what is due. Anybody may run it at any time.
--
-- KEYS  1 gaelp:unacked (hash: tag -> record)  2 gaelp:leases (sorted set: tag -> end, ms)
--       3 gaelp:parked (sorted set: task id -> due, ms)  4 gaelp:parked:messages (hash: task id -> record)
--       5 gaelp:dead (sorted set: tag -> since, ms)  6 gaelp:dead:messages (hash: tag -> record)
--       7 gaelp:queues (set of queues that may hold something)
-- ARGV  1 how many of each at most  2 prefix of the marks that tell a late holder
--       3 prefix of the deaths by task id  4 their life, ms  5 the namespace
--       6 deaths that make poison, for they may also be the doing of whoever kills workers
--       7.. prefixes of the tags of holders that are known to be dead
-- Gives { back, due, poison }: how many messages were given back, how many were due, and the tasks of those that
-- killed the worker in which they ran alone; they are dead letters.

local most = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function split(record)
  local line = string.find(record, '\n', 1, true)
  return cjson.decode(string.sub(record, 1, line - 1)), string.sub(record, line + 1)
end

local ended = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, most)
local died = {}
if #ARGV > 6 then
  for _, tag in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    for i = 7, #ARGV do
      if string.sub(tag, 1, #ARGV[i]) == ARGV[i] and not died[tag] and #ended < most then
        ended[#ended + 1], died[tag] = tag, true
      end
    end
  end
end

local function count(id)
  local key = ARGV[3] .. id
  local deaths = redis.pcall('INCR', key)
  if type(deaths) ~= 'number' then
    redis.call('SET', key, 1)
    deaths = 1
  end
  redis.call('PEXPIRE', key, ARGV[4])
  return deaths
end

local function call_out(list)
  redis.call('SADD', KEYS[7], string.sub(string.match(list, '^[^\6]*'), #ARGV[5] + 1))
end

local back, due, poison = 0, 0, {}
for i = #ended, 1, -1 do -- the one held longest comes to the front
  local tag = ended[i]
  local record = redis.call('HGET', KEYS[1], tag)
  redis.call('HDEL', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
  if record then
    local about, message = split(record)
    local deaths = count(about['id'])
    if about['alone'] and deaths >= tonumber(ARGV[6]) then
      about['reason'], about['deaths'], about['at'] = 'poison', deaths, now
      redis.call('HSET', KEYS[6], tag, cjson.encode(about) .. '\n' .. message)
      redis.call('ZADD', KEYS[5], now, tag)
      redis.call('DEL', ARGV[3] .. about['id'])
      poison[#poison + 1] = about['id']
    else
      redis.call('RPUSH', about['queue'], message)
      call_out(about['queue'])
      back = back + 1
    end
    redis.call('SET', ARGV[2] .. tag, about['id'], 'EX', 3600)
  end
end

for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, most)) do
  local record = redis.call('HGET', KEYS[4], tag)
  redis.call('HDEL', KEYS[4], tag)
  redis.call('ZREM', KEYS[3], tag)
  if record then
    local about, message = split(record)
    redis.call('LPUSH', about['queue'], message)
    call_out(about['queue'])
    due = due + 1
  end
end
return { back, due, poison }
