"""What is told about a git work tree: the right numbers, in time, and with nothing of the repository run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import StdioClient, stdio

import repository
from repository import drift, observe

FUTURE = 2_000_000_000  # seconds; a file of that time looks as if it changed after the index was written


def git(folder: Path, *arguments: str, **variables: str) -> str:
    """Run git as a user would, and return its output."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings = ("protocol.file.allow=always", "user.name=n", "user.email=e@e", "init.defaultBranch=main")
    with_settings = [word for setting in settings for word in ("-c", setting)]
    command = ["git", *with_settings, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, env=own | variables)
    return done.stdout.decode().strip()


def commit(folder: Path, **files: str) -> str:
    """Write files, commit all there is, and return the commit."""
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "m")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own settings of git out of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Make a repository on branch main with one commit of the files a, b and c."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder, a="a\n", b="b\n", c="c\n")
    return folder


def seen(folder: Path | str) -> dict[str, Any]:
    state = observe(str(folder))
    assert state is not None
    assert set(state) == {"branch", "commit", "changed"}
    return state


def listing(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return time, mode and content of all that is in a folder, its .git included."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (facts.st_mtime_ns, facts.st_mode, hashlib.sha256(content).hexdigest())
    return found


# --- What is there ------------------------------------------------------------------------------------


def test_a_clean_work_tree_has_no_changed_files(repo: Path) -> None:
    """Branch, commit and the number of changed files are those that git itself tells."""
    head = git(repo, "rev-parse", "HEAD")
    assert seen(repo) == {"branch": "main", "commit": head, "changed": 0}
    assert seen(f"{repo}/") == seen(repo)


def test_what_changed_is_counted_once(repo: Path) -> None:
    """Staged, modified, deleted and untracked files count, each once; ignored ones do not."""
    (repo / "a").write_text("modified\n")
    assert seen(repo)["changed"] == 1
    git(repo, "add", "a")
    assert seen(repo)["changed"] == 1
    (repo / "a").write_text("modified again\n")
    assert seen(repo)["changed"] == 1
    (repo / "b").unlink()
    assert seen(repo)["changed"] == 2
    (repo / "new\nfolder").mkdir()
    (repo / "new\nfolder" / "ü").write_text("u")
    (repo / "new\nfolder" / "v").write_text("v")
    assert seen(repo)["changed"] == 4
    git(repo, "add", "new\nfolder/v")
    assert seen(repo)["changed"] == 4
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "exclude").write_text("*.log\n")
    (repo / "x.log").write_text("x")
    assert seen(repo)["changed"] == 4
    (repo / "c").chmod(0o755)
    assert seen(repo)["changed"] == 5


def test_a_rename_is_a_file_that_went_and_one_that_came(repo: Path) -> None:
    """A file under another name counts under both, whether git was told or not."""
    (repo / "a").rename(repo / "moved")
    assert seen(repo)["changed"] == 2
    git(repo, "add", "--all")
    assert seen(repo)["changed"] == 2


def test_a_folder_inside_tells_of_the_whole_work_tree(repo: Path) -> None:
    """A repo_path inside of a work tree tells what its root tells."""
    (repo / "inside").mkdir()
    commit(repo, **{"inside/a": "1"})
    for name in ("a", "new", "inside/a", "inside/new"):
        (repo / name).write_text("changed")
    assert seen(repo)["changed"] == 4
    assert seen(repo / "inside") == seen(repo)


def test_a_repository_without_a_commit_has_a_branch(tmp_path: Path) -> None:
    """Before the first commit there is a branch and no commit, and all files are new."""
    git(tmp_path, "init", "--quiet", "empty")
    empty = tmp_path / "empty"
    assert seen(empty) == {"branch": "main", "commit": None, "changed": 0}
    (empty / "a").write_text("a")
    (empty / "b").write_text("b")
    git(empty, "add", "a")
    assert seen(empty)["changed"] == 2
    first = commit(empty)
    assert seen(empty) == {"branch": "main", "commit": first, "changed": 0}


