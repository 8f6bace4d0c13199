"""Published FlexTok checkpoints: what their configuration says, without ever running what it names."""

import ast
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokred.errors import ConfigError, DataError
from tokred.model_folder import read_json, require_shapes
from tokred.tokenizers.flextok.config import AutoencoderSpec, FlexTokConfig, Trunk
from tokred.tokenizers.flextok.layout import clean, to_ours
from tokred.tokenizers.flextok.model import FlexTok

# Classes that configurations name, and the arguments that mean something; a value here is the only one that is known.
_ANY = object()
_CLASSES: dict[str, dict[str, Any]] = {
    "FlexTok": {"vae": _ANY, "encoder": _ANY, "decoder": _ANY, "regularizer": _ANY, "pipeline": _ANY,
                "flow_matching_noise_module": _ANY},
    "SequentialModuleDictWrapper": {"module_dict": _ANY},
    "PerSampleOp": {"per_sample_op": _ANY},
    "channels_first_to_last": {},
    "channels_last_to_first": {},
    "PatchEmbedder": {"channels_in": _ANY, "dim": _ANY, "patch_sizes": _ANY, "flatten_patches": _ANY},
    "PositionalEmbeddingAdder": {"dim": _ANY, "max_sizes": _ANY, "posemb_type": _ANY, "posemb_scaling": _ANY},
    "Registers1D": {"dim": _ANY, "n_min": _ANY, "n_max": _ANY, "size_sampling_mode": _ANY, "ordering_mode": _ANY},
    "BlockWiseSequencePacker": {"mask_mode": _ANY, "pad_to_multiple": _ANY, "per_subseq_embs": _ANY,
                                "compile_block_mask": _ANY},
    "FlexTransformer": {"dim": _ANY, "depth": _ANY, "head_dim": _ANY, "adaLN_expansion": _ANY,
                        "use_act_checkpoint": _ANY, "intermediate_layers": _ANY, "drop_path_rate": _ANY},
    "SequenceUnpacker": {},
    "LinearHead": {"dim": _ANY, "dim_out": _ANY, "use_mup_readout": False, "weight_init_style": _ANY},
    "LinearLayer": {"dim_in": _ANY, "dim": _ANY},
    "MaskedNestedDropout": {"dim": _ANY, "size_sampling_mode": _ANY},
    "LearnedNullCond": {"dim": _ANY, "dropout_prob": _ANY},
    "ZeroNullCond": {"dim": _ANY, "dropout_prob": _ANY},
    "TimestepEmbedder": {"dim": _ANY, "frequency_embedding_size": _ANY, "max_timestep": _ANY},
    "ToPatchesLinearHead": {"dim": _ANY, "channels_out": _ANY, "patch_sizes": _ANY, "use_mup_readout": False,
                            "weight_init_style": _ANY},
    "FSQ": {"levels": _ANY, "drop_quant_p": _ANY, "corrupt_tokens_p": _ANY, "packed_call": _ANY},
    "MinRFNoiseModule": {"ln": _ANY, "stratisfied": _ANY, "mode_scale": _ANY},
    "MinRFPipeline": {"out_channels": _ANY},
}  # fmt: skip
_PLUMBING = re.compile(r".*_keys?|_target_|_partial_")  # names of entries of a dictionary that we do not have
_MASKS = {"causal_last": "prefix", "causal": "causal", "full": "full"}
_KINDS = {"sincos": "sincos", "learnable_sum": "learned_sum", "learnable_prod": "learned_product"}
_ORDERINGS = {"nested": "nested", "avgpool": "pooled"}
_ENCODER, _DECODER = "encoder.module_dict.", "decoder.module_dict."
_LEVELS = (8, 8, 8, 5, 5, 5)


def is_published(config: Any) -> bool:
    """Whether a ``config.json`` is of the published kind: a tree of class names."""
    return isinstance(config, Mapping) and "architecture" not in config and {"encoder", "decoder"} <= config.keys()


def load_published(
    folder: str | os.PathLike[str], *, scaling_factor: float | None = None, sample_posterior: bool | None = None
) -> FlexTok:
    """Return the model of a folder with ``model.safetensors`` and a configuration beside it or in its header.

    Args:
        folder: or the file of the weights itself.
        scaling_factor: of the autoencoder's latents, where the configuration does not say it.
        sample_posterior: instead of what the configuration says; ``False`` makes the ids of a picture always the same.

    Raises:
        DataError: files that cannot be read; tensors that are missing, not expected or of another shape, by name.
        ConfigError: a class or a value that is not known. Nothing that a file names is ever imported.
    """
    path = Path(folder)
    path = path / "model.safetensors" if path.is_dir() else path
    tensors, header = _read(path)
    beside = path.parent / "config.json"
    if "encoder" in header:
        tree = _parse_header(header, path)
    elif beside.is_file():
        tree = read_json(beside)
    else:
        raise DataError(f"{path}: no configuration, neither in its header nor in a config.json beside it.")
    config = config_from(tree, tensors, scaling_factor=scaling_factor, sample_posterior=sample_posterior)
    model = FlexTok(config)
    own = model.state_dict()
    ours = to_ours(tensors, own)
    require_shapes({name: (ours[name], own[name]) for name in own}, path)
    model.load_state_dict(ours)
    return model.eval()


