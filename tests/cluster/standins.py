"""Local stand-ins for public images, under their names, made of Debian's packages.

They have as much of each image's entry point, users and folders as compose.yaml and the Dockerfile rely on.
An image that is there is left alone.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.engine import Engine, Failed

BASE = "gaelp-standin-base:bookworm"
SUITE = "bookworm"
BUILD_S = 900.0
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INSIDE = "/etc/ssl/theirs.crt"  #: where no package of Debian writes its own
FILES = Path(__file__).parent / "files"
#: taken over from whoever runs this, so that pip finds packages from inside, too
PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")


def installing(*packages: str) -> str:
    """A line of a Dockerfile; no package starts anything."""
    names = " ".join(packages)
    return (
        "RUN printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d"
        f" && apt-get -qq update && apt-get -qq -y --no-install-recommends install {names}"
    )


#: what each image is made of, on BASE, by its name without a tag
STANDINS = {
    "python": "\n".join(
        [
            installing("python3", "python3-venv", "python3-pip", "libgomp1"),
            "RUN ln -s python3 /usr/bin/python",
            # Debian's own packages are nobody's here
            "ENV PIP_BREAK_SYSTEM_PACKAGES=1",
        ]
    ),
    "redis": "\n".join(
        [
            installing("redis-server"),
            "RUN install -d -o redis -g redis /data",
            "WORKDIR /data",
        ]
    ),
    "postgres": "\n".join(
        [
            installing("postgresql"),
            "RUN ln -sf /usr/lib/postgresql/*/bin/* /usr/local/bin/",
            "RUN install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data",
            "RUN install -d -o postgres -g postgres -m 2777 /var/run/postgresql",
            "COPY postgres.sh /usr/local/bin/docker-entrypoint.sh",
            "ENV PGDATA=/var/lib/postgresql/data",
            'ENTRYPOINT ["sh", "/usr/local/bin/docker-entrypoint.sh"]',
        ]
    ),
    "prom/prometheus": "\n".join(
        [
            installing("prometheus", "wget"),
            "RUN install -d -o 65534 -g 65534 /prometheus",
            "WORKDIR /prometheus",
            'ENTRYPOINT ["/usr/bin/prometheus"]',
        ]
    ),
    "prom/alertmanager": "\n".join(
        [
            installing("prometheus-alertmanager", "wget"),
            "RUN install -d -o 65534 -g 65534 /alertmanager",
            "WORKDIR /alertmanager",
            'ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]',
        ]
    ),
    "grafana/grafana": "\n".join(
        [
            installing("python3", "python3-yaml", "wget"),
            "RUN install -d -o 472 -g 0 /var/lib/grafana",
            "COPY grafana.py /run.py",
            'ENTRYPOINT ["python3", "/run.py"]',
        ]
    ),
}


def public_images(config: str, dockerfile: str) -> list[str]:
    """The images that others publish: of the services in Compose's own JSON, and of the Dockerfile."""
    named = set(re.findall(r'"image": "([^"]+)"', config)) | set(re.findall(r"(?m)^FROM (\S+)", dockerfile))
    return sorted(name for name in named if not name.startswith("gaelp-"))


def recipe(image: str, certificates: bool, pip: Iterable[tuple[str, str]]) -> str:
    """The Dockerfile of a stand-in. Raises KeyError for an image that has none."""
    lines = [f"FROM {BASE}"]
    if certificates:
        lines += [f"COPY {CERTIFICATES.name} {INSIDE}", f"ENV PIP_CERT={INSIDE}"]
    lines += [f"ENV {name}={value}" for name, value in pip]
    return "\n".join([*lines, STANDINS[image.rpartition(":")[0]], ""])


def mirror(sources: str) -> str:
    """The address of SUITE in apt's lists, which may name others before it; '' where they have none."""
    if found := re.search(rf"(?m)^deb(?: \[[^\]]*\])? (https?://\S+) {SUITE} ", sources):
        return found[1]
    for stanza in re.split(r"\n\s*\n", sources):
        where = re.search(r"(?m)^URIs: (https?://\S+)", stanza)
        if where and re.search(rf"(?m)^Suites:(?: \S+)* {SUITE}(?: |$)", stanza):
            return where[1]
    return ""


def have(engine: Engine, images: Iterable[str], *, public: bool) -> list[str]:
    """Have every image here; gives the names of those that stand-ins were made for. Raises Failed."""
    made = []
    for image in images:
        try:
            engine.run(["docker", "image", "inspect", image])
        except Failed:
            if public:
                engine.run(["docker", "pull", "-q", image], within_s=BUILD_S)
            else:
                _build(engine, image)
                made.append(image)
    return made


def _build(engine: Engine, image: str) -> None:
    _have_base(engine)
    with TemporaryDirectory(prefix="gaelp-standin-") as folder:
        here = Path(folder)
        for file in FILES.iterdir():
            (here / file.name).write_bytes(file.read_bytes())
        if CERTIFICATES.exists():
            (here / CERTIFICATES.name).write_bytes(CERTIFICATES.read_bytes())
        pip = [(name, os.environ[name]) for name in PIP if name in os.environ]
        (here / "Dockerfile").write_text(recipe(image, CERTIFICATES.exists(), pip))
        engine.run(["docker", "build", "-q", "-t", image, folder], within_s=BUILD_S)


def _have_base(engine: Engine) -> None:
    """Debian, out of its packages. Raises Failed."""
    try:
        engine.run(["docker", "image", "inspect", BASE])
    except Failed:
        more = Path("/etc/apt/sources.list.d")
        lists = [Path("/etc/apt/sources.list"), *more.glob("*.list"), *more.glob("*.sources")]
        where = mirror("\n\n".join(one.read_text() for one in lists if one.is_file()))
        with TemporaryDirectory(prefix="gaelp-debian-") as folder:
            try:
                engine.run(
                    ["debootstrap", "--variant=minbase", SUITE, folder, *filter(None, [where])],
                    within_s=BUILD_S,
                )
            except FileNotFoundError:
                raise Failed(
                    "stand-ins are made by debootstrap, as root: install it, or use --public."
                ) from None
            packed = subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE)
            done = subprocess.run(
                ["docker", "import", "-", BASE], stdin=packed.stdout, capture_output=True, check=False
            )
            if packed.wait() or done.returncode:
                raise Failed(f"Debian was not taken in as an image: {done.stderr.decode().strip()}") from None
