"""Confines a decoder process: afterwards it can compute and answer, and nothing else.

Resource limits hold on any Unix. On Linux a seccomp filter is added by libseccomp, through ctypes:
system calls that are not listed here fail with EPERM. None that is listed opens a file or a
socket, starts a process or a thread, signals or traces another, or makes memory executable.

Nothing here imports the server: decoder processes load this module.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal

# What C libraries and the interpreter call between one image and the next.
_ALLOWED = (
    "brk", "clock_gettime", "clock_nanosleep", "close", "exit", "exit_group", "futex", "getpid",
    "getrandom", "getrusage", "gettid", "gettimeofday", "madvise", "membarrier", "mremap", "munmap",
    "nanosleep", "poll", "ppoll", "pread64", "read", "recvfrom", "recvmsg", "restart_syscall",
    "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield",
    "sendmsg", "sendto", "sigaltstack", "sysinfo", "time",
)  # fmt: skip
_ALLOW = 0x7FFF0000
_ERRNO_EPERM = 0x00050000 | errno.EPERM
_EQUAL, _MASKED_EQUAL = 4, 7

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38


class _Comparison(ctypes.Structure):
    """libseccomp's ``struct scmp_arg_cmp``: argument, operator and its two operands."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class SyscallFilter:
    """A seccomp filter, built once and loaded by each process that is confined.

    Raises:
        OSError: libseccomp is missing, or refuses the filter.
    """

    def __init__(self) -> None:
        # By its name of the ABI that is used here; ctypes.util.find_library would run a compiler.
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = (ctypes.c_uint32,)
        library.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
        )  # fmt: skip
        library.seccomp_load.argtypes = (ctypes.c_void_p,)
        self._library = library
        self._context = library.seccomp_init(_ERRNO_EPERM)
        if not self._context:
            raise OSError("libseccomp cannot make a filter")
        for name in _ALLOWED:
            self._allow(name)
        not_executable = _Comparison(2, _MASKED_EQUAL, mmap.PROT_EXEC, 0)
        self._allow("mmap", not_executable)
        self._allow("mprotect", not_executable)
        # Its own limits, nobody else's.
        self._allow("prlimit64", _Comparison(0, _EQUAL, 0, 0))

    def _allow(self, name: str, *comparisons: _Comparison) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # Not on this architecture.
        array = (_Comparison * len(comparisons))(*comparisons)
        failed = self._library.seccomp_rule_add_array(
            self._context, _ALLOW, number, len(comparisons), array if comparisons else None
        )
        if failed:
            raise OSError(-failed, f"libseccomp refuses a rule for {name}")

    def load(self) -> None:
        """Confines this process; there is no way back."""
        failed = self._library.seccomp_load(self._context)
        if failed:
            raise OSError(-failed, "the kernel refuses the seccomp filter")


def confine(syscalls: SyscallFilter | None, max_memory_bytes: int) -> None:
    """Gives up, for good, what a decoder does not need.

    Args:
        syscalls: the filter to load; None leaves it out.
        max_memory_bytes: the most address space beside what is mapped already.

    Raises:
        OSError: the kernel refuses a part of it.
    """
    most, allowed = (
        read_address_space() + max_memory_bytes,
        resource.getrlimit(resource.RLIMIT_AS)[1],
    )
    if allowed != resource.RLIM_INFINITY:
        most = min(most, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if syscalls is not None:
        syscalls.load()


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process once its parent, ``parent``, is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def set_name(name: str) -> None:
    """Sets the name that ``ps`` and ``top`` show."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, buffer, 0, 0, 0)


def read_address_space() -> int:
    """Bytes of address space that this process has mapped."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * mmap.PAGESIZE


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    numbers = [ctypes.c_ulong(each) for each in (value, 0, 0, 0)]
    if library.prctl(ctypes.c_int(option), *numbers):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
