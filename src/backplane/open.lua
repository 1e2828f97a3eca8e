-- Opens the log at the start of every link, before any other read or write of it, in one atomic step.
-- Begins a new epoch if the data set is new, damaged, promoted, restarted or older than the caller's position.
--
-- KEYS: the log (stream), the state (hash).
-- ARGV: 8 random hex digits (identity of the log if it is created now); 1 to allocate a block of client ids, else 0;
--       epoch and seq of the node's position; a random number from 1 to 1000000.
-- Returns: epoch, seq, reason ('same' if no epoch was begun), replid, log identity, client id block, time in ms.
local info = redis.call('INFO', 'replication')
local role = string.match(info, 'role:(%a+)')
if role ~= 'master' then return redis.error_reply('OYEZROLE ' .. tostring(role)) end
-- Redis generates a new master_replid when it restarts as a primary and when a replica is promoted.
local replid = string.match(info, 'master_replid:(%w+)')
if not replid then return redis.error_reply('OYEZREPLID the server does not report its replication id') end
local s = redis.call('HMGET', KEYS[2], 'v', 'epoch', 'seq', 'replid', 'birth', 'clients')
if s[1] and s[1] ~= '1' then return redis.error_reply('OYEZVERSION ' .. s[1]) end
local t = redis.call('TIME')
local ms = t[1] .. string.format('%03d', math.floor(t[2] / 1000))
local last = false
if redis.call('EXISTS', KEYS[1]) == 1 then
  local x = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #x, 2 do if x[i] == 'last-generated-id' then last = x[i + 1] end end
end
local epoch, seq, why, birth = s[2], s[3], 'same', s[5]
-- The data set was replaced by an older one if the caller has read entries that it does not contain.
local ours = tonumber(ARGV[3])
local is_back = epoch and (tonumber(epoch) < ours or tonumber(epoch) == ours and tonumber(seq) < tonumber(ARGV[4]))
-- Both keys are always written by one script, so a mismatch means that another program changed one of them.
local fits = epoch and last == epoch .. '-' .. seq
if not last or not fits or s[4] ~= replid or is_back then
  why = not last and 'new' or not fits and 'damaged' or s[4] ~= replid and 'moved' or 'damaged'
  -- Without its entries it is another log: no node knows earlier idempotency keys.
  birth = last and birth or ARGV[1]
  -- The new epoch is the time in ms, followed by three random digits. So two primaries that are opened in the same
  -- millisecond choose different epochs, and the epoch of a later primary is the greater one. It is also greater than
  -- every known one if the clock was set back; the random step distinguishes two primaries then.
  local next = ms .. string.format('%03d', tonumber(ARGV[5]) % 1000)
  for _, old in ipairs({ epoch or '0', string.match(last or '0-0', '^%d+'), ARGV[3] }) do
    if tonumber(old) >= tonumber(next) then next = string.format('%.0f', tonumber(old) + tonumber(ARGV[5])) end
  end
  epoch, seq = next, '0'
  -- The epoch marker names the last stream id that survived.
  redis.call('XADD', KEYS[1], epoch .. '-0', 't', ms, 'm', why .. ' ' .. (last or '0-0'))
  redis.call('HSET', KEYS[2], 'v', '1', 'epoch', epoch, 'seq', seq, 'replid', replid, 'birth', birth)
end
-- The last numbers of runs that ended are not used again. A live run whose number is deleted sends its entry again.
if ARGV[2] == '1' then
  local fields = redis.call('HKEYS', KEYS[2])
  for _, field in ipairs(#fields > 300 and fields or {}) do
    if string.sub(field, 1, 4) == 'run:' then redis.call('HDEL', KEYS[2], field) end
  end
end
local block = 0
-- The first block is a random one: nodes may be running that have blocks of a log which was deleted.
if ARGV[2] == '1' then block = redis.call('HINCRBY', KEYS[2], 'clients', s[6] and 1 or ARGV[5]) end
return { epoch, seq, why, replid, birth, block, ms }
