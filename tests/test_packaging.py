"""What installing the package does to the environment it is installed into."""

import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

OURS = metadata.distribution("pytest-triguard")


def runtime_requirements(name):
    requirements = map(Requirement, metadata.requires(name) or ())
    return [each for each in requirements if each.marker is None or each.marker.evaluate()]


def write_distribution(folder, name, version, requires=()):
    folder = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    (folder / "RECORD").write_text("")
    (folder / "INSTALLER").write_text("pip\n")
    return folder


def closure(names):
    """Return everything the named distributions need, as installed here."""
    seen = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name.lower() not in seen and name.lower() != "torch":
            seen[name.lower()] = name
            waiting += [each.name for each in runtime_requirements(name)]
    return seen.values()


@pytest.mark.parametrize("torch_version", ["2.6.0", "2.9.1+cpu", "99.0"])
def test_an_installed_torch_stays_as_it_is(tmp_path, torch_version):
    """A dry run of pip, with our real requirements and those of everything we depend on."""
    environment = tmp_path / "environment"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60
    )
    (site,) = environment.glob("**/site-packages")
    write_distribution(site, "torch", torch_version)
    for name in closure(each.name for each in runtime_requirements("pytest-triguard")):
        requires = [str(each) for each in runtime_requirements(name)]
        write_distribution(site, name, metadata.version(name), requires)
    wheel = tmp_path / "pytest_triguard-999-py3-none-any.whl"
    information = write_distribution(
        tmp_path / "wheel", "pytest-triguard", "999", metadata.requires("pytest-triguard")
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in information.iterdir():
            archive.write(file, f"{information.name}/{file.name}")
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    python = environment / scripts / Path(sys.executable).name
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--dry-run", "--quiet"]
    command += ["--no-index", "--report", report, wheel]
    # No configuration of this machine: a constraint on torch would be a requirement of its own.
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    surroundings["PIP_CONFIG_FILE"] = os.devnull
    subprocess.run(command, check=True, timeout=120, env=surroundings)
    installed = [each["metadata"]["name"] for each in json.loads(report.read_text())["install"]]
    assert installed == ["pytest-triguard"]


def test_torch_has_a_lower_bound_and_no_upper_one():
    (torch,) = [each for each in runtime_requirements("pytest-triguard") if each.name == "torch"]
    assert {each.operator for each in torch.specifier} == {">="}
    assert torch.specifier.contains("2.6.0")


def test_nothing_heavy_beside_the_runtime_requirements():
    names = {each.name for each in runtime_requirements("pytest-triguard")}
    assert names == {"pytest", "torch", "captum", "numpy", "scipy"}
    # What is used beside these comes with them.
    assert "filelock" in {each.name for each in runtime_requirements("torch")}


def test_the_examples_extra_brings_nothing_that_is_built_for_one_torch():
    """Each torchvision pins one torch: asking for it would change the torch that is there."""
    requirements = map(Requirement, metadata.requires("pytest-triguard") or ())
    asked = {
        each.name
        for each in requirements
        if each.marker is not None and each.marker.evaluate({"extra": "examples"})
    }
    assert "mlxtend" in asked
    assert "torchvision" not in asked


def test_the_entry_point_is_the_name_that_switches_the_plugin_off():
    (entry,) = [each for each in OURS.entry_points if each.group == "pytest11"]
    assert (entry.name, entry.value) == ("triguard", "pytest_triguard.plugin")


def test_the_package_says_that_it_is_typed():
    import pytest_triguard

    assert (Path(pytest_triguard.__file__).parent / "py.typed").exists()
