"""The full-text index: what a query looks into, and how the index is kept up to date.

However little there is to index, FTS5 writes four pages for it, and a commit writes each page twice, to the
journal and to the file. So a change only puts its words down in the table `recent_words`, and about every
CHANGES_AT_ONCE events, or with a long text, the index is told of all that waits there. A query looks into
both: the recent words are indexed in memory for it. Entries are numbered by `changed`, the event of a task's
latest change, so that the newest comes first without sorting; new words that wait are newer than all that is
indexed. Old words that the index has yet to forget are not found: a query joins by the number, and no task
has theirs any more.
"""

from __future__ import annotations

import re
import unicodedata

from database import Database, Statement
from models import Task
from schema import RECENT_INDEX

CHANGES_AT_ONCE = 32  # about: by event number
LONG_CHARACTERS = 4000  # a longer text is indexed at once, with all that waits: no query should have to

# The two full-text indexes that a query looks into, in this order: what is in the first is newer.
RECENT, INDEXED = "temp.recent_index", "task_words"

# Before a query, and in the same transaction: what makes RECENT.
GATHER_RECENT: tuple[Statement, ...] = tuple(
    (statement, ())
    for statement in (
        RECENT_INDEX,
        f"INSERT INTO {RECENT} (recent_index) VALUES ('delete-all')",
        f"INSERT INTO {RECENT} (rowid, words) SELECT changed, words FROM recent_words WHERE is_added = 1",
    )
)

_TELL_INDEX = (
    """INSERT INTO task_words (task_words, rowid, words)
    SELECT 'delete', changed, words FROM recent_words WHERE is_added = 0""",
    "INSERT INTO task_words (rowid, words) SELECT changed, words FROM recent_words WHERE is_added = 1",
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
        if changed % CHANGES_AT_ONCE == 0 or len(words) > LONG_CHARACTERS:
            for statement in _TELL_INDEX:
                self._db.execute(statement)

    def remove_in_transaction(self, task: Task, changed: int) -> None:
        """Take out a task as it was; the index wants to be told its words again."""
        if self._db.execute("SELECT 1 FROM recent_words WHERE changed = ?", (changed,)):
            self._db.execute("DELETE FROM recent_words WHERE changed = ?", (changed,))
        else:
            self._note(changed, False, words_of(task))

    def _note(self, changed: int, is_added: bool, words: str) -> None:
        insert = "INSERT INTO recent_words (changed, is_added, words) VALUES (?, ?, ?)"
        self._db.execute(insert, (changed, is_added, words))


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
