"""A process that has, for this suite's modules, only what Python has on Windows too.

`python elsewhere_worker.py import` imports every module; `… fill ROOT` fills a store together with other such processes.
"""

import builtins
import os
import pkgutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
OF_OS = [
    "O_DIRECTORY",
    "O_NONBLOCK",
    "chown",
    "fchmod",
    "fork",
    "forkpty",
    "getgid",
    "getloadavg",
    "getpgid",
    "getuid",
    "kill",
    "killpg",
    "mkfifo",
    "nice",
    "openpty",
    "posix_fallocate",
    "posix_spawn",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "register_at_fork",
    "sched_getaffinity",
    "setsid",
    "sync",
    "sysconf",
    "uname",
    "wait",
]
OF_SIGNAL = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "alarm", "pthread_kill", "sigwait")
PACKAGES = ("probing", "concepts")
_import = builtins.__import__


def import_elsewhere(
    name: str, globals: object = None, locals: object = None, fromlist: tuple[str, ...] = (), level: int = 0
) -> ModuleType:
    importer = str(globals.get("__name__")) if isinstance(globals, dict) else ""
    if name in POSIX_ONLY and importer.split(".")[0] in PACKAGES:
        raise ModuleNotFoundError(f"No module named {name!r}")
    return _import(name, globals, locals, fromlist, level)  # type: ignore[arg-type]


def be_elsewhere() -> None:
    """Take away what Windows lacks, from `os` and `signal` as this suite's modules see them."""
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        bare = ModuleType(module.__name__)
        vars(bare).update({k: v for k, v in vars(module).items() if k not in names})
        for owner in [m for n, m in sys.modules.items() if n.split(".")[0] in PACKAGES]:
            for name, value in vars(owner).items():
                if value is module:
                    setattr(owner, name, bare)


def import_all() -> None:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            import_module(module.name)


def fill(root: Path) -> None:
    import nets
    from store_worker import Together, fill as fill_as_anywhere

    be_elsewhere()
    filled = fill_as_anywhere(root, Together(nets.images(96, size=24), root / "asked"))
    (root / f"count-{os.environ['RANK']}").write_text(str(filled.stats.forward_rows))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    builtins.__import__ = import_elsewhere
    if sys.argv[1] == "import":
        import_all()
    else:
        fill(Path(sys.argv[2]))
