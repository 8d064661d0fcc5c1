"""Settings from files: who goes before whom, what is refused, and what `config show` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import cloud_verifier.cli
import edge_client.cli
from outrider_cli.config import config_command, config_option


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
