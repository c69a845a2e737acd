"""The tools: one function each, its argument model directly above it (design section 4).

The registry at the end of this room is all there is: what `tools/list` shows, what `tools/call` accepts
and runs, and what the README documents derive from the functions decorated with `tool`. A docstring here
is what a model reads: when to call the tool, and what comes back. Arguments are lenient in what real
clients send (null for "left out", a list as JSON text, one string for a list), strict in their names.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
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
from config import (
    ARTIFACT_CHUNK_BYTES,
    ARTIFACT_NAME_CHARACTERS,
    ID_CHARACTERS,
    LIST_ENTRIES,
    PATH_CHARACTERS,
    QUERY_CHARACTERS,
    TASKS_PAGE,
    TASKS_PAGE_MAX,
    TEXT_BYTES,
    TITLE_CHARACTERS,
)
from errors import InvalidArguments, TooLarge, ToolError
from lifecycle import agent_key
from models import ANYONE, ArtifactType, NewTask, Report, Status, TaskFilter, TestRun, TestStatus
from store import Store

JsonObject = dict[str, Any]


class Workplace(NamedTuple):
    """What the tools work with. `attach_roots` is empty where files may not be attached by path."""

    store: Store
    attach_roots: tuple[str, ...]


class Tool(NamedTuple):
    """A tool as it is listed and called; `run` takes the validated arguments."""

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Any, Workplace], JsonObject]
    read_only: bool


TOOLS: dict[str, Tool] = {}


def call_tool(name: str, arguments: JsonObject, workplace: Workplace) -> tuple[JsonObject, bool]:
    """Run tool `name` (a key of TOOLS) and return its answer, and whether that is a refusal."""
    tool = TOOLS[name]
    try:
        return tool.run(_validated(tool, arguments), workplace), False
    except ToolError as error:
        return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}, True


def list_tools() -> list[JsonObject]:
    """Return the tools as `tools/list` shows them, in the newest revision's shape."""
    return [
        {
            "name": tool.name,
            "title": tool.title,
            "description": tool.description,
            "inputSchema": _flat_schema(tool.arguments),
            # Every write is safe to repeat, nothing reaches beyond the task store, and nothing is
            # destroyed: what update_task replaces stays in the event log. Some hosts refuse tools that
            # do not say so.
            "annotations": {
                "readOnlyHint": tool.read_only,
                "destructiveHint": False,
                "idempotentHint": True,
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
            except ValueError:
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

    completed_steps: Texts | None = Field(None, description="Steps done; added to those known")
    remaining_steps: Texts | None = Field(None, description="All steps still to do; replaces the list")
    resume_prompt: Text | None = Field(None, description="What the next agent must know to go on at once")
    test_results: ReportedRuns | None = Field(None, description="Latest test runs; replaces the list")
    decisions: Texts | None = Field(None, description="Decisions made, with the reason")
    dead_ends: Texts | None = Field(None, description="What was tried and failed")
    files: Texts | None = Field(None, description="Files touched or worth reading")

    def report(self) -> Report:
        """Return what the call says about the work."""
        said = {name: getattr(self, name) for name in Report.model_fields}
        if self.test_results is not None:
            said["test_results"] = [reported.test_run() for reported in self.test_results]
        return Report.model_construct(**said)


# --- Registering --------------------------------------------------------------------------------------


def tool(
    arguments: type[Arguments], title: str, read_only: bool = False
) -> Callable[[Callable[[Any, Workplace], JsonObject]], Callable[[Any, Workplace], JsonObject]]:
    """Register a function under its name; its docstring is the description that a model reads."""

    def register(run: Callable[[Any, Workplace], JsonObject]) -> Callable[[Any, Workplace], JsonObject]:
        description = " ".join((run.__doc__ or "").split())
        TOOLS[run.__name__] = Tool(run.__name__, title, description, arguments, run, read_only)
        return run

    return register


# --- The tools ----------------------------------------------------------------------------------------


class CreateTask(Arguments):
    task_id: TaskId | None = Field(None, description="Chosen by the server if left out")
    title: Title
    goal: SomeText = Field(description="What is to be achieved, and how one can tell")
    repo_path: Folder | None = None
    remaining_steps: Texts | None = None
    agent: AgentName | None = Field(None, description="Who creates it")


@tool(CreateTask, "Create a task")
def create_task(arguments: CreateTask, workplace: Workplace) -> JsonObject:
    """Put work on record before starting it, so that any agent can continue it. Returns the task_id."""
    return workplace.store.create_task(
        NewTask(
            task_id=arguments.task_id,
            title=arguments.title,
            goal=arguments.goal,
            repo_path=arguments.repo_path or None,
            remaining_steps=list(dict.fromkeys(arguments.remaining_steps or [])),
            agent=arguments.agent,
        )
    )


class GetTask(Arguments):
    task_id: TaskId
    artifact: Count | None = Field(None, description="Return this artifact's content instead")
    offset: Offset | None = Field(None, description="Continue it at this byte")
    checkpoint: Count | None = Field(None, description="Return this checkpoint instead")


@tool(GetTask, "Read a task", read_only=True)
def get_task(arguments: GetTask, workplace: Workplace) -> JsonObject:
    """Read a whole task before you work on it: goal, steps, resume prompt, decisions, dead ends, tests,
    artifacts. Or one artifact's content, in chunks, or one earlier checkpoint.
    """
    if arguments.artifact is not None and arguments.checkpoint is not None:
        raise InvalidArguments("artifact and checkpoint were both given.", "Ask for one at a time.")
    if arguments.artifact is not None:
        return _artifact_chunk(workplace.store, arguments.task_id, arguments.artifact, arguments.offset or 0)
    if arguments.offset is not None:
        raise InvalidArguments("offset was given without artifact.", "Give the artifact's number too.")
    if arguments.checkpoint is not None:
        checkpoint = workplace.store.get_checkpoint(arguments.task_id, arguments.checkpoint)
        return checkpoint.model_dump(mode="json")
    return workplace.store.get_task(arguments.task_id).model_dump(mode="json")


class SaveCheckpoint(ReportArguments):
    task_id: TaskId
    agent: AgentName


@tool(SaveCheckpoint, "Save a checkpoint")
def save_checkpoint(arguments: SaveCheckpoint, workplace: Workplace) -> JsonObject:
    """Save progress after each step and before anything risky. Takes an unowned task, or one handed to you.
    Fields left out stay as they are. Returns the checkpoint's number.
    """
    return workplace.store.save_checkpoint(
        arguments.task_id, arguments.agent, arguments.report(), _call_id("save_checkpoint", arguments)
    )


class HandoffTask(ReportArguments):
    task_id: TaskId
    from_agent: AgentName
    to_agent: Name = Field(description="Agent name, or 'any' for whoever comes first")
    reason: SomeText


@tool(HandoffTask, "Hand a task off")
def handoff_task(arguments: HandoffTask, workplace: Workplace) -> JsonObject:
    """Pass your task to another agent, with a last checkpoint in the same call. Call it before your context
    or quota ends, or when another agent fits better.
    """
    return workplace.store.handoff_task(
        arguments.task_id,
        arguments.from_agent,
        arguments.to_agent,
        arguments.reason,
        arguments.report(),
        _call_id("handoff_task", arguments),
    )


class MarkExhausted(ReportArguments):
    task_id: TaskId
    agent: AgentName
    reason: SomeText


@tool(MarkExhausted, "Give a task up")
def mark_exhausted(arguments: MarkExhausted, workplace: Workplace) -> JsonObject:
    """Free your task when you cannot go on and know no successor, with a last checkpoint in the same call."""
    return workplace.store.mark_exhausted(
        arguments.task_id,
        arguments.agent,
        arguments.reason,
        arguments.report(),
        _call_id("mark_exhausted", arguments),
    )


class AttachArtifact(Arguments):
    task_id: TaskId
    name: FileName
    type: Annotated[ArtifactType, BeforeValidator(_keyword)] | None = Field(None, description="Default: file")
    content: str | None = None  # kept to the byte; its limit is that of the message
    path: FilePath | None = Field(None, description="A local file to attach, instead of content")
    encoding: Annotated[Literal["utf-8", "base64"], BeforeValidator(_encoding)] | None = Field(
        None, description="Of content. Default: utf-8"
    )
    agent: AgentName | None = None


@tool(AttachArtifact, "Attach an artifact")
def attach_artifact(arguments: AttachArtifact, workplace: Workplace) -> JsonObject:
    """Keep a file, diff or log with a task: by path where you can (cheap), else by content. Returns the
    artifact's number.
    """
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
    query: Query | None = Field(None, description="Words that title or goal must hold")
    limit: Annotated[int, Field(ge=1, le=TASKS_PAGE_MAX)] | None = Field(
        None, description=f"Default: {TASKS_PAGE}"
    )
    cursor: str | None = Field(None, description="next_cursor of the page before")


@tool(ListTasks, "List tasks", read_only=True)
def list_tasks(arguments: ListTasks, workplace: Workplace) -> JsonObject:
    """Find tasks, newest change first: what waits for you (status handoff_ready, current_owner you), or
    what is open. Returns short rows; read one with get_task.
    """
    wanted = TaskFilter(
        status=arguments.status,
        current_owner=arguments.current_owner,
        repo_path=arguments.repo_path or None,
        query=arguments.query,
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
    expected_version: Count | None = Field(None, description="Refuse if the task has another version")


@tool(UpdateTask, "Update a task")
def update_task(arguments: UpdateTask, workplace: Workplace) -> JsonObject:
    """Correct a task, finish it (status done) or reopen it. Replaces each field that is given; to report
    progress use save_checkpoint.
    """
    report = arguments.report()
    fields = {name: value for name, value in report if value is not None}
    for name in ("title", "goal", "status"):
        if (value := getattr(arguments, name)) is not None:
            fields[name] = value
    for name in ("current_owner", "repo_path"):
        if (value := getattr(arguments, name)) is not None:
            fields[name] = value or None
    return workplace.store.update_task(
        arguments.task_id, fields, arguments.expected_version, _call_id("update_task", arguments)
    )


# --- Artifacts ----------------------------------------------------------------------------------------


def _attach(arguments: AttachArtifact, chunks: Iterable[bytes], workplace: Workplace) -> JsonObject:
    return workplace.store.attach_artifact(
        arguments.task_id, arguments.name, arguments.type or "file", chunks, arguments.agent
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
    if offset > artifact.size:
        raise InvalidArguments(
            f"offset {offset} is past the end of artifact {number}, which has {artifact.size} bytes.",
            "Leave offset out to read from the start.",
        )
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
_PROBLEMS_SHOWN = 5
_VALUE_SHOWN = 60


def _told(problem: ErrorDetails, tool: Tool) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])[1:]
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{tool.name} has no argument {where}"
    if problem["type"] in _TOO_LARGE:
        return f"{where}: {problem['msg']}"
    value = json.dumps(problem["input"], default=str)
    value = value if len(value) <= _VALUE_SHOWN else value[:_VALUE_SHOWN] + "..."
    return f"{where} is {value}: {problem['msg']}"


def _usage(tool: Tool) -> str:
    fields = tool.arguments.model_fields
    needed = [name for name, field in fields.items() if field.is_required()]
    optional = [name for name in fields if name not in needed]
    needs = f"needs {', '.join(needed)}" if needed else "needs no argument"
    return f"Nothing was changed. {tool.name} {needs}; it also takes {', '.join(optional)}."


_SCHEMA_MEMBERS = ("type", "description", "enum", "minimum", "items", "properties", "required")


def _flat_schema(arguments: type[Arguments]) -> JsonObject:
    """Return the input schema in the subset that every client's model API accepts.

    A root object, each property with a single type, arrays with items; no anyOf, $ref, null or titles.
    """
    schema = arguments.model_json_schema()
    return _flattened(schema, schema.get("$defs", {}))


def _flattened(schema: JsonObject, definitions: JsonObject) -> JsonObject:
    if "anyOf" in schema:  # an optional argument: the alternative to null
        schema = {**schema["anyOf"][0], **schema}
    if "$ref" in schema:  # a definition's own description is for readers of the code
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], "description": None, **schema}
    flat = {name: schema[name] for name in _SCHEMA_MEMBERS if schema.get(name) is not None}
    if "items" in flat:
        flat["items"] = _flattened(flat["items"], definitions)
    if "properties" in flat:
        required_first = sorted(flat["properties"], key=lambda name: name not in flat.get("required", ()))
        flat["properties"] = {
            name: _flattened(schema["properties"][name], definitions) for name in required_first
        }
    return flat
