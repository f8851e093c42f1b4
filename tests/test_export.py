"""A run as an SQLite file that answers questions."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3

import pytest

from mpsteps._export import export_sqlite
from mpsteps._history import replay
from mpsteps._journal import JournalHeader
from mpsteps.errors import UsageError

SESSION = [
    "protocol",
    {"name": "P", "class": "m.P", "params": {"n": 3, "s": "µ"}, "python": "3.8", "host": "h", "pid": 1},
]


@pytest.fixture
def history():
    name = b"mic\xff.mrc".decode("utf-8", "surrogateescape")
    records = [
        SESSION,
        ["inserted", 1, "ctfStep", '["mic µ 漢.mrc"]', "a", [], {}],
        ["inserted", 2, "ctfStep", {"not": ["text"]}, "b", [], {}],
        ["inserted", 3, "outputStep", "[]", "c", [1, 2, 2], {}],
        ["inserted", 4, "slowStep", None, "d", [], {}],
        ["started", 77, 1, 100.5, [1, 2, 4]],
        ["result", 1, {"files": ["extra/a.txt", name]}],
        ["finished", 77, 110.0, [[1, 2.5, 2.25, 2048]]],
        ["failed", 2, 77, 1, 103.0, {"type": "ValueError", "message": "no\x00pe", "traceback": "Traceback µ"}],
        ["skipped", [3], "step 2 failed"],
    ]
    return replay(records, JournalHeader("ProtCtf", "run-id", 5.0))


def query(path, sql):
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        return connection.execute(sql).fetchall()


def test_the_steps_are_there_to_be_asked_about(tmp_path, history):
    path = tmp_path / "run.sqlite"
    export_sqlite(history, path)
    assert query(path, "SELECT * FROM steps WHERE id = 1") == [
        (1, "ctfStep", '["mic µ 漢.mrc"]', "finished", 77, 1, 100.5, 2.5, 2.25, 2048, *[None] * 6)
    ]
    assert query(path, "SELECT arguments, status, error, traceback FROM steps WHERE id = 2") == [
        ('{"not": ["text"]}', "failed", "ValueError: no\x00pe", "Traceback µ")
    ]
    assert query(path, "SELECT status, attempt, error FROM steps WHERE id = 3") == [("skipped", 0, "step 2 failed")]
    assert query(path, "SELECT status, count(*) FROM steps GROUP BY status ORDER BY status") == [
        ("failed", 1), ("finished", 1), ("running", 1), ("skipped", 1)
    ]  # fmt: skip
    waiting = "SELECT function FROM steps JOIN prerequisites ON id = prerequisite WHERE step = 3 AND status = 'failed'"
    assert query(path, waiting) == [("ctfStep",)]
    assert query(path, "SELECT count(*) FROM prerequisites") == [(2,)]
    assert query(path, "SELECT * FROM results ORDER BY value") == [
        (1, "file", "extra/a.txt"), (1, "file", "mic\\udcff.mrc")
    ]  # fmt: skip


def test_the_run_is_there_too(tmp_path, history):
    path = tmp_path / "run.sqlite"
    export_sqlite(history, path)
    run = dict(query(path, "SELECT key, value FROM run"))
    assert (run["run"], run["protocol"], run["created"]) == ("run-id", "ProtCtf", 5.0)
    assert (run["status"], run["sessions"], json.loads(run["in_doubt"])) == ("running", 1, [4])
    assert json.loads(run["session.params"]) == {"n": 3, "s": "µ"}


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path, history):
    path = tmp_path / "run.sqlite"
    path.write_bytes(b"")
    export_sqlite(history, path)
    with contextlib.closing(sqlite3.connect(str(path))) as reader:
        export_sqlite(replay([SESSION]), path)
        assert reader.execute("SELECT count(*) FROM steps").fetchone() == (4,), "an open reader keeps the old one"
    assert query(path, "SELECT count(*) FROM steps") == [(0,)]
    assert os.listdir(tmp_path) == ["run.sqlite"]


def make_database(path):
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.execute("CREATE TABLE precious (x)")
        connection.commit()


def make_text(path):
    path.write_text("precious")


def make_link(path):
    (path.parent / "target").write_text("precious")
    path.symlink_to(path.parent / "target")


@pytest.mark.parametrize("make", [make_database, make_text, make_link, os.mkdir, os.mkfifo])
def test_what_is_not_ours_is_never_overwritten(tmp_path, history, make):
    path = tmp_path / "file"
    make(path)
    before = os.lstat(path)
    with pytest.raises(UsageError, match="not overwritten: choose another file"):
        export_sqlite(history, path)
    after = os.lstat(path)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_a_place_that_cannot_be_written_is_told(tmp_path, history):
    with pytest.raises(UsageError, match=r"nowhere.*choose another file"):
        export_sqlite(history, tmp_path / "nowhere" / "run.sqlite")


def test_an_export_that_fails_leaves_the_old_one(tmp_path, history, monkeypatch):
    path = tmp_path / "run.sqlite"
    export_sqlite(history, path)
    before = path.read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match="No space left"):
        export_sqlite(history, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.sqlite"]


def test_ten_thousand_steps_are_exported(tmp_path):
    count = 10_000
    records = [SESSION]
    records += [["inserted", n, "work", f"[{n}]", f"d{n}", [n - 1] if n > 1 else [], {}] for n in range(1, count + 1)]
    records += [["started", 7, 1, float(n), [n]] for n in range(1, count + 1)]
    records += [["finished", 7, 1.0, [[n, n / 1000, None, None]]] for n in range(1, count + 1)]
    path = tmp_path / "run.sqlite"
    export_sqlite(replay(records), path)
    assert query(path, "SELECT count(*), max(seconds) FROM steps WHERE status = 'finished'") == [(count, 10.0)]
    assert query(path, "SELECT count(*) FROM prerequisites") == [(count - 1,)]
    assert query(path, "SELECT id FROM steps ORDER BY seconds DESC LIMIT 2") == [(count,), (count - 1,)]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_numbers_beyond_sqlite_are_exported_as_text(tmp_path):
    path = tmp_path / "run.sqlite"
    huge = 2**70
    export_sqlite(replay([SESSION, ["inserted", 1, "f", huge, "a", [huge], {}], ["started", huge, 1, huge, [1]]]), path)
    assert query(path, "SELECT id, arguments FROM steps") == [(1, str(huge))]
