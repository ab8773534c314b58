"""The private node and the chain that finds a broker, on real nodes of the installed rabbitmq-server."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pika
import pytest

from hareline.broker import BrokerCommandFailed, BrokerUnavailable, PrivateNode, find_broker
from hareline.broker_package import can_install, install_package
from hareline.loopback import free_ports, is_free, overview, speaks_amqp
from topology.settings import Settings

pytestmark = pytest.mark.machine

DEADLINE = 60.0

FOREGROUND = """
import sys
from hareline.broker import run_foreground
run_foreground(sys.argv[1] if len(sys.argv) > 1 else None)
"""


@pytest.fixture(scope="module", autouse=True)
def rabbitmq_server():
    """The package itself: installed where that is possible, missed loudly in CI, and skipped elsewhere."""
    if not PrivateNode.installed() and can_install():
        install_package()
    if not PrivateNode.installed():
        sentence = "rabbitmq-server is not installed: install it to run these tests"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)


@pytest.fixture(scope="module")
def shared_node(rabbitmq_server):
    with PrivateNode(prometheus=True) as node:
        yield node


def eventually(condition, what: str) -> None:
    """Waits for another process to get there; fails only after a generous deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        select.select([], [], [], 0.05)


def durable_queue_with_a_message(url: str, queue: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", queue, b"kept", pika.BasicProperties(delivery_mode=2), mandatory=True)


def take_one(url: str, queue: str) -> bytes | None:
    """The message, once the quorum queue has its leader again."""
    bodies: list[bytes] = []

    def taken() -> bool:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            try:
                _, _, body = connection.channel().basic_get(queue, auto_ack=True)
            except pika.exceptions.AMQPChannelError:
                return False
        if body is not None:
            bodies.append(body)
        return bool(bodies)

    eventually(taken, f"a message in {queue}")
    return bodies[0]


def ports_of(node: PrivateNode) -> list[int]:
    return [int(url.split(":")[-1].strip("/")) for url in (node.url, node.management_url)]


def test_a_started_node_answers_on_all_its_addresses(shared_node):
    """On return from start, AMQP, the management API and, where asked for, the metrics answer."""
    assert speaks_amqp(shared_node.url)
    answer = overview(shared_node.management_url, "guest", "guest")
    assert answer is not None
    assert answer["rabbitmq_version"] == shared_node.version
    assert int(shared_node.version.split(".")[0]) >= 3
    assert shared_node.prometheus_url is not None
    port = int(shared_node.prometheus_url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        stream.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert stream.recv(12).endswith(b"200")


def test_a_node_listens_on_loopback_alone(shared_node):
    """No listener of the node, not even Erlang's distribution, is reachable from another machine."""
    listed = shared_node.ctl(
        "eval",
        "[inet:sockname(P) || P <- erlang:ports(), "
        "{ok, {_, N}} <- [inet:sockname(P)], {error, enotconn} =:= inet:peername(P), N > 0].",
    )
    assert "{127,0,0,1}" in listed
    assert "{0,0,0,0}" not in listed
    assert "{0,0,0,0,0,0,0,0}" not in listed


def test_ctl_returns_output_and_reports_failure(shared_node):
    """The output of rabbitmqctl is returned; its failure is an error with what it printed."""
    durable_queue_with_a_message(shared_node.url, "ctl")
    assert "ctl" in shared_node.ctl("list_queues", "name")
    with pytest.raises(BrokerCommandFailed, match="no_such_command"):
        shared_node.ctl("no_such_command")


def test_two_nodes_live_side_by_side(shared_node):
    """Nodes share nothing: not ports, not the Erlang name server, not queues."""
    durable_queue_with_a_message(shared_node.url, "mine")
    with PrivateNode() as other:
        assert not {*ports_of(other)} & {*ports_of(shared_node)}
        assert "mine" not in other.ctl("list_queues", "name")
    assert "mine" in shared_node.ctl("list_queues", "name")


@pytest.mark.kills
def test_data_and_ports_survive_stop_and_kill():
    """A confirmed message is there again, at the same address, after a graceful stop and after a crash."""
    with PrivateNode() as node:
        url = node.url
        for end in (node.stop, node.kill):
            durable_queue_with_a_message(url, "kept")
            end()
            assert not node.running
            assert all(is_free(port) for port in ports_of(node))
            node.start()
            assert node.url == url
            assert take_one(url, "kept") == b"kept"
        directory = node.directory
    assert not directory.exists()
    assert all(is_free(int(url.rsplit(":", 1)[1].strip("/"))) for url in [url])


def test_a_given_directory_stays_and_has_one_node_at_a_time(tmp_path):
    """The next node in a given directory finds its data; a second one at the same time is refused."""
    place = tmp_path / "with a space"
    with PrivateNode(place) as node:
        durable_queue_with_a_message(node.url, "kept")
        with pytest.raises(BrokerUnavailable, match="another private node"), PrivateNode(place):
            pass
        assert speaks_amqp(node.url)
    port, management_port = free_ports(2)
    with PrivateNode(place, port=port, management_port=management_port) as node:
        assert ports_of(node) == [port, management_port]
        assert take_one(node.url, "kept") == b"kept"


def test_a_taken_port_is_named():
    """A port that the caller asked for and cannot have is an error that names it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match=str(port)), PrivateNode(port=port):
            pass


def test_a_node_that_cannot_boot_shows_its_log(tmp_path):
    """A boot that fails ends in one error with the end of the log, and leaves no process."""
    (tmp_path / "advanced.config").write_text("this is no Erlang term", encoding="utf-8")
    node = PrivateNode(tmp_path)
    with pytest.raises(BrokerUnavailable, match=r"(?s)did not start.*advanced.config"), node:
        pass
    assert not node.running
    assert all(is_free(port) for port in ports_of(node))


def start_foreground(*arguments: str) -> tuple[subprocess.Popen, dict[str, str], Path]:
    """A process that runs a node, what it told the shell to export, and the node's directory."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, *arguments], cwd=root, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    exports: dict[str, str] = {}
    directory = Path()
    for line in process.stdout:
        if "data in " in line:
            directory = Path(line.split("data in ", 1)[1].strip())
        if line.startswith("export "):
            name, value = line.removeprefix("export ").strip().split("=", 1)
            exports[name] = value
        if line.startswith("Ctrl-C"):
            return process, exports, directory
    pytest.fail(f"the broker command ended with {process.wait()} before it was ready")


@pytest.mark.kills
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_node_never_outlives_its_owner(number):
    """Ctrl-C, SIGTERM and even kill -9 of the owner end the node's every process and its temporary data."""
    owner, exports, directory = start_foreground()
    url = exports["HARELINE_BROKER_URL"]
    assert speaks_amqp(url)
    assert overview(exports["HARELINE_MANAGEMENT_URL"], "guest", "guest")
    owner.send_signal(number)
    status = owner.wait(DEADLINE)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    owner.stdout.close()
    eventually(lambda: not directory.exists(), "the temporary directory is removed")
    eventually(lambda: not processes_that_mention(directory), "no process of the node is left")
    eventually(lambda: is_free(int(url.rsplit(":", 1)[1].strip("/"))), "the port is free")


def processes_that_mention(directory: Path) -> list[str]:
    """Command lines and environments that name the directory; empty where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                if os.fsencode(directory) in (entry / name).read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


def test_a_broker_that_is_set_comes_first(shared_node):
    """HARELINE_BROKER_URL wins over every other source, is passed on as it is, and is not stopped."""
    unused = f"amqp://guest:guest@127.0.0.1:{free_ports(1)[0]}/"
    both = f"{unused},{shared_node.url}"
    settings = Settings.from_env({"HARELINE_BROKER_URL": both, "HARELINE_MANAGEMENT_URL": "http://127.0.0.1:1"})
    with find_broker(settings) as broker:
        assert broker.url == both
        assert broker.management_url == "http://127.0.0.1:1"
        assert broker.node is None
        assert broker.environment == {
            "HARELINE_BROKER_URL": both,
            "HARELINE_MANAGEMENT_URL": "http://127.0.0.1:1",
        }
    assert shared_node.running


def test_a_broker_that_is_set_but_does_not_answer_is_an_error():
    """Work never goes to another broker than the one that was asked for; the password is not shown."""
    port = free_ports(1)[0]
    settings = Settings.from_env({"HARELINE_BROKER_URL": f"amqp://user:hidden@127.0.0.1:{port}/"})
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}") as caught:
        find_broker(settings)
    assert "hidden" not in str(caught.value)


def test_without_a_setting_an_installed_server_gives_a_private_node():
    """The broker is up on return, can be controlled, and is gone after close."""
    lines: list[str] = []
    with find_broker(Settings.from_env({}), report=lines.append) as broker:
        assert broker.node is not None
        assert speaks_amqp(broker.url)
        assert broker.node.version in broker.source
    assert not speaks_amqp(broker.url)
    assert any("private RabbitMQ node" in line for line in lines)
