#!/usr/bin/env bash
#SBATCH --job-name=ml2hpc
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# Run an app as a batch job that survives its time limit. Submit from the checkout, after one run of workstation.sh on the
# login node (or with ML2HPC_VENV set); options before the script go to sbatch, all arguments to the app:
#
#     sbatch --nodes=2 --time=00:30:00 jobscripts/slurm.sh -pinn_problem burgers -output burgers.h5
#
# A minute before the end Slurm sends SIGUSR1; the app writes a checkpoint and exits with 85; the job is queued again and
# continues from the file named by -output (default run.h5; give it here, not in an option file). So does a new
# submission while that file exists.
#
# On GPUs: sbatch --gpus-per-node=4 --ntasks-per-node=4 jobscripts/slurm.sh -device cuda (rank r takes GPU r modulo 4).
#
#   APP     module to run (default ml2hpc.apps.pinn)
#   SRUN_MPI  what srun --mpi is given (default pmi2, which pip's mpich speaks; Open MPI wants pmix)
set -euo pipefail
VENV=${ML2HPC_VENV:-$SLURM_SUBMIT_DIR/.venv}
[ -x "$VENV/bin/python" ] || {
    echo "ml2hpc: no virtual environment $VENV: run jobscripts/workstation.sh first or set ML2HPC_VENV" >&2
    exit 1
}
PATH=$VENV/bin:$PATH
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit --cpus-per-task

arguments=("$@")
output=run.h5
restarts=''
previous=''
for argument in "$@"; do
    [ "$previous" != output ] || output=$argument
    previous=''
    case $argument in -*)
        # As the app reads names: with one or two hyphens, in any case, the value behind = or as the next word.
        name=${argument#-} && name=${name#-} && previous=${name,,}
        case $previous in
            output=*) output=${name#*=} ;;
            restart | restart=*) restarts=yes ;;
        esac
        ;;
    esac
done
if [ -f "$output" ] && [ -z "$restarts" ]; then
    arguments+=(-restart "$output")
fi

status=0
srun --mpi="${SRUN_MPI:-pmi2}" --kill-on-bad-exit=1 python -m "${APP:-ml2hpc.apps.pinn}" "${arguments[@]}" || status=$?
if [ "$status" = 85 ]; then
    echo "ml2hpc: checkpoint written, the job is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
