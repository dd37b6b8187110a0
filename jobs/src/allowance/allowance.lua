-- All limits of a key in one step, by the server's clock. KEYS: limits and pause, members. ARGV: what `exchange.rs` asks, as JSON.
-- Computes what `bucket.rs` does. Returns: how long to wait, members, how long paused, whether granted, then what was
-- granted of each bucket; as text, since numbers would lose their fractions.
local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

redis.call('ZADD', KEYS[2], now, ask.who)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ask.silence)
local members = redis.call('ZCARD', KEYS[2])

local paused = tonumber(redis.call('HGET', KEYS[1], 'paused') or '0')
if ask.pause > 0 then paused = math.max(paused, now + ask.pause) end
local wait = math.max(0, paused - now)

local states = {}
for i, bucket in ipairs(ask.buckets) do
  local kept = redis.call('HGET', KEYS[1], bucket.name)
  local level, at, flight, seen
  if kept then
    level, at, flight, seen = string.match(kept, '(%S+) (%S+) (%S+) (%S+)')
    level, at, flight, seen = tonumber(level), tonumber(at), tonumber(flight), tonumber(seen)
  else
    at, flight, seen = now, 0, 0
  end
  if bucket.seen_limit > 0 then seen = bucket.seen_limit end
  local amount = bucket.amount
  if seen > 0 and (not bucket.firm or seen < amount) then amount = seen end
  local rate = amount / bucket.window
  local capacity = rate * bucket.burst
  local passed = math.max(0, now - at)
  level = math.min(capacity, (level or capacity) + passed * rate)
  level = math.min(capacity, level + bucket.back)
  -- What a dead executor had in flight is forgotten with time.
  flight = math.max(0, flight * 0.5 ^ (passed / ask.forget) - bucket.done)
  if bucket.seen_remaining >= 0 then
    local safe = math.min(capacity, bucket.seen_remaining - ask.doubt * flight)
    level = math.min(math.max(level, safe), bucket.seen_remaining)
  end
  local want = 0
  if bucket.least > 0 then
    want = math.max(bucket.least, rate * ask.lease)
    if level >= bucket.least then
      want = math.min(want, level)
    else
      wait = math.max(wait, (want - level) / rate)
    end
  end
  states[i] = { name = bucket.name, level = level, flight = flight, seen = seen, want = want }
end

local granted = ask.take and wait <= ask.wait_max
local answer = { tostring(wait), tostring(members), tostring(math.max(0, paused - now)), granted and '1' or '0' }
for i, state in ipairs(states) do
  if not granted then state.want = 0 end
  local text = string.format('%.6f %.6f %.6f %.6f', state.level - state.want, now, state.flight + state.want, state.seen)
  redis.call('HSET', KEYS[1], state.name, text)
  answer[i + 4] = string.format('%.6f', state.want)
end
redis.call('HSET', KEYS[1], 'paused', string.format('%.6f', paused))
redis.call('EXPIRE', KEYS[1], ask.keep)
redis.call('EXPIRE', KEYS[2], ask.keep)
return answer
