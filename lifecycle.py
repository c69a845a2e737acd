"""The rules of a task's life: who may write it, what a call makes of it. Pure functions on models.

Every function takes a task as it is and returns it as it shall be, or raises a ToolError and leaves all
as it was. The store calls them inside its transaction; they know neither SQL nor files nor clocks.
"""

from __future__ import annotations

from typing import Any

from config import HANDOFFS_KEPT, MERGED_LIST_ENTRIES
from errors import Conflict, InvalidState, NotOwner, TooLarge
from models import ANYONE, ClaimKind, Handoff, OwnerState, Progress, Report, Status, Task

_APPENDED = ("completed_steps", "decisions", "dead_ends", "files")
_REPLACED = ("remaining_steps", "resume_prompt", "test_results")
_UNOWNED = (Status.OPEN, Status.AGENT_EXHAUSTED)


def agent_key(name: str) -> str:
    """Return what agent names are compared by: case and surrounding blanks do not count."""
    return name.strip().casefold()


def step_key(step: str) -> str:
    """Return what steps are compared by: case, blanks and final punctuation do not count."""
    return " ".join(step.casefold().split()).rstrip(".,;:!?… ")


def checkpoint(task: Task, agent: str, report: Report) -> Task:
    """`agent` reports progress and, if nobody has the task, takes it."""
    _require_writer(task, agent)
    return _with(task, report, status=Status.IN_PROGRESS, current_owner=agent)


def claim(task: Task, agent: str, owner_state: OwnerState | None) -> tuple[Task, ClaimKind, str | None]:
    """`agent` takes the task. Returns it, how it came, and from whom, if from anybody.

    `owner_state` is that of an owner at work. A task of another agent that lives, or was handed to
    another by name, is refused with NotOwner; one that is done with InvalidState.
    """
    _require_not_done(task)
    owner = task.current_owner
    is_mine = owner is not None and agent_key(owner) == agent_key(agent)
    taken = task.model_copy(update={"status": Status.IN_PROGRESS, "current_owner": agent})
    sender = task.handoffs[0].from_agent if task.handoffs else None
    if task.status is Status.IN_PROGRESS and is_mine:
        return task, ClaimKind.MINE, None
    if task.status is Status.IN_PROGRESS and owner is not None and owner_state is OwnerState.GONE:
        return taken, ClaimKind.GONE, owner
    _require_writer(task, agent)
    if task.status is Status.HANDOFF_READY:
        return taken, ClaimKind.HANDOFF, sender
    if task.status is Status.AGENT_EXHAUSTED:
        return taken, ClaimKind.EXHAUSTED, sender
    return taken, ClaimKind.OPEN, None


def step_warnings(before: Task, after: Task, report: Report) -> list[str]:
    """Return what a checkpoint should make its author look at again: steps must not quietly vanish.

    Every step that remained is completed, still remains, or is named as dropped.
    """
    accounted = {
        step_key(step)
        for steps in (after.completed_steps, after.remaining_steps, report.dropped_steps or [])
        for step in steps
    }
    vanished = [step for step in before.remaining_steps if step_key(step) not in accounted]
    remaining = {step_key(step) for step in after.remaining_steps}
    returned = [step for step in before.completed_steps if step_key(step) in remaining]
    warnings = []
    if vanished:
        warnings.append(
            f"{_counted(vanished)} vanished from remaining_steps: {_quoted(vanished)}. Report each as "
            "completed, remaining, or in dropped_steps."
        )
    if returned:
        warnings.append(f"{_counted(returned)} had been completed and remain again: {_quoted(returned)}.")
    return warnings


def _counted(steps: list[str]) -> str:
    return f"{len(steps)} step{'s' if len(steps) != 1 else ''}"


def _quoted(steps: list[str]) -> str:
    shown = "; ".join(f'"{step if len(step) <= 100 else step[:100] + "..."}"' for step in steps[:5])
    return shown if len(steps) <= 5 else f"{shown}; and {len(steps) - 5} more"


