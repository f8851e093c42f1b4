"""The names and values that protocols compare with: states, run modes, steps modes, expert levels, GPU params.

They are Scipion's, value by value, because sources compare with literals too (`stepsExecutionMode = 1`) and because run
directories and databases written by one must be read by the other.
"""

from __future__ import annotations

__all__ = [
    "ACTIVE_STATUS", "BIN_THREADS_PARAM", "GPU_LIST", "LEVEL_ADVANCED", "LEVEL_CHOICES", "LEVEL_NORMAL",
    "MODE_CHOICES", "MODE_CONTINUE", "MODE_RESTART", "MODE_RESUME", "PARALLELIZATION", "STATUS_ABORTED",
    "STATUS_FAILED", "STATUS_FINISHED", "STATUS_INTERACTIVE", "STATUS_LAUNCHED", "STATUS_NEW", "STATUS_RUNNING",
    "STATUS_SAVED", "STATUS_SCHEDULED", "STATUS_WAITING", "STEPS_PARALLEL", "STEPS_SERIAL", "USE_GPU", "VOID_GPU",
]  # fmt: skip

# States of a step or a protocol.
STATUS_SAVED = "saved"
STATUS_LAUNCHED = "launched"
STATUS_NEW = "new"
STATUS_RUNNING = "running"
STATUS_FAILED = "failed"
STATUS_FINISHED = "finished"
STATUS_ABORTED = "aborted"
STATUS_INTERACTIVE = "interactive"
STATUS_WAITING = "waiting"
STATUS_SCHEDULED = "scheduled"

# A protocol in one of these states has work under way or promised.
ACTIVE_STATUS = [STATUS_LAUNCHED, STATUS_RUNNING, STATUS_INTERACTIVE, STATUS_SCHEDULED]

# What a new run does with what an earlier run left: go on from the first step that changed, or start anew.
MODE_RESUME = 0
MODE_RESTART = 1
MODE_CONTINUE = 2  # old sources name it; it means MODE_RESUME
MODE_CHOICES = ("Continue", "Restart")  # the text of MODE_RESUME and MODE_RESTART

# How steps run: one at a time in the calling process, or at the same time in worker processes.
STEPS_SERIAL = 0
STEPS_PARALLEL = 1

# Who a param is for.
LEVEL_NORMAL = 0
LEVEL_ADVANCED = 1
LEVEL_CHOICES = ("Normal", "Advanced")

# Params with a meaning of their own: whether to use GPUs, and which ones. VOID_GPU is the slot that is no GPU.
USE_GPU = "useGpu"
GPU_LIST = "gpuList"
VOID_GPU = 99

# The section for parallel params, and the param that holds the threads of each external program.
PARALLELIZATION = "Parallelization"
BIN_THREADS_PARAM = "binThreads"
