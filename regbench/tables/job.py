"""One run of a sweep, as a launcher's worker does it: in its folder, under its lock, from where it stopped."""

import gc
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from omegaconf import DictConfig

from regbench.errors import UserError
from regbench.locks import Lock
from regbench.runs import DONE, FAILED, RUNNING, RunFolder

log = logging.getLogger("regbench")

_gpu: Lock | None = None  # this process's GPU: once CUDA is in use, a process can't change to another


def job(cfg: DictConfig) -> str:
    """What a Hydra launcher calls with a run's configuration. Returns the state that the run is in then.

    It raises nothing but KeyboardInterrupt: a failure is noted in the run's folder, and the sweep goes on.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    lock = folder.lock
    for _ in range(3):  # who looks whether it is held, holds it for a moment
        if lock.acquire():
            break
        time.sleep(0.1)
    else:
        return RUNNING
    try:
        if folder.result() is not None:
            return DONE
        # Another sweep may have tried as often as it may be tried.
        if folder.attempts() > hydra_cfg.sweeper.retries:
            return FAILED
        logging.getLogger("regbench").setLevel(logging.INFO)
        try:
            _run(cfg, folder, list(hydra_cfg.overrides.task), lock)
            folder.forgive()
            return DONE
        except Exception as error:
            log.error("%s", traceback.format_exc())
            folder.fail(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            return FAILED
    finally:
        lock.release()
        gc.collect()  # a run's networks hang in reference cycles, which would fill the memory of a worker run by run


def _run(cfg: DictConfig, folder: RunFolder, overrides: list[str], lock: Lock) -> None:
    from regbench.artifacts import obtain
    from regbench.checks import check
    from regbench.identity import hash_of, identity, resolve

    check(cfg)
    for part in folder.path.rglob("*.part"):  # of a process that was killed while it wrote
        part.unlink()
    if folder.checkpoint():
        cfg.ckpt_path = str(folder.checkpoint())
    if cfg.accelerator.strategy != "auto":
        _run_in_processes(cfg, folder, overrides, lock)
    else:
        take_gpu(cfg)
        from regbench.training import run

        run(cfg, folder.path, obtain(cfg, run))
    result = folder.result()
    makers = {role: node.get("run") or node.get("sha256") for role, node in cfg.artifacts.items()}
    if hash_of(identity(resolve(cfg), result["data"]["fingerprint"], makers)) != folder.path.name:
        os.replace(folder.path / "result.json", folder.path / "result.json.other-data")
        raise UserError(
            "The data is not what it was when this run was planned. Start the same command again."
        )


def _run_in_processes(cfg: DictConfig, folder: RunFolder, overrides: list[str], lock: Lock) -> None:
    """Runs train.py with the run's own overrides: Lightning starts its further processes by repeating the command line,
    which for a sweep would be the sweep's. The lock goes with it.
    """
    script = Path(__file__).parents[1] / "launch" / "train.py"
    place = [f"hydra.run.dir='{folder.path}'", *([f"ckpt_path='{cfg.ckpt_path}'"] if cfg.ckpt_path else [])]
    command = [sys.executable, str(script), *overrides, *place]
    output = folder.path / "output.log"
    # In a SLURM job Lightning would take the job's one task for the number of processes.
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_NTASKS"}
    with output.open("a") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, pass_fds=[lock.fileno()]
        )
    if done.returncode or folder.result() is None:
        last = output.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(last)} (exit code {done.returncode}; the whole output is in {output})")


def take_gpu(cfg: DictConfig) -> None:
    """Gives this process a GPU of its own where the run wants one and the machine has several.

    The first that no other process of a sweep on this machine has; where all are taken, they are shared.
    """
    global _gpu
    if (
        _gpu is not None
        or cfg.accelerator.accelerator not in ("auto", "cuda")
        or cfg.accelerator.devices != 1
    ):
        return
    import platform
    import tempfile

    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    slots = Path(tempfile.gettempdir()) / f"regbench-gpus-{os.getuid()}-{platform.node()}"
    for name in names:
        lock = Lock(slots / name.replace("/", "_"))
        if lock.acquire():
            _gpu = lock
            break
    else:
        name = names[os.getpid() % len(names)]
    os.environ["CUDA_VISIBLE_DEVICES"] = name