def some_of(names: list[str]) -> str:
    """Return names for a sentence: a few of them, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def handoff(task: Task, from_agent: str, to_agent: str, reason: str, report: Report, now: str) -> Task:
    """`from_agent` passes the task on. Until it is picked up, the sender may redirect it."""
    if not _is_redirected_by(task, from_agent):
        _require_writer(task, from_agent)
    if agent_key(to_agent) == ANYONE:
        to_agent = ANYONE
    transfer = Handoff(from_agent=from_agent, to_agent=to_agent, reason=reason, created_at=now)
    return _with(
        task,
        report,
        status=Status.HANDOFF_READY,
        current_owner=to_agent,
        handoffs=[transfer, *task.handoffs][:HANDOFFS_KEPT],
    )


def exhaust(task: Task, agent: str, reason: str, report: Report, now: str) -> Task:
    """`agent` cannot go on and names no successor: the task is free for whoever comes."""
    _require_writer(task, agent)
    transfer = Handoff(from_agent=agent, to_agent=None, reason=reason, created_at=now)
    return _with(
        task,
        report,
        status=Status.AGENT_EXHAUSTED,
        current_owner=None,
        handoffs=[transfer, *task.handoffs][:HANDOFFS_KEPT],
    )


def update(task: Task, fields: dict[str, Any], expected_version: int | None) -> Task:
    """Set what `fields` names, whoever owns the task: how people and supervisors put things right.

    A status that means "nobody's" frees the task, unless the same call names an owner.
    """
    if expected_version not in (None, task.version):
        raise Conflict(
            f"Task '{task.task_id}' is at version {task.version}, not {expected_version}.",
            "Somebody changed it since you read it: read it again with get_task, then call again "
            f"with expected_version {task.version}.",
        )
    status = fields.get("status")
    changed = task.model_copy(update=fields)
    if changed == task:
        return task
    if task.status is Status.DONE and status not in (Status.OPEN, Status.IN_PROGRESS):
        raise InvalidState(
            f"Task '{task.task_id}' is done; a done task can only be reopened.",
            'Reopen it by giving status "open" or "in_progress" in the same call.',
        )
    if status in _UNOWNED and "current_owner" not in fields:
        changed = changed.model_copy(update={"current_owner": None})
    return changed


def merge(progress: Progress, report: Report) -> Progress:
    """Return `progress` with what `report` says: nothing once reported is lost by a checkpoint.

    Lists of findings grow, in order and without exact repeats; what describes the present is replaced.
    A step is either completed or remaining: the newer word counts, and completed wins within one call.
    Raises TooLarge when a list that grows is full.
    """
    merged: dict[str, Any] = {}
    for name in _APPENDED:
        merged[name] = _appended(getattr(progress, name), getattr(report, name) or [], name)
    for name in _REPLACED:
        new = getattr(report, name)
        merged[name] = getattr(progress, name) if new is None else new
    completed_now = {step_key(step) for step in report.completed_steps or []}
    dropped = {step_key(step) for step in report.dropped_steps or []}
    again = {step_key(step) for step in report.remaining_steps or []} - completed_now - dropped
    merged["completed_steps"] = _except(merged["completed_steps"], again)
    merged["remaining_steps"] = _except(merged["remaining_steps"], completed_now | dropped)
    return Progress.model_construct(**merged)


def _appended(old: list[str], new: list[str], name: str) -> list[str]:
    merged = list(dict.fromkeys([*old, *new])) if new else old
    if len(merged) > MERGED_LIST_ENTRIES:
        raise TooLarge(
            f"{name} would hold {len(merged)} entries; the limit is {MERGED_LIST_ENTRIES}.",
            f"Condense it: call update_task with a shorter {name} list, then repeat this call.",
        )
    return merged


def _except(steps: list[str], keys: set[str]) -> list[str]:
    return [step for step in steps if step_key(step) not in keys] if keys else steps


def _with(task: Task, report: Report, **changes: Any) -> Task:
    merged = merge(task.progress(), report)
    return task.model_copy(update={**dict(merged), **changes})


def _is_redirected_by(task: Task, agent: str) -> bool:
    return (
        task.status is Status.HANDOFF_READY
        and bool(task.handoffs)
        and agent_key(task.handoffs[0].from_agent) == agent_key(agent)
    )


def _require_writer(task: Task, agent: str) -> None:
    """Raise unless `agent` may write: ."""
    _require_not_done(task)
    owner = task.current_owner
    if owner is None or agent_key(owner) in (ANYONE, agent_key(agent)):
        return
    waiting = " and waits for it" if task.status is Status.HANDOFF_READY else ""
    raise NotOwner(
        f"Task '{task.task_id}' belongs to '{owner}'{waiting}, not to '{agent}'.",
        f"Nothing was saved. '{owner}' can pass it on with handoff_task to '{agent}', or with "
        "mark_exhausted. Once that agent's session has ended, claim_task takes the task over; "
        "claim_task without task_id finds other work.",
    )


def _require_not_done(task: Task) -> None:
    if task.status is Status.DONE:
        raise InvalidState(
            f"Task '{task.task_id}' is done.",
            'To work on it again, reopen it first: update_task with status "open".',
        )
