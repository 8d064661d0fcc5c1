"""The emulated link: what it must do to bytes and connections. Delays are checked from below only."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netlab.event_loop import precise_event_loop
from netlab.link import Link, LinkCounters, LinkSettings
from netlab.link_process import LinkProcess, LinkProcessError
from netlab.outages import Outages
from netlab.simulator.link import Link as SimulatedLink
from netlab.traces import RateTrace, RttTrace

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NOISE = np.random.default_rng(7).bytes(1 << 20)
GIVE_UP_SECONDS = 20


def run(test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        runner.run(asyncio.wait_for(test, GIVE_UP_SECONDS))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what came; at its end, with the end."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def link_to(handler: Handler, settings: LinkSettings) -> AsyncIterator[Link]:
    """A link to a target that treats its connections with `handler`."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server, Link(server.sockets[0].getsockname(), settings) as link:
        yield link


async def connect(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", link.port)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def echoed(link: Link, data: bytes) -> bytes:
    """What comes back for data that is sent in odd portions with pauses between them."""
    reader, writer = await connect(link)

    async def send() -> None:
        for start in range(0, len(data), 30_011):
            writer.write(data[start : start + 30_011])
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write_eof()

    sending = asyncio.create_task(send())
    back = await reader.read()
    await sending
    writer.close()
    return back


@pytest.mark.parametrize(
    "settings",
    [
        LinkSettings(),
        LinkSettings(delay_up_ms=3, delay_down_ms=1, jitter_ms=8, seed=1),
        LinkSettings(up_kbps=80_000, down_kbps=60_000, jitter_ms=2),
        LinkSettings(loss=0.002, loss_stall_ms=5, jitter_ms=3, seed=2),
        LinkSettings(buffer_bytes=4096, delay_up_ms=1),
        LinkSettings(jitter_ms=2, jitter_model="pareto", seed=4),
        LinkSettings(up_kbps=80_000, down_kbps=60_000, burst_bytes=20_000, queue_ms=5, delay_up_ms=2),
        LinkSettings(good_ms=30, bad_ms=10, queue_ms=3, seed=1),
        LinkSettings(good_ms=20, bad_ms=10, bad_loss=0.2, loss_stall_ms=3),
        LinkSettings(rtt_trace=RttTrace((0, 20, 30), (6, 0, 10)), offset_ms=15),
        LinkSettings(rate_trace=RateTrace((0, 20, 30), (60_000, 0, 90_000), (80_000, 70_000, 0))),
    ],
    ids=[
        "plain",
        "jitter",
        "bandwidth",
        "loss",
        "small buffer",
        "heavy tail",
        "queue",
        "outages",
        "lossy outages",
        "round trips",
        "rates",
    ],
)
def test_bytes_arrive_intact_and_in_order_and_are_counted(settings: LinkSettings) -> None:
    async def test() -> None:
        data = NOISE[:400_000]
        async with link_to(echo, settings) as link:
            assert await echoed(link, data) == data
            await until(lambda: link.counters().open_connections == 0)
            assert link.counters() == LinkCounters(bytes_up=len(data), bytes_down=len(data), connections=1)
            link.reset_counters()
            assert link.counters() == LinkCounters()

    run(test())


def test_connections_do_not_mix() -> None:
    async def test() -> None:
        payloads = [NOISE[i * 20_000 : (i + 1) * 20_000] for i in range(16)]
        async with link_to(echo, LinkSettings(jitter_ms=5, up_kbps=50_000)) as link:
            assert await asyncio.gather(*(echoed(link, payload) for payload in payloads)) == payloads
            assert link.counters().connections == 16

    run(test())


def test_nothing_arrives_before_its_delay() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings(delay_up_ms=12, delay_down_ms=8, jitter_ms=4)) as link:
            opened_at = time.monotonic()
            reader, writer = await connect(link)
            for i in range(6):
                sent_at = opened_at if i == 0 else time.monotonic()
                writer.write(b"ping")
                await reader.readexactly(4)
                round_trips = 2 if i == 0 else 1  # the first pays for the handshake
                assert time.monotonic() - sent_at >= round_trips * 0.020
            writer.close()

    run(test())


