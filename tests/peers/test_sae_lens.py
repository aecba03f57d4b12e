"""The autoencoders that `sae` writes, opened by SAELens itself."""

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file


@pytest.mark.parametrize("pre_bias", [False, True])
def test_sae_lens_computes_what_the_sae_crate_computes(example, tmp_path, pre_bias):
    folder = tmp_path / "sae"
    flags = ["--pre-bias"] if pre_bias else []
    example("write_sae", folder, *flags)

    sae = SAE.load_from_disk(folder)
    expected = load_file(folder / "expected.safetensors")
    features = sae.encode(expected["x"])
    reconstruction = sae.decode(features)

    assert sae.cfg.apply_b_dec_to_input is pre_bias
    assert (expected["features"] > 0).float().mean() > 0.2  # the comparison is about something
    assert (expected["features"] == 0).float().mean() > 0.2
    torch.testing.assert_close(features, expected["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction, expected["reconstruction"], rtol=1e-5, atol=1e-5)
    # With and without the pre-bias must not be mistaken for one another.
    shift = expected["x"] - sae.b_dec if not pre_bias else expected["x"]
    other = torch.relu(shift @ sae.W_enc + sae.b_enc)
    assert (other - expected["features"]).abs().max() > 0.1


def test_sae_lens_reads_the_metadata(example, tmp_path):
    example("write_sae", tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.architecture() == "standard"
    assert sae.cfg.metadata.model_name == "gpt2-small"
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
    assert sae.cfg.metadata.context_size == 128
    assert sae.cfg.metadata.prepend_bos is True
    assert sae.cfg.metadata.dataset_path == "openwebtext"
    sparsity = load_file(tmp_path / "sae" / "sparsity.safetensors")["sparsity"]
    assert sparsity.shape == (50,)
