"""The data as pydantic models: what a task, a checkpoint and their parts are.

These are the stored and shown shapes. They carry no limits: those belong to the arguments of a tool, so
that nothing once stored can become unreadable when a limit changes. Annotations are no strings here: pydantic
would have to compile each one anew whenever a server starts.
"""

from enum import StrEnum
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

ANYONE = "any"  # the addressee of a handoff to whoever comes first


class Model(BaseModel):
    """Base of all models: its validator is made when it is first used, since a session uses few of them."""

    model_config = ConfigDict(defer_build=True)


def build_models(base: type[Model] = Model) -> None:
    """Make the validators of all models that are known by now."""
    for model in base.__subclasses__():
        model.model_rebuild()
        build_models(model)


class Status(StrEnum):
    """Where a task stands in its life."""

    OPEN = "open"
    IN_PROGRESS = "in_progress"
    HANDOFF_READY = "handoff_ready"
    AGENT_EXHAUSTED = "agent_exhausted"
    DONE = "done"


class TestStatus(StrEnum):
    """How a test run ended."""

    __test__ = False

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


class TestRun(Model):
    """One run of a test command, as an agent reports it."""

    __test__: ClassVar[bool] = False

    command: str = ""
    status: TestStatus = TestStatus.UNKNOWN
    summary: str = ""


ArtifactType = Literal["file", "diff", "log"]


class Artifact(Model):
    """What is known about a stored file; `size` in bytes, `number` counts from 1 within the task."""

    number: int
    name: str
    type: ArtifactType
    size: int
    sha256: str
    encoding: Literal["utf-8", "base64"]  # how its bytes read back: as text, or as base64
    agent: str | None
    created_at: str


class Handoff(Model):
    """A transfer. `to_agent` is None where the sender was exhausted and named nobody."""

    from_agent: str
    to_agent: str | None
    reason: str
    created_at: str


class Progress(Model):
    """What an agent knows about its work: the part of a task that a checkpoint carries."""

    completed_steps: list[str] = []
    remaining_steps: list[str] = []
    resume_prompt: str | None = None
    test_results: list[TestRun] = []
    decisions: list[str] = []
    dead_ends: list[str] = []
    files: list[str] = []


PRIORITY = 2  # of a task that says nothing: 0 is most urgent, 4 least


class Report(Model):
    """What one checkpoint call says about the work; None where it says nothing."""

    completed_steps: list[str] | None = None
    remaining_steps: list[str] | None = None
    resume_prompt: str | None = None
    test_results: list[TestRun] | None = None
    decisions: list[str] | None = None
    dead_ends: list[str] | None = None
    files: list[str] | None = None
    dropped_steps: list[str] | None = None

    def is_empty(self) -> bool:
        """Return True if the call carried no checkpoint field."""
        return all(value is None for _, value in self)


class Task(Model):
    """A task as `get_task` shows it. Times are UTC, RFC 3339 with milliseconds."""

    task_id: str
    title: str
    goal: str
    status: Status
    current_owner: str | None
    repo_path: str | None
    completed_steps: list[str]
    remaining_steps: list[str]
    resume_prompt: str | None
    test_results: list[TestRun]
    decisions: list[str]
    dead_ends: list[str]
    files: list[str]
    artifacts: list[Artifact]
    handoffs: list[Handoff]  # latest first
    priority: int = PRIORITY
    tags: list[str] = []
    depends_on: list[str] = []
    created_at: str
    updated_at: str
    version: int

    def shown(self, owner_state: str | None = None) -> dict[str, Any]:
        """Return the task as JSON for an agent: priority, tags and dependencies only if they say something.

        `owner_state` says whether the owner's session lives.
        """
        shown = self.model_dump(mode="json")
        if self.priority == PRIORITY:
            del shown["priority"]
        for name in ("tags", "depends_on"):
            if not shown[name]:
                del shown[name]
        return shown if owner_state is None else shown | {"owner_state": owner_state}

    def progress(self) -> Progress:
        """Return the part of the task that a checkpoint carries."""
        return Progress.model_construct(**{name: getattr(self, name) for name in Progress.model_fields})


class Checkpoint(Model):
    """An immutable state of a task's progress; `number` counts from 1 within the task."""

    task_id: str
    number: int
    agent: str
    created_at: str
    progress: Progress
    dropped_steps: list[str] = []


class Change(NamedTuple):
    """One entry of the event log, as far as a listener is concerned; `position` is its number."""

    position: int
    task_id: str
    is_new: bool


class NewTask(Model):
    """What `create_task` makes a task from; `task_id` None lets the store choose one."""

    task_id: str | None
    title: str
    goal: str
    repo_path: str | None
    remaining_steps: list[str]
    priority: int = PRIORITY
    tags: list[str] = []
    depends_on: list[str] = []


class OwnerState(StrEnum):
    """Whether the session lives through which the owner of a task last wrote."""

    LIVE = "live"
    GONE = "gone"
    UNKNOWN = "unknown"  # nothing is connected, but it was heard of not long ago


class TaskFilter(Model):
    """Which tasks `list_tasks` shows; None where it does not matter."""

    status: Status | None = None
    current_owner: str | None = None
    repo_path: str | None = None
    query: str | None = None
    tag: str | None = None
    ready: bool | None = None
    owner_state: OwnerState | None = None


class ClaimFilter(Model):
    """Which tasks `claim_task` may take; None where it does not matter."""

    repo_path: str | None = None
    tag: str | None = None


class ClaimKind(StrEnum):
    """How a task came to whoever claimed it."""

    HANDOFF = "handoff"
    EXHAUSTED = "exhausted"
    GONE = "gone"
    OPEN = "open"
    MINE = "mine"
