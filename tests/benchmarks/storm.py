"""What a failure costs in a storm of them, on fakes and virtual time: `python -m tests.benchmarks.storm`.

Processor seconds per failure at 100 and at 10,000 failures, and their ratio: how well the flow scales.
"""

import logging
import sys
import time

from tests.crash.test_storm import Storm

SMALL, LARGE = 100, 10_000


def seconds_per_failure(failures: int) -> float:
    began = time.process_time()
    Storm(failures).run()
    return (time.process_time() - began) / failures


def main() -> None:
    logging.disable(logging.CRITICAL)
    seconds_per_failure(SMALL)  # what is loaded and compiled once is not a matter of size
    small = sum(seconds_per_failure(SMALL) for _ in range(5)) / 5
    large = seconds_per_failure(LARGE)
    sys.stdout.write(
        f"{small * 1000:.2f} ms a failure at {SMALL}, {large * 1000:.2f} ms at {LARGE}: {large / small:.2f} times\n"
    )


if __name__ == "__main__":
    main()
