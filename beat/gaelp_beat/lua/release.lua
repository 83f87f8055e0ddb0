-- Lead no longer, so that another beat does at once.
-- KEYS 1 the lease; ARGV 1 the lease as ours
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
