"""One guest from its start to its dump."""

import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from .packages import Failed, need
from .qmp import Monitor


SIGNS_OF_FAILURE = ["guest: failed", "calltrouble: the call came back", "end Kernel panic"]


class Guest:
    """A QEMU with the kernel, stopped when the `with` block ends."""

    def __init__(self, kernel, initramfs, case, options, log):
        need("qemu-system-x86_64")
        self.log = Path(log)
        self.folder = Path(tempfile.mkdtemp(prefix="smpcall-guest-"))
        self.socket = self.folder / "qmp"
        self.disk = self.folder / "disk"
        self.initramfs = self.folder / "initramfs"
        self.initramfs.write_bytes(initramfs)
        self.options = options
        command = [
            "qemu-system-x86_64", "-M", "q35", "-accel", f"tcg,thread={options.thread}", "-cpu", options.cpu,
            "-smp", str(options.cpus), "-m", str(options.memory), "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-serial", f"file:{self.log}", "-qmp", f"unix:{self.socket},server=on,wait=off",
            "-kernel", str(kernel.image), "-initrd", str(self.initramfs), "-append", self._line(case),
        ]
        if options.icount:
            # One clock for all CPUs, which counts instructions: runs repeat exactly.
            command += ["-icount", "shift=0,sleep=off"]
        if options.vmcoreinfo:
            command += ["-device", "vmcoreinfo"]
        if options.via == "makedumpfile":
            with open(self.disk, "wb") as disk:
                disk.truncate(2 << 30)
            command += [
                "-drive", f"file={self.disk},if=none,format=raw,id=dump,cache=unsafe", "-device", "virtio-blk-pci,drive=dump",
            ]
        self.command = command
        self.process = None

    def _line(self, case):
        options = self.options
        # KFENCE would change page tables, and so call all CPUs, on a timer.
        # The check of the timer counts ticks against a loop, and fails when a busy host holds the vCPU up meanwhile.
        words = ["console=ttyS0", "no_timer_check", "kfence.sample_interval=0", f"watchdog_thresh={options.watchdog}"]
        words += [f"rcupdate.rcu_cpu_stall_timeout={max(3, 2 * options.watchdog)}", "softlockup_all_cpu_backtrace=0"]
        words += [] if options.kaslr else ["nokaslr"]
        if options.via == "makedumpfile":
            words += ["crashkernel=256M", "call.kexec=yes", "dump.options=" + ",".join(options.makedumpfile)]
        words += [f"call.case={case.runs or case.name}", f"call.settle={options.settle}"]
        words += ["call.user=no"] if not case.user else []
        words += ["call.offline=yes"] if case.offline else []
        words += ["call.vmcoreinfo=no"] if not options.vmcoreinfo else []
        return " ".join(words + options.append)

    def __enter__(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self.errors = open(self.folder / "errors", "w+", encoding="utf-8")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.errors.close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    def console(self):
        """What the guest has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")

    def await_line(self, text, seconds):
        """Waits until the guest has written `text`."""
        until = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            console = self.console()
            if text in console:
                return
            for line in console.splitlines():
                if any(sign in line for sign in SIGNS_OF_FAILURE):
                    raise Failed(f"the guest says: {line}; its console is in {self.log}")
            if ended:
                self.errors.seek(0)
                raise Failed(f"QEMU ended before the guest said {text!r}: {self.errors.read().strip()} (console: {self.log})")
            if time.monotonic() > until:
                raise Failed(f"the guest did not say {text!r} within {seconds} s; its console is in {self.log}")
            time.sleep(0.1)

    def standing(self):
        """Waits until the case stands, and then as long as it is given to leave its traces in the log."""
        self.await_line("calltrouble: standing", 180)
        time.sleep(self.options.settle)

    def go_on(self):
        """Lets a stopped guest run for a moment."""
        monitor = Monitor(self.socket)
        try:
            monitor.ask("cont")
        finally:
            monitor.close()
        time.sleep(0.25)

    def live(self):
        """Stops the guest, and gives what only a live one shows, as text: the local APICs and the registers."""
        monitor = Monitor(self.socket)
        try:
            monitor.ask("stop")
            apics = "".join(f"cpu {cpu}\n" + monitor.human(f"info lapic {cpu}") for cpu in range(self.options.cpus))
            return apics, monitor.human("info registers -a")
        finally:
            monitor.close()

    def dump(self, path, form):
        """Writes the guest's memory in one of QEMU's formats."""
        monitor = Monitor(self.socket)
        try:
            if form != "elf":
                monitor.ask("dump-guest-memory", paging=False, protocol=f"file:{path}", format=form)
                Path(path).chmod(0o644)
                return
            # An ELF dump is as large as the guest. It is written in order, so it can go through a pipe and leave holes.
            pipe = self.folder / "pipe"
            os.mkfifo(pipe)
            copy = threading.Thread(target=copy_with_holes, args=(pipe, path))
            copy.start()
            try:
                monitor.ask("dump-guest-memory", paging=False, protocol=f"file:{pipe}")
            finally:
                # If QEMU refused, nobody has opened the pipe for writing, and the reader would wait for ever.
                os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
                copy.join()
                pipe.unlink()
        finally:
            monitor.close()

    def captured(self, path):
        """Waits for the capture kernel's dump and takes the stream from the disk, without the disk's empty rest."""
        self.await_line("guest: dumped", 600)
        self.process.wait(timeout=60)
        copy_flattened(self.disk, path)


def copy_with_holes(source, path):
    """Copies a stream to a file, with holes where blocks are zero."""
    zero = bytes(1 << 16)
    with open(source, "rb") as stream, open(path, "wb") as target:
        while block := stream.read(len(zero)):
            if block == zero:
                target.seek(len(zero), os.SEEK_CUR)
            else:
                target.write(block)
        target.truncate()


def copy_flattened(disk, path):
    """Copies a flattened dump from the start of a disk: a page of header, records, and the record that ends it."""
    with open(disk, "rb") as source, open(path, "wb") as target:
        header = source.read(4096)
        if not header.startswith(b"makedumpfile\0"):
            raise Failed("the disk of the capture kernel does not begin with a flattened dump")
        target.write(header)
        while True:
            record = source.read(16)
            if len(record) != 16:
                raise Failed("the flattened dump on the disk of the capture kernel has no end")
            target.write(record)
            size = int.from_bytes(record[8:], "big", signed=True)
            if size < 0:
                return
            target.write(source.read(size))
