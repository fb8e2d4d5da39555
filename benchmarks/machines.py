"""Machines that are not this one: another CPU under emulation, or an older Python, with numpy and onnxruntime alone.

They are unpacked into a folder from Debian's packages (through this machine's apt, whose own state is not touched) and
PyPI's wheels. Nothing is installed. What was unpacked stays there for the next time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: The release whose emulator is taken: an older one crashes on current wheels of onnxruntime.
EMULATOR_RELEASE = "trixie"
#: The CPU that is emulated, that of a Raspberry Pi 5; it has no SVE, which makes emulation slow.
CPU = "cortex-a76"
#: The minor versions of glibc for which wheels are built.
_GLIBC = (17, 24, 26, 27, 28, 31, 34)
#: onnxruntime before this one was built for numpy 1.
NUMPY_2 = (1, 19)


class Unavailable(RuntimeError):
    """This machine has not what the other one is made of."""


@dataclass(frozen=True)
class Machine:
    """A Python to run programs with: what it is called, how it is started, and where its packages are."""

    name: str
    command: tuple[str, ...]
    packages: Path

    def run(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run Python there with these arguments, in a folder of this machine."""
        environment = {
            "PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", "PYTHONPATH": str(self.packages),
            "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [*self.command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    def printed(self, *arguments: str, folder: Path) -> str:
        """What a program prints there that has to succeed."""
        done = self.run(*arguments, folder=folder)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(arguments)[:200]}:\n{done.stdout}{done.stderr}")
        return done.stdout


def emulated(folder: Path, release: str, onnxruntime: str | None = None, cpu: str = CPU) -> Machine:
    """The Python of a Debian release on an emulated aarch64, with this onnxruntime, or the newest that it can have.

    Raises:
        RuntimeError: this machine has no apt-get or no dpkg, or packages can't be fetched.
    """
    emulator = unpacked(folder, EMULATOR_RELEASE, _architecture(), ["qemu-user"], alone=True)
    root = unpacked(folder, release, "arm64", ["python3", "libstdc++6"])
    command = (str(emulator / "usr/bin/qemu-aarch64"), "-cpu", cpu, "-L", str(root), str(root / "usr/bin/python3"))
    return _with_packages(folder, command, "aarch64", onnxruntime)


def of_release(folder: Path, release: str, onnxruntime: str | None = None) -> Machine:
    """The Python of a Debian release on this CPU, with the release's own C library."""
    root = unpacked(folder, release, _architecture(), ["python3", "libstdc++6"])
    loader = next(root.glob("lib*/ld-linux*.so.*"))
    libraries = ":".join(str(place) for part in ("lib", "usr/lib") for place in (root / part).glob("*-linux-gnu"))
    command = (str(loader), "--library-path", libraries, str(root / "usr/bin/python3"))
    return _with_packages(folder, command, os.uname().machine, onnxruntime)


def installed(folder: Path, python: str, onnxruntime: str | None = None) -> Machine:
    """A Python that is installed here.

    Raises:
        Unavailable: there is none of this name.
    """
    found = shutil.which(python)
    if found is None:
        raise Unavailable(f"there is no {python} here")
    return _with_packages(folder, (found, "-s"), os.uname().machine, onnxruntime)


def _with_packages(folder: Path, command: tuple[str, ...], machine: str, onnxruntime: str | None) -> Machine:
    bare = Machine("", command, folder)
    version = bare.printed("-c", "import platform; print(platform.python_version())", folder=folder).strip()
    minor = ".".join(version.split(".")[:2])
    packages = folder / f"packages-{machine}-{minor}-{onnxruntime or 'newest'}"
    if not (packages / "complete").exists():
        shutil.rmtree(packages, ignore_errors=True)
        old = onnxruntime is not None and tuple(map(int, onnxruntime.split(".")[:2])) < NUMPY_2
        wanted = [f"onnxruntime=={onnxruntime}" if onnxruntime else "onnxruntime", "numpy<2" if old else "numpy"]
        _wheels(packages, minor, machine, wanted)
    runtime, numpy = (_version(packages, name) for name in ("onnxruntime", "numpy"))
    name = f"{machine}, Python {version}, onnxruntime {runtime}, numpy {numpy}"
    return Machine(name, command, packages)


