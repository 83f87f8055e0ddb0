-- Move messages of inboxes to the queues of their models, as they came, and call the queues out.
--
-- KEYS  1 gaelp:queues (set of queues that may hold something)  2.. for each message its list, then its new list
-- ARGV  1 the doorbell's channel  2.. for each message its SHA-1, then the name of its new queue
-- Gives how many were moved. A message that is no longer the next one of its list stays for another time.

local count, rung = 0, {}
for i = 2, #KEYS, 2 do
  local message = redis.pcall('RPOP', KEYS[i])
  if type(message) == 'string' then
    if redis.sha1hex(message) == ARGV[i] then
      if type(redis.pcall('LPUSH', KEYS[i + 1], message)) == 'number' then
        rung[ARGV[i + 1]] = true
        count = count + 1
      else -- its new list is none: behind the others, so that they are sorted
        redis.call('LPUSH', KEYS[i], message)
      end
    else
      redis.call('RPUSH', KEYS[i], message)
    end
  end
end
for queue in pairs(rung) do
  redis.call('SADD', KEYS[1], queue)
  redis.call('PUBLISH', ARGV[1], queue)
end
return count
