"""headroom's own compressor over the requests of an agent: headroom_side.py GIVEN OUT

For agent_trace.py. Its text model, which is downloaded at run time, is left out: rules alone.
`default`: all messages of every request go through it, by its defaults. `frozen`: as its
documentation advises to agents, what was sent before is frozen, and only what is new is
compressed, the newest message included.
"""

import json
import sys
import time
from importlib.metadata import version

from headroom.compress import CompressConfig, compress


def main():
    given = json.load(open(sys.argv[1]))
    sent, before, raw = [], [], 0
    start = time.monotonic()
    for messages in given["requests"]:
        if given["way"] == "default":
            config = CompressConfig(kompress_model="disabled")
        else:
            messages = before + messages[raw:]
            config = CompressConfig(
                kompress_model="disabled", protect_recent=0, frozen_message_count=len(before)
            )
        raw = len(given["requests"][len(sent)])
        before = compress(messages, model="gpt-4o", config=config).messages
        sent.append(before)
    done = {"sent": sent, "seconds": time.monotonic() - start, "version": version("headroom-ai")}
    json.dump(done, open(sys.argv[2], "w"))


if __name__ == "__main__":
    main()
