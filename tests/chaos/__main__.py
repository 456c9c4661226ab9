"""The chaos suite from the command line.

    python -m tests.chaos [--jobs 1000] [--workers 4] [--seconds 240] [--server embedded|tcp|rest] [--seed N] [--soak]

Everything that is left to chance comes from the seed, which is printed first: the jobs, what is pushed twice or cancelled, the
fault of every request, and what is killed when. ``--soak`` spares the workers and fails if one of them grows.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

import structlog

from tests.chaos import soak
from tests.chaos.plan import Options
from tests.chaos.run import run_chaos


def main() -> int:
    """Run the suite; 1 if anything does not add up."""
    defaults = Options(seed=0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--jobs", type=int, default=defaults.jobs)
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="time over which the jobs are pushed")
    parser.add_argument("--kill-every", type=float, default=defaults.kill_every)
    parser.add_argument("--fault-rate", type=float, default=defaults.fault_rate)
    parser.add_argument("--server", choices=["embedded", "tcp", "rest"], default=defaults.topology)
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--record", type=Path, help="write what was measured on the workers to this CSV file")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the run: logs, queue, work files")
    given = parser.parse_args()
    options = Options(
        seed=given.seed,
        jobs=given.jobs,
        workers=given.workers,
        seconds=given.seconds,
        kill_every=given.kill_every,
        fault_rate=given.fault_rate,
        topology=given.server,
        kills=("lane", "server") if given.soak else defaults.kills,
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(f"seed {options.seed}: {dataclasses.asdict(options)} in {folder}", flush=True)
    result = run_chaos(options, folder)
    if given.record is not None:
        soak.write_samples(result.samples, given.record)
    grown = soak.growth(result.samples) if given.soak else []
    print("\n".join([*result.lines(), *(f"WRONG {line}" for line in grown)]))
    failed = bool(result.wrong or grown)
    if not failed and not given.keep:
        shutil.rmtree(folder)
    print(f"seed {options.seed}: {'FAILED, logs in ' + str(folder) if failed else 'everything adds up'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
