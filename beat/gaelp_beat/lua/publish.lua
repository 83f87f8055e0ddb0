-- Put the message of a due run into its list, unless it was put there before, or somebody else leads by now.
-- KEYS 1 the lease; 2 hash: schedule -> Unix time in ms up to which its runs are published; 3 the list
-- ARGV 1 the lease as ours; 2 the schedule; 3 when the run was due, in ms; 4 up to when it is decided, in ms;
--      5 the message
-- Gives 1: published; 0: it was before; -1: not the leader
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local until_ms = redis.call('HGET', KEYS[2], ARGV[2])
if until_ms and tonumber(until_ms) >= tonumber(ARGV[3]) then return 0 end
redis.call('LPUSH', KEYS[3], ARGV[5])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
return 1
