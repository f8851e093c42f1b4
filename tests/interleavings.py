"""Every interleaving of small programs on a model of the hardware, for tests of what two processes do in shared memory.

Each side is a function that uses the real code over stand-ins for shared words, ring data and bells. A side is run by
replay: from its start, with the results of the accesses it has made so far, up to the next one, which is thereby known.
The explorer tries every order of these accesses, and of the moments at which stores leave each side's store buffer: in
order of time, as on x86, or in any order of addresses (`weak=True`: a machine that reorders stores, as ARM does). None
is woken by a time-out here, so a lost wake-up is a state in which somebody sleeps for ever, and it is found.
"""

from __future__ import annotations

from typing import Any, Callable, Tuple

from mpsteps._ipc.lane import NEVER

Access = Tuple[Any, ...]
CAPACITY = 128  # the smallest ring: four frames of up to 16 bytes of payload
REVOKED = 88  # the address of the word that does not begin as 0


# ---------------------------------------------------------------------------------------- the stand-ins of one side
class _Pause(BaseException):
    """The side has come to an access whose result is not known yet."""


class Side:
    """One process during one replay: gives out the results it has, and stops at the first that is missing."""

    def __init__(self, results: list[Any]) -> None:
        self.results = results
        self.position = 0
        self.pending: Access | None = None

    def do(self, *access: Any) -> Any:
        if self.pending is None and self.position < len(self.results):
            self.position += 1
            return self.results[self.position - 1]
        self.pending = self.pending or access  # also when a `finally` goes on after the pause
        raise _Pause

    def fence(self) -> None:
        self.do("fence")


class Words:
    """A memoryview of 64-bit words; `base` names the region, so that addresses are unique."""

    def __init__(self, side: Side, base: int = 0) -> None:
        self.side, self.base = side, base

    def __getitem__(self, index: int) -> int:
        return self.side.do("load", self.base + index)

    def __setitem__(self, index: int, value: int) -> None:
        self.side.do("store", self.base + index, value)


# ------------------------------------------------------------------------------------------------------ the explorer
class Violation(Exception):  # no error of the program under test
    """An interleaving with a wrong end; the message says which."""


class Explorer:
    """All interleavings of `programs`; `check(results)` judges each end. A state is visited once."""

    def __init__(
        self,
        programs: list[Callable[[Side], Any]],
        check: Callable[[list[Any]], bool],
        weak: bool,
        start: tuple[dict[int, int], bytes],
    ) -> None:
        self.programs, self.check, self.weak, self.start = programs, check, weak, start
        self.histories: list[list[list[Any]]] = [[[]] for _ in programs]  # per side: results by node
        self.children: dict[tuple[int, int, Any], int] = {}
        self.nodes: dict[tuple[int, int], tuple[str, Any]] = {}
        self.states = 0

    def node(self, side: int, number: int) -> tuple[str, Any]:
        """('access', it) or ('end', result): what this side does next after the history of this node."""
        key = side, number
        if key not in self.nodes:
            replay = Side(self.histories[side][number])
            try:
                self.nodes[key] = "end", self.programs[side](replay)
            except _Pause:
                self.nodes[key] = "access", replay.pending
            except Exception as error:
                raise Violation(f"side {side} failed: {error!r}") from error
        return self.nodes[key]

    def child(self, side: int, number: int, result: Any) -> int:
        key = side, number, result
        if key not in self.children:
            self.histories[side].append([*self.histories[side][number], result])
            self.children[key] = len(self.histories[side]) - 1
        return self.children[key]

    def run(self) -> Explorer:
        count = len(self.programs)
        words, data = self.start
        memory = tuple(sorted({REVOKED: NEVER, **words}.items()))
        start = ((0,) * count, memory, data.ljust(2 * CAPACITY, b"\0"), ((),) * count, (0, 0))
        seen, todo = {start}, [start]
        while todo:
            state = todo.pop()
            following = self.successors(state)
            if not following:
                self.judge(state)
            for new in following:
                if new not in seen:
                    seen.add(new)
                    todo.append(new)
            assert len(seen) < 600_000, "this case is too large to be explored"
        self.states = len(seen)
        return self

    def judge(self, state: Any) -> None:
        ends = [self.node(side, number) for side, number in enumerate(state[0])]
        for side, (kind, value) in enumerate(ends):
            if kind != "end":
                raise Violation(f"side {side} waits for ever at {value} with memory {state[1]}")
        if not self.check([value for _, value in ends]):
            raise Violation(f"wrong end: {[value for _, value in ends]}")

    def successors(self, state: Any) -> list[Any]:
        result = []
        for side in range(len(self.programs)):
            result.extend(self.drained(state, side))
            kind, access = self.node(side, state[0][side])
            if kind == "access":
                new = self.step(state, side, access)
                if new is not None:
                    result.append(new)
        return result

    def drained(self, state: Any, side: int) -> list[Any]:
        """The states after one store has left this side's buffer: the oldest, or (weak) the oldest of an address."""
        numbers, words, data, buffers, bells = state
        result, passed = [], set()
        for position, (address, value) in enumerate(buffers[side]):
            if address in passed:
                continue
            passed.add(address)
            rest = buffers[side][:position] + buffers[side][position + 1 :]
            left = (*buffers[:side], rest, *buffers[side + 1 :])
            if isinstance(value, bytes):
                offset = address[1]
                changed = data[:offset] + value + data[offset + len(value) :]
                result.append((numbers, words, changed, left, bells))
            else:
                memory = tuple(sorted({**dict(words), address: value}.items()))
                result.append((numbers, memory, data, left, bells))
            if not self.weak:
                break
        return result

    def step(self, state: Any, side: int, access: Access) -> Any | None:
        """The state after this side's access; None while it has to wait."""
        numbers, words, data, buffers, bells = state
        mine, name, outcome = buffers[side], access[0], None
        if name in ("fence", "ring", "clear") and mine:
            return None
        if name == "load":
            stored = [value for address, value in mine if address == access[1]]
            outcome = stored[-1] if stored else dict(words).get(access[1], 0)
        elif name == "store":
            mine = (*mine, (access[1], access[2]))
        elif name == "write":
            mine = (*mine, (("data", access[1]), access[2]))
        elif name == "read":
            outcome = data[access[1] : access[2]]
        elif name == "settle" and any(buffers[other] for other in range(len(buffers)) if other != side):
            return None  # hardware gets rid of its stores in far less time than these retries take
        elif name == "await" and dict(words).get(access[1], 0) < access[2]:
            return None
        elif name == "sleep":
            if not bells[access[1]]:
                return None
            outcome = True
        elif name in ("ring", "clear"):
            bells = tuple((name == "ring") if n == access[1] else bell for n, bell in enumerate(bells))
        number = self.child(side, numbers[side], outcome)
        left = (*buffers[:side], mine, *buffers[side + 1 :])
        return (*numbers[:side], number, *numbers[side + 1 :]), words, data, left, bells


def explore(
    check: Callable[[list[Any]], bool],
    *programs: Callable[[Side], Any],
    weak: bool = False,
    start: tuple[dict[int, int], bytes] = ({}, b""),
) -> Explorer:
    return Explorer(list(programs), check, weak, start).run()
