-- Permits of one shared limiter. One call is one step of one holder, and everything in it happens at once.
--
-- A holder is a process (to be exact, one limiter in one). It says how many of its permits it keeps, and how
-- many more it needs; it is told how many it holds now. Numbers are absolute and calls are counted, so a call
-- that is repeated, or comes late, changes nothing. Permits belong to a holder until its lease ends, by this
-- server's clock, and every call begins the lease anew.
--
-- KEYS, all with the limiter's hash tag, so in one slot of a cluster:
--   1 ends    sorted set: holder -> end of its lease, in milliseconds of this server
--   2 held    hash: holder -> permits
--   3 queue   sorted set: holder that waits -> when it came, in microseconds
--   4 wants   hash: holder that waits -> permits that it needs to go on; and `holder:weight`, see below
--   5 calls   hash: holder -> number of its last call
--   6 ears    hash: holder -> channel on which it hears its name when it is to look
-- ARGV: holder, call, capacity, keep, need, ask, weight, lease in milliseconds, channel
--   need: permits beyond `keep` without which nobody who waits there can go on; 0: nobody waits
--   ask:  permits beyond `keep` that it takes if there are as many; at least `need`
--   weight: of the heaviest request that waits there
--   a lease of 0 milliseconds: the holder leaves, and keeps nothing
--
-- Answers: permits held now; permits above which it is to give back what comes free, -1: none; holders; whether it
-- waits; milliseconds until the next lease of another ends, -1: there is none.

local ends, held, queue, wants, calls, ears = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local me, call, capacity, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local need, ask, weight = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local lease, channel = tonumber(ARGV[8]), ARGV[9]

local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)

local function number(hash, field)
  return tonumber(redis.call('HGET', hash, field) or 0)
end

local function forget(holder)
  redis.call('ZREM', ends, holder)
  redis.call('ZREM', queue, holder)
  for _, hash in ipairs({held, wants, calls, ears}) do
    redis.call('HDEL', hash, holder)
  end
  redis.call('HDEL', wants, holder .. ':weight')
end

local function tell(holder)
  local ear = redis.call('HGET', ears, holder)
  if ear then
    redis.call('PUBLISH', ear, holder)
  end
end

-- Those whose leases have ended hold nothing any more.
local freed = false
for _, holder in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now)) do
  forget(holder)
  freed = true
end

local others = 0
local all = redis.call('HGETALL', held)
for index = 1, #all, 2 do
  if all[index] ~= me then
    others = others + tonumber(all[index + 1])
  end
end

local mine = tonumber(redis.call('HGET', held, me) or -1)
local repeated = call <= number(calls, me)

if not repeated and lease == 0 then
  forget(me)
  freed = freed or mine > 0
  mine = 0
elseif not repeated then
  if mine < 0 then
    -- Unknown here: new; or its lease has ended, or this server has lost its memory. It has back what is free.
    mine = math.max(0, math.min(keep, capacity - others))
  elseif keep < mine then
    mine = keep
    freed = true
  end
  redis.call('ZADD', ends, now + lease, me)
  redis.call('HSET', calls, me, call)
  redis.call('HSET', ears, me, channel)

  local came = 0
  if need > 0 then
    came = redis.call('ZADD', queue, 'NX', micros, me)
    redis.call('HSET', wants, me, need, me .. ':weight', weight)
    local free = capacity - others - mine
    for _, holder in ipairs(redis.call('ZRANGE', queue, 0, redis.call('ZRANK', queue, me))) do
      if holder ~= me then
        free = free - number(wants, holder)
      end
    end
    if free >= need then
      -- Ahead of need no more than a fair share, so that a new holder finds something.
      local share = math.floor(capacity / redis.call('ZCARD', ends))
      mine = mine + math.min(free, math.max(need, math.min(ask, share - mine)))
      need = 0
    end
  end
  if need == 0 then
    redis.call('ZREM', queue, me)
    redis.call('HDEL', wants, me, me .. ':weight')
  end
  redis.call('HSET', held, me, mine)
  for _, key in ipairs(KEYS) do
    -- Nothing stays of a limiter that nobody uses. The longest lease of all counts.
    if redis.call('PTTL', key) < 2 * lease then
      redis.call('PEXPIRE', key, 2 * lease)
    end
  end
  if came == 1 and need > 0 then
    -- It has to wait: those who hold permits are asked to give back what they can.
    for index = 1, #all, 2 do
      if all[index] ~= me and tonumber(all[index + 1]) > 0 then
        tell(all[index])
      end
    end
  end
end
mine = math.max(mine, 0)

local waiting = redis.call('ZRANGE', queue, 0, -1)
if freed then
  -- Who can have what it needs comes for it: one word for each of them, in their order.
  local free = capacity - others - mine
  for _, holder in ipairs(waiting) do
    free = free - number(wants, holder)
    if free < 0 then
      break
    end
    if holder ~= me then
      tell(holder)
    end
  end
end

-- How much it is to give back for those that wait and come before it. Who has less than others gets what they have
-- beyond a fair share and beyond what he has then. For a request that is heavier than a fair share, and for one
-- who has nothing where there are more holders than permits, all give all.
local parties = redis.call('ZCARD', ends)
local target = -1
for _, holder in ipairs(waiting) do
  if holder == me then
    break
  end
  local share, has = math.floor(capacity / parties), number(held, holder)
  local limit = math.max(share, has + number(wants, holder))
  if number(wants, holder .. ':weight') > math.max(share, 1) or (share < 1 and has == 0) then
    limit = 0
  end
  if target < 0 or limit < target then
    target = limit
  end
end

local next_end = -1
for _, entry in ipairs({0, 1}) do
  local found = redis.call('ZRANGE', ends, entry, entry, 'WITHSCORES')
  if found[1] and found[1] ~= me and next_end < 0 then
    next_end = math.max(0, tonumber(found[2]) - now)
  end
end
return {mine, target, parties, redis.call('ZSCORE', queue, me) and 1 or 0, next_end}
