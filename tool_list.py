"""The tools as tools/list shows them: from tool_list.json, which a test proves equal to what tools.py says.

Every agent session asks for the list at its start; to make it from the models would take 100 ms.
"""

from __future__ import annotations

import json
import os
from typing import Any

_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tool_list.json")


def list_tools() -> list[dict[str, Any]]:
    """Return the tools in the newest revision's shape (MCP, tools/list)."""
    with open(_FILE, encoding="utf-8") as file:
        tools: list[dict[str, Any]] = json.load(file)
    return tools
