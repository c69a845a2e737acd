"""The tools: one function each, its argument model directly above it.

`TOOLS` is all there is: what `tools/list` shows (by way of tool_list.json, which tests/make_tool_list.py
writes), what `tools/call` runs and what the README documents derive from the functions decorated with
`tool`. A docstring here is what a model reads: when to call the tool, and what comes back.

Annotations are no strings here: pydantic would have to compile each one anew whenever a server starts.
"""

import base64
import codecs
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field

from arguments import (
    AgentName,
    AnyArtifactType,
    AnyOwnerState,
    AnyStatus,
    Arguments,
    CheckpointArguments,
    Count,
    Encoding,
    FileName,
    FilePath,
    Folder,
    Name,
    NameOrNobody,
    Offset,
    Priority,
    Query,
    ReportArguments,
    SomeText,
    Tag,
    Tags,
    TaskId,
    TaskIds,
    Texts,
    Title,
    View,
    call_id,
    validated,
)
from attachment import chunks_of, open_attachable
from brief import Background, resume_brief
from config import (
    ARTIFACT_CHUNK_BYTES,
    BRIEF_CHARACTERS,
    BRIEF_CHARACTERS_MAX,
    BRIEF_CHARACTERS_MIN,
    CLAIM_WAIT_SECONDS,
    HISTORY_PAGE,
    TASKS_PAGE,
    TASKS_PAGE_MAX,
)
from errors import InvalidArguments, NotOwner, ToolError
from models import PRIORITY, ClaimFilter, NewTask, OwnerState, Progress, Task, TaskFilter
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

    def of(self, session_id: str | None, is_gone: Callable[[], bool]) -> Self:
        """Return the same workplace for calls through a connection."""
        return type(self)(self.store, self.attach_roots, self.on_handoff, session_id, is_gone)

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


Answer = JsonObject | str | Wait  # an object, its JSON text, or what there is to wait for


def call_tool(name: str, arguments: JsonObject, workplace: Workplace) -> tuple[Answer, bool]:
    """Run tool `name` (a key of TOOLS) and return its answer, and whether that is a refusal."""
    tool = TOOLS[name]
    try:
        return tool.run(validated(name, tool.arguments, arguments), workplace), False
    except ToolError as error:
        return refusal(error), True


def refusal(error: ToolError) -> JsonObject:
    """Return the answer of a tool call that cannot be carried out."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


# --- Registering --------------------------------------------------------------------------------------


Run = Callable[[Any, Workplace], Answer]


class Tool(NamedTuple):
    """A tool as it is listed and called; `run` takes the validated arguments.

    Calls of `quick` tools may be answered together, with one commit. So they must not wait for anything but
    the database, and must tell nobody of a change before it is committed; where one has more to do it calls
    Store.require_alone first. Their answers are never a Wait.
    """

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    run: Run
    read_only: bool
    repeatable: bool
    quick: bool


TOOLS: dict[str, Tool] = {}


def tool(
    arguments: type[Arguments],
    title: str,
    read_only: bool = False,
    repeatable: bool = True,
    quick: bool = False,
) -> Callable[[Run], Run]:
    """Register a function under its name; its docstring is the description that a model reads.

    `repeatable` says that the same call again changes nothing more; `quick` as in Tool.
    """

    def register(run: Run) -> Run:
        description = " ".join((run.__doc__ or "").split())
        name = run.__name__
        TOOLS[name] = Tool(name, title, description, arguments, run, read_only, repeatable, quick)
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


@tool(CreateTask, "Create a task", quick=True)
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
    view: View | None = Field(None, description="resume: short brief; history: events")
    max_chars: Annotated[int, Field(ge=BRIEF_CHARACTERS_MIN, le=BRIEF_CHARACTERS_MAX)] | None = Field(
        None, description=f"Of the brief. Default: {BRIEF_CHARACTERS}"
    )
    cursor: str | None = Field(None, description="Of history")
    checkpoint: Count | None = Field(None, description="Show this checkpoint")
    artifact: Count | None = Field(None, description="Show this artifact's content")
    offset: Offset | None = Field(None, description="Start at this byte")


# Which arguments of get_task belong to which view of a task.
_VIEWS = {"artifact": ("offset",), "checkpoint": (), "resume": ("max_chars",), "history": ("cursor",), "": ()}


@tool(GetTask, "Read a task", read_only=True, quick=True)
def get_task(arguments: GetTask, workplace: Workplace) -> JsonObject | str:
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
    return store.get_task_text(task_id)


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


class SaveCheckpoint(CheckpointArguments):
    task_id: TaskId
    agent: AgentName


@tool(SaveCheckpoint, "Save a checkpoint", quick=True)
def save_checkpoint(arguments: SaveCheckpoint, workplace: Workplace) -> JsonObject:
    """Save progress after each step. Takes an unowned task over. Fields left out stay as they are."""
    return workplace.store.save_checkpoint(
        arguments.task_id,
        workplace.caller(arguments.agent),
        arguments.report(),
        call_id("save_checkpoint", arguments),
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
        call_id("handoff_task", arguments),
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
        call_id("mark_exhausted", arguments),
        _work_tree(workplace.store, arguments.task_id),
    )


class AttachArtifact(Arguments):
    task_id: TaskId
    name: FileName
    type: AnyArtifactType | None = Field(None, description="Default: file")
    content: str | None = None  # kept to the byte; its limit is that of the message
    path: FilePath | None = Field(None, description="Of a local file")
    encoding: Encoding | None = Field(None, description="Of content. Default: utf-8")
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
    owner_state: AnyOwnerState | None = None
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


@tool(UpdateTask, "Update a task", quick=True)
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
        arguments.task_id, fields, arguments.expected_version, call_id("update_task", arguments)
    )


# --- Briefs and claims --------------------------------------------------------------------------------


def task_brief(store: Store, task_id: str, max_chars: int = BRIEF_CHARACTERS) -> JsonObject:
    """Return the resume brief of a task, in at most `max_chars` characters of JSON; raises NotFound."""
    task, owner_state = store.get_task_and_owner(task_id)
    return _brief(store, task, owner_state, max_chars)


def _brief(store: Store, task: Task, owner_state: OwnerState | None, max_chars: int) -> JsonObject:
    author, written_at, then = store.last_checkpoint_facts(task.task_id)
    _require_time_for_git(store, task.repo_path)
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
    path = store.repo_path(task_id)
    _require_time_for_git(store, path)
    return observe(path)


def _require_time_for_git(store: Store, repo_path: str | None) -> None:
    """Raise Alone where git will be asked and others would wait for it."""
    if repo_path is not None:
        store.require_alone()


def _view(arguments: GetTask) -> str:
    """Return which view of a task is asked for; raises InvalidArguments for two, or for a stray argument."""
    given = arguments.model_fields_set - {"task_id"}
    if not given:
        return ""
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
    store.require_alone()  # files may be slow, or hang
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
