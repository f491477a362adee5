"""Output for a person at a terminal, and for a script that reads it."""

from rich.console import Console


def plain_console() -> Console:
    """A console that prints text as it is."""
    # Piped output has no width of its own: a table cut at 80 columns would lose what a script looks for.
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
    return console
