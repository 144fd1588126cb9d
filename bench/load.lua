-- For wrk: posts files as multipart forms, in turn, or gets the address if there are none; prints one line of JSON.
-- wrk ... -s load.lua URL -- MEAN_DELAY_MS [FILE...]
-- A mean delay above 0 makes each connection pause between requests, for times drawn from an exponential distribution.

local requests, turn = {}, 0
local boundary = "------------------------d74496d66958873eAbCdEf" -- as long as curl's; a parser looks for long ones faster

function init(args)
  local mean = tonumber(args[1])
  for place = 2, #args do
    local file = assert(io.open(args[place], "rb"))
    local head = '--' .. boundary .. '\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n' ..
      "Content-Type: image/jpeg\r\n\r\n"
    local body = head .. file:read("*a") .. "\r\n--" .. boundary .. "--\r\n"
    file:close()
    requests[#requests + 1] =
      wrk.format("POST", nil, { ["Content-Type"] = "multipart/form-data; boundary=" .. boundary }, body)
  end
  if #requests == 0 then requests[1] = wrk.format("GET") end
  if mean > 0 then
    math.randomseed(7)
    function delay() return math.floor(-mean * math.log(1 - math.random())) end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"seconds": %f, "answers": %d, "refused": %d, "failed": %d, "p50": %f, "p95": %f, "p99": %f}\n',
    summary.duration / 1e6, summary.requests, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
