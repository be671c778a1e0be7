"""The inside of the sandbox: takes away what the process could do, then runs a program.

:mod:`amidkd.evaluation.sandbox` starts this file by its path, so it needs the standard library alone. The program comes
as JSON on standard input; what becomes of it goes, a JSON object a line, to the file descriptor in the first argument.

On Linux the process leaves the network and its process tree (namespaces), the kernel holds its files to the working
folder (Landlock), and new processes are refused (seccomp); each where the kernel allows it. As root it becomes
``nobody`` first.
"""

import ctypes
import errno
import json
import os
import resource
import struct
import sys
import types
from typing import Any

__all__ = ["main"]

_NOBODY = 65534
_NEW_USER, _NEW_NETWORK, _NEW_PIDS, _NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
_NO_NEW_PRIVILEGES = 38
# linux/landlock.h: the numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _ASK_VERSION, _PATH_BENEATH = 444, 445, 446, 1, 1
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1}
_RIGHTS_FROM_3 = (1 << 15) - 1
_TCP_FROM, _SIGNALS_FROM = 4, 6
_OPEN_FILES = 64
# linux/audit.h and the system calls that make a process or thread: clone, clone3, and fork and vfork where they exist.
_ARCHITECTURES = {"x86_64": (0xC000003E, (56, 57, 58, 435)), "aarch64": (0xC00000B7, (220, 435))}
_SET_SECCOMP, _FILTER, _ALLOW, _REFUSE = 22, 2, 0x7FFF0000, 0x00050000 | errno.EAGAIN
_OTHER_NUMBERS = 0x40000000


def main() -> None:
    """Read a program, close the doors, run it, say how it ended."""
    control = int(sys.argv[1])
    os.set_inheritable(control, False)
    request = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    apart, counted = _leave()
    ready, go = os.pipe()
    inside = os.fork() if apart else 0
    if inside:
        _say(control, {"pid": inside})
        os.write(go, b".")
        os.close(control)
        status = os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    os.close(go)
    # The first line of all is ours: whom to end is not for the program to say.
    os.read(ready, 1)
    os.close(ready)
    files, tcp = _hold_files(os.getcwd())
    processes = _limit(request, apart=apart, counted=counted)
    network = "none" if apart else "no TCP" if tcp else "open"
    _say(control, {"guards": {"network": network, "files": files, "processes": processes}})
    why = _run(request["program"])
    _flush()
    _say(control, {"proof": request["proof"]} if why is None else {"why": why})
    # Whatever threads and exit handlers the program has left have no say.
    os._exit(0)


def _say(control: int, message: dict[str, Any]) -> None:
    os.write(control, (json.dumps(message) + "\n").encode())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


def _run(program: str) -> str | None:
    """Run a program as a module of its own; what stopped it, or None where it came to its end."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    try:
        exec(compile(program, "answer.py", "exec"), module.__dict__)
    except BaseException as error:
        return _described(error, program)
    return None


def _described(error: BaseException, program: str) -> str:
    try:
        text = str(error)
    except BaseException:
        text = ""
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    number, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "answer.py":
            number = trace.tb_lineno
        trace = trace.tb_next
    lines = program.splitlines()
    where = f" at `{lines[number - 1].strip()}`" if number and number <= len(lines) else ""
    return (text + where)[:500]


def _leave() -> tuple[bool, bool]:
    """Leave network and process tree; whether that worked, and whether this user's processes are counted apart."""
    namespaces = _NEW_NETWORK | _NEW_PIDS | _NEW_IPC
    if os.geteuid() != 0:
        apart = _unshare(_NEW_USER | namespaces)
        return apart, apart
    apart = _unshare(namespaces)
    # The kernel holds root to no number of processes.
    return apart, _become_nobody() and _unshare(_NEW_USER)


def _unshare(flags: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return ctypes.CDLL(None, use_errno=True).unshare(flags) == 0
    except (OSError, AttributeError):
        return False


def _become_nobody() -> bool:
    """Give root up, unless ``nobody`` could not read Python's own files."""
    try:
        os.setgroups([])
        os.setegid(_NOBODY)
        os.seteuid(_NOBODY)
        try:
            with open(os.__file__, "rb"):
                readable = True
        except OSError:
            readable = False
        os.seteuid(0)
        os.setegid(0)
        if readable:
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except (OSError, AttributeError):
        return False
    return readable


def _hold_files(folder: str) -> tuple[bool, bool]:
    """Let the process write in one folder alone, read that and Python; whether it holds, and whether TCP is shut."""
    if not sys.platform.startswith("linux"):
        return False, False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False, False
    rights, tcp = _RIGHTS_BY_VERSION.get(version, _RIGHTS_FROM_3), version >= _TCP_FROM
    wanted = struct.pack("<QQ", rights, 0b11) if tcp else struct.pack("<Q", rights)
    if version >= _SIGNALS_FROM:
        # No signal to, and no abstract socket of, what is outside.
        wanted += struct.pack("<Q", 0b11)
    ruleset = libc.syscall(_CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), 0)
    if ruleset < 0:
        return False, False
    of_files = (_EXECUTE | _WRITE | _READ | 1 << 14) & rights
    allowed = {folder: rights, "/dev/null": _READ | _WRITE, "/dev/zero": _READ, "/dev/urandom": _READ}
    for path in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "/usr", "/lib", "/lib64", "/bin"):
        allowed[path] = _EXECUTE | _READ | _LIST
    allowed.update({"/etc/ld.so.cache": _READ, "/etc/localtime": _READ})
    for path, access in allowed.items():
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = struct.pack("<Qi", access if os.path.isdir(path) else access & of_files, place)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        os.close(place)
    held = libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return held, held and tcp


def _limit(request: dict[str, Any], *, apart: bool, counted: bool) -> bool:
    """Set the limits; whether that of processes holds."""
    seconds, memory, file = request["seconds"], request["memory"], request["file"]
    _set("RLIMIT_CORE", 0)
    _set("RLIMIT_CPU", seconds)
    _set("RLIMIT_AS", memory)
    _set("RLIMIT_FSIZE", file)
    _set("RLIMIT_NOFILE", _OPEN_FILES)
    extra = request["processes"]
    if extra == 0 and _refuse_processes():
        return True
    if counted:
        # Those counted already: this one and, beside it, the one that waits for it.
        return _set("RLIMIT_NPROC", extra + 1 + apart)
    return extra == 0 and os.geteuid() != 0 and _set("RLIMIT_NPROC", 0)


def _refuse_processes() -> bool:
    """Have the kernel refuse whatever makes a process or thread (seccomp); whether it does."""
    if not sys.platform.startswith("linux") or os.uname().machine not in _ARCHITECTURES:
        return False
    architecture, numbers = _ARCHITECTURES[os.uname().machine]
    refused = (_OTHER_NUMBERS, *numbers)
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    # Each line: what to do, how far to jump where it holds and where not, and the number it is about.
    lines = [(load, 0, 0, 4), (equal, 0, len(refused) + 2, architecture), (load, 0, 0, 0)]
    for place, number in enumerate(refused):
        lines.append((at_least if place == 0 else equal, len(refused) - place, 0, number))
    lines += [(give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0) == 0


def _set(name: str, value: int) -> bool:
    kind = getattr(resource, name, None)
    if kind is None:
        return False
    highest = resource.getrlimit(kind)[1]
    value = value if highest == resource.RLIM_INFINITY else min(value, highest)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    main()
