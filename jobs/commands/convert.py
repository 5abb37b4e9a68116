"""`s3gen convert`."""

from __future__ import annotations

import click

from jobs.command import FINISHED, Context, command, files, folders, model_file_option, options_of, storage_option

FORMATS = ("huggingface", "chatterbox")


@click.command()
@click.argument("source", shell_complete=files)
@click.argument("dest", shell_complete=folders)
@model_file_option
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="config.json with model.safetensors, or the single file that Chatterbox loads.",
)
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint of the same name, though not SOURCE itself.")
@storage_option
@command
def convert(
    context: Context,
    source: str,
    dest: str,
    model_file: str | None,
    form: str,
    overwrite: bool,
    storage_options: str | None,
) -> int:
    """Write a checkpoint in another format.

    SOURCE is whatever a job's model may be: a hub id, folder, file or URL. DEST is a folder or URL, and gets the
    weights as safetensors in float32 and a card, README.md, which is left alone once somebody has edited it. What was
    written is read again, and put there only when it is the same model: it makes the same audio, and voice tables made
    with SOURCE stay valid.

    Chatterbox's own code is of one size and has its guidance, schedule and vocoder's source built in: a model that it
    would play wrongly, such as CosyVoice2's, is not written in its format.

    \b
    Examples:
      s3gen convert s3gen.pt my_model
      s3gen convert ResembleAI/chatterbox s3://bucket/models/chatterbox --storage-options keys.yaml
      s3gen convert my_model for_chatterbox --format chatterbox

    \b
    Exit codes:
      0  DEST has the checkpoint
      1  a store does not answer, DEST could not be written, or the result was another model: DEST has none, or what it
         had
      2  no such source, or no right to read it; a format that cannot say it, or a DEST with a checkpoint: nothing was
         written
    """
    from jobs.convert import convert as run
    from jobs.report.words import size

    made = run(source, dest, file=model_file, form=form, options=options_of(storage_options), overwrite=overwrite)
    click.echo(f"read: {made.origin}")
    click.echo(f"written: {made.url}  ({size(made.bytes)})")
    click.echo(f"fingerprint: {made.fingerprint}, as the source's")
    click.echo(f"voice fingerprint: {made.voice_fingerprint}, as the source's: its voice tables stay valid")
    return FINISHED
