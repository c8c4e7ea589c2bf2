"""The files of conf/ for platforms, checked against what the platforms publish of their forms."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import botocore.loaders
import botocore.model
import botocore.validate
import pytest
import yaml
from conftest import ROOT
from databricks.bundles.jobs import Job
from kubeflow_spark_api.models import SparkV1beta2SparkApplication

from spark_dbp import RunConfig, cli

CONF = ROOT / "conf"
BUNDLE = yaml.safe_load((CONF / "databricks/databricks.yml").read_text())
JOBS = yaml.safe_load((CONF / "databricks/jobs.yml").read_text())["resources"]["jobs"]
STEPS = json.loads((CONF / "emr/step.json").read_text())
JOB_RUN = json.loads((CONF / "emr/serverless-job-run.json").read_text())
KUBEFLOW = yaml.safe_load((CONF / "kubernetes/kubeflow.yaml").read_text())
APACHE = yaml.safe_load((CONF / "kubernetes/apache.yaml").read_text())


def find_aws_errors(service: str, operation: str, parameters: dict) -> str:
    """What the API of AWS would say of the form of a request."""
    model = botocore.loaders.Loader().load_service_model(service, "service-2")
    shape = botocore.model.ServiceModel(model, service).operation_model(operation).input_shape
    return botocore.validate.ParamValidator().validate(parameters, shape).generate_report()


def test_emr_step():
    assert find_aws_errors("emr", "AddJobFlowSteps", {"JobFlowId": "j-1", "Steps": STEPS}) == ""
    wrong = [{**STEPS[0], "HadoopJarStep": {"Jar": "x", "Arguments": []}}]
    assert "Arguments" in find_aws_errors("emr", "AddJobFlowSteps", {"JobFlowId": "j-1", "Steps": wrong})


def test_emr_serverless_job_run():
    request = {**JOB_RUN, "clientToken": "x"}  # the client library makes one
    assert find_aws_errors("emr-serverless", "StartJobRun", request) == ""
    assert "jobDriver" in find_aws_errors("emr-serverless", "StartJobRun", {**request, "jobDriver": "x"})


@pytest.mark.parametrize("name", JOBS)
def test_databricks_job(name):
    job = Job.from_dict(JOBS[name])
    assert [task.python_wheel_task.parameters[0] for task in job.tasks][-1] == "run"
    with pytest.raises(ValueError, match="no_such_field"):
        Job.from_dict({**JOBS[name], "no_such_field": 1})


def test_databricks_bundle():
    """Its variables are all defined, its files exist, and its entry point is one of the wheel."""
    assert BUNDLE.keys() == {"bundle", "include", "variables", "artifacts", "targets"}
    text = "".join((CONF / f"databricks/{name}.yml").read_text() for name in ("databricks", "jobs"))
    assert set(re.findall(r"\$\{var\.(\w+)\}", text)) == set(BUNDLE["variables"])
    assert [(CONF / "databricks" / name).exists() for name in BUNDLE["include"]] == [True]
    build = BUNDLE["artifacts"]["wheel"]
    assert (CONF / "databricks" / build["path"] / "pyproject.toml").exists()
    assert build["build"].split()[-3:] == ["--wheel-dir", "dist", "."]
    project = (ROOT / "pyproject.toml").read_text()
    for job in JOBS.values():
        for task in job["tasks"]:
            wheel = task["python_wheel_task"]
            assert f'name = "{wheel["package_name"]}"' in project
            assert f'{wheel["entry_point"]} = "spark_dbp.cli:run_job"' in project


def test_databricks_entry_point_raises(monkeypatch, capsys):
    """What it returns is not looked at there."""
    monkeypatch.setattr("sys.argv", ["spark-dbp-job", "run", "/no/such.yaml"])
    with pytest.raises(SystemExit) as stopped:
        cli.run_job()
    assert stopped.value.code == 2
    assert "cannot read /no/such.yaml" in capsys.readouterr().err
    monkeypatch.setattr(cli, "main", lambda _: 0)
    assert cli.run_job() is None


def test_databricks_configuration_and_notebook():
    config = RunConfig.from_yaml(CONF / "databricks/conf.yaml")
    assert (config.output.table_format, config.output.path[:9]) == ("delta", "/Volumes/")
    text = (CONF / "databricks/notebook.py").read_text()
    compile(text, "notebook", "exec")
    assert text.startswith("# Databricks notebook source\n")


def test_kubeflow_application():
    """What the operator's own model does not know is lost on the way through it."""
    there_and_back = SparkV1beta2SparkApplication.from_dict(KUBEFLOW).to_dict()
    assert there_and_back == KUBEFLOW
    wrong = {**KUBEFLOW, "spec": {**KUBEFLOW["spec"], "noSuchField": 1}}
    assert SparkV1beta2SparkApplication.from_dict(wrong).to_dict() != wrong
    with pytest.raises(ValueError, match="type"):
        SparkV1beta2SparkApplication.from_dict({**KUBEFLOW, "spec": {"type": 1}})


