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
from lifecycle import agent_key, merge, step_key, step_warnings
from models import (
    ClaimKind,
    Handoff,
    OwnerState,
    Progress,
    Report,
    Status,
    Task,
    TestRun,
    TestStatus,
)

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

# --- What a checkpoint merges -------------------------------------------------------------------------

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
    dropped_steps=st.none() | steps,
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
    assert not keys(said) & keys(merged.remaining_steps)


@thoroughly
@given(progresses, reports)
def test_what_was_completed_stays_unless_it_is_sent_as_remaining(progress: Progress, report: Report) -> None:
    """Completed steps keep their order, gain what is new, and lose only what is now sent as remaining."""
    merged = merge(progress, report)
    said = report.completed_steps or []
    again = keys(report.remaining_steps or []) - keys(said) - keys(report.dropped_steps or [])
    all_of_them = list(dict.fromkeys([*progress.completed_steps, *said]))
    assert merged.completed_steps == [step for step in all_of_them if step_key(step) not in again]


@thoroughly
@given(progresses, reports)
def test_every_step_is_accounted_for_or_warned_of(progress: Progress, report: Report) -> None:
    """A step that remained is completed, remains, was dropped, or is told to have vanished."""
    before = a_task(**dict(progress))
    after = lifecycle.checkpoint(before, "Alice", report)
    accounted = keys(after.completed_steps) | keys(after.remaining_steps) | keys(report.dropped_steps or [])
    vanished = [step for step in before.remaining_steps if step_key(step) not in accounted]
    returned = [step for step in before.completed_steps if step_key(step) in keys(after.remaining_steps)]
    told = step_warnings(before, after, report)
    assert [warning.partition(" ")[0] for warning in told] == [
        str(len(steps)) for steps in (vanished, returned) if steps
    ]
    for step in [*vanished, *returned]:
        assert f'"{step}"' in "".join(told) or len(vanished) > 5 or len(returned) > 5


def keys(steps_of: list[str]) -> set[str]:
    return {step_key(step) for step in steps_of}


@thoroughly
@given(progresses, reports)
def test_the_present_is_replaced(progress: Progress, report: Report) -> None:
    """Remaining steps, resume prompt and test results are the new ones where given, else the old ones."""
    merged = merge(progress, report)
    gone = keys(report.completed_steps or []) | keys(report.dropped_steps or [])
    wanted = progress.remaining_steps if report.remaining_steps is None else report.remaining_steps
    assert merged.remaining_steps == [step for step in wanted if step_key(step) not in gone]
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
    """Case, blanks and final punctuation keep no completed or dropped step among the remaining ones."""
    known = Progress(remaining_steps=["before", remaining, "after"])
    assert merge(known, Report(completed_steps=[completed])).remaining_steps == ["before", "after"]
    assert merge(known, Report(dropped_steps=[completed])).remaining_steps == ["before", "after"]
    again = merge(Progress(completed_steps=["before", completed]), Report(remaining_steps=[remaining]))
    assert (again.completed_steps, again.remaining_steps) == (["before"], [remaining])


@pytest.mark.parametrize(
    "other", ["write the test", "writethe tests", "write the tests (2)", "re-write the tests"]
)
def test_a_step_with_other_words_remains(other: str) -> None:
    """A step that only resembles the completed, dropped or remaining one stays where it is."""
    for report in (Report(completed_steps=["write the tests"]), Report(dropped_steps=["write the tests"])):
        assert merge(Progress(remaining_steps=[other]), report).remaining_steps == [other]
    again = merge(Progress(completed_steps=[other]), Report(remaining_steps=["write the tests"]))
    assert again.completed_steps == [other]


def test_completed_wins_within_one_report() -> None:
    """A step named both completed and remaining in one call is completed."""
    merged = merge(Progress(), Report(completed_steps=["a"], remaining_steps=["A.", "b"]))
    assert (merged.completed_steps, merged.remaining_steps) == (["a"], ["b"])


def test_a_completed_step_that_is_sent_as_remaining_leaves_completed() -> None:
    """The newer word counts: what is planned again is no longer done, and everything else stays done."""
    known = Progress(completed_steps=["a", "b"], remaining_steps=["c"])
    merged = merge(known, Report(remaining_steps=["A", "c"]))
    assert (merged.completed_steps, merged.remaining_steps) == (["b"], ["A", "c"])


def test_a_step_that_is_dropped_no_longer_remains() -> None:
    """A dropped step leaves remaining, whether the list is sent anew or left out; completed is untouched."""
    known = Progress(completed_steps=["d"], remaining_steps=["a", "b"])
    for remaining in (None, ["a", "b"]):
        merged = merge(known, Report(dropped_steps=["B.", "D"], remaining_steps=remaining))
        assert (merged.completed_steps, merged.remaining_steps) == (["d"], ["a"])


def test_a_completed_step_is_not_lost_by_being_dropped() -> None:
    """Within one call a step that is sent both as remaining and as dropped does not undo its completion."""
    known = Progress(completed_steps=["a"], remaining_steps=["b"])
    merged = merge(known, Report(remaining_steps=["a", "b"], dropped_steps=["a"]))
    assert (merged.completed_steps, merged.remaining_steps) == (["a"], ["b"])


def test_a_field_left_out_stays_with_its_repeats() -> None:
    """A list that update_task set with repeats is not touched by a report that does not name it."""
    known = Progress(completed_steps=["a", "a"], remaining_steps=["b", "b"], decisions=["c", "c"])
    assert merge(known, NOTHING) == known


@pytest.mark.parametrize(("one", "other"), [("Claude", " claude\t"), ("ÄGYPTEN", "ägypten"), ("any", "ANY ")])
def test_agent_names_compare_without_case_and_blanks(one: str, other: str) -> None:
    """Case and surrounding blanks do not make another agent."""
    assert agent_key(one) == agent_key(other)


def test_blanks_inside_a_name_matter() -> None:
    """Only surrounding blanks are ignored."""
    assert agent_key("agent 1") != agent_key("agent1")


# --- Step conservation --------------------------------------------------------------------------------


def warned(before: dict[str, list[str]], **said: list[str]) -> list[str]:
    """Return what a checkpoint that says `said` is told, on a task that knew `before`."""
    task, report = a_task(**before), Report.model_validate(said)
    return step_warnings(task, lifecycle.checkpoint(task, "Alice", report), report)


KNOWN = {"remaining_steps": ["one", "two", "three"], "completed_steps": ["zero"]}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"remaining_steps": ["one", "two", "three"]},
        {"remaining_steps": ["three", "two", "one", "four"]},
        {"remaining_steps": [" ONE. ", "Two!", "three..."]},
        {"remaining_steps": ["two"], "completed_steps": ["One"], "dropped_steps": ["three."]},
        {"remaining_steps": [], "dropped_steps": ["one", "two", "three"]},
        {"completed_steps": ["one", "two", "three"]},
        {"dropped_steps": ["nobody ever planned this"]},
        {"completed_steps": ["zero"]},
    ],
    ids=str,
)
def test_steps_that_are_accounted_for_need_no_warning(said: dict[str, list[str]]) -> None:
    """A step that is completed, still remains or is named as dropped has not vanished, however spelled."""
    assert warned(KNOWN, **said) == []


@pytest.mark.parametrize(
    ("said", "vanished"),
    [
        ({"remaining_steps": []}, ["one", "two", "three"]),
        ({"remaining_steps": ["one"]}, ["two", "three"]),
        ({"remaining_steps": ["one", "two thirds", "three"]}, ["two"]),
        ({"remaining_steps": [], "completed_steps": ["one"], "dropped_steps": ["two"]}, ["three"]),
        ({"remaining_steps": ["four"], "decisions": ["one", "two", "three"]}, ["one", "two", "three"]),
    ],
    ids=str,
)
def test_a_step_that_vanished_is_told(said: dict[str, list[str]], vanished: list[str]) -> None:
    """What remained and is nowhere any more is named, with the three ways to account for it."""
    (warning,) = warned(KNOWN, **said)
    steps_said = "1 step" if len(vanished) == 1 else f"{len(vanished)} steps"
    named = "; ".join(f'"{step}"' for step in vanished)
    assert warning == (
        f"{steps_said} vanished from remaining_steps: {named}. Report each as completed, remaining, "
        "or in dropped_steps."
    )


def test_a_step_that_came_back_is_told() -> None:
    """A completed step that remains again is named as it was completed, beside what vanished."""
    assert warned(KNOWN, remaining_steps=["one", "two", "three", " ZERO. "]) == [
        '1 step had been completed and remain again: "zero".'
    ]
    vanished, returned = warned(KNOWN, remaining_steps=["zero", "one", "two"])
    assert '"three"' in vanished
    assert '"zero"' in returned


def test_a_warning_is_short() -> None:
    """Five steps are named, each cut at a hundred characters; the others are counted."""
    planned = {"remaining_steps": [f"{number} " + "x" * 200 for number in range(6)]}
    (warning,) = warned(planned, remaining_steps=[])
    assert warning.startswith("6 steps vanished")
    assert warning.count("x" * 98 + "...") == 5
    assert "; and 1 more" in warning
    assert len(warning) < 800


# --- Who may claim ------------------------------------------------------------------------------------

AT_WORK = a_task(status=Status.IN_PROGRESS, current_owner="Bob")


@pytest.mark.parametrize(
    ("task", "owner_state", "how", "sender"),
    [
        (a_task(), None, ClaimKind.OPEN, None),
        (a_task(current_owner=" ALICE"), None, ClaimKind.OPEN, None),
        (a_task(status=Status.IN_PROGRESS), None, ClaimKind.OPEN, None),
        (handed_over("Bob", "alice"), None, ClaimKind.HANDOFF, "Bob"),
        (handed_over("Bob", "any"), None, ClaimKind.HANDOFF, "Bob"),
        (a_task(status=Status.AGENT_EXHAUSTED), None, ClaimKind.EXHAUSTED, None),
        (lifecycle.exhaust(AT_WORK, "Bob", "r", NOTHING, NOW), None, ClaimKind.EXHAUSTED, "Bob"),
        (AT_WORK, OwnerState.GONE, ClaimKind.GONE, "Bob"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_free_task_is_claimed(
    task: Task, owner_state: OwnerState | None, how: ClaimKind, sender: str | None
) -> None:
    """What is nobody's, mine, for me, for anyone, or a dead agent's can be had, and how it came is told."""
    taken, kind, origin = lifecycle.claim(task, "Alice", owner_state)
    assert (kind, origin) == (how, sender)
    changed = {"status": Status.IN_PROGRESS, "current_owner": "Alice"}
    assert taken == task.model_copy(update=changed)


@pytest.mark.parametrize("state", [None, *OwnerState])
def test_ones_own_task_is_claimed_without_a_change(state: OwnerState | None) -> None:
    """Claiming what is mine already is fine, whatever became of the session that it was worked on in."""
    mine = a_task(status=Status.IN_PROGRESS, current_owner="alice ")
    assert lifecycle.claim(mine, "Alice", state) == (mine, ClaimKind.MINE, None)


@pytest.mark.parametrize(
    ("task", "owner_state"),
    [
        (AT_WORK, OwnerState.LIVE),
        (AT_WORK, OwnerState.UNKNOWN),
        (AT_WORK, None),
        (a_task(current_owner="Bob"), None),
        (handed_over("Alice", "Bob"), None),
        (handed_over("Carol", "Bob"), OwnerState.GONE),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_task_of_another_is_not_claimed(task: Task, owner_state: OwnerState | None) -> None:
    """Only a dead owner at work loses a task; what waits for another by name is that agent's."""
    with pytest.raises(NotOwner) as refusal:
        lifecycle.claim(task, "Alice", owner_state)
    assert "'Bob'" in refusal.value.message


@pytest.mark.parametrize("owner", [None, "Alice", "Bob"])
def test_a_done_task_is_not_claimed(owner: str | None) -> None:
    """What is done is nobody's to take, not even its last owner's."""
    with pytest.raises(InvalidState):
        lifecycle.claim(a_task(status=Status.DONE, current_owner=owner), "Alice", OwnerState.GONE)


# --- Who may write ------------------------------------------------------------------------------------


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


# --- What a call makes of a task ----------------------------------------------------------------------


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


# --- update_task --------------------------------------------------------------------------------------


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
