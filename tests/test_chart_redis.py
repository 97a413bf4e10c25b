"""The chart's Redis with users and certificates: who may do what, and that both may be exchanged while it runs."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis
from cryptography import x509

from cli.programs import find_redis
from services.gateway.admission.cost import Cost
from services.gateway.keys.key_entry import Limits
from services.gateway.keys.quota_store import QuotaStore
from services.operator.broker import celery_tls, celery_url, redis_client
from services.operator.queue import CONTROL, RECONCILE, make_queue
from services.operator.settings import OperatorSettings
from tests.certificates import Authority
from tests.chart_redis import USERS, ChartRedis
from tests.debian_redis import needs_redis_tls
from tests.helm import named, needs_helm, rendered
from ziya.bus import READY, Announcements, Bus, Work
from ziya.errors import BusUnavailable, InvalidRequest
from ziya.redis_login import RedisLogin

pytestmark = needs_helm
FEATURES, TOKENS, LEFT = "ziya:features:1", "ziya:tokens:1", "ziya:left:1"


@pytest.fixture
def secure(short_folder: Path, free_port: int) -> Iterator[ChartRedis]:
    server = ChartRedis("tls", short_folder, free_port, Authority())
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def buses(server: ChartRedis) -> AsyncIterator[dict[str, Bus]]:
    async with AsyncExitStack() as stack:
        made = {user: Bus(server.url(user), login=server.login(user)) for user in USERS}
        for bus in made.values():
            stack.push_async_callback(bus.close)
        yield made


def work() -> Work:
    return Work(FEATURES, TOKENS, "", time.time() + 60, "r1")


async def until(true: object) -> None:
    """Polls a function until it is true; pytest's timeout is the bound."""
    assert callable(true)
    while not await asyncio.to_thread(true):
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("case", ["default", "logins"])
def test_redis_starts_with_the_charts_arguments(case: str, short_folder: Path, free_port: int) -> None:
    server = ChartRedis(case, short_folder, free_port)
    if case == "default":
        link = short_folder / "bin" / "redis-server"
        link.unlink()
        link.symlink_to(Path(find_redis()).absolute())
    elif not (short_folder / "bin" / "redis-cli").exists():
        pytest.skip("there is no redis-cli here")
    server.start()
    try:
        with redis.Redis.from_url(f"unix://{short_folder}/data/redis.sock") as client:
            assert client.ping()
            if case == "default":
                settings = client.config_get("*")
                assert settings["maxmemory"] == str(256 << 20)
                assert (settings["maxmemory-policy"], settings["save"]) == ("volatile-lru", "")
    finally:
        assert server.stop() == 0


@needs_redis_tls
async def test_each_component_can_do_its_work(secure: ChartRedis) -> None:
    async with buses(secure) as of:
        for bus in of.values():
            await bus.ping()
        waiting = Announcements(of["llama"])
        await waiting.start()
        tokens = asyncio.create_task(waiting.wait(TOKENS, time.time() + 30))
        assert await of["vision"].touch([FEATURES], 60) == [False]
        await of["vision"].put_and_publish(FEATURES, b"features", 60, work())
        batches = of["qformer"].consume("qformer", "me", count=4, claim_idle=0.05)
        [delivery] = await anext(batches)
        assert await of["qformer"].get_many([FEATURES]) == [b"features"]
        assert await of["qformer"].backlog() == 1
        await of["qformer"].finish([(delivery, b"tokens")], 60)
        assert await tokens == b"tokens"
        assert await of["gateway"].touch([TOKENS], 60) == [True]
        store = QuotaStore(of["gateway"].link, lease_seconds=10)
        limits = Limits(images=2, tokens=5, concurrent=1)
        assert (await store.take("k", "lease", Cost(1, 1), limits)).refused == ""
        assert (await store.take("k", "other", Cost(1, 1), limits)).refused == "concurrent"
        ended = store.settling("k", "lease", Cost(-1, 1), limits)
        await store.send([store.renewing("k", ["lease"]), ended])
        assert (await store.take("k", "other", Cost(2, 3), limits)).refused == ""
        # What nobody waits for any more, and what is spoilt.
        await of["gateway"].withdraw([await of["vision"].publish(work())])
        await of["vision"].withdraw([await of["vision"].publish(work())])
        assert await of["qformer"].backlog() == 0
        await of["gateway"].drop([TOKENS])
        left = asyncio.Event()
        with waiting.listening(LEFT, left.set):
            await of["gateway"].announce(LEFT)
            await left.wait()
        # What fails, and what is given up because nobody can read it.
        await of["vision"].publish(work())
        [again] = await anext(batches)
        assert await of["qformer"].wanted([again]) == [True]
        failing = asyncio.create_task(waiting.wait("ziya:tokens:2", time.time() + 30))
        await of["qformer"].announce("ziya:tokens:2", InvalidRequest("no"))
        with pytest.raises(InvalidRequest):
            await failing
        await of["qformer"].finish([(again, InvalidRequest("no"))], 60)
        await of["qformer"].deliver(TOKENS, b"inline", 60)
        assert await of["qformer"].get(FEATURES) == b"features"
        with redis_client(operator(secure), seconds=3) as client:
            client.xadd("ziya:work:qformer", {"nonsense": "1"})
        letters = asyncio.create_task(anext(batches))
        with redis_client(operator(secure), seconds=3) as client:
            await until(lambda: client.xlen("ziya:dead:qformer") == 1)
        letters.cancel()
        await asyncio.gather(letters, return_exceptions=True)
        await batches.aclose()
        await waiting.close()


