"""The rules of a task's life as pure functions: ownership, statuses, and what a checkpoint merges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lifecycle
from config import HANDOFFS_KEPT, MERGED_LIST_ENTRIES
from errors import Conflict, InvalidState, NotOwner, TooLarge
from lifecycle import agent_key, merge, step_key
from models import Handoff, Progress, Report, Status, Task, TestRun, TestStatus

NOW = "2031-01-01T00:00:00.000Z"
NOTHING = Report()
FINDINGS = ("completed_steps", "decisions", "dead_ends", "files")
Action = Callable[[Task, str], Task]


def a_task(**members: Any) -> Task:
    """Return an open task without an owner, but for `members`."""
    empty: dict[str, Any] = {name: [] for name in ("artifacts", "handoffs")}
    about = {"task_id": "t", "title": "Title", "goal": "Goal", "repo_path": None}
    stored = {"created_at": NOW, "updated_at": NOW, "version": 3}
    life = {"status": Status.OPEN, "current_owner": None}
    return Task(**{**dict(Progress()), **empty, **about, **stored, **life, **members})


def handed_over(sender: str, addressee: str, **members: Any) -> Task:
    """Return a task that waits for its addressee."""
    transfer = Handoff(from_agent=sender, to_agent=addressee, reason="tired", created_at=NOW)
    return a_task(status=Status.HANDOFF_READY, current_owner=addressee, handoffs=[transfer], **members)


def checkpoint(task: Task, agent: str) -> Task:
    return lifecycle.checkpoint(task, agent, NOTHING)


def handoff(task: Task, agent: str) -> Task:
    return lifecycle.handoff(task, agent, "Zoe", "because", NOTHING, NOW)


def exhaust(task: Task, agent: str) -> Task:
    return lifecycle.exhaust(task, agent, "quota", NOTHING, NOW)


every_action = pytest.mark.parametrize("action", [checkpoint, handoff, exhaust])

# --- What a checkpoint merges ---------------------------------------------------------------------------

# Few and similar words, so that repeats and near repeats are frequent.
steps = st.lists(st.sampled_from(["a", "A", " a ", "a.", "b", "b c", "B  C!", "d", "…"]), max_size=6)
findings = steps.map(lambda values: list(dict.fromkeys(values)))
runs = st.lists(st.builds(TestRun, summary=st.text(max_size=3)), max_size=2)
progresses = st.builds(
    Progress,
    completed_steps=findings,
    remaining_steps=steps,
    resume_prompt=st.none() | st.text(max_size=3),
    test_results=runs,
    decisions=findings,
    dead_ends=findings,
    files=findings,
)
reports = st.builds(
    Report,
    completed_steps=st.none() | steps,
    remaining_steps=st.none() | steps,
    resume_prompt=st.none() | st.text(max_size=3),
    test_results=st.none() | runs,
    decisions=st.none() | steps,
    dead_ends=st.none() | steps,
    files=st.none() | steps,
)
thoroughly = settings(max_examples=200, deadline=None)


@thoroughly
@given(progresses, reports)
def test_findings_are_only_ever_added_in_order(progress: Progress, report: Report) -> None:
    """Decisions, dead ends and files keep what was known, then gain what is new, each exactly once."""
    merged = merge(progress, report)
    for name in ("decisions", "dead_ends", "files"):
        known, said = getattr(progress, name), getattr(report, name) or []
        new = [entry for entry in dict.fromkeys(said) if entry not in known]
        assert getattr(merged, name) == known + new


@thoroughly
@given(progresses, reports)
def test_what_is_reported_as_completed_is_kept_and_no_longer_remains(
    progress: Progress, report: Report
) -> None:
    """Every step reported as completed is in that list, and none of them remains, however it is spelled."""
    merged = merge(progress, report)
    said = report.completed_steps or []
    assert set(said) <= set(merged.completed_steps)
    keys = {step_key(step) for step in said}
    assert not [step for step in merged.remaining_steps if step_key(step) in keys]


@thoroughly
@given(progresses, reports)
def test_the_present_is_replaced(progress: Progress, report: Report) -> None:
    """Remaining steps, resume prompt and test results are the new ones where given, else the old ones."""
    merged = merge(progress, report)
    completed = {step_key(step) for step in report.completed_steps or []}
    wanted = progress.remaining_steps if report.remaining_steps is None else report.remaining_steps
    assert merged.remaining_steps == [step for step in wanted if step_key(step) not in completed]
    for name in ("resume_prompt", "test_results"):
        said = getattr(report, name)
        assert getattr(merged, name) == (getattr(progress, name) if said is None else said)


@thoroughly
@given(progresses, reports)
def test_a_report_merged_twice_is_merged_once(progress: Progress, report: Report) -> None:
    """Saying the same again adds nothing."""
    once = merge(progress, report)
    assert merge(once, report) == once


@thoroughly
@given(progresses)
def test_a_silent_report_changes_nothing(progress: Progress) -> None:
    """A field left out stays as it is."""
    assert merge(progress, NOTHING) == progress


@pytest.mark.parametrize("name", ["remaining_steps", "test_results"])
def test_an_empty_list_clears_the_present(name: str) -> None:
    """`[]` empties a list that describes the present."""
    full = Progress(remaining_steps=["a"], test_results=[TestRun(summary="s", status=TestStatus.PASSED)])
    assert getattr(merge(full, Report.model_validate({name: []})), name) == []


@pytest.mark.parametrize("name", FINDINGS)
def test_an_empty_list_erases_no_finding(name: str) -> None:
    """`[]` for a list that grows adds nothing and takes nothing away."""
    full = Progress.model_validate({name: ["a", "b"]})
    assert merge(full, Report.model_validate({name: []})) == full


@pytest.mark.parametrize("name", FINDINGS)
def test_a_merged_list_is_full_at_its_limit(name: str) -> None:
    """A list that grows takes MERGED_LIST_ENTRIES entries and refuses one more with the way out."""
    known = [f"entry {number}" for number in range(MERGED_LIST_ENTRIES - 1)]
    progress = Progress.model_validate({name: known})
    merged = merge(progress, Report.model_validate({name: ["last", known[0]]}))
    assert getattr(merged, name) == [*known, "last"]
    with pytest.raises(TooLarge) as refusal:
        merge(merged, Report.model_validate({name: ["one more"]}))
    assert f"{MERGED_LIST_ENTRIES + 1}" in refusal.value.message
    assert "update_task" in refusal.value.hint


@pytest.mark.parametrize(
    ("completed", "remaining"),
    [
        ("Write the tests", "write the tests"),
        ("write the tests", "  Write \t the\ntests "),
        ("write the tests.", "write the tests"),
        ("write the tests", "Write the tests!"),
        ("write the tests ...", "write the tests…"),
        ("Straße prüfen", "STRASSE PRÜFEN"),
    ],
)
def test_a_completed_step_leaves_remaining(completed: str, remaining: str) -> None:
    """Case, blanks and final punctuation do not keep a completed step among the remaining ones."""
    known = Progress(remaining_steps=["before", remaining, "after"])
    assert merge(known, Report(completed_steps=[completed])).remaining_steps == ["before", "after"]


@pytest.mark.parametrize(
    "other", ["write the test", "writethe tests", "write the tests (2)", "re-write the tests"]
)
def test_a_step_with_other_words_remains(other: str) -> None:
    """A step that only resembles the completed one stays."""
    merged = merge(Progress(remaining_steps=[other]), Report(completed_steps=["write the tests"]))
    assert merged.remaining_steps == [other]


def test_completed_wins_within_one_report() -> None:
    """A step named both completed and remaining in one call is completed."""
    merged = merge(Progress(), Report(completed_steps=["a"], remaining_steps=["A.", "b"]))
    assert (merged.completed_steps, merged.remaining_steps) == (["a"], ["b"])


@pytest.mark.parametrize(("one", "other"), [("Claude", " claude\t"), ("ÄGYPTEN", "ägypten"), ("any", "ANY ")])
def test_agent_names_compare_without_case_and_blanks(one: str, other: str) -> None:
    """Case and surrounding blanks do not make another agent."""
    assert agent_key(one) == agent_key(other)


def test_blanks_inside_a_name_matter() -> None:
    """Only surrounding blanks are ignored."""
    assert agent_key("agent 1") != agent_key("agent1")


# --- Who may write --------------------------------------------------------------------------------------


@every_action
@pytest.mark.parametrize(
    "task",
    [
        a_task(),
        a_task(status=Status.AGENT_EXHAUSTED),
        a_task(status=Status.IN_PROGRESS, current_owner="Alice"),
        a_task(status=Status.IN_PROGRESS, current_owner="  aLICE "),
        a_task(status=Status.OPEN, current_owner="Alice"),
        handed_over("Bob", "alice"),
        handed_over("Bob", "any"),
    ],
    ids=lambda task: f"{task.status}-{task.current_owner}",
)
def test_an_agent_may_write(action: Action, task: Task) -> None:
    """Its own task, one that nobody has, and one handed to it or to anyone, is an agent's to write."""
    assert action(task, "Alice").status in (
        Status.IN_PROGRESS,
        Status.HANDOFF_READY,
        Status.AGENT_EXHAUSTED,
    )


