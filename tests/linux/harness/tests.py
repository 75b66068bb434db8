"""Tests of the parts that need no guest: `python3 -B -m unittest harness.tests` in tests/linux."""

import tempfile
import unittest
from pathlib import Path

from .cases import CASES, contradictions
from .guest import copy_flattened, copy_with_holes
from .initramfs import Archive
from .packages import Failed, natural

APICS = "cpu 1\nISR\t (none)\nIRR\t 33 {irr}\n\nAPR 0x01\ncpu 2\nISR\t (none)\nIRR\t (none)\n"
REGISTERS = "\nCPU#1\nRIP=0 RFL={flags} [-]\n\nCPU#2\nRIP=0 RFL=00000202 [-]\n"


class Truth(unittest.TestCase):
    """A guest that is not in its case is found out."""

    def test_agreement(self):
        """Interrupts off with the call pending is what the case says."""
        apics, registers = APICS.format(irr="236 251"), REGISTERS.format(flags="00000002")
        self.assertEqual(contradictions(CASES["irqs-off"], apics, registers), [])

    def test_disagreement(self):
        """A ring that arrived was not lost; a CPU with interrupts off has not merely missed it."""
        apics, registers = APICS.format(irr="251"), REGISTERS.format(flags="00000002")
        found = contradictions(CASES["lost"], apics, registers)
        self.assertEqual(found, ["CPU 1: a call is pending in its IRR", "CPU 1: its interrupts are off"])

    def test_vectors_are_whole_numbers(self):
        """Vector 25 is not the beginning of 251."""
        self.assertEqual(contradictions(CASES["lost"], APICS.format(irr="25"), REGISTERS.format(flags="00000202")), [])

    def test_missing_cpu(self):
        """What the monitor did not show is not taken for agreement."""
        self.assertIn("CPU 1: its interrupts are on", contradictions(CASES["irqs-off"], "", ""))

    def test_rest(self):
        """The waiters of a broadcast are all CPUs but the first two and the victim."""
        truth = CASES["lost-broadcast"].truth(6)
        self.assertEqual(truth["waiters"], [2, 3, 4, 5])
        self.assertEqual(truth["queues"], {"1": {"sync": 4}})


class Copies(unittest.TestCase):
    """Dumps arrive whole."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.source = Path(self.folder.name) / "source"
        self.target = Path(self.folder.name) / "target"

    def test_holes(self):
        """Zeros at the start, in the middle and at the end are there when read."""
        data = bytes(1 << 17) + b"x" * 70000 + bytes(1 << 18) + b"y" + bytes(99999)
        self.source.write_bytes(data)
        copy_with_holes(self.source, self.target)
        self.assertEqual(self.target.read_bytes(), data)

    def test_flattened(self):
        """What follows the last record is left behind."""
        def record(offset, data):
            return offset.to_bytes(8, "big") + len(data).to_bytes(8, "big") + data

        end = (b"\xff" * 8) * 2
        stream = b"makedumpfile\0".ljust(4096, b"\0") + record(0, b"KDUMP   ") + record(4096, bytes(5)) + end
        self.source.write_bytes(stream + bytes(10000))
        copy_flattened(self.source, self.target)
        self.assertEqual(self.target.read_bytes(), stream)

    def test_flattened_without_end(self):
        """A stream that was cut off is an error, not a dump."""
        self.source.write_bytes(b"makedumpfile\0".ljust(4096, b"\0") + bytes(3))
        with self.assertRaises(Failed):
            copy_flattened(self.source, self.target)

    def test_no_dump_on_the_disk(self):
        """Nor is an empty disk a dump."""
        self.source.write_bytes(bytes(8192))
        with self.assertRaises(Failed):
            copy_flattened(self.source, self.target)


class Packing(unittest.TestCase):
    """Archives and names."""

    def test_folders_once(self):
        """The folders above two files are added once each."""
        archive = Archive()
        archive.file("a/b/c", b"1")
        archive.file("a/b/d", b"2")
        self.assertEqual(archive.folders, {"a", "a/b"})
        self.assertEqual(archive.count, 4)

    def test_newest(self):
        """Releases are compared as numbers."""
        self.assertEqual(max(["6.1.0-9-cloud", "6.1.0-56-cloud", "6.1.0-48-cloud"], key=natural), "6.1.0-56-cloud")


if __name__ == "__main__":
    unittest.main()
