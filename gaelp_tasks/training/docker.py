"""Jobs as containers: the command line is built here, from declared fields alone."""

import os
from pathlib import Path

from gaelp_tasks.errors import PolicyViolated
from gaelp_tasks.models.image import is_allowed
from gaelp_tasks.training.runner import Launch, Spec, environment

__all__ = ["DockerRunner"]

INSIDE = Path("/job")  #: the job's folder as its container sees it
USER = 65534  #: nobody, where this program itself is root
CONTROL = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG")  #: of ours, that docker's own client reads
PIDS = 512
STDIN = "/dev/stdin"
EARLIER = 10  #: runs whose containers may be left


class DockerRunner:
    """`docker run` of an image that the settings allow; `images` are patterns of the allowed ones."""

    name = "docker"

    def __init__(self, images: tuple[str, ...], *, program: str = "docker") -> None:
        self._images, self._program = images, program

    def launch(self, spec: Spec) -> Launch:
        """Not as root, read-only but for its folder and /tmp, without capabilities, within its limits.

        Its environment goes by standard input: a command line can be read by every user, a file with secrets
        would outlive the job, and docker's own client must not read what an agent has declared. The container
        gets no standard input.
        """
        if spec.image is None or not is_allowed(spec.image, self._images):
            raise PolicyViolated(f"The image {spec.image!r} is not among GAELP_TRAINING_IMAGES.")
        name = f"gaelp-job-{spec.job_id}-{spec.run}"
        inside = environment(spec, INSIDE)
        if bad := [key for key, value in inside.items() if "\n" in value or "\r" in value]:
            raise PolicyViolated(f"{', '.join(bad)}: docker takes no variables of several lines.")
        user = os.getuid() or USER
        argv = [self._program, "run", "--rm", "--init", "--name", name, "--user", f"{user}:{user}"]
        argv += ["--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,size=256m"]  # noqa: S108  the container's own
        argv += ["--security-opt", "no-new-privileges", "--cap-drop", "ALL", "--pids-limit", str(PIDS)]
        argv += ["--network", "none", "--log-driver", "none"]
        needs = spec.needs
        if needs.cpu_milli:
            argv += ["--cpus", f"{needs.cpu_milli / 1000:g}"]
        if needs.memory_bytes:
            argv += ["--memory", str(needs.memory_bytes), "--memory-swap", str(needs.memory_bytes)]
        if needs.gpus:
            argv += ["--gpus", str(needs.gpus)]
        argv += ["--mount", f"type=bind,source={spec.folder},target={INSIDE}", "--workdir", str(INSIDE)]
        argv += ["--env-file", STDIN]
        argv += ["--", spec.image]
        argv += ["--config", f"{INSIDE}/config.json", "--hyperparams", f"{INSIDE}/hyperparams.json"]
        own = {name: os.environ[name] for name in CONTROL if name in os.environ}
        text = "".join(f"{key}={value}\n" for key, value in sorted(inside.items()))
        earlier = [f"gaelp-job-{spec.job_id}-{run}" for run in range(max(1, spec.run - EARLIER), spec.run)]
        return Launch(
            tuple(argv),
            own,
            spec.folder,
            text,
            on_kill=(self._program, "kill", name),
            # a container outlives a worker that was killed, and would write into the same folder
            before=(self._program, "rm", "--force", *earlier) if earlier else (),
        )
