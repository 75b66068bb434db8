"""Finds, downloads and unpacks the distribution packages of a kernel, and builds the module against them."""

import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """Something that the person at the terminal can do something about; the text says what."""


TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "make": "make",
    "gcc-12": "gcc-12",
    "ldd": "libc-bin",
    "xz": "xz-utils",
}


def need(*tools):
    """Fails, naming the package, if one of the tools is not there."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise Failed(f"{tool} is not installed; it is in the package {TOOLS.get(tool, tool)}")


def run(command, where=None, environment=None):
    """Runs a command and gives its output; its last lines are in the error if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=where, env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        told = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise Failed(f"{' '.join(str(word) for word in command)}: exit {done.returncode}\n{told}")
    return done.stdout


def natural(text):
    """Sorts 6.1.0-9 before 6.1.0-56."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def newest(series):
    """The newest cloud kernel of a series ("6.1", "6.12") that the archive and its headers have."""
    listed = run(["apt-cache", "pkgnames", "linux-headers-" + series + "."]).split()
    match = re.compile(r"linux-headers-(" + re.escape(series) + r"\.\d.*-cloud-amd64)$")
    releases = [found.group(1) for found in map(match.match, listed) if found]
    if not releases:
        raise Failed(
            f"the package archive has no cloud kernel {series} with headers; look at "
            f"`apt-cache search linux-headers.*cloud-amd64`, and name a release with --kernel"
        )
    return max(releases, key=natural)


class Kernel:
    """An unpacked distribution kernel: image, modules, headers and calltrouble.ko."""

    def __init__(self, wanted, work):
        need("apt-get", "apt-cache", "dpkg-deb", "make", "gcc-12")
        self.series = ".".join(re.match(r"(\d+)\.(\d+)", wanted).groups()) if re.match(r"\d+\.\d+", wanted) else ""
        if not self.series:
            raise Failed(f"--kernel {wanted}: neither a series (6.12) nor a release (6.1.0-56-cloud-amd64)")
        self.release = newest(wanted) if wanted == self.series else wanted
        self.root = work / f"kernel-{self.release}"
        if not (self.root / "complete").exists():
            self._unpack(work / "packages")
        self.image = self.root / "boot" / f"vmlinuz-{self.release}"
        # pahole describes the module's types (BTF), where the headers come with a vmlinux to describe them against.
        tools = unpacked(["pahole", "libbpf1"], work)
        environment = dict(os.environ, LD_LIBRARY_PATH=str(tools / "usr/lib/x86_64-linux-gnu"))
        pahole = f"PAHOLE={tools / 'usr/bin/pahole'}"
        self.module = build_module(self.headers(), work / f"module-{self.release}", environment, pahole)
        self.package_version = (self.root / "complete").read_text().strip()

    def _unpack(self, downloads):
        base = re.sub(r"-cloud-amd64$", "", self.release)
        headers = f"linux-headers-{self.release}"
        depends = run(["apt-cache", "depends", headers])
        kbuild = re.search(r"Depends: (linux-kbuild-\S+)", depends)
        if not kbuild:
            raise Failed(f"the package {headers} names no linux-kbuild; is the release right?")
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        names = [f"linux-image-{self.release}", headers, f"linux-headers-{base}-common", kbuild.group(1)]
        version = ""
        for name in names:
            package = download(name, downloads)
            version = package.name.split("_")[1]
            run(["dpkg-deb", "-x", package, self.root])
        makefile = self.headers() / "Makefile"
        # The packages expect to be installed; these are only unpacked.
        makefile.write_text(makefile.read_text().replace("/usr/src/", f"{self.root}/usr/src/"))
        (self.root / "complete").write_text(version + "\n")

    def headers(self):
        """The folder to give to `make -C`."""
        return self.root / "usr/src" / f"linux-headers-{self.release}"

    def kernel_module(self, name):
        """The bytes of one of the kernel's own modules, decompressed, or None if it is built in."""
        for path in (self.root / "lib/modules").rglob(f"{name}.ko*"):
            data = path.read_bytes()
            return lzma.decompress(data) if path.suffix == ".xz" else data
        return None


def build_module(headers, build, environment, *words):
    """Builds calltrouble.ko in the folder `build`, unless it is there and not older than its source."""
    source = HERE / "module"
    built = build / "calltrouble.ko"
    if built.exists() and built.stat().st_mtime > max(path.stat().st_mtime for path in source.iterdir()):
        return built
    shutil.rmtree(build, ignore_errors=True)
    shutil.copytree(source, build)
    run(["make", "-C", headers, f"M={build}", *words, "modules"], environment=environment)
    return built


def download(name, downloads):
    """The package file `name`, from the archive unless it is there already."""
    downloads.mkdir(parents=True, exist_ok=True)
    plain = name.split("=")[0]
    found = sorted(downloads.glob(f"{plain}_*.deb"))
    if not found:
        run(["apt-get", "-q", "download", name], where=downloads)
        found = sorted(downloads.glob(f"{plain}_*.deb"))
    if not found:
        raise Failed(f"apt-get download {name} left no file in {downloads}; run apt-get update")
    return found[-1]


def unpacked(names, work):
    """A folder with the files of some packages, not installed."""
    root = work / ("tools-" + "-".join(names))
    if not (root / "complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for name in names:
            run(["dpkg-deb", "-x", download(name, work / "packages"), root])
        (root / "complete").write_text("")
    return root
