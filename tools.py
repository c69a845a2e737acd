"""The tools: one function each, its argument model directly above it.

`TOOLS` is all there is: what `tools/list` shows, what `tools/call` runs and what the README documents
derive from the functions decorated with `tool`. A docstring here
is what a model reads: when to call the tool, and what comes back. Arguments are lenient in what real
clients send (null for "left out", a list as JSON text, one string for a list), strict in their names.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from attachment import chunks_of, open_attachable
from brief import Background, resume_brief
from config import (
    ARTIFACT_CHUNK_BYTES,
    ARTIFACT_NAME_CHARACTERS,
    BRIEF_CHARACTERS,
    BRIEF_CHARACTERS_MAX,
    BRIEF_CHARACTERS_MIN,
    CLAIM_WAIT_SECONDS,
    DEPENDENCIES,
    HISTORY_PAGE,
    ID_CHARACTERS,
    LIST_ENTRIES,
    PATH_CHARACTERS,
    QUERY_CHARACTERS,
    TAG_CHARACTERS,
    TAGS,
    TASKS_PAGE,
    TASKS_PAGE_MAX,
    TEXT_BYTES,
    TITLE_CHARACTERS,
)
from errors import InvalidArguments, NotOwner, TooLarge, ToolError
from lifecycle import agent_key
from models import (
    ANYONE,
    PRIORITY,
    ArtifactType,
    ClaimFilter,
    NewTask,
    OwnerState,
    Progress,
    Report,
    Status,
    Task,
    TaskFilter,
    TestRun,
    TestStatus,
)
from repository import drift, observe
from sessions import Caller
from store import Claim, Store
from wakeup import wake

JsonObject = dict[str, Any]


class Workplace(NamedTuple):
    """What the tools work with.

    `attach_roots` is empty where files may not be attached by path, `on_handoff` where nothing is to be
    started. `session_id` is that of the caller's connection; None where calls have none.
    """

    store: Store
    attach_roots: tuple[str, ...] = ()
    on_handoff: tuple[str, ...] = ()
    session_id: str | None = None
    is_gone: Callable[[], bool] = lambda: False

    def caller(self, agent: str) -> Caller:
        """Return `agent` as it calls through this connection."""
        return Caller(agent, self.session_id, self.is_gone)


class Wait(NamedTuple):
    """An answer that is not there yet.

    `attempt` returns it once it is there and may raise ToolError; it is called whenever something may have
    changed, within `seconds`. `undo` gives back what the last attempt took, if nobody is there to take it.
    `otherwise` returns the answer when time is up, and whether that is a refusal.
    """

    attempt: Callable[[], JsonObject | None]
    undo: Callable[[], None]
    seconds: float
    otherwise: Callable[[], tuple[JsonObject, bool]]


class Tool(NamedTuple):
    """A tool as it is listed and called; `run` takes the validated arguments."""

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    run: Run
    read_only: bool
    repeatable: bool


Run = Callable[[Any, Workplace], JsonObject | Wait]
TOOLS: dict[str, Tool] = {}


def call_tool(name: str, arguments: JsonObject, workplace: Workplace) -> tuple[JsonObject | Wait, bool]:
    """Run tool `name` (a key of TOOLS) and return its answer, and whether that is a refusal."""
    tool = TOOLS[name]
    try:
        return tool.run(_validated(tool, arguments), workplace), False
    except ToolError as error:
        return refusal(error), True


def refusal(error: ToolError) -> JsonObject:
    """Return the answer of a tool call that cannot be carried out."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def list_tools() -> list[JsonObject]:
    """Return the tools as `tools/list` shows them, in the newest revision's shape."""
    return [
        {
            "name": tool.name,
            "title": tool.title,
            "description": tool.description,
            "inputSchema": _flat_schema(tool),
            # Every write is safe to repeat, nothing reaches beyond the task store, and nothing is
            # destroyed: what update_task replaces stays in the event log. Some hosts refuse tools that
            # do not say so.
            "annotations": {
                "readOnlyHint": tool.read_only,
                "destructiveHint": False,
                "idempotentHint": tool.repeatable,
                "openWorldHint": False,
            },
        }
        for tool in TOOLS.values()
    ]


# --- What arguments may be ----------------------------------------------------------------------------


