-- Requests of mixed sizes for wrk, from the file that the variable BODIES names: a request a line, as
-- METHOD, path and body between tabs.
local requests, at = {}, 0

function init(args)
  for line in io.lines(os.getenv("BODIES")) do
    local method, path, body = line:match("^(%S+)\t(%S+)\t(.*)$")
    local headers = { ["content-type"] = "application/json", ["authorization"] = "Bearer key" }
    if body == "" then body = nil end
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end
