"""`python -m svae.bench`: how fast one training step is on this machine."""

__all__ = ["main"]


def main() -> None:
    """Run the command."""
    # Not above: the processes that measure import this package, and their memory is measured.
    from svae.bench.command import main as run

    run()
