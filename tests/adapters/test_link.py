import asyncio
import json

import pytest

from edgeagent.adapters.link import MAX_LINE_BYTES, Link
from edgeagent.errors import EngineError


def with_link(body):
    async def main():
        link, theirs = await Link.pair()
        with theirs:
            await body(link, theirs)
            link.close()
            await link.wait_closed()

    asyncio.run(main())


def test_messages_are_lines_of_json():
    async def body(link, theirs):
        link.send({"op": "ping", "text": "é\n"})
        await asyncio.sleep(0)
        line = theirs.recv(1000)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert json.loads(line) == {"op": "ping", "text": "é\n"}
        theirs.sendall(b'{"n":1}\n{"n":2}\n{"half')
        assert await link.receive() == {"n": 1}
        assert await link.receive() == {"n": 2}

    with_link(body)


def test_the_end_of_the_link_is_none_also_in_the_middle_of_a_line():
    async def body(link, theirs):
        theirs.sendall(b'{"half')
        theirs.close()
        assert await link.receive() is None

    with_link(body)


@pytest.mark.parametrize("line", [b"garbage\n", b"[1]\n", b"\xff\n", b"\n"])
def test_what_is_not_a_json_object_is_an_error_of_the_peer(line):
    async def body(link, theirs):
        theirs.sendall(line)
        with pytest.raises(EngineError, match="expected a JSON"):
            await link.receive()

    with_link(body)


def test_a_line_is_bounded_both_ways():
    async def body(link, theirs):
        with pytest.raises(EngineError, match="a line has 1048576"):
            link.send({"text": "x" * MAX_LINE_BYTES})

        def flood():
            with theirs:
                theirs.settimeout(5)
                try:
                    theirs.sendall(b"x" * (3 * MAX_LINE_BYTES))
                except OSError:
                    return

        flooding = asyncio.create_task(asyncio.to_thread(flood))
        with pytest.raises(EngineError, match="a line of more than"):
            await link.receive()
        link.close()
        await flooding

    with_link(body)


def test_sending_to_a_peer_that_has_gone_is_no_error():
    async def body(link, theirs):
        theirs.close()
        for _ in range(3):
            link.send({"op": "ping"})
            await asyncio.sleep(0)
        assert await link.receive() is None

    with_link(body)