def _text(value: str) -> str:
    size = len(value) if value.isascii() else len(value.encode())
    if size > TEXT_BYTES:
        message = "has {size} bytes; the limit of a text is {limit}"
        raise PydanticCustomError("too_large", message, {"size": size, "limit": TEXT_BYTES})
    return value


def _list(value: Any) -> Any:
    """Take what clients send for a list: the list, its JSON text, or its only entry."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                pass  # a sentence that starts with a bracket
        elif not value.strip():
            value = []
    if value is not None and not isinstance(value, list):
        value = [value]
    if value is not None and len(value) > LIST_ENTRIES:
        message = "has {size} entries; the limit of a list is {limit}"
        raise PydanticCustomError("too_large", message, {"size": len(value), "limit": LIST_ENTRIES})
    return value


def _test_run(value: Any) -> Any:
    return {"summary": value} if isinstance(value, str) else value


def _keyword(value: Any) -> Any:
    """Take a keyword in any case, with blanks or hyphens."""
    return "_".join(value.lower().replace("-", " ").split()) if isinstance(value, str) else value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise PydanticCustomError("unprintable", "must not hold control characters or line breaks")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise PydanticCustomError("nul", "must not hold a NUL character")
    return value


def _not_anyone(value: str) -> str:
    if agent_key(value) == ANYONE:
        raise PydanticCustomError("reserved", "must be the agent's own name; 'any' means whoever comes first")
    return value


def _folder(value: str) -> str:
    return value.rstrip("/") or value[:1]


def _encoding(value: Any) -> Any:
    name = value.strip().lower() if isinstance(value, str) else value
    return "utf-8" if name in ("utf8", "utf_8") else name


def _without_blanks(values: list[str]) -> list[str]:
    return [value for value in values if value]


def _unique(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _at_most(limit: int) -> Any:
    def check(values: list[str]) -> list[str]:
        if len(values) > limit:
            message = "has {size} entries; the limit is {limit}"
            raise PydanticCustomError("too_large", message, {"size": len(values), "limit": limit})
        return values

    return AfterValidator(check)


def _characters(shortest: int, longest: int, pattern: str | None = None) -> Any:
    return StringConstraints(strip_whitespace=True, min_length=shortest, max_length=longest, pattern=pattern)


TaskId = Annotated[str, _characters(1, ID_CHARACTERS, r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Name = Annotated[str, _characters(1, ID_CHARACTERS), AfterValidator(_printable)]
NameOrNobody = Annotated[str, _characters(0, ID_CHARACTERS), AfterValidator(_printable)]
AgentName = Annotated[Name, AfterValidator(_not_anyone)]
FileName = Annotated[str, _characters(1, ARTIFACT_NAME_CHARACTERS), AfterValidator(_printable)]
FilePath = Annotated[str, _characters(1, PATH_CHARACTERS), AfterValidator(_no_nul)]
Folder = Annotated[str, _characters(0, PATH_CHARACTERS), AfterValidator(_no_nul), AfterValidator(_folder)]
Title = Annotated[str, _characters(1, TITLE_CHARACTERS)]
Query = Annotated[str, _characters(0, QUERY_CHARACTERS)]
Text = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_text)]
SomeText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_text)]
Texts = Annotated[list[Text], BeforeValidator(_list), AfterValidator(_without_blanks)]
AnyStatus = Annotated[Status, BeforeValidator(_keyword)]
Tag = Annotated[str, _characters(1, TAG_CHARACTERS), AfterValidator(_printable), AfterValidator(str.casefold)]
Tags = Annotated[list[Tag], BeforeValidator(_list), AfterValidator(_unique), _at_most(TAGS)]
TaskIds = Annotated[list[TaskId], BeforeValidator(_list), AfterValidator(_unique), _at_most(DEPENDENCIES)]
Priority = Annotated[int, Field(ge=0, le=4)]
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
Offset = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Arguments(BaseModel):
    """Base of all arguments: an unknown name is an error, since a typo must not lose data."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: member for name, member in value.items() if member is not None}
        return value


class ReportedRun(Arguments):
    """A test run as a caller gives it."""

    command: Text = ""
    status: Annotated[
        Literal["passed", "failed", "error", "skipped", "unknown"], BeforeValidator(_keyword)
    ] = "unknown"
    summary: Text = ""

    def test_run(self) -> TestRun:
        """Return it in the shape that is stored."""
        return TestRun(command=self.command, status=TestStatus(self.status), summary=self.summary)


