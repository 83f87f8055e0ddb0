-- Look at what waits in lists: how many there are, and since when the next one waits. It changes nothing.
--
-- KEYS  lists of queues
-- ARGV  1 bytes of the largest message that is read; of a larger one only its place is told
--       2 prefix of the keys that say how often a task had to make way: it ran, so its age is no waiting
-- Gives for each list that holds something five values: its number among the keys, how many it holds, and of the next
-- message its id, when it was published (Unix seconds) and when it is due (ISO 8601); '' for what is not told. The
-- message itself stays here.

local found = {}
for i = 1, #KEYS do
  local count = redis.pcall('LLEN', KEYS[i])
  local message = type(count) == 'number' and count > 0 and redis.call('LINDEX', KEYS[i], -1)
  if message then
    local ok, told = false, nil
    if #message <= tonumber(ARGV[1]) then ok, told = pcall(cjson.decode, message) end
    local headers = ok and type(told) == 'table' and type(told['headers']) == 'table' and told['headers'] or {}
    local id, at, due = headers['id'], headers['gaelp_published_at'], headers['eta']
    if type(id) == 'string' and redis.call('EXISTS', ARGV[2] .. id) == 1 then at = nil end
    for _, value in ipairs({
      i,
      count,
      type(id) == 'string' and id or '',
      type(at) == 'number' and string.format('%.3f', at) or '',
      type(due) == 'string' and due or '',
    }) do
      found[#found + 1] = value
    end
  end
end
return found
