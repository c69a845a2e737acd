"""The STDIO transport: framing, bad lines, signals and ends."""

from __future__ import annotations

from pathlib import Path

from support import StdioClient


def test_a_2024_client_gets_the_exact_answer(tmp_path: Path) -> None:
    """The answer to a 2024-11-05 `initialize` is fixed byte for byte."""
    with StdioClient(tmp_path) as client:
        client.send_raw(
            b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2024-11-05",'
            b'"capabilities":{},"clientInfo":{"name":"c","version":"1"}}}\n'
        )
        assert client.receive_line() == (
            b'{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2024-11-05","capabilities":'
            b'{"tools":{"listChanged":false},"resources":{"subscribe":false,"listChanged":false}},'
            b'"serverInfo":{"name":"mcp-task-server","version":"1.0.0"}}}'
        )
        assert client.close() == 0