ReportedRuns = Annotated[list[Annotated[ReportedRun, BeforeValidator(_test_run)]], BeforeValidator(_list)]


class ReportArguments(Arguments):
    """The checkpoint fields, which every tool that ends or passes on work takes too."""

    completed_steps: Texts | None = Field(None, description="Added to those known")
    remaining_steps: Texts | None = Field(None, description="All that is left; replaces the list")
    resume_prompt: Text | None = Field(None, description="What the next agent must know")
    test_results: ReportedRuns | None = Field(
        None,
        description="Each: command, status (passed, failed, error, skipped), summary. Replaces the list",
    )
    decisions: Texts | None = Field(None, description="With their reasons")
    dead_ends: Texts | None = Field(None, description="Tried and failed")
    files: Texts | None = None

    def report(self) -> Report:
        """Return what the call says about the work."""
        said = {name: getattr(self, name, None) for name in Report.model_fields}
        if self.test_results is not None:
            said["test_results"] = [reported.test_run() for reported in self.test_results]
        return Report.model_construct(**said)


# --- Registering --------------------------------------------------------------------------------------


def tool(
    arguments: type[Arguments], title: str, read_only: bool = False, repeatable: bool = True
) -> Callable[[Run], Run]:
    """Register a function under its name; its docstring is the description that a model reads.

    `repeatable` says that the same call again changes nothing more.
    """

    def register(run: Run) -> Run:
        description = " ".join((run.__doc__ or "").split())
        name = run.__name__
        TOOLS[name] = Tool(name, title, description, arguments, run, read_only, repeatable)
        return run

    return register


# --- The tools ----------------------------------------------------------------------------------------


class CreateTask(Arguments):
    task_id: TaskId | None = Field(None, description="Default: made by the server")
    title: Title
    goal: SomeText = Field(description="What to achieve, and how to tell it is")
    repo_path: Folder | None = None
    remaining_steps: Texts | None = None
    priority: Priority | None = Field(None, description=f"0 most urgent to 4; default {PRIORITY}")
    tags: Tags | None = None
    depends_on: TaskIds | None = Field(None, description="task_ids to be done first")
    agent: AgentName | None = None


@tool(CreateTask, "Create a task")
def create_task(arguments: CreateTask, workplace: Workplace) -> JsonObject:
    """Put work on record before you start it, so that any agent can continue it."""
    return workplace.store.create_task(
        NewTask(
            task_id=arguments.task_id,
            title=arguments.title,
            goal=arguments.goal,
            repo_path=arguments.repo_path or None,
            remaining_steps=list(dict.fromkeys(arguments.remaining_steps or [])),
            priority=PRIORITY if arguments.priority is None else arguments.priority,
            tags=arguments.tags or [],
            depends_on=arguments.depends_on or [],
        ),
        None if arguments.agent is None else workplace.caller(arguments.agent),
    )


class GetTask(Arguments):
    task_id: TaskId
    view: Annotated[Literal["resume", "history"], BeforeValidator(_keyword)] | None = Field(
        None, description="resume: short brief; history: events"
    )
    max_chars: Annotated[int, Field(ge=BRIEF_CHARACTERS_MIN, le=BRIEF_CHARACTERS_MAX)] | None = Field(
        None, description=f"Of the brief. Default: {BRIEF_CHARACTERS}"
    )
    cursor: str | None = Field(None, description="Of history")
    checkpoint: Count | None = Field(None, description="Show this checkpoint")
    artifact: Count | None = Field(None, description="Show this artifact's content")
    offset: Offset | None = Field(None, description="Start at this byte")


# Which arguments of get_task belong to which view of a task.
_VIEWS = {"artifact": ("offset",), "checkpoint": (), "resume": ("max_chars",), "history": ("cursor",), "": ()}


@tool(GetTask, "Read a task", read_only=True)
def get_task(arguments: GetTask, workplace: Workplace) -> JsonObject:
    """Read a whole task, or one view of it, before you work on it."""
    store, task_id = workplace.store, arguments.task_id
    match _view(arguments):
        case "artifact":
            return _artifact_chunk(store, task_id, arguments.artifact or 1, arguments.offset or 0)
        case "checkpoint":
            return _checkpoint(store, task_id, arguments.checkpoint or 1)
        case "resume":
            return task_brief(store, task_id, arguments.max_chars or BRIEF_CHARACTERS)
        case "history":
            events, next_cursor = store.history(task_id, HISTORY_PAGE, arguments.cursor)
            answer: JsonObject = {"task_id": task_id, "events": events}
            return answer if next_cursor is None else {**answer, "next_cursor": next_cursor}
    task, owner_state = store.get_task_and_owner(task_id)
    return task.shown(owner_state)


