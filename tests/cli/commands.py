"""The command line as a user types it, in the tests' own process."""

from typer.testing import CliRunner, Result

from surgeon.cli.main import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    """What a command prints that has to succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout
