"""``vitquant tune``: the settings of all points within a budget, as a configuration file."""

from __future__ import annotations

import argparse

from vitquant.cli.common import (
    add_checkpoint_options,
    add_command,
    add_config_option,
    add_output_options,
    number,
    print_json,
    print_parts,
    seed,
)
from vitquant.cli.sensitivity import (
    add_candidate_options,
    add_cost_options,
    add_model_options,
    given_candidates,
    model_and_images,
    points_of,
)
from vitquant.cli.streams import say
from vitquant.errors import ConfigError

EPILOG = """examples:
  vitquant tune --model vit_small_patch14_dinov2 --img-size 224 \\
      --weights dinov2.safetensors --calib photos/ --budget W5,A8
  vitquant tune --model fashion_vit --budget best    # observers and granularities at the same bits
  vitquant tune --model fashion_vit --budget 34dB    # the smallest model that has it"""
BUDGET = (
    "best (same bits), W4.5,A8 (mean bits of weights and of activations), 12MB, 300Gbop (bit operations per image), "
    "or 27dB (smallest model that has it); default: best"
)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "tune",
        "choose the settings of all points within a budget, and write them as a configuration",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument("--out", default="tuned", metavar="DIR", help="output folder (default: tuned)")
    parser.add_argument("--budget", default="best", metavar="BUDGET", help=BUDGET)
    about = "begin no further round after M minutes (default: 10)"
    parser.add_argument("--max-minutes", default="10", metavar="M", help=about)
    parser.add_argument(
        "--resume", action="store_true", help="use what an earlier search in the output folder measured"
    )
    about = "seed of the random vectors of the estimates (default: 0)"
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help=about)
    add_config_option(parser)
    add_candidate_options(parser, "widths and observers, or with `best` all that keep the bits")
    add_cost_options(parser)
    add_checkpoint_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Search, write the files after each round, print what was tried."""
    from vitquant.arguments import require_path
    from vitquant.report.tuning import RECORD, TUNED, tune_parts
    from vitquant.tuning.budget import Budget
    from vitquant.tuning.choose import scipy_parts
    from vitquant.workflows.job import require_results_folder
    from vitquant.workflows.tune import BITS, RANGES, tune

    budget, minutes = Budget.parse(args.budget), number(args.max_minutes, "--max-minutes")
    if not minutes > 0:
        raise ConfigError("not a time", where="--max-minutes", got=args.max_minutes, expected="minutes above 0")
    default = RANGES if budget.keeps_bits else BITS
    candidates = given_candidates(args) or default.replaced(points=points_of(args))
    out = require_path(args.out, "--out")
    require_results_folder(out)
    scipy_parts()
    model, pixels = model_and_images(args)
    found = tune(
        model,
        args.config,
        pixels,
        budget=budget,
        out=out,
        candidates=candidates,
        max_minutes=minutes,
        draws=args.draws,
        seed=args.seed,
        batch_size=args.batch_size,
        device=args.device,
        output=args.output,
        simulation_only=args.simulation_only,
        resume=args.resume,
        cache=args.cache,
    )
    if args.json:
        print_json(found.to_dict())
        return
    print_parts(tune_parts(found))
    if not found.trials[found.best].fits:
        say("No configuration that was measured keeps the budget; the best one was written.")
    say(f"Results in {out}/: {TUNED} (the configuration, with a reason per change), {RECORD} (what was tried).")
    say(f"Next: vitquant quantize --config {out}/{TUNED} ..., on images that were not used here.")
