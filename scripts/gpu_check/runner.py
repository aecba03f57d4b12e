"""Runs the parts of a call, one after another, each as a process group that is killed at its limit."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

# What a part exits with when the machine lacks what it needs; its last line says what.
LEFT_OUT = 77
# A part with less time than this is not begun.
LEAST_SECONDS = 3
# Kept back from the budget: killing a part takes up to TERM_SECONDS + KILL_SECONDS, and the summary a moment.
TERM_SECONDS, KILL_SECONDS, RESERVE = 1, 3, 5


@dataclasses.dataclass
class Part:
    name: str
    command: list
    # Seconds.
    limit: float
    # Whether the call has failed if this part fails.
    counts: bool = True
    # Whether it says what is right, and not how fast: such a part must have run.
    checks: bool = False
    environment: dict = dataclasses.field(default_factory=dict)
    # Given the results so far, why the part is left out on this machine, if it is.
    needs: Callable = lambda results: None


class Results:
    """What is known so far, on disk at every moment: a call that is cut off loses nothing but the part under way."""

    def __init__(self, folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path, self.json_path = folder / f"{name}.log", folder / f"{name}.json"
        self.log_path.write_bytes(b"")
        self.parts = []
        self.seconds = 0.0

    def say(self, text):
        print(text, flush=True)
        with self.log_path.open("a") as log:
            log.write(text + "\n")

    def add(self, part, result, seconds, figures, note=""):
        self.parts.append({"part": part.name, "result": result, "seconds": round(seconds, 2), "note": note,
                           "counts": part.counts, "checks": part.checks, "figures": figures})
        self.say(f"-- {part.name}: {result} after {seconds:.1f} s{': ' + note if note else ''}")
        self.write()

    def write(self):
        new = self.json_path.with_suffix(".partial")
        new.write_text(json.dumps({"seconds": round(self.seconds, 2), "parts": self.parts}, indent=1))
        os.replace(new, self.json_path)

    def went_wrong(self, name):
        """Whether a part was run and did not succeed."""
        return any(part["part"] == name and part["result"] not in ("ok", "left out", "no time") for part in self.parts)

    def failed(self):
        """The parts for which the call has failed."""
        return [part["part"] for part in self.parts
                if part["counts"] and self.went_wrong(part["part"]) or part["checks"] and part["result"] == "no time"]

    def figure(self, name):
        """A figure by its name; {} if no part printed it."""
        return next((figure for part in self.parts for figure in part["figures"] if figure["figure"] == name), {})


def run(parts, environment, budget, results, adapted):
    """Runs the parts within `budget` seconds. `adapted` gives variables for a part, of what is known before it."""
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        for part in parts:
            left = budget - RESERVE - (time.monotonic() - begin)
            limit = min(part.limit, left)
            if limit < LEAST_SECONDS:
                results.add(part, "no time", 0.0, [])
                continue
            if reason := part.needs(results):
                results.add(part, "left out", 0.0, [], reason)
                continue
            variables = {**adapted(results), **part.environment}
            shown = [*(f"{name}={value}" for name, value in variables.items()), *map(str, part.command)]
            results.say(f"\n== {part.name}: {' '.join(shown)} (at most {limit:.0f} s)")
            result, seconds, output = run_part(part.command, {**environment, **variables}, limit, results.log_path)
            results.seconds = time.monotonic() - begin
            results.add(part, result, seconds, figures_of(output), "" if result == "ok" else note_of(output))
    except KeyboardInterrupt:
        results.say("-- the call was stopped")
        results.add(Part("the call", [], 0), "stopped", time.monotonic() - begin, [])
    results.seconds = time.monotonic() - begin
    results.write()


def interrupt(*_):
    raise KeyboardInterrupt


def run_part(command, environment, limit, log_path):
    """Runs a command for at most `limit` seconds; its result, its seconds and what it printed."""
    begin, start = time.monotonic(), log_path.stat().st_size
    with log_path.open("ab") as log:
        try:
            # Of a group of its own, so that what it starts is killed with it.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
                                       env={**environment, "PYTHONUNBUFFERED": "1"})
        except FileNotFoundError as error:
            return "left out", 0.0, str(error)
        try:
            result = outcome(process.wait(limit))
        except subprocess.TimeoutExpired:
            kill(process)
            result = "hung"
        except KeyboardInterrupt:
            kill(process)
            raise
        kill_group(process.pid, signal.SIGKILL)  # what it left behind
    with log_path.open("rb") as log:
        log.seek(start)
        output = log.read().decode(errors="replace")
    return result, time.monotonic() - begin, output


def outcome(code):
    if code == 0:
        return "ok"
    if code == LEFT_OUT:
        return "left out"
    return f"crashed, {signal.Signals(-code).name}" if code < 0 else f"failed, exit {code}"


def kill(process):
    """Ends a process group. One that hangs in the driver may outlive even SIGKILL for a while; it is not waited for."""
    for number, seconds in [(signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)]:
        kill_group(process.pid, number)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            pass


def kill_group(group, number):
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def note_of(output):
    """What a part said of its end: the first complaint, or else its last line."""
    lines = [line.strip()[:200] for line in output.splitlines() if line.strip()]
    complaints = (line for line in lines if line.lower().startswith(("error", "fail", "emulated driver")) or "panicked" in line)
    return next(complaints, lines[-1] if lines else "")


def figures_of(output):
    """The figures that a part printed: a JSON object a line, with the key `figure`."""
    figures = []
    for line in output.splitlines():
        try:
            figure = json.loads(line) if line.startswith("{") else None
        except json.JSONDecodeError:
            continue  # cut off when the part was killed
        if figure and "figure" in figure:
            figures.append(figure)
    return figures
