"""What a crawl has seen, as an SQLite file: its sources with their answers, and every record that it has given out."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vtools.files.lock import own
from vtools.process import Failure

MAGIC = b"SQLite format 3\0"
APPLICATION = 0x76746F6F  # "vtoo": marks the file as ours (SQLite's application_id)
VERSION = 1
FIRST_WAIT, LONGEST_WAIT = 60.0, 7 * 86400.0  # seconds until a source that failed is asked again: they double
SCHEMA = f"""
CREATE TABLE sources (
    uri TEXT PRIMARY KEY, host TEXT, status TEXT, etag TEXT, modified TEXT, digest BLOB,
    attempts INTEGER, checked REAL, failing_since REAL, next_try REAL, detail TEXT
) WITHOUT ROWID;
CREATE TABLE records (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE outputs (path TEXT PRIMARY KEY, inode INTEGER, size INTEGER) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""


@dataclass
class Source:
    """A source: how it went the last time, and with what its server can be asked for changes. Times are in seconds
    since 1970; `attempts` counts the runs in a row in which it failed."""

    uri: str
    host: str = ""
    status: str = ""  # fetched, unchanged or failed
    etag: str | None = None
    modified: str | None = None
    digest: bytes | None = None  # of its content
    attempts: int = 0
    checked: float | None = None
    failing_since: float | None = None
    next_try: float | None = None
    detail: str | None = None

    def waits(self) -> bool:
        """Whether it failed so recently that it is not asked yet."""
        return self.next_try is not None and time.time() < self.next_try

    def went(self, status: str) -> None:
        """Note that it was read."""
        self.status, self.checked, self.attempts = status, time.time(), 0
        self.failing_since = self.next_try = self.detail = None

    def failed(self, why: str, asked: float | None = None) -> None:
        """Note that it could not be read, and when to try again: later each time, or when its server asked to."""
        now = time.time()
        self.status, self.checked, self.detail = "failed", now, why
        self.attempts += 1
        self.failing_since = self.failing_since or now
        wait = min(FIRST_WAIT * 2.0 ** min(self.attempts - 1, 30), LONGEST_WAIT)
        self.next_try = now + max(wait, min(asked or 0.0, LONGEST_WAIT))


FIELDS = tuple(field.name for field in fields(Source))


class State:
    """The file of one crawl, open for its only writer. What is noted is kept once it is settled."""

    def __init__(self, path: str, database: sqlite3.Connection) -> None:
        self.path, self._database = path, database
        self._pending: dict[bytes, None] = {}

    def source(self, uri: str, host: str = "") -> Source:
        """What is known of a source; of one never seen, nothing."""
        row = self._database.execute(f"SELECT {', '.join(FIELDS)} FROM sources WHERE uri = ?", (uri,)).fetchone()
        return Source(*row) if row else Source(uri, host)

    def has(self, digest: bytes) -> bool:
        """Whether a record was given out before."""
        known = "SELECT 1 FROM records WHERE digest = ?"
        return digest in self._pending or self._database.execute(known, (digest,)).fetchone() is not None

    def add(self, digest: bytes) -> int:
        """Note that a record is written; returns how many are not settled yet."""
        self._pending[digest] = None
        return len(self._pending)

    def settle(self, source: Source | None = None, output: tuple[str, os.stat_result] | None = None) -> None:
        """Keep what was noted: the records are on stdout or on disk by now, in `output` if that is a file."""
        with self._database as database:
            database.execute("BEGIN")
            database.executemany("INSERT OR IGNORE INTO records VALUES (?)", ((each,) for each in self._pending))
            if source:
                values = [getattr(source, field) for field in FIELDS]
                database.execute(f"REPLACE INTO sources VALUES ({', '.join('?' * len(FIELDS))})", values)
            if output:
                path, status = output
                database.execute("REPLACE INTO outputs VALUES (?, ?, ?)", (path, status.st_ino, status.st_size))
        self._pending.clear()

    def unsettled(self, output: str) -> int:
        """Where a file's lines begin of which it is not known that they are in here: a killed run wrote them."""
        row = self._database.execute("SELECT inode, size FROM outputs WHERE path = ?", (output,)).fetchone()
        status = os.stat(output)
        return row[1] if row and row[0] == status.st_ino and row[1] <= status.st_size else 0


@contextlib.contextmanager
def opened(path: str, wait: bool = False) -> Iterator[State]:
    """Open the state of a crawl as its only writer, creating it. Raises TryAgain, or Failure if it is another file."""
    place = Path(os.path.realpath(path))
    busy = f"{path}: another vtools process is fetching with this state; try again when it has ended, or --wait"
    handle = own(place.with_name(place.name + ".lock"), busy, wait)
    try:
        with _connected(path, str(place)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                database.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {SCHEMA} COMMIT;")
            _check(path, database)
            # A transaction survives a kill without being synced. After a power failure the last ones may be missing:
            # their records come again, and none is lost.
            database.execute("PRAGMA synchronous = NORMAL")
            yield State(path, database)
    finally:
        os.close(handle)


def is_state(path: str) -> bool:
    """Whether a file is an SQLite file."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            with open(path, "rb") as stream:
                return stream.read(len(MAGIC)) == MAGIC
    return False


def summary(path: str) -> dict[str, Any]:
    """What is in a state, for people: counts by status and by host, and the source that has failed for longest."""
    with _connected(path, f"file:{Path(path).resolve().as_posix()}?mode=ro", uri=True) as database:
        _check(path, database)
        hosts: dict[str, dict[str, int]] = {}
        statuses: dict[str, int] = {}
        grouped = "SELECT host, status, count(*) FROM sources GROUP BY host, status ORDER BY host, status"
        for host, status, count in database.execute(grouped):
            hosts.setdefault(host, {})[status] = count
            statuses[status] = statuses.get(status, 0) + count
        failure = database.execute(
            "SELECT uri, failing_since, attempts, next_try, detail FROM sources WHERE status = 'failed' "
            "ORDER BY failing_since, uri LIMIT 1"
        ).fetchone()
        records = database.execute("SELECT count(*) FROM records").fetchone()[0]
        checked = database.execute("SELECT max(checked) FROM sources").fetchone()[0]
    oldest = None
    if failure:
        uri, since, attempts, next_try, detail = failure
        oldest = {"uri": uri, "since": _utc(since), "attempts": attempts, "next_try": _utc(next_try), "detail": detail}
    return {
        "sources": sum(statuses.values()),
        "records": records,
        "last_checked": _utc(checked),
        "statuses": statuses,
        "hosts": hosts,
        "oldest_failure": oldest,
    }


@contextlib.contextmanager
def _connected(path: str, place: str, uri: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that is closed at the end, and whose errors name the file."""
    try:
        with contextlib.closing(sqlite3.connect(place, timeout=30.0, isolation_level=None, uri=uri)) as database:
            yield database
    except sqlite3.Error as error:
        raise Failure(f"{path}: {error}; name a state that `vtools fetch --state` has written") from None


def _check(path: str, database: sqlite3.Connection) -> None:
    application = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise Failure(f"{path}: an SQLite file, but not a state of `vtools fetch`; name another")
    if version != VERSION:
        raise Failure(f"{path}: written by another version of vtools (state {version}, this one reads {VERSION})")


def _utc(seconds: float | None) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None
