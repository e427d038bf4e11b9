import re
import subprocess

import pytest

from edgeagent.adapters.journal import message_id
from tests.systemd.unitfile import ROOT, SYSTEMD

CATALOG = SYSTEMD / "edgeagent.catalog"
ENTRY = re.compile(r"^-- (\w+)\n((?:[\w-]+: [^\n]*\n)+)\n", re.M)
ENTRIES = ENTRY.findall(CATALOG.read_text())
EVENTS = {re.search(r"^Event: (.+)$", head, re.M)[1]: (ident, head) for ident, head in ENTRIES}


def test_every_entry_is_found_once():
    assert len(EVENTS) == len(ENTRIES) == CATALOG.read_text().count("\n-- ") > 10


@pytest.mark.parametrize("event", EVENTS)
def test_an_entry_has_the_id_that_the_agent_sends(event):
    ident, head = EVENTS[event]
    assert ident == message_id(event)
    assert "Subject: " in head
    assert "Defined-By: edgeagent" in head


@pytest.mark.parametrize("event", EVENTS)
def test_an_entry_explains_an_event_that_the_agent_logs(event):
    sources = (ROOT / "edgeagent").rglob("*.py")
    logged = re.compile(rf'log\.\w+\(\s*"{re.escape(event)}[ "]')
    assert any(logged.search(path.read_text()) for path in sources)


@pytest.mark.system
def test_the_journal_takes_the_catalog(tmp_path, tool):
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    (place / CATALOG.name).write_text(CATALOG.read_text())
    journalctl = [tool("journalctl"), f"--root={tmp_path}", "--no-pager"]
    updated = subprocess.run(
        [*journalctl, "--update-catalog"], capture_output=True, text=True, check=False
    )
    assert (updated.returncode, updated.stderr) == (0, "")
    listed = subprocess.run(
        [*journalctl, "--list-catalog"], capture_output=True, text=True, check=False
    ).stdout
    for event, (ident, _) in EVENTS.items():
        assert ident in listed, event
