"""Kills, Ctrl-C and full disks at seeded random moments over all five stages, on the digits.

    make torture          # python -m bench.torture --kills 200

Every life of the process is a fork of one that has imported everything, so that a kill costs no
start-up. After each death the same command goes on; when a run is finished its tensors must be an
undisturbed run's, bit for bit, no finished stage may have been made twice, and a stranger's file in
the run's folder must still be there. Writes bench/results/torture.json.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from compress.checkpoint import DESCRIPTION, load_checkpoint
from compress.cli.main import main as compress_main
from compress.files import write_json
from compress.host import Host, describe_host
from compress.log import say
from compress.run.lookup import is_run
from compress.run.runner import run_recipe  # noqa: F401 -- imported once, before the forks
from compress.run.stages import STAGES, stage_folder

RESULTS = Path(__file__).parent / "results" / "torture.json"
SETTINGS = (
    *("teacher.train.epochs=6", "teacher.train.min_steps=0", "teacher.train.batch_size=128"),
    *("distill.train.epochs=6", "distill.train.min_steps=0", "prune.train.epochs=4"),
    *("prune.train.min_steps=0", "prune.latency_ratio=1", "prune.macs_ratio=0.6"),
    *("quantize.method=qat", "quantize.train.epochs=3", "quantize.train.min_steps=0"),
)
LIFE_S, GROWTH = 1.5, 1.25
"""Longest life at first; it grows while a stage sees no end, and starts anew with the next one."""
INTERRUPT_EVERY = 8
"""One death in so many is a Ctrl-C."""
HEARD_S = 60
"""Within so many seconds a process ends."""
DISKS_MIB = (1, 4, 16, 30, 46, 60, 100, 300)
"""Sizes of a disk that fills, one after the other."""
STRANGER = "notes.txt"


@dataclass(frozen=True, kw_only=True)
class Torture:
    """What the results file holds."""

    kills: int
    interrupts: int
    full_disks: int
    """Runs that ended because the disk was full, and went on when it was larger."""
    deaths_by_stage: dict[str, int]
    finished_runs: int
    stages_made_twice: int
    differing_digests: int
    lost_files: int
    tracebacks: int
    wrong_exit_codes: int
    seconds: float
    seed: int
    command: str
    date: str
    host: Host


class Victim:
    """One run's folder, and a command that works on it again and again."""

    def __init__(self, run: Path, log: Path) -> None:
        self.run, self.log = run, log
        self.made: dict[str, tuple[int, float]] = {}
        """By finished stage: which file its description is."""
        self.planted = False
        """Whether a stranger's file lies in the folder."""
        self.made_twice = self.lost = self.tracebacks = self.wrong_exits = 0

    def start(self) -> int:
        """Starts the command in a child process and returns its number."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            settings = [part for value in SETTINGS for part in ("--set", value)]
            command = ["run", "resnet18", "--data", "digits", "--out", str(self.run), *settings]
            compress_main(command, prog_name="compress")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def look(self) -> None:
        """Notes what is finished, and whether that was made twice or something is lost."""
        for stage in STAGES:
            with suppress(FileNotFoundError):
                stat = (stage_folder(self.run, stage) / DESCRIPTION).stat()
                one = (stat.st_ino, stat.st_mtime)
                self.made_twice += self.made.get(stage, one) != one
                self.made[stage] = one
        if self.planted:
            self.lost += not (self.run / STRANGER).is_file()
        elif is_run(self.run):
            (self.run / STRANGER).write_text("the only copy", encoding="utf-8")
            self.planted = True
        said = self.said()
        self.tracebacks += "Traceback" in said or "bug in compress" in said

    def said(self) -> str:
        """Returns what the last process printed."""
        if not self.log.is_file():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def working_on(self) -> str:
        """Returns the stage that is under way."""
        return next((stage for stage in STAGES if stage not in self.made), "report")

    def digests(self) -> list[str]:
        """Returns what the finished stages hold."""
        return [load_checkpoint(stage_folder(self.run, stage)).digest for stage in STAGES]


def ended(child: int, within: float) -> int | None:
    """Returns a child's exit code once it ends, None if it lives on after so many seconds."""
    deadline = time.monotonic() + within
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def torment(victim: Victim, random_: random.Random, deaths: Counter[str], most: int) -> None:
    """Kills a run again and again until it is finished, or `most` deaths are reached."""
    limit, stage = LIFE_S, victim.working_on()
    while True:
        tired = deaths["kill"] >= most
        child = victim.start()
        code = ended(child, 900 if tired else random_.uniform(0, limit))
        if code is None:
            interrupt = (deaths["kill"] + deaths["interrupt"]) % INTERRUPT_EVERY == 0
            os.kill(child, signal.SIGINT if interrupt else signal.SIGKILL)
            code = ended(child, HEARD_S)
            if code is None:  # it goes on as if nothing had happened
                os.kill(child, signal.SIGKILL)
                ended(child, HEARD_S)
            victim.look()
            if interrupt and code not in (0, 130):
                victim.wrong_exits += 1
                click.echo(f"after Ctrl-C: exit code {code}: {victim.said()[-2000:]}")
            deaths["interrupt" if interrupt else "kill"] += 1
            deaths[f"in {stage}"] += 1
            limit *= GROWTH
            if victim.working_on() != stage:
                limit, stage = LIFE_S, victim.working_on()
            continue
        victim.look()
        if code != 0:
            victim.wrong_exits += 1
            click.echo(f"exit code {code}: {victim.said()[-3000:]}")
        return