def config_from(
    tree: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    scaling_factor: float | None = None,
    sample_posterior: bool | None = None,
) -> FlexTokConfig:
    """Return our configuration: sizes from the tensors, the rest from the tree of class names.

    Raises:
        ConfigError: an unknown class, argument or value; or no scaling factor.
    """
    if not isinstance(tree, Mapping) or not {"encoder", "decoder"} <= tree.keys():
        raise ConfigError("This is no configuration of a FlexTok: it has no encoder and decoder.")
    for name, node in tree.items():
        if name != "vae":
            _check(node, name)
    nodes = {**_nodes(tree["encoder"], "encoder"), **_nodes(tree["decoder"], "decoder")}
    patch_proj = _tensor(tensors, f"{_ENCODER}enc_patch_emb.patch_proj.weight")
    patch = _pair(nodes.get("enc_patch_emb", {}).get("patch_sizes", 2), "patch_sizes")
    registers = _tensor(tensors, f"{_ENCODER}enc_register_module.registers")
    encoder = _trunk(nodes, tensors, "enc_transformer", "enc_posemb_module", "enc_seq_packer", "causal_last")
    decoder = _trunk(nodes, tensors, "dec_transformer", "dec_patches_posemb_module", "dec_seq_packer", "full")
    grid = _grid(nodes, tensors, _ENCODER, "enc_posemb_module")
    if grid != _grid(nodes, tensors, _DECODER, "dec_patches_posemb_module"):
        raise ConfigError("The position tables of encoder and decoder are for grids of different sizes.")
    modulation = _tensor(tensors, f"{_DECODER}dec_transformer.blocks.0.adaLN_modulation.1.weight")
    levels = tuple(tree.get("regularizer", {}).get("levels", _LEVELS))
    numbers = len(_tensor(tensors, f"{_ENCODER}enc_to_latents.proj.weight"))
    if len(levels) != numbers:
        raise ConfigError(
            f"levels: {list(levels)} are {len(levels)}, but the encoder writes {numbers} numbers a token."
        )
    null = nodes.get("dec_latent_dropout", {})
    learned = f"{_DECODER}dec_latent_dropout.nullcond" in tensors
    zero = str(null.get("_target_", "")).endswith(".ZeroNullCond")
    return FlexTokConfig(
        channels=patch_proj.shape[1] // patch**2,
        side=grid * patch,
        any_size=True,
        patch=patch,
        registers=len(registers),
        levels=levels,
        encoder=encoder,
        decoder=decoder,
        ordering=_known(
            _ORDERINGS, nodes.get("enc_register_module", {}).get("ordering_mode", "nested"), "ordering_mode"
        ),
        register_positions=_kind(nodes.get("dec_registers_posemb_module", {}), "learnable_sum"),
        groups=modulation.shape[0] // (6 * modulation.shape[1]),  # pyright: ignore[reportArgumentType] - checked below
        modulated_head=f"{_DECODER}dec_to_patches.adaLN_modulation.1.weight" in tensors,
        null="learned" if learned else "zero" if zero else None,
        null_probability=float(null.get("dropout_prob", 0.1)),
        keep_law=nodes.get("dec_nested_dropout", {}).get("size_sampling_mode", "uniform"),
        max_time=float(nodes.get("dec_time_embedder", {}).get("max_timestep", 1.0)),
        time_features=_tensor(tensors, f"{_DECODER}dec_time_embedder.mlp.0.weight").shape[1],
        autoencoder=_autoencoder(tree.get("vae"), tensors, scaling_factor, sample_posterior),
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist. A model folder holds config.json and model.safetensors.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return clean(tensors), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}).") from error


