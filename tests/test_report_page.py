"""`mpsteps report`: its data and its page, looked at without a browser."""

from __future__ import annotations

import html.parser
import json
import re
import time

import pytest
from report_runs import NASTY, data_of, large, session, small
from test_cli import cli  # noqa: F401  # the fixture

from mpsteps._report_data import MANY_STEPS, depths
from mpsteps._report_page import BEGINS, page, write_report

pytestmark = pytest.mark.once


class Reader(html.parser.HTMLParser):
    """What a browser would find: elements, and the data."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.scripts, self._in = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag in ("script", "title"):
            self._in = [tag, dict(attrs), ""]

    def handle_endtag(self, tag):
        if self._in and tag == self._in[0]:
            self.scripts.append(tuple(self._in))
            self._in = None

    def handle_data(self, data):
        if self._in:
            self._in[2] += data


def test_nothing_that_a_step_says_becomes_part_of_the_page(tmp_path):
    """Arguments, messages, output, values: `</script>` and the like stand there only as data, and as they were."""
    data = data_of(small(), tmp_path)
    read = Reader(BEGINS + page(data))
    assert [s[:2] for s in read.scripts] == [
        ("title", {}), ("script", {"type": "application/json", "id": "data"}), ("script", {})
    ]  # fmt: skip
    assert "img" not in read.tags
    again = json.loads(read.scripts[1][2])
    assert again["failures"][0]["log"] == f"said {NASTY}"
    assert NASTY in dict(again["values"])["glob"]
    assert "innerHTML" not in read.scripts[2][2]
    assert "insertAdjacentHTML" not in read.scripts[2][2]
    assert "document.write" not in read.scripts[2][2]


def test_the_page_needs_nothing_else(tmp_path):
    """No address, no file, and a policy that forbids to load any."""
    read = Reader(page(data_of(small(), tmp_path)))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert ("meta", "content", policy) in read.attributes
    assert not [a for a in read.attributes if a[1] in ("src", "srcset", "data", "action", "background")]
    assert [a for a in read.attributes if a[1] == "href"] == [("a", "href", "#main")]
    without = {"svg namespace": "http://www.w3.org/2000/svg"}
    for code in [read.scripts[2][2]]:
        assert set(re.findall(r"https?://[^\"'\s]+", code)) == set(without.values())
        assert not re.search(r"\b(fetch|XMLHttpRequest|import|WebSocket|EventSource|sendBeacon)\b\s*\(", code)


def test_the_columns_say_what_the_journal_says(tmp_path):
    data = data_of(small(), tmp_path)
    steps, spans, names = data["steps"], data["spans"], data["functions"]
    assert steps["id"] == 9
    assert [names[f] for f in steps["func"]] == ["load"] * 2 + ["fit"] * 5 + ["join", "last"]
    assert [data["statuses"][s] for s in steps["status"]] == ["finished"] * 6 + ["failed", "finished", "skipped"]
    assert steps["depth"] == [0, 0, 1, 1, 1, 1, 1, 2, 3]
    needs = [steps["needs"][a:b] for a, b in zip(steps["starts"], steps["starts"][1:])]
    assert needs[6:] == [[0, 1], [2, 3, 4, 5], [6, 7]]
    assert len({len(column) for column in spans.values()}) == 1
    by_step = dict(zip(spans["step"], zip(spans["begin"], spans["length"], spans["peak"], spans["cpu"])))
    assert by_step[2] == (205_000, 1_790_000, 200_000, 500_000)
    assert by_step[7][3] is None
    assert data["sessions"][0]["workers"] == [f"worker {n} ({p})" for n, p in enumerate((7, 8, 9, 10), 1)]
    assert (data["status"], data["failed"], len(data["failures"])) == ("failed", 1, 1)
    assert dict(data["environment"])["usable cores"] == "8"
    assert sum(data["limits"]["shares"].values()) == pytest.approx(1)


def test_sessions_follow_each_other_without_the_breaks_between_them(tmp_path):
    """A run that was resumed a day later is not a day wide."""
    again = [session(pid=2, began=86500.0), ["steps", 1, "load", [["a"], [NASTY]], [[], []]],
             ["started", 17, 1, 86500.5, [2]], ["finished", 17, 86501.5, [[2, 1.0, 1.0, None]]],
             ["ended", "finished", 86502.0, ""]]  # fmt: skip
    data = data_of([*small(), *again], tmp_path)
    first, second = data["sessions"]
    assert (first["from"], first["to"], second["from"], second["to"]) == (0, 5_100_000, 5_100_000, 7_100_000)
    assert data["spans"]["begin"][-1] == 5_600_000
    assert data["spans"]["session"].count(2) == 1


def test_a_run_whose_last_session_ran_nothing_is_judged_by_the_one_before(tmp_path):
    data = data_of([*small(), session(began=200.0), ["ended", "finished", 200.5, ""]], tmp_path)
    assert data["limits"]["session"] == 1
    assert data["steps"]["id"] == 0


def test_depths_of_steps_that_wait_for_later_ones():
    """Ids say nothing of the order; a circle does not hang it."""
    assert depths([0, 1, 2, 2], [1, 2]) == [2, 1, 0]
    assert depths([0, 1, 2], [1, 0]) == [0, 0]


def test_many_steps_are_a_few_megabytes(tmp_path):
    """Compact columns, arguments cut short, and linear work."""
    records = large(29_999)
    began = time.process_time()
    text = page(data_of(records, tmp_path))
    assert time.process_time() - began < 30
    assert len(text) < 100 * 30_000
    assert len(json.loads(Reader(text).scripts[1][2])["steps"]["func"]) == 29_998 > MANY_STEPS


def test_the_command_writes_the_report_and_names_the_limit(cli):  # noqa: F811
    """As a new user would; output of a failed step is in it."""
    assert cli("run", "squares.py", "--set", "bad=2", "--keep-going", "--quiet").code == 1
    done = cli("report", "Runs/000001_ProtSquares", "-o", "r.html")
    assert done.code == 0, done.err
    assert "wrote r.html: 5 steps" in done.out
    assert "what limited it: " in done.out
    text = (cli.folder / "r.html").read_text(encoding="utf-8")
    data = json.loads(Reader(text).scripts[1][2])
    (failure,) = data["failures"]
    assert failure["log"] == "squaring 2\n"
    assert "ValueError: number 2 is bad" in failure["traceback"]
    assert dict(data["values"])["count"] == "4"
    assert cli("report", "Runs/000001_ProtSquares", "-o", "r.html").code == 0, "an earlier report is replaced"
    refused = cli("report", "Runs/000001_ProtSquares", "-o", "squares.py")
    assert (refused.code, "not overwritten" in refused.err) == (2, True)


def test_a_run_that_is_alive_or_has_no_steps_has_a_report(tmp_path):
    """Nothing is there yet, and nothing breaks."""
    for records in ([session()], [session(), ["steps", 1, "f", [[]], [[]]], ["started", 7, 1, 101.0, [1]]]):
        data = data_of(records, tmp_path)
        assert data["status"] == "cut off"
        write_report(data, str(tmp_path / "r.html"))