def test_a_target_that_speaks_first_is_heard_after_the_handshake() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async def test() -> None:
        async with link_to(greet, LinkSettings(delay_up_ms=10, delay_down_ms=10)) as link:
            opened_at = time.monotonic()
            reader, writer = await connect(link)
            assert await reader.read() == b"hello"
            assert time.monotonic() - opened_at >= 0.040
            writer.close()

    run(test())


def test_bandwidth_is_shared_by_all_connections() -> None:
    async def test() -> None:
        settings = LinkSettings(up_kbps=8_000)  # 1,000 bytes per ms
        async with link_to(echo, settings) as link:
            started_at = time.monotonic()
            await asyncio.gather(*(echoed(link, NOISE[:50_000]) for _ in range(3)))
            assert time.monotonic() - started_at >= 0.150

    run(test())


def test_bytes_trickle_through_a_narrow_link() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings(down_kbps=2_000)) as link:
            reader, writer = await connect(link)
            sent_at = time.monotonic()
            writer.write(NOISE[:50_000])  # 200 ms on the way down
            await reader.readexactly(1)
            assert link.counters().held_bytes > 0 or time.monotonic() - sent_at >= 0.200
            await reader.readexactly(49_999)
            writer.close()

    run(test())


def test_a_bounded_queue_lets_others_in_between() -> None:
    """Without the bound whoever came first would have it all: one connection sends a lot, another then a little."""

    async def test() -> None:
        arrived: list[int] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            total = 0
            while data := await reader.read(65536):
                total += len(data)
                arrived.append(len(data))
            writer.write(b"%d" % total)
            writer.close()

        async with link_to(note, LinkSettings(up_kbps=16_000, queue_ms=10)) as link:
            much, little = await connect(link), await connect(link)
            much[1].write(NOISE[:600_000])  # 300 ms of it
            much[1].write_eof()
            await until(lambda: len(arrived) > 0)
            little[1].write(b"x")
            little[1].write_eof()
            assert await little[0].read() == b"1"
            assert sum(arrived) < 600_001
            assert await much[0].read() == b"600000"
            much[1].close()
            little[1].close()

    run(test())


def test_a_bounded_queue_leaves_the_rest_with_the_sender() -> None:
    async def test() -> None:
        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                pass
            writer.close()

        async with link_to(swallow, LinkSettings(up_kbps=800, queue_ms=20)) as link:  # 2,000 bytes of queue
            reader, writer = await connect(link)
            writer.write(NOISE)
            await until(lambda: link.counters().held_bytes > 0)
            await asyncio.sleep(0.02)
            one_read = 256 << 10
            assert link.counters().bytes_up <= one_read
            link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert link.counters().held_bytes == 0
            writer.close()

    run(test())


def test_a_live_link_is_never_quicker_than_the_simulated_one() -> None:
    settings = LinkSettings(
        delay_up_ms=3, jitter_ms=6, jitter_model="lognormal", up_kbps=400, burst_bytes=90, loss=0.2, loss_stall_ms=9
    )

    async def test() -> None:
        times: list[float] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(100):
                times.append(time.monotonic())
            writer.close()

        async with link_to(note, settings) as link:
            opened_at = time.monotonic()
            _, writer = await connect(link)
            await until(lambda: link.counters().open_connections == 1)
            await asyncio.sleep(0.02)
            simulated = SimulatedLink.of_settings(settings).up
            for count in range(1, 13):
                due_ms = simulated.arrival_ms((time.monotonic() - opened_at) * 1000, 100)
                writer.write(NOISE[:100])
                await until(lambda count=count: len(times) == count)  # type: ignore[misc]
                assert times[-1] - opened_at >= due_ms / 1000 - 1e-6
            writer.close()

    run(test())