def _parse_header(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Every entry is the text of a Python literal; the class name of the whole is not."""
    tree = {}
    for name, text in header.items():
        if name not in _CLASSES["FlexTok"]:
            continue
        try:
            tree[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ConfigError(f"{path}: {name!r} in the header is no literal ({error}).") from error
    return tree


def _check(node: Any, place: str) -> None:
    """Refuse what is not known, all the way down."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            _check(item, f"{place}.{index}")
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    known = None if target is None else _CLASSES.get(str(target).rsplit(".", 1)[-1])
    if target is not None and (known is None or not str(target).startswith("flextok.")):
        raise ConfigError(f"{place}: the class {target!r} is not known, and nothing that a file names is imported.")
    for name, value in node.items():
        if known is not None and not _PLUMBING.fullmatch(name):
            if name not in known:
                raise ConfigError(f"{place}: {target} with {name}={value!r} is not known.")
            if known[name] is not _ANY and value != known[name]:
                raise ConfigError(f"{place}: {name}={value!r} is not supported, only {known[name]!r}.")
        _check(value, f"{place}.{name}")


def _nodes(part: Any, place: str) -> dict[str, Mapping[str, Any]]:
    nodes = part.get("module_dict") if isinstance(part, Mapping) else None
    if not isinstance(nodes, Mapping):
        raise ConfigError(f"{place}: has no module_dict.")
    return dict(nodes)


def _trunk(
    nodes: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    name: str,
    positions: str,
    packer: str,
    mask: str,
) -> Trunk:
    prefix = f"{_ENCODER if name.startswith('enc') else _DECODER}{name}.blocks."
    width = _tensor(tensors, f"{prefix}0.attn.wq.weight").shape[1]
    depth = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix))
    hidden = _tensor(tensors, f"{prefix}0.mlp.fc2.weight").shape[1]
    table = nodes.get(positions, {})
    scaling = table.get("posemb_scaling", "absolute")
    if scaling not in ("absolute", "interpolate"):
        raise ConfigError(f"posemb_scaling: {scaling!r} is not known. Known: absolute, interpolate.")
    return Trunk(
        width=width,
        depth=depth,
        head_width=int(nodes.get(name, {}).get("head_dim", 64)),
        hidden=None if hidden == 8 * width // 3 else hidden,
        mask=_known(_MASKS, nodes.get(packer, {}).get("mask_mode", mask), "mask_mode"),
        positions=_kind(table, "sincos"),
        scaling=scaling,
    )


def _grid(nodes: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], prefix: str, name: str) -> int:
    table = _tensor(tensors, f"{prefix}{name}.posembs")
    sizes = nodes.get(name, {}).get("max_sizes", table.shape[-2:] if table.shape[0] == 1 else table.shape[-1:] * 2)
    return _pair(sizes, "max_sizes")


def _kind(node: Mapping[str, Any], default: str) -> Any:
    return _known(_KINDS, node.get("posemb_type", default), "posemb_type")


def _known(names: Mapping[str, str], value: Any, what: str) -> Any:
    if value not in names:
        raise ConfigError(f"{what}: {value!r} is not known. Known: {', '.join(names)}.")
    return names[value]


def _pair(sizes: Any, what: str) -> int:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    if len(set(sizes)) != 1:
        raise ConfigError(f"{what}: {sizes} must be the same in both directions.")
    return int(sizes[0])


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise DataError(f"The tensor {name} is missing.")
    return tensors[name]


def _autoencoder(
    node: Any, tensors: Mapping[str, Tensor], scaling_factor: float | None, sample_posterior: bool | None
) -> AutoencoderSpec | None:
    """Sizes come from the tensors; without tensors the pictures are the latents."""
    node = node if isinstance(node, Mapping) else {}
    target = str(node.get("_target_", "AutoencoderKL"))
    name = target.rsplit(".", 1)[-1]
    if "VAE" not in name and "AutoencoderKL" not in name:
        raise ConfigError(f"vae: the class {target!r} is not known, and nothing that a file names is imported.")
    own = {key.removeprefix("vae.vae."): value for key, value in tensors.items() if key.startswith("vae.vae.")}
    if not own:
        if name != "IdentityVAE":
            raise DataError(f"The configuration names the autoencoder {target}, but the file has no tensors vae.vae.*")
        return None
    factor = scaling_factor or node.get("scaling_factor") or _find(node, "scaling_factor")
    if not factor:
        raise ConfigError(
            "The scaling factor of the autoencoder's latents is neither in the configuration nor can it be told from "
            "the weights. Give it: load_tokenizer(..., scaling_factor=...)."
        )
    downs = 1 + max(int(key.split(".")[2]) for key in own if key.startswith("encoder.down_blocks."))
    widths = [len(_tensor(own, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")) for i in range(downs)]
    layers = 1 + max(int(key.split(".")[4]) for key in own if key.startswith("encoder.down_blocks.0.resnets."))
    sample = bool(node.get("sample_posterior", True)) if sample_posterior is None else sample_posterior
    return AutoencoderSpec(
        scaling_factor=float(factor),
        sample_posterior=sample,
        downsampling=2 ** (downs - 1),
        args={
            "in_channels": _tensor(own, "encoder.conv_in.weight").shape[1],
            "out_channels": len(_tensor(own, "decoder.conv_out.weight")),
            "latent_channels": _tensor(own, "decoder.conv_in.weight").shape[1],
            "block_out_channels": widths,
            "layers_per_block": layers,
            "down_block_types": ["DownEncoderBlock2D"] * downs,
            "up_block_types": ["UpDecoderBlock2D"] * downs,
            "use_quant_conv": "quant_conv.weight" in own,
            "use_post_quant_conv": "post_quant_conv.weight" in own,
        },
    )


def _find(node: Any, name: str) -> Any:
    """The first value of that name anywhere below."""
    if not isinstance(node, Mapping):
        return None
    for key, value in node.items():
        found = value if key == name else _find(value, name)
        if found:
            return found
    return None
