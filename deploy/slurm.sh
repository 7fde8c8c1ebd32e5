#!/usr/bin/env bash
# A search on the nodes of a SLURM job: sbatch slurm.sh SPACE.yaml RUN_DIRECTORY
#
# Before: mixtune installed where every node finds it (a module, a container, a virtual environment on a shared disk), and
# its environment active when this is submitted. SPACE, RUN_DIRECTORY and the images are on a shared disk; the run
# directory's states may be read by each node. Submit it again to continue what the time limit ended.
#SBATCH --job-name=mixtune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
set -euo pipefail

space=${1:?usage: sbatch slurm.sh SPACE.yaml RUN_DIRECTORY}
run=${2:?usage: sbatch slurm.sh SPACE.yaml RUN_DIRECTORY}

read -r head <<< "$(scontrol show hostnames "$SLURM_JOB_NODELIST")" # the first line
address=$head:$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node differ
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN # nobody else on these nodes may join
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

if [ -e "$run/space.yaml" ]; then
  search=(mixtune resume "$run")
else
  search=(mixtune search "$space" --out "$run")
fi
# no trial begins in the last ten minutes, and running ones store their state at their next epoch
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_PER_TASK:-0}" -- \
  "${search[@]}" --address "$address" --wait 10m --time-budget 3h50m
