from edgeagent.bench import machine


def test_a_result_says_where_and_when_it_was_made():
    facts = machine.describe()
    assert {"date", "version", "commit", "machine", "cpu", "cores", "compiler"} <= set(facts)
    assert facts["variants"][-1] == "scalar"


def test_the_peak_is_at_least_what_is_there_now():
    peak, now = machine.status_mb("VmHWM"), machine.status_mb("VmRSS")
    assert peak >= now > 1
    assert machine.status_mb("VmNothing") is None


def test_the_page_cache_forgets_a_file_that_nobody_maps(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    machine.drop_page_cache([path])
    assert path.read_bytes() == bytes(1 << 20)
    machine.drop_page_cache([path])
    assert machine.resident_fraction([path]) in (None, 0.0, 1.0)  # tmpfs cannot forget
