"""Dask as allocator and message bus: whatever it brings up gets an agent of ours, and bytes to and from it are carried.

No step is ever a Dask task. So there is nothing that Dask could retry, steal, recompute or run twice, and its
scheduler, which takes a few hundred microseconds for each task, is not in the way: agents are spoken to over direct
connections from this process to the Dask workers, with Dask's own encryption. (docs/decisions/0029)

Only this package knows Dask. In the coordinator it runs in a thread of its own with its own event loop.
"""
