#!/usr/bin/env python3
"""Measures the effect of build settings and of ways to connect to AWS: configure-alerting unchanged, and with one change
at a time. Prints a markdown table, and writes it to docs/performance.md once every variation was measured; the
measurements may come from several runs. Run `make bench` before, which builds the functions.

    python3 tools/bench/settings/measure.py            all variations (half an hour)
    python3 tools/bench/settings/measure.py NAME...    some variations; earlier measurements of the others are kept
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OUTPUT = ROOT / "target" / "bench"
# The sources with the change, and their build directory, so that unchanged crates are not built again.
TREE, TARGET = OUTPUT / "settings" / "tree", OUTPUT / "settings" / "target"
BINARIES = OUTPUT / "settings" / "binaries"
ROWS = OUTPUT / "settings" / "rows.json"
DOCS = ROOT / "docs" / "performance.md"
FUNCTION, PACKAGE = "configure-alerting", "alerting"
HOST = re.search(r"^host: (.*)$", subprocess.run(["rustc", "-vV"], capture_output=True, text=True).stdout, re.M)[1]

AWS, HTTPS, BIN = "shared/lambda/src/aws.rs", "shared/lambda/src/https.rs", "functions/alerting/src/bin/configure-alerting.rs"
LAMBDA, CARGO = "shared/lambda/Cargo.toml", "Cargo.toml"
NO_CONNECTION_IN_INIT = (BIN, 'Aws::start(&["dynamodb"])', "Aws::start(&[])")
# The name of a variation, its build variables, and its edits as file, old text and new text.
VARIATIONS = [
    ("as it is", {}, []),
    ("entropy from CPU jitter, aws-lc's default", {"AWS_LC_SYS_NO_JITTER_ENTROPY": "0"}, []),
    ("the system's roots, too", {}, [
        (AWS, "Https::trusting_pem(&pem)", 'Https::trusting_pem(&[pem, std::fs::read("/etc/ssl/certs/ca-certificates.crt").unwrap()].concat())'),
    ]),
    ("no connection opened in init", {}, [NO_CONNECTION_IN_INIT]),
    ("the SDK's own connector (HTTP/2 linked, nothing opened in init)", {}, [
        NO_CONNECTION_IN_INIT,
        (LAMBDA, "aws-smithy-types.workspace = true\n", "aws-smithy-types.workspace = true\naws-smithy-http-client.workspace = true\n"),
        (AWS, ".http_client(https)", """.http_client({
            use aws_smithy_http_client::{Builder, tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode}};
            let pem = std::fs::read(std::env::var("AWS_CA_BUNDLE").unwrap()).unwrap();
            let trust = TrustStore::empty().with_pem_certificate(pem);
            let context = TlsContext::builder().with_trust_store(trust).build().unwrap();
            Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(context).build_https()
        })"""),
    ]),
    ("ring instead of aws-lc", {}, [
        (CARGO, '"aws-lc-rs", "http1"', '"ring", "http1"'),
        (CARGO, 'features = ["aws_lc_rs"]', 'features = ["ring"]'),
        (HTTPS, "crypto::aws_lc_rs", "crypto::ring"),
    ]),
    ("log filters by module (env-filter)", {}, [
        (CARGO, 'features = ["fmt", "json"]', 'features = ["env-filter", "fmt", "json"]'),
        ("shared/lambda/src/telemetry.rs", ".with_max_level(parse_level(&level))",
         ".with_env_filter(tracing_subscriber::EnvFilter::new(parse_level(&level).to_string()))"),
    ]),
    ("mimalloc as the allocator", {}, [
        (CARGO, 'metrics = "0.24"\n', 'metrics = "0.24"\nmimalloc = { version = "=0.1.52", default-features = false }\n'),
        (LAMBDA, "metrics.workspace = true\n", "metrics.workspace = true\nmimalloc.workspace = true\n"),
        ("shared/lambda/src/lib.rs", "mod aws;\n", "mod aws;\n#[global_allocator]\nstatic ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;\n"),
    ]),
    ("thin LTO", {"CARGO_PROFILE_RELEASE_LTO": "thin"}, []),
    ("opt-level z for every crate", {}, [(CARGO, "opt-level = 3", 'opt-level = "z"')]),
    ("opt-level 3 for every crate", {}, [(CARGO, 'opt-level = "z"', "opt-level = 3")]),
    ("panic = abort", {}, [(CARGO, 'panic = "unwind"', 'panic = "abort"')]),
]

HEAD = """| configure-alerting | binary, MB | zip, MB | to `/next`, M instructions | first invocation | both | warm | peak memory, MB |
|---|---:|---:|---:|---:|---:|---:|---:|"""


def copy():
    """Copies the sources. Unchanged files keep their modification time, so that cargo does not build them
    again."""
    TREE.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        source, target = ROOT / name, TREE / name
        if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def build(name, variables, edits):
    """Builds the function with this change. The other functions come from `make bench`, unchanged. The measurement
    needs them, because the sample events depend on each other."""
    copy()
    for file, old, new in edits:
        text = (TREE / file).read_text()
        if old not in text:
            sys.exit(f"{name}: {file} does not contain {old!r} any more: update the edit in VARIATIONS")
        (TREE / file).write_text(text.replace(old, new))
    command = ["cargo", "build", "--quiet", "--release", "--target", HOST, "-p", PACKAGE, "--bin", FUNCTION]
    subprocess.run(command, cwd=TREE, env=os.environ | {"CARGO_TARGET_DIR": str(TARGET)} | variables, check=True)
    shutil.rmtree(BINARIES, ignore_errors=True)
    BINARIES.mkdir(parents=True)
    for binary in (ROOT / "target" / HOST / "release").iterdir():
        if binary.is_file() and os.access(binary, os.X_OK):
            (BINARIES / binary.name).symlink_to(binary)
    (BINARIES / FUNCTION).unlink()
    (BINARIES / FUNCTION).symlink_to(TARGET / HOST / "release" / FUNCTION)


def measure():
    bench, figures = ROOT / "target" / "release" / "bench-functions", OUTPUT / "functions.json"
    figures.unlink(missing_ok=True)
    environment = os.environ | {"BIN_DIR": str(BINARIES), "FUNCTIONS": FUNCTION}
    # The exit status is ignored, because the change may exceed the budget.
    subprocess.run([str(bench)], cwd=ROOT, env=environment, check=False, stdout=subprocess.DEVNULL)
    return json.loads(figures.read_text())["functions"][FUNCTION]


def row(name, figures):
    counts = figures["instructions"]
    return (
        f"| {name} | {figures['codeBytes'] / 1e6:.2f} | {figures['zipBytes'] / 1e6:.2f} | {counts['toNext'] / 1e6:.2f} "
        f"| {(counts['toFirstAnswer'] - counts['toNext']) / 1e6:.2f} | {counts['toFirstAnswer'] / 1e6:.2f} "
        f"| {counts['warm'] / 1e6:.3f} | {figures['peakBytes'] / 1e6:.1f} |"
    )


def main():
    names = sys.argv[1:]
    rows = json.loads(ROWS.read_text()) if names and ROWS.exists() else {}
    selected = [variation for variation in VARIATIONS if not names or variation[0] in names]
    for number, (name, variables, edits) in enumerate(selected, 1):
        print(f"{number} of {len(selected)}: {name}", file=sys.stderr, flush=True)
        build(name, variables, edits)
        rows[name] = row(name, measure())
        print(rows[name], flush=True)
        ROWS.write_text(json.dumps(rows, indent=1))
    names = [name for name, _, _ in VARIATIONS]
    if set(names) <= set(rows):
        table, text = "\n".join([HEAD, *(rows[name] for name in names)]), DOCS.read_text()
        DOCS.write_text(re.sub(r"(?s)<!-- settings -->.*<!-- /settings -->", f"<!-- settings -->\n{table}\n<!-- /settings -->", text))


if __name__ == "__main__":
    main()
