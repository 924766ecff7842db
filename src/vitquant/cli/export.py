"""``vitquant export``: ONNX graphs, each compared with the exported model or program."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from vitquant.cli.common import DIR, add_command, add_output_options, add_program_output_option, positive, print_json
from vitquant.cli.streams import say
from vitquant.errors import ConfigError

TARGETS = ("onnxruntime", "openvino", "tensorrt")

EPILOG = """examples:
  vitquant export out --onnx-integer out/model_int.onnx --images photos2/
  vitquant export out --onnx-qdq out/model_qdq.onnx --target openvino \\
      --images photos2/"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "export",
        "write an ONNX graph and compare its outputs with the exported model",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="DIR", help=DIR)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--onnx-integer", metavar="FILE", help="integer operators only; bit-exact")
    form.add_argument("--onnx-qdq", metavar="FILE", help="quantize/dequantize (QDQ) form, fused by the runtime")
    parser.add_argument("--images", metavar="IMAGES", help="images used for verification (default: synthetic)")
    parser.add_argument(
        "--count", type=positive, metavar="N", help="images to use (default: 100, or 16 for --onnx-qdq)"
    )
    add_program_output_option(parser)
    qdq = parser.add_argument_group("options of --onnx-qdq")
    qdq.add_argument("--target", choices=TARGETS, help="target runtime (default: onnxruntime)")
    qdq.add_argument("--opset", type=int, metavar="N", help="ONNX opset, 18 to 21 (default: 21, or 20 for tensorrt)")
    about = "store 4-bit weights as int8, which integer kernels support, instead of INT4, which is half as large"
    qdq.add_argument("--no-packed", dest="packed", action="store_false", default=None, help=about)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export, compare, and print the result."""
    options = qdq_options(args)
    from vitquant.artifact.storage import load
    from vitquant.program.storage import load_program
    from vitquant.workflows.export import export_onnx_integer, export_onnx_qdq

    if args.onnx_integer is not None:
        path, program = args.onnx_integer, load_program(args.source)
        found = export_onnx_integer(program, path, images=args.images, count=args.count or 100, outputs=args.output)
    else:
        path, model = args.onnx_qdq, load(args.source)
        count = args.count or 16
        found = export_onnx_qdq(model, path, images=args.images, count=count, outputs=args.output, **options)
    if args.json:
        print_json(asdict(found))
        return
    say(f"{path}: {found.bytes / 1e6:.1f} MB")
    say(f"{found}. See verify.json in the same folder.")
    if found.caveat:
        say(f"Note: {found.caveat}.")
    if found.notes:
        say(f"{len(found.notes)} points differ from the simulation, such as {found.notes[0]}")


def qdq_options(args: argparse.Namespace) -> dict[str, Any]:
    """The given options of the quantize/dequantize form, by the argument names of ``export_onnx_qdq``.

    Raises:
        ConfigError: options were given for the integer form.
    """
    flags = {"target": "--target", "opset": "--opset", "packed": "--no-packed"}
    given = {name: getattr(args, name) for name in flags if getattr(args, name) is not None}
    if given and args.onnx_integer is not None:
        raise ConfigError(
            "not available for the integer form, which is the same for all runtimes",
            where=" ".join(flags[name] for name in given),
            fix="omit it, or use --onnx-qdq",
        )
    return given