def test_a_detached_head_has_no_branch(repo: Path) -> None:
    """On a detached head, also in the middle of a rebase, the branch is None."""
    git(repo, "checkout", "--quiet", "--detach")
    assert seen(repo) == {"branch": None, "commit": git(repo, "rev-parse", "main"), "changed": 0}


def test_conflicts_count_once(repo: Path) -> None:
    """A file in conflict, which the index holds three times, is one changed file."""
    git(repo, "checkout", "--quiet", "-b", "other")
    commit(repo, a="other\n")
    git(repo, "checkout", "--quiet", "main")
    commit(repo, a="main\n")
    with pytest.raises(subprocess.CalledProcessError):
        git(repo, "merge", "other")
    assert seen(repo)["changed"] == 1


def test_a_linked_work_tree_is_one(repo: Path) -> None:
    """A work tree made by `git worktree add` has its own branch and its own changes."""
    git(repo, "worktree", "add", "--quiet", "-b", "side", "../linked")
    linked = repo.parent / "linked"
    (linked / "new").write_text("n")
    assert seen(linked) == {"branch": "side", "commit": git(repo, "rev-parse", "main"), "changed": 1}
    assert seen(repo)["changed"] == 0


def test_a_submodule_is_a_work_tree_of_its_own(repo: Path, tmp_path: Path) -> None:
    """Inside a submodule it is the submodule that is told about; the outer tree does not look into it."""
    git(tmp_path, "init", "--quiet", "outer")
    outer = tmp_path / "outer"
    git(outer, "submodule", "--quiet", "add", str(repo), "inner")
    head = commit(outer)
    inner = outer / "inner"
    (inner / "a").write_text("changed")
    (inner / "folder").mkdir()
    assert seen(inner) == {"branch": "main", "commit": git(repo, "rev-parse", "HEAD"), "changed": 1}
    assert seen(inner / "folder") == seen(inner)
    assert seen(outer) == {"branch": "main", "commit": head, "changed": 0}
    shutil.rmtree(outer / ".git" / "modules" / "inner")
    assert observe(str(inner)) is None
    assert seen(outer)["commit"] == head


Place = Callable[[Path], Path | str]


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _bare(repo: Path) -> Path:
    git(repo.parent, "clone", "--quiet", "--bare", str(repo), "bare")
    return repo.parent / "bare"


def _unknown_format(repo: Path) -> Path:
    git(repo, "config", "core.repositoryFormatVersion", "99")
    return repo


def _unknown_extension(repo: Path) -> Path:
    git(repo, "config", "core.repositoryFormatVersion", "1")
    git(repo, "config", "extensions.nobodyKnows", "true")
    return repo


def _broken_config(repo: Path) -> Path:
    return _written(repo / ".git" / "config", "[core\n").parent.parent


def _broken_index(repo: Path) -> Path:
    return _written(repo / ".git" / "index", "DIRC and no more").parent.parent


def _broken_head(repo: Path) -> Path:
    return _written(repo / ".git" / "HEAD", "nonsense\n").parent.parent


def _endless_config(repo: Path) -> Path:
    os.mkfifo(repo / "fifo")
    git(repo, "config", "include.path", str(repo / "fifo"))
    return repo


