"""One heap for the threads of a service, so that what a crowd of requests took is used again by the next."""

from __future__ import annotations

_M_ARENA_MAX = -8  # mallopt(3)


def share_heap() -> None:
    """Have all threads that are started from now on allocate from one heap.

    glibc gives each thread a heap of its own, of which hardly anything returns: 40 MiB after 6,000 calls
    to eight workers, and 9 MiB with one heap. Nobody waits for it, since the interpreter runs one
    thread at a time.
    """
    try:
        import ctypes  # only here: it costs time and memory

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (ImportError, OSError, AttributeError, MemoryError):
        pass  # another libc, or a sandbox that lets no code be made
