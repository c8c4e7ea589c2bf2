"""The commands that compute: ``run``, ``demo``, ``select``. Imports `runner` and what is below."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING

from spark_dbp.commands.ending import print_end
from spark_dbp.commands.parsers import Options, add_command
from spark_dbp.commands.shared import open_run
from spark_dbp.errors import ConfigError

if TYPE_CHECKING:
    from spark_dbp.config import RunConfig

_JSON = "print what the run did as one JSON document"
# Of each demo: what it does, where unless told otherwise, and what most samples of a cluster have in common.
_DEMOS = {
    "digits": (
        "Pruning scikit-learn's handwritten digits: real images, their pixels as embeddings.",
        "demo-run",
        "the digit that most of its images show",
    ),
    "images": (
        "Pruning handwritten digits: PNGs in the shards of a WebDataset, embedded by EfficientNet-Lite0.",
        "demo-images-run",
        "the digit that most of its images show",
    ),
    "texts": (
        "Pruning first lines of docstrings of installed packages, embedded by all-MiniLM-L6-v2.",
        "demo-texts-run",
        "the package that most of its texts are of",
    ),
}


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    run = add_command(
        commands, options, "run", _run, "run the whole job of a configuration file",
        description="Run the whole job: from embeddings, images or texts to a keep list and its trie. "
        "The same command again reuses every step whose input and settings are unchanged.",
        examples=[
            "run conf.yaml",
            "run conf.yaml --set prune.keep_ratio=0.2 cluster.n_clusters=500",
            "run conf.yaml --quiet --log-file run.log  # for a scheduler",
        ],
        json=_JSON, interrupted=None,
    )  # fmt: skip
    run.add_argument("conf", metavar="CONF", help="YAML file; conf/example.yaml describes every key")
    run.add_argument("--fresh", action="store_true", help="reuse nothing of an earlier run in output.path")

    demo = add_command(
        commands, options, "demo", _demo, "cluster and prune 1,797 handwritten digits on this machine",
        examples=["demo", "demo /tmp/demo --texts  # embed docstrings first"],
        takes_settings=False, json=_JSON, interrupted=None,
    )  # fmt: skip
    which = demo.add_mutually_exclusive_group()
    for kind, what in (("images", "pictures in shards"), ("texts", "docstrings of installed packages")):
        which.add_argument(
            f"--{kind}",
            dest="demo",
            action="store_const",
            const=kind,
            help=f"embed {what} with a pretrained model first (needs torch)",
        )
    defaults = ", ".join(directory for _, directory, _ in _DEMOS.values())
    demo.add_argument("dir", metavar="DIR", nargs="?", help=f"where (default: {defaults})")
    demo.set_defaults(demo="digits")

    select = add_command(
        commands, options, "select", _select, "prune a finished run again without clustering",
        description="Prune a finished run again with other prune.* or trie.* settings, without clustering. "
        "The new run shares the tables of the first.",
        examples=[
            "select RUN --set prune.keep_ratio=0.1 --out RUN-0.1",
            "select RUN --set prune.which_to_keep=stratified prune.temperature=0.05 --out RUN2",
        ],
        json=_JSON, interrupted=None,
    )  # fmt: skip
    select.add_argument("run", metavar="RUN", help="directory of a finished run")
    select.add_argument("--out", metavar="DIR", required=True, help="directory of the new run")


def _run(parsed: argparse.Namespace) -> int:
    from spark_dbp.config import RunConfig
    from spark_dbp.engine.session import get_session

    if "=" in parsed.conf and not parsed.conf.endswith((".yaml", ".yml")):
        raise ConfigError(f"{parsed.conf!r} is no configuration file", mend="put CONF before --set")
    config = RunConfig.from_yaml(parsed.conf, parsed.settings)
    with ThreadPoolExecutor(1) as beside:  # Spark starts meanwhile, in the thread that uses it
        imported = beside.submit(import_module, "spark_dbp.runner")
        session = get_session(config.spark, records_classes=True)
    return print_end(imported.result().run(config, session, fresh=parsed.fresh), as_json=parsed.json)


def _demo(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.session import get_session

    about, default, mostly = _DEMOS[parsed.demo]
    directory = default if parsed.dir is None else parsed.dir
    if parsed.demo != "digits":
        from spark_dbp.encoders.packaged import check_installed

        check_installed(parsed.demo)
    if not parsed.quiet:
        print(about, file=sys.stderr)

    def prepare() -> tuple[RunConfig, dict[str, str]]:
        import_module("spark_dbp.runner")
        from spark_dbp.demo import configure

        return configure(parsed.demo, directory)

    with ThreadPoolExecutor(1) as beside:  # Spark starts meanwhile, in the thread that uses it
        prepared = beside.submit(prepare)
        session = get_session(records_classes=True)
    from spark_dbp.runner import run

    config, labels = prepared.result()
    return print_end(run(config, session), as_json=parsed.json, labels=labels, mostly=mostly)


def _select(parsed: argparse.Namespace) -> int:
    from spark_dbp.runner import prune_again

    settings = [item for item in parsed.settings if item.startswith("spark.")]
    source, spark = open_run(parsed.run, settings)
    return print_end(prune_again(source, parsed.out, parsed.settings, spark), as_json=parsed.json)
