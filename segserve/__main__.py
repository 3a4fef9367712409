"""The command ``segserve``.

The packages are named ``serving``, ``export`` and ``training``, as a user's own files may be. So
the folder of this installation goes to the front of ``sys.path`` before any of them is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Runs the subcommand that the command line names."""
    root = Path(__file__).resolve().parents[1]
    # The second is where the client is in a checkout.
    ours = [str(folder) for folder in (root, root / "clients" / "python") if folder.is_dir()]
    sys.path[:] = [*ours, *(entry for entry in sys.path if entry not in ours)]
    from serving.cli import main as run

    run()


if __name__ == "__main__":
    main()
