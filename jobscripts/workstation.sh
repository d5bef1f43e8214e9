#!/usr/bin/env bash
# Set up a workstation and run the main job; all arguments go to the app:
#
#     bash jobscripts/workstation.sh
#     RANKS=4 bash jobscripts/workstation.sh -pinn_problem klein_gordon -snes_monitor
#
# The first run creates the virtual environment .venv in the checkout and installs the package with its MPI; what the
# system lacks (Python's venv and headers, a C compiler) is installed as root or by a passwordless sudo, else the one
# command that does is printed. Later runs start the job at once.
#
#   RANKS   number of ranks (default 8); more ranks than cores are fine
#   APP     module to run (default ml2hpc.apps.pinn)
#   ML2HPC_VENV, PYTHON, MPI=wheel|site, MPICC, MPIRUN   see jobscripts/environment.sh
set -euo pipefail
HERE=$PWD
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up mpi plot
cd "$HERE" # relative file names in the arguments mean the caller's folder
exec "$MPIRUN" -n "${RANKS:-8}" python -m "${APP:-ml2hpc.apps.pinn}" "$@"