class ClaimTask(Arguments):
    agent: AgentName
    task_id: TaskId | None = Field(None, description="Default: the next one for you")
    repo_path: Folder | None = None
    tag: Tag | None = None
    wait_seconds: Annotated[float, Field(ge=0, le=CLAIM_WAIT_SECONDS)] | None = Field(
        None, description=f"Up to {CLAIM_WAIT_SECONDS}"
    )


@tool(ClaimTask, "Claim a task", repeatable=False)
def claim_task(arguments: ClaimTask, workplace: Workplace) -> JsonObject | Wait:
    """Take the next task for you: handed over, given up, left by a dead agent, or open and ready. Returns
    a brief to continue from, or task null.
    """
    return _Claiming(arguments, workplace).answer()


class CheckpointArguments(ReportArguments):
    """A report that is kept as a checkpoint."""

    dropped_steps: Texts | None = Field(None, description="Given up on purpose")


class SaveCheckpoint(CheckpointArguments):
    task_id: TaskId
    agent: AgentName


@tool(SaveCheckpoint, "Save a checkpoint")
def save_checkpoint(arguments: SaveCheckpoint, workplace: Workplace) -> JsonObject:
    """Save progress after each step. Takes an unowned task over. Fields left out stay as they are."""
    return workplace.store.save_checkpoint(
        arguments.task_id,
        workplace.caller(arguments.agent),
        arguments.report(),
        _call_id("save_checkpoint", arguments),
        _work_tree(workplace.store, arguments.task_id),
    )


class HandoffTask(CheckpointArguments):
    task_id: TaskId
    from_agent: AgentName
    to_agent: Name = Field(description="Agent name, or any")
    reason: SomeText


@tool(HandoffTask, "Hand a task off")
def handoff_task(arguments: HandoffTask, workplace: Workplace) -> JsonObject:
    """Pass your task on, with a last checkpoint in the same call, before your context or quota ends."""
    answer, is_new = workplace.store.handoff_task(
        arguments.task_id,
        workplace.caller(arguments.from_agent),
        arguments.to_agent,
        arguments.reason,
        arguments.report(),
        _call_id("handoff_task", arguments),
        _work_tree(workplace.store, arguments.task_id),
    )
    if is_new:
        wake(workplace.on_handoff, arguments.task_id, answer["current_owner"])
    return answer


class MarkExhausted(CheckpointArguments):
    task_id: TaskId
    agent: AgentName
    reason: SomeText


@tool(MarkExhausted, "Give a task up")
def mark_exhausted(arguments: MarkExhausted, workplace: Workplace) -> JsonObject:
    """Give your task up when you cannot go on and know no successor; takes a last checkpoint too."""
    return workplace.store.mark_exhausted(
        arguments.task_id,
        workplace.caller(arguments.agent),
        arguments.reason,
        arguments.report(),
        _call_id("mark_exhausted", arguments),
        _work_tree(workplace.store, arguments.task_id),
    )


class AttachArtifact(Arguments):
    task_id: TaskId
    name: FileName
    type: Annotated[ArtifactType, BeforeValidator(_keyword)] | None = Field(None, description="Default: file")
    content: str | None = None  # kept to the byte; its limit is that of the message
    path: FilePath | None = Field(None, description="Of a local file")
    encoding: Annotated[Literal["utf-8", "base64"], BeforeValidator(_encoding)] | None = Field(
        None, description="Of content. Default: utf-8"
    )
    agent: AgentName | None = None


@tool(AttachArtifact, "Attach an artifact")
def attach_artifact(arguments: AttachArtifact, workplace: Workplace) -> JsonObject:
    """Keep a file, diff or log with a task: by path if you can, else by content."""
    if (arguments.content is None) == (arguments.path is None):
        given = "both" if arguments.path else "neither"
        raise InvalidArguments(
            f"Of content and path, {given} was given.", "Give exactly one: `path` for a file, or `content`."
        )
    if arguments.path is None:
        return _attach(arguments, [_content_bytes(arguments)], workplace)
    store = workplace.store
    with open_attachable(
        arguments.path, workplace.attach_roots, store.artifacts_dir, store.own_files()
    ) as file:
        return _attach(arguments, chunks_of(file), workplace)


