"""The sections of the report, and what it says of what it leaves out. Imports `page`, `words`, `clusters`
and the like.
"""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from spark_dbp.explore.report import page, words
from spark_dbp.explore.report.clusters import Clusters
from spark_dbp.explore.report.contents import Contents
from spark_dbp.explore.report.examples import Duplicates
from spark_dbp.explore.report.lookup import Found
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from spark_dbp.runs import Run

# Characters of the configuration that are shown.
_MOST_CHARACTERS = 60_000

_COMPLEXITY = (
    "A concept is complex when its samples lie far from their centroid (d_intra) and its centroid lies far "
    "from the nearest other ones (d_inter). Complexity is the product of the two."
)
_POINTS = "Each point is a cluster; select one to look into it."
_CELLS = "There are too many clusters for points, so cells count them: the fuller, the stronger the colour."
_QUOTAS = (
    "Each cluster gets a share of the kept rows by its weight. No quota can be more than the cluster has, "
    "and none is less than its floor; what one cluster cannot take goes to the others."
)
_WEIGHTS = (
    "A weight of 1 is an even share. A lower temperature gives complex clusters more, and simple ones less."
)
_DISTANCES = (
    "Distances are 1 minus the cosine of a sample and its centroid. All clusters are counted together here; "
    "single ones follow below."
)
_LOOK = (
    "Rows on both sides of the cut say whether it is in the right place: those just kept, those just left "
    "out, and those nearest to the centroid, which show what the concept is."
)
_STRATIFIED = (
    "This run keeps rows at all distances. Shown are kept rows spread over the distances, the left-out rows"
    " that follow right after them, and the rows nearest to the centroid, which show what the concept is."
)
_TABLE = (
    "Select a heading to sort, a row to look into the cluster. Search finds ids, keys and texts of examples."
)
_DUPLICATES = (
    "Duplicates are taken out first, else clusters would grow around them. The bars show how similar they "
    "were to the row that stands for them; pairs of low similarity show whether the threshold is too low."
)
_KMEANS = (
    "The objective is the mean distance of the training sample to its centroids. A flat end means that the "
    "clusters had settled."
)


def list_sections(
    run: Run, clusters: Clusters, duplicates: dict[str, Duplicates], data: dict[str, Any], contents: Contents
) -> list[tuple[str, str, str]]:
    """Identifier, name in the navigation, and HTML of each section."""
    document = run.document
    account, prune = document["accounting"], document["config"]["prune"]
    funnel = page.write_funnel(words.list_steps(account), account["rows_in"], account["kept"])
    text = "From the rows of the input to the kept ones, step by step. Every row is accounted for."
    sections = [("rows", "Rows", page.write_section("Rows", words.say_funnel(account), text, funnel))]
    title = words.say_complexity(clusters)
    text = f"{_COMPLEXITY} {_CELLS if data['cells'] else _POINTS}"
    figure = page.write_figure(
        "complexity", "Distance to other concepts (d_inter) against width (d_intra)", title
    )
    sections.append(("concepts", "Concepts", page.write_section("Concepts", title, text, figure)))
    title, weights = words.say_quotas(clusters), words.say_weights(clusters, prune)
    figures = page.write_figure("quotas", "Rows kept against rows of the cluster", title)
    figures += page.write_figure("weights", f"Weight against {_name_measure(prune)}", weights)
    content = f'<div class="columns">{figures}</div><p class="text">{escape(weights)}. {_WEIGHTS}</p>'
    sections.append(("quotas", "Quotas", page.write_section("Quotas", title, _QUOTAS, content)))
    title = words.say_distances(document["summary"])
    figure = page.write_figure("distances", "Rows by distance to the centroid, kept and left out", title)
    sections.append(("distances", "Distances", page.write_section("Distances", title, _DISTANCES, figure)))
    text = _STRATIFIED if prune["which_to_keep"] == "stratified" else _LOOK
    look = page.write_section("A closer look", "What a cluster holds, and where it is cut", text, _EXPLORER)
    sections.append(("look", "A closer look", look))
    title = f"All {len(clusters):,} clusters"
    if data["cells"]:
        title = f"{len(data['clusters']['id']):,} of {len(clusters):,} clusters"
    sections.append(("clusters", "Clusters", page.write_section("Clusters", title, _TABLE, _CLUSTER_TABLE)))
    if duplicates:
        counts = {method: sum(of.counts) for method, of in duplicates.items()}
        content = "".join(
            page.write_figure(
                f"duplicates-{method}", f"{method.capitalize()}: {counts[method]:,}", say_bars(method, of)
            )
            for method, of in duplicates.items()
            if of.low < 1
        )
        content = f'<div class="columns">{content}</div>' if content else ""
        content += '<div id="pairs"></div>'
        data["duplicates"] = {method: [of.low, of.counts] for method, of in duplicates.items()}
        title = words.say_duplicates(counts)
        sections.append(
            ("duplicates", "Duplicates", page.write_section("Duplicates", title, _DUPLICATES, content))
        )
    if data["kmeans"]:
        title = words.say_kmeans(document["kmeans"])
        figure = page.write_figure("kmeans", "Objective by pass", title)
        sections.append(("kmeans", "Clustering", page.write_section("Clustering", title, _KMEANS, figure)))
    sections.append(("run", "Run", _write_run(run)))
    return sections


