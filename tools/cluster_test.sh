#!/usr/bin/env bash
# The ci book on a SLURM cluster of this one machine, byte for byte equal to a local run.
#
# Installs Debian's slurm and munge if they are missing (as root), starts a cluster of one node on the loopback, builds
# PARTS=study of profile ci twice (on this machine; through Snakemake's SLURM plugin), kills the cluster's controller and
# Snakemake once in between, starts both again, and compares every table and every adapter. Then it checks the profile
# for Kubernetes against its plugin's options and renders a pod's manifest. Nothing of it runs in `.ci/run`.
#
#   make cluster-test
set -euo pipefail
ROOT="$(cd "$(dirname "$0")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"
WORK="$(mktemp -d)"
CORES="$(nproc --all)" # all of them: plain nproc counts the threads that OMP_NUM_THREADS allows
BOOK=""
CONF=/etc/slurm/slurm.conf # the plugin takes SLURM_CONF away from a job's step, so the cluster's settings stand here
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

say() { printf '== %s\n' "$*"; }
stop() { # what this script started, and nothing else
  cd /
  [ -z "$BOOK" ] || kill "$BOOK" 2>/dev/null || true
  timeout 20 scancel --quiet --user="$(id -un)" 2>/dev/null || true # of this cluster of one node
  for service in slurmctld slurmd; do pkill -F "$WORK/$service.pid" 2>/dev/null || true; done
  sleep 2
  rm -rf "$WORK" "$CONF"
}
if [ -e "$CONF" ]; then
  echo "$CONF exists, so this machine belongs to a cluster already, whose place the test would take. Try another one." >&2
  rmdir "$WORK"
  exit 1
fi
trap stop EXIT

# --- a cluster of one node -------------------------------------------------------------------------------------------
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null || ! command -v rsync >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge rsync >/dev/null
fi
say "$(dpkg-query -W -f '${Package} ${Version}; ' slurmctld munge)"
NODE="$(hostname -s)"
MEMORY="$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)"
mkdir -p "$WORK/state" "$WORK/spool" /run/munge /etc/slurm
chown munge /run/munge
pgrep -x munged >/dev/null || su munge -s /bin/sh -c munged
cat >"$CONF" <<CONF
ClusterName=book
SlurmctldHost=$NODE(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$WORK/state
SlurmdSpoolDir=$WORK/spool
SlurmctldPidFile=$WORK/slurmctld.pid
SlurmdPidFile=$WORK/slurmd.pid
SlurmctldLogFile=$WORK/slurmctld.log
SlurmdLogFile=$WORK/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=3600
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$CORES RealMemory=$MEMORY State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld
slurmd
for _ in $(seq 30); do sinfo --noheader --states=idle 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo

# --- two copies of the project ---------------------------------------------------------------------------------------
"$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --no-deps --target "$WORK/plugins" -r "$ROOT/requirements-cluster.lock"
for place in local slurm; do git clone --quiet "$ROOT" "$WORK/$place"; done

book() { # place, options: the ci book there, in place of this (sub)shell, so that $! is Snakemake itself
  local place="$1"
  shift
  cd "$WORK/$place"
  exec env PYTHONPATH="$WORK/$place/lib:$WORK/plugins" \
    "$PYTHON" tools/book.py --profile ci --parts study --cores "$CORES" "$@" >>"$WORK/$place.log" 2>&1
}

# No accounting here: jobs are asked for by squeue, and often, since they are short.
through=(slurm --cluster slurm --slurm-status-command=squeue
         --slurm-init-seconds-before-status-checks=3)

say "on this machine"
(book local) || { tail -40 "$WORK/local.log"; exit 1; }
say "through SLURM"
book "${through[@]}" &
BOOK=$!
until ls "$WORK"/slurm/results/ci/runs/*/run.json >/dev/null 2>&1; do
  kill -0 "$BOOK" 2>/dev/null || { tail -40 "$WORK/slurm.log"; exit 1; }
  sleep 1
done
say "killed after $(ls "$WORK"/slurm/results/ci/runs/*/run.json | wc -l) trained run(s): the cluster's controller and Snakemake"
kill -9 "$(cat "$WORK/slurmctld.pid")" "$BOOK"
wait "$BOOK" 2>/dev/null || true
BOOK=""
flock --nonblock "$WORK/slurm/.rewired.lock" true # nobody builds there any more
say "both are gone; what SLURM runs goes on: $(pgrep -c slurmstepd || true) step(s)"
slurmctld
until squeue --noheader >/dev/null 2>&1; do sleep 1; done
while [ -n "$(squeue --noheader)" ]; do sleep 2; done # what the nodes were at ends by itself
(book "${through[@]}") || { tail -60 "$WORK/slurm.log"; exit 1; }
say "jobs that SLURM ran: $(squeue --noheader --states=all | wc -l), of them completed: $(squeue --noheader --states=CD | wc -l)"

# --- the same bytes? -------------------------------------------------------------------------------------------------
cd "$WORK/local/results/ci"
same=0
different=0
for file in tables/*.parquet runs/*/adapter/*.safetensors runs/*/run.json pairs/*/*.parquet; do
  if cmp --silent "$file" "$WORK/slurm/results/ci/$file"; then same=$((same + 1)); else
    different=$((different + 1))
    echo "differs: $file"
  fi
done
say "$same files equal byte for byte, $different differ"

# --- Kubernetes, on paper --------------------------------------------------------------------------------------------
cd "$ROOT"
PYTHONPATH="$WORK/plugins" "$PYTHON" tools/kubernetes_check.py
[ "$different" = 0 ]
