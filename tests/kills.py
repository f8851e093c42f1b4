"""Random kills of whole runs: coordinators, with and without their zygotes, and workers, in any of their moments.

    python tests/kills.py --seconds 600 --seed 1

One *campaign* is one protocol of two hundred steps that is resumed until it has finished. Meanwhile somebody is killed
again and again: a worker (the step is lost, and tried again as its author declared), the coordinator with and without
its zygote, by SIGKILL; the coordinator also by SIGINT, SIGTERM and SIGHUP. Every step, when it is entered,
appends its number to a file: that is what really happened, whatever the journal says. What must come of it:

- each end leaves nothing behind within two seconds, and a journal that can be read;
- once: a step is entered no more often than the journal has reasons (its worker was lost, it was in doubt, or it was
  ended by the signal); none that is recorded as finished is ever sent again;
- nothing is lost: in the end every step has finished, and `self` holds what each of them wrote, exactly once.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import has_token

from mpsteps import STEPS_PARALLEL, IntParam, Protocol, StringParam, step
from mpsteps._journal import read_journal

STEPS = 200
PATIENCE = 120.0
WITHIN = 2.0
TOKEN = "MPSTEPS_KILLS"


class Killed(Protocol):
    """Steps of all kinds: short ones, long ones, with results, with changes of self, with a program of their own."""

    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Input")
        form.addParam("seed", IntParam, default=0, label="Seed")
        form.addParam("entered", StringParam, default="", label="File")
        form.addParallelSection(threads=3)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.log: List[int] = []
        self.table: Dict[int, int] = {}

    def _insertAllSteps(self) -> None:
        r = random.Random(self.seed.get())
        ids: List[int] = []
        for i in range(STEPS):
            needs = r.sample(ids[-30:], min(len(ids), r.choice((0, 0, 0, 1, 1, 2))))
            method = r.choice((self.shortStep,) * 6 + (self.longStep, self.valueStep, self.programStep))
            ids.append(self._insertFunctionStep(method, i, prerequisites=needs))
        self._insertFunctionStep(self.lastStep, STEPS, prerequisites=ids)

    def enter(self, number: int) -> None:
        fd = os.open(self.entered.get(), os.O_WRONLY | os.O_APPEND)
        os.write(fd, f"{number} {os.getpid()}\n".encode())
        os.close(fd)
        self.log.append(number)
        self.table[number] = number * number

    @step(retries=1000)
    def shortStep(self, number: int) -> None:
        self.enter(number)

    @step(retries=1000)
    def longStep(self, number: int) -> None:
        self.enter(number)
        time.sleep(number % 7 * 0.003)

    @step(retries=1000)
    def valueStep(self, number: int) -> Any:
        self.enter(number)
        return {"bytes": bytes(number * 100)}

    @step(retries=1000)
    def programStep(self, number: int) -> None:
        self.enter(number)
        self.runJob("sh", "-c 'sleep 0.02 & sleep 0.01'")

    @step(retries=1000)
    def lastStep(self, number: int) -> None:
        self.enter(number)
        assert sorted(self.log) == list(range(STEPS + 1)), f"the log holds {sorted(self.log)}"
        assert self.table == {i: i * i for i in range(STEPS + 1)}


class Campaign:
    """One run that is killed and resumed until it has finished."""

    def __init__(self, folder: str, seed: int, done: Counter[str], share: float = 0.15) -> None:
        self.r = random.Random(seed)
        self.seed = seed
        self.done = done
        self.share = share  # of the kills that are meant for the coordinator
        self.run_dir = os.path.join(folder, "run")
        self.entered = os.path.join(folder, "entered")
        Path(self.entered).touch(mode=0o600)

    def carry_out(self, most_sessions: int = 60) -> None:
        for session in range(most_sessions):
            if self._session(spared=session == most_sessions - 1):
                break
        else:
            raise AssertionError("the last session, in which nobody was killed, has not finished")
        self._check()
        self.done["runs"] += 1

    def _session(self, spared: bool) -> bool:
        """One coordinator; whether the run has finished."""
        token = uuid.uuid4().hex
        command = [sys.executable, __file__, "--one", self.run_dir, self.entered, str(self.seed)]
        process = subprocess.Popen(
            command, env={**os.environ, TOKEN: token}, start_new_session=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            asked = None if spared else self._kill_some(process)
            output = process.communicate(timeout=PATIENCE)[0].decode()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.done["sessions"] += 1
        _nothing_left(token)
        if process.returncode == 0:
            return True
        assert asked is not None, f"exit code {process.returncode}: {output}"
        # Python itself, interrupted before it was up, ends with exit code 1 and says that it could not start.
        said = output.strip()
        starting = (
            asked == signal.SIGINT and process.returncode == 1 and said.endswith("KeyboardInterrupt")
            and (said == "KeyboardInterrupt" or said.startswith("Fatal Python error: init_"))
        )  # fmt: skip
        assert starting or process.returncode in (-asked, 128 + asked), f"{process.returncode}: {output}"
        if os.path.exists(os.path.join(self.run_dir, "journal.log")):
            self._check_once()
        return False

    def _kill_some(self, process: subprocess.Popen[bytes]) -> Optional[int]:
        """Until the coordinator was meant, or has ended by itself; the signal that it was sent."""
        r = self.r
        life = r.choice((0.05, 0.3, 1.0)) * r.random()  # sometimes in the middle of its start
        begun = time.monotonic()
        while process.poll() is None:
            time.sleep(r.random() * 0.02)
            if r.random() < self.share and time.monotonic() - begun > life:
                return self._kill_coordinator(process)
            pid = self._some_worker()
            if pid is None:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
                self.done["workers killed"] += 1
            except ProcessLookupError:
                continue
        return None

    def _kill_coordinator(self, process: subprocess.Popen[bytes]) -> int:
        r = self.r
        number = r.choice((signal.SIGKILL,) * 3 + (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        if number == signal.SIGKILL and r.random() < 0.3:
            for pid in _children(process.pid):  # the zygote as well: nobody is left to tell what had begun
                os.kill(pid, signal.SIGKILL)
                self.done["zygotes killed"] += 1
        process.send_signal(number)
        self.done[f"coordinators ended by {signal.Signals(number).name}"] += 1
        self.done["coordinators killed"] += 1
        if number == signal.SIGINT:  # the first asks for an orderly end; as impatient users do, up to twice more
            for _ in range(r.choice((0, 1, 2))):
                time.sleep(r.random() * 0.02)
                if process.poll() is None:
                    process.send_signal(number)
        return int(number)

    def _some_worker(self) -> Optional[int]:
        """One that has just entered a step: it is no longer booting, whose deaths are another matter."""
        with open(self.entered, "rb") as f:
            f.seek(max(0, os.path.getsize(self.entered) - 64))
            lines = f.read().split(b"\n")[1:-1]
        return int(self.r.choice(lines).split()[1]) if lines else None

    def _check_once(self) -> None:
        check_once(os.path.join(self.run_dir, "journal.log"), self.entered)

    def _check(self) -> None:
        records, finished = check_once(os.path.join(self.run_dir, "journal.log"), self.entered)
        assert finished == set(range(STEPS + 1))
        kinds = Counter(record[0] for record in records)
        self.done["steps lost"] += kinds["lost"]
        self.done["entries"] += sum(entries(self.entered).values())
        self.done["steps in doubt"] += sum(len(record[1]) for record in records if record[0] == "doubt")


# ------------------------------------------------------------------------------------------------------- the oracle


def check_once(journal: str, entered: str) -> Tuple[List[List[Any]], Set[int]]:
    """What the journal says against what really happened, after any end: its records, and the steps that finished.

    Step `i` of the file has id i + 1 in the journal. AssertionError if a step was entered more often than there are
    reasons, if one that had finished was sent again, or if one is recorded as finished that was never entered.
    """
    records = list(read_journal(journal).records)
    reasons, finished = _reasons(records)
    entered_often = entries(entered)
    for number, count in entered_often.items():
        assert count <= 1 + reasons[number], f"step {number} entered {count} times for {reasons[number]} reasons"
    lacking = finished - set(entered_often)
    assert not lacking, f"steps are recorded as finished that never ran: {sorted(lacking)}"
    return records, finished


def entries(path: str) -> Counter[int]:
    """How often each step was entered."""
    with open(path) as f:
        return Counter(int(line.split()[0]) for line in f)


def _reasons(records: List[List[Any]]) -> Tuple[Counter[int], Set[int]]:
    """For each step, how often the journal has a reason to run it again; and the steps that have finished."""
    reasons: Counter[int] = Counter()
    finished: Set[int] = set()
    running: Set[int] = set()
    for record in records:
        kind = record[0]
        if kind == "protocol":  # what was running is in doubt
            reasons.update(running)
            running.clear()
        elif kind == "started":
            for step_id in record[4]:
                assert step_id - 1 not in finished, f"step {step_id} has finished, and is sent again"
                running.add(step_id - 1)
        elif kind == "returned":
            running -= {s - 1 for s in record[1]}
        elif kind in ("failed", "lost"):
            reasons[record[1] - 1] += 1
            running.discard(record[1] - 1)
        elif kind in ("finished", "done"):
            ids = {s[0] - 1 if kind == "finished" else s - 1 for s in record[3]}
            assert not ids & finished, f"finished twice: {sorted(ids & finished)}"
            finished |= ids
            running -= ids
    reasons.update(running)
    return reasons, finished


def _children(pid: int) -> List[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(child) for child in f.read().split()]
    except OSError:
        return []


def _nothing_left(token: str) -> None:
    deadline = time.monotonic() + WITHIN
    while True:
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and has_token(int(pid), f"{TOKEN}={token}")]
        if not left:
            return
        if time.monotonic() > deadline:
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:100] for pid in left]
            raise AssertionError(f"left behind after {WITHIN} s: {commands}")
        time.sleep(0.005)


def kills(seed: int, seconds: float = 0.0, least: int = 0, share: float = 0.15) -> Dict[str, int]:
    """Campaigns for so long, and until so many kills have been done; what was done. AssertionError for a broken
    promise, with the seed of its campaign."""
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end or done["workers killed"] + done["coordinators killed"] < least:
        with tempfile.TemporaryDirectory(prefix="mpsteps-") as folder:
            try:
                Campaign(folder, seed, done, share).carry_out()
            except AssertionError as error:
                raise AssertionError(f"campaign {seed}: {error}") from error
        seed += 1
    return dict(done)


def _one(run_dir: str, entered: str, seed: str) -> None:
    """The coordinator's own process."""
    from mpsteps.run import run

    report = run(Killed(workingDir=run_dir, entered=entered, seed=int(seed)))
    assert report.ok, report.message


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--share", type=float, default=0.15, help="of the kills that are meant for the coordinator")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        _one(*args.one)
    else:
        print(f"seed {args.seed}: ", kills(args.seed, args.seconds, share=args.share))


if __name__ == "__main__":
    main()
