"""The layout of published checkpoints: every rule, and what is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tokred.errors import ConfigError, DataError
from tokred.tokenizer_assets import load_tokenizer
from tokred.tokenizers.flextok.layout import to_published
from tokred.tokenizers.flextok.published import config_from, load_published

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizers"
FOLDER = GOLDEN / "tiny_checkpoint"
E, D = "encoder.module_dict.", "decoder.module_dict."
FILES = ("config.json", "config_sorted_keys.json")


@pytest.fixture(scope="module")
def vector():
    return load_file(GOLDEN / "e2e_small.safetensors")


@pytest.fixture
def tree():
    return json.loads((FOLDER / "config.json").read_text())


@pytest.fixture
def tensors():
    return load_file(FOLDER / "model.safetensors")


def write(folder, tensors, tree):
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(tree))
    return folder


def reproduces(model, vector):
    assert torch.equal(model.encode(vector["latents"]), vector["tokens"])
    drawn = model.decode(vector["tokens"][:, :4], steps=4, guidance=7.5, projected=True, noise=vector["noise"])
    torch.testing.assert_close(drawn, vector["decode/apg7.5_k4_n4"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_loads_whatever_the_order_of_its_keys(name, tensors, vector, tmp_path):
    reproduces(load_tokenizer(write(tmp_path, tensors, json.loads((FOLDER / name).read_text()))), vector)


def test_a_configuration_in_the_header_is_read_as_literals(vector):
    reproduces(load_tokenizer(FOLDER / "model_with_header_config.safetensors"), vector)


def test_a_header_that_is_no_literal_is_refused(tmp_path):
    with safe_open(FOLDER / "model_with_header_config.safetensors", "pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    header["encoder"] = "__import__('os').getcwd()"
    save_file(tensors, tmp_path / "model.safetensors", metadata=header)
    with pytest.raises(ConfigError, match="'encoder' in the header is no literal"):
        load_tokenizer(tmp_path / "model.safetensors")


@pytest.mark.parametrize("target", ["os.system", "flextok.model.Unheard", "evil.trunks.transformers.FlexTransformer"])
@pytest.mark.parametrize("place", ["encoder", "regularizer", "inner", "vae"])
def test_an_unknown_class_is_refused_and_never_imported(target, place, tree, tensors):
    node = tree[E.split(".")[0]]["module_dict"]["enc_transformer"] if place == "inner" else tree[place]
    node["_target_"] = target
    with pytest.raises(ConfigError, match=r"is not known, and nothing that a file names is imported"):
        config_from(tree, tensors)


def test_an_unknown_argument_is_refused(tree, tensors):
    tree["encoder"]["module_dict"]["enc_transformer"]["rotary"] = True
    with pytest.raises(ConfigError, match=r"enc_transformer.*rotary=True"):
        config_from(tree, tensors)


def test_a_readout_whose_divisor_is_not_stored_is_refused(tree, tensors):
    tree["encoder"]["module_dict"]["enc_to_latents"]["use_mup_readout"] = True
    with pytest.raises(ConfigError, match="use_mup_readout=True is not supported"):
        config_from(tree, tensors)


@pytest.mark.parametrize(
    ("node", "key", "value"),
    [
        ("enc_seq_packer", "mask_mode", "sometimes"),
        ("enc_posemb_module", "posemb_type", "rotary"),
        ("enc_posemb_module", "posemb_scaling", "stretch"),
        ("enc_register_module", "ordering_mode", "shuffled"),
        ("enc_patch_emb", "patch_sizes", [2, 4]),
        ("enc_posemb_module", "max_sizes", [4, 8]),
    ],
)
def test_an_unknown_value_is_refused_with_those_that_are_known(node, key, value, tree, tensors):
    tree["encoder"]["module_dict"][node][key] = value
    with pytest.raises(ConfigError, match=key):
        config_from(tree, tensors)


def test_sizes_come_from_the_tensors_not_from_the_configuration(tree, tensors, vector, tmp_path):
    for part in ("encoder", "decoder"):
        for node in tree[part]["module_dict"].values():
            for key in ("dim", "depth", "dim_in", "dim_out", "channels_in", "channels_out", "n_min", "n_max"):
                if key in node:
                    node[key] = 999
    reproduces(load_tokenizer(write(tmp_path, tensors, tree)), vector)


def test_what_is_missing_gets_the_known_defaults(tree, tensors):
    modules = tree["encoder"]["module_dict"]
    for name in ("enc_seq_packer", "enc_register_module", "enc_patch_emb"):
        del modules[name]
    del modules["enc_posemb_module"]["posemb_scaling"]
    del modules["enc_posemb_module"]["max_sizes"]
    del modules["enc_transformer"]["head_dim"]
    del tree["decoder"]["module_dict"]["dec_time_embedder"]["max_timestep"]
    del tree["regularizer"]["levels"]
    config = config_from(tree, tensors)
    assert config.encoder.mask == "prefix"
    assert config.encoder.head_width == 64
    assert config.decoder.mask == "full"
    assert (config.patch, config.grid, config.max_time) == (2, 4, 1.0)
    assert config.levels == (8, 8, 8, 5, 5, 5)


def test_levels_that_do_not_fit_the_encoder_are_refused(tree, tensors):
    tree["regularizer"]["levels"] = [8, 5]
    with pytest.raises(ConfigError, match="writes 6 numbers"):
        config_from(tree, tensors)


def test_a_model_without_null_condition_loads_and_has_no_guidance(tree, tensors):
    del tree["decoder"]["module_dict"]["dec_latent_dropout"]
    del tensors[f"{D}dec_latent_dropout.nullcond"]
    assert config_from(tree, tensors).null is None


def test_wrappers_in_names_and_parts_for_training_do_not_matter(tree, tensors, vector, tmp_path):
    block = f"{E}enc_transformer.blocks.0."
    for name in [name for name in tensors if name.startswith(block)]:
        tensors[name.replace(block, f"{block}_checkpoint_wrapped_module.")] = tensors.pop(name)
    tensors["repa_head.0.weight"] = torch.zeros(2)
    tensors["vae.logvar"] = torch.zeros(())
    reproduces(load_tokenizer(write(tmp_path, tensors, tree)), vector)


def test_missing_and_extra_tensors_are_named(tree, tensors, tmp_path):
    del tensors[f"{E}enc_transformer.blocks.1.mlp.fc3.weight"]
    tensors["surprise"] = torch.zeros(1)
    with pytest.raises(DataError, match=r"Missing: .*blocks\.1\.mlp\.fc3\.weight\. Not expected: surprise\."):
        load_tokenizer(write(tmp_path, tensors, tree))
    del tensors[f"{E}enc_register_module.registers"]
    with pytest.raises(DataError, match="registers is missing"):
        load_tokenizer(write(tmp_path, tensors, tree))


def test_a_tensor_of_another_shape_is_named(tree, tensors, tmp_path):
    tensors[f"{D}dec_nested_dropout.dropout_mask_token"] = torch.zeros(3)
    with pytest.raises(DataError, match=r"decoder\.mask_token is \(3,\) instead of \(64,\)"):
        load_tokenizer(write(tmp_path, tensors, tree))


def test_a_truncated_file_is_refused(tree, tensors, tmp_path):
    path = write(tmp_path, tensors, tree) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load_tokenizer(tmp_path)


def test_weights_without_a_configuration_are_refused(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="no configuration"):
        load_published(tmp_path)


def test_a_configuration_that_is_no_json_or_no_flextok_is_refused(tree, tensors, tmp_path):
    folder = write(tmp_path, tensors, tree)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        load_tokenizer(folder)
    (folder / "config.json").write_text('{"architecture": "gpt"}')
    with pytest.raises(ConfigError, match="'gpt' is not known"):
        load_tokenizer(folder)
    with pytest.raises(ConfigError, match="no configuration of a FlexTok"):
        config_from({}, tensors)


def vae_tensors():
    """The shapes of the published autoencoder, from the list; values do not matter here."""
    layout = json.loads((GOLDEN / "checkpoint_layout.json").read_text())["flextok_d12_d12_in1k"]["tensors"]
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def test_an_autoencoder_without_scaling_factor_is_refused_and_one_with_it_is_known_from_its_tensors(tree):
    tree["vae"] = {"_target_": "flextok.some.VAE", "force_vae_encode": False}
    tree["encoder"]["module_dict"]["enc_transformer"].pop("head_dim")
    tree["decoder"]["module_dict"]["dec_transformer"].pop("head_dim")
    for part, name in (("encoder", "enc_posemb_module"), ("decoder", "dec_patches_posemb_module")):
        tree[part]["module_dict"][name]["max_sizes"] = [16, 16]
    tensors = vae_tensors()
    with pytest.raises(ConfigError, match="scaling factor"):
        config_from(tree, tensors)
    config = config_from(tree, tensors, scaling_factor=0.5, sample_posterior=False)
    assert config.autoencoder.downsampling == 8
    assert config.autoencoder.scaling_factor == 0.5
    assert config.autoencoder.args["block_out_channels"] == [128, 256, 512, 512]
    assert config.autoencoder.args["latent_channels"] == 16
    assert config.autoencoder.sample_posterior is False
    inner = copy.deepcopy(tree)
    inner["vae"]["config"] = {"scaling_factor": 0.7}
    assert config_from(inner, tensors).autoencoder.scaling_factor == 0.7
    assert config_from(inner, tensors).autoencoder.sample_posterior is True


@pytest.mark.parametrize("name", ["flextok_d12_d12_in1k", "flextok_d18_d18_in1k", "flextok_d18_d28_in1k"])
def test_our_modules_have_exactly_the_tensors_of_the_published_sizes(name, tree):
    from tokred.tokenizers.flextok.decoder import Decoder
    from tokred.tokenizers.flextok.encoder import Encoder

    wanted = json.loads((GOLDEN / "checkpoint_layout.json").read_text())[name]["tensors"]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in wanted.items() if not key.startswith("vae")}
    for part, module in (("encoder", "enc"), ("decoder", "dec")):
        nodes = tree[part]["module_dict"]
        nodes[f"{module}_transformer"]["head_dim"] = 64
        nodes["enc_posemb_module" if part == "encoder" else "dec_patches_posemb_module"]["max_sizes"] = [16, 16]
    config = config_from(tree, tensors)
    assert (config.registers, config.side, config.channels, config.groups) == (256, 32, 16, 2)
    with torch.device("meta"):
        parts = {"encoder": Encoder(config), "decoder": Decoder(config)}
    ours = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    assert {key: list(value.shape) for key, value in to_published(ours).items()} == {
        key: shape for key, shape in wanted.items() if not key.startswith("vae")
    }


def test_a_hub_id_shows_the_terms_before_anything_is_downloaded():
    with pytest.raises(DataError, match="research purposes only"):
        load_tokenizer("someone/flextok")
