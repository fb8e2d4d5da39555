"""The command line as `python -m surgeon`, where no `surgeon` is on the path."""

from surgeon.cli.main import app

if __name__ == "__main__":
    app()
