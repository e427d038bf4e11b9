"""The delta back, cut off at every call; the long run is ``make crashes``."""

from tests.ota.crashes_way_back import run, scene


def test_every_sampled_state_keeps_the_active_model_and_the_way_back(tmp_path):
    n_states, n_cuts = run(scene(tmp_path / "scene"), 20, 400, tmp_path)
    assert n_states >= 100
    assert n_cuts >= 30
