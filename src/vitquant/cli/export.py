"""``vitquant export``: ONNX graphs, each compared with what it was made from."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from vitquant.cli.common import add_output_options, positive, print_json
from vitquant.cli.streams import say
from vitquant.errors import ConfigError

TARGETS = ("onnxruntime", "openvino", "tensorrt")

EPILOG = """examples:
  vitquant export out --onnx-integer out/model_int.onnx --images photos2/
  vitquant export out --onnx-qdq out/model_qdq.onnx --target openvino --images photos2/"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export",
        help="write an ONNX graph and compare it with what it was made from",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="DIR", help="what `vitquant quantize` wrote: model and integer program")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--onnx-integer", metavar="FILE", help="integer operators only, equal to the program bit for bit")
    form.add_argument("--onnx-qdq", metavar="FILE", help="quantize/dequantize form, which runtimes optimise themselves")
    parser.add_argument("--images", metavar="IMAGES", help="pictures to compare on (default: made-up ones)")
    parser.add_argument("--count", type=positive, metavar="N", help="how many of them (100; 16 for --onnx-qdq)")
    qdq = parser.add_argument_group("options of --onnx-qdq")
    qdq.add_argument("--target", choices=TARGETS, help="whose needs the graph meets (onnxruntime)")
    qdq.add_argument("--opset", type=int, metavar="N", help="ONNX operator set, 18 to 21 (21; 20 for tensorrt)")
    told = "store 4-bit weights as int8, which runs on integer kernels, and not as INT4, of half the size"
    qdq.add_argument("--no-packed", dest="packed", action="store_false", default=None, help=told)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export, compare, and say how it came out."""
    options = qdq_options(args)
    from vitquant.artifact.storage import load
    from vitquant.program.storage import load_program
    from vitquant.workflows.export import export_onnx_integer, export_onnx_qdq

    if args.onnx_integer is not None:
        path, program = args.onnx_integer, load_program(args.source)
        found = export_onnx_integer(program, path, images=args.images, count=args.count or 100)
    else:
        path, model = args.onnx_qdq, load(args.source)
        found = export_onnx_qdq(model, path, images=args.images, count=args.count or 16, **options)
    if args.json:
        print_json(asdict(found))
        return
    say(f"{path}: {found.bytes / 1e6:.1f} MB")
    say(f"{found}. Written to verify.json beside it.")
    if found.caveat:
        say(f"Note: {found.caveat}.")
    if found.notes:
        say(f"{len(found.notes)} points depart from the simulation, such as {found.notes[0]}")


def qdq_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the quantize/dequantize form that were given, as ``export_onnx_qdq`` calls them.

    Raises:
        ConfigError: there are some, but the integer form was asked for.
    """
    flags = {"target": "--target", "opset": "--opset", "packed": "--no-packed"}
    given = {name: getattr(args, name) for name in flags if getattr(args, name) is not None}
    if given and args.onnx_integer is not None:
        raise ConfigError(
            "the integer form is written in one way, for all runtimes",
            where=" ".join(flags[name] for name in given),
            fix="leave it out, or ask for --onnx-qdq",
        )
    return given
