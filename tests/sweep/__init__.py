"""Each allocation of each entry point fails once.

``child`` runs in a process of its own, with ``shim`` preloaded: the calls of tests/leaks,
which know every entry point, are made with the first allocation failing, with the second,
and so on, until one is made that has no such allocation. tests/test_sweep.py starts it.
"""