def test_an_outage_delivers_nothing_until_it_ends() -> None:
    outages = Outages(40, 30, 5)  # good at first
    assert not outages.at(0)[0]

    async def test() -> None:
        held = 0
        before = time.monotonic()
        async with link_to(echo, LinkSettings(good_ms=40, bad_ms=30, seed=5)) as link:
            after = time.monotonic()  # the outages are counted from a moment between the two
            reader, writer = await connect(link)
            while held < 5:
                sent = time.monotonic()
                writer.write(b"x")
                await reader.readexactly(1)
                least, most = (outages.at((sent - origin) * 1000) for origin in (after, before))
                if least == most and least[0]:
                    held += 1
                    assert (time.monotonic() - before) * 1000 >= least[1]
                await asyncio.sleep(0.002)
            writer.close()

    run(test())


def test_losses_stall() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings(loss=0.99, loss_stall_ms=15)) as link:
            started_at = time.monotonic()
            assert await echoed(link, NOISE[:14_600]) == NOISE[:14_600]  # ten packets, each way
            assert time.monotonic() - started_at >= 0.030

    run(test())


def test_jitter_depends_on_the_seed_only() -> None:
    async def arrivals(seed: int) -> list[float]:
        times: list[float] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1):
                times.append(time.monotonic())
            writer.close()

        async with link_to(note, LinkSettings(jitter_ms=30, seed=seed)) as link:
            _, writer = await connect(link)
            await until(lambda: link.counters().open_connections == 1)
            sent: list[float] = []
            for _ in range(4):
                sent.append(time.monotonic())
                writer.write(b"x")
                await until(lambda: len(times) == len(sent))
            writer.close()
        return [arrived - left for arrived, left in zip(times, sent, strict=True)]

    async def test() -> None:
        for seed in (1, 2):
            expected = random.Random(f"{seed}/1/up")
            for delay_s in await arrivals(seed):
                assert delay_s >= expected.uniform(0, 30) / 1000

    run(test())


def test_cut_resets_present_connections_and_takes_new_ones() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings(delay_up_ms=30)) as link:
            reader, writer = await connect(link)
            writer.write(b"never arrives")
            await until(lambda: link.counters().bytes_up > 0)
            link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert link.counters().open_connections == link.counters().held_bytes == 0
            assert await echoed(link, b"again") == b"again"

    run(test())


def test_cut_is_felt_by_the_target() -> None:
    async def test() -> None:
        felt = asyncio.Event()

        async def feel(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            felt.set()

        async with link_to(feel, LinkSettings()) as link:
            _, writer = await connect(link)
            writer.write(b"x")
            await until(lambda: link.counters().bytes_up == 1)
            await asyncio.sleep(0.02)
            link.cut()
            await felt.wait()
            writer.close()

    run(test())


def test_refused_connections_are_reset_while_present_ones_go_on() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings()) as link:
            reader, writer = await connect(link)
            writer.write(b"a")
            assert await reader.read(1) == b"a"
            link.refuse()
            with pytest.raises(ConnectionError):
                await echoed(link, b"no")
            writer.write(b"b")
            assert await reader.read(1) == b"b"
            assert (link.counters().connections, link.counters().refused) == (1, 1)
            link.refuse(False)
            assert await echoed(link, b"yes") == b"yes"
            writer.close()

    run(test())


def test_a_stall_holds_everything_back() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings()) as link:
            reader, writer = await connect(link)
            started_at = time.monotonic()
            link.stall(60)
            link.stall(20)  # within the first
            writer.write(b"late")
            assert await reader.readexactly(4) == b"late"
            assert time.monotonic() - started_at >= 0.060
            writer.close()

    run(test())


def test_a_pause_lasts_until_the_link_resumes() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings(delay_up_ms=5)) as link:
            reader, writer = await connect(link)
            link.pause()
            writer.write(b"held")
            reading = asyncio.create_task(reader.readexactly(4))
            await asyncio.sleep(0.05)
            assert not reading.done()
            assert link.counters().held_bytes == 4
            link.resume()
            assert await reading == b"held"
            writer.close()

    run(test())


