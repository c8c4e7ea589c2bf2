"""What a plan holds: its steps and tables, what is known of the output, and all of it as JSON.

Imports `seen`, `reuse`, `sizes`, `costs`, `feasible`, `config` and `lake`; no Spark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spark_dbp.config import RunConfig
from spark_dbp.engine.probe import EngineChoice
from spark_dbp.explore.plan.costs import FACTOR, START, Cost, Machine
from spark_dbp.explore.plan.feasible import Feasibility
from spark_dbp.explore.plan.reuse import Judged
from spark_dbp.explore.plan.seen import Seen
from spark_dbp.explore.plan.sizes import TableSize
from spark_dbp.lake import files


@dataclass
class PlannedStep:
    """A step of the plan.

    Attributes
    ----------
    judged : Judged
        Whether it is reused, and why not.
    tables : dict of str to TableSize
        What it writes.
    cost : Cost or None
        None where it is reused.
    """

    judged: Judged
    tables: dict[str, TableSize]
    cost: Cost | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        judged, cost = self.judged, self.cost
        found: dict[str, Any] = {
            "name": judged.step.name,
            "status": judged.status,
            "reused": judged.is_reused,
            "why": judged.why,
            "changed": judged.changed,
            "follows": judged.follows,
            "if_same": judged.if_same,
            "tables": {name: _describe_table(table) for name, table in self.tables.items()},
        }
        names = ("rows_read", "bytes_read", "bytes_written", "bytes_shuffled", "seconds", "driver_bytes")
        for name in (*names, "worker_bytes"):
            found[name] = 0 if cost is None else getattr(cost, name)
        return found


def _describe_table(table: TableSize) -> dict[str, Any]:
    return {
        "rows": table.rows.n,
        "rows_are": table.rows.kind,
        "bytes": table.bytes,
        "bytes_are": table.bytes_are,
        "files": table.files,
        "is_there": table.is_known,
    }


@dataclass
class Plan:
    """What a run would do. `plan` makes it.

    Attributes
    ----------
    config : RunConfig
    seen : Seen
    steps : list of PlannedStep
    engine : EngineChoice
        As it is likely to be.
    quotas : Feasibility
    in_use : str or None
        Who works in the output directory now.
    has_run : bool
        Whether a finished run is there.
    catalog : list of str
        Tables and the view that the catalog would hold.
    machine : Machine
    unchecked : list of str
        What could not be checked, and why.
    """

    config: RunConfig
    seen: Seen
    steps: list[PlannedStep]
    engine: EngineChoice
    quotas: Feasibility
    in_use: str | None
    has_run: bool
    catalog: list[str]
    machine: Machine
    unchecked: list[str]

    @property
    def seconds(self) -> float:
        """About how long the run would take, without steps that have no model of time."""
        costs = [step.cost.seconds for step in self.steps if step.cost is not None]
        return START + sum(seconds for seconds in costs if seconds is not None)

    @property
    def bytes_written(self) -> int:
        """Bytes that the run would add to its directory, at most or about."""
        return sum(step.cost.bytes_written for step in self.steps if step.cost is not None)

    @property
    def assumes(self) -> bool:
        """Whether bytes and times rest on a dimension that was not seen."""
        return any(table.is_assumed for step in self.steps for table in step.tables.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        seen, costs = self.seen, [step.cost for step in self.steps if step.cost is not None]
        return {
            "input": {
                "name": seen.name,
                "rows": seen.rows.n,
                "rows_are": seen.rows.kind,
                "files": seen.files,
                "bytes": seen.bytes,
                "dimension": seen.dimension,
                "key_type": seen.name_type(str(self.config.input.key))
                if seen.is_known(str(self.config.input.key))
                else None,
                "rows_checked": seen.n_checked,
                "looked_at_by": seen.by,
            },
            "engine": {"name": self.engine.name, "why": self.engine.why, "predicted": True},
            "steps": [step.to_dict() for step in self.steps],
            "quotas": {"feasible": self.quotas.is_ok, "why": self.quotas.why, "mend": self.quotas.mend},
            "output": {
                "path": files.normalize(self.config.output.path),
                "in_use": self.in_use,
                "has_run": self.has_run,
                "catalog": self.catalog,
            },
            "total": {
                "seconds": round(self.seconds, 1),
                "factor": FACTOR,
                "not_in_seconds": [step.judged.step.name for step in self.steps if _has_no_time(step)],
                "bytes_written": self.bytes_written,
                "dimension_assumed": self.assumes,
                "bytes_read": sum(cost.bytes_read for cost in costs),
                "bytes_shuffled": sum(cost.bytes_shuffled for cost in costs),
                "driver_bytes": max((cost.driver_bytes for cost in costs), default=0),
                "worker_bytes": max((cost.worker_bytes for cost in costs), default=0),
                "machine": self.machine.what,
            },
            "not_checked": self.unchecked,
            "notes": seen.notes,
        }

    def __str__(self) -> str:
        from spark_dbp.explore.plan.show import write_plan

        return write_plan(self)

    def _repr_html_(self) -> str:
        from spark_dbp.explore.plan.show import write_html

        return write_html(self)


def _has_no_time(step: PlannedStep) -> bool:
    return step.cost is not None and step.cost.seconds is None
