"""`s3gen submit`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from jobs.command import FINISHED, PLAN_COMMAND, Context, command, folders, overrides_of, print_part
from jobs.given import Given, job_options

if TYPE_CHECKING:
    from jobs.config.config import JobConfig
    from jobs.submit import Submitted


cluster_file = click.option(
    "--storage-options", metavar="FILE", help="Absolute path of such a file on the cluster's head."
)


@click.command()
@click.option("--address", required=True, metavar="URL", help="Of the cluster's dashboard: http://HEAD:8265.")
@partial(job_options, storage=cluster_file)
@click.option(
    "--working-dir",
    metavar="DIR",
    shell_complete=folders,
    help="A folder that travels along, such as a clone of this project.",
)
@click.option("--no-wait", is_flag=True, help="Print the submission's id and leave.")
@command
def submit(context: Context, given: Given, address: str, working_dir: str | None, no_wait: bool) -> int:
    """Run a job on a Ray cluster, through Ray's job API.

    The configuration is checked here and sent; on the cluster's head `s3gen synth` runs it, with ray_address: auto. Its
    log is shown here, and its exit code is this command's. Ctrl-C leaves the job running. Submitted again, a job that
    was stopped goes on.

    Every machine of the cluster needs this package, and local paths have to be there too. Credentials are not sent: the
    cluster has them in the environment in which it was started, or in a file. What DIR holds can be read by everybody
    who reaches the dashboard; what its .gitignore names, .git and .venv stay here.

    \b
    Examples:
      s3gen submit my_job.yaml --address http://10.0.0.5:8265 --set workers=auto
      s3gen submit my_job.yaml --address http://localhost:8265 --limit 100 --no-wait

    \b
    Exit codes:
      0  every row was made; with --no-wait: the cluster has the job
      1  not finished: submit it again; or this command lost the job, or was interrupted, and the job goes on
      2  bad input or configuration, or no cluster that takes it
      3  finished, with rows in the failures table or doubled ids
    """
    from jobs.submit import SubmitOrder
    from jobs.submit import submit as send

    order = SubmitOrder(
        config=_checked(given),
        address=address,
        limit=given.limit,
        working_dir=working_dir,
        storage_options=given.storage_options,
        environment={} if given.limit is None else {PLAN_COMMAND: _plan_command(given)},
    )
    sent = send(order)
    return _leave(sent) if no_wait else _follow(sent, address)


def _checked(given: Given) -> JobConfig:
    from jobs.config.config import load_config
    from jobs.submit import local_paths

    # A file of the cluster's goes before whatever the configuration names.
    instead = [] if given.storage_options is None else ["storage_options={}"]
    job = load_config(given.config, [*overrides_of(given.changes, given.manifest), *instead])
    local = local_paths(job)
    if local:
        click.echo(f"local paths, which every machine of the cluster has to have: {', '.join(local)}", err=True)
    return job


def _plan_command(given: Given) -> str:
    """What a trial on the cluster ends with: the command here."""
    # Of several values for a key only the last was checked, for secrets as well.
    last = {change.partition("=")[0].strip(): change for change in given.changes}
    return replace(given, changes=tuple(last.values()), storage_options=None).again("plan")


def _leave(sent: Submitted) -> int:
    click.echo(sent.id)
    click.echo(sent.hints(), err=True)
    return FINISHED


def _follow(sent: Submitted, address: str) -> int:
    click.echo(f"{sent.id} runs on {address}; Ctrl-C leaves it running", err=True)
    return sent.follow(print_part)
