"""Protocols whose steps share one lock. At the top level of a module, so that worker processes can import them."""

from __future__ import annotations

import os
import signal
import threading
import time

from protocols import DEADLINE, Custom, meet, note, notes, wait_until

from mpsteps import step


class Shares(Custom):
    """Everything that is not safe without the lock, and exact with it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counter = 0
        self.best = 0
        self.cells = [0, 0, 0]
        self.chain = {0: 1}
        self.text = ""
        self.names = set()
        self.last = None
        self.free = []
        self.sum = 0

    def work(self, i, times=1):
        """Each line is wrong if another step is between its read and its write."""
        for j in range(times):
            self.free.append((i, j))
            self.sum += i
            with self._lock:
                self.change(i, j)

    def change(self, i, j):
        self.counter = self.counter * 1 + 1
        self.best = max(self.best, (7 * i + j) % 1000)
        self.cells[0] += 1
        self.cells[i % 3] += i
        key = len(self.chain)
        self.chain[key] = self.chain[key - 1] + i
        self.text = self.text + chr(97 + i % 26)
        self.names = self.names | {i}
        self.last = (i, j)

    def plain(self):
        """What is to be compared. The order of the steps does not count."""
        return {
            "counter": self.counter, "best": self.best, "cells": self.cells, "names": self.names,
            "chain": (len(self.chain), self.chain[len(self.chain) - 1]), "text": "".join(sorted(self.text)),
            "free": sorted(self.free), "sum": self.sum,
        }  # fmt: skip

    @step(local=True)
    def workHere(self, i, times=1):
        self.work(i, times)

    # ------------------------------------------------------------- one after another

    def holdUntil(self, here, release):
        """Takes the lock, says so, keeps it until it may leave."""
        with self._lock:
            open(here, "w").close()
            wait_until(lambda: os.path.exists(release), f"for {release}")
            self.change(1, 1)

    @step(local=True)
    def holdHereUntil(self, here, release):
        self.holdUntil(here, release)

    def waitAndNote(self, here, name):
        """Says that it is about to ask, and notes when it has got it."""
        open(here, "w").close()
        with self._lock:
            self.log.append(name)

    @step(timeout=1)
    def waitTooLong(self, here):
        open(here, "w").close()
        with self._lock:
            self.log.append("got it")

    def holdAndDie(self, here, release):
        with self._lock:
            self.change(1, 1)
            open(here, "w").close()
            wait_until(lambda: os.path.exists(release), f"for {release}")
            os.kill(os.getpid(), signal.SIGKILL)

    @step(retries=1)
    def dieOnce(self, i, spot):
        """Is killed at that spot of its first attempt."""

        def here(name):
            if self._stepsExecutor.attempt == 1 and name == spot:
                os.kill(os.getpid(), signal.SIGKILL)

        here("before")
        with self._lock:
            here("entered")
            self.counter += 1
            here("half")
            self.change(i, 0)
            here("all")
        here("left")
        self.free.append(i)

    def holdAndFail(self, twice=False):
        with self._lock:
            self.change(1, 1)
            if twice:
                with self._lock:
                    raise ValueError("under the lock")
            raise ValueError("under the lock")

    def failAfterwards(self):
        with self._lock:
            self.change(1, 1)
        raise ValueError("after the lock")

    def forget(self):
        """Never leaves."""
        self._lock.acquire()
        self.change(1, 1)

    @step(local=True)
    def forgetHere(self):
        self.forget()

    # -------------------------------------------------------------------- as an RLock

    def useAsRLock(self):
        """What `threading.RLock` offers, step by step."""
        lock, seen = self._lock, {}
        seen["with"] = self._enterTwice()
        seen["acquire"] = lock.acquire() and lock.acquire(False) and lock.acquire(timeout=5)
        for _ in range(3):
            lock.release()
        for name, call in {
            "release": lock.release,
            "both": lambda: lock.acquire(False, 1),
            "negative": lambda: lock.acquire(True, -5),
        }.items():
            try:
                call()
            except Exception as error:
                seen[name] = type(error).__name__
        seen["thread"] = self._askInThread()
        self.seen = seen

    def _enterTwice(self):
        with self._lock as first:
            with self._lock as second:
                self.change(1, 1)
            self.change(1, 2)
        return first, second

    def _askInThread(self):
        """Another thread of the step: it does not have the lock, cannot leave it and does not get it."""
        found = []

        def ask():
            try:
                self._lock.release()
            except RuntimeError as error:
                found.append(str(error))
            found.append(self._lock.acquire(False))
            found.append(self._lock.acquire(timeout=0.01))

        with self._lock:
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join(DEADLINE)
        found.append(self._lock.acquire(False))
        self._lock.release()
        return found

    def tryWhileHeld(self, held, release):
        """Another step has the lock."""
        wait_until(lambda: os.path.exists(held), "for the holder")
        self.seen = [self._lock.acquire(False), self._lock.acquire(timeout=0.02), self.counter]
        open(release, "w").close()
        with self._lock:
            self.seen.append(self.counter)

    def manyThreads(self, i, times):
        """Threads of this step, beside steps elsewhere."""

        def work(number):
            for j in range(times):
                with self._lock:
                    self.change(i, j)
                self.free.append((i, number, j))  # without the lock, as threads may

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

    def condition(self):
        """Two threads of one step that wait for each other on the lock."""
        ready = threading.Condition(self._lock)

        def give():
            with ready:
                self.change(1, 1)
                ready.notify_all()

        with ready:
            thread = threading.Thread(target=give)
            thread.start()
            got = ready.wait_for(lambda: self.counter == 1, DEADLINE)
        thread.join(DEADLINE)
        self.seen = got

    def forkAndAsk(self, held):
        """What a forked process may do with the lock: nothing."""
        if held:
            self._lock.acquire()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._lock.acquire()
                text = "got it"
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            if held:
                self._lock.release()
            os.write(write, text.encode())
            os._exit(0)
        os.waitpid(pid, 0)
        self.seen = os.read(read, 4096).decode()
        os.close(read)
        os.close(write)
        with self._lock:
            self.change(1, 1)
        if held:
            self._lock.release()

    def outlive(self, path):
        """A thread goes on after its step, and wants the lock then."""

        def later():
            wait_until(lambda: os.path.exists(path), f"for {path}")
            try:
                with self._lock:
                    text = "got it"
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            with open(f"{path}.part", "w") as f:
                f.write(text)
            os.replace(f"{path}.part", f"{path}.told")

        threading.Thread(target=later, daemon=True).start()

    def waitBeyondEnd(self, held, told):
        """A thread of the step waits for the lock when the step ends."""
        wait_until(lambda: os.path.exists(held), "for the holder")
        started = threading.Event()

        def later():
            started.set()
            try:
                with self._lock:
                    text = "got it"
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            with open(f"{told}.part", "w") as f:
                f.write(text)
            os.replace(f"{told}.part", told)

        threading.Thread(target=later, daemon=True).start()
        started.wait(DEADLINE)
        self.log.append("ended")

    # --------------------------------------------------------------------------- lanes

    def noteUnderLock(self, name, waits):
        """Short, as far as anybody knows; with `waits`, it takes the lock."""
        if name:
            note(self.notes.get(), name)
        if waits:
            with self._lock:
                self.log.append(name)

    def holdUntilNoted(self, here, count):
        with self._lock:
            open(here, "w").close()
            wait_until(lambda: len(notes(self.notes.get())) >= count, f"for {count} notes")

    # ----------------------------------------------------------------------- conflicts

    def setBefore(self, folder, i, catch):
        """What a step sets before it enters does not go together with what another set."""
        meet(folder, i, 2)
        self.value = i
        try:
            with self._lock:
                self.change(i, 0)
        except Exception:
            if not catch:
                raise

    def publishSocket(self, catch):
        import socket

        self.bad = socket.socket()
        self.bad.close()
        try:
            with self._lock:
                pass
        except Exception:
            if not catch:
                raise

    # --------------------------------------------------------------------- read and see

    def readUnderLock(self, done):
        """It began before another step's change, and sees it under the lock."""
        before = self.counter
        wait_until(lambda: os.path.exists(done), f"for {done}")
        with self._lock:
            self.seen = (before, self.counter, list(self.free))

    def changeAndGoOn(self, told, release):
        """What it changes under the lock, others see while it still runs."""
        self.free.append("before")
        with self._lock:
            self.change(1, 1)
        open(told, "w").close()
        wait_until(lambda: os.path.exists(release), f"for {release}")
        self.free.append("after")

    def burn(self, seconds, held, asks):
        wait_until(lambda: os.path.exists(held), f"for {held}")
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        open(asks, "w").close()
        with self._lock:
            self.change(1, 1)

    def changeAfter(self, told):
        wait_until(lambda: os.path.exists(told), f"for {told}")
        with self._lock:
            self.change(2, 50)

    def failUnless(self, path):
        if not os.path.exists(path):
            raise FileNotFoundError(path)

    @step(retries=1)
    def failsOnce(self, tried):
        first = not os.path.exists(tried)
        open(tried, "w").close()
        with self._lock:
            self.change(1, 1)
            self.free.append("first attempt" if first else "second attempt")
        if first:
            raise ValueError("the first attempt fails")

    def addAndNote(self, i):
        with self._lock:
            self.sum += 1
            self.free.append(i)
            self.best = max(self.best, i)
            self.names.add(i)
        self.note(i)

    def seeAndRelease(self, told, release):
        wait_until(lambda: os.path.exists(told), f"for {told}")
        with self._lock:
            self.seen = (self.counter, list(self.free))
        open(release, "w").close()


