"""What state a git work tree is in, asked without letting the repository run anything.

A repository's configuration is hostile until proven otherwise: fsmonitor, hooks, filters, credential
helpers and fetches are all programs that it may name. So only plumbing that neither refreshes the index
nor reads file contents is called, with those settings overridden, no locks taken, no prompt possible, and
within GIT_SECONDS in all. Whatever goes wrong, the answer is None: drift is a hint, never a failure.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from config import GIT_SECONDS

JsonObject = dict[str, Any]

_OVERRIDES = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.untrackedCache=false",
    "core.sshCommand=false",
    "core.askPass=",
    "credential.helper=",
    "diff.external=",
    "submodule.recurse=false",
    "protocol.allow=never",
)
_COMMAND = [
    "git", "--no-optional-locks", "--no-replace-objects", "--literal-pathspecs",
    *(word for override in _OVERRIDES for word in ("-c", override)),
]  # fmt: skip
_FILTER = re.compile(r"filter\..+\.(clean|smudge|process|required)", re.IGNORECASE | re.DOTALL)
_ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_CONFIG_NOSYSTEM": "1",
    "LC_ALL": "C",
}
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def observe(repo_path: str | None, seconds: float = GIT_SECONDS) -> JsonObject | None:
    """Return branch, commit and number of changed files of the work tree at `repo_path`.

    `branch` is None on a detached head, `commit` None before the first one. Returns None where there is
    no git, no work tree, or no answer within `seconds`.
    """
    if not repo_path or not os.path.isdir(repo_path):
        return None
    return _observe(_Git(repo_path, seconds))


def _observe(git: _Git) -> JsonObject | None:
    inside, _, top = (git.line("rev-parse", "--is-inside-work-tree", "--show-toplevel") or "").partition("\n")
    if inside != "true" or not top:
        return None
    git.folder = top  # files are listed below the folder that git is in
    commit = git.line("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    branch = git.line("symbolic-ref", "--quiet", "--short", "HEAD")
    changed = _changed_files(git, commit)
    if git.is_late or changed is None:
        return None
    return {"branch": branch or None, "commit": commit or None, "changed": changed}


def drift(repo_path: str | None, then: JsonObject | None) -> JsonObject | None:
    """Return how the work tree differs from `then`, what `observe` returned at a checkpoint."""
    if then is None or not repo_path or not os.path.isdir(repo_path):
        return None
    git = _Git(repo_path, GIT_SECONDS)
    now = _observe(git)
    return None if now is None else {"then": then, "now": now, "says": _says(git, then, now)}


def _says(git: _Git, then: JsonObject, now: JsonObject) -> str:
    said = []
    if then["branch"] != now["branch"]:
        said.append(f"other branch: {now['branch'] or 'detached head'}")
    said.append(_commit_drift(git, then["commit"], now["commit"]))
    if now["changed"]:
        said.append(f"{now['changed']} changed files now, {then['changed']} then")
    return "; ".join(said)


def _commit_drift(git: _Git, then: str | None, now: str | None) -> str:
    if then == now:
        return "same commit"
    if then is None or now is None or _COMMIT.fullmatch(then) is None:
        return "the commit differs"
    if git.line("rev-parse", "--verify", "--quiet", then + "^{commit}") != then:
        return "the commit differs" if git.is_late else "the commit of then is no longer there"
    counts = git.line("rev-list", "--left-right", "--count", f"{then}...{now}")
    behind, _, ahead = (counts or "").partition("\t")
    if not (behind.isdigit() and ahead.isdigit()):
        return "the commit differs"
    if "0" not in (ahead, behind):
        return f"{ahead} ahead and {behind} behind: history has diverged"
    count, way = (ahead, "ahead") if behind == "0" else (behind, "behind")
    return f"{count} commit{'s' if count != '1' else ''} {way}"


def _changed_files(git: _Git, commit: str | None) -> int | None:
    """Count files that are staged, modified or untracked, by what the index knows of them."""
    listings = [
        git.output("diff-files", "--name-only", "-z", "--no-ext-diff", "--ignore-submodules=all"),
        git.output("ls-files", "--others", "--exclude-standard", "-z"),
    ]
    if commit:
        listings.append(
            git.output("diff-index", "--cached", "--name-only", "-z", "--ignore-submodules=all", commit)
        )
    else:
        listings.append(git.output("ls-files", "-z"))
    names: set[bytes] = set()
    for listing in listings:
        if listing is None:
            return None
        names.update(listing.split(b"\0"))
    return len(names - {b""})


class _Git:
    """Git in one folder, for so many seconds in all."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder = folder
        self._deadline = time.monotonic() + seconds
        self._settings: dict[str, str] = {}
        self.is_late = False
        self._disarm_filters()

    def _disarm_filters(self) -> None:
        """Override every filter that the configuration names: git runs them to look at a file's content.

        Through the environment, because on the command line a name could not hold an equals sign.
        """
        listed = self.output("config", "--list", "--name-only", "-z") or b""
        names = {name for name in os.fsdecode(listed).split("\0") if _FILTER.fullmatch(name)}
        if names and not self._takes_settings():
            self.is_late = True  # better no answer than somebody else's program
        for number, name in enumerate(sorted(names)):
            self._settings[f"GIT_CONFIG_KEY_{number}"] = name
            self._settings[f"GIT_CONFIG_VALUE_{number}"] = "false" if name.endswith("required") else ""
        self._settings["GIT_CONFIG_COUNT"] = str(len(names))

    def _takes_settings(self) -> bool:
        """Return whether this git reads its configuration from the environment: since 2.31."""
        found = re.search(r"(\d+)\.(\d+)", self.line("version") or "")
        return found is not None and (int(found[1]), int(found[2])) >= (2, 31)

    def line(self, *arguments: str) -> str | None:
        """Return the only line of output, or None."""
        output = self.output(*arguments)
        return None if output is None else output.decode("utf-8", "replace").strip()

    def output(self, *arguments: str) -> bytes | None:
        """Return the output, or None when git fails or time is up."""
        if self.is_late:
            return None
        import subprocess  # only here: most tasks are of no repository

        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        try:
            done = subprocess.run(
                [*_COMMAND, "-C", self.folder, *arguments],
                env=environment | _ENVIRONMENT | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=max(0.0, self._deadline - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            self.is_late = True
            return None
        except (OSError, ValueError):
            return None
        return done.stdout if done.returncode == 0 else None
