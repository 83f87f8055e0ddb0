-- Take messages in the order of the lists given and note, in the same step, who holds them and until when.
--
-- KEYS  1 gaelp:unacked (hash: tag -> record)      2 gaelp:leases (sorted set: tag -> end, ms)
--       3 gaelp:parked (sorted set: task id -> due, ms) 4 gaelp:parked:messages (hash: task id -> record)
--       5 gaelp:dead (sorted set: tag -> since, ms) 6 gaelp:dead:messages (hash: tag -> record)
--       7.. lists of messages, the most urgent first
-- ARGV  1 how many to take at most  2 how many to look at at most  3 lease, ms  4 prefix of the new tags
--       5 most bytes of a message   6 prefix of the claim numbers  7 their life, ms
--       8 prefix of the requests to cancel: what is to be cancelled does not wait for its time
--       9 prefix of Celery's results; empty where they are not in this Redis
-- Gives four values for each message taken: list, tag, claim number, message.
--
-- A record is one line of JSON about the message, a newline, and the message's own bytes, never encoded anew
-- (cjson would turn [] into {}).

local take, look, lease, tags = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local seen = 0

local function text(value, most)
  return type(value) == 'string' and #value > 0 and #value <= most
end

-- Unix time in ms of an ISO 8601 time, which is UTC where it names no zone; nil for anything else
local function instant(value)
  if type(value) ~= 'string' then return nil end
  local year, month, day, hour, minute, second, rest =
    string.match(value, '^(%d%d%d%d)-(%d%d)-(%d%d)[T ](%d%d):(%d%d):(%d%d)(.*)$')
  if not year then return nil end
  local fraction, zone = string.match(rest, '^(%.?%d*)(.*)$')
  year, month = tonumber(year), tonumber(month)
  if month <= 2 then year, month = year - 1, month + 12 end
  local days = 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
    + math.floor((153 * (month - 3) + 2) / 5) + tonumber(day) - 719469
  local seconds = days * 86400 + hour * 3600 + minute * 60 + second + (tonumber('0' .. fraction) or 0)
  local sign, hours, minutes = string.match(zone, '^([+-])(%d%d):?(%d%d)$')
  if sign then
    local ahead = hours * 3600 + minutes * 60
    seconds = seconds + (sign == '-' and ahead or -ahead)
  end
  return math.floor(seconds * 1000)
end

-- what is wrong with a message, or nil and its headers
local function fault(message)
  if #message > tonumber(ARGV[5]) then return 'oversized' end
  local ok, told = pcall(cjson.decode, message)
  if not ok or type(told) ~= 'table' then return 'not JSON' end
  local headers, properties = told['headers'], told['properties']
  if type(headers) ~= 'table' or type(properties) ~= 'table' or type(properties['delivery_info']) ~= 'table'
    or not text(headers['id'], 255) or not text(headers['task'], 255) or type(told['body']) ~= 'string' then
    return 'not a Celery message'
  end
  if text(headers['compression'], 255) then return 'compressed' end
  return nil, headers
end

-- Whether an earlier claim has told the result and only its acknowledgement is missing. Celery publishes what
-- follows a task before it stores the result; only a group's member still has to be counted after that.
local function told(headers)
  if ARGV[9] == '' or text(headers['group'], 255) then return false end
  local found = redis.pcall('GET', ARGV[9] .. headers['id'])
  local ok, result = pcall(cjson.decode, type(found) == 'string' and found or '')
  return ok and type(result) == 'table' and result['status'] == 'SUCCESS'
end

local function record(about, list, message)
  about['queue'] = list
  about['at'] = now
  return cjson.encode(about) .. '\n' .. message
end

local taken = {}
for i = 7, #KEYS do
  while #taken < take * 4 and seen < look do
    local message = redis.pcall('RPOP', KEYS[i])
    if type(message) ~= 'string' then break end -- empty, or no list at all
    seen = seen + 1
    local tag = tags .. seen
    local wrong, headers = fault(message)
    local due = headers and instant(headers['eta'])
    if wrong then
      redis.call('HSET', KEYS[6], tag, record({ reason = wrong }, KEYS[i], message))
      redis.call('ZADD', KEYS[5], now, tag)
    elseif due and due > now and redis.call('EXISTS', ARGV[8] .. headers['id']) == 0 then
      local place = headers['id']
      if redis.call('HEXISTS', KEYS[4], place) == 1 then place = place .. '|' .. tag end -- sent twice
      redis.call('HSET', KEYS[4], place, record({ id = headers['id'] }, KEYS[i], message))
      redis.call('ZADD', KEYS[3], due, place)
    else
      local fence = ARGV[6] .. headers['id']
      local number = redis.pcall('INCR', fence)
      if type(number) ~= 'number' then -- a damaged key must not cost the message
        redis.call('DEL', fence)
        number = redis.call('INCR', fence)
      end
      redis.call('PEXPIRE', fence, ARGV[7])
      if number == 1 or not told(headers) then
        redis.call('HSET', KEYS[1], tag, record({ id = headers['id'], claim = number }, KEYS[i], message))
        redis.call('ZADD', KEYS[2], now + lease, tag)
        for _, value in ipairs({ KEYS[i], tag, number, message }) do taken[#taken + 1] = value end
      end
    end
  end
end
return taken
