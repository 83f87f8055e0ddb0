-- Move messages of inboxes to the queues of their models, as they came, and name the queues.
--
-- KEYS  1 gaelp:queues (set of queues that may hold something)  2.. for each message its list, then its new list
-- ARGV  for each message its SHA-1, then the name of its new queue
-- Gives how many were moved. A message that is no longer the next one of its list stays for another time.

local count, named = 0, {}
for i = 2, #KEYS, 2 do
  local message = redis.pcall('RPOP', KEYS[i])
  if type(message) == 'string' then
    if redis.sha1hex(message) == ARGV[i - 1] then
      if type(redis.pcall('LPUSH', KEYS[i + 1], message)) == 'number' then
        named[ARGV[i]] = true
        count = count + 1
      else -- its new list is none: behind the others, so that they are sorted
        redis.call('LPUSH', KEYS[i], message)
      end
    else
      redis.call('RPUSH', KEYS[i], message)
    end
  end
end
for queue in pairs(named) do redis.call('SADD', KEYS[1], queue) end
return count
