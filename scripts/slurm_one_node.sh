#!/usr/bin/env bash
# A SLURM of one node on this machine (Debian or Ubuntu, root), to try sweeps and for the tests:
#   scripts/slurm_one_node.sh start    installs what is missing, starts it, waits until the node is idle
#   scripts/slurm_one_node.sh stop     cancels its jobs and stops it
# No accounting and no cgroups: a job's cores are counted, but nothing keeps it within them.
set -euo pipefail

state=/var/lib/regbench-slurm      # of both daemons
conf=/etc/slurm/slurm.conf
mark="# Written by RegBench's scripts/slurm_one_node.sh"

fail() { echo "slurm_one_node: $*" >&2; exit 1; }

install_slurm() {
    if command -v slurmctld slurmd munged >/dev/null; then return; fi
    command -v apt-get >/dev/null || fail "slurm-wlm and munge are not installed, and without apt-get they can't be here."
    echo "Installing slurm-wlm and munge"
    local log=/tmp/slurm_one_node-apt.log
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge; } \
        >"$log" 2>&1 || { tail -n 5 "$log" >&2; fail "apt-get could not install them; its output is in $log."; }
}

write_conf() {
    if [ -e "$conf" ] && ! grep -qF "$mark" "$conf"; then
        fail "$conf is there already and not this script's. Use that SLURM, or move the file away."
    fi
    local node; node=$(hostname -s)
    mkdir -p "$state/ctld" "$state/d" "$(dirname "$conf")"
    cat >"$conf" <<EOF
$mark
ClusterName=regbench
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=60
SchedulerParameters=sched_interval=5,batch_sched_delay=0
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=local Nodes=$node Default=YES MaxTime=INFINITE State=UP
EOF
}

start() {
    [ "$(id -u)" = 0 ] || fail "start needs root."
    install_slurm
    write_conf
    if ! munge -n >/dev/null 2>&1; then
        [ -s /etc/munge/munge.key ] || { (umask 077; head -c 128 /dev/urandom >/etc/munge/munge.key); chown munge: /etc/munge/munge.key; }
        install -d -o munge -g munge -m 755 /run/munge
        runuser -u munge -- munged || fail "munged does not start; see /var/log/munge/munged.log."
    fi
    pidof slurmctld >/dev/null || slurmctld || fail "slurmctld does not start; see $state/slurmctld.log."
    pidof slurmd >/dev/null || slurmd || fail "slurmd does not start; see $state/slurmd.log."
    for _ in $(seq 60); do
        if sinfo --noheader --format=%t 2>/dev/null | grep -qE '^(idle|mix|alloc)$'; then
            echo "SLURM is up: $(sinfo --noheader --format='partition %P, %D node, %c CPUs, %t')"
            return
        fi
        if sinfo --noheader --format=%t 2>/dev/null | grep -qE '^(down|drain)'; then
            scontrol update "NodeName=$(hostname -s)" State=RESUME 2>/dev/null || true  # from before a restart
        fi
        sleep 0.5
    done
    fail "the node did not become idle in 30 s; see $state/slurmctld.log and $state/slurmd.log."
}

stop() {
    grep -qsF "$mark" "$conf" || { echo "No SLURM of this script's is set up here."; return; }
    scancel --user=root 2>/dev/null || true
    for daemon in slurmd slurmctld; do
        if [ -s "$state/$daemon.pid" ]; then kill "$(cat "$state/$daemon.pid")" 2>/dev/null || true; fi
    done
    for _ in $(seq 40); do
        if ! pidof slurmd slurmctld >/dev/null; then echo "SLURM is stopped."; return; fi
        sleep 0.25
    done
    fail "slurmd or slurmctld is still running; see $state."
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) echo "usage: $0 start | stop" >&2; exit 2 ;;
esac
