"""A server under load: ``python benchmarks/load.py --percent 50,100,200``."""

from benchmarks.loadgen.cli import main

if __name__ == "__main__":
    main()
