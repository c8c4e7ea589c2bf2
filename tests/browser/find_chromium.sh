#!/bin/sh
# Print the path of a Chromium; install Debian's package where there is none. What that says goes to stderr.
set -eu
if [ -n "${SPARK_DBP_CHROMIUM:-}" ]; then echo "$SPARK_DBP_CHROMIUM"; exit; fi
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$name"; then exit; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "no Chromium: install Debian's package chromium, or name one in SPARK_DBP_CHROMIUM" >&2
  exit 1
fi
apt-get -qq update >&2
DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core >&2
command -v chromium
