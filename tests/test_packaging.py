"""The wheel is what users get: it must carry the model and the units, and work where it lands."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: A package with the model inside must stay small enough for a 4G link.
MAX_WHEEL_BYTES = 6 << 20
MAX_MODEL_BYTES = 4 << 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


@pytest.mark.system
def test_it_carries_the_model_and_the_unit_and_nothing_of_the_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgeagent/bundled/edge-tiny/release.json" in names
    assert "edgeagent/bundled/previous.etd" in names
    assert any(name.endswith("share/edgeagent/systemd/edgeagent.service") for name in names)
    assert any(name.startswith("edgeagent/_core.") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "cext/", "bench/"))]
    bundled = [i.file_size for i in zipfile.ZipFile(wheel).infolist() if "/bundled/" in i.filename]
    assert sum(bundled) <= MAX_MODEL_BYTES
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES


@pytest.mark.system
def test_installed_from_the_wheel_it_answers(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # The dependencies are those of the environment under test: nothing is downloaded twice.
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    import tokenizers

    Path(site, "dependencies.pth").write_text(str(Path(tokenizers.__file__).parent.parent))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    for command, words in {
        "edgeagent": ["generate", "--prompt", "Once", "--max-tokens", "3"],
        "edgeota": ["--help"],
    }.items():
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / command, *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
