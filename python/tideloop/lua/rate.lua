-- One shared rate limiter: GCRA as a leaky bucket that is looked at, for one or more rates at once.
--
-- Of each rate there is a level, which runs out at its speed and must not rise above its burst: then in every span of
-- `d` seconds at most `burst + limit / per * d` units are admitted. Time is this server's. A call that was answered
-- into the void has charged what nobody uses: less is admitted then, never more.
--
-- KEYS, with the limiter's hash tag: 1 a hash: `stamp`, microseconds; for each rate its level in units, and
--                                      `back:` and its name, units that were given back so far
--                                    2 a sorted set: holder -> when it called last, in milliseconds
-- ARGV: holder, milliseconds for which it counts as one, seconds of a penalty or -1, number of rates, and for each rate
--   `number:unit`, units per second, burst, units that were used beyond what was charged (or not used, below 0), units that
--   are needed, units that are asked for
--
-- All that is asked for is charged as far as it is there at once. If that is less than what is needed, what is needed is
-- charged alone, and may be used after a wait; if others give back what they were charged before, that much earlier.
-- Answers: holders; for each rate what was charged, the wait in microseconds, and units given back so far.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local holder, counts, penalty, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local stamp = tonumber(redis.call('HGET', KEYS[1], 'stamp') or now)
-- A clock that was set back stands still.
local passed = math.max(0, now - stamp) / 1000000

local rates, rooms, short, longest = {}, {}, false, 0
for index = 1, count do
  local at = 4 + (index - 1) * 6
  local rate = {
    name = ARGV[at + 1], speed = tonumber(ARGV[at + 2]), burst = tonumber(ARGV[at + 3]),
    need = tonumber(ARGV[at + 5]), ask = tonumber(ARGV[at + 6]),
  }
  local level = tonumber(redis.call('HGET', KEYS[1], rate.name) or 0)
  level = math.max(0, level - passed * rate.speed)
  rate.level = math.max(0, level + tonumber(ARGV[at + 4]))
  rate.back = tonumber(redis.call('HGET', KEYS[1], 'back:' .. rate.name) or 0) + math.max(0, level - rate.level)
  if penalty >= 0 then
    rate.level = math.max(rate.level, rate.burst + penalty * rate.speed)
  end
  -- What is missing by rounding alone is there.
  local room = math.max(0, math.floor(rate.burst - rate.level + 1e-9))
  rate.unit = string.match(rate.name, ':(.*)')
  rooms[rate.unit] = math.min(room, rooms[rate.unit] or room)
  short = short or rate.need > room
  rates[index] = rate
end

local answer = {}
for _, rate in ipairs(rates) do
  local units = rate.need
  if not short then
    units = math.max(units, math.min(rate.ask, rooms[rate.unit]))
  end
  rate.level = rate.level + units
  local wait = units > 0 and math.max(0, (rate.level - rate.burst) / rate.speed) or 0
  answer[#answer + 1] = units
  answer[#answer + 1] = math.ceil(wait * 1000000 - 1e-3)
  -- Text: an answer has no fractions.
  answer[#answer + 1] = string.format('%.17g', rate.back)
  longest = math.max(longest, rate.level / rate.speed)
  redis.call('HSET', KEYS[1], rate.name, string.format('%.17g', rate.level))
  redis.call('HSET', KEYS[1], 'back:' .. rate.name, string.format('%.17g', rate.back))
end
redis.call('HSET', KEYS[1], 'stamp', string.format('%.0f', math.max(now, stamp)))
-- An empty level is as good as none.
redis.call('PEXPIRE', KEYS[1], math.ceil(longest * 1000) + 1000)

local millis = math.floor(now / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', millis - counts)
redis.call('ZADD', KEYS[2], millis, holder)
redis.call('PEXPIRE', KEYS[2], counts)
return {redis.call('ZCARD', KEYS[2]), unpack(answer)}
