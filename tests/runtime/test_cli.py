"""What all commands share."""

import types

import pytest

from maskclippp_jax.runtime import cli


def test_ctrl_c_ends_with_one_line_and_130(capsys):
    def main(arguments):
        raise KeyboardInterrupt

    assert cli.complain(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
    command = types.SimpleNamespace(__name__="x", POSITIONAL="", BUCKETS=(), main=main)
    assert run(command) == 130


def run(command) -> int:
    """The exit code of a command that has no flags of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.faulthandler, "enable", lambda: None)  # wants a real stderr
        patch.setattr(cli, "_parse", lambda name, arguments: [])
        patch.setattr(cli.flags, "DEFINE_bool", lambda *args, **kw: None)
        return cli.run(command, [])