def unpacked(folder: Path, release: str, architecture: str, names: Sequence[str], *, alone: bool = False) -> Path:
    """A folder with packages of a release, and, unless `alone`, all that they depend on, unpacked."""
    root = folder / f"{release}-{architecture}-{names[0]}"
    if (root / "complete").exists():
        return root
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise RuntimeError(f"there is no {program} here: the machines are made of Debian's packages")
    shutil.rmtree(root, ignore_errors=True)
    state = folder / f"apt-{release}-{architecture}"
    settings = _apt(state, release, architecture)
    _call(["apt-get", "-q", "update"], settings)
    archives = state / "cache/archives"
    if alone:
        _call(["apt-get", "-q", "download", *names], settings, archives)
    else:
        _call(["apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install", *names], settings)
    root.mkdir(parents=True)
    for archive in sorted(archives.glob("*.deb")):
        _call(["dpkg", "-x", str(archive), str(root)])
    for name in ("lib", "lib64"):  # newer releases have them in usr/ alone, and the links in a package of essentials
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    _inside(root)
    shutil.rmtree(state)
    (root / "complete").touch()
    return root


def _inside(root: Path) -> None:
    """Make links to absolute paths lead to the same places below `root`."""
    for folder, folders, files in os.walk(root):
        for place in (Path(folder, name) for name in (*folders, *files)):
            if place.is_symlink() and os.path.isabs(to := os.readlink(place)):
                place.unlink()
                place.symlink_to(os.path.relpath(f"{root}{to}", folder))


def _apt(state: Path, release: str, architecture: str) -> Path:
    """The settings of an apt that keeps all that it knows in `state`, with the mirror that this machine uses."""
    told = _call(["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"])
    mirrors = [line.split()[1] for line in told.splitlines() if line.startswith("Debian ")]
    if not mirrors:
        raise RuntimeError("this machine's apt has no source of Debian's packages")
    for place in ("lists/partial", "cache/archives/partial"):
        (state / place).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb {mirrors[0]} {release} main\n", encoding="utf-8")
    settings = state / "apt.conf"
    settings.write_text(f"""
Dir::State "{state}"; Dir::State::lists "{state}/lists"; Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
Dir::Etc::sourcelist "{state}/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "{architecture}"; APT::Architectures "{architecture}";
APT::Sandbox::User "{'root' if os.geteuid() == 0 else ''}"; Acquire::Languages "none";
""", encoding="utf-8")
    return settings


def _wheels(packages: Path, python: str, machine: str, wanted: Sequence[str]) -> None:
    """Download wheels for a Python and a CPU, and unpack them."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC] + [f"manylinux2014_{machine}"]
    downloads = packages / "downloads"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--dest", str(downloads), "--only-binary", ":all:", "--implementation", "cp", "--python-version", python,
    ]
    _call([*command, *(part for platform in platforms for part in ("--platform", platform)), *wanted])
    for wheel in downloads.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    shutil.rmtree(downloads)
    (packages / "complete").touch()


def _version(packages: Path, name: str) -> str:
    place = next(packages.glob(f"{name}-*.dist-info")).name
    return place.removeprefix(f"{name}-").removesuffix(".dist-info")


def _architecture() -> str:
    if shutil.which("dpkg") is None:
        raise RuntimeError("there is no dpkg here: the machines are made of Debian's packages")
    return _call(["dpkg", "--print-architecture"]).strip()


def _call(command: Sequence[str], apt: Path | None = None, folder: Path | None = None) -> str:
    environment = {**os.environ, **({"APT_CONFIG": str(apt)} if apt is not None else {})}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout
