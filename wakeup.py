"""Starting the operator's command after a handoff, so that the next agent can be launched.

The command is the operator's (MCP_TASK_ON_HANDOFF), never a caller's; what callers chose, the task id and
the addressee, reaches it only through the environment. Whether it works changes nothing here.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from log import say

if TYPE_CHECKING:
    import subprocess


def wake(command: tuple[str, ...], task_id: str, to_agent: str) -> None:
    """Start `command`, detached; it runs even if this process ends next. A failure is one line on stderr."""
    if not command:
        return
    import subprocess  # only here: most servers start no command

    environment = {"MCP_TASK_HANDOFF_TASK_ID": task_id, "MCP_TASK_HANDOFF_TO": to_agent}
    try:
        started = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        _log(f"could not be started: {error}")
        return
    threading.Thread(target=_collect, args=(started,), name="wakeup", daemon=True).start()


def _collect(started: subprocess.Popen[bytes]) -> None:
    """Wait for the command, which nobody else would collect."""
    status = started.wait()
    if status:
        _log(f"ended with status {status}")


def _log(what: str) -> None:
    say(f"MCP_TASK_ON_HANDOFF: the command {what}")
