"""Every launcher gives the same bits, and a SLURM job that is requeued goes on where it was."""

import os
import shutil
import subprocess
import time

import pytest
import torch
from omegaconf import OmegaConf

RUNS = {"none": ["regularizer=none"], "smooth": ["regularizer=label_smoothing"]}
CELLS = [{"row": name, "column": "a", "run": name} for name in RUNS]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]


def assert_same_bits(sweeps, first: str, second: str, count: int) -> None:
    """The folders of runs hold the same runs with the same metrics and weights."""
    results = [sweeps.result_files(runs) for runs in (first, second)]
    assert results[0].keys() == results[1].keys()
    assert len(results[0]) == count
    for key in results[0]:
        assert results[0][key]["metrics"] == results[1][key]["metrics"]
        files = [sweeps.folder / runs / key / "checkpoints" / "last.ckpt" for runs in (first, second)]
        weights = [torch.load(file, weights_only=True)["state_dict"] for file in files]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def launcher_of(sweeps, runs: str) -> set[str]:
    """The launchers that the runs' own folders name."""
    files = (sweeps.folder / runs).glob("*/.hydra/hydra.yaml")
    return {OmegaConf.load(file).hydra.runtime.choices["hydra/launcher"] for file in files}


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def slurm():
    """Skips where no SLURM answers."""
    start = "start one with: scripts/slurm_one_node.sh start"
    if shutil.which("sinfo") is None:
        pytest.skip(f"SLURM is not installed (no sinfo on the PATH); {start}")
    nodes = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, timeout=60)
    if not {"idle", "mix", "alloc"} & set(nodes.stdout.split()):
        pytest.skip(f"SLURM has no node that is up ({(nodes.stdout + nodes.stderr).strip()}); {start}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [("joblib", ["hydra.launcher.n_jobs=2"]), ("submitit_local", ["hydra.launcher.timeout_min=5"])],
)
def test_processes_of_this_machine_give_the_same_bits(sweeps, launcher, options):
    table = sweeps.table(RUNS, CELLS)
    sweeps.run(table, runs="basic")
    sweeps.run(table, f"hydra/launcher={launcher}", *options, runs="workers")
    assert launcher_of(sweeps, "workers") == {launcher}
    assert_same_bits(sweeps, "basic", "workers", count=2)


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bits(sweeps):
    pytest.importorskip("ray", reason="Ray is not installed: pip install regbench[ray]")
    sweeps.environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # leaves no token at home
    table = sweeps.table(RUNS, CELLS)
    sweeps.run(table, runs="basic")
    cluster = ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"]
    sweeps.run(table, "hydra/launcher=ray", *cluster, "+hydra.launcher.ray.remote.num_cpus=1", runs="ray")
    assert launcher_of(sweeps, "ray") == {"ray"}
    assert_same_bits(sweeps, "basic", "ray", count=2)


@pytest.mark.slow
def test_slurm_gives_the_same_bits(sweeps, slurm):
    table = sweeps.table(RUNS, CELLS)
    sweeps.run(table, runs="basic")
    sweeps.run(table, *SLURM, runs="slurm")
    assert launcher_of(sweeps, "slurm") == {"submitit_slurm"}
    assert_same_bits(sweeps, "basic", "slurm", count=2)


@pytest.mark.slow
def test_a_slurm_job_of_two_processes_gives_the_same_bits(sweeps, slurm):
    two = ["accelerator=ddp_cpu", "accelerator.devices=2"]
    table = sweeps.table({"none": RUNS["none"]}, CELLS[:1], overrides=two)
    sweeps.run(table, runs="basic")
    sweeps.run(table, *SLURM, runs="slurm")
    assert_same_bits(sweeps, "basic", "slurm", count=1)


@pytest.mark.slow
def test_a_requeued_slurm_job_goes_on_from_its_last_epoch(sweeps, slurm):
    table = sweeps.table({"none": RUNS["none"]}, CELLS[:1], overrides=["trainer.max_epochs=25"])
    sweeps.run(table, runs="basic")
    name = f"regbench-{os.getpid()}"
    sweep = sweeps.start(table, *SLURM, f"hydra.launcher.name={name}", "retries=0", runs="slurm")

    def rows() -> int:
        files = sweeps.folder.glob("slurm/*/metrics.csv")
        return sum(len(file.read_text().splitlines()) - 1 for file in files)

    wait_for(lambda: rows() >= 5, seconds=120)
    query = ["squeue", "--noheader", "--format=%A", f"--name={name}"]
    (job,) = subprocess.run(query, capture_output=True, text=True).stdout.split()
    subprocess.run(["scontrol", "requeue", job], check=True)
    left_at = rows()
    assert 5 <= left_at < 25

    def started_again() -> bool:
        # SLURM lets a requeued job wait for two minutes; this test does not
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
        return "Restarts=1" in shown and ("JobState=RUNNING" in shown or "JobState=COMPLETED" in shown)

    wait_for(started_again, seconds=60)
    seen = [left_at]
    wait_for(lambda: seen.append(rows()) or sweep.poll() is not None, seconds=240)
    output, _ = sweep.communicate()
    assert sweep.returncode == 0, output
    assert min(seen) >= left_at - 1  # the epoch that was under way at most, none of the earlier ones
    assert_same_bits(sweeps, "basic", "slurm", count=1)