PLACES: dict[str, Place] = {
    "nothing": lambda repo: "",
    "a missing folder": lambda repo: repo / "missing",
    "a file": lambda repo: repo / "a",
    "a plain folder": lambda repo: _written(repo.parent / "plain" / "file", "x").parent,
    "a bare repository": _bare,
    "inside of .git": lambda repo: repo / ".git",
    "a NUL": lambda repo: f"{repo}\0",
    "too long a path": lambda repo: "/x" * 2048,
    "a .git that leads nowhere": lambda repo: _written(repo.parent / "o" / ".git", "gitdir: /no").parent,
    "a broken .git": lambda repo: _written(repo.parent / "p" / ".git", "\0").parent,
    "a broken config": _broken_config,
    "a broken index": _broken_index,
    "a broken head": _broken_head,
    "a newer format": _unknown_format,
    "an unknown extension": _unknown_extension,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_what_is_no_work_tree_is_not_told_of(repo: Path, place: Place) -> None:
    """Where there is no work tree that git can read, there is nothing to tell, and nothing fails."""
    path = str(place(repo))
    assert observe(path) is None
    assert drift(path, {"branch": "main", "commit": "0" * 40, "changed": 0}) is None


def test_no_path_is_no_work_tree() -> None:
    """A task without repo_path has no state."""
    assert observe(None) is None
    assert drift(None, {"branch": None, "commit": None, "changed": 0}) is None


def test_a_relative_path_may_look_like_an_option(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is a path, also one that starts with a dash."""
    repo.rename(repo.parent / "-c")
    monkeypatch.chdir(repo.parent)
    assert seen("-c")["branch"] == "main"
    assert observe("--version") is None


def shim(folder: Path, script: str) -> str:
    """Make a `git` that is a shell script, in which $GIT is the real one; return the PATH that finds it."""
    folder.mkdir()
    path = folder / "git"
    path.write_text(f"#!/bin/sh\nGIT='{shutil.which('git')}'\n{script}\n")
    path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_another_users_repository_is_not_told_of(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that git refuses because somebody else owns it (safe.directory) is left alone."""
    script = 'GIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec "$GIT" "$@"'
    monkeypatch.setenv("PATH", shim(tmp_path / "bin", script))
    assert observe(str(repo)) is None
    (tmp_path / ".gitconfig").write_text(f"[safe]\n\tdirectory = {repo}\n")
    assert seen(repo)["branch"] == "main"


# --- How it differs from then -------------------------------------------------------------------------


def says(repo: Path, then: dict[str, Any] | None) -> str:
    found = drift(str(repo), then)
    assert found is not None
    assert set(found) == {"then", "now", "says"}
    assert (found["then"], found["now"]) == (then, seen(repo))
    assert isinstance(found["says"], str)
    return found["says"]


def test_nothing_changed_is_the_same_commit(repo: Path) -> None:
    """An untouched work tree is at the same commit; without a state of then there is no drift."""
    assert says(repo, seen(repo)) == "same commit"
    assert drift(str(repo), None) is None


def test_new_commits_are_counted(repo: Path) -> None:
    """Commits made since are so many ahead, and changed files are told beside them."""
    then = seen(repo)
    commit(repo, a="1")
    assert says(repo, then) == "1 commit ahead"
    commit(repo, a="2")
    (repo / "b").write_text("changed")
    told = says(repo, then)
    assert "2 commits ahead" in told
    assert "1 changed file" in told
    assert "0 then" in told


def test_another_branch_is_told(repo: Path) -> None:
    """A switch to another branch is told, with its name; so is a head that was detached."""
    then = seen(repo)
    git(repo, "checkout", "--quiet", "-b", "other/branch")
    told = says(repo, then)
    assert "other branch" in told
    assert "other/branch" in told
    assert "same commit" in told
    git(repo, "checkout", "--quiet", "--detach")
    assert "detached" in says(repo, then)


def test_a_commit_that_is_gone_is_told(repo: Path) -> None:
    """A commit that was rebased away and pruned is no longer there; until pruned, history has diverged."""
    commit(repo, a="then")
    then = seen(repo)
    git(repo, "commit", "--quiet", "--amend", "--message", "other")
    assert "1 ahead and 1 behind" in says(repo, then)
    assert "diverged" in says(repo, then)
    git(repo, "reflog", "expire", "--expire=now", "--all")
    git(repo, "gc", "--quiet", "--prune=now")
    told = says(repo, then)
    assert "no longer there" in told
    assert "ahead" not in told


def test_a_reset_is_behind(repo: Path) -> None:
    """A work tree that was set back is behind, and has not diverged."""
    commit(repo, a="then")
    then = seen(repo)
    git(repo, "reset", "--quiet", "--hard", "HEAD~1")
    told = says(repo, then)
    assert "1 commit behind" in told
    assert "diverged" not in told


def test_the_first_commit_is_told(tmp_path: Path) -> None:
    """From no commit to the first one the commit differs."""
    git(tmp_path, "init", "--quiet", "empty")
    then = seen(tmp_path / "empty")
    assert says(tmp_path / "empty", then) == "same commit"
    commit(tmp_path / "empty")
    assert "differs" in says(tmp_path / "empty", then)


@pytest.mark.parametrize("then", ["HEAD", "main", "--all", "0" * 40, "0" * 39, "$(touch x)", "^HEAD", ""])
def test_a_commit_of_then_is_never_an_option_or_a_name(repo: Path, then: str) -> None:
    """What stands in the database as a commit of then is compared as a commit or not at all."""
    told = says(repo, {"branch": "main", "commit": then, "changed": 0})
    assert "differs" in told or "no longer there" in told


# --- In time, or not at all ---------------------------------------------------------------------------


def seconds_of(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def test_a_git_that_hangs_is_given_up(repo: Path, tmp_path: Path) -> None:
    """A checkpoint in a repository whose git does not answer succeeds after 2 s, without a state."""
    path = shim(tmp_path / "bin", "exec sleep 60")
    with stdio(tmp_path, PATH=path) as client:
        client.call("create_task", task_id="t", title="T", goal="G", repo_path=str(repo))
        started = time.monotonic()
        client.call("save_checkpoint", task_id="t", agent="a")
        assert 1 < time.monotonic() - started < 3
        assert seconds_of(lambda: client.call("get_task", task_id="t", view="resume")) < 1
        assert "drift" not in client.call("get_task", task_id="t", view="resume")


def test_all_calls_of_git_share_one_limit(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many calls that are slow, and a last one that hangs, take 2 s in all."""
    then = seen(repo)
    commit(repo, a="now")
    script = 'case "$*" in *rev-list*) exec sleep 60;; esac; sleep 0.2; exec "$GIT" "$@"'
    monkeypatch.setenv("PATH", shim(tmp_path / "bin", script))
    assert seconds_of(lambda: drift(str(repo), then)) < 2.8


def test_a_commit_that_was_not_looked_at_is_not_gone(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When time is up before the commit of then was found, it is not told to be missing."""
    then = seen(repo)
    commit(repo, a="now")
    script = f'case "$*" in *{then["commit"]}*) exec sleep 60;; esac; exec "$GIT" "$@"'
    monkeypatch.setenv("PATH", shim(tmp_path / "bin", script))
    monkeypatch.setattr(repository, "GIT_SECONDS", 0.5)
    told = says(repo, then)
    assert "differs" in told
    assert "no longer there" not in told


def test_a_config_that_never_ends_is_given_up(repo: Path) -> None:
    """A configuration that is read from a pipe nobody writes to costs the time limit, not more."""
    _endless_config(repo)
    assert seconds_of(lambda: observe(str(repo), 0.2)) < 1
    assert observe(str(repo), 0.2) is None


@pytest.mark.parametrize("missing", ["an empty folder", "no folder"])
def test_without_git_all_works(repo: Path, tmp_path: Path, missing: str) -> None:
    """On a machine without git tasks have no state of a repository, and nothing fails."""
    (tmp_path / "nothing").mkdir()
    path = str(tmp_path / "nothing") if missing == "an empty folder" else "/nonexistent"
    with stdio(tmp_path, PATH=path) as client:
        client.call("create_task", task_id="t", title="T", goal="G", repo_path=str(repo))
        client.call("save_checkpoint", task_id="t", agent="a")
        assert "drift" not in client.call("get_task", task_id="t", view="resume")


# --- Nothing runs, nothing is written -----------------------------------------------------------------


class Traps(NamedTuple):
    """Commands that leave a file behind when they are run."""

    folder: Path

    def command(self, name: str) -> str:
        return f"{sys.executable} -c 'import sys; open(sys.argv[1], \"w\")' {self.folder / name}; false"

    def script(self, path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n: > '{self.folder / path.name}'\nexit 1\n")
        path.chmod(0o755)
        return str(path)

    def sprung(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def traps(tmp_path: Path) -> Traps:
    (tmp_path / "traps").mkdir()
    return Traps(tmp_path / "traps")


HOOKS = (
    "post-index-change", "post-checkout", "post-commit", "pre-commit", "post-merge", "pre-auto-gc",
    "reference-transaction", "fsmonitor-watchman", "post-rewrite", "pre-rebase", "pre-push",
)  # fmt: skip
CALLED = ("rev-parse", "symbolic-ref", "diff-files", "diff-index", "ls-files", "rev-list", "config", "status")
PROGRAMS = (
    "core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.askPass", "core.gitProxy",
    "core.alternateRefsCommand", "credential.helper", "diff.external", "diff.trap.command",
    "diff.trap.textconv", "merge.trap.driver", "gpg.program", "gpg.ssh.program",
    "gpg.ssh.defaultKeyCommand", "sequence.editor",
    "interactive.diffFilter", "uploadpack.packObjectsHook", "remote.origin.uploadpack", "man.trap.cmd",
    "filter.trap.smudge", "trailer.trap.command", "browser.trap.cmd", "web.browser",
)  # fmt: skip


def arm(git_folder: Path, traps: Traps) -> None:
    """Fill a repository's own configuration with programs, by every way that it can name one."""
    config = [(name, traps.command(name)) for name in PROGRAMS]
    config += [(f"alias.{name}", f"!{traps.command(f'alias.{name}')}") for name in CALLED]
    config += [(f"pager.{name}", traps.command(f"pager.{name}")) for name in CALLED]
    config += [
        ("core.hooksPath", str(git_folder / "trapped-hooks")),
        ("remote.origin.url", f"ext::sh -c '{traps.script(git_folder / 'trapped' / 'remote-ext')}'"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.partialCloneFilter", "blob:none"),
        ("protocol.ext.allow", "always"),
        ("protocol.allow", "always"),
        ("core.untrackedCache", "true"),
        ("core.attributesFile", str(git_folder / "trapped-attributes")),
        ("diff.autoRefreshIndex", "true"),
        ("diff.submodule", "diff"),
        ("status.submoduleSummary", "true"),
        ("submodule.recurse", "true"),
        ("log.showSignature", "true"),
        ("feature.manyFiles", "true"),
        ("include.path", str(git_folder / "trapped-include")),
    ]
    for hook in HOOKS:
        traps.script(git_folder / "hooks" / hook)
        traps.script(git_folder / "trapped-hooks" / hook)
    (git_folder / "trapped-attributes").write_text("* filter=trap diff=trap merge=trap\n")
    (git_folder / "info").mkdir(exist_ok=True)
    (git_folder / "info" / "attributes").write_text("* filter=trap diff=trap merge=trap\n")
    include = traps.command("included").replace("\\", "\\\\").replace('"', '\\"')
    (git_folder / "trapped-include").write_text(
        f'[core]\n\tfsmonitor = "{include}"\n[filter "trap"]\n\tclean = "{include}"\n\trequired = true\n'
    )
    for name, value in config:
        git(git_folder, "config", "--file", "config", "--add", name, value)


def racy(folder: Path) -> None:
    """Make all files look as if they changed in the moment that the index was written.

    Of such a file git reads the content, through its filter, before it believes that it is unchanged.
    """
    for path in folder.rglob("*"):
        if path.is_file() and ".git" not in path.relative_to(folder).parts:
            os.utime(path, (FUTURE, FUTURE))
    git(folder, "add", "--all", "--renormalize")
    git(folder, "update-index", "--really-refresh")


def test_a_hostile_repository_runs_nothing(repo: Path, traps: Traps) -> None:
    """Monitors, hooks, aliases, filters, pagers, helpers, remotes: none runs, and the numbers are right."""
    then = seen(repo)
    racy(repo)
    head = commit(repo, a="newer\n")
    racy(repo)
    (repo / "new").write_text("n")
    arm(repo / ".git", traps)
    before = listing(repo)
    assert seen(repo) == {"branch": "main", "commit": head, "changed": 1}
    assert "1 commit ahead" in says(repo, then)
    assert traps.sprung() == set()
    assert listing(repo) == before
    subprocess.run(["git", "status"], cwd=repo, capture_output=True, check=False)
    assert {"core.fsmonitor", "included"} & traps.sprung(), "the traps do not work"


@pytest.mark.parametrize("kind", ["clean", "process"])
@pytest.mark.parametrize("driver", ["trap", "a=b", "a.b", "a=b.c", "ü", "Trap"])
def test_no_filter_runs_whatever_its_name(repo: Path, traps: Traps, kind: str, driver: str) -> None:
    """A file is never read through a filter of the repository, however that is named and made."""
    (repo / ".gitattributes").write_text(f"* filter={driver}\n")
    commit(repo)
    racy(repo)
    with (repo / ".git" / "config").open("a") as config:
        command = traps.command("filter").replace("\\", "\\\\").replace('"', '\\"')
        config.write(f'[filter "{driver}"]\n\t{kind} = "{command}"\n\trequired\n')
    before = listing(repo)
    state = observe(str(repo))
    assert traps.sprung() == set()
    assert listing(repo) == before
    assert state is None or state["changed"] == 0
    subprocess.run(["git", "status"], cwd=repo, capture_output=True, check=False)
    assert traps.sprung() == {"filter"}, "the trap does not work"


def test_a_hostile_submodule_runs_nothing(repo: Path, tmp_path: Path, traps: Traps) -> None:
    """A submodule's own configuration runs nothing either, asked from outside or inside."""
    git(tmp_path, "init", "--quiet", "outer")
    outer = tmp_path / "outer"
    git(outer, "submodule", "--quiet", "add", str(repo), "inner")
    git(outer, "config", "--file", ".gitmodules", "submodule.inner.ignore", "none")
    head = commit(outer)
    racy(outer / "inner")
    (outer / "inner" / "new").write_text("n")
    arm(outer / ".git" / "modules" / "inner", traps)
    git(outer, "config", "submodule.inner.update", f"!{traps.command('update')}")
    git(outer, "config", "submodule.inner.active", "true")
    before = listing(outer)
    assert seen(outer) == {"branch": "main", "commit": head, "changed": 0}
    assert seen(outer / "inner")["changed"] == 1
    assert traps.sprung() == set()
    assert listing(outer) == before
    subprocess.run(["git", "status"], cwd=outer, capture_output=True, check=False)
    assert traps.sprung(), "the traps do not work"


def test_a_work_trees_own_config_runs_nothing(repo: Path, traps: Traps) -> None:
    """What stands in config.worktree (extensions.worktreeConfig) is as hostile, and runs nothing."""
    racy(repo)
    git(repo, "config", "core.repositoryFormatVersion", "1")
    git(repo, "config", "extensions.worktreeConfig", "true")
    git(repo, "config", "--worktree", "core.fsmonitor", traps.command("fsmonitor"))
    git(repo, "config", "--worktree", "filter.trap.clean", traps.command("clean"))
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text("* filter=trap\n")
    before = listing(repo)
    assert seen(repo)["changed"] == 0
    assert traps.sprung() == set()
    assert listing(repo) == before
    subprocess.run(["git", "status"], cwd=repo, capture_output=True, check=False)
    assert traps.sprung() == {"fsmonitor", "clean"}, "the traps do not work"


def test_a_work_tree_elsewhere_is_left_alone(repo: Path, tmp_path: Path, traps: Traps) -> None:
    """core.worktree may point anywhere: nothing fails, runs or is written here or there."""
    other = tmp_path / "other"
    other.mkdir()
    for name in "abc":
        (other / name).write_text(f"{name}\n")
    (other / ".gitattributes").write_text("* filter=trap\n")
    git(repo, "config", "core.worktree", str(other))
    git(repo, "config", "filter.trap.clean", traps.command("clean"))
    before = listing(repo), listing(other)
    observe(str(repo))
    observe(str(other))
    assert traps.sprung() == set()
    assert (listing(repo), listing(other)) == before


@pytest.mark.parametrize("left_out", ["blob:none", "tree:0"])
def test_what_is_missing_is_not_fetched(repo: Path, tmp_path: Path, traps: Traps, left_out: str) -> None:
    """In a partial clone nothing is fetched, from whatever remote, and what cannot be told is not told."""
    git(repo, "config", "uploadpack.allowFilter", "true")
    (repo / "folder").mkdir()
    commit(repo, **{"folder/d": "d\n"})
    git(tmp_path, "clone", "--quiet", f"--filter={left_out}", f"file://{repo}", "partial")
    partial = tmp_path / "partial"
    then = seen(partial)
    commit(repo, a="newer\n")
    git(partial, "fetch", "--quiet")
    git(partial, "update-ref", "HEAD", "refs/remotes/origin/main")
    before = listing(partial)
    observe(str(partial))
    drift(str(partial), then)
    assert listing(partial) == before
    git(partial, "config", "remote.origin.url", f"ext::sh -c '{traps.script(tmp_path / 'x' / 'ext')}'")
    git(partial, "config", "protocol.ext.allow", "always")
    git(partial, "config", "remote.origin.uploadpack", traps.command("uploadpack"))
    before = listing(partial)
    observe(str(partial))
    drift(str(partial), then)
    assert traps.sprung() == set()
    assert listing(partial) == before


def test_the_servers_own_variables_do_not_matter(
    repo: Path, tmp_path: Path, traps: Traps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever GIT_* the server was started with, this repository is looked at, and nothing runs."""
    racy(repo)
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text("* filter=trap\n")
    wanted = seen(repo)
    nowhere = str(tmp_path / "nowhere")
    for name in (
        "DIR",
        "WORK_TREE",
        "INDEX_FILE",
        "OBJECT_DIRECTORY",
        "COMMON_DIR",
        "NAMESPACE",
        "EXEC_PATH",
    ):
        monkeypatch.setenv(f"GIT_{name}", nowhere)
    for name in ("EXTERNAL_DIFF", "SSH_COMMAND", "SSH", "ASKPASS", "PAGER", "EDITOR", "PROXY_COMMAND"):
        monkeypatch.setenv(f"GIT_{name}", traps.command(name))
    for name in ("TRACE", "TRACE_SETUP", "TRACE2", "TRACE2_EVENT", "TRACE_PERFORMANCE"):
        monkeypatch.setenv(f"GIT_{name}", str(traps.folder / name))
    settings = {"core.fsmonitor": "fsmonitor", "filter.trap.clean": "clean"}
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
    for number, (key, name) in enumerate(settings.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", traps.command(name))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'core.bare=true'")
    monkeypatch.setenv("GIT_OPTIONAL_LOCKS", "1")
    before = listing(repo)
    assert seen(repo) == wanted
    assert traps.sprung() == set()
    assert listing(repo) == before


def test_nothing_is_written_to_an_outdated_index(repo: Path) -> None:
    """An index that any other command of git would bring up to date stays as it is, to the byte."""
    for name in "abc":
        os.utime(repo / name, (FUTURE, FUTURE))
    git(repo, "config", "core.untrackedCache", "true")
    (repo / "new").write_text("n")
    before = listing(repo)
    seen(repo)
    drift(str(repo), seen(repo))
    assert listing(repo) == before
    git(repo, "status")
    assert listing(repo) != before, "this index needed no refresh"


def test_a_locked_index_is_no_obstacle(repo: Path) -> None:
    """While another git holds the index, or died holding it, there is an answer all the same."""
    (repo / ".git" / "index.lock").write_text("")
    (repo / "new").write_text("n")
    assert seen(repo)["changed"] == 1


# --- On a server --------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Iterator[StdioClient]:
    with stdio(tmp_path) as client:
        yield client


@pytest.mark.parametrize("how", ["save_checkpoint", "handoff_task", "mark_exhausted"])
def test_a_checkpoint_remembers_the_work_tree(client: StdioClient, repo: Path, how: str) -> None:
    """Whichever call makes a checkpoint, the brief compares the work tree of then with that of now."""
    client.call("create_task", task_id="t", title="T", goal="G", repo_path=str(repo))
    assert "drift" not in client.call("get_task", task_id="t", view="resume")
    (repo / "new").write_text("n")
    then = seen(repo)
    needed = {
        "save_checkpoint": {"agent": "a"},
        "handoff_task": {"from_agent": "a", "to_agent": "any", "reason": "r"},
        "mark_exhausted": {"agent": "a", "reason": "r"},
    }
    client.call(how, task_id="t", completed_steps=["s"], **needed[how])
    assert client.call("get_task", task_id="t", view="resume")["drift"]["says"].startswith("same commit")
    commit(repo)
    told = client.call("claim_task", task_id="t", agent="a")["task"]["drift"]
    assert told == {"then": then, "now": seen(repo), "says": "1 commit ahead"}


def test_a_work_tree_that_is_gone_is_not_told_of(client: StdioClient, repo: Path) -> None:
    """A repository that was removed since leaves the brief without drift."""
    client.call("create_task", task_id="t", title="T", goal="G", repo_path=str(repo))
    client.call("save_checkpoint", task_id="t", agent="a")
    assert "drift" in client.call("get_task", task_id="t", view="resume")
    shutil.rmtree(repo)
    assert "drift" not in client.call("get_task", task_id="t", view="resume")


def test_no_place_makes_a_checkpoint_fail(client: StdioClient, repo: Path) -> None:
    """Whatever repo_path points to, a checkpoint is saved and its brief is made."""
    places = [
        "",
        str(repo / "a"),
        str(repo / "missing"),
        ".",
        "~",
        "-c",
        "/proc/self",
        "/dev/null",
        "a\nb",
        "ü",
    ]
    for number, path in enumerate(places):
        client.call("create_task", task_id=f"t{number}", title="T", goal="G", repo_path=path)
        client.call("save_checkpoint", task_id=f"t{number}", agent="a")
        assert "drift" not in client.call("get_task", task_id=f"t{number}", view="resume"), path


def test_the_end_of_a_session_remembers_the_work_tree(tmp_path: Path, repo: Path) -> None:
    """A server that ends in good order notes the state of the repositories of its agent's tasks."""
    with stdio(tmp_path) as first:
        first.call("create_task", task_id="t", title="T", goal="G", repo_path=str(repo))
        first.call("save_checkpoint", task_id="t", agent="a")
        commit(repo, a="at the end")
        assert first.close() == 0
    with stdio(tmp_path) as second:
        ended = second.call("get_task", task_id="t", view="history")["events"][0]
        assert ended["what"] == "session_ended"
        assert ended["repository"] == seen(repo)


def test_asking_is_quick(repo: Path) -> None:
    """Asking a small repository takes a fraction of the limit."""
    assert min(seconds_of(lambda: observe(str(repo))) for _ in range(5)) < 0.5
