import pytest

from ota.device.dir_source import DirSource
from ota.errors import ObjectMissing, TransportError


def test_an_object_is_read_in_pieces(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "x").write_bytes(b"0123456789")
    source = DirSource(tmp_path)
    assert source.fetch("targets/x", 2, 3).data == b"234"
    assert source.fetch("targets/x", 8, 99).data == b"89"
    assert [piece.offset for piece in source.pull("targets/x", [(0, 5), (5, 5)])] == [0, 5]


@pytest.mark.parametrize("name", ["targets/nothing", "../secret", "keys/root.pem", ""])
def test_what_is_not_there_or_no_object_is_missing(tmp_path, name):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "root.pem").write_bytes(b"secret")
    with pytest.raises(ObjectMissing):
        DirSource(tmp_path).fetch(name, 0, 1)


def test_a_medium_that_cannot_be_read_is_a_transport_error(tmp_path):
    (tmp_path / "targets" / "x").mkdir(parents=True)
    with pytest.raises(TransportError, match="medium"):
        DirSource(tmp_path).fetch("targets/x", 0, 1)
