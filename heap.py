"""How a service allocates memory, so that what a crowd of requests took goes back to the system."""

from __future__ import annotations

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # mallopt(3)
_LARGE_BYTES = 128 * 1024


def give_memory_back() -> None:
    """Have all threads that are started from now on share one heap, and large blocks be mapped one by one.

    glibc gives each thread a heap of its own, and takes larger and larger blocks from it, of which hardly
    anything returns. Nobody waits for the one heap, since the interpreter runs one thread at a time.
    """
    try:
        import ctypes  # only here: it costs time and memory

        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    except (ImportError, OSError, AttributeError, MemoryError):
        pass  # another libc, or a sandbox that lets no code be made
