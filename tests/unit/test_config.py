"""Settings from files: who goes before whom, what is refused, and what `config show` says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import cloud_verifier.cli
import edge_client.cli
import netlab.cli
from outrider_cli.config import config_command, config_option, key_of, settable
from outrider_cli.environment import take_former_names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def program(default: Path | None = None) -> click.Group:
    """A program of two commands, of which `serve` prints what it was given."""

    @click.group(context_settings={"auto_envvar_prefix": "PROGRAM"})
    def main() -> None:
        pass

    @main.command()
    @config_option(default)
    @click.option("--port", default=1, type=click.IntRange(0, 9), show_envvar=True)
    @click.option("--strict/--no-strict", default=True, show_envvar=True)
    @click.option("--step-ms", default=0.5, show_envvar=True)
    @click.option("--model", required=True, multiple=True, show_envvar=True)
    @click.option("--some-api-key", default="", show_envvar=True)
    @click.option("--json", is_flag=True)
    def serve(**options: Any) -> None:
        click.echo(repr(options))

    @main.command()
    @config_option(default)
    @click.option("--elsewhere", show_envvar=True)
    def other(elsewhere: str) -> None:
        click.echo(elsewhere)

    main.add_command(config_command(main, "serve"))
    return main


def run(*arguments: str, main: click.Group | None = None, **environment: str) -> Result:
    return CliRunner().invoke(main or program(), arguments, env=environment)


def test_a_file_goes_before_defaults_the_environment_before_it_and_a_flag_before_all(file: Path) -> None:
    file.write_text("port: 2\nstep_ms: 7\nmodel: [a, b]\nstrict: false\nelsewhere: x\n")
    given = run("serve", "--config", str(file)).output
    assert "'port': 2" in given
    assert "'step_ms': 7.0" in given
    assert "'model': ('a', 'b')" in given
    assert "'strict': False" in given
    assert "'port': 3" in run("serve", "--config", str(file), PROGRAM_SERVE_PORT="3").output
    assert "'port': 4" in run("serve", "--config", str(file), "--port", "4", PROGRAM_SERVE_PORT="3").output
    assert "'port': 2" in run("serve", PROGRAM_SERVE_CONFIG=str(file)).output


def test_one_value_is_enough_where_several_may_stand(file: Path) -> None:
    file.write_text("model: target\n")
    assert "'model': ('target',)" in run("serve", "--config", str(file)).output


def test_a_default_file_is_read_if_it_is_there(file: Path) -> None:
    assert run("serve", main=program(file)).exit_code == 2, "--model is missing"
    file.write_text("model: target\n")
    assert "'target'" in run("serve", main=program(file)).output
    assert run("serve", "--config", "/dev/null", main=program(file)).exit_code == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prot: 1\nmodel: x", "unknown setting prot; there are elsewhere, model, port"),
        ("json: true", "unknown setting json"),
        ("config: other.yaml", "unknown setting config"),
        ("port: 99", "port: 99 is not in the range 0<=x<=9"),
        ("port: [1, 2]", "port: one value is expected"),
        ("port: {a: 1}", "port: one value is expected"),
        ("strict: perhaps", "strict: 'perhaps' is not a valid boolean"),
        ("- port", "expected lines of the form 'flag: value'"),
        ("port: [", "as YAML"),
        ("a: !!python/object:os.system {}", "as YAML"),
    ],
)
def test_a_file_that_is_wrong_gets_a_sentence(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    done = run("serve", "--config", str(file))
    assert done.exit_code == 2
    assert sentence in done.output
    assert str(file) in done.output


def test_show_tells_values_and_where_they_come_from(file: Path) -> None:
    file.write_text("step-ms: 7\nsome-api-key: s3cret\n")
    done = run("config", "show", "--config", str(file), "--no-strict", PROGRAM_SERVE_PORT="3")
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in done.output.splitlines()}
    assert rows == {
        "port": "3 environment: PROGRAM_SERVE_PORT",
        "strict": "false command line",
        "step-ms": f"7.0 {file}",
        "model": "default",
        "some-api-key": f"(set) {file}",
    }


def test_show_takes_another_command_and_refuses_one_without_a_file(file: Path) -> None:
    file.write_text("elsewhere: here\nport: 2\n")
    assert run("config", "show", "other", "--config", str(file)).output == f"elsewhere  here  {file}\n"
    done = run("config", "show", "nothing")
    assert done.exit_code == 2
    assert "these do: other, serve" in done.output


@pytest.mark.parametrize(
    ("main", "command"), [(cloud_verifier.cli.main, "serve"), (edge_client.cli.main, "chat")], ids=["verifier", "edge"]
)
def test_the_programs_take_files(main: click.Group, command: str, file: Path) -> None:
    file.write_text("model: from-the-file\n")
    done = run("config", "show", command, "--config", str(file), main=main)
    assert done.exit_code == 0, done.output
    assert ["model", "from-the-file", str(file)] in [line.split() for line in done.output.splitlines()]


@pytest.mark.parametrize("command", ["chat", "generate", "serve", "doctor"])
def test_options_stand_under_titles(command: str) -> None:
    text = CliRunner().invoke(edge_client.cli.main, [command, "--help"]).output
    titles = [line for line in text.splitlines() if line and not line.startswith(" ") and line.endswith(":")]
    assert "Verifier and drafter:" in titles
    assert len(titles) == len(set(titles)) >= 3
    assert text.count("--verifier ") == 1


# Said in docs/operation.md: a key that all commands share, and a file that is the running verifier's.
SHARED = {"verifier-api-key": "OUTRIDER_VERIFIER_API_KEY", "api-keys": "OUTRIDER_VERIFIER_SERVE_API_KEYS"}


@pytest.mark.parametrize("program", [edge_client.cli.main, cloud_verifier.cli.main, netlab.cli.main])
def test_the_environment_has_every_option_under_its_own_name(program: click.Group) -> None:
    def check(group: click.Group, prefix: str) -> int:
        checked = 0
        for name, command in group.commands.items():
            inner = f"{prefix}_{name.upper()}"
            if isinstance(command, click.Group):
                checked += check(command, inner)
                continue
            for option in settable(command):
                of_click = option.envvar or f"{inner}_{(option.name or '').upper()}"
                own = f"{inner}_{key_of(option).replace('-', '_').upper()}"
                assert of_click == SHARED.get(key_of(option), own)
                checked += 1
        return checked

    assert check(program, program.context_settings["auto_envvar_prefix"]) > 10


def test_a_former_name_of_the_environment_is_taken_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NEW_NAME", raising=False)
    take_former_names({"OLD_NAME": "NEW_NAME"})
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("OLD_NAME", "x")
    monkeypatch.setenv("NEW_NAME", "y")
    take_former_names({"OLD_NAME": "NEW_NAME"})
    assert os.environ["NEW_NAME"] == "y"
    assert "OLD_NAME is called NEW_NAME now" in capsys.readouterr().err
    del os.environ["NEW_NAME"]
    take_former_names({"OLD_NAME": "NEW_NAME"})
    assert os.environ["NEW_NAME"] == "x"


def test_former_names_lead_to_options_that_there_are() -> None:
    for new in edge_client.cli.FORMER_NAMES.values():
        _, _, command, flag = new.split("_", 3)
        options = settable(edge_client.cli.main.commands[command.lower()])
        assert flag in {key_of(option).replace("-", "_").upper() for option in options}
