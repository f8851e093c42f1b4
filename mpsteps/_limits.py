"""What limited a run: which one thing would have to change for it to be faster, with the number that says so.

Pure. `_account` says where the workers' time went; the verdict follows from the shares:

- A scarce resource (memory, cards, slots) goes before busy workers, since more workers would not help.
- Then the longest chain, if it takes most of the time in which steps ran: more workers would not help either.
- Then busy workers, since all other reasons have only what they leave.
- Then the largest share of idle time. Waiting for prerequisites and for the last steps is put down to one slow step if
  most of it was for one that takes much of the run and much longer than its like; else to the shape of the graph.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from mpsteps._account import Account, Machine, Needs, Piece, Run, critical_path
from mpsteps.report import format_bytes, format_seconds

WORTH_TELLING = 0.05  # of the workers' time
FULLY_BUSY = 0.75  # of the workers' time: more workers are what would help
BOUND = 0.8  # of the time in which steps ran: the longest chain is what would have to be shorter
SCARCE = 0.15  # so much idle time for want of a resource, and more workers would not help
OUTSTANDING = 3.0  # times the median of its function: one slow step
MOSTLY_WAITING = 0.5  # CPU seconds a second: steps that wait for something else than the processor
A_LOT = 0.3  # of the run: what one step has to take to be a reason by itself


class Limit(NamedTuple):
    """One thing that limited the run. `share`: of the workers' time (0 to 1) that speaks for it; `steps`: where to
    look, the longest first or in their order."""

    kind: str
    share: float
    sentence: str
    advice: str
    steps: Tuple[int, ...] = ()


class Analysis(NamedTuple):
    """`shares`: busy and the reasons in IDLE -> part of the workers' time, 1 in all. `path`: the steps of the longest
    chain by time, `path_seconds` its length. `limits`: the first is the verdict, the others matter less; never empty.
    """

    wall: float
    work: float
    shares: Dict[str, float]
    path: Tuple[int, ...]
    path_seconds: float
    limits: Tuple[Limit, ...]


def analyse(
    pieces: Sequence[Piece], prerequisites: Mapping[int, Sequence[int]], machine: Machine, began: float, ended: float,
    needs: Optional[Mapping[str, Needs]] = None, inserted: Optional[Mapping[int, float]] = None,
) -> Analysis:  # fmt: skip
    """Find out what limited one session, which lasted from `began` to `ended`.

    `prerequisites`: step -> those before it. `needs`: function -> Needs. `inserted`: when steps came that were not
    there from the beginning.
    """
    pieces = sorted(pieces, key=lambda p: (p.begin, p.end))
    began = min([began, *(p.begin for p in pieces[:1])])
    ended = max([ended, *(p.end for p in pieces)])
    run = Run(pieces, prerequisites, machine, began, ended, needs or {}, inserted or {})
    path, length = critical_path(pieces, prerequisites)
    account = run.account()
    return Analysis(ended - began, run.work, account.shares, path, length, _verdict(run, account, path, length))


def _verdict(run: Run, account: Account, path: Tuple[int, ...], length: float) -> Tuple[Limit, ...]:
    """The limits, the most important first."""
    shares = account.shares
    if not run.pieces:
        return (Limit("nothing", 1.0, "No step ran in this session.", "", ()),)
    scarce = [_scarce(run, account, kind) for kind in ("memory", "gpus", "cpus") if shares[kind] >= WORTH_TELLING]
    others = [_overhead(run, shares), _start(run, shares), _input(shares), *_waiting(run, account, path, length)]
    rest = sorted([*scarce, *others], key=lambda limit: -limit.share)
    rest = [limit for limit in rest if limit.share >= WORTH_TELLING]
    workers = _workers(run, shares, length)
    first = [limit for limit in rest[:1] if limit.kind in ("memory", "gpus", "cpus") and limit.share >= SCARCE]
    if not first and (shares["busy"] >= FULLY_BUSY or not rest):
        bound = length >= BOUND * run.wall * (1 - shares["start"])
        first = [_chain(run, length / run.wall, shares, path, length) if bound else workers]
        rest = [limit for limit in rest if limit.kind != first[0].kind]
    return (*first, *(limit for limit in rest if limit not in first), *_undeclared(run))


def _workers(run: Run, shares: Dict[str, float], length: float) -> Limit:
    n, cores = run.machine.workers, run.machine.cores
    sentence = (
        f"{_all(n)} busy {_percent(shares['busy'])} of the time: {format_seconds(run.work)} of work in "
        f"{format_seconds(run.wall)}. The longest chain of steps takes {_short(length)}."
    )
    if run.cpu_use is not None and run.cpu_use < MOSTLY_WAITING:
        sentence += f" But the steps computed only {_percent(run.cpu_use)} of that time."
        advice = (
            "The steps mostly waited: for files, for other programs, or for cores that somebody else used. In the "
            "first two cases more workers than cores (--threads) or faster storage may help, in the last one neither."
        )
    elif cores and n >= cores:
        advice = f"All {_number(cores, 'core')} of this machine are used: only more cores, or faster steps, help."
    else:
        most = min(cores or 10**9, max(n + 1, round(run.work / max(length, 1e-9))))
        more = f"up to {most} could be used" if length > 0 else "more could be used"
        advice = f"Give it more workers (--threads): {more}" + (f"; there are {cores} cores." if cores else ".")
    return Limit("workers", shares["busy"], sentence, advice)


def _scarce(run: Run, account: Account, kind: str) -> Limit:
    share = account.shares[kind]
    size = _SIZES[kind]
    funcs = sorted({p.func for p in run.pieces if size(run.need(p.func))}, key=lambda f: -size(run.need(f)))
    func = funcs[0] if funcs else "?"
    need, m = run.need(func), run.machine
    at_once = account.most_at_once.get(func, 0)
    told = {
        "memory": f"{func} {'needs about' if need.measured else 'declares'} {format_bytes(need.memory)} and there are "
        f"{format_bytes(m.memory)}",
        "gpus": f"{func} needs {_number(need.gpus, 'graphics card')} and there are {m.gpus}",
        "cpus": f"{func} declares cpus={need.cpus} and there are {_number(m.workers, 'worker')}",
    }[kind]
    word = {"memory": "memory", "gpus": "graphics cards", "cpus": "worker slots"}[kind]
    sentence = (
        f"Workers were idle {_percent(share)} of the time for want of {word}: {told}, so at most {at_once} ran at a "
        "time."
    )
    advice = {
        "memory": ("Make the steps smaller" if need.measured else "Declare what the steps really use (mpsteps report "
                   "shows peaks), make them smaller")
                  + ", or use a machine with more memory. More workers would not help.",
        "gpus": "Only more cards, or shorter steps on them, help. More workers would not.",
        "cpus": "More workers (--threads), or steps with fewer cpus, fit together better.",
    }[kind]  # fmt: skip
    return Limit(kind, share, sentence, advice)


_SIZES: Dict[str, Callable[[Needs], int]] = {
    "memory": lambda n: n.memory, "gpus": lambda n: n.gpus, "cpus": lambda n: n.cpus - 1,
}  # fmt: skip


def _undeclared(run: Run) -> List[Limit]:
    """Functions whose steps, one on each worker, need more memory than there is, and declare none."""
    found: List[Limit] = []
    peaks: Dict[str, List[int]] = {}
    for p in run.pieces:
        if p.peak and not run.needs.get(p.func, Needs()).memory:
            peaks.setdefault(p.func, []).append(p.peak)
    for func, known in peaks.items():
        high = sorted(known)[min(len(known) - 1, int(0.95 * len(known)))]
        at_once = min(run.machine.workers, sum(1 for p in run.pieces if p.func == func))
        if run.machine.memory and high * at_once > run.machine.memory:
            sentence = (
                f"{func} had {format_bytes(high)} at its peak (95 % of its steps had less) and declares none: "
                f"{at_once} at a time may need {format_bytes(high * at_once)} of the "
                f"{format_bytes(run.machine.memory)}."
            )
            gigabytes = max(0.1, round(1.2 * high / 1e9, 1))
            advice = f"Declare it, so that no more run at a time than fit: @step(memory='{gigabytes} GB')."
            found.append(Limit("undeclared memory", 0.0, sentence, advice))
    return found


def _overhead(run: Run, shares: Dict[str, float]) -> Limit:
    n = len(run.pieces)
    each = shares["overhead"] * run.wall * run.machine.workers / n
    sentence = (
        f"The {_number(n, 'step')} took {_short(run.work / n)} each on average, and {_short(each)} more went by for "
        f"each to be handed out and taken back: {_percent(shares['overhead'])} of the workers' time."
    )
    return Limit("overhead", shares["overhead"], sentence, "Give each step more work: fewer, longer steps.")


def _start(run: Run, shares: Dict[str, float]) -> Limit:
    first, last = min(p.begin for p in run.pieces), max(p.end for p in run.pieces)
    sentence = (
        f"Of {format_seconds(run.wall)}, {_short(first - run.began)} went by before the first step began and "
        f"{_short(run.ended - last)} after the last one had ended."
    )
    advice = "Look at what the protocol imports and does in _insertAllSteps; for a short run it is not worth it."
    return Limit("start", shares["start"], sentence, advice)


def _input(shares: Dict[str, float]) -> Limit:
    sentence = f"Workers had nothing to do {_percent(shares['input'])} of the time, and got new steps later."
    return Limit("input", shares["input"], sentence, "The input came slowly, or _stepsCheck looked for it too rarely.")


def _waiting(run: Run, account: Account, path: Tuple[int, ...], length: float) -> List[Limit]:
    """Prerequisites and tail: because of one slow step, or because of the shape of the graph."""
    shares = account.shares
    waiting = shares["prerequisites"] + shares["tail"]
    slow = _slow_step(run, account.blame)
    if slow is not None:
        seconds = run.seconds[slow]
        like = sorted(run.seconds[p.step] for p in run.pieces if p.func == run.func[slow] and p.step != slow)
        usual = f", others of its kind {format_seconds(like[len(like) // 2])}" if like else ""
        sentence = (
            f"Step {slow} {run.func[slow]} took {format_seconds(seconds)}{usual}: {_percent(seconds / run.wall)} of "
            f"the run. {_percent(waiting)} of the workers' time was spent waiting, most of it for this step."
        )
        advice = "Split it into steps that can run at the same time, or let it start earlier."
        return [Limit("slow step", waiting, sentence, advice, (slow,))]
    return [_chain(run, shares["prerequisites"], shares, path, length), _imbalance(run, shares)]


def _chain(run: Run, share: float, shares: Dict[str, float], path: Tuple[int, ...], length: float) -> Limit:
    """The longest chain of prerequisites."""
    sentence = (
        f"Workers waited for prerequisites {_percent(shares['prerequisites'])} of the time. The longest chain has "
        f"{_number(len(path), 'step')} and takes {format_seconds(length)} of the {format_seconds(run.wall)}."
    )
    advice = "More workers would not help: make the steps of the chain faster, or let fewer wait for each other."
    return Limit("critical path", share, sentence, advice, path)


def _imbalance(run: Run, shares: Dict[str, float]) -> Limit:
    """Nothing is left to start, and not all are done."""
    last = max(p.end for p in run.pieces)
    began = max(p.begin for p in run.pieces)  # from here on nothing was left to start
    late = tuple(p.step for p in run.pieces if p.end > began + 0.5 * (last - began))
    sentence = (
        f"For the last {format_seconds(last - began)} nothing was left to start, and workers that were done waited for "
        f"the others: {_percent(shares['tail'])} of the workers' time."
    )
    advice = "Insert the longest steps first, or make steps shorter, so that they can be shared out evenly."
    return Limit("imbalance", shares["tail"], sentence, advice, late[:100])


def _slow_step(run: Run, blame: Dict[int, float]) -> Optional[int]:
    """The one step that others waited for, if there is one."""
    if not blame:
        return None
    step = max(blame, key=blame.__getitem__)
    seconds = run.seconds[step]
    if blame[step] < 0.5 * sum(blame.values()) or seconds < A_LOT * run.wall:
        return None
    like = sorted(s for number, s in run.seconds.items() if run.func[number] == run.func[step] and number != step)
    if not like:
        like = sorted(s for number, s in run.seconds.items() if number != step)
    return step if not like or seconds >= OUTSTANDING * like[len(like) // 2] else None


def _all(n: int) -> str:
    return "The one worker was" if n == 1 else f"The {n} workers were"


def _number(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _short(seconds: float) -> str:
    """Also times that `format_seconds` would round to nothing."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else format_seconds(seconds)