@every_action
@pytest.mark.parametrize("status", [Status.OPEN, Status.IN_PROGRESS, Status.AGENT_EXHAUSTED])
def test_another_agents_task_is_refused(action: Action, status: Status) -> None:
    """Whatever its status, a task with an owner is not written by another agent; the refusal names both."""
    with pytest.raises(NotOwner) as refusal:
        action(a_task(status=status, current_owner="Bob"), "Alice")
    assert "'Bob'" in refusal.value.message
    assert "'Alice'" in refusal.value.message
    assert "handoff_task" in refusal.value.hint


@every_action
def test_a_task_handed_to_another_is_refused(action: Action) -> None:
    """A bystander cannot take what waits for somebody else."""
    with pytest.raises(NotOwner, match="waits for it"):
        action(handed_over("Bob", "Carol"), "Alice")


@pytest.mark.parametrize("action", [checkpoint, exhaust])
def test_a_sender_no_longer_writes(action: Action) -> None:
    """Who handed a task off cannot checkpoint or exhaust it any more."""
    with pytest.raises(NotOwner):
        action(handed_over("Bob", "Carol"), "Bob")


def test_a_sender_redirects_until_pick_up() -> None:
    """A waiting handoff may be readdressed by its sender; once it is picked up, no more."""
    waiting = handed_over("Bob", "Carol")
    redirected = handoff(waiting, " bob ")
    assert redirected.current_owner == "Zoe"
    assert [transfer.to_agent for transfer in redirected.handoffs] == ["Zoe", "Carol"]
    with pytest.raises(NotOwner):
        checkpoint(redirected, "Carol")
    with pytest.raises(NotOwner):
        handoff(checkpoint(redirected, "Zoe"), "Bob")


