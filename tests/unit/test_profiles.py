"""Networks by name: every file that comes with the project, and one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netlab import profiles
from netlab.link_settings import LinkSettings
from netlab.simulator import pair
from netlab.simulator.link import Link
from netlab.simulator.oracle import oracle
from netlab.simulator.run import Rider, simulate
from netlab.traces import RateTrace, RttTrace
from speculation.pace.base import Streaming

ROUNDING_MS = 1e-3
EXPECTED = {"lan", "wifi", "5g", "lte", "3g", "wan", "satellite-leo", "satellite-geo", "satellite", "subway", "cafe"}


def test_the_names() -> None:
    assert set(profiles.names()) >= EXPECTED
    assert len(set(profiles.names())) == len(profiles.names())
    assert profiles.find("satellite") == profiles.find("satellite-geo")


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_has_a_source_and_runs_in_the_simulator(name: str) -> None:
    profile = profiles.find(name)
    assert profile.description.endswith(".")
    assert profile.source.strip().endswith(".")
    assert LinkSettings.of_dict(json.loads(json.dumps(profile.settings.as_dict()))) == profile.settings
    answer = pair.independent(0.8).answers(1, 30, 1)[0]
    best = oracle(answer, Link.of_settings(profile.settings, offset_ms=500, seed=3), 5.0)
    link = Link.of_settings(profile.settings, offset_ms=500, seed=3)
    result = simulate([Rider(answer, link, Streaming())]).results[0]
    assert result.same_words
    assert best.total_ms <= result.total_ms + ROUNDING_MS
    assert result.ttft_ms >= profile.settings.rtt_ms


def test_the_page_on_networks_names_every_profile() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "networks.md").read_text()
    assert all(f"`{name}`" in page for name in profiles.names())


def test_a_file_of_ones_own_with_traces_beside_it(tmp_path: Path) -> None:
    (tmp_path / "rtt.csv").write_text("time_ms,rtt_ms\n0,20\n50,30\n")
    (tmp_path / "rates.csv").write_text("time_ms,up_kbps,down_kbps\n0,20,30\n50,30,0\n")
    file = tmp_path / "office.toml"
    file.write_text(
        'description = "Ours."\nsource = "Measured."\n[link]\njitter_ms = 3\njitter_model = "normal"\n'
        'rtt_trace = "rtt.csv"\nrate_trace = "rates.csv"\n'
    )
    profile = profiles.find(str(file))
    assert (profile.name, profile.description, profile.source) == ("office", "Ours.", "Measured.")
    assert profile.settings == LinkSettings(
        jitter_ms=3,
        jitter_model="normal",
        rtt_trace=RttTrace((0, 50), (20, 30)),
        rate_trace=RateTrace((0, 50), (20, 30), (30, 0)),
    )


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(profiles.ProfileError, match=r"no network profile 'lte5'; there are lan, .*, satellite, or the"):
        profiles.find("lte5")
    with pytest.raises(profiles.ProfileError, match=r"nowhere.toml cannot be read"):
        profiles.find("nowhere.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[link", "is no TOML: "),
        ('source = "x"\n[link]\n', "expected description, a sentence"),
        ('description = "x"\nsource = " "\n[link]\n', "expected source, a sentence"),
        ('description = "x"\nsource = "x"\n', r"found no \[link\]"),
        ('description = "x"\nsource = "x"\nrtt = 3\n[link]\n', r"the table \[link\], found rtt"),
        ('description = "x"\nsource = "x"\n[link]\nrtt_ms = 3\n', r"\[link\] has no rtt_ms; it has delay_up_ms, "),
        ('description = "x"\nsource = "x"\n[link]\nloss = "much"\n', "loss is 'much'; expected a number"),
        ('description = "x"\nsource = "x"\n[link]\nloss = true\n', "loss is True; expected a number"),
        ('description = "x"\nsource = "x"\n[link]\nrtt_trace = 3\n', "rtt_trace is 3; expected a text"),
        ('description = "x"\nsource = "x"\n[link]\nrtt_trace = "no.csv"\n', "no.csv cannot be read"),
        ('description = "x"\nsource = "x"\n[link]\nloss = 2\n', "loss is 2, but a link takes 0 to 0.99"),
    ],
)
def test_malformed_profiles_are_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(profiles.ProfileError, match=f"bad.toml.*{sentence}"):
        profiles.find(str(file))
