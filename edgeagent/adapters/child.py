"""A child process with a link: started, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeagent.adapters.link import Link

QUIT_S = 3.0
"""Between two tokens the engine reads its socket; a token takes less than a second on any board."""

REPOSITORY = Path(__file__).resolve().parents[2]


class Child:
    """A running child process."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link) -> None:
        self.link = link
        self._process = process

    @classmethod
    async def start(cls, command: Sequence[str]) -> Child:
        """Start ``command --fd N``; it inherits its end of the link, standard error, nothing else.

        Raises:
            OSError: It cannot be started.
        """
        link, theirs = await Link.pair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--fd",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                pass_fds=[theirs.fileno()],
                process_group=0,  # a ^C at a terminal is for the agent alone
            )
        except BaseException:
            link.close()
            raise
        finally:
            theirs.close()
        return cls(process, link)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not been seen to end."""
        return self._process.returncode is None

    def kill(self) -> None:
        """End it and whatever it started, now."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> str:
        """Wait for its end; return how it ended, in words."""
        code = await self._process.wait()
        self.link.close()
        if code >= 0:
            return f"exit code {code}"
        return f"killed by {signal.Signals(-code).name}"

    async def leave(self) -> None:
        """Let it end by itself, for `QUIT_S` at most."""
        self.link.close()
        try:
            async with asyncio.timeout(QUIT_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
