#!/bin/bash
# Several machines under Slurm: sbatch launch/slurm.sh --preset h100 --stream True
# One task a machine; torchrun starts a process for each of its GPUs. Nothing is lost when the job is cut off: submit it
# again with --resume. Data and runs have to lie where all machines see them.
#SBATCH --job-name=nanovlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
    -m nanovlm train "$@"
