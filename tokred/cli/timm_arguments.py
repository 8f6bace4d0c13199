"""The arguments of timm's scripts that ``tokred validate`` and ``tokred benchmark`` take: command lines carry over.

Their names and defaults are timm's. Those that are not taken are refused by name, with what to write instead.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from tokred.assets import load_model
from tokred.bench.machine import require_device
from tokred.cli.console import output
from tokred.cli.knobs import build_method
from tokred.errors import ConfigError
from tokred.methods import Method

DTYPES = ("float32", "float16", "bfloat16")
_COMPILE = "--torchcompile"
# arguments of timm's that are not taken: what to write instead
_INSTEAD = {
    "--model-list": "one model a run; several are a sweep: tokred sweep --model A --model B",
    "--num-gpu": "tokred sweep --engine ray, which uses every GPU",
    "--torchscript": _COMPILE, "--aot-autograd": _COMPILE, "--fuser": _COMPILE,
    "--fast-norm": _COMPILE, "--amp-impl": "--amp, which is torch's",
    "--use-ema": "a --checkpoint that holds the averaged weights",
    "--real-labels": "--class-map", "--valid-labels": "--class-map",
    "--tf-preprocessing": "--interpolation and --crop-pct",
    "--test-pool": "--img-size", "--reparam": _COMPILE,
    "--retry": "a smaller --batch-size", "--num-samples": "tokred sweep --images",
    "--dataset-download": "--dataset hfds/OWNER/NAME, which downloads",
    "--input-key": "columns called image and label", "--target-key": "columns called image and label",
    "--detail": "tokred explain", "--opt": "--bench infer", "--grad-checkpointing": "--bench infer",
    "--drop": "--bench infer", "--drop-path": "--bench infer", "--smoothing": "--bench infer",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are sentences of tokred.

    Args:
        command: which command of tokred it is for.
        summary: what the command does.
    """

    def __init__(self, command: str, summary: str) -> None:
        super().__init__(prog=f"tokred {command}", description=summary, allow_abbrev=False)
        add = self.add_argument
        add("--model", "-m", default="vit_base_patch16_224", help="shipped model, timm name or folder")
        add("--pretrained", action="store_true", help="fetch the weights of a timm model from the hub")
        add("--checkpoint", default="", metavar="PATH", help="weights for a timm model")
        add("--num-classes", type=int)
        add("--gp", metavar="POOL", help="global pool of a timm model")
        add("--model-kwargs", nargs="*", default=[], metavar="K=V", help="further arguments of a timm model")
        add("--batch-size", "-b", type=_positive, default=256)
        add("--img-size", type=_positive)
        add("--in-chans", type=_positive)
        add("--input-size", type=_positive, nargs=3, metavar=("C", "H", "W"), help="instead of --img-size")
        add("--use-train-size", action="store_true", help="the size that the model was trained with, not tested with")
        add("--device", help="left out: cuda where there is one, cpu elsewhere")
        add("--amp", action="store_true", help="mixed precision by torch's autocast")
        add("--amp-dtype", default="float16", choices=DTYPES[1:])
        add("--channels-last", action="store_true")
        add(_COMPILE, nargs="?", const="inductor", metavar="BACKEND")
        add("--results-file", type=Path)
        add("--results-format", default="csv", choices=("csv", "json"))
        add("--method", help="what to patch in; left out: nothing")
        add(
            "--knob",
            action="append",
            default=[],
            help="name=value of the method; or --r 8, --keep 0.7 ...",
        )

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line.

        Raises:
            ConfigError: an argument that there is not, or that is not taken, or a wrong value.
        """
        known, rest = self.parse_known_args(arguments)
        for word in rest:
            name = word.partition("=")[0]
            if name in _INSTEAD:
                self.error(f"{name} of timm's script is not taken. Use {_INSTEAD[name]}.")
            options = [option for option in self._option_string_actions if option.startswith("--")]
            near = get_close_matches(name, options, n=1, cutoff=0)[0]
            self.error(f"no argument {word!r}; did you mean {near}?")
        if known.knob and known.method is None:
            self.error("knobs belong to a method; name it with --method.")
        return known

    def error(self, message: str) -> NoReturn:
        """Complain as everything in tokred does."""
        raise ConfigError(f"{self.prog.split()[-1]}: {message}")


def prepare(arguments: argparse.Namespace) -> tuple[nn.Module, dict[str, Any], Method | None, torch.device]:
    """What the arguments ask for: the model, how pictures are fed to it, the method, the device.

    Raises:
        ConfigError: no such device, or arguments that the model does not take.
        DataError: no such model.
    """
    from timm.data.config import resolve_data_config

    device = require_device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    method = build_method(arguments.method, arguments.knob) if arguments.method else None
    channels = arguments.input_size[0] if arguments.input_size else arguments.in_chans
    given = {
        "num_classes": arguments.num_classes,
        "in_chans": channels,
        "global_pool": arguments.gp,
        "checkpoint_path": arguments.checkpoint or None,
        **_keywords(arguments.model_kwargs),
    }
    given = {name: value for name, value in given.items() if value is not None}
    model = load_model(arguments.model, pretrained=arguments.pretrained, **given)
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    data = resolve_data_config(
        {**vars(arguments), "in_chans": channels or config["input_size"][0]},
        pretrained_cfg=dict(config),
        use_test_size=not arguments.use_train_size,
    )
    size = data["input_size"][1:]
    if tuple(size) != tuple(config["input_size"][1:]) and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=tuple(size))  # type: ignore[operator]
    if arguments.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, data, method, device


@contextmanager
def precision(arguments: argparse.Namespace, device: torch.device) -> Iterator[None]:
    """Mixed precision, if it is asked for."""
    dtype = getattr(torch, arguments.amp_dtype)
    with torch.autocast(device.type, dtype=dtype) if arguments.amp else nullcontext():
        yield


def compiled(arguments: argparse.Namespace, model: nn.Module) -> Any:
    """The model, compiled if it is asked for."""
    return torch.compile(model, backend=arguments.torchcompile) if arguments.torchcompile else model


def method_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The method as it was written, for the results; nothing, if there is none."""
    return {"method": " ".join([arguments.method, *arguments.knob])} if arguments.method else {}


def millions(model: nn.Module) -> float:
    """Parameters, as timm's scripts count them."""
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


def give(arguments: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Print results as timm's scripts do, and write the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    output().print(f"--result\n{json.dumps(results, indent=4)}", highlight=False, markup=False, soft_wrap=True)
    if arguments.results_file is None:
        return
    try:
        with open(arguments.results_file, "w", newline="", encoding="utf-8") as file:
            if arguments.results_format == "json":
                json.dump(results, file, indent=4)
            else:
                writer = csv.DictWriter(file, results)
                writer.writeheader()
                writer.writerow(results)
    except OSError as error:
        raise ConfigError(f"{arguments.results_file}: cannot be written ({error.strerror}).") from error


def _keywords(words: Sequence[str]) -> dict[str, Any]:
    import yaml

    pairs = [word.partition("=") for word in words]
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