class ListTasks(Arguments):
    status: AnyStatus | None = None
    current_owner: Name | None = None
    repo_path: Folder | None = None
    query: Query | None = Field(None, description="Words it must hold")
    tag: Tag | None = None
    ready: bool | None = Field(None, description="Open, nothing to wait for")
    owner_state: Annotated[OwnerState, BeforeValidator(_keyword)] | None = None
    limit: Annotated[int, Field(ge=1, le=TASKS_PAGE_MAX)] | None = Field(
        None, description=f"Default: {TASKS_PAGE}"
    )
    cursor: str | None = Field(None, description="next_cursor")


@tool(ListTasks, "List tasks", read_only=True)
def list_tasks(arguments: ListTasks, workplace: Workplace) -> JsonObject:
    """Find tasks, newest change first. Returns short rows; read one with get_task."""
    wanted = TaskFilter(
        status=arguments.status,
        current_owner=arguments.current_owner,
        repo_path=arguments.repo_path or None,
        query=arguments.query,
        tag=arguments.tag,
        ready=arguments.ready,
        owner_state=arguments.owner_state,
    )
    page, total = workplace.store.list_tasks(wanted, arguments.limit or TASKS_PAGE, arguments.cursor)
    answer: JsonObject = {"tasks": page.tasks, "total": total}
    if page.next_cursor is not None:
        answer["next_cursor"] = page.next_cursor
    return answer


class UpdateTask(ReportArguments):
    task_id: TaskId
    title: Title | None = None
    goal: SomeText | None = None
    status: AnyStatus | None = None
    current_owner: NameOrNobody | None = Field(None, description='"" for nobody')
    repo_path: Folder | None = None
    priority: Priority | None = None
    tags: Tags | None = None
    depends_on: TaskIds | None = None
    expected_version: Count | None = Field(None, description="Else conflict")


@tool(UpdateTask, "Update a task")
def update_task(arguments: UpdateTask, workplace: Workplace) -> JsonObject:
    """Finish a task (status done), reopen or correct it. Replaces the fields given."""
    report = arguments.report()
    fields = {name: value for name, value in report if value is not None and name in Progress.model_fields}
    for name in ("title", "goal", "status", "priority", "tags", "depends_on"):
        if (value := getattr(arguments, name)) is not None:
            fields[name] = value
    for name in ("current_owner", "repo_path"):
        if (value := getattr(arguments, name)) is not None:
            fields[name] = value or None
    return workplace.store.update_task(
        arguments.task_id, fields, arguments.expected_version, _call_id("update_task", arguments)
    )


# --- Briefs and claims --------------------------------------------------------------------------------


def task_brief(store: Store, task_id: str, max_chars: int = BRIEF_CHARACTERS) -> JsonObject:
    """Return the resume brief of a task, in at most `max_chars` characters of JSON; raises NotFound."""
    task, owner_state = store.get_task_and_owner(task_id)
    return _brief(store, task, owner_state, max_chars)


def _brief(store: Store, task: Task, owner_state: OwnerState | None, max_chars: int) -> JsonObject:
    author, written_at, then = store.last_checkpoint_facts(task.task_id)
    background = Background(owner_state, author, written_at, drift(task.repo_path, then))
    return resume_brief(task, background, max_chars, time.time())


