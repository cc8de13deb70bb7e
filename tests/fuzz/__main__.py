"""Fuzz every target for its share of the time: `python -m tests.fuzz --seconds 60` (`make fuzz`).

With atheris, which is led by the branches that an input takes; where it is not installed, hypothesis makes the inputs
for the same time. An input that takes longer than two seconds is a failure too. Exit code 0 = nothing was found, 1 = an
input broke a target; hypothesis prints it, atheris leaves it in `.local/fuzz` as `crash-…` or `timeout-…`.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LONGEST_INPUT = 4_096
SLOWEST_SECONDS = 2
FOUND = Path(".local/fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads untrusted text.")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (default 60)")
    parser.add_argument("--target", help="one target only, for all of the time")
    options = parser.parse_args()
    if options.target:
        return fuzz(options.target, options.seconds)
    from tests.fuzz.targets import TARGETS

    if importlib.util.find_spec("atheris") is None:
        say("atheris is not installed (no wheel for this Python or system?): hypothesis makes the inputs instead.")
    share = max(1, options.seconds // len(TARGETS))
    # atheris ends its process when it is done, so that every target needs one of its own.
    broken = [name for name in TARGETS if fuzz_apart(name, share) != 0]
    say(f"{len(TARGETS)} targets, {share} s each; broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


def fuzz_apart(name: str, seconds: int) -> int:
    command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--seconds", str(seconds)]
    return subprocess.run(command, check=False).returncode


def fuzz(name: str, seconds: int) -> int:
    if importlib.util.find_spec("atheris") is None:
        return fuzz_with_hypothesis(name, seconds)
    return fuzz_with_atheris(name, seconds)


def fuzz_with_atheris(name: str, seconds: int) -> int:
    atheris = importlib.import_module("atheris")  # it has no wheel for every system, so it is in no lock file
    with atheris.instrument_imports(include=["shared"]):
        targets = importlib.import_module("tests.fuzz.targets")
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(targets.seeds_of(name)):
            (Path(corpus) / str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-timeout={SLOWEST_SECONDS}"]
        reports = ["-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={FOUND}/"]
        say(f"{name}: atheris, {seconds} s")
        atheris.Setup([sys.argv[0], *reports, *limits, corpus], targets.TARGETS[name])
        atheris.Fuzz()
    return 0


def fuzz_with_hypothesis(name: str, seconds: int) -> int:
    from tests.fuzz.targets import TARGETS, seeds_of

    say(f"{name}: hypothesis, {seconds} s")
    end = time.monotonic() + seconds
    seeds = st.sampled_from(seeds_of(name))
    inputs = st.binary(max_size=LONGEST_INPUT) | st.lists(seeds | st.binary(max_size=40), max_size=8).map(b"".join)
    tried = 0
    while time.monotonic() < end:
        tried += try_inputs(TARGETS[name], inputs)
    say(f"{name}: {tried} inputs")
    return 0


def try_inputs(target: Callable[[bytes], None], inputs: st.SearchStrategy[bytes], count: int = 200) -> int:
    """Call the target with so many inputs; what it raises is raised, with the smallest input that does it."""

    @settings(
        max_examples=count,
        deadline=timedelta(seconds=SLOWEST_SECONDS),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def check(data: bytes) -> None:
        target(data)

    check()
    return count


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
