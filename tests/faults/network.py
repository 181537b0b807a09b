"""Two machines on one: network namespaces that see each other over one link, which can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import Self

ADDRESSES = ("10.99.0.1", "10.99.0.2")


class Machines:
    """Two namespaces joined by a pair of virtual devices; used as a context, which leaves nothing behind."""

    def __init__(self) -> None:
        self.names = tuple(f"remanence-{os.getpid()}-{number}" for number in range(2))
        # Names of devices have at most 15 letters; these lie in namespaces of their own.
        self.devices = ("link0", "link1")

    @staticmethod
    def missing() -> str | None:
        """Why they cannot be made here; None where they can."""
        if shutil.which("ip") is None:
            return "there is no command `ip` to make network namespaces with"
        name = f"remanence-{os.getpid()}"
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"network namespaces may not be made here ({done.stderr.strip()})"
        ip("netns", "del", name)
        return None

    def __enter__(self) -> Self:
        try:
            for name in self.names:
                ip("netns", "add", name)
            (one, other), (first, second) = self.names, self.devices
            ip("link", "add", first, "netns", one, "type", "veth", "peer", "name", second, "netns", other)
            for name, device, address in zip(self.names, self.devices, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", device)
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in self.names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            # The pair of devices goes with its namespaces.
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def inside(self, number: int) -> list[str]:
        """What to put before a command that shall run on the machine of that number, 0 or 1."""
        return ["ip", "netns", "exec", self.names[number]]

    def cut(self) -> None:
        """Nothing passes the link any more, and nobody is told."""
        ip("-n", self.names[1], "link", "set", self.devices[1], "down")

    def restore(self) -> None:
        ip("-n", self.names[1], "link", "set", self.devices[1], "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
