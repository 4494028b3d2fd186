"""Shim between the runner and a server: ties it to its parent's life, changes identity if asked, then execs it.

Run as a script by path with `python -I -S`; standard library only. The order matters: the kernel clears the
parent-death signal on every change of credentials (prctl(2)), so it is asked for last, just before exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
NOBODY = 65534


def tie_to_parent(libc: ctypes.CDLL, parent_pid: int, death_signal: int) -> None:
    """Ask the kernel for `death_signal` when the parent thread ends; leave at once if it already has."""
    if not sys.platform.startswith("linux"):
        return
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit(1)


def enter_user_namespace(libc: ctypes.CDLL) -> None:
    """Become uid 65534 inside a new user namespace while files stay owned by the caller outside."""
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "user namespaces are not allowed here")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def drop_to_nobody() -> None:
    """Give up root for good: no groups, group and user 65534."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def main(argv: list[str]) -> None:
    """`launch.py PARENT_PID DEATH_SIGNAL plain|namespace|nobody COMMAND...`; only returns by failing."""
    parent_pid, death_signal, mode, command = int(argv[0]), int(argv[1]), argv[2], argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)
    if mode == "namespace":
        enter_user_namespace(libc)
    elif mode == "nobody":
        drop_to_nobody()
    tie_to_parent(libc, parent_pid, death_signal)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # Python ignores these two at start and exec would pass that on: a server wants the system's defaults.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(126)
