"""Packs the guest's initial file system: busybox, the modules, the first process, kexec and makedumpfile."""

import gzip
import re
import stat
from pathlib import Path

from .packages import HERE, Failed, need, run, unpacked

MODULES = [
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "qemu_fw_cfg",
]


class Archive:
    """A cpio archive of the "newc" format, in memory."""

    def __init__(self):
        self.parts = []
        self.count = 0
        self.folders = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self.count += 1
        path = name.encode() + b"\0"
        fields = [self.count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self.parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def folder(self, name):
        """Adds a folder and those above it, once."""
        for depth in range(1, name.count("/") + 2):
            part = "/".join(name.split("/")[:depth])
            if part and part not in self.folders:
                self.folders.add(part)
                self._entry(part, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o755):
        """Adds a file and the folders above it."""
        if "/" in name:
            self.folder(name.rsplit("/", 1)[0])
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, to):
        """Adds a symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, to.encode())

    def console(self):
        """Adds /dev/console, which the kernel opens before devtmpfs is there."""
        self.folder("dev")
        self._entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))

    def bytes(self):
        """The whole archive, compressed."""
        self._entry("TRAILER!!!", 0)
        return gzip.compress(b"".join(self.parts), 1, mtime=0)


def libraries(program, tools):
    """The shared libraries of a program, by the path at which the guest looks for them."""
    environment = {"LD_LIBRARY_PATH": f"{tools}/usr/lib/x86_64-linux-gnu:{tools}/lib/x86_64-linux-gnu", "PATH": "/usr/bin:/bin"}
    listed = run(["ldd", program], environment=environment)
    if "not found" in listed:
        missing = re.findall(r"(\S+) => not found", listed)
        raise Failed(f"{program.name} needs {', '.join(missing)}; install kexec-tools and makedumpfile, or their libraries")
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}


def build(kernel, work):
    """What every guest has."""
    busybox = unpacked(["busybox-static"], work) / "bin/busybox"
    archive = Archive()
    archive.console()
    for folder in ["proc", "sys", "bin", "modules", "tmp"]:
        archive.folder(folder)
    archive.file("init", (HERE / "guest/init").read_bytes())
    archive.file("bin/busybox", busybox.read_bytes())
    archive.link("bin/sh", "busybox")
    archive.file("modules/calltrouble.ko", kernel.module.read_bytes(), 0o644)
    for name in MODULES:
        data = kernel.kernel_module(name)
        if data is not None:
            archive.file(f"modules/{name}.ko", data, 0o644)
    return archive


def pack(kernel, work, capture):
    """The initramfs. With `capture` it also holds a kernel for kexec, which boots the same content and makedumpfile."""
    archive = build(kernel, work)
    if capture:
        need("ldd")
        tools = unpacked(["kexec-tools", "makedumpfile"], work)
        captures = build(kernel, work)
        add_program(captures, tools / "usr/bin/makedumpfile", tools)
        add_program(archive, next(tools.rglob("sbin/kexec")), tools)
        archive.file("kernel", kernel.image.read_bytes(), 0o644)
        archive.file("initramfs", captures.bytes(), 0o644)
    return archive.bytes()


def add_program(archive, program, tools):
    """Adds a dynamically linked program and its libraries."""
    archive.file(f"bin/{program.name}", program.read_bytes())
    for path in sorted(libraries(program, tools)):
        archive.file(str(path).lstrip("/"), path.read_bytes())
