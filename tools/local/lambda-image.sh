#!/usr/bin/env bash
# Builds fieldstation/lambda, the image in which `sam local invoke` runs a function. It contains the Lambda emulator of
# aws-sam-cli, root certificates, and this machine's glibc. The functions are built against this glibc, which may be
# newer than that of Amazon Linux. The image sets the endpoint, because SAM passes on only the variables that the
# template has. `multi on` in host.conf makes localhost resolve also to the address of `--add-host`.
# Usage: lambda-image.sh <AWS endpoint, as a container sees it>; after `make build-local`.
set -euo pipefail
cd "$(dirname "$0")/../.."

architecture=$(uname -m | sed 's/aarch64/arm64/')
packages=$(echo .venv/lib/python3*/site-packages)
libraries=$(ldd .aws-sam/build/*/*/bootstrap | grep -oE '/lib[^ ]+\.so[^ ]*' | sort -u)
mkdir -p target/local
echo "multi on" > target/local/host.conf

# shellcheck disable=SC2086  # a word for each library
tar --create --dereference --absolute-names --transform 's|^/||' \
  --transform 's|.*/aws-lambda-rie-.*|var/rapid/aws-lambda-rie|' \
  --transform 's|.*/cacert.pem|etc/ssl/certs/ca-certificates.crt|' \
  --transform 's|.*/host.conf|etc/host.conf|' \
  $libraries "$packages/samcli/local/rapid/aws-lambda-rie-$architecture" "$packages/certifi/cacert.pem" target/local/host.conf \
  | docker import --change "ENV AWS_ENDPOINT_URL=$1 LAMBDA_TASK_ROOT=/var/task" - "fieldstation/lambda:rapid-$architecture"