class _Claiming:
    """One call of claim_task, which may take several attempts."""

    def __init__(self, arguments: ClaimTask, workplace: Workplace) -> None:
        self._store = workplace.store
        self._caller = workplace.caller(arguments.agent)
        self._task_id = arguments.task_id
        self._wanted = ClaimFilter(repo_path=arguments.repo_path or None, tag=arguments.tag)
        self._seconds = arguments.wait_seconds or 0
        self._claim: Claim | None = None

    def answer(self) -> JsonObject | Wait:
        if self._seconds:
            return self._attempt() or Wait(self._attempt, self._undo, self._seconds, self._conclude)
        return self._take() or self._nothing()

    def _attempt(self) -> JsonObject | None:
        try:
            return self._take()
        except NotOwner:
            return None  # somebody else has it still

    def _take(self) -> JsonObject | None:
        if self._claim is None:  # else it was taken before, and only its brief could not be read
            if self._task_id is None and not self._store.is_claimable(self._caller.agent, self._wanted):
                return None
            self._claim = self._store.claim_task(self._caller, self._task_id, self._wanted)
        return None if self._claim is None else _claimed(self._store, self._claim)

    def _undo(self) -> None:
        if self._claim is not None:
            self._store.return_claim(self._claim)

    def _conclude(self) -> tuple[JsonObject, bool]:
        try:
            return self._take() or self._nothing(), False
        except ToolError as error:
            return refusal(error), True

    def _nothing(self) -> JsonObject:
        notice = self._store.take_notice(self._caller.agent)
        return {"task": None} if notice is None else {"task": None, "notice": notice}


def _claimed(store: Store, claim: Claim) -> JsonObject:
    facts: JsonObject = {"how": claim.how}
    if claim.sender is not None:
        facts["from"] = claim.sender
    answer: JsonObject = {"task": _brief(store, claim.task, None, BRIEF_CHARACTERS), "claim": facts}
    return answer if claim.notice is None else {**answer, "notice": claim.notice}


def _work_tree(store: Store, task_id: str) -> JsonObject | None:
    """Return the state of the task's work tree, to be kept with a checkpoint."""
    return observe(store.repo_path(task_id))


def _view(arguments: GetTask) -> str:
    """Return which view of a task is asked for; raises InvalidArguments for two, or for a stray argument."""
    given = {name for name in GetTask.model_fields if getattr(arguments, name) is not None} - {"task_id"}
    views = sorted(given & {"artifact", "checkpoint"}) + ([arguments.view] if arguments.view else [])
    if len(views) > 1:
        raise InvalidArguments(f"{' and '.join(views)} were asked for at once.", "Ask for one at a time.")
    view = views[0] if views else ""
    stray = sorted(given - {"view", view, *_VIEWS[view]})
    if stray:
        belongs_to = next(name for name, arguments_of in _VIEWS.items() if stray[0] in arguments_of)
        if belongs_to not in GetTask.model_fields:
            belongs_to = f"view {belongs_to}"
        raise InvalidArguments(
            f"{stray[0]} was given without {belongs_to}.",
            f"It goes with {belongs_to}: give both, or leave it out.",
        )
    return view


def _checkpoint(store: Store, task_id: str, number: int) -> JsonObject:
    checkpoint = store.get_checkpoint(task_id, number)
    facts = checkpoint.model_dump(mode="json", exclude={"progress", "number", "dropped_steps"})
    return {
        "task_id": facts.pop("task_id"),
        "checkpoint": number,
        **facts,
        **checkpoint.progress.model_dump(mode="json"),
        "dropped_steps": checkpoint.dropped_steps,
    }


# --- Artifacts ----------------------------------------------------------------------------------------


def _attach(arguments: AttachArtifact, chunks: Iterable[bytes], workplace: Workplace) -> JsonObject:
    caller = None if arguments.agent is None else workplace.caller(arguments.agent)
    return workplace.store.attach_artifact(
        arguments.task_id, arguments.name, arguments.type or "file", chunks, caller
    )


def _content_bytes(arguments: AttachArtifact) -> bytes:
    content = arguments.content or ""
    if arguments.encoding != "base64":
        return content.encode()
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except ValueError as error:
        raise InvalidArguments(
            f"content is not base64: {error}.", "Encode the bytes again, or send text with encoding utf-8."
        ) from None


def _artifact_chunk(store: Store, task_id: str, number: int, offset: int) -> JsonObject:
    """Return one chunk of an artifact: text cut between characters, anything else as base64."""
    artifact, chunk = store.read_artifact(task_id, number, offset, ARTIFACT_CHUNK_BYTES)
    answer: JsonObject = {"task_id": task_id, "artifact": artifact.model_dump(), "offset": offset}
    if artifact.encoding == "utf-8":
        start, chunk = _whole_characters(chunk)
        answer["offset"] += start
        answer["text"] = chunk.decode()
    else:
        answer["blob"] = base64.b64encode(chunk).decode()
    if (end := answer["offset"] + len(chunk)) < artifact.size:
        answer["next_offset"] = end
    return answer