@every_action
@pytest.mark.parametrize("owner", [None, "Alice", "Bob", "any"])
def test_a_done_task_is_not_worked_on(action: Action, owner: str | None) -> None:
    """A done task takes no checkpoint, handoff or exhaustion from anybody; the hint says to reopen it."""
    with pytest.raises(InvalidState) as refusal:
        action(a_task(status=Status.DONE, current_owner=owner), "Alice")
    assert '"open"' in refusal.value.hint


@every_action
@pytest.mark.parametrize("task", [a_task(status=Status.DONE), a_task(current_owner="Bob")])
def test_no_hint_spells_out_an_override(action: Action, task: Task) -> None:
    """No refusal tells an agent how to overwrite the owner of a task."""
    with pytest.raises((InvalidState, NotOwner)) as refusal:
        action(task, "Alice")
    assert "current_owner" not in refusal.value.message + refusal.value.hint


# --- What a call makes of a task ------------------------------------------------------------------------


def test_a_checkpoint_takes_the_task() -> None:
    """A checkpoint moves an unowned task into in_progress under the agent that wrote it."""
    taken = lifecycle.checkpoint(a_task(), "Alice", Report(decisions=["d"]))
    assert (taken.status, taken.current_owner, taken.decisions) == (Status.IN_PROGRESS, "Alice", ["d"])


def test_a_handoff_addresses_the_task() -> None:
    """A handoff makes the addressee the owner and keeps sender, reason and time, latest first."""
    first = lifecycle.handoff(a_task(), "Alice", "Bob", "quota", NOTHING, NOW)
    assert (first.status, first.current_owner) == (Status.HANDOFF_READY, "Bob")
    later = "2031-01-01T00:00:01.000Z"
    second = lifecycle.handoff(first, "Bob", "ANY", "no idea", NOTHING, later)
    assert second.current_owner == "any"
    assert second.handoffs == [
        Handoff(from_agent="Bob", to_agent="any", reason="no idea", created_at=later),
        Handoff(from_agent="Alice", to_agent="Bob", reason="quota", created_at=NOW),
    ]


