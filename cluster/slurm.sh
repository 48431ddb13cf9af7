#!/usr/bin/env bash
# A Ray cluster inside one Slurm job, and one of the project's jobs on it:
#   sbatch --nodes 4 cluster/slurm.sh pretrain --config my.yaml --workers.num_workers 4 --workers.use_gpu true --run.run_id first
# The environment (module load, a virtual environment) is that of the shell that calls sbatch. Paths and tracking.uri must be
# visible to all nodes. The same command with the same run id goes on where the time was over.
#SBATCH --job-name=equihand
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=64G
#SBATCH --time=24:00:00
# Two minutes before the end, and to this process only: Ray's would end, too, and with them the checkpoint.
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch --nodes N cluster/slurm.sh JOB --setting value ..." >&2
    exit 2
fi
job=$1
shift

# Whoever reaches Ray's ports could run anything, and other users are on these nodes: only who has the token gets in.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    echo "no token in $RAY_AUTH_TOKEN_PATH; run once: ray get-auth-token --generate" >&2
    exit 2
fi

head=$SLURMD_NODENAME # a batch script runs on the first node of its job
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs can share a node
export RAY_ADDRESS="$head:$port" RAY_USAGE_STATS_ENABLED=0
node=(--cpus-per-task="$SLURM_CPUS_PER_TASK" --overlap --kill-on-bad-exit=1)
ray=(ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --disable-usage-stats)

# ray start would take the address for that of a cluster to join.
env -u RAY_ADDRESS srun "${node[@]}" --nodes=1 --ntasks=1 --nodelist="$head" \
    "${ray[@]}" --head --port="$port" --include-dashboard=false &
for _ in $(seq 60); do
    ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1 && break
    sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    env -u RAY_ADDRESS srun "${node[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" \
        "${ray[@]}" --address="$RAY_ADDRESS" &
fi

# In place of this shell, so that Slurm's signal reaches the job: it writes a checkpoint and ends, and Slurm ends Ray after it.
exec python -m "jobs.$job" "$@"
