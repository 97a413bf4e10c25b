"""Runs a program so that it dies with the one who started it: `python leash.py PARENT SIGNAL PROGRAM [ARGUMENT…]`.

The kernel sends SIGNAL to the program when PARENT dies, however that happens, so that even a SIGKILL of
`ziya up` leaves nothing running. It replaces itself by the program and is run with `python -I -S`, which
costs some ten milliseconds.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def on_leash(death_signal: int) -> list[str]:
    """The words to put before a command, so that it gets `death_signal` when this process dies."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal))]


def main() -> None:
    parent, signal, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal)
    if os.getppid() != parent:  # it died before we could ask the kernel
        sys.exit(1)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.exit(f"cannot run {program[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
