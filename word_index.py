"""The full-text index: what a query looks into, and how the index is kept up to date.

However little there is to index, FTS5 writes four pages for it, and a commit writes and syncs each of them
twice. So a change only puts its words down in the table `recent_words`, and the index is told of
WORDS_AT_ONCE changes together. A query looks into both: into the index, and into the recent words, which are
indexed in memory for it. The index is numbered by `changed`, the number of a task's latest event, so that
the newest change comes first without sorting, however many tasks a word occurs in; and whatever is recent is
newer than all that the index was told.
"""

from __future__ import annotations

import re
import unicodedata

from database import Database, Statement
from models import Task
from schema import RECENT_INDEX

WORDS_AT_ONCE = 32  # changes
_LONG = 4000  # characters: a change with more of them does not wait, since a query would have to index it

# Where a query looks for words, newest changes first: a table of each has the column `words`.
RECENT, INDEXED = "temp.recent_index", "task_words"

# Before a query, and in the same transaction: what makes RECENT.
GATHER_RECENT: tuple[Statement, ...] = tuple(
    (statement, ())
    for statement in (
        RECENT_INDEX,
        f"INSERT INTO {RECENT} (recent_index) VALUES ('delete-all')",
        f"INSERT INTO {RECENT} (rowid, words) SELECT changed, words FROM recent_words WHERE is_new = 1",
    )
)

_FORGET = "INSERT INTO task_words (task_words, rowid, words) SELECT 'delete', changed, words "
_TELL_INDEX = (
    f"{_FORGET}FROM recent_words WHERE is_new = 0",
    "INSERT INTO task_words (rowid, words) SELECT changed, words FROM recent_words WHERE is_new = 1",
    "DELETE FROM recent_words",
)


class WordIndex:
    """Tells the index what changes."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add_in_transaction(self, task: Task, changed: int) -> None:
        """Make a task findable by its words."""
        words = words_of(task)
        self._note(changed, True, words)
        if changed % WORDS_AT_ONCE == 0 or len(words) > _LONG:
            for statement in _TELL_INDEX:
                self._db.execute(statement)

    def remove_in_transaction(self, task: Task, changed: int) -> None:
        """Take out a task as it was; the index wants to be told its words again."""
        if self._db.execute("SELECT 1 FROM recent_words WHERE changed = ?", (changed,)):
            self._db.execute("DELETE FROM recent_words WHERE changed = ?", (changed,))
        else:
            self._note(changed, False, words_of(task))

    def _note(self, changed: int, is_new: bool, words: str) -> None:
        insert = "INSERT INTO recent_words (changed, is_new, words) VALUES (?, ?, ?)"
        self._db.execute(insert, (changed, is_new, words))


def words_of(task: Task) -> str:
    """Return all that a query looks into."""
    steps = (*task.completed_steps, *task.remaining_steps, *task.decisions, *task.dead_ends)
    return _folded("\n".join((task.title, task.goal, task.resume_prompt or "", *steps))).replace("\0", " ")


def phrases_of(query: str) -> str:
    """Return a full-text query for all words of `query`: no character of it is an operator."""
    # The index leaves out accents that cannot be composed, and does not end a word there.
    words = re.findall("(?:[^\\W_][\u0300-\u0331]*)+", _folded(query))
    return " ".join(f'"{word}"*' for word in words) or '""'  # what has no word at all is in no task


def _folded(text: str) -> str:
    """Return text as it is searched: accents composed, case ignored also where it changes the letters."""
    return unicodedata.normalize("NFC", text).casefold()
