"""Every task a person or CI runs: `nox --list` names them, `nox -s NAME -- ARGUMENTS` runs one."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typecheck", "tests"]

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
DIST = ROOT / "dist"
CORE = ROOT / "packages" / "torchopt-core"
ACCEL = ROOT / "packages" / "torchopt-accel"
IMPLICIT = ROOT / "packages" / "torchopt-implicit"
ZERO = ROOT / "packages" / "torchopt-zero"
DISTRIBUTED = ROOT / "packages" / "torchopt-dist"
VIZ = ROOT / "packages" / "torchopt-viz"
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
# tests of the core that the extensions have no part in: nothing in them makes a step
INDEPENDENT = ["test_bad_hyperparameters.py", "test_pytree.py", "test_schedules.py"]
# an option of pip, where torch is imported once or never: to compile it takes longer than to unpack
ONCE = "--no-compile"
CACHES = {"__pycache__", ".mypy_cache"}
COMPILED = {".so", ".pyd"}
# what `torch>=` of the packages promises, and the newest that has been tried
TORCH_VERSIONS = ["2.10.0", "2.15.0"]
DEMO_REQUIREMENTS = ["matplotlib", "scikit-learn", "tqdm"]
TEST_REQUIREMENTS = [
    "expecttest",
    "hypothesis",
    "imageio-ffmpeg",
    "mypy",
    "prodigyopt",
    "pybind11",
    "pyright[nodejs]",
    "pytest",
    "pytest-cov",
    "pytest-xdist",
    "schedulefree",
    "selenium",
    "setproctitle",
    "sybil",
    *DEMO_REQUIREMENTS,
]


def fingerprint(constraints: Path, session: nox.Session, requirements: Sequence[str | Path]) -> str:
    """Hash everything that decides what an installation holds, package sources included."""
    digest = hashlib.sha256(constraints.read_bytes())
    for name in ("TORCHOPT_ACCEL_CUDA", "TORCHOPT_ACCEL_SANITIZE"):
        digest.update(f"{name}={session.env.get(name)}\n".encode())
    for requirement in requirements:
        digest.update(f"{requirement}\n".encode())
        if isinstance(requirement, Path):
            for file in sorted(requirement.rglob("*")):
                if file.is_file() and CACHES.isdisjoint(file.parts) and file.suffix not in COMPILED:
                    digest.update(f"{file}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def install(
    session: nox.Session, *requirements: str | Path, constraints: Path = CONSTRAINTS
) -> None:
    """Install requirements and package folders, unless the environment already holds just these.

    Package folders are built into wheels, so that a session meets what a user would install; an
    edited source changes the fingerprint and is installed anew.
    """
    session.env["PIP_BUILD_CONSTRAINT"] = str(CONSTRAINTS)
    stamp = Path(session.virtualenv.location) / "fingerprint.txt"
    wanted = fingerprint(constraints, session, requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    pip = ("python", "-m", "pip", "install", "--quiet", "--constraint", str(constraints))
    if session.run_install(*pip, *requirements):  # nothing is run under `nox --no-install`
        stamp.write_text(wanted)


@nox.session
def demo(session: nox.Session) -> None:
    """Meta-train on handwritten digits and classify digits never seen in training."""
    install(session, CORE, *DEMO_REQUIREMENTS)
    session.run("python", "examples/few_shot_digits.py", *session.posargs)


def run_tests(session: nox.Session, *default: str, without: Sequence[str] = (), **env: str) -> None:
    """Run pytest on what the command line names, or on folders of tests/ without some files.

    Every core runs tests, `-- -n 0` does it in one process. Slow tests are left out, `-- -m slow`
    runs these alone, and `-- -m ""` all. A test that is named is run, slow or not, by itself.
    """
    arguments = [
        str(ROOT / argument) if (ROOT / argument.split("::")[0]).exists() else argument
        for argument in session.posargs
    ]
    if arguments == session.posargs:  # no path among them
        arguments[:0] = [str(ROOT / "tests" / folder) for folder in default]
        arguments[:0] = [f"--ignore={ROOT / 'tests' / file}" for file in without]
    if not any("::" in argument for argument in arguments):
        arguments[:0] = ["-n", "logical", "-m", "not slow"]
    session.env["COVERAGE_RCFILE"] = str(ROOT / "pyproject.toml")  # for `-- --cov`
    session.chdir(session.create_tmp())  # nothing of the source tree is importable from here
    session.run("pytest", *arguments, env=env)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the installed packages."""
    install(session, *PACKAGES, *TEST_REQUIREMENTS)
    run_tests(session, "")


@nox.session
def alone(session: nox.Session) -> None:
    """Run the core's tests against the core alone, which then does all arithmetic itself."""
    install(session, CORE, *TEST_REQUIREMENTS)
    files = ("test_checkers.py", "test_docstrings.py", "test_surface.py")
    folders = ("core", *(f"integration/{file}" for file in files))
    run_tests(session, *folders, without=[f"core/{name}" for name in INDEPENDENT])


