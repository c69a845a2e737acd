"""The names in Host and Origin headers, parsed to their last character.

`urlsplit` finds a local host in `http://[::1]evil.com`; here what is no host and port as a whole is none.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LAST_PORT = 65535
_HOST = r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
_HOST_HEADER = re.compile(_HOST, re.IGNORECASE | re.ASCII)
_ORIGIN = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.-]*)://{_HOST}", re.IGNORECASE | re.ASCII)


class Origin(NamedTuple):
    """The origin of a web page or an editor; `port` is None where it is the scheme's own."""

    scheme: str
    host: str
    port: str | None


def host_name(header: str) -> str | None:
    """Return the name or address in a Host header, in lower case; None if it is malformed."""
    match = _HOST_HEADER.fullmatch(header)
    if match is None or int(match["port"] or 0) > _LAST_PORT:
        return None
    return (match["address"] or match["name"]).lower()


def parse_origin(text: str) -> Origin | None:
    """Return the origin in `text`; None for `null` and whatever else is none."""
    match = _ORIGIN.fullmatch(text)
    if match is None or int(match["port"] or 0) > _LAST_PORT:
        return None
    return Origin(match["scheme"].lower(), (match["address"] or match["name"]).lower(), match["port"])