_EXPLORER = """<div class="controls"><label>Cluster <select id="which"></select></label>
<span class="steps"><button type="button" id="before" aria-label="Previous cluster">←</button>
<button type="button" id="after" aria-label="Next cluster">→</button></span>
<span id="picks" class="picks"></span></div>
<div id="cluster" aria-live="polite"></div>"""

_CLUSTER_TABLE = """<div class="controls"><label>Search <input type="search" id="search" autocomplete="off"
placeholder="cluster, key or text"></label><span id="found" role="status"></span></div>
<div class="scroll"><table id="table" class="clusters"></table></div>
<button type="button" id="more" hidden></button>"""


def _name_measure(prune: dict[str, Any]) -> str:
    names = {"d_intra": "d_intra", "d_inter": "d_inter", "cluster_size": "size"}
    return names.get(prune["complexity"], "complexity")


def say_bars(method: str, of: Duplicates) -> str:
    """What a histogram of similarities shows, in words."""
    least = next((bar for bar, n in enumerate(of.counts) if n), 0)
    low = of.low + (1 - of.low) * least / len(of.counts)
    return f"{words.write_count(sum(of.counts), 'duplicate')} by {method}, of similarity {low:.3g} to 1"


def say_left_out(clusters: Clusters, data: dict[str, Any], contents: Contents, found: Found) -> list[str]:
    """What of the run is not on the page."""
    notes = []
    n_listed, n_shown = len(data["clusters"]["id"]), len(contents.examples)
    if n_listed < len(clusters):
        notes.append(
            f"Figures count all {len(clusters):,} clusters. The table lists {n_listed:,} of them: those at "
            "the ends of each scale, and others evenly by complexity."
        )
    if n_shown < len(clusters):
        notes.append(
            f"Examples are shown of {n_shown:,} clusters: the most and the least complex, the largest and "
            "the smallest, and those kept whole or at their floor."
        )
    if contents.n_thumbnails_left_out:
        n = words.write_count(contents.n_thumbnails_left_out, "thumbnail")
        notes.append(f"{n} did not fit into the 2 MB of this page.")
    if found.problems and not found.note:
        reasons = ", ".join(f"{n:,} ({reason})" for reason, n in sorted(found.problems.items()))
        notes.append(f"Images that could not be shown: {reasons}.")
    return notes


def _write_run(run: Run) -> str:
    document = run.document
    versions = document.get("versions", {})
    given = document["input"]
    size = [words.write_count(given["rows"], "row")] if given.get("rows") is not None else []
    size += [words.write_count(given["files"], "file")] if given.get("files") else []
    facts = [
        ("Run", run.path),
        ("Finished", document.get("committed_at", "")),
        ("spark-dbp", str(document.get("spark_dbp", ""))),
        (
            "Spark, Python, numpy",
            ", ".join(str(versions.get(name, "")) for name in ("spark", "python", "numpy")),
        ),
        ("Engine", document.get("engine", {}).get("name", "")),
        ("Input", f"{', '.join(size)}; {given.get('version') or 'digest ' + str(given.get('digest'))}"),
    ]
    base = document.get("base_run")
    facts += [("Pruned again from", base["path"])] if base else []
    seconds = sum(stage.get("seconds", 0) for stage in document["stages"].values())
    facts.append(("Seconds in steps", f"{seconds:,.1f}"))
    tables = [
        (name, f"{words.write_count(rows, 'row')}, digest {document['digests'].get(name, 'none')}")
        for name, rows in document["rows"].items()
    ]
    config = json.dumps(redact(document["config"]), indent=2, ensure_ascii=False)
    if len(config) > _MOST_CHARACTERS:
        config = config[:_MOST_CHARACTERS] + "\n… (the rest is in run.json)"
    content = page.write_facts([(a, redact(b)) for a, b in facts if b])
    content += "<h3>Tables</h3>" + page.write_facts(tables)
    content += page.write_details("Configuration", config)
    return page.write_section(
        "Run", "How this was made", "To make it again, and to compare it with others.", content
    )
