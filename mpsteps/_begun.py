"""What workers had begun when their coordinator was killed: told by the zygote, believed by the next session.

A step is recorded as started before it is sent, and short steps are sent ahead, dozens to a lane. After a kill of the
coordinator all of them would be in doubt, although most were never begun. The words `begun` of the lanes know better,
but they are shared memory without a name and go with the last process. The zygote outlives the coordinator: when it
has killed the workers, and none can store anything any more, it reads these words and writes them to a file, in its
`Witness`. The next session reads the file under the run's lock (`_leftovers`), tells the journal which steps had not
begun (``returned``, as a living coordinator would have), and removes it. Steps cost nothing for all this.

From a message's number to a step: the n-th step that the session's journal has as started on a worker was sent to it
as message n, since steps are sent in the order in which they are recorded, and only recorded ones are. Messages that
were refused (2 GiB and more) have no number; the lane counts them in the word `refused`, before anything behind them
is sent, so that a position above ``begun + refused`` was certainly not begun.

If in doubt, a step stays in doubt. The file counts only if it is of the journal's last session and the journal ends
where it ended then (a power cut may have taken its tail). It says nothing of a worker that could not be killed, of one
whose pid was used twice in the session, or of those of a second zygote. No file: everything started is in doubt.

The file is text: the session, the journal's size in bytes, then ``pid begun refused`` for each worker.
"""

from __future__ import annotations

import os
from typing import Dict, NamedTuple, Set, Tuple

from mpsteps._private_files import open_private
from mpsteps.errors import MpstepsError

_Words = Tuple[int, int]  # begun, refused


class Occasion(NamedTuple):
    """Of what a witness is to tell: the file to write, the session as text in one line, the journal's path."""

    path: str
    session: str
    journal: str


def session_name(host: object, pid: object, started: object) -> str:
    """How file and journal say that they are of one session."""
    return f"{host} {pid} {started!r}".replace("\n", " ")


class Witness:
    """In the zygote: holds on to each worker's lane until it has died. One thread.

    ``lane`` descriptors belong to the witness; a forked worker calls `forget`, since lanes of others are none of its
    business.
    """

    def __init__(self, occasion: Occasion) -> None:
        self._occasion = occasion
        self._lanes: Dict[int, int] = {}  # pid of a living worker -> descriptor
        self._words: Dict[int, _Words] = {}  # pid of a dead one -> what it has left
        self._seen: Set[int] = set()
        self._ambiguous: Set[int] = set()  # pids that two workers have had, one after the other

    def born(self, pid: int, lane: int) -> None:
        """A worker was forked. The descriptor stays the caller's."""
        if pid in self._seen:
            self._ambiguous.add(pid)
        self._seen.add(pid)
        try:
            self._lanes[pid] = os.dup(lane)
        except OSError:
            self._ambiguous.add(pid)  # no descriptor is left: nothing will be known of it

    def died(self, pid: int) -> None:
        """A worker has been reaped: its words stand still."""
        from mpsteps._ipc.lane import left_words

        lane = self._lanes.pop(pid, None)
        if lane is None:
            return
        words = left_words(lane)
        os.close(lane)
        if words is None:
            self._ambiguous.add(pid)
        else:
            self._words[pid] = words

    def forget(self) -> None:
        """Close all lanes."""
        for lane in self._lanes.values():
            os.close(lane)
        self._lanes.clear()

    def testify(self) -> None:
        """The coordinator is gone, and so are the workers that have been told of by `died`: write the file.

        Whole or not at all. Where it cannot be written (a full disk, a directory that was removed) nobody is left to
        be told: the steps are in doubt then, which is always true.
        """
        self.forget()
        lines = [f"{pid} {w[0]} {w[1]}\n" for pid, w in self._words.items() if pid not in self._ambiguous]
        if not lines:
            return
        path, session, journal = self._occasion
        draft = f"{path}.new"
        try:
            size = os.stat(journal).st_size
            if os.path.lexists(draft):
                os.unlink(draft)
            fd = open_private(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with open(fd, "wb") as f:
                f.write(f"{session}\n{size}\n{''.join(lines)}".encode("utf-8", "backslashreplace"))
            os.rename(draft, path)
        except (OSError, MpstepsError):
            if os.path.lexists(draft):
                os.unlink(draft)
