"""A master, a replica and sentinels that watch them, as processes on loopback."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import redis

from gaelp_tasks.demo.broker import is_ours
from gaelp_tasks.demo.parts import Child, Part
from support.eventually import eventually
from support.ports import free_port
from support.redis_server import RedisServer, redis_binary

DOWN_MS = 500  #: a master that is silent for this long is down


class SentinelServers:
    """`with SentinelServers() as servers: ... servers.url`; `fail_over()` promotes the replica."""

    name = "mymaster"

    def __init__(self, count: int = 3, *, password: str = "") -> None:
        self._count = count
        self._password = password  # of the sentinels
        self._stack = ExitStack()
        self.ports: list[int] = []
        self.children: list[Child] = []

    @property
    def url(self) -> str:
        chunks = ";".join(f"sentinel://127.0.0.1:{port}" for port in self.ports)
        return f"{chunks}/0?master_name={self.name}" + (
            f"&sentinel_password={self._password}" if self._password else ""
        )

    def master(self) -> tuple[str, int]:
        """Where the first sentinel that lives says that the master is."""
        for port, child in zip(self.ports, self.children, strict=True):
            if child.alive:
                with self._ask(port) as client:
                    told: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
                    return str(told[0]), int(told[1])
        raise AssertionError("no sentinel lives")

    def fail_over(self) -> None:
        """Kill the master; returns when a sentinel tells that the replica is the master now."""
        self.first.kill()
        eventually(lambda: self.master()[1] == self.second.port, within_s=30)

    def quiet(self) -> None:
        """Returns when the replica has all that the master has."""
        with self.first.client() as client:
            assert client.ping()
            eventually(lambda: client.execute_command("WAIT", 1, 1000) == 1)

    def _ask(self, port: int) -> "redis.Redis":
        return redis.Redis(port=port, decode_responses=True, password=self._password or None)

    def _start_sentinel(self, folder: Path, number: int) -> None:
        port = free_port()
        config = folder / f"sentinel-{number}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nprotected-mode no\n"
            + (f"requirepass {self._password}\n" if self._password else "")
            + f"sentinel monitor {self.name} 127.0.0.1 {self.first.port} {self._count // 2 + 1}\n"
            f"sentinel down-after-milliseconds {self.name} {DOWN_MS}\n"
            f"sentinel failover-timeout {self.name} 4000\n"
        )
        command = (str(redis_binary()), str(config), "--sentinel")
        log = folder / f"sentinel-{number}.log"
        child = Child(Part(name="sentinel", command=command, log=log, cwd=folder))
        self._stack.callback(child.stop)
        if self._password:  # INFO is refused without it
            eventually(lambda: self._answers(port))
        else:
            child.wait_for(lambda child: is_ours(child, port))
        self.ports.append(port)
        self.children.append(child)

    def _answers(self, port: int) -> bool:
        try:
            with self._ask(port) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def _start(self) -> None:
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="gaelp-sentinels-")))
        self.first = self._stack.enter_context(RedisServer())
        self.second = self._stack.enter_context(RedisServer())
        with self.second.client() as client:
            client.replicaof("127.0.0.1", str(self.first.port))
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
        for number in range(self._count):
            self._start_sentinel(folder, number)
        for port in self.ports:
            with self._ask(port) as client:
                eventually(lambda client=client: self._knows_all(client))

    def _knows_all(self, client: "redis.Redis") -> bool:
        flat: Any = client.execute_command("SENTINEL", "MASTER", self.name)
        state = dict(zip(flat[::2], flat[1::2], strict=True)) if isinstance(flat, list) else flat
        return (int(state["num-slaves"]), int(state["num-other-sentinels"])) == (1, self._count - 1)

    def __enter__(self) -> Self:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
