"""What the arguments of the tools may be, and how a call is told what is wrong with them.

Lenient in what real clients send (null for "left out", a list as JSON text, one string for a list), strict in
names: a typo must not lose data.

Annotations are no strings here: pydantic would have to compile each one anew whenever a server starts.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from config import (
    ARTIFACT_NAME_CHARACTERS,
    DEPENDENCIES,
    ID_CHARACTERS,
    LIST_ENTRIES,
    PATH_CHARACTERS,
    QUERY_CHARACTERS,
    TAG_CHARACTERS,
    TAGS,
    TEXT_BYTES,
    TITLE_CHARACTERS,
)
from errors import InvalidArguments, TooLarge
from lifecycle import agent_key
from models import ANYONE, ArtifactType, Model, OwnerState, Report, Status, TestRun, TestStatus

JsonObject = dict[str, Any]

# --- Types --------------------------------------------------------------------------------------------


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
AnyOwnerState = Annotated[OwnerState, BeforeValidator(_keyword)]
AnyArtifactType = Annotated[ArtifactType, BeforeValidator(_keyword)]
View = Annotated[Literal["resume", "history"], BeforeValidator(_keyword)]
Encoding = Annotated[Literal["utf-8", "base64"], BeforeValidator(_encoding)]
Tag = Annotated[str, _characters(1, TAG_CHARACTERS), AfterValidator(_printable), AfterValidator(str.casefold)]
Tags = Annotated[list[Tag], BeforeValidator(_list), AfterValidator(_unique), _at_most(TAGS)]
TaskIds = Annotated[list[TaskId], BeforeValidator(_list), AfterValidator(_unique), _at_most(DEPENDENCIES)]
Priority = Annotated[int, Field(ge=0, le=4)]
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
Offset = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Arguments(Model):
    """Base of all arguments: an unknown name is an error, since a typo must not lose data."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
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


class CheckpointArguments(ReportArguments):
    """A report that is kept as a checkpoint."""

    dropped_steps: Texts | None = Field(None, description="Given up on purpose")


# --- Validation ---------------------------------------------------------------------------------------


def call_id(name: str, arguments: Arguments) -> str:
    """Return what makes two calls the same call: the tool and all that was said."""
    said = name + arguments.model_dump_json(exclude_none=True)
    return hashlib.sha256(said.encode()).hexdigest()


def validated(tool: str, model: type[Arguments], given: JsonObject) -> Arguments:
    """Return the arguments of a call of `tool`.

    Raises InvalidArguments or TooLarge, with what is wrong and what would do.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    kind = TooLarge if problems[0]["type"] in _TOO_LARGE else InvalidArguments
    shown = [_told(problem, tool) for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise kind("; ".join(shown) + ".", _usage(tool, model))


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


def _told(problem: ErrorDetails, tool: str) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    where = where[1:101]
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) > 1:
        return f"{where} is unknown; there are {', '.join(ReportedRun.model_fields)}"
    if problem["type"] == "extra_forbidden":
        return f"{tool} has no argument {where}"
    if problem["type"] in _TOO_LARGE:
        return f"{where}: {problem['msg']}"
    value = json.dumps(problem["input"], default=str)
    value = value if len(value) <= _VALUE_SHOWN else value[:_VALUE_SHOWN] + "..."
    rule = _RULES.get(problem["type"], "{msg}").format(msg=problem["msg"], **problem.get("ctx", {}))
    return f"{where} is {value}: {rule}"


def _usage(tool: str, model: type[Arguments]) -> str:
    fields = model.model_fields
    needed = [name for name, field in fields.items() if field.is_required()]
    optional = [name for name in fields if name not in needed]
    needs = f"needs {', '.join(needed)}" if needed else "needs no argument"
    return f"Nothing was changed. {tool} {needs}; it also takes {', '.join(optional)}."
