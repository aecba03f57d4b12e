"""What `sae-trainer push` uploads, fetched by huggingface_hub and loaded by SAELens, from a server that answers as the hub does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import TARGET
from hub_server import TOKEN, HubServer

WIDTH = 16

LOAD = """
import sys, torch
from sae_lens import SAE
sae = SAE.from_pretrained(sys.argv[1], sys.argv[2])
print(sae.cfg.architecture(), sae.cfg.d_sae, sae.cfg.metadata.hook_name)
torch.save({name: value for name, value in sae.state_dict().items()}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, program):
    """A store and two runs on it."""
    folder = tmp_path_factory.mktemp("push")
    rows = np.random.default_rng(0).standard_normal((4096, WIDTH)).astype(np.float32)
    np.save(folder / "acts.npy", rows)
    about = ["--hook", "blocks.1.hook_resid_pre", "--model", "gpt2", "--context", 8]
    program("activation-dump", "import", folder / "acts.npy", *about, "--out", folder / "store")
    common = ["--store", folder / "store", "--features", 64, "--batch", 128, "--steps", 20]
    program("sae-trainer", *common, "--out", folder / "l0")
    program("sae-trainer", *common, "--activation", "topk", "--k", 4, "--out", folder / "topk")
    return folder


def environment(hub, home, token=TOKEN):
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy") and not name.startswith("HF_")}
    return kept | dict(HF_ENDPOINT=hub.endpoint, HF_HOME=str(home), HF_TOKEN=token, HF_HUB_DISABLE_XET="1")


def trainer(hub, home, *arguments, token=TOKEN, code=0):
    line = [TARGET / "sae-trainer", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(hub, home, token))
    assert done.returncode == code, done.stderr
    assert token not in done.stdout + done.stderr
    return done


def test_sae_lens_loads_what_was_pushed(place, tmp_path):
    with HubServer() as hub:
        told = trainer(hub, tmp_path / "home", "push", "me/saes", place / "l0", place / "topk", "--create", "--private", "--json")
        told = json.loads(told.stdout)
        assert told["ids"] == ["l0", "topk"] and told["bytes_sent"] > 0 and hub.private
        assert set(hub.files) == {
            f"{name}/{file}" for name in ["l0", "topk"] for file in ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"]
        } | {"README.md"}
        for name, kind in [("l0", "standard"), ("topk", "topk")]:
            line = [sys.executable, "-c", LOAD, "me/saes", name, str(tmp_path / f"{name}.pt")]
            done = subprocess.run(line, capture_output=True, text=True, env=environment(hub, tmp_path / "python"))
            assert done.returncode == 0, done.stderr
            assert done.stdout.split()[-3:] == [kind, "64", "blocks.1.hook_resid_pre"]
            import torch
            from sae_lens import SAE

            own = SAE.load_from_disk(place / name / "sae").state_dict()
            loaded = torch.load(tmp_path / f"{name}.pt")
            assert own.keys() == loaded.keys() and all((own[key] == loaded[key]).all() for key in own)

        # The same again sends and commits nothing.
        again = json.loads(trainer(hub, tmp_path / "home", "push", "me/saes", place / "l0", place / "topk", "--json").stdout)
        assert again["commit"] is None and again["bytes_sent"] == 0 and len(hub.commits) == 1


def test_the_card_is_one(place, tmp_path):
    with HubServer() as hub:
        trainer(hub, tmp_path / "home", "push", "me/saes", place / "l0", "--create")
        _, front, text = hub.files["README.md"].decode().split("---\n", 2)
        front = yaml.safe_load(front)
        assert front["library_name"] == "saelens" and "saelens" in front["tags"]
        summary = json.loads((place / "l0" / "summary.json").read_text())
        row = next(line for line in text.splitlines() if line.startswith("| l0 "))
        assert f" {summary['evaluation']['l0']:.1f} " in row and " blocks.1.hook_resid_pre " in row
        assert 'SAE.from_pretrained("me/saes", "l0")' in text


def test_what_is_on_the_hub_is_read_by_its_address(place, tmp_path):
    with HubServer() as hub:
        home = tmp_path / "home"
        trainer(hub, home, "push", "me/saes", place / "l0", "--id", "layers/one", "--create", "--private")
        address = "hf://me/saes/layers/one"
        evaluate = ["--store", place / "store", "--rows", 1000, "--json"]
        there = json.loads(trainer(hub, home, "eval", address, *evaluate).stdout)
        here = json.loads(trainer(hub, home, "eval", place / "l0", *evaluate).stdout)
        assert there[0].pop("sae") == address and here[0].pop("sae") == str(place / "l0")
        assert there == here and "decoder_norm_mean" in here[0]
        # Python's cache is the same: huggingface_hub finds it there without asking.
        check = "import sys; from huggingface_hub import hf_hub_download as get; print(get('me/saes', 'layers/one/cfg.json', local_files_only=True))"
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=environment(hub, home))
        assert done.returncode == 0, done.stderr
        trainer(hub, home, "--store", place / "store", "--init-from", address, "--batch", 128, "--steps", 3, "--out", tmp_path / "on")
        # Without a token there is nothing for a stranger, and with the cache nothing needs to be asked.
        refused = trainer(hub, tmp_path / "other", "eval", address, *evaluate, token="hf_other", code=1)
        assert address in refused.stderr and "HF_TOKEN" in refused.stderr
    trainer(hub, home, "eval", address, *evaluate)


def test_huggingface_hub_goes_on_with_the_repository(place, tmp_path):
    """What was committed is there for Python's client: it adds to it, and the next push leaves that alone."""
    with HubServer() as hub:
        trainer(hub, tmp_path / "home", "push", "me/saes", place / "l0", "--create")
        upload = "from huggingface_hub import HfApi; HfApi().upload_file(path_or_fileobj=b'# mine', path_in_repo='README.md', repo_id='me/saes')"
        done = subprocess.run([sys.executable, "-c", upload], capture_output=True, text=True, env=environment(hub, tmp_path / "py"))
        assert done.returncode == 0, done.stderr
        told = trainer(hub, tmp_path / "home", "push", "me/saes", place / "topk")
        assert "stays" in told.stderr and hub.files["README.md"] == b"# mine" and "topk/cfg.json" in hub.files
