"""``vitquant export``: ONNX graphs, each compared with what it was made from."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from vitquant.cli.common import add_output_options, console, positive

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
    parser.add_argument(
        "--target",
        choices=("onnxruntime", "openvino", "tensorrt"),
        default="onnxruntime",
        help="whose needs the quantize/dequantize form meets (onnxruntime)",
    )
    parser.add_argument("--images", metavar="IMAGES", help="pictures to compare on (default: made-up ones)")
    parser.add_argument("--count", type=positive, metavar="N", help="how many of them (100; 16 for --onnx-qdq)")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export, compare, and say how it came out."""
    from vitquant.export.job import export_onnx_integer, export_onnx_qdq
    from vitquant.integer.storage import load_program
    from vitquant.models.artifact import load

    path = args.onnx_integer or args.onnx_qdq
    if args.onnx_integer:
        program = load_program(args.source)
        found = export_onnx_integer(program, path, images=args.images, count=args.count or 100)
    else:
        model = load(args.source)
        found = export_onnx_qdq(model, path, target=args.target, images=args.images, count=args.count or 16)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
        return
    out = console()
    out.print(f"{path}: {found.bytes / 1e6:.1f} MB", highlight=False)
    out.print(f"{found}. Written to verify.json beside it.", highlight=False)
    if found.notes:
        out.print(f"{len(found.notes)} points depart from the simulation, such as {found.notes[0]}", highlight=False)
