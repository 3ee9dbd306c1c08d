"""A cluster of one node: sbatch, srun, sacct, scancel and scontrol, as far as submitit asks of them. SLURM itself is not on every machine.

Like SLURM it signals every process of a job, however deep, runs an array's tasks some at a time, and starts a requeued job again under
its number.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(folder: Path) -> Path:
    """Makes the commands; their folder, to be put on PATH. `started` in it has a line for every start of a job."""
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} {shlex.quote(str(folder))} "$@"\n')
        path.chmod(0o755)
    return folder


def sbatch(folder: Path, script: str) -> None:
    text = Path(script).read_text()
    number = str(100 + len(list(folder.glob("*.sh"))))
    copy = folder / f"{number}.sh"
    copy.write_text(text)
    array = re.search(r"#SBATCH --array=0-(\d+)%(\d+)", text)
    names, most = ([f"{number}_{i}" for i in range(int(array[1]) + 1)], int(array[2])) if array else ([number], 1)
    for name in names:
        (folder / f"{name}.state").write_text("PENDING")
    line = [sys.executable, __file__, "slurmd", str(folder), str(copy), str(most), *names]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    subprocess.Popen(
        line, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    print(f"Submitted batch job {number}")


def slurmd(folder: Path, script: str, most: str, *names: str) -> None:
    places = threading.Semaphore(int(most))

    def run(name: str) -> None:
        job, _, task = name.partition("_")
        variables = {"SLURM_JOB_ID": f"9{job}{task}"} | (
            {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task} if task else {"SLURM_JOB_ID": job}
        )
        state, again = folder / f"{name}.state", folder / f"{name}.again"
        with places:
            while state.read_text() != "CANCELLED":
                again.unlink(missing_ok=True)
                state.write_text("RUNNING")
                with (folder / "started").open("a") as file:
                    file.write(f"{name}\n")
                exit_code = subprocess.run(["bash", script], env=os.environ | variables | {"FAKE_SLURM": name}, check=False).returncode
                if state.read_text() == "CANCELLED" or not again.exists():
                    break
            if state.read_text() != "CANCELLED":
                state.write_text("FAILED" if exit_code else "COMPLETED")

    for name in names:
        threading.Thread(target=run, args=(name,)).start()


def srun(_: Path, *arguments: str) -> None:
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ["SLURM_JOB_ID"]
    rest = list(arguments)
    for descriptor, option in ((1, "--output"), (2, "--error")):
        if option in rest:
            at = rest.index(option)
            path = rest[at + 1].replace("%A_%a", name).replace("%j", name).replace("%t", "0")
            del rest[at : at + 2]
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    command = [argument for argument in rest if not argument.startswith("--")]
    os.execvp(command[0], command)


def sacct(folder: Path, *_: str) -> None:
    print("JobID|State|NodeList")
    for path in folder.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|here")


def scancel(folder: Path, name: str) -> None:
    (folder / f"{name}.state").write_text("CANCELLED")
    send(name, signal.SIGTERM)


def scontrol(folder: Path, action: str, name: str) -> None:
    assert action == "requeue"
    (folder / f"{name}.again").touch()


def send(name: str, number: signal.Signals) -> None:
    """Sends a signal to every process of a job, as the cluster does; one of the user's own kind not to the script."""
    for pid in processes(name):
        try:
            if number in (signal.SIGUSR1, signal.SIGUSR2) and Path(f"/proc/{pid}/comm").read_text() == "bash\n":
                continue
            os.kill(pid, number)
        except (ProcessLookupError, FileNotFoundError):
            continue


def processes(name: str) -> list[int]:
    """Of a job: those within which FAKE_SLURM is its name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FAKE_SLURM={name}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return sorted(found)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
