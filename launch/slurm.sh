#!/usr/bin/env bash
# A run on several machines under Slurm: one torchrun a machine, one rank a GPU.
#
#   sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh launch/configs/imagenet_10pct.toml [the options of fastmpl train]
#
# What the machines must share, and what NCCL needs, is in docs/many_gpus.md. When its time is over the run saves itself
# and goes back into the queue: Slurm signals the ranks 120 seconds before, and they need 25.
#SBATCH --job-name=fastmpl
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "Use: sbatch --nodes N --gpus-per-node G launch/slurm.sh CONFIG.toml [options of fastmpl train]" >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "launch/slurm.sh is for sbatch. On one machine: deepspeed --num_gpus N launch/train.py $*" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
python=${PYTHON:-.venv/bin/python}

# a mistake in the configuration ends here, before any other machine is asked
resolved=$("$python" -m fastmpl train "$@" --dry-run)
key() { sed -n "/^\[run\]/,/^\[data\]/s/^$1 = \"\(.*\)\"$/\1/p" <<<"$resolved"; }
status="$(key output)/$(key name)/STATUS.json"

gpus=${SLURM_GPUS_ON_NODE:-1}
threads=$((${SLURM_CPUS_ON_NODE:-1} / gpus))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000)) # of its own: two jobs may share a machine

code=0
srun --kill-on-bad-exit=1 --ntasks-per-node=1 "$python" -m torch.distributed.run \
  --nnodes "${SLURM_JOB_NUM_NODES:-1}" --nproc-per-node "$gpus" --max-restarts 0 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:$port" \
  launch/train.py "$@" || code=$?

# torchrun ends with 1 whatever its ranks ended with: STATUS.json is the truth
if [ "$code" -ne 0 ] && grep -q '"state": "interrupted"' "$status" 2>/dev/null; then
  scontrol requeue "$SLURM_JOB_ID" || echo "Not queued again. The same sbatch command continues the run." >&2
  exit 75
fi
exit "$code"
