-- Take messages in the order of the queues given and note, in the same step, who holds them and until when.
--
-- KEYS  1 gaelp:unacked (hash: tag -> record)      2 gaelp:leases (sorted set: tag -> end, ms)
--       3 gaelp:parked (sorted set: task id -> due, ms) 4 gaelp:parked:messages (hash: task id -> record)
--       5 gaelp:dead (sorted set: tag -> since, ms) 6 gaelp:dead:messages (hash: tag -> record)
--       7 gaelp:suspects (list of records)          8 gaelp:suspects:taker (the holder that empties itself)
--       9.. queues; each is a list for every step of priority
-- ARGV  1 free slots of each pool, with commas; -1 for a pool that has none at all, and then no seat either
--       2 free seats  3 free errands  4 how many to look at at most  5 lease, ms
--       6 this holder  7 what follows it in the new tags  8 messages that it holds already
--       9 most bytes of a message  10 life of what is kept by task id, ms
--       prefixes of keys by task id: 11 claim number  12 holding tag  13 deaths  14 request to cancel
--       15 Celery's result; empty where it is not in this Redis  16 stream  17 times it was preempted
--       18 invocations of one tenant that run at once, 0 for any number  19 the set of tags of a tenant
--       20 prefix of what lies beside a message, by task id and place
--       21.. of each queue, as in '3i:1+2', its group; 'i' for an inbox, 's' for maintenance, 't' for the turn of a lower
--       tier, which is one message; its pool, the first is 1; how many may be taken beyond the pool's free slots,
--       because runs make way for them, all tiers of a pool together.
--       A pool that is full holds up neither the queues of others nor the sorting of inboxes.
-- Gives { taken, unsorted, told, more, room }: six values for each message taken (list, tag, claim number, how, times
-- it was preempted, message), where how has an 'a' for what runs alone, a 'b' for what was taken beyond the free slots
-- and a 't' for a turn; two for each message that an inbox has for a model (list, message), which stays;
-- the ids of messages that were dropped, because their result has been told; 1 where there is more to look at, else 0;
-- the free slots of each pool, the seats and the errands that are left, for which nothing was there.
--
-- A record is one line of JSON about the message, a newline, and the message's own bytes, never encoded anew
-- (cjson would turn [] into {}).

