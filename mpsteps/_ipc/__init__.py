"""The step queue's bottom layer: shared memory, rings, bells and lanes between two processes. README.md argues it."""
