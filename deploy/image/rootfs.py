"""Collects into a folder the least that runs Python: interpreter, standard library with bytecode, shared libraries, certificates.

Runs while an image is built, as root, in the image of the same Python: `python rootfs.py /rootfs`. The result has no shell, no package
manager and no pip, is the same for every service, and so is one layer that all their images share.
"""

import compileall
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from py_compile import PycInvalidationMode

WORKERS_OF_ALL_CPUS = 0

STDLIB_LEFT_OUT = (
    "__pycache__", "_test*.so", "_tkinter*.so", "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "tkinter", "turtledemo",
)  # fmt: skip
"""What no service needs; slim images have no libraries for _tkinter, either."""

LIBRARIES_OF_WHEELS = (
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libz.so.1",
)
"""What binary wheels may expect of any system (PEP 513 and its successors) beside libc itself."""

FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/nsswitch.conf",
    "/etc/ld.so.cache",
    "/etc/os-release",
    "/etc/debian_version",
)

PASSWD = "root:x:0:0:root:/:/sbin/nologin\nroundhouse:x:10001:10001:roundhouse:/:/sbin/nologin\n"  # noqa: S105 - no password in it
GROUP = "root:x:0:\nroundhouse:x:10001:\n"


def copy(source: Path, root: Path) -> None:
    """Copy a file to the same place under `root`; where it is a symbolic link, also what it leads to."""
    # Folders are resolved: on a merged system /lib is a link, which must not become a folder of its own.
    source = source.parent.resolve() / source.name
    target = root / source.relative_to("/")
    if target.exists() or target.is_symlink():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
        copy(source.parent / source.readlink(), root)
    else:
        shutil.copy2(source, target)


def copy_links(root: Path) -> None:
    """Make the links at the top of a merged system, such as /lib64 where binaries look for their loader."""
    for link in (Path("/lib"), Path("/lib64")):
        if link.is_symlink():
            (root / link.resolve().relative_to("/")).mkdir(parents=True, exist_ok=True)
            (root / link.name).symlink_to(link.readlink())


def copy_python(root: Path) -> Path:
    """Copy interpreter and standard library; return where the latter went."""
    interpreter = Path(sys.executable)
    for name in {interpreter.name, "python", "python3"}:
        copy(interpreter.with_name(name), root)
    stdlib = Path(sysconfig.get_path("stdlib"))
    target = root / stdlib.relative_to("/")
    shutil.copytree(stdlib, target, ignore_dangling_symlinks=True, ignore=shutil.ignore_patterns(*STDLIB_LEFT_OUT))
    # Official images carry no bytecode of the standard library, and a read-only root could never keep any.
    mode = PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(
        target, quiet=1, workers=WORKERS_OF_ALL_CPUS, stripdir=str(root), prependdir="/", invalidation_mode=mode
    ):
        raise SystemExit("the standard library does not compile")
    return target


def libraries(binary: Path) -> list[Path]:
    """Return the shared libraries that a binary is linked with, the loader included."""
    listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout  # noqa: S603, S607
    if "not found" in listed:
        raise SystemExit(f"{binary} misses a library:\n{listed}")
    return [Path(word) for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def copy_libraries(binaries: Iterable[Path], root: Path) -> None:
    """Copy what the binaries are linked with, and what wheels may expect. A missing one stops the build."""
    linked = {found for binary in binaries for found in libraries(binary)}
    libc = next(path for path in linked if path.name.startswith("libc.so"))
    for path in (*linked, *(libc.with_name(name) for name in LIBRARIES_OF_WHEELS)):
        if not path.exists():
            raise SystemExit(f"there is no {path}")
        copy(path, root)


def main(root: Path) -> None:
    copy_links(root)
    stdlib = copy_python(root)
    copy_libraries((Path(sys.executable), *stdlib.rglob("*.so")), root)
    for name in FILES:
        if Path(name).exists():
            copy(Path(name), root)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
