-- One flight: work for one key that is done by one of all processes that ask for it. One call is one step of one
-- who asks, and everything in it happens at once.
--
-- Who finds the lock free takes it, for a lease by this server's clock (the key's own expiry), and is told the number of
-- the flight: microseconds of this server, and more than the number before. Who finds it taken is told whose turn it
-- is, and hears his name on his channel when there is something to ask for again. A lock that is given back stays for a
-- lease without a holder, so that who comes late with an old number is known as such.
--
-- What a flight came to is kept while somebody has asked for it, for two leases. It is for who waits for this flight or
-- an earlier one; so what a holder brings who has lost his lease reaches nobody who waits for the one after him.
--
-- KEYS, all with the hash tag of the flight's key, so in one slot of a cluster:
--   1 lock    hash: holder ('' if none), number
--   2 ears    hash: who waits -> channel on which he hears his name
--   3 result  hash: number, kind, bytes
-- ARGV: step, who asks, lease in milliseconds, and
--   ask:  number of the flight that he waits for (0: none), channel, 1 if he wants one that begins now
--           answers {2, kind, bytes}: that is what it came to; {1, number}: he has the lock; or
--           {0, number, milliseconds}: he waits for that one, whose lease ends then unless it is refreshed
--   keep: number, 1 if a lock that is gone may be his still        answers 1: he has the lock, 0: he has lost it
--   land: number, kind, bytes                                      answers 1: he had the lock, 0: he had lost it
--   part: nothing; he gives the lock back, or waits no more        answers 1

local lock, ears, result = KEYS[1], KEYS[2], KEYS[3]
local step, me, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])

local found = redis.call('HMGET', lock, 'holder', 'number')
local holder, number = found[1] or '', tonumber(found[2] or 0)

local function tell()
  local all = redis.call('HGETALL', ears)
  for index = 1, #all, 2 do
    redis.call('PUBLISH', all[index + 1], all[index])
  end
end

local function set(who, which)
  -- Not by tostring(), which rounds.
  redis.call('HSET', lock, 'holder', who, 'number', string.format('%.0f', which))
  redis.call('PEXPIRE', lock, lease)
end

if step == 'ask' then
  local awaited, channel, anew = tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1'
  if awaited > 0 then
    local brought = redis.call('HMGET', result, 'number', 'kind', 'bytes')
    if brought[1] and tonumber(brought[1]) >= awaited then
      redis.call('HDEL', ears, me)
      return {2, brought[2], brought[3]}
    end
  end
  if holder ~= '' and holder ~= me and not anew then
    redis.call('HSET', ears, me, channel)
    redis.call('PEXPIRE', ears, 2 * lease)
    return {0, number, redis.call('PTTL', lock)}
  end
  if holder ~= me then
    local clock = redis.call('TIME')
    number = math.max(clock[1] * 1000000 + clock[2], number + 1)
  end
  set(me, number)
  redis.call('HDEL', ears, me)
  return {1, number}
end

if step == 'keep' then
  local mine = tonumber(ARGV[4])
  if holder == me or (not found[2] and ARGV[5] == '1') then
    set(me, mine)
    return 1
  end
  return 0
end

if step == 'land' then
  local mine, kind, bytes = tonumber(ARGV[4]), ARGV[5], ARGV[6]
  local before = tonumber(redis.call('HGET', result, 'number') or 0)
  if before < mine and redis.call('EXISTS', ears) == 1 then
    redis.call('HSET', result, 'number', string.format('%.0f', mine), 'kind', kind, 'bytes', bytes)
    redis.call('PEXPIRE', result, 2 * lease)
  end
  tell()
  if holder == me then
    set('', mine)
    -- All of them have it. If it is another's turn they still wait, told or not: he must know that somebody does.
    redis.call('DEL', ears)
  end
  return holder == me and 1 or 0
end

redis.call('HDEL', ears, me)
if holder == me then
  set('', number)
  tell()
end
return 1
