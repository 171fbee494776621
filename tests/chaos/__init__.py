"""Harm at random moments: what was acknowledged stays, and the same command ends as ever.

    python -m tests.chaos --kills 1000 --seed 1 [--minutes 9]    # goes on where it stopped

A trial runs a command in a forked process that a preloaded shim (shim.c) harms at a random
one of its own file operations, before it, after it or in the midst: kill -9, SIGTERM,
Ctrl-C, a full disk or an I/O error from there on or once, no more memory; or it is killed
by the clock, or its store lies on a small tmpfs. Then the same command runs undisturbed.

    score        the canned scores of ``nursery`` (executor local, one process), two kinds
    env          two processes at one store, either or both of them harmed
    ray          two workers and a driver on a cluster of this machine: one worker is harmed
                 by the shim, others and the driver by the clock (``cluster``)
    real         the tiny model, whose scores depend on what went before (cascade)
    choose, export, report, reselect
                 into a new folder, or in place of an older result
    train        five steps of GRPO with re-selection, a checkpoint each (``training``)

What must hold: no finished shard, whole checkpoint or logged reward is lost or changed; an
older result stays until the new one is whole; an error has the package's own type; the last
run succeeds and leaves the files of an undisturbed run, byte for byte, and no others (of
``train`` weights, optimiser and all, but for clock readings and the folder's name). The
log: a line of JSON a trial. A command that costs more is chosen less often, or takes more
harms a trial.
"""
