"""`umbel predict`, `umbel evaluate`, `umbel export`: a trained model in use."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel.core.names import shown
from umbel.core.refusal import Refusal
from umbel.simulations.commands.supervision import guarded, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umbel.simulations.use.evaluate import Evaluation
    from umbel.simulations.use.predict import Predictions

_KINDS = ("onnx", "torchscript", "pt2")


@click.command(short_help="Say what pictures show, by a trained model.")
@click.argument("model", metavar="RUN|FILE")
@click.argument("folder", metavar="FOLDER")
@click.option("--csv", "as_csv", is_flag=True, help="A table with the probability of each class, for machines.")
@click.option("--task", type=int, help="The pictures' task, where each has a head of its own (data.heads=per_task).")
@guarded
def predict(model: str, folder: str, as_csv: bool, task: int | None) -> None:
    """Say what the pictures in FOLDER show, by the model of RUN, a run's folder, or by FILE, a model's.

    Pictures are looked for at any depth. They are read, resized, embedded and normalised as the training images
    were; FILE says how, so that the run need not be there.

    \b
    Examples:
      umbel predict results/digits-fedavg-s0-20260105-101500 pictures
      umbel predict results/demo/best.safetensors pictures --csv > classes.csv
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.use.predict import predict as look

    predictions = look(model, folder, task=task)
    _tell(predictions.notices)
    click.echo(predictions.csv() if as_csv else _lines(predictions), nl=not as_csv)


@click.command(short_help="Measure a trained model on its test set, or on other data.")
@click.argument("model", metavar="RUN|FILE")
@click.argument("overrides", nargs=-1, metavar="[data.KEY=VALUE]...")
@click.option("--split", type=click.Choice(("test", "train", "all")), default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For machines, on standard output.")
@guarded
def evaluate(model: str, overrides: tuple[str, ...], split: str, as_json: bool) -> None:
    """Measure the model of RUN, a run's folder, or FILE, a model's, on examples with labels.

    Without a key it is the run's own test set. With data.name=... it is another set, of the same classes by name;
    pictures in folders are split as in a run, and `--split all` takes all of them.

    \b
    Examples:
      umbel evaluate results/digits-fedavg-s0-20260105-101500
      umbel evaluate results/demo data.name=image_folder data.path=pictures --split all
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.use.evaluate import evaluate as measure

    evaluation = measure(model, *overrides, split=split)
    _tell(evaluation.notices)
    if as_json:
        click.echo(json.dumps(asdict(evaluation), indent=2, ensure_ascii=False))
    else:
        click.echo(_measures(evaluation))


@click.command(short_help="Write a trained model as ONNX, TorchScript, or a program of torch.export.")
@click.argument("model", metavar="RUN|FILE")
@click.option("--onnx", is_flag=True, help="ONNX, for most run-times; needs pip install umbel[export].")
@click.option("--torchscript", is_flag=True, help="TorchScript, which torch calls deprecated and older programs read.")
@click.option("--pt2", is_flag=True, help="What torch.export saves, for torch without umbel.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@guarded
def export(model: str, onnx: bool, torchscript: bool, pt2: bool, output: Path | None) -> None:
    """Write the model of RUN, a run's folder, or FILE, a model's, as a file that runs without umbel.

    It takes any number of images [batch, channels, side, side] with pixels in [0, 1], normalises them itself, and
    gives logits. The file is run before it is written, and has to give what the model gives. Names of classes and
    all else that is known of the model is in its metadata.

    \b
    Examples:
      umbel export results/digits-fedavg-s0-20260105-101500 --onnx
      umbel export results/demo --pt2 --output digits.pt2
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    asked = [kind for kind, said in zip(_KINDS, (onnx, torchscript, pt2), strict=True) if said]
    if len(asked) != 1:
        raise Refusal("Say one of --onnx, --torchscript and --pt2.")
    from umbel.simulations.use.export import export as write

    exported = write(model, asked[0], output)
    _tell(exported.notices)
    if exported.difference is not None:
        say(f"Its logits differ from the model's by {exported.difference:.1e} at most.")
    click.echo(str(exported.path))


def _tell(notices: Sequence[str]) -> None:
    for notice in notices:
        say(notice)


def _lines(predictions: Predictions) -> str:
    """Return a line for each picture: class, probability, file."""
    rows = predictions.rows()
    width = max(len(name) for _, name, _ in rows)
    return "\n".join(f"{name:<{width}}  {probability:6.1%}  {shown(path)}" for path, name, probability in rows)


def _measures(evaluation: Evaluation) -> str:
    lines = [f"{evaluation.data}, {evaluation.split}: {evaluation.num_examples:,} examples"]
    lines += [f"{name:<24} {value:.4f}" for name, value in evaluation.metrics.items()]
    lines += [f"class {name:<18} {value:.4f}" for name, value in evaluation.by_class.items()]
    return "\n".join(lines)
