# Virtual environment and MPI for the job scripts. Sourced by bash under set -euo pipefail:
#
#     . jobscripts/environment.sh
#     set_up mpi plot          # extras of setup.cfg
#
# Afterwards the shell stands in the checkout, the environment is first in PATH and "$MPIRUN" launches ranks.
# Nothing is installed again while setup.cfg, pyproject.toml, constraints.txt, the C sources, the interpreter and the MPI
# stay the same.
#
#   ML2HPC_VENV   folder of the virtual environment (default: .venv in the checkout)
#   PYTHON        interpreter to build it with (default: the first of python3, python3.13 ... python3.10 that is >= 3.10)
#   MPI           wheel (default): pip's mpich.   site: the machine's MPI, by the mpicc in PATH
#   MPICC         the machine's MPI, by its compiler: MPICC=/opt/mpi/bin/mpicc, MPICC="cc -shared"
#                 The environment remembers a site MPI; MPI=wheel goes back.
#   MPIRUN        launcher (default: mpirun of the chosen MPI, else srun)
# shellcheck shell=bash

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${ML2HPC_VENV:-$CHECKOUT/.venv}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
SITE_PATH=${PATH//"$VENV/bin:"/}
export OMP_NUM_THREADS=1 # ranks, not threads, fill the cores
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'ml2hpc: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# ---- what the system provides: Python with venv and headers, a C compiler --------------------------------------------

is_suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# Set PYTHON to an interpreter that is new enough.
find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        is_suitable "$PYTHON" || die "PYTHON=$PYTHON is no Python of version 3.10 or later"
        return 0
    fi
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        if is_suitable "$name"; then
            PYTHON=$name
            return 0
        fi
    done
    return 1
}

