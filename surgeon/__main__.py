"""The command line's first lines: Ctrl-C is answered before torch is imported, which takes seconds."""

from surgeon.support import interrupts


def main() -> None:
    """Run the command that the process was given; exit code 130 after Ctrl-C, 143 after SIGTERM."""
    interrupts.end_at_once()
    from surgeon.cli.main import app

    app()


if __name__ == "__main__":
    main()