@pytest.mark.parametrize("up", [True, False])
def test_a_half_open_connection_is_deaf_in_one_direction_and_new_ones_are_whole(up: bool) -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings()) as link:
            reader, writer = await connect(link)
            link.half_open(up=up)
            writer.write(b"lost")
            again, writer_again = await connect(link)
            writer_again.write(b"here")
            assert await again.readexactly(4) == b"here"
            down = 4 if up else 8  # what was echoed, of both
            await until(lambda: link.counters().bytes_down == down and link.counters().held_bytes == 4)
            link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            writer_again.close()

    run(test())


def test_half_close_is_passed_on_after_the_delay() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))
        writer.close()

    async def test() -> None:
        async with link_to(answer_at_the_end, LinkSettings(delay_up_ms=15, delay_down_ms=5)) as link:
            reader, writer = await connect(link)
            writer.write(NOISE[:1000])
            started_at = time.monotonic()
            writer.write_eof()
            assert await reader.read() == b"1000"
            assert time.monotonic() - started_at >= 0.020
            writer.close()
            await until(lambda: link.counters().open_connections == 0)

    run(test())


def test_a_reset_at_one_end_reaches_the_other() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async def test() -> None:
        async with link_to(hang_up, LinkSettings(delay_down_ms=5)) as link:
            reader, writer = await connect(link)
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            await until(lambda: link.counters().open_connections == 0)
            writer.close()

    run(test())


def test_a_target_that_is_not_there_looks_like_a_reset() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            absent = taken.getsockname()
        async with Link(absent) as link:
            with pytest.raises(ConnectionError):
                await echoed(link, b"anybody?")
            assert link.counters().open_connections == 0

    run(test())


def test_a_slow_reader_makes_the_sender_wait() -> None:
    async def test() -> None:
        resumed = asyncio.Event()

        async def read_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await resumed.wait()
            writer.write(b"%d" % len(await reader.read()))
            writer.close()

        buffer_bytes = 64 << 10
        async with link_to(read_later, LinkSettings(buffer_bytes=buffer_bytes)) as link:
            reader, writer = await connect(link)
            total, stuck = 0, False
            while not stuck:
                writer.write(NOISE)
                total += len(NOISE)
                try:
                    await asyncio.wait_for(writer.drain(), 0.3)
                except TimeoutError:
                    stuck = True
                assert total < 1 << 30, "the link swallows whatever it is given"
            one_read = 256 << 10
            assert link.counters().held_bytes <= buffer_bytes + one_read
            resumed.set()
            writer.write_eof()
            assert int(await reader.read()) == total
            writer.close()

    run(test())


def test_settings_change_while_the_link_runs() -> None:
    async def test() -> None:
        async with link_to(echo, LinkSettings()) as link:
            reader, writer = await connect(link)
            for delay_ms in (0, 25, 0):
                link.configure(LinkSettings(delay_up_ms=delay_ms))
                sent_at = time.monotonic()
                writer.write(b"x")
                await reader.read(1)
                assert time.monotonic() - sent_at >= delay_ms / 1000
            assert link.settings == LinkSettings()
            writer.close()

    run(test())


def test_a_link_has_a_port_only_while_it_runs() -> None:
    async def test() -> None:
        link = Link(("127.0.0.1", 1))
        with pytest.raises(RuntimeError, match="only while it is started"):
            _ = link.port
        await link.start()
        await link.stop()
        await link.stop()
        with pytest.raises(RuntimeError):
            _ = link.port

    run(test())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"delay_up_ms": -3}, r"delay_up_ms is -3, but a link takes 0 to 60,000 milliseconds"),
        ({"jitter_ms": float("nan")}, r"jitter_ms is nan, but"),
        ({"delay_down_ms": float("inf")}, r"delay_down_ms is inf, but"),
        (
            {"up_kbps": -1},
            r"up_kbps is -1, but a link takes 0 to 1,000,000,000 kilobits per second, 0 meaning no limit",
        ),
        ({"loss": 1}, r"loss is 1, but a link takes 0 to 0.99 as the share of packets lost"),
        ({"buffer_bytes": 1}, r"buffer_bytes is 1, but a link takes 4096 to"),
        ({"burst_bytes": -1}, r"burst_bytes is -1, but a link takes 0 to"),
        ({"queue_ms": 1e9}, r"queue_ms is 1000000000.0, but"),
        ({"good_ms": 5}, r"good_ms is 5 and bad_ms 0, but outages take at least 1 of both"),
        ({"good_ms": 5, "bad_ms": 0.5}, r"good_ms is 5 and bad_ms 0.5, but outages take at least 1 of both"),
        ({"bad_loss": 1.1}, r"bad_loss is 1.1, but a link takes 0 to 1 as the share of packets lost in an outage"),
        ({"jitter_model": "odd"}, r"jitter_model is 'odd', but a link takes uniform, normal, lognormal, pareto"),
        ({"offset_ms": -1}, r"offset_ms is -1, but"),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(LinkSettings(), **wrong)


