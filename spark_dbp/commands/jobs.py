"""The commands that compute: ``run``, ``demo``, ``select``. Imports `runner` and what is below."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING

from spark_dbp.commands.shared import Options, open_run
from spark_dbp.errors import ConfigError
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from spark_dbp.config import RunConfig
    from spark_dbp.runs import Run

# Paths as Python and as a shell read them.
_NEXT = """what next
  join the keep list     spark.read.parquet({keep_list}).join(metadata, "key")
  filter while loading   "some-key" in spark_dbp.KeepTrie.open({run})
  another ratio          spark-dbp select {run_argument} --set prune.keep_ratio=0.2 --out {out_argument}"""

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
    run = commands.add_parser(
        "run", parents=[options.common, options.settings], help="run the whole job of a configuration file"
    )
    run.add_argument("conf", metavar="CONF", help="YAML file; conf/example.yaml describes every key")
    run.add_argument("--fresh", action="store_true", help="reuse nothing of an earlier run in output.path")
    run.set_defaults(command=_run)

    demo = commands.add_parser(
        "demo", parents=[options.common], help="cluster and prune 1,797 handwritten digits on this machine"
    )
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
    demo.set_defaults(command=_demo, demo="digits")

    select = commands.add_parser(
        "select",
        parents=[options.common, options.settings],
        help="prune a finished run again without clustering",
    )
    select.add_argument("run", metavar="RUN", help="directory of a finished run")
    select.add_argument("--out", metavar="DIR", required=True, help="directory of the new run")
    select.set_defaults(command=_select)


def _run(parsed: argparse.Namespace) -> int:
    from spark_dbp.config import RunConfig
    from spark_dbp.engine.session import get_session

    if "=" in parsed.conf and not parsed.conf.endswith((".yaml", ".yml")):
        raise ConfigError(f"{parsed.conf!r} is no configuration file", mend="put CONF before --set")
    config = RunConfig.from_yaml(parsed.conf, parsed.settings)
    with ThreadPoolExecutor(1) as beside:  # Spark starts meanwhile, in the thread that uses it
        imported = beside.submit(import_module, "spark_dbp.runner")
        session = get_session(config.spark, records_classes=True)
    _report(imported.result().run(config, session, fresh=parsed.fresh))
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.session import get_session

    about, default, mostly = _DEMOS[parsed.demo]
    directory = default if parsed.dir is None else parsed.dir
    if parsed.demo != "digits":
        from spark_dbp.encoders.packaged import check_installed

        check_installed(parsed.demo)
    print(about, file=sys.stderr)

    def prepare() -> tuple[RunConfig, dict[str, str]]:
        import_module("spark_dbp.runner")
        from spark_dbp.demo import configure

        return configure(parsed.demo, directory)

    with ThreadPoolExecutor(1) as beside:  # Spark starts meanwhile, in the thread that uses it
        prepared = beside.submit(prepare)
        session = get_session(records_classes=True)
    from spark_dbp.explore.clusters import describe_extreme_clusters, format_clusters
    from spark_dbp.runner import run

    config, labels = prepared.result()
    done = run(config, session)
    _report(done)
    print(f"narrowest and widest clusters (mostly: {mostly})")
    print(format_clusters(describe_extreme_clusters(done, labels=labels)))
    return 0


def _select(parsed: argparse.Namespace) -> int:
    from spark_dbp.runner import prune_again

    settings = [item for item in parsed.settings if item.startswith("spark.")]
    source, spark = open_run(parsed.run, settings)
    _report(prune_again(source, parsed.out, parsed.settings, spark))
    return 0


def _report(run: Run) -> None:
    print(redact(f"\n{run.path}\n{run.summary()}"))
    print(redact(_tell_next(run.path, run.table_path("keep_list"))))


def _tell_next(run: str, keep_list: str) -> str:
    from spark_dbp.lake.paths import escape_glob

    return _NEXT.format(
        run=json.dumps(run, ensure_ascii=False),
        keep_list=json.dumps(escape_glob(keep_list), ensure_ascii=False),
        run_argument=shlex.quote(run),
        out_argument=shlex.quote(f"{run}-0.2"),
    )
