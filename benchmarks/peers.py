"""This server beside others: ``python benchmarks/peers.py icnet --loads 1,2,4,8,open``."""

from benchmarks.contest.cli import main

if __name__ == "__main__":
    main()
