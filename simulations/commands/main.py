"""The command line. Only click is imported here; torch and Flower wait until a command needs them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from umbel.simulations.commands.bench import bench
from umbel.simulations.commands.compare import compare
from umbel.simulations.commands.data import data
from umbel.simulations.commands.explain import explain
from umbel.simulations.commands.federate import federate
from umbel.simulations.commands.new import new
from umbel.simulations.commands.runs import diff, ls
from umbel.simulations.commands.supervision import REFUSED, Stopper, ended, fail, guarded, say, supervised
from umbel.simulations.commands.tune import tune
from umbel.simulations.commands.use import evaluate, export, predict
from umbel.simulations.commands.watch import watch

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 96}
KINDS = ("strategies", "models", "operators", "data", "encoders", "partitions", "experiments", "keys")


@click.group(context_settings=_SETTINGS)
@click.version_option(package_name="umbel")
def main() -> None:
    """Federated learning for image models that mix convolution and attention.

    An experiment is a YAML file: data and how they are cut into clients, a model, a strategy, a course of
    rounds. Some come with umbel (`umbel list experiments`); any of its keys can be changed on the command
    line.

    \b
    Start here:
      umbel run digits                                    a minute on a laptop
      umbel run digits strategy.name=scaffold run.rounds=5
      umbel data show digits                              who has which classes
      umbel compare digits --strategies fedavg,scaffold --seeds 3
      umbel tune digits -s fedavg,scaffold client.lr=log:0.001..0.3
      umbel ls                                            which runs there are
      umbel watch                                         the same on a page, as they grow
      umbel explain RUN                                   what its models look at
      umbel bench digits                                  what would make it faster
      umbel predict RUN FOLDER                            what pictures show, by its model
      umbel list strategies                               all of them, with their options

    \b
    Exit statuses, the same on every engine:
      0 done    1 failed    2 refused before anything started
      3 incomplete: it could not go on, and is saved; or it lost clients for good
      130 stopped on request
    """  # noqa: D301 - click reads the backspace as "keep these lines"


@main.command(short_help="Run an experiment.")
@click.argument("experiment")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the run's folder.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, even at a terminal.")
@guarded
def run(experiment: str, overrides: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Run EXPERIMENT: the name of one that comes with umbel, or the path of a YAML file.

    \b
    Examples:
      umbel run digits
      umbel run digits strategy.name=fedprox strategy.mu=0.1 run.seed=1
      umbel run digits data.partition=dirichlet data.alpha=0.1 data.num_clients=50
      umbel run my.yaml engine.name=processes engine.workers=2 run.results=/data/runs
      folder=$(umbel run digits | tail -n 1) && umbel report "$folder"

    \b
    Keys stand in sections (`umbel list keys` explains every one):
      data.        name, num_clients, partition, alpha, client_test, max_train, ...
      model.       name, norm, sizes
      client.      epochs, batch_size, lr, optimizer, device, precision, ...
      strategy.    name, and the strategy's own options beside it
      run.         rounds, seed, participation, clients_per_round, results, name, ...
      evaluate.    every, server, clients          checkpoint.  every
      engine.      name (inline|ray|grpc), workers, gpus_per_worker, nodes, ...

    A typo, a wrong type or an impossible combination is refused before anything starts. At a terminal the
    progress is shown live on standard error; without one, each round is a JSON line on standard output. The
    last line of standard output is the run's folder, with summary.json, metrics.parquet, model.safetensors
    and config.yaml. Ctrl-C or SIGTERM writes a checkpoint and says how to go on.
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    with Stopper() as stopper:
        from rich.console import Console

        from umbel.conf.load import load
        from umbel.data import check
        from umbel.simulations import api
        from umbel.simulations.commands.display import watcher

        composed = load(experiment, overrides)
        check(composed.data)
        console = Console(stderr=True)
        shown = watcher(console, quiet, as_json)
        with supervised(shown, stopper):
            result = api.run(composed, listener=shown)
        if console.is_terminal and not quiet:
            say(f"Next: umbel report {result.path}")
    click.echo(str(result.path))
    ended(result)


@main.command(short_help="Go on with a run that was stopped.")
@click.argument("folder", metavar="RUN")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the run's folder.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, even at a terminal.")
@guarded
def resume(folder: str, overrides: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Go on with RUN, a run's folder, from its last checkpoint.

    It ends with the same weights, bit for bit, as if it had never been stopped. Only run.rounds, run.until,
    run.patience, run.budget, run.trackers and the sections engine and checkpoint may change, and data.path and
    client.device where they have moved. What it reads is checked; of a damaged checkpoint it says so and
    takes the one before.

    \b
    Examples:
      umbel resume results/digits-fedavg-s0-20260105-101500
      umbel resume results/digits-fedavg-s0-20260105-101500 run.rounds=50
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    with Stopper() as stopper:
        from rich.console import Console

        from umbel.simulations import api
        from umbel.simulations.commands.display import watcher

        shown = watcher(Console(stderr=True), quiet, as_json)
        with supervised(shown, stopper, again=f"umbel resume {Path(folder).expanduser().resolve()}"):
            result = api.resume(folder, *overrides, listener=shown)
    click.echo(str(result.path))
    ended(result)


@main.command(short_help="Ask a run to stop after what it is doing.")
@click.argument("folder", metavar="RUN")
@guarded
def stop(folder: str) -> None:
    """Ask RUN, a run's folder, to stop: it writes a checkpoint and ends, on whichever machine it runs.

    \b
    Examples:
      umbel stop results/digits-fedavg-s0-20260105-101500
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    path = Path(folder).expanduser().resolve()
    if not (path / "config.yaml").is_file():
        fail(f"{path} is no run: it has no config.yaml.", REFUSED)
    if (path / "summary.json").is_file():
        fail(f"{path} has ended already: it has a summary.json.", REFUSED)
    (path / "stop").touch()
    say(f"Asked to stop. Go on with: umbel resume {path}")


