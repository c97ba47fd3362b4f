"""A Slurm of one node, in three small scripts: what is submitted runs at once. For the tests of what submits."""

from __future__ import annotations

from pathlib import Path

SBATCH = """#!/bin/bash
id=$$
export SLURM_JOB_ID=$id SLURM_JOB_NAME=musicnet SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here
export SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
cp "$1" "$(dirname "$0")/$id.sh"
( bash "$(dirname "$0")/$id.sh"; echo $? > "$(dirname "$0")/$id.code" ) < /dev/null > /dev/null 2>&1 &
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
while [ $# -gt 0 ]; do
  case "$1" in
    --output) out="$2"; shift 2 ;;
    --error) err="$2"; shift 2 ;;
    --*) shift ;;
    *) break ;;
  esac
done
named() { local name="${1//%j/$SLURM_JOB_ID}"; echo "${name//%t/0}"; }
exec "$@" >> "$(named "$out")" 2>> "$(named "$err")"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    code="$(cat "$(dirname "$0")/$2.code" 2> /dev/null)"
    case "$code" in "") state=RUNNING ;; 0) state=COMPLETED ;; *) state=FAILED ;; esac
    echo "$2|$state|here"
    shift
  fi
  shift
done
"""


def install(folder: Path) -> None:
    """Write the commands into a folder that is to stand on PATH; each submitted script is kept there as `<id>.sh`."""
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (folder / name).write_text(text, encoding="utf8")
        (folder / name).chmod(0o755)
