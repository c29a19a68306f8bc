"""Steps that only read GitHub: the workflows and the settings of this repository."""

import json
import shutil
import subprocess

from environment import ROOT
from steps import Skipped, ensure, step


def gh(*arguments):
    """Returns the output of GitHub's command line."""
    if not shutil.which("gh"):
        raise Skipped("gh was not found; run this step where GitHub's command line is logged in")
    ended = subprocess.run(["gh", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if ended.returncode:
        raise Skipped(f"gh {' '.join(arguments)} failed: {ended.stderr.strip()}")
    return json.loads(ended.stdout)


@step("workflows", "The workflows staging, prod and services of this repository have succeeded: roles by GitHub's tokens, artifacts, bootstrap, smoke "
      "test", seconds=60, not_on_emulator="GitHub's workflows do not deploy to the emulator")
def workflows(environment):
    seen = []
    for workflow in ("staging.yml", "prod.yml", "services.yml"):
        runs = gh("run", "list", "--workflow", workflow, "--status", "success", "--limit", "1", "--json", "url,createdAt,event")
        ensure(runs, f"{workflow} has never succeeded")
        seen.append(f"{workflow} {runs[0]['createdAt']} ({runs[0]['event']}) {runs[0]['url']}")
    return "; ".join(seen)


@step("github-settings", "GitHub has the environments staging and prod, and a ruleset for the branch that they deploy", seconds=60,
      not_on_emulator="GitHub's settings do not concern the emulator")
def github_settings(environment):
    environments = {each["name"] for each in gh("api", "repos/{owner}/{repo}/environments")["environments"]}
    ensure({"staging", "prod"} <= environments, f"the environments are: {', '.join(sorted(environments)) or 'none'}")
    rulesets = [each["name"] for each in gh("api", "repos/{owner}/{repo}/rulesets")]
    ensure(rulesets, "there is no ruleset")
    return f"environments {', '.join(sorted(environments))}; rulesets {', '.join(rulesets)}"
