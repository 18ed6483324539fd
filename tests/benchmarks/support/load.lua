-- wrk script: sends the requests of a file in turn, from an offset on; prints the result as JSON.
-- The file has, for each request, its length in bytes, a line feed, and its bytes.
local requests, at = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local length = file:read("*n")
    if not length then break end
    file:read(1)
    requests[#requests + 1] = file:read(length)
  end
  file:close()
  at = tonumber(args[2] or "0") % #requests
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"count": %d, "seconds": %f, "p50": %f, "p99": %f, "max": %f, "errors": %d, "bytes": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    latency.max / 1e6, errors.status + errors.connect + errors.read + errors.write + errors.timeout, summary.bytes))
end
