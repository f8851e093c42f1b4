"""The command line: `mpsteps run`, `resume`, `form`, `steps` and `demo`.

::

    main ── arguments ──▶ running (run, resume, demo) ── building ──▶ _targets, run, progress
                     └──▶ forms, steps ── building, history ────────▶ _targets, the journal

Results go to stdout; progress, notes and errors to stderr. Exit codes: 0 finished, 1 a step or the protocol failed, 2
usage or validation, 130 Ctrl-C. (SIGTERM ends the process as it ends any other: a shell reports 143.)
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import List, Optional

from mpsteps.cli import output
from mpsteps.errors import InternalError, MpstepsError, UsageError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line `argv` (default: that of the process); returns the exit code."""
    from mpsteps.cli.arguments import parse

    output.make_robust()
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        return _call(args.command, args)
    except SystemExit as stop:  # argparse has printed help, the version or what is wrong
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        output.note("mpsteps: stopped by Ctrl-C")
        return INTERRUPTED
    finally:
        output.finish()


def _call(name: str, args: object) -> int:
    """Carry out a command. What is not carried out ends in one message and an exit code."""
    from mpsteps.cli.arguments import COMMANDS

    try:
        module, function = COMMANDS[name]
        code: int = getattr(importlib.import_module(module), function)(args)
        return code
    except InternalError:
        output.note(f"mpsteps {name}: this is a bug of mpsteps, please report it:\n{traceback.format_exc().rstrip()}")
        return FAILED
    except UsageError as error:
        output.note(f"mpsteps {name}: {error}")
        return USAGE
    except MpstepsError as error:
        output.note(f"mpsteps {name}: {error}")
        return FAILED