@needs_redis_tls
@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("gateway", ("GET", TOKENS)),
        ("gateway", ("SET", TOKENS, "x")),
        ("gateway", ("ZADD", TOKENS, "1", "x")),
        ("gateway", ("EVAL", "return redis.call('GET', KEYS[1])", "1", TOKENS)),
        ("gateway", ("GET", "ziya:quota:k")),
        ("gateway", ("XRANGE", READY, "-", "+")),
        ("gateway", ("XADD", "ziya:work:qformer", "*", "tokens_key", TOKENS)),
        ("vision", ("ZSCORE", "ziya:quota:k", "images")),
        ("vision", ("GET", TOKENS)),
        ("vision", ("GET", FEATURES)),
        ("vision", ("XADD", "ziya:ready", "*", "key", TOKENS)),
        ("qformer", ("SET", FEATURES, "x")),
        ("qformer", ("DEL", TOKENS)),
        ("llama", ("SET", TOKENS, "x")),
        ("llama", ("GET", FEATURES)),
        ("operator", ("FLUSHALL",)),
        ("operator", ("SET", "elsewhere", "x")),
        *((user, command) for user in USERS for command in (("CONFIG", "GET", "*"), ("KEYS", "*"), ("ACL", "LIST"))),
    ],
)
async def test_and_nothing_else(secure: ChartRedis, user: str, command: tuple[str, ...]) -> None:
    bus = Bus(secure.url(user), login=secure.login(user))
    await bus.ping()
    with pytest.raises(BusUnavailable, match=r"has no permissions|NOPERM"):
        await bus.link.call(*command)
    await bus.close()


@needs_redis_tls
async def test_strangers_are_not_let_in(secure: ChartRedis, tmp_path: Path) -> None:
    Authority().issue(tmp_path / "stranger")
    assert secure.authority is not None
    (tmp_path / "stranger" / "ca.crt").write_bytes(secure.authority.pem)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "ca.crt").write_bytes(secure.authority.pem)
    (tmp_path / "wrong").write_text("wrong", "utf-8")
    good = secure.login("vision")
    for login, url in [
        (RedisLogin(tmp_path / "stranger", good.password_file), secure.url("vision")),
        (RedisLogin(tmp_path / "alone", good.password_file), secure.url("vision")),
        (RedisLogin(good.tls_dir, tmp_path / "wrong"), secure.url("vision")),
        (RedisLogin(good.tls_dir, good.password_file), secure.url("nobody")),
        (RedisLogin(None, good.password_file), secure.url("vision").replace("rediss", "redis")),
    ]:
        bus = Bus(url, login=login)
        with pytest.raises(BusUnavailable):
            await bus.put(FEATURES, b"x", 60)
        await bus.close()
    # Without a name one may ask whether it lives, as probes do.
    bus = Bus(secure.url(), login=RedisLogin(good.tls_dir))
    await bus.ping()
    with pytest.raises(BusUnavailable, match=r"has no permissions|NOPERM"):
        await bus.put(FEATURES, b"x", 60)
    await bus.close()