class AddsHere(Shares):
    """Local steps and `_stepsCheck` add to what steps in workers add to, without the lock."""

    _stepsCheckSecs = 0.002

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.checks = 0
        self.counts = {}

    def addTogether(self, folder, i):
        meet(folder, i, 2)
        self.sum += 10**i
        self.counts["all"] = self.counts.get("all", 0) + 1

    @step(local=True)
    def addTogetherHere(self, folder, i):
        self.addTogether(folder, i)

    def _stepsCheck(self):
        self.checks += 1
        self.sum += 100

    def setTogether(self, folder, i):
        meet(folder, i, 2)
        self.last = i

    @step(local=True)
    def setTogetherHere(self, folder, i, told):
        meet(folder, i, 2)
        self.last = i


class Checks(Shares):
    """`_stepsCheck` takes the lock, too."""

    _stepsCheckSecs = 0.005
    checks = 0

    def _stepsCheck(self):
        with self._lock:
            self.change(0, 0)
            self.checks += 1


class LeavesCheckLocked(Shares):
    """`_stepsCheck` never leaves the lock."""

    _stepsCheckSecs = 0.005
    checks = 0

    def _stepsCheck(self):
        self._lock.acquire()
        self.checks += 1


class Driven(Custom):
    """Steps for a worker whose coordinator is a test. They return dicts, since texts would be files."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.place = "start"
        self.count = 0

    def takeLock(self):
        with self._lock:
            return {"seen": [self.place]}

    def tryLock(self, seconds):
        got = self._lock.acquire(timeout=seconds)
        if got:
            self._lock.release()
        return {"seen": [got, self.place]}

    def lookAt(self, *names):
        return {"seen": [getattr(self, name) for name in names]}

    def setPlace(self, value):
        self.place = value

    def countOn(self):
        self.count += 1

    def countMeanwhile(self, begin, done):
        def count():
            wait_until(lambda: os.path.exists(begin), f"for {begin}")
            self.count += 1
            open(done, "w").close()

        thread = threading.Thread(target=count)
        thread.start()
        with self._lock:
            self.value = self.count - 1
        thread.join(DEADLINE)

    def takeLockWithAlarm(self):
        def ring(*_args):
            raise TimeoutError

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            with self._lock:
                return {"seen": ["got it"]}
        except TimeoutError:
            return {"seen": ["alarm", self.place]}

    def askInThreads(self, count):
        found = {}

        def ask(i):
            found[i] = self._sink._worker.request("square", i)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        return {"seen": [found == {i: i * i for i in range(count)}]}

    def askBesideASleeper(self):
        """The thread that sleeps is slow to wake up: another one takes in the answers of both."""
        worker, found = self._sink._worker, {}
        sleeper, tell = worker._end.sleeper, worker.tell
        asleep, go_on = threading.Event(), threading.Event()

        class SlowSleeper:
            disturb = sleeper.disturb

            def wait(self, *args):
                asleep.set()
                go_on.wait(DEADLINE)
                return sleeper.wait(*args)

        def tell_and_wait(message):
            tell(message)
            wait_until(worker._end.receive.pending)

        thread = threading.Thread(target=lambda: found.update({1: worker.request("square", 1)}))
        worker._end.sleeper = SlowSleeper()
        try:
            thread.start()
            assert asleep.wait(DEADLINE)
            worker.tell = tell_and_wait
            found[2] = worker.request("square", 2)
            go_on.set()
            thread.join(DEADLINE)
        finally:
            worker.tell, worker._end.sleeper = tell, sleeper
        return {"seen": [found]}
