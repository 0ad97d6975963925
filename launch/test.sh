#!/usr/bin/env bash
# The tests and the linters. Further arguments go to pytest.
#
#   bash launch/test.sh                 everything that is not marked slow, faults, nccl_build or gpu
#   bash launch/test.sh --all           the slow tests too, but for those of Slurm and --faults
#   bash launch/test.sh --slurm         all tests with a Slurm of their own: as root, 10 minutes
#   bash launch/test.sh --faults        real harm to real runs, for two hours; writes faults.json; NUM_KILLS=20
#   bash launch/test.sh --nccl-build    compiles Horovod with NCCL in an environment of its own; needs nvcc, but no GPU
#   bash launch/test.sh -m gpu          what needs a GPU (a later -m counts)
#   bash launch/test.sh --coverage      the default tests, and the lines of resrep_dist that they do not run
#   bash launch/test.sh tests/unit -x   some
#
# Two files of tests run at a time, since most tests keep one core busy; `-n 0` runs one after another. With --all,
# --slurm and --faults they do: long runs on several ranks have limits of time and want the machine for themselves.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
bash launch/setup.sh || exit 1
export PATH=$PWD/.venv/bin:$PATH

marked='not slow and not faults and not gpu and not nccl_build'
at_once=(-n 2 --dist loadfile)
coverage=()
case ${1:-} in
    --all) marked='not (slurm and slow) and not faults and not gpu and not nccl_build' at_once=(); shift ;;
    --slurm) marked=slurm at_once=(); shift ;;
    --faults) marked=faults at_once=(); shift ;;
    --nccl-build) marked=nccl_build at_once=(); shift ;;
    --coverage) coverage=(--cov --cov-report=term-missing:skip-covered --cov-report=html); shift ;;
esac

failed=()
check() { # name, command
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
}
check 'pytest' python -m pytest -rs "${at_once[@]}" "${coverage[@]}" -m "$marked" "$@"
check 'ruff check' ruff check
check 'ruff format' ruff format --check
check 'import-linter' lint-imports --no-cache
check 'mypy' mypy resrep_dist
# Without the advertisement for a successor that Material prints.
check 'mkdocs' env NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir site

if ((${#failed[@]})); then
    printf '\nFAILED:%s\n' "$(printf ' %s,' "${failed[@]}" | sed 's/,$//')"
    exit 1
fi
printf '\nAll passed: pytest, ruff check, ruff format, import-linter, mypy, mkdocs\n'
if [[ " $* " != *" -m "* ]]; then echo "Tests that were chosen: $marked"; fi