def test_exhaustion_frees_the_task() -> None:
    """An exhausted agent leaves the task to whoever comes, with its reason and its last report."""
    mine = a_task(status=Status.IN_PROGRESS, current_owner="Alice")
    free = lifecycle.exhaust(mine, "Alice", "quota", Report(resume_prompt="go on"), NOW)
    assert (free.status, free.current_owner, free.resume_prompt) == (Status.AGENT_EXHAUSTED, None, "go on")
    assert free.handoffs == [Handoff(from_agent="Alice", to_agent=None, reason="quota", created_at=NOW)]
    assert checkpoint(free, "Bob").current_owner == "Bob"


def test_handoffs_shown_are_bounded() -> None:
    """A task shows its latest HANDOFFS_KEPT handoffs and no more."""
    task = a_task()
    for number in range(HANDOFFS_KEPT + 1):
        assert len(task.handoffs) == number
        task = lifecycle.handoff(task, "Alice", "Alice", f"reason {number}", NOTHING, NOW)
    assert len(task.handoffs) == HANDOFFS_KEPT
    assert task.handoffs[0].reason == f"reason {HANDOFFS_KEPT}"


@pytest.mark.parametrize("action", [checkpoint, handoff, exhaust])
def test_a_rule_leaves_the_task_it_was_given(action: Action) -> None:
    """Rules return a new task and never alter the one at hand."""
    task = a_task(remaining_steps=["a"])
    before = task.model_copy(deep=True)
    action(task, "Alice")
    assert task == before


# --- update_task ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", list(Status))
@pytest.mark.parametrize("before", list(Status))
def test_update_may_set_any_status_but_done_is_only_reopened(before: Status, after: Status) -> None:
    """Every status leads to every other one, except that from done only open and in_progress are reached."""
    task = a_task(status=before, current_owner="Alice")
    if before is Status.DONE and after in (Status.HANDOFF_READY, Status.AGENT_EXHAUSTED):
        with pytest.raises(InvalidState, match="only be reopened"):
            lifecycle.update(task, {"status": after}, None)
    else:
        assert lifecycle.update(task, {"status": after}, None).status is after


@pytest.mark.parametrize("status", [Status.OPEN, Status.AGENT_EXHAUSTED])
def test_a_status_of_nobody_frees_the_task(status: Status) -> None:
    """Setting open or agent_exhausted takes the owner away, unless the same call names one."""
    task = a_task(status=Status.IN_PROGRESS, current_owner="Alice")
    assert lifecycle.update(task, {"status": status}, None).current_owner is None
    named = lifecycle.update(task, {"status": status, "current_owner": "Bob"}, None)
    assert named.current_owner == "Bob"


def test_update_replaces_what_it_is_given() -> None:
    """update_task is the eraser: a list it is given is the list, and everything else stays."""
    task = a_task(decisions=["a", "b"], files=["f"], remaining_steps=["r"], completed_steps=["c"])
    updated = lifecycle.update(task, {"decisions": ["b"], "completed_steps": []}, None)
    assert updated == task.model_copy(update={"decisions": ["b"], "completed_steps": []})


def test_update_that_changes_nothing_returns_the_task() -> None:
    """What is there already is no change, not even of a done task."""
    task = a_task(status=Status.DONE, decisions=["a"])
    assert lifecycle.update(task, {"status": Status.DONE, "decisions": ["a"]}, None) is task


def test_a_done_task_is_corrected_while_it_is_reopened() -> None:
    """Fields of a done task change only in a call that reopens it."""
    task = a_task(status=Status.DONE)
    with pytest.raises(InvalidState):
        lifecycle.update(task, {"title": "Other"}, None)
    reopened = lifecycle.update(task, {"title": "Other", "status": Status.OPEN}, None)
    assert (reopened.title, reopened.status) == ("Other", Status.OPEN)


@pytest.mark.parametrize("expected", [1, 2, 4])
def test_another_version_is_a_conflict(expected: int) -> None:
    """expected_version other than the task's own is refused, and the refusal tells the task's own."""
    with pytest.raises(Conflict, match="version 3") as refusal:
        lifecycle.update(a_task(), {"title": "Other"}, expected)
    assert "get_task" in refusal.value.hint


def test_the_expected_version_is_accepted() -> None:
    """expected_version equal to the task's own changes nothing about an update."""
    assert lifecycle.update(a_task(), {"title": "Other"}, 3).title == "Other"
