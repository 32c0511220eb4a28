"""``python -m tests.fuzz transports --minutes 10 [--seed N]``, or ``--replay N`` for one program."""

from __future__ import annotations

import argparse
import sys

from tests.fuzz import campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz tideloop with random programs.")
    parser.add_argument("what", choices=["transports"])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, 10 if not said")
    parser.add_argument("--seed", type=int, help="where to begin; a random seed if not said")
    parser.add_argument("--replay", type=int, metavar="SEED", help="show one program instead")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.replay is not None:
        return campaign.replay(chosen.replay)
    if chosen.worker:
        return campaign.work(chosen.minutes, chosen.seed, chosen.worker)
    return campaign.campaign(chosen.minutes, chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
