"""Stores in a bucket of moto's, through a network that fails: the same bytes and the same batches as in a folder."""

import json
import os
import random
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from bucket_server import KEY, SECRET, Moto, Proxy, environment, seeded
from conftest import REPOSITORY, TARGET

WIDTH, ROWS = 32, 60_000
# How many programs are ended in the middle: a few for every change; 30 take some minutes.
KILLS = int(os.environ.get("BUCKET_KILLS", 6))


def has_buckets():
    # A profile that is not there is refused before any request.
    without_keys = environment(None, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, AWS_PROFILE="none")
    line = [TARGET / "activation-dump", "info", "s3://bucket/none"]
    told = subprocess.run(line, capture_output=True, text=True, env=without_keys).stderr
    assert "no profile none" in told or "built without buckets" in told, told
    return "no profile none" in told


@pytest.fixture(scope="module")
def moto():
    assert has_buckets(), "cargo build --release --workspace --bins --examples builds the programs with buckets"
    server = Moto(REPOSITORY)
    yield server
    server.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory, moto):
    """Rows, a store of them in a folder, and the same in the bucket."""
    folder = tmp_path_factory.mktemp("bucket")
    rows = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float16)
    np.save(folder / "acts.npy", rows)
    run(moto.endpoint, *importing(folder, folder / "store"))
    moto.copy(folder / "store", "acts")
    return folder


def importing(folder, out):
    about = ["--hook", "blocks.1.hook_resid_pre", "--model", "gpt2", "--context", 8, "--shuffle-memory", "2MB"]
    return ["activation-dump", "import", folder / "acts.npy", *about, "--out", out]


def training(store, out, steps=60):
    return ["sae-trainer", "--store", store, "--features", 64, "--batch", 1024, "--steps", steps, "--device", "cpu", "--out", out]


def run(endpoint, name, *arguments, code=0, **more):
    line = [TARGET / name, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, env=environment(endpoint, **more), timeout=300)
    assert done.returncode == code, done.stderr
    assert KEY not in done.stdout + done.stderr and SECRET not in done.stdout + done.stderr
    return done


def weights(folder):
    return (folder / "sae/sae_weights.safetensors").read_bytes()


def steps_of(folder):
    """What metrics.jsonl says of the steps, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["mse_centered"]) for line in lines if line.get("kind") == "step"]
    assert steps
    return steps


@pytest.fixture(scope="module")
def reference(place, moto):
    run(moto.endpoint, *training(place / "store", place / "reference"))
    return place / "reference"


def assert_same(run, reference):
    assert weights(run) == weights(reference)
    assert steps_of(run) == steps_of(reference)


def test_training_through_a_cache_is_training_on_the_folder(place, moto, reference, tmp_path):
    cache = tmp_path / "cache"
    for number, state in enumerate(["cold", "warm"]):
        proxy = Proxy(moto.port, lambda *_: None)
        run(proxy.endpoint, *training("s3://bucket/acts", tmp_path / state), "--cache", cache)
        proxy.close()
        assert_same(tmp_path / state, reference)
        stored = sum(path.stat().st_size for path in (place / "store").rglob("*") if path.is_file())
        if number == 0:
            assert 0.8 * stored < proxy.bytes < 1.1 * stored
        else:
            assert proxy.requests < 6 and proxy.bytes < 20_000
    small = tmp_path / "small"
    told = run(moto.endpoint, *training("s3://bucket/acts", tmp_path / "evicting"), "--cache", small, "--cache-size", "2000000")
    assert_same(tmp_path / "evicting", reference)
    used = sum(path.stat().st_blocks * 512 for path in small.rglob("*") if path.is_file())
    assert used < 2_600_000, used
    assert "s3://bucket/acts" in told.stderr
    # Nothing that a run leaves behind has a key in it.
    for path in (tmp_path / "cold").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert KEY.encode() not in content and SECRET.encode() not in content, path
    config = json.loads((tmp_path / "cold/config.json").read_text())
    assert config["stores"][0]["path"] == "s3://bucket/acts"


def test_a_stopped_run_on_a_bucket_is_resumed(place, moto, reference, tmp_path):
    out, cache = tmp_path / "run", ["--cache", tmp_path / "cache"]
    run(moto.endpoint, *training("s3://bucket/acts", out, steps=25), *cache)
    run(moto.endpoint, "sae-trainer", "--resume", "--out", out, "--steps", 60, *cache)
    assert weights(out) == weights(reference)


def test_a_network_that_fails_changes_no_batch(place, moto, reference, tmp_path):
    faults = ["drop", "delay", "throttle", "corrupt", "cut", 503, 500, 429]
    proxy = Proxy(moto.port, seeded(faults, 0.15, seed=1))
    out, cache = tmp_path / "run", tmp_path / "cache"
    for _ in range(8):
        # A chunk that comes damaged twice in a row ends a run, and the same command goes on.
        done = subprocess.run(
            [TARGET / "sae-trainer", *map(str, training("s3://bucket/acts", out)[1:]), "--cache", cache, "--resume"],
            capture_output=True, text=True, cwd=REPOSITORY, env=environment(proxy.endpoint), timeout=300,
        )
        if done.returncode == 0:
            break
        assert "damaged" in done.stderr, done.stderr
    proxy.close()
    assert_same(out, reference)


def start(endpoint, line):
    return subprocess.Popen([TARGET / line[0], *map(str, line[1:])], cwd=REPOSITORY, env=environment(endpoint), stderr=subprocess.DEVNULL)


class Ending:
    """A plan that ends a process by a signal when it makes a request, and lets a share of the requests before it fail."""

    def __init__(self, request, by, faults=lambda *_: None):
        self.request, self.by, self.faults, self.process, self.has_ended = request, by, faults, None, False

    def __call__(self, method, path, number):
        if number < self.request:
            return self.faults(method, path, number)
        while self.process is None:
            time.sleep(0.001)
        if not self.has_ended:
            self.has_ended = True
            self.process.send_signal(self.by)
        return None if self.by == signal.SIGINT else "drop"


def run_until(moto, line, plan):
    """Whether the process was ended before it was done."""
    proxy = Proxy(moto.port, plan)
    plan.process = start(proxy.endpoint, line)
    plan.process.wait(timeout=300)
    proxy.close()
    return plan.has_ended


def test_a_cache_whose_process_is_ended_anywhere_is_right(place, moto, reference, tmp_path):
    chance = random.Random(3)
    cache = ["--cache", tmp_path / "cache", "--cache-size", "2500000"]
    ended = 0
    for number in range(KILLS):
        line = [*training("s3://bucket/acts", tmp_path / f"ended-{number}"), *cache]
        ended += run_until(moto, line, Ending(chance.randrange(1, 45 if number == 0 else 25), signal.SIGKILL))
    assert ended > 0
    run(moto.endpoint, *training("s3://bucket/acts", tmp_path / "run"), *cache)
    assert_same(tmp_path / "run", reference)


def test_a_second_process_does_not_touch_the_cache(place, moto, tmp_path):
    slow = Proxy(moto.port, lambda *_: "delay")
    first = start(slow.endpoint, [*training("s3://bucket/acts", tmp_path / "first"), "--cache", tmp_path / "cache"])
    while not (tmp_path / "cache/cache.lock").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    told = run(moto.endpoint, *training("s3://bucket/acts", tmp_path / "second"), "--cache", tmp_path / "cache", code=1).stderr
    assert f"process {first.pid} uses it" in told and "another folder" in told
    first.kill()
    first.wait()
    slow.close()


def test_a_dump_into_a_bucket_is_the_dump_into_a_folder(place, moto):
    told = run(moto.endpoint, *importing(place, "s3://bucket/whole"))
    moto.assert_holds(place / "store", "whole")
    assert "complete already" in run(moto.endpoint, *importing(place, "s3://bucket/whole")).stderr
    info = json.loads(run(moto.endpoint, "activation-dump", "info", "s3://bucket/whole", "--json").stdout)
    assert info["store"] == "s3://bucket/whole" and info["rows"] == ROWS
    assert "is sound" in run(moto.endpoint, "activation-dump", "verify", "s3://bucket/whole").stdout
    assert "s3://bucket/whole" in told.stdout + told.stderr


def test_a_dump_that_is_ended_anywhere_ends_with_the_same_bytes(place, moto):
    chance = random.Random(5)
    ended = 0
    for number in range(KILLS):
        # Some by Ctrl-C, which commits what is whole. A dump takes about 150 requests.
        by = signal.SIGINT if number % 3 == 2 else signal.SIGKILL
        faults = seeded(["drop", 503], 0.1, seed=number, methods=("PUT", "GET", "HEAD"))
        ended += run_until(moto, importing(place, "s3://bucket/ended"), Ending(chance.randrange(1, 120), by, faults))
        if "zarr.json" in moto.names("ended") and json.loads(moto.get("ended/zarr.json"))["attributes"]["complete"]:
            run(moto.endpoint, *importing(place, "s3://bucket/ended"))
            moto.assert_holds(place / "store", "ended")
            for name in moto.names("ended"):
                moto.delete(f"ended/{name}")
    assert ended > 0
    run(moto.endpoint, *importing(place, "s3://bucket/ended"))
    moto.assert_holds(place / "store", "ended")


def test_of_two_writers_one_wins_and_the_other_is_told_who(place, moto):
    slow = Proxy(moto.port, lambda _method, _path, number: "delay" if number < 25 else None)
    first = start(slow.endpoint, importing(place, "s3://bucket/two"))
    while "writer.lock" not in moto.names("two"):
        time.sleep(0.02)
    told = run(moto.endpoint, *importing(place, "s3://bucket/two"), code=1).stderr
    assert f"s3://bucket/two is being written by process {first.pid} on " in told
    assert first.wait() == 0
    slow.close()
    moto.assert_holds(place / "store", "two")


def test_another_dump_is_not_written_over(place, moto):
    line = [*importing(place, "s3://bucket/acts"), "--mantissa-bits", 5]
    told = run(moto.endpoint, *line, code=1).stderr
    assert "s3://bucket/acts holds a store of another dump" in told and "mantissa_bits" in told
    moto.put("foreign/notes.txt", b"mine")
    assert "not an activation store's" in run(moto.endpoint, *importing(place, "s3://bucket/foreign"), code=1).stderr
    moto.assert_holds(place / "store", "acts")


def test_errors_say_what_where_and_what_to_do(place, moto, tmp_path):
    def told(store, *more, endpoint=moto.endpoint, cache=True, **variables):
        cached = ["--cache", tmp_path / "cache"] if cache else []
        return run(endpoint, *training(store, tmp_path / "run"), *cached, *more, code=1, **variables).stderr

    assert "there is no activation store at s3://bucket/none" in told("s3://bucket/none")
    assert f"there is no bucket other at {moto.endpoint}" in told("s3://other/acts")
    assert "--cache names a folder" in told("s3://bucket/acts", cache=False)
    assert "too few for s3://bucket/acts" in told("s3://bucket/acts", "--cache-size", "1000")
    assert "s3://BUCKET/FOLDER" in told("s3://bucket")
    secret = told("s3://me:hunter2@bucket/acts")
    assert "keys belong in the environment" in secret
    unreachable = told("s3://bucket/acts", endpoint="http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9" in unreachable and "tries" in unreachable
    nobody = told("s3://bucket/acts", AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, HOME=str(tmp_path), AWS_METADATA_ENDPOINT="http://169.254.169.254:1")
    assert "no credentials were found" in nobody
    forbidding = Proxy(moto.port, lambda *_: 403)
    forbidden = told("s3://bucket/acts", endpoint=forbidding.endpoint)
    forbidding.close()
    assert "cannot read s3://bucket/acts/zarr.json: these credentials may not do that" in forbidden and "docs/buckets.md" in forbidden
    export = run(moto.endpoint, "activation-dump", "export", "s3://bucket/acts", "--format", "npy", "--out", tmp_path / "npy", code=1)
    assert "s3://bucket/acts is in a bucket" in export.stderr
    corrupting = Proxy(moto.port, lambda method, path, _: "corrupt" if "/activations/c/" in path and method == "GET" else None)
    corrupted = told("s3://bucket/acts", endpoint=corrupting.endpoint)
    corrupting.close()
    assert "s3://bucket/acts/activations/c/" in corrupted and "damaged" in corrupted


def test_the_keys_of_a_profile_are_used(place, moto, tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(f"[work]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    (tmp_path / ".aws/config").write_text(f"[profile work]\nregion = eu-west-1\nendpoint_url = {moto.endpoint}\n")
    without = dict.fromkeys(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"])
    more = without | dict(HOME=str(tmp_path), AWS_PROFILE="work")
    assert "rows" in run(None, "activation-dump", "info", "s3://bucket/acts", **more).stdout
    more["AWS_PROFILE"] = "other"
    assert "no profile other" in run(None, "activation-dump", "info", "s3://bucket/acts", code=1, **more).stderr


def test_damaged_objects_are_named(place, moto):
    moto.copy(place / "store", "damaged")
    shard = bytearray(moto.get("damaged/activations/c/1/0"))
    shard[10] ^= 1
    moto.put("damaged/activations/c/1/0", bytes(shard))
    moto.delete("damaged/origin/c/0")
    told = run(moto.endpoint, "activation-dump", "verify", "s3://bucket/damaged", code=1).stdout
    assert "activations/c/1/0, chunk 0" in told and "origin/c/0" in told
    assert "origin/c/0" in run(moto.endpoint, "activation-dump", "info", "s3://bucket/damaged", code=1).stderr


def test_a_run_that_is_to_stop_does_not_wait_for_a_network_that_is_gone(place, moto, tmp_path):
    out, refused = tmp_path / "run", threading.Event()

    def plan(*_):
        if not (out / "metrics.jsonl").exists():
            return None
        refused.set()
        return 503

    proxy = Proxy(moto.port, plan)
    # With less of a cache than the store takes, every epoch fetches chunks.
    line = [*training("s3://bucket/acts", out, steps=100_000), "--log-every", 1, "--cache", tmp_path / "cache", "--cache-size", "2500000"]
    process = subprocess.Popen(
        [TARGET / line[0], *map(str, line[1:])], cwd=REPOSITORY, env=environment(proxy.endpoint), stderr=subprocess.PIPE, text=True
    )
    assert refused.wait(timeout=120)
    time.sleep(3)  # by then the batches that were there are used up
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=300)[1]
    # It would be two minutes.
    assert time.monotonic() - asked < 40, told
    assert process.returncode == 130, told
    proxy.close()
