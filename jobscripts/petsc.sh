#!/usr/bin/env bash
# Install PETSc and petsc4py into the virtual environment, on the MPI that mpi4py uses; set up as workstation.sh does if
# that has not happened yet. Needed for -snes_type petsc and ml2hpc.petsc only:
#
#     bash jobscripts/petsc.sh
#
# The first run compiles for four to seven minutes; needs make besides what environment.sh needs, no Fortran and no root.
# pip's own cache ignores configure options and MPI, so finished wheels are kept in a wheel house, and the next
# environment takes seconds.
#
#   ML2HPC_WHEELS   the wheel house (default: ~/.cache/ml2hpc-wheels)
#   BLAS            a library with BLAS and LAPACK (default: pip's scipy-openblas32)
#   ML2HPC_VENV, PYTHON, MPI=wheel|site, MPICC, MPIRUN   see jobscripts/environment.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
NEEDS_MAKE=1
set_up mpi
PETSC_VERSION=$(sed -n 's/^petsc==//p' constraints.txt)

# Print a library with the standard names of BLAS and LAPACK. pip's OpenBLAS puts scipy_ before every name; one jump for
# each name gives the standard ones.
standard_blas() {
    python - <<'EOP'
import pathlib, platform, re, subprocess
import scipy_openblas32

folder = pathlib.Path(scipy_openblas32.get_lib_dir())
target = folder / "libblaslapack.so"
if not target.exists():
    listed = subprocess.run(["nm", "-D", "--defined-only", folder / "libscipy_openblas.so"], capture_output=True, text=True, check=True)
    names = sorted({n for n in listed.stdout.split() if re.fullmatch(r"scipy_(?!LAPACKE_|cblas_)[a-z0-9]+_", n)})
    jump = {"x86_64": "jmp {}@PLT", "aarch64": "b {}"}[platform.machine()]
    source = target.with_suffix(".s")
    with source.open("w") as stream:
        for name in names:
            stream.write(f".text\n.globl {name[6:]}\n.type {name[6:]},%function\n{name[6:]}:\n\t{jump.format(name)}\n")
        stream.write('.section .note.GNU-stack,"",%progbits\n')
    command = ["cc", "-shared", "-o", target, source, f"-L{folder}", "-lscipy_openblas", "-Wl,-rpath,$ORIGIN"]
    subprocess.run(command, check=True)
print(target)
EOP
}

# Set WHEELS, one folder for each PETSc, Python, MPI and way to build.
find_wheels() {
    local key
    key=$({
        printf '%s\n' "$MPI_CHOICE" "${CONFIGURE[@]}" "${BLAS_CHOICE}"
        python -VV
    } | cksum | cut -d' ' -f1)
    WHEELS=${ML2HPC_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/ml2hpc-wheels}
    WHEELS+=/$PETSC_VERSION-$(python -c 'import sys, platform; print("py%d%d-%s" % (*sys.version_info[:2], platform.machine()))')-$key
    mkdir -p "$WHEELS"
    WHEELS=$(cd "$WHEELS" && pwd)
}

from_wheels() { # package
    python -m pip install --quiet --no-index --no-deps --find-links "$WHEELS" "$1==$PETSC_VERSION" 2>/dev/null
}

build_petsc() {
    # A switch of PETSc's own set-up: run paths relative to the environment, so that its wheel serves any of them.
    CIBUILDWHEEL=1 PETSC_CONFIGURE_OPTIONS="${CONFIGURE[*]} --with-make-np=$CORES --with-blaslapack-lib=$BLAS" \
        run_pip wheel --no-cache-dir --no-deps --no-build-isolation -w "$WHEELS" "petsc==$PETSC_VERSION"
}

build_petsc4py() (
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    PETSC_DIR=$(python -m petsc --prefix) CFLAGS="-O1 -g0" \
        run_pip wheel --no-cache-dir --no-deps --no-build-isolation -w "$scratch" "petsc4py==$PETSC_VERSION"
    cd "$scratch"
    python -m wheel unpack -d unpacked petsc4py-*.whl
    patchelf --set-rpath "\$ORIGIN/../../petsc/lib:\$ORIGIN/../../../.." unpacked/*/petsc4py/lib/PETSc*.so
    python -m wheel pack -d "$WHEELS" unpacked/*
)

is_working() {
    python -c 'import petsc4py; petsc4py.init([]); from petsc4py import PETSc; PETSc.Vec().createMPI(4).norm()' 2>/dev/null
}

install_petsc() {
    # Vectors begin at multiples of 64 bytes, as torch's do: sums inside BLAS must not depend on where a vector lies.
    CONFIGURE=(--with-fc=0 --with-cxx=0 --with-x=0 --with-ssl=0 --with-debugging=0 --with-memalign=64 --COPTFLAGS=-O2
        --CFLAGS=-g0 --with-make-load=99)
    BLAS_CHOICE=${BLAS:-wheel}
    find_wheels
    [ "$(cat "$VENV/ml2hpc-petsc" 2>/dev/null)" != "$WHEELS" ] || ! is_working || return 0
    find_missing
    [ ${#MISSING[@]} = 0 ] || complete_the_system
    say "installing PETSc $PETSC_VERSION into $VENV (wheels: $WHEELS; MPI: $MPI_CHOICE)"
    run_pip install --quiet -c constraints.txt setuptools wheel Cython numpy patchelf scipy-openblas32
    BLAS=${BLAS:-$(standard_blas)}
    MPICC=$MPI_CHOICE
    [ "$MPI_CHOICE" != wheel ] || MPICC=$VENV/bin/mpicc
    export MPICC
    unset PETSC_DIR PETSC_ARCH CC
    CORES=$(env -u OMP_NUM_THREADS nproc)
    run_pip uninstall --quiet --yes petsc4py petsc 2>/dev/null
    from_wheels petsc || { build_petsc && from_wheels petsc; } || die "PETSc $PETSC_VERSION could not be built"
    from_wheels petsc4py || { build_petsc4py && from_wheels petsc4py; } || die "petsc4py could not be built"
    is_working || die "PETSc is installed in $VENV, but does not work"
    echo "$WHEELS" >"$VENV/ml2hpc-petsc"
}

install_petsc