def fill_disks(victim: Victim, disk: Path) -> tuple[int, list[str]]:
    """Runs on a disk that is too small, and enlarges it; needs root, to mount it.

    Returns:
        How often the disk was full, and what the run ended as.
    """
    disk.mkdir()
    full = 0
    try:
        for size in DISKS_MIB:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(disk)]
            if full or size != DISKS_MIB[0]:
                mount = ["mount", "-o", f"remount,size={size}m", str(disk)]
            subprocess.run(mount, check=True, capture_output=True)
            code = ended(victim.start(), 900)
            victim.look()
            said = victim.said()
            if code == 0:
                break
            if code != 2 or "No space left on device" not in said:
                victim.wrong_exits += 1
                click.echo(f"on a full disk: exit code {code}: {said[-3000:]}")
            full += 1
        return full, victim.digests()
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


@click.command()
@click.option("--kills", default=200, show_default=True, help="SIGKILLs in all.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(kills: int, seed: int) -> None:
    """Kill, interrupt and starve runs, and compare what they end as with an undisturbed one."""
    started, random_, deaths = time.perf_counter(), random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["COMPRESS_CACHE"] = str(folder / "cache")
        undisturbed = Victim(folder / "undisturbed", folder / "undisturbed.log")
        code = ended(undisturbed.start(), 900)
        assert code == 0, undisturbed.said()
        expected = undisturbed.digests()
        victims, differing = [undisturbed], 0
        while deaths["kill"] < kills:
            victim = Victim(folder / f"run-{len(victims)}", folder / f"run-{len(victims)}.log")
            victims.append(victim)
            torment(victim, random_, deaths, kills)
            differing += sum(a != b for a, b in zip(victim.digests(), expected, strict=True))
            say(f"run {len(victims) - 1} finished after {deaths['kill']} kills, {differing} differ")
        starved = Victim(folder / "disk" / "run", folder / "disk.log")
        victims.append(starved)
        full, digests = fill_disks(starved, folder / "disk")
        differing += sum(a != b for a, b in zip(digests, expected, strict=True))
    results = Torture(
        kills=deaths["kill"],
        interrupts=deaths["interrupt"],
        full_disks=full,
        deaths_by_stage={
            stage: deaths[f"in {stage}"] for stage in (*STAGES, "report") if deaths[f"in {stage}"]
        },
        finished_runs=len(victims),
        stages_made_twice=sum(victim.made_twice for victim in victims),
        differing_digests=differing,
        lost_files=sum(victim.lost for victim in victims),
        tracebacks=sum(victim.tracebacks for victim in victims),
        wrong_exit_codes=sum(victim.wrong_exits for victim in victims),
        seconds=round(time.perf_counter() - started, 1),
        seed=seed,
        command=f"python -m bench.torture --kills {kills} --seed {seed}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        host=describe_host(),
    )
    write_json(RESULTS, results)
    click.echo(RESULTS)
    faults = results.stages_made_twice + results.differing_digests + results.lost_files
    if faults + results.tracebacks + results.wrong_exit_codes:
        raise click.ClickException("something was lost, made twice, or ended otherwise; see above")


if __name__ == "__main__":
    main()