# Set MISSING to the words python, venv, headers, compiler and, where NEEDS_MAKE is set, make that apply.
find_missing() {
    MISSING=()
    if ! find_python; then
        MISSING+=(python venv headers)
    else
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || MISSING+=(venv)
        [ -f "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || MISSING+=(headers)
    fi
    # A compiler without the C library's headers is no use, so the probe compiles and links.
    printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' |
        cc -x c -o /dev/null - 2>/dev/null || MISSING+=(compiler)
    [ -z "${NEEDS_MAKE:-}" ] || command -v make >/dev/null || MISSING+=(make)
}

# Print the names of what is missing as words of a table: python=... venv=... headers=... compiler=... make=...
package_names() { # "word=package package" ...
    local part entry
    for part in "${MISSING[@]}"; do
        for entry; do
            [ "${entry%%=*}" != "$part" ] || printf ' %s' "${entry#*=}"
        done
    done
}

# Print the command that installs what is missing, or nothing where none is known.
installation_command() {
    local v='' newer='' name=${PYTHON:-}
    name=${name##*/}
    v=${name#python3} # .12 for python3.12, empty for the system's default
    if [ -n "$name" ] && [ "$("$PYTHON" -c 'import sys; print(sys.base_prefix)')" != /usr ]; then
        # No package of the system completes a foreign interpreter.
        [[ " ${MISSING[*]} " != *" "@(python|venv|headers)" "* ]] || return 0
        v=''
    fi
    if command -v apt-get >/dev/null; then
        echo "apt-get update && apt-get install -y --no-install-recommends$(package_names \
            "python=python3" "venv=python3$v-venv" "headers=python3$v-dev" "compiler=gcc libc6-dev" "make=make")"
    elif command -v dnf >/dev/null; then
        [ -n "$name" ] || ! command -v python3 >/dev/null || v=.12 # the default is too old
        echo "dnf install -y$(package_names "python=python3$v" "headers=python3$v-devel" "compiler=gcc" \
            "make=make")"
    elif command -v zypper >/dev/null; then
        newer=3${v#.}
        [ -n "$name" ] || newer=311
        echo "zypper --non-interactive install$(package_names \
            "python=python$newer" "headers=python$newer-devel" "compiler=gcc" "make=make")"
    elif command -v pacman >/dev/null; then
        echo "pacman -Sy --needed --noconfirm$(package_names "python=python" "compiler=gcc" "make=make")"
    fi
}

complete_the_system() {
    local command
    find_missing
    [ ${#MISSING[@]} -gt 0 ] || return 0
    command=$(installation_command)
    [ -n "$command" ] ||
        die "missing: ${MISSING[*]}. Provide Python 3.10 or later with venv and headers (PYTHON=...) and a C compiler (cc)"
    if [ "$(id -u)" = 0 ]; then
        say "missing: ${MISSING[*]}; running: $command"
        DEBIAN_FRONTEND=noninteractive bash -c "$command" >&2 || die "failed: $command"
    elif sudo -n true 2>/dev/null; then
        say "missing: ${MISSING[*]}; running: sudo sh -c '$command'"
        sudo -n env DEBIAN_FRONTEND=noninteractive sh -c "$command" >&2 || die "failed: $command"
    else
        say "missing: ${MISSING[*]}; the administrator installs them with"
        printf "sudo sh -c '%s'\n" "$command" >&2
        exit 1
    fi
    find_missing
    [ ${#MISSING[@]} = 0 ] || die "still missing: ${MISSING[*]} (Python must be 3.10 or later; PYTHON=... names one)"
}

# ---- the virtual environment -----------------------------------------------------------------------------------------

# Set MPI_CHOICE to "wheel" or to the compiler of the site's MPI.
choose_mpi() {
    case ${MPI:-} in
        wheel) MPI_CHOICE=wheel ;;
        site) MPI_CHOICE=${MPICC:-$(PATH=$SITE_PATH command -v mpicc || true)} ;;
        '') MPI_CHOICE=${MPICC:-$(cat "$VENV/ml2hpc-mpi" 2>/dev/null || echo wheel)} ;;
        *) die "MPI=$MPI: the choices are wheel and site" ;;
    esac
    [ -n "$MPI_CHOICE" ] || die "MPI=site: no mpicc in PATH; load the site's MPI module or set MPICC=/path/to/mpicc"
    [ "$MPI_CHOICE" = wheel ] || command -v "${MPI_CHOICE%% *}" >/dev/null || die "MPICC=$MPI_CHOICE: no such compiler"
}

installation_key() {
    {
        cat setup.cfg pyproject.toml constraints.txt ml2hpc/kernels/*.[ch]
        printf '%s\n' "$CHECKOUT" "$MPI_CHOICE"
        python -VV
    } | cksum
}

is_installed() { # key extra ...
    local key=$1 extra
    for extra in "${@:2}"; do
        [ "$(cat "$VENV/ml2hpc-extra-$extra" 2>/dev/null)" = "$key" ] || return 1
    done
}

run_pip() { python -m pip "$@" || die "pip $1 failed; the same command tries again"; }

install_extras() { # extra ...
    local extra extras=''
    say "installing into $VENV (extras: $*; MPI: $MPI_CHOICE)"
    # The build uses the pinned setuptools, which an isolated build would not.
    run_pip install --quiet -c constraints.txt setuptools
    if [ "$(cat "$VENV/ml2hpc-mpi" 2>/dev/null)" != "$MPI_CHOICE" ]; then
        rm -f "$VENV"/ml2hpc-*
        run_pip uninstall --quiet --yes mpi4py mpich 2>/dev/null
        # pip's cache of built wheels forgets the compiler, so it is left out.
        [ "$MPI_CHOICE" = wheel ] ||
            MPICC=$MPI_CHOICE run_pip install --no-cache-dir --no-binary mpi4py -c constraints.txt mpi4py
    fi
    for extra; do
        [ "$extra" = mpi ] && [ "$MPI_CHOICE" != wheel ] || extras+=,$extra
    done
    run_pip install --progress-bar off --no-build-isolation -c constraints.txt -e ".[${extras#,}]"
    echo "$MPI_CHOICE" >"$VENV/ml2hpc-mpi"
}

# Set MPIRUN.
find_launcher() {
    local beside
    beside=$(dirname "$(PATH=$SITE_PATH command -v "${MPI_CHOICE%% *}" || echo none)")/mpirun
    [ "$MPI_CHOICE" != wheel ] || beside=$VENV/bin/mpirun
    [ -x "$beside" ] || beside=$(PATH=$SITE_PATH command -v mpirun || command -v srun || true)
    MPIRUN=${MPIRUN:-$beside}
    [ -n "$MPIRUN" ] || die "no mpirun and no srun in PATH; set MPIRUN"
    # Open MPI 4 and 5 refuse more ranks than cores unless told.
    export MPIRUN OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
}

set_up() { # extra ...
    local key extra
    cd "$CHECKOUT" || die "no folder $CHECKOUT"
    if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
        complete_the_system
        [ ! -e "$VENV" ] || [ -f "$VENV/pyvenv.cfg" ] || die "$VENV exists and is no virtual environment"
        say "creating $VENV with $("$PYTHON" -V)"
        "$PYTHON" -m venv --clear "$VENV" || die "python -m venv failed"
    fi
    PATH=$VENV/bin:$SITE_PATH
    choose_mpi
    key=$(installation_key)
    if ! is_installed "$key" "$@"; then
        install_extras "$@"
        for extra; do echo "$key" >"$VENV/ml2hpc-extra-$extra"; done
    fi
    find_launcher
}