@main.command("list", short_help="What there is: strategies, models, data, encoders, ...")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("part", default="", metavar="[PART]")
@click.option("--json", "as_json", is_flag=True, help="For machines, on standard output.")
@guarded
def list_(kind: str, part: str, as_json: bool) -> None:
    """List what there is, each with a line of explanation and its options with their defaults.

    With PART only what has this in its name. Models, which are many, show their options with PART alone.

    \b
    Examples:
      umbel list strategies
      umbel list models tiny32
      umbel list keys
      umbel list models --json
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from rich.console import Console

    from umbel.simulations.commands import catalogue

    entries = catalogue.entries(kind, part)
    if as_json:
        click.echo(json.dumps([entry.plain() for entry in entries], indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(catalogue.render(entries, console.width, options=kind != "models" or bool(part)))
    console.print(catalogue.HOW_TO_USE[kind], style="dim", soft_wrap=True)


@main.command(short_help="Make an HTML report of runs or of a comparison.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="The HTML file to write.")
@click.option(
    "--figures", type=click.Path(file_okay=False, path_type=Path), help="A folder for SVG and PDF of each picture."
)
@guarded
def report(paths: tuple[str, ...], output: Path | None, figures: Path | None) -> None:
    """Make one self-contained HTML file of the runs or the comparison at PATH.

    It holds summary, curves, accuracy by class and by client, the partition, times, bytes, failures, the hash
    of the weights, and the command that gives the same again. It loads nothing from anywhere.

    \b
    Examples:
      umbel report results/digits-fedavg-s0-20260105-101500
      umbel report results/compare-digits --figures paper/figures
      umbel report results/a results/b --output both.html
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.report.page import report as write

    click.echo(str(write(paths, output, figures)))


main.add_command(bench)
main.add_command(compare)
main.add_command(data)
main.add_command(explain)
main.add_command(federate)
main.add_command(new)
main.add_command(ls)
main.add_command(tune)
main.add_command(diff)
main.add_command(watch)
for each in (predict, evaluate, export):
    main.add_command(each)


if __name__ == "__main__":
    main()