def test_a_round_trip_is_split_in_halves() -> None:
    assert LinkSettings.of_rtt(50, jitter_ms=2, seed=3) == LinkSettings(25, 25, 2, seed=3)


# ---------------------------------------------------------------------------------------------------------------------
# LinkProcess


@contextmanager
def echo_thread() -> Iterator[tuple[str, int]]:
    """Address of an echo server that runs in a thread."""

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except ConnectionError:
                pass

    def accept() -> None:
        while True:
            try:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()
        server.shutdown(socket.SHUT_RDWR)


def echo_once(connection: socket.socket, data: bytes = b"ping") -> float:
    """Seconds that data takes there and back."""
    sent_at = time.monotonic()
    connection.sendall(data)
    back = b""
    while len(back) < len(data):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("closed")
        back += part
    assert back == data
    return time.monotonic() - sent_at


def test_a_link_process_is_controlled_over_its_pipe() -> None:
    with echo_thread() as target, LinkProcess(target, LinkSettings.of_rtt(10)) as link:
        address = ("127.0.0.1", link.port)
        with socket.create_connection(address, timeout=GIVE_UP_SECONDS) as connection:
            assert echo_once(connection) >= 0.010
            assert link.counters() == LinkCounters(bytes_up=4, bytes_down=4, connections=1, open_connections=1)
            link.reset_counters()
            assert link.counters() == LinkCounters(open_connections=1)
            trace = RttTrace(tuple(float(i) for i in range(20_000)), (30.0,) * 20_000)  # more than a pipe takes at once
            link.configure(LinkSettings(rtt_trace=trace, jitter_model="pareto"))
            assert echo_once(connection) >= 0.030
            link.configure(LinkSettings())
            stalled_at = time.monotonic()
            link.stall(40)
            link.refuse()
            with (
                pytest.raises(ConnectionError),
                socket.create_connection(address, timeout=GIVE_UP_SECONDS) as refused,
            ):
                echo_once(refused)
            echo_once(connection)
            assert time.monotonic() - stalled_at >= 0.040
            link.refuse(False)
            link.pause()
            link.resume()
            echo_once(connection)
            link.cut()
            with pytest.raises(ConnectionError):
                echo_once(connection)
        with socket.create_connection(address, timeout=GIVE_UP_SECONDS) as connection:
            echo_once(connection)


def test_a_link_process_says_why_it_cannot_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LinkProcessError, match=rf"the link cannot listen on 127\.0\.0\.1:{port}: .*in use"):
            LinkProcess(("127.0.0.1", 1), listen=("127.0.0.1", port))


def test_a_stopped_link_process_says_so() -> None:
    link = LinkProcess(("127.0.0.1", 1))
    link.stop()
    link.stop()
    with pytest.raises(LinkProcessError, match="the link's process has ended; it cannot cut"):
        link.cut()


def test_a_link_process_ends_with_its_parent() -> None:
    script = (
        "import time; from netlab.link_process import LinkProcess\n"
        "link = LinkProcess(('127.0.0.1', 1)); print(link.port, flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert parent.stdout is not None
    port = int(parent.stdout.readline())
    socket.create_connection(("127.0.0.1", port)).close()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionError:
            break
        assert time.monotonic() < deadline, "the link outlives its parent"
        time.sleep(0.02)
