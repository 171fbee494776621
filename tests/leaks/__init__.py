"""Calls without end, after which everything that a process can lose is as it was.

    make leaks                                 # 10^5 calls of each kind; tests/leaks.md
    python -m tests.leaks 2000 --only ace      # some, by the start of a name

``host`` has the calls of every entry point of ``rap._C``, ``rap.ops`` and of torch's
operators, ``device`` those on the fake CUDA device of tests/cuda_emulator: those that
answer, and those that are refused. ``measure`` looks at Python's blocks, at the bytes that
malloc has given out, at references to what the calls were given, at files, threads,
resident memory and, of the device, at its blocks, contexts and queue.
"""