def _whole_characters(chunk: bytes) -> tuple[int, bytes]:
    """Return where the first whole character of a piece of UTF-8 starts, and all whole ones from there."""
    start = 0
    while start < len(chunk) and chunk[start] & 0xC0 == 0x80:
        start += 1
    decoder = codecs.getincrementaldecoder("utf-8")()
    decoder.decode(chunk[start:])
    unfinished, _ = decoder.getstate()
    return start, chunk[start : len(chunk) - len(unfinished)]


# --- Validation and schema ----------------------------------------------------------------------------


def _call_id(name: str, arguments: Arguments) -> str:
    """Return what makes two calls the same call: the tool and all that was said."""
    said = name + arguments.model_dump_json(exclude_none=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _validated(tool: Tool, arguments: JsonObject) -> Arguments:
    try:
        return tool.arguments.model_validate(arguments)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    kind = TooLarge if problems[0]["type"] in _TOO_LARGE else InvalidArguments
    shown = [_told(problem, tool) for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise kind("; ".join(shown) + ".", _usage(tool))


_TOO_LARGE = ("too_large", "string_too_long")
# Pydantic's words where they would leave a reader guessing.
_RULES = {
    "string_type": "it must be a string",
    "string_too_short": "it must not be empty",
    "string_pattern_mismatch": "it must be letters, digits, '.', '_' or '-', the first a letter or digit",
    "string_too_long": "it has more than {max_length} characters",
    "less_than_equal": "it must be at most {le:g}",
    "greater_than_equal": "it must be at least {ge:g}",
    "list_type": "it must be a list",
    "literal_error": "it must be one of {expected}",
    "enum": "it must be one of {expected}",
}
_PROBLEMS_SHOWN = 5
_VALUE_SHOWN = 60


def _told(problem: ErrorDetails, tool: Tool) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    where = where[1:101]
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) > 1:
        return f"{where} is unknown; there are {', '.join(ReportedRun.model_fields)}"
    if problem["type"] == "extra_forbidden":
        return f"{tool.name} has no argument {where}"
    if problem["type"] in _TOO_LARGE:
        return f"{where}: {problem['msg']}"
    value = json.dumps(problem["input"], default=str)
    value = value if len(value) <= _VALUE_SHOWN else value[:_VALUE_SHOWN] + "..."
    rule = _RULES.get(problem["type"], "{msg}").format(msg=problem["msg"], **problem.get("ctx", {}))
    return f"{where} is {value}: {rule}"


def _usage(tool: Tool) -> str:
    fields = tool.arguments.model_fields
    needed = [name for name, field in fields.items() if field.is_required()]
    optional = [name for name in fields if name not in needed]
    needs = f"needs {', '.join(needed)}" if needed else "needs no argument"
    return f"Nothing was changed. {tool.name} {needs}; it also takes {', '.join(optional)}."


_SCHEMA_MEMBERS = ("type", "description", "enum", "items", "properties", "required")


def _flat_schema(tool: Tool) -> JsonObject:
    """Return the input schema in the subset that every client's model API accepts.

    A root object, each property with a single type, arrays with items; no anyOf, $ref, null or titles.
    Every request of a model pays for it: the fields of a report are described once, with save_checkpoint.
    """
    schema = tool.arguments.model_json_schema()
    flat = _flattened(schema, schema.get("$defs", {}))
    if tool.arguments is not SaveCheckpoint:
        for name in CheckpointArguments.model_fields.keys() & flat["properties"].keys():
            flat["properties"][name].pop("description", None)
    return flat


def _flattened(schema: JsonObject, definitions: JsonObject) -> JsonObject:
    if "anyOf" in schema:  # an optional argument: the alternative to null
        schema = {**schema["anyOf"][0], **schema}
    if "$ref" in schema:  # a definition's own description is for readers of the code
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], "description": None, **schema}
    flat = {name: schema[name] for name in _SCHEMA_MEMBERS if schema.get(name) is not None}
    if "items" in flat:  # of objects the description says all
        items = _flattened(flat["items"], definitions)
        flat["items"] = {"type": "object"} if items["type"] == "object" else items
    if "properties" in flat:
        required_first = sorted(flat["properties"], key=lambda name: name not in flat.get("required", ()))
        flat["properties"] = {
            name: _flattened(schema["properties"][name], definitions) for name in required_first
        }
    return flat