# Fields of the operator's SparkApplication, spark.apache.org/v1, of those that we use and those beside them.
# There is no package that has them.
APACHE_FIELDS = {
    "spec": {
        "mainClass": str,
        "runtimeVersions": {"sparkVersion": str, "scalaVersion": str, "jdkVersion": str},
        "jars": str,
        "pyFiles": str,
        "sparkRFiles": str,
        "files": str,
        "deploymentMode": str,
        "proxyUser": str,
        "driverArgs": list,
        "sparkConf": dict,
        "driverSpec": dict,
        "executorSpec": dict,
        "applicationTolerations": {
            "restartConfig": {
                "restartPolicy": ("Always", "Never", "OnFailure", "OnInfrastructureFailure"),
                "maxRestartAttempts": int,
                "restartBackoffMillis": int,
            },
            "resourceRetainPolicy": ("Always", "Never", "OnFailure"),
        },
    }
}


def list_unknown(value: dict, fields: dict, path: str = "") -> list[str]:
    """Fields that are not known, or of another type."""
    found = []
    for name, item in value.items():
        form = fields.get(name)
        if isinstance(form, dict):
            found += list_unknown(item, form, f"{path}{name}.")
        elif form is None or (item not in form if isinstance(form, tuple) else not isinstance(item, form)):
            found.append(path + name)
    return found


def test_apache_application():
    assert (APACHE["apiVersion"], APACHE["kind"]) == ("spark.apache.org/v1", "SparkApplication")
    assert list_unknown({"spec": APACHE["spec"]}, APACHE_FIELDS) == []
    assert list_unknown({"spec": {"pyFile": "x", "driverArgs": "x"}}, APACHE_FIELDS) == [
        "spec.pyFile",
        "spec.driverArgs",
    ]
    assert all(isinstance(value, str) for value in APACHE["spec"]["sparkConf"].values())
    assert APACHE["spec"]["runtimeVersions"]["sparkVersion"] == KUBEFLOW["spec"]["sparkVersion"]


def settings_of(arguments: list[str]) -> dict[str, str]:
    return dict(arguments[i + 1].split("=", 1) for i, word in enumerate(arguments) if word == "--conf")


OF_KUBEFLOW = KUBEFLOW["spec"]["executor"]
SETTINGS = {
    "emr step": settings_of(STEPS[0]["HadoopJarStep"]["Args"]),
    "emr serverless": settings_of(shlex.split(JOB_RUN["jobDriver"]["sparkSubmit"]["sparkSubmitParameters"])),
    "apache": APACHE["spec"]["sparkConf"],
    "kubeflow": {f"spark.executor.{name}": str(value) for name, value in OF_KUBEFLOW.items()},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_workers_have_a_gigabyte_for_each_task_beside_the_heap(name):
    settings = SETTINGS[name]
    cores = int(settings["spark.executor.cores"])
    assert int(settings["spark.executor.memoryOverhead"].removesuffix("g")) >= cores + 2
    assert int(settings["spark.executor.memory"].removesuffix("g")) >= 2 * cores
    assert int(settings["spark.executor.instances"]) * cores == 64


def test_emr_takes_the_python_of_the_archive():
    step, serverless = SETTINGS["emr step"], SETTINGS["emr serverless"]
    python = "./environment/bin/python"
    assert step["spark.yarn.appMasterEnv.PYSPARK_PYTHON"] == python
    assert serverless["spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON"] == python
    assert serverless["spark.executorEnv.PYSPARK_PYTHON"] == python
    assert serverless["spark.archives"].endswith("#environment")


@pytest.mark.parametrize("folder", ["databricks", "emr", "kubernetes"])
def test_the_docs_name_every_file(folder):
    docs = (ROOT / "docs/platforms.md").read_text()
    for path in sorted((CONF / folder).iterdir()):
        assert f"conf/{folder}/{path.name}" in docs, path


def test_a_configuration_in_a_store(tmp_path: Path):
    """A cluster's driver has no file of the user's: the path may be a URI."""
    conf = tmp_path / "conf.yaml"
    conf.write_text((CONF / "databricks/conf.yaml").read_text())
    assert RunConfig.from_yaml(f"file://{conf}") == RunConfig.from_yaml(conf)
