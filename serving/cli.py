"""The command ``segserve``: finds its subcommands by entry point, imports one when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import typer
from rich.console import Console
from rich.table import Table

from serving.oip.messages import SERVER_VERSION

GROUP = "segserve.commands"
# Shown by --help without importing a subcommand (training's would import a framework).
SUMMARIES = {
    "serve": "Serve a model repository over HTTP and gRPC",
    "segment": "Segment photos or folders of photos on a running server",
    "models": "List the models of a repository, and why one cannot be served",
    "export": "Convert a network (symbol + parameters) to a model of the repository",
    "import-onnx": "Add an ONNX network from PyTorch, PaddleSeg and others to the repository",
    "import-weights": "Convert weights of GluonCV, Fast_Seg, liminn or TensorFlow's DeepLab",
    "inspect": "Show a model's inputs, outputs, size, operations, accuracy and origin",
    "evaluate": "Score a served model on a dataset: mIoU, boundaries, pictures",
    "dataset": "Check a dataset: pairs, sizes, label range, share of each class",
    "runs": "List training runs; `runs compare A B` compares two",
}


def find_commands() -> dict[str, EntryPoint]:
    """Returns the subcommands of all installed distributions, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def main() -> None:
    """Runs the subcommand that the command line names."""
    commands = find_commands()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        show_help(commands)
        return
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(SERVER_VERSION)
        return
    if name not in commands:
        sys.exit(
            f"segserve: unknown command {name!r}; expected one of: {', '.join(sorted(commands))}"
        )
    command = load_command(commands[name])
    if isinstance(command, typer.Typer):
        # It has subcommands of its own.
        app = command
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name)(command)
    app(rest, prog_name=f"segserve {name}")


def load_command(entry: EntryPoint) -> Callable[..., None]:
    """Imports a subcommand; where a package is missing, exits naming the extra that has it."""
    try:
        command: Callable[..., None] = entry.load()
    except ImportError as error:
        extra = f"[{','.join(entry.extras)}]" if entry.extras else ""
        sys.exit(
            f"segserve {entry.name}: {error.name or error} is missing; "
            f"install it with: pip install 'segserve{extra}'"
        )
    return command


def show_help(commands: dict[str, EntryPoint]) -> None:
    """Prints the names and summaries of the subcommands."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name in sorted(commands, key=lambda n: (n not in SUMMARIES, list(SUMMARIES).index(n)
                                                if n in SUMMARIES else 0, n)):  # fmt: skip
        table.add_row(f"[bold]{name}[/bold]", SUMMARIES.get(name, ""))
    console = Console()
    console.print("Usage: segserve COMMAND [OPTIONS]        (segserve COMMAND --help)\n")
    console.print(table)
