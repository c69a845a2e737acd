"""What this server refuses, and how it says so to a model.

`Refusal` is the base of every error that a message is answered with; each kind has its code. A ToolError
reaches the model as `{"error": {"code", "message", "hint"}}`: `message` says what is
wrong, with the value; `hint` is the next step that would work.
"""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """Base of all errors with a code; nothing has been changed when one is raised."""

    code: ClassVar[int | str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ToolError(Refusal):
    """A tool call that cannot be carried out."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidArguments(ToolError):
    """The arguments do not fit the tool."""

    code = "invalid_arguments"


class NotFound(ToolError):
    """No such task or artifact."""

    code = "not_found"


class Conflict(ToolError):
    """The call contradicts what is stored."""

    code = "conflict"


class NotOwner(ToolError):
    """The task belongs to another agent."""

    code = "not_owner"


class InvalidState(ToolError):
    """The task's status does not allow the call."""

    code = "invalid_state"


class TooLarge(ToolError):
    """A value or a list is over its limit."""

    code = "too_large"


class Busy(ToolError):
    """Other writers kept the database for too long; repeating the call is safe."""

    code = "busy"


class StorageError(ToolError):
    """The disk or the database does not let the call through."""

    code = "storage_error"


class Alone(Exception):
    """Raised for a call that cannot share a commit with others: it changed nothing, and is to be made alone.

    Not a Refusal: no client hears of it. Dispatcher.handle_together leaves the call to its transport.
    """


class StoreFailure(Exception):
    """The store can no longer be trusted to keep what it acknowledges: the process must stop.

    Not a Refusal: nobody answers it. Its text is the one line for stderr.
    """


class StoreBusy(StoreFailure):
    """The store could not be opened in time, since others kept the database: it may be later."""
