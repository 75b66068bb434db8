"""Builds a small kernel from the distribution's sources, with the debugging that its own kernels leave out."""

import os
import re
import shutil

from .packages import HERE, Failed, build_module, download, need, run, unpacked

SUFFIX = "-csd"


class SourceKernel:
    """A kernel of its own configuration (csd-debug.config) and calltrouble.ko for it."""

    def __init__(self, wanted, work):
        need("apt-get", "apt-cache", "dpkg-deb", "make", "gcc-12", "tar", "xz", "bc")
        self.series = wanted
        source = f"linux-source-{wanted[: -len(SUFFIX)]}"
        self.tree = work / "source" / source
        # Not installed: the parsers that the kernel's build runs, and the macro processor that they run.
        tools = unpacked(["flex", "bison", "m4"], work)
        self.environment = dict(
            os.environ,
            PATH=f"{tools}/usr/bin:{os.environ['PATH']}",
            M4=f"{tools}/usr/bin/m4",
            BISON_PKGDATADIR=f"{tools}/usr/share/bison",
        )
        package = download(source, work / "packages")
        self.package_version = package.name.split("_")[1]
        self.image = self.tree / "arch/x86/boot/bzImage"
        if not self.image.exists():
            self._build(package, work / "source")
        found = self.tree / "include/config/kernel.release"
        self.release = found.read_text().strip() + SUFFIX
        self.module = build_module(self.tree, work / f"module-{wanted}", self.environment)

    def _build(self, package, where):
        if not self.tree.exists():
            where.mkdir(parents=True, exist_ok=True)
            run(["dpkg-deb", "-x", package, where])
            run(["tar", "-C", where, "-xf", where / "usr/src" / f"{self.tree.name}.tar.xz"])
            shutil.rmtree(where / "usr")
        fragment = HERE / "csd-debug.config"
        shutil.copy(fragment, self.tree / "kernel/configs/csd-debug.config")
        make = ["make", "-C", self.tree, "CC=gcc-12"]
        run([*make, "tinyconfig", "csd-debug.config"], environment=self.environment)
        made = (self.tree / ".config").read_text()
        if not re.search(r"(?m)^CONFIG_CSD_LOCK_WAIT_DEBUG=y$", made):
            raise Failed(f"{self.tree.name} does not take CONFIG_CSD_LOCK_WAIT_DEBUG; is it older than 5.10?")
        run([*make, f"-j{os.cpu_count()}", "bzImage", "modules"], environment=self.environment)

    def kernel_module(self, _name):
        """Everything that the guest needs is built in."""
        return None
