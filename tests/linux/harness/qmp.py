"""Speaks to QEMU's monitor."""

import json
import socket

from .packages import Failed


class Monitor:
    """A QMP connection."""

    def __init__(self, path, seconds=300):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r", encoding="utf-8")
        json.loads(self.lines.readline())
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        """Runs a command and gives what it returns; events in between are passed over."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while line := self.lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"QEMU refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise Failed(f"QEMU ended during {command}")

    def human(self, line):
        """Runs a line of the human monitor and gives its text."""
        return self.ask("human-monitor-command", **{"command-line": line}).replace("\r\n", "\n")

    def close(self):
        """Ends the connection; the guest goes on."""
        self.lines.close()
        self.socket.close()
