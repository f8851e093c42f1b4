"""Deliberate bugs in the pure core, to show that the tests would find them.

A mutant is a line of one module of `mpsteps._core` and what stands there instead. `core_with` loads the modules again
with that change, beside the real ones.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any, NamedTuple

MODULES = (  # in import order
    "register", "graph", "slots", "waiting", "ahead", "ranks", "lane", "admission", "sending_ahead",
    "lanes", "scheduler",
)  # fmt: skip


class Mutant(NamedTuple):
    """`old`, which stands exactly once in `module`, becomes `new`."""

    module: str
    old: str
    new: str


MUTANTS: dict[str, Mutant] = {
    "forgets to count down a prerequisite": Mutant(
        "graph",
        "for d in (found,) if isinstance(found, int) else found:",
        "for d in () if isinstance(found, int) else found:",
    ),
    "counts only the first dependant down": Mutant(
        "graph",
        "(found,) if isinstance(found, int) else found:\n                left",
        "(found,) if isinstance(found, int) else found[:1]:\n                left",
    ),
    "counts a prerequisite down twice": Mutant("graph", "left = missing[d] - 1", "left = max(0, missing[d] - 2)"),
    "counts a prerequisite once that is named twice": Mutant(
        "graph", "self.missing[step] += count", "self.missing[step] += len(set(prerequisites))"
    ),
    "takes all steps of a run for ready": Mutant(
        "scheduler", "if missing[step] or statuses[step] != _BLOCKED:", "if False:"
    ),
    "hands out no step of a run": Mutant("scheduler", "self._waiting.plain.extend(ready)", "pass"),
    "counts a row of steps as one": Mutant("register", "            same += 1\n", "            same = 1\n"),
    "waits for what has finished already": Mutant("scheduler", "if statuses[p] != _FINISHED:", "if True:"),
    "does not wait for prerequisites added later": Mutant(
        "scheduler", "self._move_from_ready(step, Cause.PREREQUISITE_ADDED)", "return"
    ),
    "lets a new step wait for one that has failed": Mutant("scheduler", "if statuses[p] in _LOST_CAUSE:", "if False:"),
    "releases a dependant when its prerequisite failed": Mutant(
        "scheduler", "self._skip(self._graph.close(step), step, commands)", "self._release_dependants((step,))"
    ),
    "skips only the next of a chain": Mutant("scheduler", "todo.extend(self._graph.close(s))", "self._graph.close(s)"),
    "forgets the steps that wait for a failed one": Mutant(
        "scheduler", "self._skip(self._graph.close(step), step, commands)", "pass"
    ),
    "blames a step that was only skipped": Mutant("scheduler", "self._blame.get(p, p), commands", "p, commands"),
    "runs what is held": Mutant("scheduler", "if self._register.statuses[step] == _BLOCKED and", "if"),
    "does not look at a released step": Mutant(
        "scheduler", "Cause.RELEASED)\n        self._unblock(event.step)", "Cause.RELEASED)"
    ),
    "does not take a held step out of the queue": Mutant("scheduler", "self._waiting.withdraw(step)", "pass"),
    "lets a restored step's dependants wait": Mutant(
        "scheduler", "Cause.RESTORED)\n        self._release_dependants((event.step,))", "Cause.RESTORED)"
    ),
    "gives a slot twice": Mutant("slots", "self.free[kind] += n", "self.free[kind] += 2 * n"),
    "never gives graphics cards back": Mutant("slots", "self.free_gpus.extend(cards)", "pass"),
    "gives one card to two steps": Mutant("slots", "del self.free_gpus[:n_cards]", "pass"),
    "does not look whether memory is free": Mutant(
        "slots", "if n > self.free[kind] and (kind", 'if kind != "memory" and n > self.free[kind] and (kind'
    ),
    "uses more CPUs than there are": Mutant("lanes", "if not length and self.slots.is_full(worker):", "if False:"),
    "keeps the slot of an empty lane": Mutant("lanes", "self.slots.give(-worker)", "pass"),
    "hands out a step twice": Mutant(
        "lanes",
        "                sent.append(step)\n            else:",
        "                sent.extend((step, step))\n            else:",
    ),
    "queues a returned step twice": Mutant(
        "waiting", "            self.plain.add(step)\n            return\n        self._first_turn",
        "            self.plain.extend((step, step))\n            return\n        self._first_turn",
    ),
    "loses returned steps": Mutant("scheduler", "for step in reversed(event.steps):", "for step in event.steps[1:]:"),
    "forgets to queue returned steps": Mutant("scheduler", "        self._waiting.rejoin(step)", "        pass"),
    "sends behind a step that must be alone": Mutant("lanes", "lane.alone = worker != LOCAL", "lane.alone = False"),
    "sends a special step to a busy worker": Mutant(
        "lanes", "if worker != LOCAL and not lane.steps)", "if worker != LOCAL)"
    ),
    "runs a local step in a worker": Mutant(
        "slots", "worker = LOCAL if demand.local else next(iter(idle), None)", "worker = next(iter(idle), None)"
    ),
    "queues behind steps of unknown duration": Mutant(
        "lanes", "elif expected is None or work", "elif expected is not None and work"
    ),
    "never looks at the lanes again": Mutant("lanes", "            self._stirred = True\n", "            pass\n"),
    "looks at the lanes too late": Mutant(
        "lanes", "(2 * min(room) - 1) * len(lanes) + 1  #", "2 * min(room) * len(lanes) + 9  #"
    ),
    "overlooks a queue of special steps": Mutant(
        "waiting", "heapq.heapreplace(self._heads, (queue[0][0], demand))", "heapq.heappop(self._heads)"
    ),
    "lets younger steps starve a large one": Mutant("slots", 'lack in ("cpus", "memory")', "False"),
    "keeps the lane of a dead worker": Mutant("lanes", "        del self._lanes[worker]\n", ""),
    "forgets the victim of a lost worker": Mutant("scheduler", "if step == began:", "if False:"),
    "makes victims of all steps of a lost worker": Mutant("scheduler", "if step == began:", "if True:"),
    "tries once too often": Mutant("scheduler", "failed <= self._register", "failed - 1 <= self._register"),
    "never tries again": Mutant("scheduler", "failed <= self._register", "failed < self._register"),
    "tries again what is final": Mutant("scheduler", "if not final and", "if"),
    "tries again while it stops": Mutant("scheduler", "not self.stopping and failed", "failed"),
    "does not let a step rest": Mutant(
        "scheduler", "self._register.move(step, Cause.RETRIED)", "self._register.move(step, Cause.RETRIED)\n"
        "            self._back(step, Cause.RESTED)"
    ),
    "forgets a step that has rested": Mutant("scheduler", "self._back(event.step, Cause.RESTED)", "pass"),
    "does not wait for steps that rest": Mutant(
        "scheduler", "waiting = self.counts[_READY] + self.counts[_RESTING]", "waiting = self.counts[_READY]"
    ),
    "counts no attempts": Mutant(
        "scheduler",
        "failed = self._attempts[step] = self._attempts.get(step, 0) + 1",
        "failed = self._attempts.get(step, 0) + 1",
    ),
    "hands out while it stops": Mutant(
        "scheduler",
        "        if not self.stopping:\n            self._lanes.assign",
        "        if True:\n            self._lanes.assign",
    ),
    "goes on after a failure": Mutant("scheduler", "if not self.keep_going:", "if False:"),
    "stops at a failure though it should keep going": Mutant("scheduler", "if not self.keep_going:", "if True:"),
    "goes on after an interactive step": Mutant(
        "scheduler", "Status.INTERACTIVE))\n        self._stop(commands)", "Status.INTERACTIVE))"
    ),
    "does not say that steps have finished": Mutant(
        "scheduler", "commands.append(Closed(steps, Status.FINISHED))", "pass"
    ),
    "does not say what comes next in a lane": Mutant(
        "lanes", "if self._register.statuses[queue[0]] == _DISPATCHED:", "if False:"
    ),
    "sends ahead what was held": Mutant("ahead", "statuses[step] == _BLOCKED\n", "True\n"),
    "does not name what a step was sent ahead of": Mutant(
        "sending_ahead", "self._send(step, (prerequisite,), lane, sent)", "self._send(step, (), lane, sent)"
    ),
    "does not say in which lanes a step is awaited": Mutant("sending_ahead", "sent.across[step] = elsewhere", "pass"),
    "names one of several lanes": Mutant(
        "sending_ahead",
        "zip(missing, places) if place[0] != worker}",
        "zip(missing[:1], places)}",
    ),
    "sends a step across without a slot": Mutant(
        "sending_ahead", "        self._slots.take(-worker, PLAIN, worker)\n", ""
    ),
    "does not begin what it sends across": Mutant("sending_ahead", "self._begun.append((worker, step))", "pass"),
    "follows a step elsewhere whose value is taken": Mutant(
        "ahead", "if self._takes and p in self._takes.get(step, ()):", "if False:"
    ),
    "forgets that a step is in a lane, sent ahead": Mutant(
        "sending_ahead", "        self._register.move_all(self._order, Cause.SENT_AHEAD)\n", ""
    ),
    "follows steps of a lane that stalls": Mutant(
        "sending_ahead",
        "            if worker not in lanes:\n                return 0, 0.0\n",
        "",
    ),
    "does not notice that prerequisites have left their lane": Mutant("lanes", "self.ahead.answered(steps)", "pass"),
    "forgets that a step sent ahead is lost": Mutant("scheduler", "self._doomed[s] = because", "pass"),
    "takes a step given back for ready": Mutant(
        "scheduler",
        "        if not self._graph.missing[step]:\n            self._back",
        "        if True:\n            self._back",
    ),
    "puts steps behind one that stalls": Mutant("lanes", "lane.stalled_by = step", "pass"),
    "never trusts a lane again that has stalled": Mutant(
        "lanes", "            lane.stalled_by = 0\n", "            pass\n"
    ),
    "counts nothing for a step of which nothing is known": Mutant(
        "admission", "return 0 if function in self._mean or function in self._told else self.assumed", "return 0"
    ),
    "starts steps of which nothing is known though memory is short": Mutant(
        "admission", "return need > 0 and self._slots.lacks_memory(need)", "return False"
    ),
    "waits for memory for ever": Mutant("slots", "self.free[kind] and (kind != \"memory\" or self._memory_is_held)",
                                        "self.free[kind]"),
    "waits for ever before anything is known": Mutant(
        "slots", "self.free[\"memory\"] and self._memory_is_held", "self.free[\"memory\"]"
    ),
    "sends steps that need much memory with the others": Mutant(
        "lanes", "if heavy and functions[step] in heavy:", "if False:"
    ),
    "leaves steps that need much memory alone": Mutant(
        "lanes", "if self._look_again:\n                self._assign_special(commands)", "pass"
    ),
    "does not count what is learned of those that run": Mutant(
        "admission", "        self.count_all()\n\n", "\n"
    ),
    "does not count what others use": Mutant("slots", 'self.free["memory"] += self.others - n', "pass"),
    "does not count the memory of who comes next in a lane": Mutant(
        "lanes", "if self.memory.heavy:  # they were sent before that was known", "if False:"
    ),
    "goes on to count what was assumed": Mutant("lanes", "self.memory.count_all()", "pass"),
    "leaves steps behind one that stalls": Mutant("scheduler", "commands.append(Revoke(event.worker))", "pass"),
}


def core_with(mutant: Mutant) -> tuple[Any, Any]:
    """(Scheduler, SlotPool) with this bug. AssertionError if its line is not there (any more)."""
    names = {name: f"mpsteps._core.{name}" for name in MODULES}
    real = {full: importlib.import_module(full) for full in names.values()}
    try:
        for name, full in names.items():
            source = inspect.getsource(real[full])
            if name == mutant.module:
                assert source.count(mutant.old) == 1, (
                    f"{mutant.old!r} stands {source.count(mutant.old)} times in {full}"
                )
                source = source.replace(mutant.old, mutant.new)
            module = sys.modules[full] = ModuleType(full)
            exec(compile(source, f"{full} with a bug", "exec"), module.__dict__)
        return sys.modules[names["scheduler"]].Scheduler, sys.modules[names["slots"]].SlotPool
    finally:
        sys.modules.update(real)
