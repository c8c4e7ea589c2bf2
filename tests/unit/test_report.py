"""Reports of runs, without Spark or a browser: what they show, what they leave out, their bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_runs import make_rows, make_run, order_rows

from spark_dbp import open_run, show_cluster, write_report
from spark_dbp.cli import main
from spark_dbp.errors import ConfigError, DamagedRunError, InputError
from spark_dbp.explore.report.clusters import MOST_IN_FULL, MOST_LISTED, Clusters
from spark_dbp.explore.report.examples import find_examples, write_key, write_keys
from spark_dbp.explore.report.lookup import Found, Thumbnail, shrink_image
from spark_dbp.explore.report.page import read_asset
from spark_dbp.explore.report.write import MOST_BYTES, find_shown, fit_contents, gather_keys
from spark_dbp.explore.run_clusters import RunClusters, read_small_table

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028'\"<!--"


def read_data(page: bytes) -> dict:
    return json.loads(re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report") / "run", *make_rows(6000, 80))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("out") / "a.html"
    write_report(run, out)
    return out.read_bytes()


def test_the_same_run_gives_the_same_bytes(run, page, tmp_path):
    write_report(open_run(run.path), tmp_path / "b.html")
    assert (tmp_path / "b.html").read_bytes() == page


def test_numbers_are_those_of_the_tables(run, page):
    shown, stats, quotas = read_data(page)["clusters"], run.cluster_stats(), run.quotas()
    assert shown["id"] == stats["cluster_id"].tolist()
    assert shown["n"] == stats["n_items"].tolist()
    assert shown["quota"] == quotas["quota"].tolist()
    for name, column in (
        ("intra", stats["d_intra"]),
        ("complexity", stats["complexity"]),
        ("weight", quotas["weight"]),
    ):
        assert shown[name] == pytest.approx(column.tolist(), rel=1e-5)
    text = page.decode()
    account = run.document["accounting"]
    for n in (account["rows_in"], account["kept"], account["dropped"]["pruned"]):
        assert f"{n:,}" in text
    histogram = read_data(page)["histogram"]
    assert (sum(histogram["n"]), sum(histogram["kept"])) == (account["rows_in"], account["kept"])
    for number, one in read_data(page)["histograms"].items():
        row = shown["id"].index(int(number))
        assert (sum(one["n"]), sum(one["kept"])) == (shown["n"][row], shown["quota"][row])


@pytest.mark.parametrize("which", ["hard", "easy", "random", "stratified"])
def test_examples_against_sorting_everything(tmp_path, which):
    keys, cluster, distances = make_rows(4000, 25, seed=3)
    run = make_run(
        tmp_path / "run", keys, cluster, distances, prune={"which_to_keep": which, "temperature": 0.02}
    )
    clusters = Clusters(run)
    kept = clusters.distances.count_all_kept(clusters.quota)
    assert kept.sum() == pytest.approx(clusters.quota.sum())
    assert clusters.saturated.sum() == run.document["summary"]["saturated"]
    assert clusters.at_floor.sum() == run.document["summary"]["at_floor"]
    found = find_examples(run, clusters.cluster_id, clusters.quota, clusters.n_items, 4)
    in_list = set(pq.read_table(run.table_path("keep_list"))["key"].to_pylist())
    for number, quota in zip(clusters.cluster_id.tolist(), clusters.quota.tolist(), strict=True):
        rows = np.flatnonzero(cluster == number)
        own = [keys[row] for row in rows]
        order = [own[i] for i in order_rows(which, 0, own, distances[rows].astype(np.float32))]
        near = [own[i] for i in order_rows("easy", 0, own, distances[rows].astype(np.float32))]
        one = found[number]
        assert [example.key.as_py() for example in one.nearest] == near[:4]
        assert all(example.is_kept == (example.key.as_py() in in_list) for example in one.nearest)
        if which != "stratified":
            assert [example.key.as_py() for example in one.kept] == order[max(0, quota - 4) : quota]
            assert [example.key.as_py() for example in one.dropped] == order[quota : quota + 4]
            assert [example.rank for example in one.dropped] == list(
                range(quota + 1, quota + 1 + len(one.dropped))
            )
        else:
            assert {example.key.as_py() for example in one.kept} <= in_list
            assert len(one.kept) == min(4, quota)
            left = [example.key.as_py() for example in one.dropped]
            assert not set(left) & in_list
            assert set(left) <= set(order)


def test_quotas_of_zero_have_no_last_kept_row(tmp_path):
    keys, cluster, distances = make_rows(900, 30, seed=5)
    run = make_run(
        tmp_path / "run",
        keys,
        cluster,
        distances,
        prune={"min_per_cluster": 0, "temperature": 0.001, "keep_ratio": 0.05},
    )
    clusters = Clusters(run)
    empty = np.flatnonzero(clusters.quota == 0)
    assert len(empty)
    found = find_examples(run, clusters.cluster_id, clusters.quota, clusters.n_items, 3)
    for row in empty.tolist():
        one = found[int(clusters.cluster_id[row])]
        assert not one.kept
        assert len(one.dropped) == min(3, clusters.n_items[row])
    write_report(run, tmp_path / "a.html")


def test_many_clusters_stay_within_the_size(tmp_path):
    run = make_run(tmp_path / "run", *make_rows(30_000, 9000))
    written = write_report(run, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_bytes()
    assert written.bytes == len(page) <= MOST_BYTES
    data = read_data(page)
    assert len(data["clusters"]["id"]) == MOST_LISTED == written.clusters_listed
    assert len(data["examples"]) == MOST_IN_FULL == written.clusters_shown
    assert written.left_out == {"clusters_listed": 7000, "clusters_shown": 9000 - MOST_IN_FULL}
    assert "The table lists 2,000 of them" in page.decode()
    assert "Examples are shown of 60 clusters" in page.decode()
    for cells in data["cells"].values():  # all are counted
        assert sum(cell[4] for cell in cells) == 9000


def test_long_keys_stay_within_the_size(tmp_path):
    keys, cluster, distances = make_rows(3000, 60)
    run = make_run(tmp_path / "run", [f"{key}{'<' * 900}" for key in keys], cluster, distances)
    written = write_report(run, tmp_path / "a.html")
    assert written.bytes <= MOST_BYTES
    assert written.clusters_shown < 60
    assert written.left_out["clusters_shown"] == 60 - written.clusters_shown


def test_thumbnails_fill_what_is_left(run):
    clusters = Clusters(run)
    examples = find_examples(run, clusters.cluster_id, clusters.quota, clusters.n_items)
    rng = np.random.default_rng(0)
    keys = {one.key.as_py() for of in examples.values() for one in (*of.kept, *of.dropped, *of.nearest)}
    found = Found(
        has_images=True, thumbnails={key: Thumbnail(rng.bytes(3000), 96, 96) for key in sorted(keys)}
    )
    contents = fit_contents(
        examples, {}, found, "string", {int(c): [] for c in clusters.cluster_id}, lambda _: 600_000, 1_500_000
    )
    size = sum(len(one[0]) for one in contents.thumbnails)
    assert 600_000 < size < 900_000
    assert len(contents.thumbnails) + contents.n_thumbnails_left_out == len(keys)
    first, last = (contents.examples[str(c)] for c in (clusters.cluster_id[0], clusters.cluster_id[-1]))
    assert all(row[5] >= 0 for row in first["nearest"])
    assert all(row[5] == -1 for row in last["kept"] if row[0] not in {r[0] for r in last["nearest"]})


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]


def test_nothing_of_a_run_becomes_markup(run, page, tmp_path):
    keys, cluster, distances = make_rows(6000, 80)
    duplicates = pa.table({
        "key": [f"{EVIL}{i}" for i in range(50)], "duplicate_of": [EVIL] * 50, "method": ["semantic"] * 50,
        "similarity": pa.array(np.linspace(0.96, 1, 50), pa.float32()),
    })  # fmt: skip
    evil = make_run(
        tmp_path / "run<b>", [f"{key}{EVIL}" for key in keys], cluster, distances, duplicates=duplicates,
        dropped={f"reason {EVIL}": 7, "semantic duplicates": 50}, dedup={"semantic": {"eps": 0.05, "n_clusters": 2}},
        report={"caption": None}, score_filter={"expr": EVIL},
    )  # fmt: skip
    write_report(evil, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "<script>alert" not in text
    assert "<img" not in text.replace(read_asset("plot.umd.min.js"), "").replace(read_asset("d3.min.js"), "")
    tags = _Tags()
    tags.feed(text)
    assert tags.tags.count("script") == 4
    assert "img" not in tags.tags
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    found = next(iter(read_data(text.encode())["examples"].values()))
    assert found["nearest"][0][0].endswith(EVIL)
    assert read_data(text.encode())["pairs"]["semantic"][0][4] == EVIL
    _Tags().feed(page.decode())


def test_the_policy_names_the_scripts_and_nothing_from_outside(page):
    text = page.decode()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 3
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "innerHTML =" not in read_asset("report.js")


@pytest.mark.parametrize("name", ["d3.min.js", "plot.umd.min.js"])
def test_libraries_are_as_published(name):
    """As npm has them; both fit into an HTML page."""
    wanted = {
        "d3.min.js": ("7.9", "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1"),
        "plot.umd.min.js": ("0.6.17", "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb"),
    }
    version, digest = wanted[name]
    text = read_asset(name)
    assert version in text[:100]
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    assert "</script" not in text
    assert "<!--" not in text


def test_thumbnails_are_small_and_the_same_each_time():
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.effect_noise((640, 320), 90).convert("RGB").save(sink, "PNG")
    first, second = shrink_image(sink.getvalue()), shrink_image(sink.getvalue())
    assert first == second
    assert (first.width, first.height) == (96, 48)
    assert first.content[8:12] == b"WEBP"


def test_where_a_report_goes(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", run.path]) == 0
    assert main(["report", run.path, "--json"]) == 0  # over the first one
    printed = capsys.readouterr().out
    document = json.loads(printed[printed.index("{") :])
    assert document["path"] == str(tmp_path / "run-report.html")
    assert document["bytes"] == (tmp_path / "run-report.html").stat().st_size
    assert {"clusters_shown", "examples", "thumbnails", "left_out"} <= set(document)
    (tmp_path / "other.html").write_text("<!doctype html>\n<p>mine")
    (tmp_path / "link").symlink_to(run.path)
    before = {path: path.stat().st_mtime_ns for path in Path(run.path).rglob("*")}
    for out, code, words in (
        (f"{run.path}/report.html", 2, "lies in the run"),
        (f"{tmp_path}/link/report.html", 2, "lies in the run"),
        (str(tmp_path), 2, "is a directory"),
        ("s3://bucket/report.html", 2, "no file on this machine"),
        ("other.html", 4, "no report"),
    ):
        assert main(["report", run.path, "--out", out]) == code, out
        assert words in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path(run.path).rglob("*")} == before
    assert (tmp_path / "other.html").read_text().endswith("mine")
    assert main(["report", run.path, "--set", "prune.keep_ratio=0.2"]) == 2
    assert main(["report", run.path, "--set", "report.imag=a"]) == 2
    assert "report.imag" in capsys.readouterr().err
    monkeypatch.chdir(run.path)
    assert main(["report", "."]) == 2


def test_a_cluster_in_a_notebook(run):
    shown = show_cluster(run, 3)
    html = shown._repr_html_()
    assert "Cluster 3:" in html
    assert shown.examples.nearest[0].key.as_py() in html
    assert shown.examples.kept[0].key.as_py() in str(run.show_cluster(3))
    for cluster in (999, -1, "3", None):
        with pytest.raises(InputError, match=f"has no cluster {cluster!r} with samples") as refused:
            show_cluster(run, cluster)
        assert not isinstance(refused.value, ConfigError)
        assert "from 0 to 79" in refused.value.mend


def test_a_cluster_does_not_move_the_cursor_of_a_terminal(tmp_path):
    keys, cluster, distances = make_rows(300, 4)
    run = make_run(tmp_path / "run", [f"{key}\x1b[2J\r\n" for key in keys], cluster, distances)
    shown = show_cluster(run, 1)
    shown.found.captions[shown.examples.nearest[0].key.as_py()] = "a\x1b[31m"
    text = str(shown)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\\x1b[2J\\r\\n  a\\x1b[31m" in text
    assert len(text.splitlines()) == 4 + sum(
        len(of) for of in (shown.examples.nearest, shown.examples.kept, shown.examples.dropped)
    )


def convert_keys(run, kind: str) -> None:
    """Give the keys of a run another type: the same numbers or bytes, in the same order and of the same hash."""
    for table in ("assignments", "keep_list"):
        for path in run.list_files(table):
            found = pq.read_table(path)
            key = found["key"].combine_chunks()
            if kind == "not UTF-8":  # one more byte, at which decoding fails
                raw = pa.array([b"\xff" + text.encode() for text in key.to_pylist()], pa.binary())
                made = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
            elif kind == "decimal":
                made = pa.array(map(Decimal, key.to_pylist()), TYPES[kind])
            elif kind == "fixed":
                made = key.cast(pa.binary(12))
            else:
                made = key.cast(TYPES[kind])
            pq.write_table(found.set_column(0, "key", made), path)


TYPES = {
    "timestamp": pa.timestamp("us", "UTC"),
    "timestamp without zone": pa.timestamp("us"),
    "duration": pa.duration("us"),
    "decimal": pa.decimal128(18, 0),
    "date": pa.date32(),
}


@pytest.mark.parametrize("which", ["hard", "random", "stratified"])
@pytest.mark.parametrize("kind", [*TYPES, "fixed", "not UTF-8"])
def test_keys_of_every_type(tmp_path, kind, which):
    """Reports are those of the same keys as numbers or text, also where Python has no value for a key."""
    keys, cluster, distances = make_rows(900, 6)
    if kind == "date":  # int32, and most after the year 9999
        keys = [np.int32(2_900_000 + number) for number in range(900)]
    elif kind in TYPES:
        keys = [1_700_000_000_000_000 + 7919 * number for number in range(900)]
    if kind == "fixed":
        keys = [key.encode() for key in keys]
    run = make_run(tmp_path / "run", keys, cluster, distances, prune={"which_to_keep": which})

    def list_all():
        clusters = Clusters(run)
        found = find_examples(run, clusters.cluster_id, clusters.quota, clusters.n_items)
        return [
            [(write_key(one.key, "string"), one.distance, one.is_kept, one.rank) for one in rows]
            for of in found.values()
            for rows in (of.nearest, of.kept, of.dropped)
        ]

    before = list_all()
    convert_keys(run, kind)
    after = list_all()
    assert sum(map(len, before)) > 60
    if kind == "not UTF-8" and which == "random":  # the byte more makes other hashes
        assert {one[2] for rows in after for one in rows} == {False, True}
    elif kind == "not UTF-8":
        assert after == [[("\\xff" + key, *rest) for key, *rest in rows] for rows in before]
    else:
        assert [[one[1:] for one in rows] for rows in after] == [[one[1:] for one in rows] for rows in before]
        if kind not in ("date", "decimal"):
            assert after == before
    write_report(run, tmp_path / "a.html")
    assert len(gather_keys(find_shown(run, Clusters(run), [0, 1]), {})) > 6
    assert "Cluster 3" in str(show_cluster(run, 3))


def test_texts_of_keys_that_are_not_utf_8_differ():
    raw = pa.array([b"\xff1", b"\xfe1"], pa.binary())
    keys = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    assert write_keys(keys, "string") == ["\\xff1", "\\xfe1"]


@pytest.mark.parametrize("how", ["missing", "cut off", "no Parquet", "without its columns"])
@pytest.mark.parametrize("table", ["cluster_stats", "quotas", "assignments", "keep_list", "duplicates"])
def test_damaged_tables_are_said(tmp_path, capsys, table, how):
    keys, cluster, distances = make_rows(300, 4)
    duplicates = pa.table({
        "key": ["a", "b"], "duplicate_of": ["c"] * 2, "method": ["semantic"] * 2,
        "similarity": pa.array([0.97, 0.99], pa.float32()),
    })  # fmt: skip
    run = make_run(
        tmp_path / "run", keys, cluster, distances, duplicates=duplicates, dropped={"semantic duplicates": 2},
        dedup={"semantic": {"eps": 0.05, "n_clusters": 2}},
    )  # fmt: skip
    for path in map(Path, run.list_files(table)):
        content = path.read_bytes()
        path.unlink()
        if how == "without its columns":
            pq.write_table(pa.table({"other": [1]}), path)
        elif how != "missing":
            path.write_bytes(content[: len(content) // 2] if how == "cut off" else b"PAR1 this is none")
    assert main(["report", run.path, "--out", str(tmp_path / "a.html")]) == 3
    message = capsys.readouterr().err
    assert f"the table {table} of the run cannot be read: " in message
    assert "to mend it: see what spark-dbp verify" in message
    assert not (tmp_path / "a.html").exists()
    if table != "duplicates":
        with pytest.raises(DamagedRunError, match=f"the table {table}"):
            run.show_cluster(1)
    if table in ("cluster_stats", "quotas"):
        with pytest.raises(DamagedRunError, match=f"the table {table}"):
            read_small_table(run, table, "cluster_id")


def test_clusters_in_any_order_of_their_rows(tmp_path):
    """Tables and histograms that lie in another order give the same report."""
    keys, cluster, distances = make_rows(3000, 40)
    run = make_run(tmp_path / "run", keys, cluster, distances)
    write_report(run, tmp_path / "a.html")
    of_run = RunClusters(run)
    rng = np.random.default_rng(1)
    for name in ("cluster_stats", "quotas"):
        folder = Path(run.table_path(name))
        table = pq.read_table(folder)
        if name == "cluster_stats":
            turned = [one[::-1] for one in table["distance_histogram"].to_pylist()]
            at = table.column_names.index("distance_histogram")
            table = table.set_column(at, "distance_histogram", pa.array(turned, table.schema.field(at).type))
        for path in folder.iterdir():
            path.unlink()
        pq.write_table(table.take(rng.permutation(40)), folder / "part-0.parquet")
    again = RunClusters(open_run(run.path))
    for name in ("cluster_id", "n_items", "quota", "floor", "d_intra", "weight", "target"):
        assert getattr(again, name).tolist() == getattr(of_run, name).tolist(), name
    assert [again.find_row(number) for number in (0, 7, 39)] == [0, 7, 39]
    write_report(open_run(run.path), tmp_path / "b.html")
    assert read_data((tmp_path / "b.html").read_bytes()) == read_data((tmp_path / "a.html").read_bytes())


@pytest.mark.parametrize("which", ["hard", "easy", "random", "stratified"])
def test_the_page_and_the_figure_draw_the_same(tmp_path, which):
    """The floor, what is kept of each bin, and the cut; with a cluster that has no samples."""
    keys, cluster, distances = make_rows(3000, 12)
    prune = {"which_to_keep": which, "cluster_balance": 0.8, "min_per_cluster": 3}
    run = make_run(tmp_path / "run", keys, cluster + (cluster > 4), distances, prune=prune)
    page, figure = Clusters(run), RunClusters(run)
    assert (len(page), len(figure.cluster_id)) == (12, 13)
    account = int(0.8 * int(figure.quota.sum()) / 12)
    assert figure.floor.tolist() == np.minimum(figure.n_items, max(3, account)).tolist()
    assert page.floor.tolist() == figure.floor[figure.n_items > 0].tolist()
    for row, number in enumerate(page.cluster_id.tolist()):
        at, quota = figure.find_row(number), int(page.quota[row])
        bins, n_items, kept = figure.distances.count_kept(at, quota)
        one = page.make_histogram(row)
        bar = bins // one["width"] - one["start"] // one["width"]
        wanted = np.bincount(bar, kept)
        assert one["n"] == np.bincount(bar, n_items).tolist()
        assert np.abs(np.array(one["kept"]) - wanted).max() < (1 if which == "random" else 1e-9)
        assert sum(one["kept"]) == quota
        assert one["cut"] == figure.distances.find_cut(at, quota)
        assert (one["cut"] is not None) == (which in ("hard", "easy") and quota < page.n_items[row])
        if one["cut"] is not None:
            own = np.sort(distances[cluster + (cluster > 4) == number])
            cut = own[-quota] if which == "hard" else own[quota - 1]
            assert abs(one["cut"] - cut) <= 1 / 1024
    pytest.importorskip("matplotlib")
    axes = run.plot_distances(9).axes[0]
    drawn = sum(bar.get_height() for bar in axes.containers[1])
    assert drawn == pytest.approx(page.quota[page.find_row(9)])
    lines = [line.get_xdata()[0] for line in axes.lines]
    assert lines == [one for one in [page.make_histogram(page.find_row(9))["cut"]] if one is not None]
    floors = [line for line in run.plot_quotas().axes[0].lines if str(line.get_label()).startswith("floor")]
    assert [line.get_ydata()[0] for line in floors] == [figure.floor.max()]