local slots, beyond, seats, errands = {}, {}, tonumber(ARGV[2]), tonumber(ARGV[3])
for count in string.gmatch(ARGV[1], '[^,]+') do
  slots[#slots + 1] = tonumber(count)
  beyond[#slots] = 0
end
local look, lease, holder, tags = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[6] .. ARGV[7]
local held, life = tonumber(ARGV[8]), ARGV[10]
local FIRST, STEPS, SEPARATOR = 9, 9, '\6\22'
local GROUPS = 21 - FIRST -- from a queue's key to what is told of it
local DEFAULT = 5     -- the step of what is in an inbox
local DEATHS = 2      -- of its workers, after which a message runs alone
local MODELS = { ['gaelp.invoke_agent'] = true, ['gaelp.embed'] = true }
local AT_A_TIME = 50  -- messages of an inbox to be sorted in one go
local SORT_BYTES, MOST = 4194304, 16777216 -- in one go
local CAP, SOON, EACH_MORE, LATEST = tonumber(ARGV[18]), 500, 10, 60000 -- ms that a tenant's next ones wait
local TAKER, REST = 30000, 30000 -- ms that a worker empties itself for a suspect, and that all go on after that
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local seen, bytes, looked = 0, 0, 0
local taken, unsorted, dropped, full = {}, {}, {}, {}

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
  local sign, hours, minutes = string.match(zone, '^([+-])(%d%d):?(%d?%d?)$')
  if not sign and zone ~= '' and zone ~= 'Z' then return nil end
  if sign then
    if minutes == '' then minutes = 0 end
    local ahead = hours * 3600 + minutes * 60
    seconds = seconds + (sign == '-' and ahead or -ahead)
  end
  return math.floor(seconds * 1000)
end

-- what is wrong with a message, or nil and its headers
local function fault(message)
  if #message > tonumber(ARGV[9]) then return 'oversized' end
  local ok, told = pcall(cjson.decode, message)
  if not ok or type(told) ~= 'table' then return 'not JSON' end
  local headers, properties = told['headers'], told['properties']
  if type(headers) ~= 'table' or type(properties) ~= 'table' or type(properties['delivery_info']) ~= 'table'
    or not text(headers['id'], 255) or not text(headers['task'], 255) or type(told['body']) ~= 'string' then
    return 'not a Celery message'
  end
  local packed, due = headers['compression'], headers['eta']
  if packed ~= nil and packed ~= cjson.null and packed ~= '' then return 'compressed' end
  if due ~= nil and due ~= cjson.null and due ~= '' and not instant(due) then return 'unreadable eta' end
  return nil, headers
end

-- Whether an earlier claim has told the result and only its acknowledgement is missing. Celery publishes what
-- follows a task before it stores the result; only a group's member still has to be counted after that, and what
-- follows a task that was asked for again with the same idempotency key.
local function told(headers)
  if ARGV[15] == '' or text(headers['group'], 255) or headers['gaelp_asked_again'] then return false end
  local found = redis.pcall('GET', ARGV[15] .. headers['id'])
  local ok, result = pcall(cjson.decode, type(found) == 'string' and found or '')
  return ok and type(result) == 'table' and result['status'] == 'SUCCESS'
end

-- Forget what lies beside a message that is dropped
local function forget_attachment(headers)
  local told = headers['gaelp_attachment']
  local place = type(told) == 'table' and told['place']
  if text(place, 32) then redis.call('UNLINK', ARGV[20] .. headers['id'] .. ':' .. place) end
end

-- Whether somebody holds this very task now: two messages of one id never run at the same time
local function runs(id)
  local tag = redis.pcall('GET', ARGV[12] .. id)
  return type(tag) == 'string' and redis.call('ZSCORE', KEYS[2], tag) and redis.call('HEXISTS', KEYS[1], tag) == 1
end

local function number(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and tonumber(value) or 0
end

local function raise(key)
  local value = redis.pcall('INCR', key)
  if type(value) ~= 'number' then -- a damaged key must not cost the message
    redis.call('DEL', key)
    value = redis.call('INCR', key)
  end
  redis.call('PEXPIRE', key, life)
  return value
end

-- What calls a model and is to be cancelled does not wait for its time: it settles at once
local function cancelled(headers)
  return MODELS[headers['task']] and redis.call('EXISTS', ARGV[14] .. headers['id']) == 1
end

local function record(about, list, message)
  about['queue'] = list
  about['at'] = now
  return cjson.encode(about) .. '\n' .. message
end

local function bury(tag, reason, list, message)
  redis.call('HSET', KEYS[6], tag, record({ reason = reason }, list, message))
  redis.call('ZADD', KEYS[5], now, tag)
end

-- What is told of a queue
local function queue_at(i)
  local group, kind, pool, more = string.match(ARGV[i + GROUPS], '^(%d+)(%a?):(%d+)%+(%d+)$')
  return { key = KEYS[i], group = group, kind = kind, pool = tonumber(pool), more = tonumber(more) }
end

-- What a message of a queue takes while it is held
local function needs(headers, queue)
  return headers and headers['task'] == 'gaelp.embed' and 'seat' or queue.kind == 's' and 'errand' or 'slot'
end

local function has_room(wants, queue)
  if wants == 'seat' then return seats > 0 and slots[queue.pool] >= 0 end
  if wants == 'errand' then return errands > 0 end
  local left = slots[queue.pool]
  return left > 0 or left == 0 and beyond[queue.pool] < queue.more
end

local function occupy(wants, queue)
  if wants == 'seat' then
    seats = seats - 1
  elseif wants == 'errand' then
    errands = errands - 1
  elseif slots[queue.pool] > 0 then
    slots[queue.pool] = slots[queue.pool] - 1
  else
    beyond[queue.pool] = beyond[queue.pool] + 1
  end
  queue.served = true
end

local function park(id, tag, due, list, message, reason)
  local place = id
  if redis.call('HEXISTS', KEYS[4], place) == 1 then place = place .. '|' .. tag end -- sent twice
  redis.call('HSET', KEYS[4], place, record({ id = id, reason = reason }, list, message))
  redis.call('ZADD', KEYS[3], due, place)
end

-- The tags under which a tenant's invocations run, or ran; nil for what no cap holds back
local function tags_of_tenant(headers)
  local tenant = headers['gaelp_tenant']
  return CAP > 0 and headers['task'] == 'gaelp.invoke_agent' and text(tenant, 1000) and ARGV[19] .. tenant or nil
end

-- Whether a tenant has as many runs as it may; those that have ended are counted out only then
local function is_full(key)
  if full[key] then return true end
  local count = redis.pcall('SCARD', key)
  if type(count) ~= 'number' then -- a damaged key must not hold anybody up
    redis.call('DEL', key)
    return false
  end
  if count < CAP then return false end
  for _, tag in ipairs(redis.call('SMEMBERS', key)) do
    -- a lease alone is nothing: a renewal may have come just behind the acknowledgement
    if redis.call('HEXISTS', KEYS[1], tag) == 0 or not redis.call('ZSCORE', KEYS[2], tag) then
      redis.call('SREM', key, tag)
    end
  end
  full[key] = redis.call('SCARD', key) >= CAP
  return full[key]
end

-- When to try again: the later the more are parked, so that a crowd does not keep Redis busy
local function later()
  local crowd = redis.call('ZCOUNT', KEYS[3], now, now + LATEST)
  return now + math.min(SOON + EACH_MORE * crowd, LATEST)
end

local function take(list, tag, headers, message, how)
  local alone = how == 'a'
  local id = headers['id']
  local claim = raise(ARGV[11] .. id)
  if claim == 1 and MODELS[headers['task']] then -- its number may have ended, and a stream of it not
    local last = redis.pcall('XREVRANGE', ARGV[16] .. id, '+', '-', 'COUNT', 1)
    local before = last[1] and tonumber(string.match(last[1][1], '^%d+'))
    if before then
      claim = before + 1
      redis.call('SET', ARGV[11] .. id, claim, 'PX', life)
    end
  end
  if claim > 1 then
    if told(headers) then
      forget_attachment(headers)
      dropped[#dropped + 1] = id
      return false
    end
    if not alone and number(ARGV[13] .. id) >= DEATHS then
      redis.call('LPUSH', KEYS[7], record({ id = id }, list, message))
      return false
    end
  end
  if alone then
    for pool = 1, #slots do slots[pool] = 0 end
    seats, errands = 0, 0
  end
  redis.call('SET', ARGV[12] .. id, tag, 'PX', life)
  redis.call('HSET', KEYS[1], tag, record({ id = id, claim = claim, alone = alone or nil }, list, message))
  redis.call('ZADD', KEYS[2], now + lease, tag)
  local tenant = tags_of_tenant(headers)
  if tenant then
    is_full(tenant) -- deletes a damaged key; a suspect is not held back
    redis.call('SADD', tenant, tag)
    redis.call('PEXPIRE', tenant, life)
  end
  local preempted = claim > 1 and number(ARGV[17] .. id) or 0
  for _, value in ipairs({ list, tag, claim, how, preempted, message }) do taken[#taken + 1] = value end
  return true
end

-- What has seen workers die runs alone, in a worker that takes from its queue and has room for it; true where
-- nothing else may be taken now. A busy worker empties itself for a while, then others may try.
local function suspect()
  local count, offered = redis.pcall('LLEN', KEYS[7]), {}
  if type(count) ~= 'number' or count == 0 then return false end
  for i = FIRST, #KEYS do offered[KEYS[i]] = queue_at(i) end
  for at = 1, math.min(count, look) do
    local found = redis.call('LINDEX', KEYS[7], -at)
    local line = string.find(found, '\n', 1, true) or 1
    local ok, about = pcall(cjson.decode, string.sub(found, 1, line - 1))
    local list = ok and type(about) == 'table' and about['queue'] or ''
    local queue, message = offered[string.match(list, '^[^\6]*')], string.sub(found, line + 1)
    local wrong, headers = fault(message)
    if queue and has_room(needs(headers, queue), queue) and (wrong or not runs(headers['id'])) then
      if held > 0 then
        local taker = redis.pcall('GET', KEYS[8])
        if not taker then redis.call('SET', KEYS[8], holder, 'PX', TAKER + REST) end
        return not taker or (taker == holder and redis.call('PTTL', KEYS[8]) > REST)
      end
      redis.call('LREM', KEYS[7], -1, found)
      redis.call('DEL', KEYS[8])
      seen = seen + 1
      if not wrong then return take(list, tags .. seen, headers, message, 'a') end
      bury(tags .. seen, wrong, list, message)
      return false
    end
  end
  return false
end

-- An inbox's messages for models, the next first; they stay until they are sorted.
local function leave(list)
  local found, size = redis.call('LRANGE', list, -AT_A_TIME, -1), 0
  for i = #found, 1, -1 do
    size = size + #found[i]
    if size > SORT_BYTES and i < #found then return end
    unsorted[#unsorted + 1], unsorted[#unsorted + 2] = list, found[i]
  end
end

-- Whether its tenant has as many runs as it may; what is to be cancelled settles all the same
local function above_cap(headers)
  local tenant = tags_of_tenant(headers)
  return tenant and is_full(tenant) and not cancelled(headers)
end

-- Whether a queue may hold something that can be done with it now: an inbox is sorted in any case
local function open(queue)
  if queue.kind == 't' and queue.served then return false end
  return queue.kind == 'i' or has_room('seat', queue) or has_room(queue.kind == 's' and 'errand' or 'slot', queue)
end

-- Take from one list of a queue while there is room for what comes. Gives whether anything was there.
local function serve(list, queue)
  local there = false
  while seen < look and bytes <= MOST and open(queue) do
    local message = redis.pcall('LINDEX', list, -1) -- what stays is not touched: Redis tells everybody of a change
    if type(message) ~= 'string' then return there end -- empty, or no list at all
    there = true
    if queue.kind ~= 'i' and queue.kind ~= 's' and not has_room('slot', queue) then
      looked = looked + #message -- it mostly stays, and what stays must not keep others from being taken
      if looked > MOST then return true end
    else
      bytes = bytes + #message
    end
    local wrong, headers = fault(message)
    local due = headers and instant(headers['eta'])
    local parked = due and due > now and not cancelled(headers)
    local wants = headers and needs(headers, queue)
    if not wrong and not parked then
      if queue.kind == 'i' and MODELS[headers['task']] then
        leave(list)
        return true
      end
      if not has_room(wants, queue) then return true end
    end
    redis.call('RPOP', list) -- first, for then a full Redis lets the script go on
    seen = seen + 1
    local tag = tags .. seen
    if wrong then
      bury(tag, wrong, list, message)
    elseif parked then
      park(headers['id'], tag, due, list, message)
    elseif runs(headers['id']) then
      park(headers['id'], tag, now + 1000, list, message)
    elseif above_cap(headers) then
      park(headers['id'], tag, later(), list, message, 'its tenant runs ' .. CAP .. ' already, as many as it may')
    else
      local how = (wants == 'slot' and slots[queue.pool] <= 0 and 'b' or '') .. (queue.kind == 't' and 't' or '')
      if take(list, tag, headers, message, how) then occupy(wants, queue) end
    end
  end
  return there
end

-- One step of a queue, unless all of its lists that hold anything were served
local function serve_step(queue, step)
  if queue.there > 0 and serve(queue.lists[step + 1], queue) then queue.there = queue.there - 1 end
end

local function lists_of(queue)
  local keys = { queue }
  for step = 1, STEPS do keys[step + 1] = queue .. SEPARATOR .. step end
  return keys
end

local function answer()
  local more = seen > 0 and (seen >= look or bytes > MOST) -- what was not moved is the same the next time
  return { taken, unsorted, dropped, more and 1 or 0, { slots, seats, errands } }
end

-- a script is not undone: what others broke must be seen before a message is in its hands
for i, kind in ipairs({ 'hash', 'zset', 'zset', 'hash', 'zset', 'hash' }) do
  local there = redis.call('TYPE', KEYS[i])['ok']
  if there ~= kind and there ~= 'none' then
    return redis.error_reply('ERR ' .. KEYS[i] .. ' is a ' .. there .. ' and has to be a ' .. kind .. ': delete it')
  end
end

if suspect() then return answer() end

local i = FIRST
while i <= #KEYS do
  local queue, waiting = queue_at(i), {}
  local group = queue.group
  while queue and queue.group == group do
    if open(queue) then
      queue.lists = lists_of(queue.key)
      queue.there = redis.call('EXISTS', unpack(queue.lists))
      if queue.there > 0 then waiting[#waiting + 1] = queue end
    end
    i = i + 1
    queue = i <= #KEYS and queue_at(i)
  end
  for step = 0, STEPS do
    for _, queue in ipairs(waiting) do
      if queue.kind ~= 'i' then
        serve_step(queue, step)
      elseif step == DEFAULT then
        for each = 0, STEPS do serve_step(queue, each) end
      end
    end
  end
end
return answer()
