#!/usr/bin/env bash
# Set up as workstation.sh does, then run every check; the exit status is 0 only when all of them pass.
#
#     bash jobscripts/test.sh                     every check
#     bash jobscripts/test.sh types tests-1       the named ones
#
# An app states its own checks: each comment line "# test: COMMAND" in apps/*.py runs in a fresh folder, line after line.
# PETSc is built where it is missing (petsc.sh: four to seven minutes, seconds from the wheel house).
# RANKS_TESTED="2 3 4" are the numbers of ranks of the parallel tests. The rest of the environment: environment.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up mpi plot test
for name in "${@:-all}"; do
    case $name in
        lint | format | types) ;;
        *) ML2HPC_VENV=$VENV bash jobscripts/petsc.sh || die "PETSc could not be installed" ;;
    esac
done
read -ra SIZES <<<"${RANKS_TESTED:-2 3 4}"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
export MPLBACKEND=Agg PYTHONFAULTHANDLER=1

lint() { ruff check ml2hpc apps tests; }
format() { ruff format --check ml2hpc apps tests; }
types() { mypy ml2hpc apps tests; }
doctests() { pytest -q --doctest-modules ml2hpc; }

tests() { # ranks
    if [ "$1" != 1 ]; then
        "$MPIRUN" -n "$1" python -m pytest -q
        return
    fi
    # Two processes side by side: the tests of the apps mostly start others and wait for them.
    local apps status=0
    pytest -q --durations=15 tests/apps >"$SCRATCH/tests-apps" 2>&1 &
    apps=$!
    pytest -q --durations=15 --ignore=tests/apps || status=$?
    wait "$apps" || status=$?
    printf '\n---- tests/apps\n'
    cat "$SCRATCH/tests-apps"
    return "$status"
}

app() { # file
    local commands
    commands=$(sed -n 's/^ *# test: *//p' "$1")
    if [ -z "$commands" ]; then
        say "$1 has no line '# test: COMMAND'"
        return 1
    fi
    mkdir -p "$SCRATCH/$1"
    export CHECKOUT=$PWD
    cd "$SCRATCH/$1"
    mpirun() { "$MPIRUN" "$@"; }
    export -f mpirun
    bash -euxc "$commands"
}

FAILED=0
SUMMARY=''
check() { # name command ...
    local name=$1 start=$SECONDS status=ok
    [ ${#WANTED[@]} = 0 ] || [[ " ${WANTED[*]} " == *" $name "* ]] || return 0
    shift
    printf '\n---- %s\n' "$name"
    ("$@") || status="FAILED ($?)"
    [ "$status" = ok ] || FAILED=1
    SUMMARY+=$(printf '%-18s %5d s  %s' "$name" $((SECONDS - start)) "$status")$'\n'
}

WANTED=("$@")
check lint lint
check format format
check types types
check tests-1 tests 1
for size in "${SIZES[@]}"; do check "tests-$size" tests "$size"; done
check doctests doctests
for file in apps/*.py; do
    [ "$file" = apps/__init__.py ] || check "$file" app "$file"
done
[ -n "$SUMMARY" ] || die "no check has one of the names: $*"
printf '\n%s' "$SUMMARY"
exit $FAILED
