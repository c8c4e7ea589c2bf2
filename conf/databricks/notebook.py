# Databricks notebook source
# MAGIC %md
# MAGIC # Prune a Unity Catalog table
# MAGIC On classic or serverless compute. Put the wheel on a Volume first; this makes it:
# MAGIC `python -m pip wheel --no-deps --wheel-dir dist .`

# COMMAND ----------

# MAGIC %pip install /Volumes/main/pruned/files/spark_dbp-0.1.0-py3-none-any.whl "datasketch>=2.0"

# COMMAND ----------

from spark_dbp import RunConfig, run

config = RunConfig.from_dict(
    {
        "input": {"table": "main.images.embeddings", "key": "uid", "embedding": "embedding"},
        "output": {"path": "/Volumes/main/pruned/files/run-1"},
        "cluster": {"n_clusters": 500},
        "prune": {"keep_ratio": 0.3},
    }
)
done = run(config, spark)  # noqa: F821  (the notebook's session)
print(done.summary())

# COMMAND ----------

kept = spark.table("main.images.metadata").join(done.keep_list(spark), "key")  # noqa: F821
kept.write.mode("overwrite").saveAsTable("main.images.metadata_kept")