@nox.session
@nox.parametrize("version", [nox.param(v, id=v.removesuffix(".0")) for v in TORCH_VERSIONS])
def torch(session: nox.Session, version: str) -> None:
    """Run the tests of core and accel, or those that are named, with another torch.

    No part of `.ci/run`: where the index has no CPU build of it, it brings gigabytes of CUDA.
    """
    lines = CONSTRAINTS.read_text().splitlines(keepends=True)
    free = ("torch==", "setuptools==")  # some versions of torch ask for an older setuptools
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("".join(line for line in lines if not line.startswith(free)))
    requirements = (f"torch=={version}", *PACKAGES, *TEST_REQUIREMENTS)
    install(session, *requirements, constraints=constraints)
    run_tests(session, "core", "accel")


@nox.session
def asan(session: nox.Session) -> None:
    """Run the tests of the compiled steps under AddressSanitizer and UBSan."""
    session.env.update(TORCHOPT_ACCEL_CUDA="OFF", TORCHOPT_ACCEL_SANITIZE="ON")
    install(session, CORE, ACCEL, *TEST_REQUIREMENTS)
    # the interpreter is not instrumented, so the runtime has to be there before it
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    find = ("g++", "-print-file-name=")
    found = [
        subprocess.run([find[0], find[1] + name], check=True, stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    run_tests(
        session,
        "accel",
        LD_PRELOAD=" ".join(result.stdout.strip() for result in found),
        ASAN_OPTIONS="detect_leaks=0",  # the interpreter and torch never free some memory
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    install(session, "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the annotations of every package with mypy --strict."""
    projects = [nox.project.load_toml(package / "pyproject.toml") for package in PACKAGES]
    dependencies = {name for project in projects for name in project["project"]["dependencies"]}
    third_party = sorted(name for name in dependencies if not name.startswith("torchopt-"))
    install(session, ONCE, "mypy", *third_party)
    session.run("mypy", "--strict", *(str(package / "src") for package in PACKAGES))


@nox.session
def stubs(session: nox.Session) -> None:
    """Write the stubs of what is derived at run time; the tests hold them against it."""
    install(session, CORE, ZERO)
    session.run("python", str(CORE / "stubs.py"))


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel of every package into dist/ and check their metadata."""
    install(session, "build", "twine")
    session.env["PIP_CONSTRAINT"] = str(CONSTRAINTS)
    shutil.rmtree(DIST, ignore_errors=True)
    for package in PACKAGES:
        session.run("python", "-m", "build", "--outdir", str(DIST), str(package))
    session.run("twine", "check", "--strict", *map(str, sorted(DIST.iterdir())))


@nox.session(requires=["build"], reuse_venv=False)
@nox.parametrize("package", [nox.param(package.name, id=package.name) for package in PACKAGES])
def smoke(session: nox.Session, package: str) -> None:
    """Try the built wheels in a fresh environment: core alone, and each extension with core."""
    names = sorted({CORE.name, package})
    wheels = [next(DIST.glob(f"{name.replace('-', '_')}-*.whl")) for name in names]
    install(session, ONCE, *map(str, wheels))
    session.chdir(session.create_tmp())
    session.run("python", "-I", str(ROOT / "tests" / "smoke" / "check.py"), *names)


@nox.session
def peer(session: nox.Session) -> None:
    """Install the published predecessor, which shares our import name, for `bench`."""
    install(session, "--only-binary=torchopt", "torchopt==0.7.3", "higher==0.2.1")


@nox.session(requires=["peer"])
def bench(session: nox.Session) -> None:
    """Measure speed and memory side by side with torch.optim and the predecessor."""
    install(session, CORE, ACCEL, "numpy", "tqdm")
    ours = Path(session.bin)
    session.env["TORCHOPT_PEER_PYTHON"] = str(ours.parent.with_name("peer") / ours.name / "python")
    session.run("python", "benchmarks/run.py", *session.posargs)
    if not session.posargs:
        session.run("python", "benchmarks/composition.py")
        session.run("python", "benchmarks/overhead.py")
        session.run("python", "benchmarks/transforms.py")


@nox.session(requires=["peer"])
def bench_implicit(session: nox.Session) -> None:
    """Measure implicit differentiation and quadratic programs side by side with peers."""
    install(session, CORE, IMPLICIT, "numpy")
    ours = Path(session.bin)
    peer = ours.parent.with_name("peer") / ours.name / "python"
    session.run("python", "benchmarks/implicit.py", "--peer", str(peer))
    session.install("qpth")  # an optional peer, with requirements of its own
    session.run("python", "benchmarks/implicit_qp.py")


@nox.session(requires=["peer"])
def bench_zero(session: nox.Session) -> None:
    """Measure gradients by sampling side by side with the predecessor, and their memory."""
    install(session, CORE, ZERO, "numpy")
    ours = Path(session.bin)
    session.env["TORCHOPT_PEER_PYTHON"] = str(ours.parent.with_name("peer") / ours.name / "python")
    session.run("python", "benchmarks/zero.py", *session.posargs)


@nox.session
def bench_dist(session: nox.Session) -> None:
    """Measure task parallelism on several processes, and what it costs by itself."""
    install(session, CORE, DISTRIBUTED, "numpy", "scikit-learn", "tqdm")
    session.run("python", "benchmarks/distributed.py", *session.posargs)
    if not session.posargs or session.posargs == ["--quick"]:
        session.run("python", "benchmarks/distributed_scale.py", *session.posargs)


@nox.session
def bench_viz(session: nox.Session) -> None:
    """Measure how long large gradient graphs take to collect and to draw."""
    install(session, CORE, VIZ, "numpy")
    session.run("python", "benchmarks/graphs.py")