@needs_redis_tls
async def test_passwords_are_exchanged_without_a_restart(secure: ChartRedis) -> None:
    old = secure.folder / "old"
    old.write_text("vision-first", "utf-8")
    late = RedisLogin(secure.login("vision").tls_dir, old)  # a pod that hears of it later

    async def lets_in(login: RedisLogin) -> bool:
        bus = Bus(secure.url("vision"), login=login)
        try:
            await bus.put(FEATURES, b"x", 60)
        except BusUnavailable:
            return False
        finally:
            await bus.close()
        return True

    bus = Bus(secure.url("vision"), login=secure.login("vision"))
    await bus.put(FEATURES, b"before", 60)
    secure.set_password("vision", "vision-second")
    await until(lambda: "passwords changed" in secure.log)
    assert await lets_in(secure.login("vision"))
    assert await lets_in(late)
    await bus.put(FEATURES, b"after", 60)
    while await lets_in(late):
        await asyncio.sleep(0.1)
    assert await lets_in(secure.login("vision"))
    await bus.put(FEATURES, b"much later", 60)
    await bus.close()


@needs_redis_tls
async def test_certificates_are_exchanged_without_a_restart(secure: ChartRedis) -> None:
    assert secure.authority is not None

    def shown() -> int:
        pem = ssl.get_server_certificate(("localhost", secure.port), timeout=10)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    before = await asyncio.to_thread(shown)
    bus = Bus(secure.url("vision"), login=secure.login("vision"))
    await bus.put(FEATURES, b"before", 60)
    serial = secure.authority.issue(secure.folder / "tls", common_name="redis")
    await until(lambda: shown() == serial != before)
    secure.authority.issue(secure.folder / "client")
    await bus.put(FEATURES, b"after", 60)  # on its old connection
    async with buses(secure) as of:
        await of["vision"].put(FEATURES, b"new", 60)
    await bus.close()


@needs_redis_tls
async def test_a_connection_takes_the_certificate_of_the_day(secure: ChartRedis) -> None:
    """redis-py would go on showing the one that it read first, until long after that has ended."""
    assert secure.authority is not None
    bus = Bus(secure.url("vision"), login=secure.login("vision"))
    await bus.put(FEATURES, b"before", 60)
    for name in ("tls.crt", "tls.key"):
        (secure.folder / "client" / name).write_text("nonsense", "utf-8")
    await bus.put(FEATURES, b"still connected", 60)
    secure.stop()
    secure.start()
    with pytest.raises(BusUnavailable):
        await bus.put(FEATURES, b"x", 60)
    secure.authority.issue(secure.folder / "client")
    await bus.put(FEATURES, b"after", 60)
    await bus.close()


def operator(server: ChartRedis) -> OperatorSettings:
    login = server.login("operator")
    return OperatorSettings(
        operator_broker_url=server.url("operator"),
        redis_tls_dir=login.tls_dir,
        redis_password_file=login.password_file,
    )


@needs_redis_tls
def test_celery_works_over_it(secure: ChartRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker carries out the messages that it sends to itself; a message of the operator comes to its queue."""
    beat = tmp_path / "heartbeat"
    mine = {**secure.environment("operator", "ZIYA_OPERATOR_BROKER_URL"), "ZIYA_OPERATOR_HEARTBEAT_FILE": str(beat)}
    everything = {**os.environ, **mine}
    command = [sys.executable, "-m", "services.operator.worker", CONTROL]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, env=everything, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while not beat.exists():
            assert worker.poll() is None
            time.sleep(0.1)
        probe = [sys.executable, "-m", "services.operator.alive"]
        assert subprocess.run(probe, env=everything, check=False, timeout=60).returncode == 0
    finally:
        os.killpg(worker.pid, signal.SIGKILL)  # its children, too; by itself it would take 20 seconds
        worker.wait()
    assert b"NOPERM" not in (tmp_path / "log").read_bytes()
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    settings = OperatorSettings.load()
    queue = make_queue(celery_url(settings), celery_tls(settings))
    queue.send_task(RECONCILE, [["models", "job"]], retry=False)
    with redis_client(settings, seconds=3) as client:
        assert client.llen(CONTROL) == 1
    queue.close()


def test_the_rules_name_every_user_that_the_chart_gives_a_password() -> None:
    found = rendered("tls")
    given = set()
    for kind, component in [("Deployment", one) for one in ("gateway", "vision", "qformer", "llama", "operator")]:
        pod = named(found, kind, component)["spec"]["template"]["spec"]
        [volume] = [one for one in pod["volumes"] if one["name"] == "redis-password"]
        given |= {item["key"] for item in volume["secret"]["items"]}
    rules = named(found, "ConfigMap", "redis")["data"]["redis-users.acl"].splitlines()
    assert given == {line.split()[0] for line in rules if not line.startswith("#")} == set(USERS)
