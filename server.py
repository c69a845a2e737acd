#!/usr/bin/env python3
"""mcp-task-server: tasks, checkpoints and handoffs between agents, over the Model Context Protocol.

    python3 server.py                                  one client on stdin and stdout
    python3 server.py --http [--host H] [--port P]     an HTTP service for many clients
    python3 server.py --backup DIR                     a copy of everything, while servers run
    python3 server.py --verify                         a look at everything, while servers run

The entry point. It is short because Python compiles it at each start, unlike what it imports.
"""

import os
import sys

# An agent session waits for its server. Container images often forbid byte code to stay small, and then each
# start would compile all modules anew, which takes longer than all else.
sys.dont_write_bytecode = False

from cli import main  # noqa: E402 (only now, so that its byte code is kept)

if __name__ == "__main__":
    # Not by way of the interpreter's own end, where a second signal would find no handler any more.
    os._exit(main(sys.argv[1:]))
